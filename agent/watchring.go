package main

import (
	"encoding/json"
	"sync"
	"sync/atomic"
)

const (
	minKeepEvents     = 16
	defaultKeepEvents = 4096
	maxKeepEvents     = 65536
	// What the kept events of all watches may take in memory; beyond it a watch that adds one drops its own oldest.
	maxEventMemory = 16 << 20
	eventOverhead  = 64
)

// What can happen to a path, as bits, so that a watch can have a set of them.
const (
	changeCreate = 1 << iota
	changeModify
	changeAttributes
	changeRemove
	changeMove
	changeOverflow // events were lost in the kernel: look again
	changeAll      = changeOverflow<<1 - 1
)

var changeWords = map[uint8]string{
	changeCreate: "create", changeModify: "modify", changeAttributes: "attributes", changeRemove: "remove",
	changeMove: "move", changeOverflow: "overflow",
}

// change is one thing that happened.
type change struct {
	at        int64 // microseconds since 1970
	kind      uint8
	directory bool
	path      string
	from      string
}

func (c change) size() int64 { return int64(eventOverhead + len(c.path) + len(c.from)) }

// changeLine is a line of NDJSON. A gap has its own form: {"kind":"gap","lost":n}.
type changeLine struct {
	Kind      string  `json:"kind"`
	At        float64 `json:"at"`
	Path      string  `json:"path"`
	Source    *string `json:"source,omitempty"`
	Directory bool    `json:"directory"`
}

type gapLine struct {
	Kind string `json:"kind"`
	Lost int64  `json:"lost"`
}

func (c change) appendTo(b []byte) []byte {
	one := changeLine{changeWords[c.kind], float64(c.at) / 1e6, text(c.path), nil, c.directory}
	if c.kind == changeMove {
		from := text(c.from)
		one.Source = &from
	}
	return appendLine(b, one)
}

// changeRing keeps the last changes of a watch. Cursors count changes since its start.
type changeRing struct {
	mu      sync.Mutex
	kept    []change // circular: the change of cursor c is at c modulo its length
	limit   int
	start   int64
	end     int64
	held    *atomic.Int64 // memory of all rings
	changed chan struct{}
	reason  string // why the watch ended
}

func newChangeRing(limit int, held *atomic.Int64) *changeRing {
	return &changeRing{limit: limit, held: held, changed: make(chan struct{})}
}

// add never blocks: the oldest make room.
func (r *changeRing) add(c change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.reason != "" {
		return
	}
	total := r.held.Add(c.size())
	for r.start < r.end && (r.end-r.start >= int64(r.limit) || total > maxEventMemory) {
		total = r.drop()
	}
	if r.end-r.start == int64(len(r.kept)) {
		r.grow()
	}
	r.kept[r.end%int64(len(r.kept))] = c
	r.end++
	r.wake()
}

// drop forgets the oldest.
func (r *changeRing) drop() int64 {
	oldest := &r.kept[r.start%int64(len(r.kept))]
	size := oldest.size()
	*oldest = change{}
	r.start++
	return r.held.Add(-size)
}

func (r *changeRing) grow() {
	bigger := make([]change, min(max(2*len(r.kept), minKeepEvents), r.limit))
	for at := r.start; at < r.end; at++ {
		bigger[at%int64(len(bigger))] = r.kept[at%int64(len(r.kept))]
	}
	r.kept = bigger
}

func (r *changeRing) wake() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// finish ends it; what is kept can still be read.
func (r *changeRing) finish(reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.reason == "" {
		r.reason = reason
		r.wake()
	}
}

// free forgets everything: nobody will ask again, and who reads now has read its end.
func (r *changeRing) free() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.start < r.end {
		r.drop()
	}
	r.kept = nil
	r.wake()
}

func (r *changeRing) cursors() (oldest, end int64, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.start, r.end, r.reason
}

// read copies changes from cursor on into b. lost counts those before them that are no longer kept. n == 0: nothing
// there yet; `changed` closes when that changes, and reason says that it never will.
func (r *changeRing) read(cursor int64, b []change) (n int, lost int64, reason string, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if cursor < r.start {
		lost = r.start - cursor
		cursor = r.start
	}
	for n < len(b) && cursor < r.end {
		b[n] = r.kept[cursor%int64(len(r.kept))]
		n++
		cursor++
	}
	if n == 0 {
		reason = r.reason
	}
	return n, lost, reason, r.changed
}

func appendLine(b []byte, value any) []byte {
	line, _ := json.Marshal(value)
	return append(append(b, line...), '\n')
}

package main

import "sync"

const (
	minKeep     = 4096
	maxKeep     = 16 << 20
	defaultKeep = 1 << 20
)

// ring keeps the last `limit` bytes of a command's two streams, in the order in which they were read. Cursors count
// bytes since the start over both streams.
type ring struct {
	mu      sync.Mutex
	buffer  []byte // grows up to limit, so that a quiet command costs nothing
	limit   int
	start   int64 // cursor of the oldest kept byte
	end     int64 // cursor of the next byte
	runs    []run // where the stream changes, oldest first
	changed chan struct{}
	ended   bool
}

// run says that from cursor `at` on, bytes are of `kind`, up to the next run.
type run struct {
	at   int64
	kind kind
}

func newRing(limit int) *ring {
	return &ring{limit: limit, changed: make(chan struct{})}
}

// send implements sink. It never blocks and never fails: the oldest bytes make room.
func (r *ring) send(k kind, frame []byte) error {
	r.add(k, frame[headerSize:])
	return nil
}

func (r *ring) add(k kind, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.grow(len(data))
	r.startRun(k)
	for len(data) > 0 {
		n := copy(r.buffer[int(r.end%int64(len(r.buffer))):], data)
		r.end += int64(n)
		data = data[n:]
	}
	r.start = max(r.start, r.end-int64(len(r.buffer)))
	r.forgetRuns()
	r.wake()
}

func (r *ring) wake() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// grow doubles the buffer while the kept bytes and n more do not fit and the limit allows it.
func (r *ring) grow(n int) {
	used := int(r.end - r.start)
	size := len(r.buffer)
	if used+n <= size || size == r.limit {
		return
	}
	for size = max(size, minKeep); size < used+n && size < r.limit; {
		size *= 2
	}
	size = min(size, r.limit)
	bigger := make([]byte, size)
	for at := r.start; at < r.end; { // each byte stays at cursor modulo size
		from := r.buffer[int(at%int64(len(r.buffer))):]
		from = from[:min(int64(len(from)), r.end-at)]
		at += int64(copy(bigger[int(at%int64(size)):], from))
	}
	r.buffer = bigger
}

// startRun notes a change of stream. A command that alternates streams byte by byte would need more memory for the
// notes than for its output, so beyond limit/64 runs the oldest bytes go as if the ring were full.
func (r *ring) startRun(k kind) {
	if n := len(r.runs); n > 0 && r.runs[n-1].kind == k {
		return
	}
	r.runs = append(r.runs, run{r.end, k})
	if len(r.runs) > max(r.limit/64, 64) {
		r.start = max(r.start, r.runs[1].at)
	}
}

func (r *ring) forgetRuns() {
	drop := 0
	for drop+1 < len(r.runs) && r.runs[drop+1].at <= r.start {
		drop++
	}
	if drop > 0 {
		r.runs = append(r.runs[:0], r.runs[drop:]...)
	}
}

func (r *ring) finish() {
	r.mu.Lock()
	r.ended = true
	r.wake()
	r.mu.Unlock()
}

func (r *ring) cursors() (oldest, end int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.start, r.end
}

// read copies bytes of one stream at cursor into b. lost counts bytes before them that are no longer kept. n == 0:
// nothing there yet; `changed` closes when that changes.
func (r *ring) read(cursor int64, b []byte) (k kind, n int, lost int64, ended bool, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if cursor < r.start {
		lost = r.start - cursor
		cursor = r.start
	}
	if cursor >= r.end {
		return 0, 0, lost, r.ended, r.changed
	}
	stop := r.end
	for _, one := range r.runs {
		if one.at > cursor {
			stop = one.at
			break
		}
		k = one.kind
	}
	want := min(int64(len(b)), stop-cursor)
	for int64(n) < want {
		from := r.buffer[int((cursor+int64(n))%int64(len(r.buffer))):]
		n += copy(b[n:want], from)
	}
	return k, n, lost, false, r.changed
}

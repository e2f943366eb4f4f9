package main

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxWatches = 64
	// What one watch may have of directories, and all together: each is a kernel object in the sandbox's memory.
	maxWatchDirectories    = 16384
	maxAllWatchDirectories = 65536
)

// Why a watch ended.
const (
	endedRemoved = "removed" // the directory is gone
	endedMoved   = "moved"   // it is elsewhere now
	endedLimit   = "limit"   // more directories than may be watched
	endedStopped = "stopped"
)

var watchKinds = map[string]uint8{
	"create": changeCreate, "modify": changeModify, "attributes": changeAttributes, "remove": changeRemove, "move": changeMove,
}

// watches is every watch of the agent, and the registry of their ids. What they watch is in `tree`.
type watches struct {
	tree  watchTree
	mu    sync.Mutex
	byID  map[string]*watch
	order []string
	held  atomic.Int64 // memory of kept changes
}

func newWatches() *watches {
	ws := &watches{byID: map[string]*watch{}, tree: watchTree{nodes: map[int32][]*node{}}}
	ws.tree.pause.over.L = &ws.tree.mu
	return ws
}

// watch is one watched directory. Fields after `changes` are guarded by the tree's lock.
type watch struct {
	id        string
	path      string // as asked for, without a slash at its end; empty for /
	recursive bool
	kinds     uint8
	pattern   string
	globs     []glob // of the pattern; none: everything
	since     time.Time
	changes   *changeRing

	root   *node
	device uint64
	count  int // its nodes
	bursts map[string]burst
	timer  *time.Timer // set while there are bursts
}

type watchStartCall struct {
	Kinds      []string `json:"kinds"`
	Glob       string   `json:"glob"`
	KeepEvents *int     `json:"keep_events"`
}

func (a *agent) watchStart(ch *channel, in *call) (any, error) {
	own, err := fields[watchStartCall](in)
	if err != nil {
		return nil, err
	}
	w, err := a.watches.plan(in, own)
	if err != nil {
		return nil, err
	}
	if err := a.watches.reserve(w); err != nil {
		return nil, err
	}
	err = a.watches.tree.start(w, ch)
	if err == nil && ch.isCanceled() { // nobody knows of it
		a.watches.tree.stop(w, endedStopped)
		err = errCanceled
	}
	if err != nil {
		a.watches.forget(w.id)
		return nil, err
	}
	return a.watches.info(w), nil
}

func (ws *watches) plan(in *call, own *watchStartCall) (*watch, error) {
	keep := or(own.KeepEvents, defaultKeepEvents)
	if keep < minKeepEvents || keep > maxKeepEvents {
		return nil, fail("invalid", "keep_events must be from 16 to 65536")
	}
	if !commandID.MatchString(in.ID) {
		return nil, fail("invalid", "a watch id is 1 to 32 of a-z, 0-9, _ and -")
	}
	if err := checkPath(in.Path); err != nil {
		return nil, err
	}
	kinds := uint8(changeOverflow)
	for _, word := range own.Kinds {
		bit, ok := watchKinds[word]
		if !ok {
			return nil, fail("invalid", "a kind is create, modify, attributes, remove or move")
		}
		kinds |= bit
	}
	if len(own.Kinds) == 0 {
		kinds = changeAll
	}
	var globs []glob
	if own.Glob != "" {
		var err error
		if globs, err = parseGlobs([]string{own.Glob}); err != nil {
			return nil, err
		}
	}
	return &watch{
		id: in.ID, path: withoutSlash(in.Path), recursive: in.Recursive, kinds: kinds, pattern: own.Glob, globs: globs, since: time.Now(),
		changes: newChangeRing(keep, &ws.held), bursts: map[string]burst{},
	}, nil
}

// reserve takes the id, and makes room if it must.
func (ws *watches) reserve(w *watch) error {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.byID[w.id] != nil {
		return fail("exists", "a watch of this id exists")
	}
	if len(ws.order) >= maxWatches && !ws.forgetOldestEnded() {
		return fail("limit", "a sandbox has at most 64 watches")
	}
	ws.byID[w.id] = w
	ws.order = append(ws.order, w.id)
	return nil
}

func (ws *watches) forgetOldestEnded() bool {
	for _, id := range ws.order {
		if _, _, reason := ws.byID[id].changes.cursors(); reason != "" {
			ws.forgetLocked(id)
			return true
		}
	}
	return false
}

func (ws *watches) forget(id string) {
	ws.mu.Lock()
	ws.forgetLocked(id)
	ws.mu.Unlock()
}

func (ws *watches) forgetLocked(id string) {
	if w := ws.byID[id]; w != nil {
		delete(ws.byID, id)
		ws.order = slices.DeleteFunc(ws.order, func(one string) bool { return one == id })
		w.changes.finish(endedStopped)
		w.changes.free()
	}
}

func (ws *watches) get(id string) (*watch, error) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if w := ws.byID[id]; w != nil {
		return w, nil
	}
	return nil, fail("not_found", "no such watch")
}

// watchInfo is the *watch* of PROTOCOL.md.
type watchInfo struct {
	ID        string   `json:"id"`
	Path      string   `json:"path"`
	Recursive bool     `json:"recursive"`
	Kinds     []string `json:"kinds"`
	Glob      string   `json:"glob"`
	StartedAt float64  `json:"started_at"`
	Running   bool     `json:"running"`
	Reason    string   `json:"reason"`
	Cursor    int64    `json:"cursor"`
	Oldest    int64    `json:"oldest_cursor"`
}

func (ws *watches) info(w *watch) watchInfo {
	oldest, end, reason := w.changes.cursors()
	info := watchInfo{
		ID: w.id, Path: text(rooted(w.path)), Recursive: w.recursive, Kinds: []string{}, StartedAt: float64(w.since.UnixMicro()) / 1e6,
		Glob:    text(w.pattern),
		Running: reason == "", Reason: reason, Cursor: end, Oldest: oldest,
	}
	for bit := uint8(changeCreate); bit < changeOverflow; bit <<= 1 {
		if w.kinds&bit != 0 {
			info.Kinds = append(info.Kinds, changeWords[bit])
		}
	}
	return info
}

func (a *agent) listWatches(*channel, *call) (any, error) {
	a.watches.mu.Lock()
	defer a.watches.mu.Unlock()
	infos := make([]watchInfo, 0, len(a.watches.order))
	for _, id := range a.watches.order {
		infos = append(infos, a.watches.info(a.watches.byID[id]))
	}
	return struct {
		Watches []watchInfo `json:"watches"`
	}{infos}, nil
}

func (a *agent) watchStop(_ *channel, in *call) (any, error) {
	w, err := a.watches.get(in.ID)
	if err != nil {
		return nil, err
	}
	a.watches.tree.stop(w, endedStopped)
	a.watches.forget(w.id)
	return empty{}, nil
}

type watchEventsCall struct {
	WaitMS int64 `json:"wait_ms"`
}

type watchEventsResult struct {
	Cursor int64  `json:"cursor"`
	Ended  bool   `json:"ended"`
	Reason string `json:"reason"`
}

const (
	changesAtOnce  = 256
	linesAtOnce    = 64 << 10
	defaultChanges = 1000
)

// watchEvents sends kept changes as lines, from a cursor on. With follow it ends when the watch has, else at what was
// there; if there was nothing, it waits up to wait_ms for something.
func (a *agent) watchEvents(ch *channel, in *call) (any, error) {
	own, err := fields[watchEventsCall](in)
	if err != nil {
		return nil, err
	}
	w, err := a.watches.get(in.ID)
	if err != nil {
		return nil, err
	}
	if _, end, _ := w.changes.cursors(); in.Cursor < 0 || in.Cursor > end {
		return nil, fail("invalid", "the cursor is beyond the last event")
	}
	var expired <-chan time.Time
	if limit := limitOf(own.WaitMS); limit > 0 && !in.Follow {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		expired = timer.C
	}
	cursor, left := in.Cursor, or(in.Limit, defaultChanges)
	batch := make([]change, changesAtOnce)
	for in.Follow || left > 0 {
		room := batch
		if !in.Follow {
			room = batch[:min(left, changesAtOnce)]
		}
		n, lost, reason, changed := w.changes.read(cursor, room)
		if n == 0 && lost == 0 {
			if reason != "" {
				return watchEventsResult{cursor, true, reason}, nil
			}
			if !in.Follow && (cursor > in.Cursor || expired == nil) {
				break
			}
			select {
			case <-changed:
			case <-expired:
				expired = nil
			case <-ch.done:
				return nil, errCanceled
			}
			continue
		}
		if err := sendChanges(ch, lost, room[:n]); err != nil {
			return nil, err
		}
		cursor += lost + int64(n)
		left -= int64(n)
	}
	return watchEventsResult{Cursor: cursor}, nil
}

// sendChanges sends lines as DATA, the lost ones first: in the stream and not as an EVENT, because those need no credit
// and a reader that is slow may miss something between any two lines.
func sendChanges(ch *channel, lost int64, changes []change) error {
	frame := make([]byte, headerSize, headerSize+4096)
	if lost > 0 {
		frame = appendLine(frame, gapLine{"gap", lost})
	}
	for _, one := range changes {
		frame = one.appendTo(frame)
		if len(frame) >= linesAtOnce {
			if err := ch.send(kindData, frame); err != nil {
				return err
			}
			frame = frame[:headerSize]
		}
	}
	return ch.send(kindData, frame)
}

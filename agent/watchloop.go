package main

import (
	"strings"
	"syscall"
	"time"
)

const (
	// Many writes to one file are one event at once, and one more at the end of each such time in which it was written.
	modifyPause = 100 * time.Millisecond
	maxBursts   = 4096
)

// burst is a file that is being written.
type burst struct {
	until time.Time
	more  bool
}

// loop takes the events of one instance, until it is closed. It sleeps while there are none.
func (t *watchTree) loop(notify *inotify) {
	var hand []rawEvent // events in their order
	aged := 0           // of them, so many have waited for their other half
	for {
		if len(hand) == 0 {
			aged = 0
			events, err := t.more(notify)
			if err != nil {
				return
			}
			hand = events
			continue
		}
		other := -1
		if hand[0].is(syscall.IN_MOVED_FROM) {
			other = otherHalf(hand)
			if other < 0 && aged == 0 && len(hand) < moveReach {
				aged = len(hand)
				hand, other = awaitOther(notify, hand)
			}
		}
		if !t.handle(notify, hand, other) {
			return
		}
		if other > 0 {
			hand = append(hand[:other], hand[other+1:]...)
			if other < aged {
				aged--
			}
		}
		hand = hand[1:]
		aged = max(aged-1, 0)
	}
}

// more reads the next events. Between two floods, when the kernel has none left, is the time for what waited for that.
func (t *watchTree) more(notify *inotify) ([]rawEvent, error) {
	events, err := notify.poll()
	if err != nil || len(events) > 0 {
		return events, err
	}
	t.mu.Lock()
	if t.notify == notify {
		t.forgetReported(true)
		if !t.missed.IsZero() {
			t.repair()
		}
	}
	t.mu.Unlock()
	return notify.wait(0)
}

// otherHalf finds where the first event's thing was moved to, -1: not among the next ones.
func otherHalf(hand []rawEvent) int {
	for i := 1; i < min(len(hand), moveReach); i++ {
		if hand[i].is(syscall.IN_MOVED_TO) && hand[i].cookie == hand[0].cookie {
			return i
		}
	}
	return -1
}

// awaitOther gives the other half of a move a moment to come.
func awaitOther(notify *inotify, hand []rawEvent) ([]rawEvent, int) {
	for limit := time.Now().Add(movePause); len(hand) < maxInHand; {
		left := time.Until(limit)
		if left <= 0 {
			break
		}
		events, err := notify.wait(left)
		if err != nil {
			break // closed; the next read says so
		}
		hand = append(hand, events...)
		if other := otherHalf(hand); other > 0 {
			return hand, other
		}
	}
	return hand, -1
}

// handle does what the first event in hand says, with its other half if that is one. False: the instance is closed.
func (t *watchTree) handle(notify *inotify, hand []rawEvent, other int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.notify != notify {
		return false
	}
	e := hand[0]
	t.taken += recordSize(e)
	switch {
	case e.is(syscall.IN_Q_OVERFLOW):
		if t.missed.IsZero() {
			t.missed = time.Now()
		}
	case e.is(syscall.IN_MOVED_FROM):
		var to *rawEvent
		if other > 0 {
			to = &hand[other]
			t.taken += recordSize(*to)
		}
		t.moved(e, to)
	default:
		for _, n := range t.reachable(e.number) {
			t.happened(n, e)
		}
	}
	if t.notify == nil {
		return false
	}
	t.forgetReported(false)
	if !t.missed.IsZero() && time.Since(t.missed) > repairWithin {
		t.repair()
	}
	return t.notify == notify
}

// recordSize is what an event took in the kernel's queue: names are padded to the size of the head, inotify(7).
func recordSize(e rawEvent) int64 {
	if e.name == "" {
		return syscall.SizeofInotifyEvent
	}
	return int64(syscall.SizeofInotifyEvent + (len(e.name)+syscall.SizeofInotifyEvent)/syscall.SizeofInotifyEvent*syscall.SizeofInotifyEvent)
}

// happened is an event of one directory, or of something in it.
func (t *watchTree) happened(n *node, e rawEvent) {
	w := n.watch
	directory := e.is(syscall.IN_ISDIR)
	switch {
	case e.is(syscall.IN_DELETE_SELF | syscall.IN_UNMOUNT | syscall.IN_IGNORED):
		if n.parent == nil {
			t.end(w, endedRemoved)
		} else if e.is(syscall.IN_IGNORED) {
			t.drop(n)
		}
	case e.is(syscall.IN_MOVE_SELF):
		if n.parent == nil {
			t.end(w, endedMoved)
		}
	case e.name == "":
		// About a directory itself. Its parent, if that is watched, has an event with its name.
		if n.parent == nil && e.is(syscall.IN_ATTRIB) {
			t.tell(w, change{kind: changeAttributes, directory: true, path: rooted(w.path)})
		}
	case e.is(syscall.IN_CREATE | syscall.IN_MOVED_TO):
		t.appeared(n, e.name, directory)
	case e.is(syscall.IN_DELETE | syscall.IN_MOVED_FROM):
		t.vanished(n, e.name, directory)
	case e.is(syscall.IN_MODIFY):
		t.modified(w, n.path()+"/"+e.name)
	case e.is(syscall.IN_ATTRIB):
		t.settle(w, n.path()+"/"+e.name)
		t.tell(w, change{kind: changeAttributes, directory: directory, path: n.path() + "/" + e.name})
	}
}

// moved is a rename. To a watch that sees only one side of it, something vanished or appeared.
func (t *watchTree) moved(e rawEvent, to *rawEvent) {
	directory := e.is(syscall.IN_ISDIR)
	var targets []*node
	if to != nil {
		targets = t.reachable(to.number)
	}
	for _, source := range t.reachable(e.number) {
		paired := false
		for i, target := range targets {
			if target != nil && target.watch == source.watch {
				t.renamed(source, e.name, target, to.name, directory)
				targets[i], paired = nil, true
				break
			}
		}
		if !paired {
			t.vanished(source, e.name, directory)
		}
	}
	for _, target := range targets {
		if target != nil {
			t.appeared(target, to.name, directory)
		}
	}
}

func (t *watchTree) appeared(n *node, name string, directory bool) {
	if n.watch.root == nil || t.wasReported(n, name) {
		return
	}
	t.tell(n.watch, change{kind: changeCreate, directory: directory, path: n.path() + "/" + name})
	if directory && n.watch.recursive {
		t.enterOrEnd(n, name, true)
	}
}

func (t *watchTree) vanished(n *node, name string, directory bool) {
	if n.watch.root == nil {
		return
	}
	t.wasReported(n, name)
	path := n.path() + "/" + name
	t.unsettle(n.watch, path, directory)
	if child := n.children[name]; directory && child != nil {
		t.drop(child)
	}
	t.tell(n.watch, change{kind: changeRemove, directory: directory, path: path})
}

func (t *watchTree) renamed(source *node, from string, target *node, to string, directory bool) {
	w := source.watch
	if w.root == nil {
		return
	}
	t.wasReported(source, from)
	old, path := source.path()+"/"+from, target.path()+"/"+to
	if directory {
		t.settleAll(w)
	} else {
		t.settle(w, old)
	}
	child := source.children[from]
	if directory && child != nil && !target.isBelow(child) {
		t.link(child, target, to)
	}
	t.tell(w, change{kind: changeMove, directory: directory, path: path, from: old})
	if directory && w.recursive && child == nil {
		t.enterOrEnd(target, to, true) // it came and went before it was entered: what is in it is news
	}
}

func (t *watchTree) enterOrEnd(n *node, name string, report bool) {
	if err := t.enter(n, name, report, func() error { return nil }); err != nil {
		t.end(n.watch, endedLimit)
	}
}

// tell adds a change to what a watch keeps, if it is asked for.
func (t *watchTree) tell(w *watch, c change) {
	if w.kinds&c.kind == 0 {
		return
	}
	if c.kind != changeOverflow && !w.wants(c.path) && (c.kind != changeMove || !w.wants(c.from)) {
		return
	}
	c.at = time.Now().UnixMicro()
	w.changes.add(c)
}

func (w *watch) wants(path string) bool {
	return len(w.globs) == 0 || anyMatches(w.globs, strings.TrimPrefix(strings.TrimPrefix(path, w.path), "/"))
}

// modified tells a write at once, and then at most once per modifyPause; after the last one, always.
func (t *watchTree) modified(w *watch, path string) {
	if w.kinds&changeModify == 0 {
		return
	}
	if b, busy := w.bursts[path]; busy {
		b.more = true
		w.bursts[path] = b
		return
	}
	t.tell(w, change{kind: changeModify, path: path})
	if len(w.bursts) >= maxBursts {
		return
	}
	w.bursts[path] = burst{until: time.Now().Add(modifyPause)}
	if w.timer == nil {
		w.timer = time.AfterFunc(modifyPause, func() { t.flush(w) })
	}
}

// flush tells what was written meanwhile. There is no timer while nothing is written.
func (t *watchTree) flush(w *watch) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w.timer = nil
	now := time.Now()
	for path, b := range w.bursts {
		switch {
		case b.until.After(now):
		case b.more:
			t.tell(w, change{kind: changeModify, path: path})
			w.bursts[path] = burst{until: now.Add(modifyPause)}
		default:
			delete(w.bursts, path)
		}
	}
	if len(w.bursts) > 0 {
		w.timer = time.AfterFunc(modifyPause/2, func() { t.flush(w) })
	}
}

// settle tells writes to a path that are not told yet: something else is about to be told of it.
func (t *watchTree) settle(w *watch, path string) {
	if b, busy := w.bursts[path]; busy {
		delete(w.bursts, path)
		if b.more {
			t.tell(w, change{kind: changeModify, path: path})
		}
	}
}

func (t *watchTree) settleAll(w *watch) {
	for path := range w.bursts {
		t.settle(w, path)
	}
}

// unsettle forgets writes to what is gone.
func (t *watchTree) unsettle(w *watch, path string, directory bool) {
	delete(w.bursts, path)
	if !directory {
		return
	}
	for one := range w.bursts {
		if strings.HasPrefix(one, path+"/") {
			delete(w.bursts, one)
		}
	}
}

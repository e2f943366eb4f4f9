package main

import (
	"sync"
	"syscall"
	"time"
)

// What the watches have of the kernel does not outlive a checkpoint: criu finds the directories of an overlay by paths
// that it must search for. So it is given up before one, and taken anew afterwards, in the sandbox that goes on too.
// What happened in between has left its time at what it happened to; where that is so, the watch has an `overflow`.

const (
	// ctimes are of the last tick of the kernel's clock, and an event that was read may not have been looked at yet.
	ctimeSlack = 100 * time.Millisecond
	// Entries that are looked at to tell that nothing happened; beyond it the watch has an `overflow`.
	maxCompared = 100_000
)

// watchRest is what a tree knows while it has nothing of the kernel.
type watchRest struct {
	isResting bool
	over      sync.Cond // of the tree's lock
	since     time.Time
	isUnsure  bool // the kernel had told of something that was not looked at yet
}

// rest lets go of the kernel's instance, until `wake`.
func (t *watchTree) rest() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pause.isResting {
		return
	}
	t.pause.isResting = true
	if t.notify == nil {
		return
	}
	t.pause.since = time.Now().Round(0) // what ctimes are compared with is the wall clock
	t.pause.isUnsure = t.notify.hasUntold() || !t.missed.IsZero()
	t.notify.close()
	t.notify = nil
}

// wake watches again what was watched.
func (t *watchTree) wake() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.pause.isResting {
		return
	}
	t.pause.isResting = false
	defer t.pause.over.Broadcast()
	all := t.alive()
	t.nodes, t.count, t.scanned, t.names, t.missed = map[int32][]*node{}, 0, nil, 0, time.Time{}
	if len(all) == 0 {
		return
	}
	notify, err := openInotify()
	if err == nil {
		t.notify = notify
		go t.loop(notify)
	}
	budget := maxCompared
	for _, w := range all {
		w.root, w.count = nil, 0
		if err != nil {
			t.letGo(w, endedLimit)
			continue
		}
		t.replant(w, &budget)
	}
	t.closeUnused()
}

// replant watches again what lies at the path now. In a copy every directory is another one, by its numbers; should it
// be another one here, it or the directory it came from is younger than the rest.
func (t *watchTree) replant(w *watch, budget *int) {
	err := t.plant(w, func() error { return nil })
	switch {
	case w.root == nil:
		t.letGo(w, endedRemoved)
	case err != nil:
		t.letGo(w, endedLimit)
	case t.pause.isUnsure || time.Now().Before(t.pause.since) || t.hasChanged(w.root, budget):
		t.tell(w, change{kind: changeOverflow, directory: true, path: rooted(w.path)})
	}
}

// hasChanged looks for anything in a tree that something happened to since the rest began, or cannot tell.
func (t *watchTree) hasChanged(n *node, budget *int) bool {
	path := n.path()
	if t.isNewer(rooted(path), budget) {
		return true
	}
	found := false
	err := eachEntry(rooted(path), func(name string, _ bool) {
		found = found || (n.children[name] == nil && t.isNewer(path+"/"+name, budget))
	})
	if err != nil || found {
		return true
	}
	for _, child := range n.children {
		if t.hasChanged(child, budget) {
			return true
		}
	}
	return false
}

func (t *watchTree) isNewer(path string, budget *int) bool {
	*budget--
	var st syscall.Stat_t
	if *budget < 0 || syscall.Lstat(path, &st) != nil {
		return true
	}
	return time.Unix(st.Ctim.Unix()).After(t.pause.since.Add(-ctimeSlack))
}

// overflow tells every watch that something may have happened which it was not told, and returns how many there are.
func (t *watchTree) overflow() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.awaitWake()
	all := t.alive()
	for _, w := range all {
		t.tell(w, change{kind: changeOverflow, directory: true, path: rooted(w.path)})
	}
	return len(all)
}

// awaitWake returns when the tree rests no more. The lock is held, but for the wait.
func (t *watchTree) awaitWake() {
	for t.pause.isResting {
		t.pause.over.Wait()
	}
}

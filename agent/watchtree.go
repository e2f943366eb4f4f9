package main

import (
	"errors"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// A moved thing is two records, one after the other but for what other processors squeeze in between.
	moveReach = 256
	movePause = 10 * time.Millisecond
	// Events in hand beyond which the kernel's queue has to keep the next ones.
	maxInHand = 16384
	// How long a flood may put off the look for directories that were missed in it.
	repairWithin = time.Second
	maxScanned   = 65536
)

// watchTree is what all watches watch: one inotify instance, and for each of its numbers the nodes that it stands for.
type watchTree struct {
	mu      sync.Mutex
	notify  *inotify // nil while nothing is watched
	nodes   map[int32][]*node
	count   int       // nodes of all watches
	taken   int64     // bytes of events taken from the kernel
	scanned []*node   // with names in `scanned`
	names   int       // in all of them
	missed  time.Time // when the kernel dropped events that no repair has made good yet
	round   int       // of repairs
	pause   watchRest
}

// node is one directory of one watch.
type node struct {
	watch    *watch
	number   int32
	parent   *node
	name     string
	children map[string]*node
	// Names that a scan reported while the kernel may still have had an event of the same news, until `until` bytes
	// of events have been taken.
	scanned map[string]struct{}
	until   int64
	round   int
}

func (n *node) path() string {
	if n.parent == nil {
		return n.watch.path
	}
	var names []string
	for ; n.parent != nil; n = n.parent {
		names = append(names, n.name)
	}
	var b strings.Builder
	b.WriteString(n.watch.path)
	for i := len(names) - 1; i >= 0; i-- {
		b.WriteByte('/')
		b.WriteString(names[i])
	}
	return b.String()
}

// isTooDeep tells that the path is longer than any system call takes. Renames can make it so, without limit.
func (n *node) isTooDeep() bool {
	length := len(n.watch.path)
	for ; n.parent != nil && length <= maxPath; n = n.parent {
		length += 1 + len(n.name)
	}
	return length > maxPath
}

// isBelow reports whether n lies in the tree of `other`, or is it.
func (n *node) isBelow(other *node) bool {
	for ; n != nil; n = n.parent {
		if n == other {
			return true
		}
	}
	return false
}

// rooted is a watch's path as a path.
func rooted(path string) string {
	if path == "" {
		return "/"
	}
	return path
}

func withoutSlash(path string) string { return strings.TrimRight(path, "/") }

// start watches what is there now. On failure nothing is left.
func (t *watchTree) start(w *watch, ch *channel) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.awaitWake()
	if t.notify == nil {
		notify, err := openInotify()
		if err != nil {
			return err
		}
		t.notify = notify
		go t.loop(notify)
	}
	err := t.plant(w, func() error {
		if ch.isCanceled() {
			return errCanceled
		}
		return nil
	})
	if err != nil {
		t.end(w, endedLimit)
	}
	return err
}

func (t *watchTree) plant(w *watch, check func() error) error {
	number, err := t.notify.add(rooted(w.path), true)
	if err != nil {
		return err
	}
	var st syscall.Stat_t
	if err := syscall.Stat(rooted(w.path), &st); err != nil {
		return at(rooted(w.path), err)
	}
	w.root, w.device = &node{watch: w, number: number}, uint64(st.Dev)
	t.hold(w.root)
	if !w.recursive {
		return nil
	}
	return t.scan(w.root, false, check)
}

// stop ends a watch. Idempotent.
func (t *watchTree) stop(w *watch, reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end(w, reason)
}

// end ends a watch, and lets go of the instance after the last one.
func (t *watchTree) end(w *watch, reason string) {
	t.letGo(w, reason)
	t.closeUnused()
}

func (t *watchTree) letGo(w *watch, reason string) {
	if w.root != nil {
		t.settleAll(w)
		t.drop(w.root)
		w.root = nil
	}
	w.changes.finish(reason)
}

func (t *watchTree) closeUnused() {
	if t.count == 0 && t.notify != nil {
		t.notify.close()
		t.notify = nil
		t.nodes, t.scanned, t.names, t.missed = map[int32][]*node{}, nil, 0, time.Time{}
	}
}

func (t *watchTree) hold(n *node) {
	t.nodes[n.number] = append(t.nodes[n.number], n)
	t.count++
	n.watch.count++
}

// drop forgets a node and all below it.
func (t *watchTree) drop(n *node) {
	for _, child := range n.children {
		child.parent = nil // what follows must not take it out of the map that is walked here
		t.drop(child)
	}
	n.children = nil
	if n.parent != nil && n.parent.children[n.name] == n {
		delete(n.parent.children, n.name)
	}
	t.names -= len(n.scanned)
	n.scanned = nil
	same := t.nodes[n.number]
	for i, one := range same {
		if one == n {
			same = append(same[:i:i], same[i+1:]...)
			t.count--
			n.watch.count--
			break
		}
	}
	if len(same) > 0 {
		t.nodes[n.number] = same
		return
	}
	delete(t.nodes, n.number)
	if t.notify != nil {
		t.notify.remove(n.number)
	}
}

// reachable is a copy of a number's nodes, without those that lie too deep by now: as one that is found there is not
// entered, so one that came there is watched no longer.
func (t *watchTree) reachable(number int32) []*node {
	var found []*node
	for _, n := range append(found, t.nodes[number]...) {
		if n.isTooDeep() {
			t.drop(n)
		} else {
			found = append(found, n)
		}
	}
	return found
}

func (t *watchTree) nodeOf(w *watch, number int32) *node {
	for _, one := range t.nodes[number] {
		if one.watch == w {
			return one
		}
	}
	return nil
}

// enter watches the directory `name` in `parent` and what is below it. `report`: as news. Its error ends the watch.
func (t *watchTree) enter(parent *node, name string, report bool, check func() error) error {
	w := parent.watch
	path := parent.path() + "/" + name
	var st syscall.Stat_t
	if syscall.Lstat(path, &st) != nil || st.Mode&syscall.S_IFMT != syscall.S_IFDIR || uint64(st.Dev) != w.device {
		return nil // gone again, or another file system: not ours to watch
	}
	number, err := t.notify.add(path, false)
	var f failure
	if errors.As(err, &f) {
		return err
	}
	if err != nil {
		return nil
	}
	n := t.nodeOf(w, number)
	switch {
	case n == nil:
		if w.count >= maxWatchDirectories || t.count >= maxAllWatchDirectories {
			if len(t.nodes[number]) == 0 {
				t.notify.remove(number)
			}
			return fail("limit", "more directories than can be watched: 16384 by one watch, 65536 in all")
		}
		n = &node{watch: w, number: number}
		t.hold(n)
	case n.parent == parent && n.name == name && n.round == t.round:
		return nil // known, and looked at
	case parent.isBelow(n):
		return nil // a tree that changes while it is walked; its events come
	}
	t.link(n, parent, name)
	n.round = t.round
	return t.scan(n, report, check)
}

// link puts a node into its place, in that of any other.
func (t *watchTree) link(n, parent *node, name string) {
	if n.parent != nil && n.parent.children[n.name] == n {
		delete(n.parent.children, n.name)
	}
	if other := parent.children[name]; other != nil && other != n {
		t.drop(other)
	}
	if parent.children == nil {
		parent.children = map[string]*node{}
	}
	n.parent, n.name = parent, name
	parent.children[name] = n
}

// scan enters the directories in a node that is watched already, so that nothing made later is missed.
func (t *watchTree) scan(n *node, report bool, check func() error) error {
	if err := check(); err != nil {
		return err
	}
	path := n.path()
	var directories []string
	err := eachEntry(rooted(path), func(name string, directory bool) {
		if report {
			t.tell(n.watch, change{kind: changeCreate, directory: directory, path: path + "/" + name})
			t.remember(n, name)
		}
		if directory && len(directories) <= maxWatchDirectories {
			directories = append(directories, name)
		}
	})
	if err != nil {
		return nil // it is gone, which its event will say
	}
	if queued := t.notify.queued(); queued >= 0 {
		n.until = t.taken + queued
	} else {
		n.until = 1<<63 - 1 // until the queue is empty
	}
	for _, name := range directories {
		if err := t.enter(n, name, report, check); err != nil {
			return err
		}
	}
	return nil
}

// remember keeps a name that was reported, until all events that the kernel may have had of it by now are taken.
func (t *watchTree) remember(n *node, name string) {
	if t.names >= maxScanned {
		return // then an entry may be reported twice
	}
	if n.scanned == nil {
		n.scanned = map[string]struct{}{}
		t.scanned = append(t.scanned, n)
	}
	if _, known := n.scanned[name]; !known {
		n.scanned[name] = struct{}{}
		t.names++
	}
}

// wasReported takes a name out of those that a scan has reported already.
func (t *watchTree) wasReported(n *node, name string) bool {
	if _, known := n.scanned[name]; !known {
		return false
	}
	delete(n.scanned, name)
	t.names--
	return true
}

// forgetReported drops the names whose events have been taken.
func (t *watchTree) forgetReported(all bool) {
	kept := t.scanned[:0]
	for _, n := range t.scanned {
		if !all && len(n.scanned) > 0 && n.until > t.taken {
			kept = append(kept, n)
			continue
		}
		t.names -= len(n.scanned)
		n.scanned = nil
	}
	t.scanned = kept
}

// repair walks every tree again after events were lost, and says so. What it finds is no news of its own: whoever
// follows has to look at everything anyway.
func (t *watchTree) repair() {
	t.missed = time.Time{}
	t.round++
	for _, w := range t.alive() {
		if !t.repairOne(w) {
			continue
		}
		t.tell(w, change{kind: changeOverflow, directory: true, path: rooted(w.path)})
	}
}

func (t *watchTree) alive() []*watch {
	seen := map[*watch]struct{}{}
	var all []*watch
	for _, same := range t.nodes {
		for _, n := range same {
			if _, known := seen[n.watch]; !known {
				seen[n.watch] = struct{}{}
				all = append(all, n.watch)
			}
		}
	}
	return all
}

func (t *watchTree) repairOne(w *watch) bool {
	number, err := t.notify.add(rooted(w.path), true)
	if err != nil || number != w.root.number {
		if err == nil && len(t.nodes[number]) == 0 {
			t.notify.remove(number)
		}
		t.end(w, endedRemoved)
		return false
	}
	if !w.recursive {
		return true
	}
	w.root.round = t.round
	if err := t.scan(w.root, false, func() error { return nil }); err != nil {
		t.end(w, endedLimit)
		return false
	}
	t.dropOlder(w.root)
	return true
}

// dropOlder forgets what the present round did not find.
func (t *watchTree) dropOlder(n *node) {
	for _, child := range n.children {
		if child.round != t.round {
			t.drop(child)
		} else {
			t.dropOlder(child)
		}
	}
}

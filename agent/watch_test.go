package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// How long to wait for what has to happen: a busy machine may need it.
const soonEnough = time.Minute

var treeOf sync.Map // *watch: *watchTree

func startWatch(t *testing.T, ws *watches, dir string, change func(*call, *watchStartCall)) *watch {
	t.Helper()
	in, own := &call{ID: fmt.Sprintf("w%d", len(ws.order)), Path: dir, Recursive: true}, &watchStartCall{}
	if change != nil {
		change(in, own)
	}
	w, err := ws.plan(in, own)
	if err == nil {
		err = ws.reserve(w)
	}
	if err == nil {
		err = ws.tree.start(w, newChannel(nil, 1))
	}
	if err != nil {
		t.Fatal(err)
	}
	treeOf.Store(w, &ws.tree)
	t.Cleanup(func() { ws.tree.stop(w, endedStopped) })
	return w
}

// told waits until all that happened so far is told and returns what was told, as "kind path [< from]", paths relative.
func told(t *testing.T, w *watch) []string {
	t.Helper()
	found, _ := treeOf.Load(w)
	for deadline := time.Now().Add(soonEnough); found.(*watchTree).hasMore(w); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not come to rest")
		}
	}
	return shown(w)
}

// hasMore reports whether something that happened so far may not be told yet.
func (t *watchTree) hasMore(w *watch) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.notify != nil && (t.notify.hasUntold() || !t.missed.IsZero() || w.root != nil && len(w.bursts) > 0)
}

func shown(w *watch) []string {
	var all []string
	batch := make([]change, 64)
	for cursor := int64(0); ; {
		n, lost, _, _ := w.changes.read(cursor, batch)
		if n == 0 {
			return all
		}
		if lost > 0 {
			all = append(all, fmt.Sprintf("gap %d", lost))
		}
		for _, c := range batch[:n] {
			line := changeWords[c.kind] + " " + strings.TrimPrefix(c.path, w.path+"/")
			if c.kind == changeMove {
				line += " < " + strings.TrimPrefix(c.from, w.path+"/")
			}
			if c.directory {
				line += "/"
			}
			all = append(all, line)
		}
		cursor += lost + int64(n)
	}
}

// inMemory is a directory where making 20 000 entries costs nothing.
func inMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "cove-watch-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func expect(t *testing.T, w *watch, want ...string) {
	t.Helper()
	// A write that also cuts the file is one or two to the kernel.
	if got := slices.Compact(told(t, w)); !slices.Equal(got, want) {
		t.Fatalf("told\n  %s\nwanted\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func TestAWatchTellsEachKindOfChangeOnce(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(dir+"/old", 0o755))
	w := startWatch(t, newWatches(), dir, nil)
	must(t, os.WriteFile(dir+"/old/f", nil, 0o644))
	must(t, os.WriteFile(dir+"/old/f", []byte("x"), 0o644))
	_ = told(t, w)
	must(t, os.Chmod(dir+"/old/f", 0o600), os.Rename(dir+"/old/f", dir+"/g"), os.Remove(dir+"/g"), os.Remove(dir+"/old"))
	expect(t, w, "create old/f", "modify old/f", "attributes old/f", "move g < old/f", "remove g", "remove old/")
}

func TestManyWritesAreFewEventsAndTheLastIsTold(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/log", nil, 0o644))
	w := startWatch(t, newWatches(), dir, nil)
	file, err := os.OpenFile(dir+"/log", os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	defer file.Close()
	started := time.Now()
	var last time.Time
	for range 1000 {
		_, err := file.WriteString("line\n")
		must(t, err)
		last = time.Now()
		time.Sleep(100 * time.Microsecond)
	}
	got := told(t, w)
	if most := int(last.Sub(started)/modifyPause) + 3; len(got) < 1 || len(got) > most || slices.ContainsFunc(got, func(one string) bool { return one != "modify log" }) {
		t.Fatalf("%d: %v", len(got), got)
	}
	batch := make([]change, 64)
	n, _, _, _ := w.changes.read(0, batch)
	if batch[n-1].at < last.UnixMicro() {
		t.Fatal("the last write was not told")
	}
}

func TestDirectoriesMadeLaterAreWatchedAndTheirContentToldOnce(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	w := startWatch(t, newWatches(), dir, nil)
	var want []string
	for i := range 200 {
		deep := fmt.Sprintf("%s/%d/a/b/c", dir, i)
		must(t, os.MkdirAll(deep, 0o755), os.WriteFile(deep+"/f", []byte("x"), 0o644))
		for _, one := range []string{"", "/a", "/a/b", "/a/b/c"} {
			want = append(want, fmt.Sprintf("create %d%s/", i, one))
		}
		want = append(want, fmt.Sprintf("create %d/a/b/c/f", i))
	}
	must(t, os.MkdirAll(other+"/in/x", 0o755), os.WriteFile(other+"/in/x/f", nil, 0o644), os.Rename(other+"/in", dir+"/in"))
	want = append(want, "create in/", "create in/x/", "create in/x/f")
	got := slices.DeleteFunc(told(t, w), func(one string) bool { return strings.HasPrefix(one, "modify") })
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("%d told, %d wanted", len(got), len(want))
	}
	must(t, os.WriteFile(dir+"/in/x/g", nil, 0o644), os.RemoveAll(dir+"/in"))
	got = told(t, w)
	got = got[len(got)-5:]
	slices.Sort(got)
	if !slices.Equal(got, []string{"create in/x/g", "remove in/", "remove in/x/", "remove in/x/f", "remove in/x/g"}) {
		t.Fatal(got)
	}
}

func TestARenamedDirectoryIsFollowedAndOneMovedAwayIsNot(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	must(t, os.MkdirAll(dir+"/a/b", 0o755), os.Mkdir(dir+"/z", 0o755))
	w := startWatch(t, newWatches(), dir, nil)
	must(t, os.Rename(dir+"/a", dir+"/z/c"), os.WriteFile(dir+"/z/c/b/f", nil, 0o644))
	must(t, os.Rename(dir+"/z/c", other+"/c"), os.WriteFile(other+"/c/b/g", nil, 0o644))
	expect(t, w, "move z/c < a/", "create z/c/b/f", "remove z/c/")
	must(t, os.Mkdir(dir+"/after", 0o755), os.Rename(dir+"/after", other+"/after"), os.Mkdir(dir+"/after", 0o755))
	expect(t, w, "move z/c < a/", "create z/c/b/f", "remove z/c/", "create after/", "remove after/", "create after/")
	if w.count != 3 {
		t.Fatalf("%d directories are watched", w.count)
	}
}

func TestTwoWatchesOfOneTreeAndOneInside(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/a/b", 0o755))
	ws := newWatches()
	whole, inner := startWatch(t, ws, dir, nil), startWatch(t, ws, dir+"/a/b", nil)
	flat := startWatch(t, ws, dir, func(in *call, _ *watchStartCall) { in.Recursive = false })
	must(t, os.WriteFile(dir+"/a/b/f", nil, 0o644), os.Rename(dir+"/a/b/f", dir+"/f"), os.Rename(dir+"/f", dir+"/a/b/g"))
	expect(t, whole, "create a/b/f", "move f < a/b/f", "move a/b/g < f")
	expect(t, inner, "create f", "remove f", "create g")
	expect(t, flat, "create f", "remove f")
	ws.tree.stop(whole, endedStopped)
	must(t, os.Remove(dir+"/a/b/g"))
	expect(t, inner, "create f", "remove f", "create g", "remove g")
}

func TestKindsAndGlobsChoose(t *testing.T) {
	dir := t.TempDir()
	ws := newWatches()
	names := startWatch(t, ws, dir, func(_ *call, own *watchStartCall) { own.Glob = "*.py" })
	paths := startWatch(t, ws, dir, func(_ *call, own *watchStartCall) { own.Glob = "src/**/*.py"; own.Kinds = []string{"create"} })
	must(t, os.MkdirAll(dir+"/src/x", 0o755), os.WriteFile(dir+"/src/x/a.py", nil, 0o644), os.WriteFile(dir+"/b.py", nil, 0o644))
	must(t, os.WriteFile(dir+"/c", nil, 0o644), os.Rename(dir+"/c", dir+"/c.py"), os.Remove(dir+"/b.py"))
	expect(t, names, "create src/x/a.py", "create b.py", "move c.py < c", "remove b.py")
	expect(t, paths, "create src/x/a.py")
}

func TestAWatchEndsWithItsDirectory(t *testing.T) {
	for reason, end := range map[string]func(dir string) error{
		endedRemoved: func(dir string) error { return os.RemoveAll(dir) },
		endedMoved:   func(dir string) error { return os.Rename(dir, dir+"-elsewhere") },
	} {
		dir := filepath.Join(t.TempDir(), "w")
		must(t, os.MkdirAll(dir+"/a", 0o755))
		ws := newWatches()
		w := startWatch(t, ws, dir, nil)
		must(t, end(dir))
		for deadline := time.Now().Add(soonEnough); ; time.Sleep(time.Millisecond) {
			if _, _, got := w.changes.cursors(); got == reason {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("not %s", reason)
			}
		}
		ws.tree.mu.Lock()
		if ws.tree.notify != nil || ws.tree.count != 0 || len(ws.tree.nodes) != 0 {
			t.Fatalf("%s: %d directories left", reason, ws.tree.count)
		}
		ws.tree.mu.Unlock()
	}
}

func TestLostEventsAreToldAndTheTreeIsMended(t *testing.T) {
	dir := inMemory(t)
	must(t, os.MkdirAll(dir+"/a/gone", 0o755))
	ws, keep := newWatches(), maxKeepEvents
	w := startWatch(t, ws, dir, func(_ *call, own *watchStartCall) { own.KeepEvents = &keep })
	ws.tree.mu.Lock()      // nobody takes events meanwhile
	for i := range 20000 { // fs.inotify.max_queued_events is 16384
		must(t, os.WriteFile(fmt.Sprintf("%s/%d", dir, i), nil, 0o644))
	}
	must(t, os.Rename(dir+"/a", dir+"/b"), os.Remove(dir+"/b/gone"), os.MkdirAll(dir+"/new/x", 0o755))
	ws.tree.mu.Unlock()
	got := told(t, w)
	if !slices.Contains(got, "overflow "+dir+"/") {
		t.Fatalf("no overflow in %d", len(got))
	}
	must(t, os.WriteFile(dir+"/new/x/f", nil, 0o644), os.WriteFile(dir+"/b/f", nil, 0o644))
	again := told(t, w)[len(got):]
	if !slices.Equal(again, []string{"create new/x/f", "create b/f"}) {
		t.Fatal(again)
	}
	if w.count != 4 {
		t.Fatalf("%d directories are watched", w.count)
	}
}

func TestTooManyDirectoriesEndTheWatch(t *testing.T) {
	dir := inMemory(t)
	w := startWatch(t, newWatches(), dir, nil)
	for i := range maxWatchDirectories {
		must(t, os.Mkdir(fmt.Sprintf("%s/%d", dir, i), 0o755))
	}
	_ = told(t, w)
	if _, _, reason := w.changes.cursors(); reason != endedLimit {
		t.Fatal(reason)
	}
	in, own := &call{ID: "w9", Path: dir, Recursive: true}, &watchStartCall{}
	ws := newWatches()
	full, err := ws.plan(in, own)
	must(t, err)
	if err := ws.tree.start(full, newChannel(nil, 1)); asFailure(err).Kind != "limit" {
		t.Fatal(err)
	}
	if ws.tree.notify != nil || ws.tree.count != 0 {
		t.Fatalf("%d directories left", ws.tree.count)
	}
}

func TestKeptChangesAreBoundedByNumberAndByMemory(t *testing.T) {
	ws := newWatches()
	small, large := newChangeRing(16, &ws.held), newChangeRing(maxKeepEvents, &ws.held)
	for i := range 1000 {
		small.add(change{kind: changeCreate, path: fmt.Sprint(i)})
	}
	batch := make([]change, 100)
	if n, lost, _, _ := small.read(0, batch); n != 16 || lost != 984 || batch[0].path != "984" {
		t.Fatal(n, lost)
	}
	for range 100_000 {
		large.add(change{kind: changeCreate, path: strings.Repeat("x", 4000)})
	}
	if held := ws.held.Load(); held > maxEventMemory || held < maxEventMemory/2 {
		t.Fatal(held)
	}
	small.finish(endedStopped)
	small.free()
	large.free()
	if held := ws.held.Load(); held != 0 {
		t.Fatal(held)
	}
	if n, _, reason, _ := small.read(1000, batch); n != 0 || reason != endedStopped {
		t.Fatal(n, reason)
	}
}

func TestWatchesAreNumberedAndBounded(t *testing.T) {
	dir := t.TempDir()
	ws := newWatches()
	for range maxWatches {
		startWatch(t, ws, dir, func(in *call, _ *watchStartCall) { in.Recursive = false })
	}
	one := &watch{id: "one-more", changes: newChangeRing(16, &ws.held)}
	if err := ws.reserve(one); asFailure(err).Kind != "limit" {
		t.Fatal(err)
	}
	ended, _ := ws.get("w7")
	ws.tree.stop(ended, endedStopped)
	must(t, ws.reserve(one))
	if err := ws.reserve(one); asFailure(err).Kind != "exists" {
		t.Fatal(err)
	}
	if _, err := ws.get("w7"); err == nil {
		t.Fatal("an ended watch makes room")
	}
	for _, in := range []*call{{ID: "w", Path: "relative"}, {ID: "W", Path: "/"}, {ID: "", Path: "/"}} {
		if _, err := ws.plan(in, &watchStartCall{}); asFailure(err).Kind != "invalid" {
			t.Fatal(in, err)
		}
	}
	for _, own := range []watchStartCall{{Kinds: []string{"open"}}, {Glob: strings.Repeat("x", 2000)}, {KeepEvents: new(int)}} {
		if _, err := ws.plan(&call{ID: "w", Path: "/"}, &own); asFailure(err).Kind != "invalid" {
			t.Fatal(own, err)
		}
	}
	file, err := os.Create(dir + "/f")
	must(t, err, file.Close())
	for path, kind := range map[string]string{dir + "/f": "not_directory", dir + "/no": "not_found"} {
		w, err := newWatches().plan(&call{ID: "w", Path: path}, &watchStartCall{})
		must(t, err)
		if err := newWatches().tree.start(w, newChannel(nil, 1)); asFailure(err).Kind != kind {
			t.Fatal(path, err)
		}
	}
}

// Renames make paths that no system call takes, and that do not fit into a line of the protocol.
func TestAPathThatRenamesMadeTooLongIsNotTold(t *testing.T) {
	dir := t.TempDir()
	ws := newWatches()
	name := strings.Repeat("d", 250)
	long := strings.Repeat(name+"/", 14)
	for i := range 6 {
		must(t, os.MkdirAll(fmt.Sprint(dir, "/", i, "/", long), 0o755))
	}
	w := startWatch(t, ws, dir, nil)
	deepest, err := syscall.Open(dir+"/5/"+long, syscall.O_DIRECTORY, 0)
	must(t, err)
	defer syscall.Close(deepest)
	for i := 4; i >= 0; i-- {
		to, err := syscall.Open(fmt.Sprint(dir, "/", i, "/", long), syscall.O_DIRECTORY, 0)
		must(t, err)
		from, err := syscall.Open(dir, syscall.O_DIRECTORY, 0)
		must(t, err, syscall.Renameat(from, fmt.Sprint(i+1), to, "s"))
		_ = syscall.Close(to)
		_ = syscall.Close(from)
	}
	must(t, symlinkAt("nowhere", deepest, "file"), symlinkAt("nowhere", atFdcwd, dir+"/last"))
	_ = told(t, w)
	batch := make([]change, 64)
	n, _, _, _ := w.changes.read(0, batch)
	longest, last := 0, ""
	for _, c := range batch[:n] {
		longest, last = max(longest, len(c.path), len(c.from)), c.path
	}
	if longest > 2*maxPath || last != dir+"/last" {
		t.Fatalf("%d bytes, last %.80q of %d", longest, last, n)
	}
	ws.tree.stop(w, endedStopped)
	must(t, os.RemoveAll(dir))
}

func TestAWatchWhoseStartWasCanceledIsNotLeft(t *testing.T) {
	a := newTestAgent(t)
	ch := newChannel(nil, 1)
	ch.cancel()
	for _, recursive := range []bool{false, true} {
		in := &call{ID: "w1", Path: t.TempDir(), Recursive: recursive, payload: []byte("{}")}
		if _, err := a.watchStart(ch, in); !errors.Is(err, errCanceled) {
			t.Fatal(err)
		}
	}
	if len(a.watches.order) != 0 || a.watches.tree.count != 0 || a.watches.tree.notify != nil {
		t.Fatalf("%+v", a.watches)
	}
}

func TestARestIsNotNoticedWhereNothingHappened(t *testing.T) {
	dir, ws := inMemory(t), newWatches()
	must(t, os.MkdirAll(dir+"/a/b", 0o755), os.WriteFile(dir+"/a/old", nil, 0o644))
	time.Sleep(2 * ctimeSlack)
	w := startWatch(t, ws, dir, nil)
	for range 5 {
		ws.tree.rest()
		ws.tree.rest()
		if ws.tree.notify != nil {
			t.Fatal("it holds what a checkpoint cannot carry")
		}
		ws.tree.wake()
		ws.tree.wake()
	}
	must(t, os.WriteFile(dir+"/a/b/new", nil, 0o644))
	expect(t, w, "create a/b/new")
	if ws.tree.overflow() != 1 {
		t.Fatal("who was told?")
	}
	expect(t, w, "create a/b/new", "overflow "+dir+"/")
}

func TestWhatHappensInARestIsToldAsAnOverflow(t *testing.T) {
	for name, happens := range map[string]func(dir string) error{
		"write":  func(dir string) error { return os.WriteFile(dir+"/a/old", []byte("x"), 0o644) },
		"create": func(dir string) error { return os.Mkdir(dir+"/a/b/c", 0o755) },
		"remove": func(dir string) error { return os.Remove(dir + "/a/old") },
		"rename": func(dir string) error { return os.Rename(dir+"/a", dir+"/z") },
		"chmod":  func(dir string) error { return os.Chmod(dir+"/a/old", 0o600) },
	} {
		dir, ws := inMemory(t), newWatches()
		must(t, os.MkdirAll(dir+"/a/b", 0o755), os.WriteFile(dir+"/a/old", nil, 0o644))
		time.Sleep(2 * ctimeSlack)
		w := startWatch(t, ws, dir, nil)
		ws.tree.rest()
		must(t, happens(dir))
		ws.tree.wake()
		if got := told(t, w); len(got) != 1 || !strings.HasPrefix(got[0], "overflow") {
			t.Errorf("%s: %v", name, got)
		}
		must(t, os.MkdirAll(dir+"/a/b", 0o755), os.WriteFile(dir+"/a/b/after", nil, 0o644))
		if got := told(t, w); !slices.Contains(got, "create a/b/after") {
			t.Errorf("%s: not watched afterwards: %v", name, got)
		}
	}
}

func TestADirectoryThatIsGoneAfterARestIsNotWatchedAndAnotherOneIsTold(t *testing.T) {
	for name, happens := range map[string]func(dir string) error{
		endedRemoved: func(dir string) error { return os.Rename(dir, dir+"-away") },
		"new":        func(dir string) error { return errors.Join(os.Rename(dir, dir+"-away"), os.Mkdir(dir, 0o755)) },
		"old":        func(dir string) error { return errors.Join(os.Rename(dir, dir+"-away"), os.Rename(dir+"-other", dir)) },
	} {
		home, ws := inMemory(t), newWatches()
		must(t, os.Mkdir(home+"/d", 0o755), os.Mkdir(home+"/d-other", 0o755), os.Mkdir(home+"/e", 0o755))
		time.Sleep(2 * ctimeSlack)
		w, other := startWatch(t, ws, home+"/d", nil), startWatch(t, ws, home+"/e", nil)
		ws.tree.rest()
		must(t, happens(home+"/d"))
		ws.tree.wake()
		_, _, reason := w.changes.cursors()
		if got := told(t, w); name != endedRemoved && (reason != "" || len(got) != 1 || !strings.HasPrefix(got[0], "overflow")) {
			t.Errorf("%s: %q %v", name, reason, got)
		} else if name == endedRemoved && reason != name {
			t.Errorf("%s: %q", name, reason)
		}
		must(t, os.WriteFile(home+"/e/x", nil, 0o644))
		if got := told(t, other); !slices.Contains(got, "create x") {
			t.Errorf("%s: the other one is not watched: %v", name, got)
		}
		ws.tree.stop(w, endedStopped)
		ws.tree.stop(other, endedStopped)
		if ws.tree.notify != nil || ws.tree.count != 0 {
			t.Errorf("%s: %d nodes left", name, ws.tree.count)
		}
	}
}

func TestEventsThatWereNotLookedAtYetAreNotLostInARest(t *testing.T) {
	for range 20 {
		dir, ws := inMemory(t), newWatches()
		must(t, os.WriteFile(dir+"/old", nil, 0o644))
		w := startWatch(t, ws, dir, nil)
		must(t, os.Remove(dir+"/old"))
		ws.tree.rest()
		ws.tree.wake()
		got := told(t, w)
		if !slices.Contains(got, "remove old") && !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "overflow") }) {
			t.Fatalf("%v", got)
		}
		ws.tree.stop(w, endedStopped)
	}
}

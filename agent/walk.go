package main

import (
	"errors"
	"slices"
	"syscall"
	"time"
)

const (
	// A directory of up to so many names comes in byte order; a larger one in pieces of that size, each in order.
	namesAtOnce = 4096
	// Names that a walk holds over all levels; when a hostile tree uses them up, deeper levels go in smaller pieces.
	namesHeld    = 1 << 16
	namesAtLeast = 16
	checkEvery   = 64
)

// errStop ends a walk early and is no failure; `stopped` of the walk says why.
var errStop = errors.New("enough")

// entry is what a walk found. `dir` and `name` reach it without a link in between; `path` is below the root.
type entry struct {
	dir   int
	name  string
	path  string
	depth int
	st    syscall.Stat_t
}

func (e *entry) isDirectory() bool { return e.st.Mode&syscall.S_IFMT == syscall.S_IFDIR }

// walker visits a tree by descriptors and never follows a link. Memory is bounded by names, not by the tree: 10^6
// entries in a directory are as cheap as ten. Kernel file systems (/proc, /sys, cgroup) are entered only as a root.
type walker struct {
	ch       *channel
	root     string // as shown, without a slash at its end
	deadline time.Time
	depth    int // 0: all
	exclude  []glob
	strict   bool // what cannot be read is an error, not a number
	visit    func(e *entry) error
	leave    func(e *entry) error // after a directory's content, if set
	poll     func() error         // now and then, if set

	seen       int64
	unreadable int64
	stopped    string
	held       int
}

// run walks what is below w.root, or visits it alone if it is no directory. The root's own last link is followed.
func (w *walker) run() error {
	err := w.begin()
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

func (w *walker) begin() error {
	found, err := followLinks(w.root)
	if err != nil {
		return err
	}
	e := entry{dir: atFdcwd, name: found}
	if err := statAt(atFdcwd, found, &e.st); err != nil {
		return at(w.root, err)
	}
	if !e.isDirectory() {
		return w.visit(&e)
	}
	fd, err := openDirectoryAt(atFdcwd, found)
	if err != nil {
		return at(w.root, err)
	}
	defer syscall.Close(fd)
	if err := w.content(fd, "", 1, e.st.Dev); err != nil || w.leave == nil {
		return err
	}
	return w.leave(&e)
}

// content visits a directory's entries, depth first.
func (w *walker) content(fd int, prefix string, depth int, device uint64) error {
	for {
		names, err := w.gather(fd)
		if errors.Is(err, syscall.ENOENT) && prefix != "" {
			return nil // removed while it was open
		}
		if err != nil {
			return w.unread(at(w.shown(prefix), err))
		}
		if len(names) == 0 {
			return nil
		}
		w.held += len(names)
		slices.Sort(names)
		for _, name := range names {
			if err := w.one(fd, prefix, name, depth, device); err != nil {
				return err
			}
		}
		w.held -= len(names)
	}
}

// gather reads the next piece of a directory. The names are those of before anything in it is visited, so what a visit
// puts beside them (a rewritten file) is not found again in the same piece.
func (w *walker) gather(fd int) ([]string, error) {
	room := max(min(namesAtOnce, namesHeld-w.held), namesAtLeast)
	size := 16 << 10
	if room < namesAtOnce {
		size = 512 // fits the longest name
	}
	buffer := make([]byte, size)
	var names []string
	for len(names) < room {
		if err := w.check(); err != nil {
			return nil, err
		}
		n, err := syscall.ReadDirent(fd, buffer)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			break
		}
		_, _, names = syscall.ParseDirent(buffer[:n], -1, names)
	}
	return names, nil
}

func (w *walker) one(fd int, prefix, name string, depth int, device uint64) error {
	if w.seen++; w.seen%checkEvery == 0 {
		if err := w.check(); err != nil {
			return err
		}
	}
	e := entry{dir: fd, name: name, path: name, depth: depth}
	if prefix != "" {
		e.path = prefix + "/" + name
	}
	if len(w.root)+1+len(e.path) > maxPath {
		return w.unread(fail("limit", "a path is longer than 4096 bytes"))
	}
	if anyMatches(w.exclude, e.path) {
		return nil
	}
	if err := statAt(fd, name, &e.st); err != nil {
		if errors.Is(err, syscall.ENOENT) {
			return nil // gone since we read its name
		}
		return w.unread(at(w.shown(e.path), err))
	}
	if err := w.visit(&e); err != nil {
		return err
	}
	if !e.isDirectory() || (w.depth > 0 && depth >= w.depth) {
		return nil
	}
	return w.enter(&e, device)
}

func (w *walker) enter(e *entry, device uint64) error {
	if e.depth >= maxDepth {
		return w.unread(fail("limit", "the directory tree is too deep"))
	}
	fd, err := openDirectoryAt(e.dir, e.name)
	if err != nil {
		if hasChanged(err) {
			return nil
		}
		return w.unread(at(w.shown(e.path), err))
	}
	defer syscall.Close(fd)
	if e.st.Dev == device || !isKernels(fd) {
		if err := w.content(fd, e.path, e.depth+1, e.st.Dev); err != nil {
			return err
		}
	}
	if w.leave == nil {
		return nil
	}
	return w.leave(e)
}

// hasChanged tells that something is gone, or something else, since we looked: then it counts as never seen.
func hasChanged(err error) bool {
	switch asFailure(err).Kind {
	case "not_found", "is_directory", "not_directory", "invalid": // ELOOP, EINVAL and "no regular file" are the last
		return true
	default:
		return false
	}
}

// unread counts what could not be read, or fails over it. A stop or a cancel passes through.
func (w *walker) unread(err error) error {
	if w.strict || errors.Is(err, errStop) || errors.Is(err, errCanceled) {
		return err
	}
	w.unreadable++
	return nil
}

// check ends the walk when its call is canceled or its time is over.
func (w *walker) check() error {
	if w.ch.isCanceled() {
		return errCanceled
	}
	if !w.deadline.IsZero() && time.Now().After(w.deadline) {
		return w.stop("timeout")
	}
	if w.poll != nil {
		return w.poll()
	}
	return nil
}

func (w *walker) stop(why string) error {
	w.stopped = why
	return errStop
}

// shown is the absolute path of what lies at `path` below the root.
func (w *walker) shown(path string) string {
	switch {
	case path == "":
		return w.root
	case w.root == "/":
		return "/" + path
	default:
		return w.root + "/" + path
	}
}

// Magic numbers of statfs(2) and linux/magic.h: proc, sysfs, cgroup, cgroup2, debugfs, tracefs, securityfs.
var kernelSystems = []int64{0x9fa0, 0x62656572, 0x27e0eb, 0x63677270, 0x64626720, 0x74726163, 0x73636673}

// isKernels tells whether a directory is on a file system whose files are not files: endless, or with effects.
func isKernels(fd int) bool {
	var fs syscall.Statfs_t
	return syscall.Fstatfs(fd, &fs) == nil && slices.Contains(kernelSystems, int64(fs.Type))
}

// walkCall is what the operations on trees have in common.
type walkCall struct {
	Depth     int      `json:"depth"`
	Glob      []string `json:"glob"`
	Exclude   []string `json:"exclude"`
	TimeoutMS int64    `json:"timeout_ms"`
}

// newWalker checks what a call says about its walk, and returns the globs that entries must match.
func newWalker(ch *channel, path string, own *walkCall) (*walker, []glob, error) {
	if err := checkPath(path); err != nil {
		return nil, nil, err
	}
	if own.Depth < 0 || own.TimeoutMS < 0 {
		return nil, nil, fail("invalid", "depth and timeout_ms must not be negative")
	}
	wanted, err := parseGlobs(own.Glob)
	if err != nil {
		return nil, nil, err
	}
	unwanted, err := parseGlobs(own.Exclude)
	if err != nil {
		return nil, nil, err
	}
	w := &walker{ch: ch, root: trimSlash(path), depth: own.Depth, exclude: unwanted}
	if own.TimeoutMS > 0 {
		w.deadline = time.Now().Add(time.Duration(own.TimeoutMS) * time.Millisecond)
	}
	return w, wanted, nil
}

func isWanted(wanted []glob, e *entry) bool {
	return len(wanted) == 0 || e.path == "" || anyMatches(wanted, e.path)
}

// reason is `stopped` for JSON: null, "limit" or "timeout".
func (w *walker) reason() *string {
	if w.stopped == "" {
		return nil
	}
	return &w.stopped
}

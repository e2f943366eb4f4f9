package main

import (
	"path"
	"slices"
	"syscall"
)

type findCall struct {
	walkCall
	Kinds []string `json:"kinds"`
}

type findResult struct {
	Entries    int64   `json:"entries"`
	Unreadable int64   `json:"unreadable"`
	Stopped    *string `json:"stopped"`
}

func (a *agent) find(ch *channel, in *call) (any, error) {
	own, err := fields[findCall](in)
	if err != nil {
		return nil, err
	}
	w, wanted, err := newWalker(ch, in.Path, &own.walkCall)
	if err != nil {
		return nil, err
	}
	for _, kind := range own.Kinds {
		if !slices.Contains([]string{"file", "directory", "symlink", "other"}, kind) {
			return nil, fail("invalid", "no such kind of entry")
		}
	}
	limit, count, out := or(in.Limit, 0), int64(0), newLines(ch)
	w.poll = out.poll
	w.visit = func(e *entry) error {
		if !isWanted(wanted, e) || (len(own.Kinds) > 0 && !slices.Contains(own.Kinds, kindOfMode(e.st.Mode))) {
			return nil
		}
		if limit > 0 && count >= limit {
			return w.stop("limit")
		}
		count++
		return out.add(w.stat(e))
	}
	if err := w.run(); err != nil {
		return nil, err
	}
	return findResult{count, w.unreadable, w.reason()}, out.flush()
}

// stat describes an entry; a link's target is read by descriptor too.
func (w *walker) stat(e *entry) *stat {
	shown := w.shown(e.path)
	s := &stat{
		Path: text(shown), Name: text(path.Base(shown)), Kind: kindOfMode(e.st.Mode), Size: e.st.Size, Mode: e.st.Mode & maxMode,
		UID: e.st.Uid, GID: e.st.Gid, MTime: float64(e.st.Mtim.Sec) + float64(e.st.Mtim.Nsec)/1e9,
	}
	if s.Kind == "symlink" {
		if target, err := readlinkAt(e.dir, e.name); err == nil {
			target = text(target)
			s.Target = &target
		}
	}
	return s
}

// maxInodes bounds what a walk remembers of files with several names: 16 bytes each.
const maxInodes = 100_000

type inode struct{ device, number uint64 }

func inodeOf(st *syscall.Stat_t) inode { return inode{st.Dev, st.Ino} }

type usageResult struct {
	Bytes       int64   `json:"bytes"`
	Allocated   int64   `json:"allocated"`
	Files       int64   `json:"files"`
	Directories int64   `json:"directories"`
	Symlinks    int64   `json:"symlinks"`
	Others      int64   `json:"others"`
	Unreadable  int64   `json:"unreadable"`
	Stopped     *string `json:"stopped"`
}

// usage adds up a tree; a file with several names in it counts once (beyond maxInodes of them, each name counts).
func (a *agent) usage(ch *channel, in *call) (any, error) {
	own, err := fields[walkCall](in)
	if err != nil {
		return nil, err
	}
	w, _, err := newWalker(ch, in.Path, own)
	if err != nil {
		return nil, err
	}
	var sum usageResult
	known := map[inode]struct{}{}
	w.visit = func(e *entry) error {
		if e.st.Nlink > 1 && !e.isDirectory() {
			if _, twice := known[inodeOf(&e.st)]; twice {
				return nil
			}
			if len(known) < maxInodes {
				known[inodeOf(&e.st)] = struct{}{}
			}
		}
		sum.add(&e.st)
		return nil
	}
	if err := w.run(); err != nil {
		return nil, err
	}
	sum.Unreadable, sum.Stopped = w.unreadable, w.reason()
	return sum, nil
}

func (u *usageResult) add(st *syscall.Stat_t) {
	u.Allocated += st.Blocks * 512
	switch kindOfMode(st.Mode) {
	case "file":
		u.Files++
		// Saturating: a hundred sparse giants are more than 63 bits hold.
		if u.Bytes += st.Size; u.Bytes < 0 {
			u.Bytes = 1<<63 - 1
		}
	case "directory":
		u.Directories++
	case "symlink":
		u.Symlinks++
	default:
		u.Others++
	}
}

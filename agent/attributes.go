package main

import (
	"errors"
	"strconv"
	"strings"
	"syscall"
)

// attributesCall is what `set` has beside mode, uid and gid.
type attributesCall struct {
	Owner         string `json:"owner"`
	Group         string `json:"owner_group"`
	Recursive     bool   `json:"recursive"`
	DirectoryMode *int64 `json:"directory_mode"`
}

// namedOwner puts names of the sandbox's own passwd and group (or numbers) in place of what is not given as a number.
func namedOwner(user, group string, o owner) (owner, error) {
	if o.uid < -1 || o.uid >= 1<<32-1 || o.gid < -1 || o.gid >= 1<<32-1 {
		return o, fail("invalid", "uid and gid must be from 0 to 4294967294")
	}
	if strings.Contains(user, ":") {
		return o, fail("invalid", "an owner is a user alone; the group is a field of its own")
	}
	if user != "" {
		found, err := resolveUser(user)
		if err != nil {
			return o, err
		}
		o.uid = int64(found.credential.Uid)
	}
	if group != "" {
		gid, ok := resolveGroup(group)
		if !ok {
			return o, fail("invalid", "no such group: "+text(group))
		}
		o.gid = int64(gid)
	}
	return o, nil
}

func (a *agent) set(ch *channel, in *call) (any, error) {
	own, err := fields[attributesCall](in)
	if err != nil {
		return nil, err
	}
	mode, err := modeOf(in, -1)
	if err == nil {
		err = checkPath(in.Path)
	}
	if err != nil {
		return nil, err
	}
	who, err := namedOwner(own.Owner, own.Group, owner{or(in.UID, -1), or(in.GID, -1)})
	if err != nil {
		return nil, err
	}
	change := attributeChange{who, mode, or(own.DirectoryMode, mode)}
	if change.directoryMode < -1 || change.directoryMode > maxMode {
		return nil, fail("invalid", "directory_mode must be from 0 to 0o7777")
	}
	s, err := statPath(in.Path, false)
	if err != nil {
		return nil, err
	}
	if mode >= 0 && s.Kind == "symlink" {
		return nil, fail("unsupported", text(in.Path)+": a link has no mode of its own")
	}
	if own.Recursive && s.Kind == "directory" {
		err = change.tree(ch, in.Path)
	} else {
		err = at(in.Path, change.apply(atFdcwd, trimSlash(in.Path), s.Kind))
	}
	if err != nil {
		return nil, err
	}
	return statPath(in.Path, false)
}

// attributeChange is what is to be changed; -1: not.
type attributeChange struct {
	who           owner
	mode          int64
	directoryMode int64
}

// tree changes all below path and path itself: directories after their content, so that a mode which locks them does
// not stop us. Links get the owner, never what they lead to.
func (c attributeChange) tree(ch *channel, path string) error {
	w := &walker{ch: ch, root: trimSlash(path), strict: true}
	w.visit = func(e *entry) error {
		if e.isDirectory() {
			return nil
		}
		return c.entry(w, e)
	}
	w.leave = func(e *entry) error { return c.entry(w, e) }
	return w.run()
}

func (c attributeChange) entry(w *walker, e *entry) error {
	err := c.apply(e.dir, e.name, kindOfMode(e.st.Mode))
	if e.path != "" && (errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ELOOP)) {
		return nil // gone, or a link, since we looked
	}
	return at(w.shown(e.path), err)
}

// apply sets owner, then mode: chown clears setuid. The mode goes through a descriptor that is no link's.
func (c attributeChange) apply(dir int, name, kind string) error {
	if err := chownAt(dir, name, c.who); err != nil {
		return err
	}
	mode := c.mode
	if kind == "directory" {
		mode = c.directoryMode
	}
	if mode < 0 || kind == "symlink" {
		return nil
	}
	if kind == "other" { // opening a device or FIFO has effects
		return chmodUnopened(dir, name, uint32(mode))
	}
	fd, err := syscall.Openat(dir, name, openPlain, 0)
	if errors.Is(err, syscall.EACCES) {
		return chmodUnopened(dir, name, uint32(mode)) // ours to change though not to read
	}
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	return syscall.Fchmod(fd, uint32(mode))
}

const openPath = 0x200000 // O_PATH, the same on every architecture of ours

// chmodUnopened changes what must or can not be opened, through the descriptor of its place (open(2), "O_PATH").
func chmodUnopened(dir int, name string, mode uint32) error {
	fd, err := syscall.Openat(dir, name, openPath|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return err
	}
	if kindOfMode(st.Mode) == "symlink" {
		return syscall.ELOOP
	}
	return syscall.Chmod("/proc/self/fd/"+strconv.Itoa(fd), mode)
}

type linkCall struct {
	Target string `json:"target"`
	Hard   bool   `json:"hard"`
}

// link makes a symbolic link, whose target is any text, or with `hard` another name of a file.
func (a *agent) link(_ *channel, in *call) (any, error) {
	own, err := fields[linkCall](in)
	if err == nil {
		err = checkPath(in.Path)
	}
	if err != nil {
		return nil, err
	}
	p := trimSlash(in.Path)
	if own.Target == "" || len(own.Target) >= maxPath || strings.ContainsRune(own.Target, 0) {
		return nil, fail("invalid", "a link's target has 1 to 4095 bytes and no NUL")
	}
	if in.Parents {
		if err := makeParents(parentOf(p), owner{-1, -1}); err != nil {
			return nil, err
		}
	}
	create := func(name string) error { return symlinkAt(own.Target, atFdcwd, name) }
	if own.Hard {
		if err := checkPath(own.Target); err != nil {
			return nil, err
		}
		target, err := statPath(own.Target, false)
		if err != nil {
			return nil, err
		}
		if target.Kind == "directory" {
			return nil, fail("is_directory", text(own.Target)+": a directory has one name only")
		}
		create = func(name string) error { return linkAt(atFdcwd, own.Target, atFdcwd, name) }
	}
	if err := placeLink(p, in.Overwrite, create); err != nil {
		return nil, at(p, err)
	}
	return statPath(p, false)
}

func placeLink(p string, overwrite bool, create func(name string) error) error {
	if !overwrite {
		return create(p)
	}
	temporary := beside(p)
	if err := create(temporary); err != nil {
		return err
	}
	err := syscall.Rename(temporary, p)
	_ = syscall.Unlink(temporary) // left over after a failure, and after a rename onto the same file
	return err
}

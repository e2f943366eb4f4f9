package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"syscall"
)

// writer is one `write` call: where the bytes go and what happens at their end.
type writer struct {
	target    string
	temporary string // "" when writing in place
	fd        int
	mode      int64 // -1: keep, or 0644
	owner     owner
	exclusive bool
	sync      bool
	existing  *syscall.Stat_t
}

func (a *agent) write(ch *channel, in *call) (any, error) {
	w, err := prepareWrite(in)
	if err != nil {
		return nil, err
	}
	done := false
	defer func() {
		_ = syscall.Close(w.fd)
		if !done && w.temporary != "" {
			_ = syscall.Unlink(w.temporary)
		}
	}()
	if err := w.receive(ch, or(in.Offset, -1)); err != nil {
		return nil, at(w.target, err)
	}
	if err := w.commit(); err != nil {
		return nil, at(w.target, err)
	}
	done = true
	return statPath(in.Path, true)
}

func prepareWrite(in *call) (*writer, error) {
	if err := checkPath(in.Path); err != nil {
		return nil, err
	}
	mode, err := modeOf(in, -1)
	if err != nil {
		return nil, err
	}
	who, err := ownerOf(in)
	if err != nil {
		return nil, err
	}
	inPlace := in.Append || or(in.Offset, -1) >= 0
	if in.Append && or(in.Offset, -1) >= 0 {
		return nil, fail("invalid", "append and offset exclude each other")
	}
	target, err := followLinks(in.Path)
	if err != nil {
		return nil, err
	}
	own, err := fields[struct {
		Sync bool `json:"sync"`
	}](in)
	if err != nil {
		return nil, err
	}
	w := &writer{target: target, fd: -1, mode: mode, owner: who, exclusive: in.Exclusive, sync: own.Sync}
	if err := w.look(in.Path); err != nil {
		return nil, err
	}
	if in.Parents {
		if err := makeParents(parentOf(target), who); err != nil {
			return nil, err
		}
	}
	if inPlace {
		return w, w.openInPlace(in.Append)
	}
	return w, w.openTemporary()
}

// look finds out what is there now.
func (w *writer) look(asked string) error {
	var st syscall.Stat_t
	err := syscall.Lstat(w.target, &st)
	if errors.Is(err, syscall.ENOENT) {
		if w.exclusive && asked != w.target { // like O_EXCL: even a dangling link exists
			return at(asked, syscall.EEXIST)
		}
		return nil
	}
	if err != nil {
		return at(w.target, err)
	}
	if w.exclusive {
		return at(asked, syscall.EEXIST)
	}
	w.existing = &st
	return regular(w.target, st.Mode)
}

func (w *writer) openInPlace(appending bool) (err error) {
	flags := syscall.O_WRONLY | syscall.O_CREAT | syscall.O_NONBLOCK | syscall.O_NOCTTY | syscall.O_NOFOLLOW | syscall.O_CLOEXEC
	if appending {
		flags |= syscall.O_APPEND
	}
	if w.exclusive {
		flags |= syscall.O_EXCL
	}
	if w.fd, err = syscall.Open(w.target, flags, 0o644); err != nil {
		return at(w.target, err)
	}
	var st syscall.Stat_t
	if err = syscall.Fstat(w.fd, &st); err == nil {
		err = regular(w.target, st.Mode)
	}
	if err != nil {
		_ = syscall.Close(w.fd)
	}
	return err
}

// openTemporary makes a file beside the target: same file system, so that the rename is atomic.
func (w *writer) openTemporary() error {
	w.temporary = parentOf(w.target) + "/.cove-write-" + randomName()
	fd, err := syscall.Open(w.temporary, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_EXCL|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return at(w.target, err)
	}
	w.fd = fd
	return nil
}

func randomName() string {
	var random [8]byte
	_, _ = rand.Read(random[:])
	return hex.EncodeToString(random[:])
}

// receive writes what the host sends, at offset, or at the file's own position if that is negative.
func (w *writer) receive(ch *channel, offset int64) error {
	for {
		in, err := ch.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		err = writeAll(w.fd, in.bytes, offset)
		n := len(in.bytes)
		in.release()
		if err != nil {
			return err
		}
		ch.spent(n)
		if offset >= 0 {
			offset += int64(n)
		}
	}
}

func writeAll(fd int, b []byte, offset int64) error {
	for len(b) > 0 {
		var n int
		var err error
		if offset >= 0 {
			n, err = syscall.Pwrite(fd, b, offset)
		} else {
			n, err = syscall.Write(fd, b)
		}
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
		if offset >= 0 {
			offset += int64(n)
		}
	}
	return nil
}

// commit sets owner and mode (in this order: chown clears setuid) and puts the file in its place.
func (w *writer) commit() error {
	who, mode := w.owner, w.mode
	if w.temporary != "" {
		if mode < 0 {
			mode = 0o644
		}
		if w.existing != nil {
			who, mode = w.inherited()
		}
	}
	if who.isSet() {
		if err := syscall.Fchown(w.fd, int(who.uid), int(who.gid)); err != nil {
			return err
		}
	}
	if mode >= 0 {
		if err := syscall.Fchmod(w.fd, uint32(mode)); err != nil {
			return err
		}
	}
	if w.sync {
		if err := syscall.Fsync(w.fd); err != nil {
			return err
		}
	}
	return w.publish()
}

// publish gives a file that was written under another name its own.
func (w *writer) publish() error {
	if w.temporary == "" {
		return nil
	}
	var err error
	if w.exclusive {
		err = renameNew(w.temporary, w.target)
	} else {
		err = syscall.Rename(w.temporary, w.target)
	}
	if err != nil || !w.sync {
		return err
	}
	return syncDirectory(parentOf(w.target))
}

// syncDirectory makes a rename in it survive a power cut: the file's own fsync does not (fsync(2), "Notes").
func syncDirectory(dir string) error {
	fd, err := syscall.Open(dir+"/", syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	return syscall.Fsync(fd)
}

// inherited is the existing target's owner and mode where the call does not set its own.
func (w *writer) inherited() (owner, int64) {
	who, mode := w.owner, w.mode
	if who.uid < 0 && int(w.existing.Uid) != syscall.Geteuid() {
		who.uid = int64(w.existing.Uid)
	}
	if who.gid < 0 && int(w.existing.Gid) != syscall.Getegid() {
		who.gid = int64(w.existing.Gid)
	}
	if mode < 0 {
		mode = int64(w.existing.Mode & maxMode)
	}
	return who, mode
}

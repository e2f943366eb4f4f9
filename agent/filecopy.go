package main

import (
	"errors"
	"os"
	"syscall"
	"unsafe"
)

// moveByCopy moves what rename cannot: copy beside the target, put it there with one rename, then remove the source.
// A cancel or failure on the way leaves the source whole and no half copy.
func moveByCopy(ch *channel, from, to string, overwrite bool) error {
	temporary := parentOf(to) + "/.cove-move-" + randomName()
	err := copyTree(ch, from, temporary, 0)
	if err == nil {
		err = rename(temporary, to, overwrite)
	}
	if err != nil {
		_ = (&remover{ch: newChannel(nil, 0)}).any(temporary)
		return err
	}
	return (&remover{ch: newChannel(nil, 0)}).any(from)
}

// any removes a file or a tree.
func (r *remover) any(p string) error { return r.one(atFdcwd, p, 0) }

func copyTree(ch *channel, from, to string, depth int) error {
	if ch.isCanceled() {
		return errCanceled
	}
	if depth > maxDepth {
		return fail("limit", "the directory tree is too deep")
	}
	var st syscall.Stat_t
	if err := syscall.Lstat(from, &st); err != nil {
		return err
	}
	var err error
	switch kindOfMode(st.Mode) {
	case "file":
		err = copyFile(ch, from, to)
	case "directory":
		err = copyDirectory(ch, from, to, depth)
	case "symlink":
		var target string
		if target, err = os.Readlink(from); err == nil {
			err = os.Symlink(target, to)
		}
	default:
		err = syscall.Mknod(to, st.Mode, int(st.Rdev)) // FIFOs and sockets; devices need rights a sandbox lacks
	}
	if err != nil {
		return err
	}
	return copyAttributes(to, &st)
}

func copyAttributes(to string, st *syscall.Stat_t) error {
	if err := syscall.Lchown(to, int(st.Uid), int(st.Gid)); err != nil && !errors.Is(err, syscall.EPERM) {
		return err
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFLNK {
		if err := syscall.Chmod(to, st.Mode&maxMode); err != nil {
			return err
		}
	}
	return setTimes(to, st)
}

const atSymlinkNoFollow = 0x100

func setTimes(p string, st *syscall.Stat_t) error {
	name, err := syscall.BytePtrFromString(p)
	if err != nil {
		return err
	}
	times := [2]syscall.Timespec{st.Atim, st.Mtim}
	cwd := atFdcwd
	_, _, errno := syscall.Syscall6(syscall.SYS_UTIMENSAT, uintptr(cwd), uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(&times)), atSymlinkNoFollow, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func copyDirectory(ch *channel, from, to string, depth int) error {
	if err := syscall.Mkdir(to, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := copyTree(ch, from+"/"+entry.Name(), to+"/"+entry.Name(), depth+1); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(ch *channel, from, to string) error {
	source, _, err := openRegular(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := syscall.Open(to, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_EXCL|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer syscall.Close(target)
	buffer := fileBuffers.Get().(*[]byte)
	defer fileBuffers.Put(buffer)
	for !ch.isCanceled() {
		n, err := syscall.Read(int(source.Fd()), *buffer)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return err
		}
		if err := writeAll(target, (*buffer)[:n], -1); err != nil {
			return err
		}
	}
	return errCanceled
}

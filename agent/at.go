package main

import (
	"errors"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// What package syscall lacks of the *at family. None of these follows a link in the last component, and the names that
// our walkers pass have only one: so a swap under their feet leads nowhere.

const (
	openPlain = syscall.O_RDONLY | syscall.O_NOFOLLOW | syscall.O_NONBLOCK | syscall.O_NOCTTY | syscall.O_CLOEXEC
	openNew   = syscall.O_WRONLY | syscall.O_CREAT | syscall.O_EXCL | syscall.O_NOFOLLOW | syscall.O_CLOEXEC
)

// pathCall is a system call on (dir, name, memory, number). The pointer stays one until the call itself: memory that is
// known by its number alone may move.
func pathCall(number uintptr, dir int, name string, memory unsafe.Pointer, last uintptr) (uintptr, error) {
	p, err := syscall.BytePtrFromString(name)
	if err != nil {
		return 0, err
	}
	for {
		r, _, errno := syscall.Syscall6(number, uintptr(dir), uintptr(unsafe.Pointer(p)), uintptr(memory), last, 0, 0)
		if errno == 0 {
			return r, nil
		}
		if errno != syscall.EINTR {
			return 0, errno
		}
	}
}

func statAt(dir int, name string, st *syscall.Stat_t) error {
	_, err := pathCall(sysFstatat, dir, name, unsafe.Pointer(st), atSymlinkNoFollow)
	return err
}

func readlinkAt(dir int, name string) (string, error) {
	buffer := make([]byte, maxPath)
	n, err := pathCall(syscall.SYS_READLINKAT, dir, name, unsafe.Pointer(&buffer[0]), uintptr(len(buffer)))
	return string(buffer[:n]), err
}

func symlinkAt(target string, dir int, name string) error {
	t, err := syscall.BytePtrFromString(target)
	if err != nil {
		return err
	}
	n, err := syscall.BytePtrFromString(name)
	if err != nil {
		return err
	}
	if _, _, errno := syscall.Syscall(syscall.SYS_SYMLINKAT, uintptr(unsafe.Pointer(t)), uintptr(dir), uintptr(unsafe.Pointer(n))); errno != 0 {
		return errno
	}
	return nil
}

// linkAt makes a hard link, to a link itself if that is what is there.
func linkAt(fromDir int, from string, toDir int, to string) error {
	f, err := syscall.BytePtrFromString(from)
	if err != nil {
		return err
	}
	t, err := syscall.BytePtrFromString(to)
	if err != nil {
		return err
	}
	_, _, errno := syscall.Syscall6(syscall.SYS_LINKAT, uintptr(fromDir), uintptr(unsafe.Pointer(f)), uintptr(toDir), uintptr(unsafe.Pointer(t)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func setTimeAt(dir int, name string, when time.Time) error {
	stamp := syscall.NsecToTimespec(max(when.UnixNano(), 0))
	times := [2]syscall.Timespec{stamp, stamp}
	_, err := pathCall(syscall.SYS_UTIMENSAT, dir, name, unsafe.Pointer(&times), atSymlinkNoFollow)
	return err
}

func chownAt(dir int, name string, who owner) error {
	if !who.isSet() {
		return nil
	}
	return syscall.Fchownat(dir, name, int(who.uid), int(who.gid), atSymlinkNoFollow)
}

// openDirectoryAt opens a directory, never through a link. Not by O_DIRECTORY: beside it gVisor ignores O_NOFOLLOW
// (measured 2026-11-21). Looked at before, because opening a device can have effects, and after, because of swaps.
func openDirectoryAt(dir int, name string) (int, error) {
	var st syscall.Stat_t
	if err := statAt(dir, name, &st); err != nil {
		return -1, err
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		return -1, syscall.ENOTDIR
	}
	fd, err := syscall.Openat(dir, name, openPlain, 0)
	if err != nil {
		return -1, err
	}
	if err = syscall.Fstat(fd, &st); err == nil && st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		err = syscall.ENOTDIR
	}
	if err != nil {
		_ = syscall.Close(fd)
		return -1, err
	}
	return fd, nil
}

// openAt opens a regular file for reading, and nothing else: looked at before and after, as openRegular does.
func openAt(dir int, name, shown string, st *syscall.Stat_t) (int, error) {
	if err := statAt(dir, name, st); err != nil {
		return -1, at(shown, err)
	}
	if err := regular(shown, st.Mode); err != nil {
		return -1, err
	}
	fd, err := syscall.Openat(dir, name, openPlain, 0)
	if err != nil {
		return -1, at(shown, err)
	}
	if err = syscall.Fstat(fd, st); err == nil {
		err = regular(shown, st.Mode)
	}
	if err != nil {
		_ = syscall.Close(fd)
		return -1, err
	}
	return fd, nil
}

// beside is a name for a file that is to take the place of `name` by a rename, in the same directory.
func beside(name string) string {
	return name[:strings.LastIndexByte(name, '/')+1] + ".cove-write-" + randomName()
}

// readSome is read(2) without EINTR.
func readSome(fd int, b []byte) (int, error) {
	for {
		n, err := syscall.Read(fd, b)
		if !errors.Is(err, syscall.EINTR) {
			return max(n, 0), err
		}
	}
}

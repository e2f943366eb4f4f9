package main

import (
	"errors"
	"os"
	"path"
	"strings"
	"syscall"
	"unsafe"
)

const (
	maxPath  = 4096
	maxLinks = 40 // the kernel's own limit, path_resolution(7)
	maxMode  = 0o7777
)

// Paths are resolved by the kernel inside the sandbox and mean there what they would mean to its root. There is no
// confinement to defend here: the caller of the file API may run commands as root in the same sandbox.

// stat is the *stat* of PROTOCOL.md.
type stat struct {
	Path   string  `json:"path"`
	Name   string  `json:"name"`
	Kind   string  `json:"kind"`
	Size   int64   `json:"size"`
	Mode   uint32  `json:"mode"`
	UID    uint32  `json:"uid"`
	GID    uint32  `json:"gid"`
	MTime  float64 `json:"mtime"`
	Target *string `json:"target"`
}

func checkPath(p string) error {
	switch {
	case !strings.HasPrefix(p, "/"):
		return fail("invalid", "a path must be absolute")
	case strings.ContainsRune(p, 0):
		return fail("invalid", "a path must not contain NUL")
	case len(p) > maxPath:
		return fail("invalid", "a path must not be longer than 4096 bytes")
	}
	return nil
}

// at names the file in errors of package syscall, which do not.
func at(p string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: "", Path: text(p), Err: err}
}

func statPath(p string, follow bool) (*stat, error) {
	var st syscall.Stat_t
	var err error
	if follow {
		err = syscall.Stat(p, &st)
	} else {
		err = syscall.Lstat(p, &st)
	}
	if err != nil {
		return nil, at(p, err)
	}
	return describe(p, &st), nil
}

func describe(p string, st *syscall.Stat_t) *stat {
	s := &stat{
		Path: text(p), Name: text(path.Base(p)), Kind: kindOfMode(st.Mode), Size: st.Size, Mode: st.Mode & maxMode,
		UID: st.Uid, GID: st.Gid, MTime: float64(st.Mtim.Sec) + float64(st.Mtim.Nsec)/1e9,
	}
	if s.Kind == "symlink" {
		if target, err := os.Readlink(p); err == nil {
			target = text(target)
			s.Target = &target
		}
	}
	return s
}

func kindOfMode(mode uint32) string {
	switch mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		return "file"
	case syscall.S_IFDIR:
		return "directory"
	case syscall.S_IFLNK:
		return "symlink"
	default:
		return "other"
	}
}

// regular refuses what is no regular file, in the words of the protocol.
func regular(p string, mode uint32) error {
	switch kindOfMode(mode) {
	case "file":
		return nil
	case "directory":
		return fail("is_directory", text(p)+": is a directory")
	default:
		return fail("invalid", text(p)+": not a regular file")
	}
}

// followLinks resolves only the last component, which may be missing. Not lexical: `..` after a link is the kernel's affair.
func followLinks(p string) (string, error) {
	for range maxLinks {
		target, err := os.Readlink(p)
		if err != nil {
			return p, nil // no link, or nothing there: the caller's next step finds out
		}
		if path.IsAbs(target) {
			p = target
		} else {
			p = parentOf(p) + "/" + target
		}
	}
	return "", at(p, syscall.ELOOP)
}

func parentOf(p string) string {
	p = strings.TrimRight(p, "/")
	return p[:max(strings.LastIndexByte(p, '/'), 0)]
}

// owner is a pair of ids, -1: leave alone.
type owner struct{ uid, gid int64 }

func (o owner) isSet() bool { return o.uid >= 0 || o.gid >= 0 }

func ownerOf(in *call) (owner, error) {
	o := owner{or(in.UID, -1), or(in.GID, -1)}
	if o.uid < -1 || o.uid >= 1<<32-1 || o.gid < -1 || o.gid >= 1<<32-1 {
		return o, fail("invalid", "uid and gid must be from 0 to 4294967294")
	}
	return o, nil
}

func modeOf(in *call, otherwise int64) (int64, error) {
	mode := or(in.Mode, otherwise)
	if mode < -1 || mode > maxMode {
		return mode, fail("invalid", "mode must be from 0 to 0o7777")
	}
	return mode, nil
}

// makeParents creates missing directories, 0755, owned like the file that needs them.
func makeParents(dir string, o owner) error {
	if dir == "" {
		return nil
	}
	var st syscall.Stat_t
	err := syscall.Stat(dir, &st)
	if err == nil {
		if st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
			return at(dir, syscall.ENOTDIR)
		}
		return nil
	}
	if !errors.Is(err, syscall.ENOENT) {
		return at(dir, err)
	}
	if err := makeParents(parentOf(dir), o); err != nil {
		return err
	}
	if err := syscall.Mkdir(dir, 0o755); err != nil {
		if errors.Is(err, syscall.EEXIST) {
			return nil
		}
		return at(dir, err)
	}
	if o.isSet() {
		return at(dir, syscall.Lchown(dir, int(o.uid), int(o.gid)))
	}
	return nil
}

const (
	atFdcwd         = -100
	renameNoReplace = 1
)

// renameNew is a rename that never replaces. Where the file system does not know RENAME_NOREPLACE, a look before it
// must do: a race then can only be lost to the sandbox's own processes.
func renameNew(from, to string) error {
	a, err := syscall.BytePtrFromString(from)
	if err != nil {
		return err
	}
	b, err := syscall.BytePtrFromString(to)
	if err != nil {
		return err
	}
	cwd := atFdcwd
	_, _, errno := syscall.Syscall6(sysRenameat2, uintptr(cwd), uintptr(unsafe.Pointer(a)), uintptr(cwd), uintptr(unsafe.Pointer(b)), renameNoReplace, 0)
	switch errno {
	case 0:
		return nil
	case syscall.EINVAL, syscall.ENOSYS:
		if _, err := os.Lstat(to); err == nil {
			return syscall.EEXIST
		}
		return syscall.Rename(from, to)
	default:
		return errno
	}
}

package main

import (
	"errors"
	"syscall"
	"unsafe"
)

const (
	maxDepth    = 1024 // each level holds a descriptor open; deeper trees are the business of `rm`
	atRemoveDir = 0x200
)

type removed struct {
	Removed int64 `json:"removed"`
}

func (a *agent) remove(ch *channel, in *call) (any, error) {
	if err := checkPath(in.Path); err != nil {
		return nil, err
	}
	p := trimSlash(in.Path)
	if p == "/" {
		return nil, fail("invalid", "the root directory cannot be removed")
	}
	var st syscall.Stat_t
	if err := syscall.Lstat(p, &st); err != nil {
		return nil, at(p, err)
	}
	isDirectory := st.Mode&syscall.S_IFMT == syscall.S_IFDIR
	if !isDirectory {
		return removed{1}, at(p, syscall.Unlink(p))
	}
	if !in.Recursive {
		return removed{1}, at(p, syscall.Rmdir(p))
	}
	r := remover{ch: ch}
	if err := r.tree(atFdcwd, p, 0); err != nil {
		return nil, at(p, err)
	}
	return removed{r.count}, nil
}

// remover walks by descriptor and never follows a link, so a swap under its feet removes nothing elsewhere.
type remover struct {
	ch    *channel
	count int64
}

func (r *remover) tree(parent int, name string, depth int) error {
	if depth > maxDepth {
		return fail("limit", "the directory tree is too deep")
	}
	fd, err := openDirectoryAt(parent, name)
	if err != nil {
		return err
	}
	err = r.empty(fd, depth)
	_ = syscall.Close(fd)
	if err != nil {
		return err
	}
	if err := unlinkat(parent, name, atRemoveDir); err != nil {
		return err
	}
	r.count++
	return nil
}

// empty removes what is in the directory, pass by pass: removing while reading may make the kernel skip entries.
func (r *remover) empty(fd, depth int) error {
	buffer := make([]byte, 8<<10)
	for {
		progress := false
		if _, err := syscall.Seek(fd, 0, 0); err != nil {
			return err
		}
		for {
			n, err := syscall.ReadDirent(fd, buffer)
			if err != nil {
				return err
			}
			if n <= 0 {
				break
			}
			_, _, found := syscall.ParseDirent(buffer[:n], -1, nil)
			for _, name := range found {
				if err := r.one(fd, name, depth); err != nil {
					return err
				}
				progress = true
			}
		}
		if !progress {
			return nil
		}
	}
}

func (r *remover) one(fd int, name string, depth int) error {
	if r.ch.isCanceled() {
		return errCanceled
	}
	err := unlinkat(fd, name, 0)
	switch {
	case err == nil:
		r.count++
		return nil
	case errors.Is(err, syscall.ENOENT):
		return nil
	case errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.EPERM):
		return r.tree(fd, name, depth+1)
	default:
		return err
	}
}

func unlinkat(dir int, name string, flags int) error {
	p, err := syscall.BytePtrFromString(name)
	if err != nil {
		return err
	}
	if _, _, errno := syscall.Syscall(syscall.SYS_UNLINKAT, uintptr(dir), uintptr(unsafe.Pointer(p)), uintptr(flags)); errno != 0 {
		return errno
	}
	return nil
}

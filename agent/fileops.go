package main

import (
	"errors"
	"strings"
	"syscall"
)

func (a *agent) stat(_ *channel, in *call) (any, error) {
	if err := checkPath(in.Path); err != nil {
		return nil, err
	}
	return statPath(in.Path, in.Follow)
}

func (a *agent) mkdir(_ *channel, in *call) (any, error) {
	mode, err := modeOf(in, 0o755)
	if err == nil {
		err = checkPath(in.Path)
	}
	if err != nil {
		return nil, err
	}
	p := trimSlash(in.Path)
	if in.Parents {
		// Like mkdir -p: an existing directory is success.
		if s, err := statPath(p, true); err == nil && s.Kind == "directory" {
			return s, nil
		}
		if err := makeParents(parentOf(p), owner{-1, -1}); err != nil {
			return nil, err
		}
	}
	if err := syscall.Mkdir(p, 0o755); err != nil {
		return nil, at(p, err)
	}
	if mode >= 0 {
		if err := syscall.Chmod(p, uint32(mode)); err != nil {
			return nil, at(p, err)
		}
	}
	return statPath(p, false)
}

func trimSlash(p string) string {
	if trimmed := strings.TrimRight(p, "/"); trimmed != "" {
		return trimmed
	}
	return "/"
}

func (a *agent) move(ch *channel, in *call) (any, error) {
	if err := errors.Join(checkPath(in.From), checkPath(in.To)); err != nil {
		return nil, err
	}
	from, to := trimSlash(in.From), trimSlash(in.To)
	if _, err := statPath(from, false); err != nil {
		return nil, err
	}
	err := rename(from, to, in.Overwrite)
	if errors.Is(err, syscall.EXDEV) {
		// Another file system, or a directory that overlayfs has in its read-only layer.
		err = moveByCopy(ch, from, to, in.Overwrite)
	}
	if err != nil {
		return nil, at(to, err)
	}
	return statPath(to, false)
}

func rename(from, to string, overwrite bool) error {
	if overwrite {
		return syscall.Rename(from, to)
	}
	return renameNew(from, to)
}

package main

import (
	"errors"
	"io/fs"
	"syscall"
)

const maxText = 1024

// failure is the payload of FAIL; its kinds are the closed list of PROTOCOL.md section 5.
type failure struct {
	Kind string `json:"kind"`
	Text string `json:"text"`
}

func (f failure) Error() string { return f.Kind + ": " + f.Text }

var errCanceled error = failure{"canceled", "the call was canceled"}

func fail(kind, text string) error { return failure{kind, text} }

var kindOfErrno = map[syscall.Errno]string{
	syscall.ENOENT: "not_found", syscall.EEXIST: "exists", syscall.EISDIR: "is_directory",
	syscall.ENOTDIR: "not_directory", syscall.ENOTEMPTY: "not_empty",
	syscall.EACCES: "permission", syscall.EPERM: "permission", syscall.EROFS: "permission", syscall.ETXTBSY: "busy",
	syscall.ENOSPC: "no_space", syscall.EDQUOT: "no_space",
	syscall.EINVAL: "invalid", syscall.ELOOP: "invalid", syscall.ENXIO: "invalid", syscall.ENAMETOOLONG: "invalid",
	syscall.EFBIG: "too_large", syscall.E2BIG: "too_large",
	syscall.EMFILE: "limit", syscall.ENFILE: "limit", syscall.ENOMEM: "limit", syscall.EAGAIN: "limit", syscall.EMLINK: "limit",
	syscall.EBUSY: "busy", syscall.EXDEV: "unsupported", syscall.EOPNOTSUPP: "unsupported", syscall.ENOSYS: "unsupported",
	syscall.ECONNREFUSED: "refused", syscall.ETIMEDOUT: "timeout", syscall.ESRCH: "gone",
}

// asFailure turns any error into what the host may be told: a word of the list and a bounded text.
func asFailure(err error) failure {
	var f failure
	if !errors.As(err, &f) {
		f = failure{"io", err.Error()}
		var errno syscall.Errno
		if errors.As(err, &errno) {
			if kind, ok := kindOfErrno[errno]; ok {
				f.Kind = kind
			}
			f.Text = errno.Error()
		}
		var path *fs.PathError
		if errors.As(err, &path) {
			f.Text = path.Path + ": " + f.Text
		}
	}
	if len(f.Text) > maxText {
		f.Text = f.Text[:maxText]
	}
	return f
}

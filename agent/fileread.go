package main

import (
	"errors"
	"os"
	"syscall"
)

// Files of /proc and /sys say that they are empty. So much of such a file is read.
const maxUnsized = 4 << 20

type fileEvent struct {
	Event string `json:"event"`
	Stat  *stat  `json:"stat"`
}

// openRegular opens a regular file for reading. Looked at before, because opening a device can have effects, and
// after, because it may have been swapped; O_NONBLOCK, because a FIFO would hold us for ever.
func openRegular(p string) (*os.File, *syscall.Stat_t, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(p, &st); err != nil {
		return nil, nil, at(p, err)
	}
	if err := regular(p, st.Mode); err != nil {
		return nil, nil, err
	}
	fd, err := syscall.Open(p, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, at(p, err)
	}
	if err = syscall.Fstat(fd, &st); err == nil {
		err = regular(p, st.Mode)
	}
	if err != nil {
		_ = syscall.Close(fd)
		return nil, nil, err
	}
	return os.NewFile(uintptr(fd), p), &st, nil
}

func (a *agent) read(ch *channel, in *call) (any, error) {
	if err := checkPath(in.Path); err != nil {
		return nil, err
	}
	offset, length := or(in.Offset, 0), or(in.Length, -1)
	if offset < 0 || length < -1 {
		return nil, fail("invalid", "offset and length must not be negative")
	}
	file, st, err := openRegular(in.Path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if err := ch.event(fileEvent{"file", describe(in.Path, st)}); err != nil {
		return nil, err
	}
	left := st.Size - offset
	if st.Size == 0 {
		left = maxUnsized
	}
	if length >= 0 {
		left = min(left, length)
	}
	sent, err := sendFile(ch, int(file.Fd()), offset, left)
	if err != nil {
		return nil, err
	}
	return struct {
		Bytes int64 `json:"bytes"`
	}{sent}, nil
}

// sendFile sends up to `left` bytes; fewer if the file ends before (it was cut while we read).
func sendFile(ch *channel, fd int, offset, left int64) (sent int64, err error) {
	buffer := fileBuffers.Get().(*[]byte)
	defer fileBuffers.Put(buffer)
	for left > 0 {
		piece := (*buffer)[headerSize:]
		n, err := syscall.Pread(fd, piece[:min(int64(len(piece)), left)], offset+sent)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return sent, err
		}
		if n <= 0 {
			break
		}
		if err := ch.send(kindData, (*buffer)[:headerSize+n]); err != nil {
			return sent, err
		}
		sent += int64(n)
		left -= int64(n)
	}
	return sent, nil
}

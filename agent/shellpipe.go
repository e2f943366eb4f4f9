package main

import (
	"errors"
	"os"
	"syscall"
	"time"
	"unsafe"
)

// shellPipe is our end of a shell's stdout or stderr. It outlives commands, so a command's end is told only after what
// lies in it has been moved: `flush`.
type shellPipe struct {
	*outputPipe
	flushes chan chan struct{}
}

func newShellPipe(k kind) (*shellPipe, int, error) {
	p, theirs, err := newOutputPipe(k)
	if err != nil {
		return nil, -1, err
	}
	return &shellPipe{p, make(chan chan struct{}, 4)}, theirs, nil
}

// pump moves output to `to` until the end of file, or until `expire` after the shell's end.
func (p *shellPipe) pump(to sink, over <-chan struct{}) {
	defer close(p.done)
	for {
		frame, n, err := p.take()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			_ = p.file.SetReadDeadline(time.Time{})
			p.answerFlushes(to)
			select {
			case <-over:
				p.moveKept(to)
				discardRest(p.file)
				return
			default:
			}
		case err != nil:
			_ = p.file.Close()
			return
		default:
			_ = to.send(p.kind, (*frame)[:headerSize+n])
			pipeBuffers.Put(frame)
		}
	}
}

func (p *shellPipe) answerFlushes(to sink) {
	for {
		select {
		case done := <-p.flushes:
			p.moveKept(to)
			close(done)
		default:
			return
		}
	}
}

// flush returns when everything that lay in the pipe at the call has been moved.
func (p *shellPipe) flush() {
	done := make(chan struct{})
	select {
	case p.flushes <- done:
	case <-p.done:
		return
	}
	p.expire()
	select {
	case <-done:
	case <-p.done:
	}
}

// moveKept moves what is in the pipe now, and no more: a background job may write faster than we read.
func (p *shellPipe) moveKept(to sink) {
	for rest := p.waiting(); rest > 0; {
		var frame *[]byte
		n, err := 0, error(nil)
		if p.raw.Control(func(fd uintptr) { frame, n, err = readPipe(int(fd)) }) != nil || err != nil { // Control: no deadline
			return
		}
		_ = to.send(p.kind, (*frame)[:headerSize+n])
		pipeBuffers.Put(frame)
		rest -= n
	}
}

func (p *shellPipe) waiting() int { return waiting(p.raw) }

// waiting is how many bytes lie in a pipe, asked of either end.
func waiting(end syscall.RawConn) int {
	count := int32(0)
	_ = end.Control(func(fd uintptr) { _ = ioctl(fd, bytesInPipe, unsafe.Pointer(&count)) })
	return int(count)
}

const bytesInPipe = 0x541B // FIONREAD

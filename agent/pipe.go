package main

import (
	"errors"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// A sink takes a command's output: an attached call's channel, or a kept command's ring. The frame's first headerSize
// bytes are scratch room. An error means that nobody wants more.
type sink interface {
	send(k kind, frame []byte) error
}

// maxPipe is the largest pipe an unprivileged process can make (fs.pipe-max-size): what may still lie in one.
const maxPipe = 1 << 20

// outputPipe is our end of a command's stdout or stderr.
type outputPipe struct {
	file *os.File
	raw  syscall.RawConn
	kind kind
	done chan struct{} // closed when the pump has stopped
}

// newOutputPipe returns our end and the child's. Only ours is non-blocking: the flag would surprise the child.
func newOutputPipe(k kind) (*outputPipe, int, error) {
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC); err != nil {
		return nil, -1, err
	}
	_ = syscall.SetNonblock(fds[0], true)
	file := os.NewFile(uintptr(fds[0]), "pipe")
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		_ = syscall.Close(fds[1])
		return nil, -1, err
	}
	return &outputPipe{file, raw, k, make(chan struct{})}, fds[1], nil
}

// take reads once, waiting for bytes if `wait`. It returns a buffer only when there is something in it: ten thousand
// silent commands must not pin ten thousand buffers.
func (p *outputPipe) take() (frame *[]byte, n int, err error) {
	waitErr := p.raw.Read(func(fd uintptr) bool {
		frame, n, err = readPipe(int(fd))
		return !errors.Is(err, syscall.EAGAIN)
	})
	if waitErr != nil {
		return nil, 0, waitErr
	}
	return frame, n, err
}

func readPipe(fd int) (*[]byte, int, error) {
	frame := pipeBuffers.Get().(*[]byte)
	for {
		n, err := syscall.Read(fd, (*frame)[headerSize:])
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if n > 0 {
			return frame, n, nil
		}
		pipeBuffers.Put(frame)
		if err == nil {
			err = os.ErrClosed // end of file
		}
		return nil, 0, err
	}
}

// pump moves output to the sink until the end of file, the deadline set by `expire`, or the sink's refusal.
func (p *outputPipe) pump(to sink) {
	defer close(p.done)
	for {
		frame, n, err := p.take()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			p.drain(to)
			discardRest(p.file)
			return
		}
		if err != nil {
			_ = p.file.Close()
			return
		}
		err = to.send(p.kind, (*frame)[:headerSize+n])
		pipeBuffers.Put(frame)
		if err != nil {
			discardRest(p.file)
			return
		}
	}
}

// settle has nothing to do: the end of file comes when the last writer is gone.
func (p *outputPipe) settle() {}

func (p *outputPipe) left() <-chan struct{} { return p.done }

// expire ends the pump although somebody still holds the pipe open.
func (p *outputPipe) expire() { _ = p.file.SetReadDeadline(time.Unix(1, 0)) }

// drain sends what already lies in the pipe: the command may have written it before it ended, and the pump was slow
// only because the host was. Bounded, because a descendant may go on writing.
func (p *outputPipe) drain(to sink) {
	_ = p.file.SetReadDeadline(time.Time{})
	for total := 0; total < maxPipe; {
		var frame *[]byte
		n, err := 0, error(nil)
		// One attempt: the callback says "done" whatever it finds, so this never waits.
		if waitErr := p.raw.Read(func(fd uintptr) bool { frame, n, err = readPipe(int(fd)); return true }); waitErr != nil || err != nil {
			return
		}
		err = to.send(p.kind, (*frame)[:headerSize+n])
		pipeBuffers.Put(frame)
		if err != nil {
			return
		}
		total += n
	}
}

// Beyond so many, a left-over pipe is closed and its writers get EPIPE.
const maxDiscarding = 256

var discarding atomic.Int32

// discardRest keeps reading a pipe that a background child still holds, and throws the bytes away: closing it would
// kill a server that was started with `&` at its first log line. Takes over the file.
func discardRest(file *os.File) {
	if discarding.Add(1) > maxDiscarding {
		discarding.Add(-1)
		_ = file.Close()
		return
	}
	go func() {
		defer discarding.Add(-1)
		defer file.Close()
		_ = file.SetReadDeadline(time.Time{})
		p := outputPipe{file: file}
		var err error
		if p.raw, err = file.SyscallConn(); err != nil {
			return
		}
		for {
			frame, _, err := p.take()
			if err != nil {
				return
			}
			pipeBuffers.Put(frame)
		}
	}()
}

// inputPipe is our end of a command's stdin.
type inputPipe struct {
	file *os.File
	busy chan struct{} // holds one token while somebody writes
	gone atomic.Bool   // closed by us
}

func newInputPipe() (*inputPipe, int, error) {
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC); err != nil {
		return nil, -1, err
	}
	_ = syscall.SetNonblock(fds[1], true)
	return &inputPipe{file: os.NewFile(uintptr(fds[1]), "pipe"), busy: make(chan struct{}, 1)}, fds[0], nil
}

func (p *inputPipe) close() {
	if !p.gone.Swap(true) {
		_ = p.file.Close()
	}
}

// copyFrom writes the channel's data until its EOF. A command that reads no more is no error: like a shell's pipe, the
// rest is dropped. It returns the bytes the command's pipe took.
func (p *inputPipe) copyFrom(ch *channel) (written int64, err error) {
	_ = p.file.SetWriteDeadline(time.Time{})
	stop, stopped := make(chan struct{}), make(chan struct{})
	defer func() {
		close(stop)
		<-stopped // or its deadline could be the next writer's
	}()
	go func() {
		defer close(stopped)
		select {
		case <-ch.done:
			_ = p.file.SetWriteDeadline(time.Unix(1, 0)) // a full pipe must not hold up a cancel
		case <-stop:
		}
	}()
	broken := false
	for {
		in, err := ch.next()
		if err != nil {
			if errors.Is(err, errCanceled) {
				return written, err
			}
			return written, nil
		}
		if !broken {
			n, err := p.file.Write(in.bytes)
			written += int64(n)
			broken = err != nil
		}
		in.release()
		ch.spent(len(in.bytes))
	}
}

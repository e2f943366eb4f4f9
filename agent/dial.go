package main

import (
	"errors"
	"net/netip"
	"os"
	"syscall"
	"time"
)

const dialTimeout = 5 * time.Second

type connectedEvent struct {
	Event string `json:"event"`
}

// dial connects the channel to a port inside the sandbox. Loopback only: this is for the sandbox's own servers, and
// must not become a way for the host to be sent elsewhere.
func (a *agent) dial(ch *channel, in *call) (any, error) {
	address, err := netip.ParseAddr(or(in.Host, "127.0.0.1"))
	if err != nil || !address.IsLoopback() || address.Zone() != "" {
		return nil, fail("invalid", "only loopback addresses can be dialled")
	}
	if in.Port < 1 || in.Port > 65535 {
		return nil, fail("invalid", "a port is a number from 1 to 65535")
	}
	file, err := connect(address, in.Port)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	if err := ch.event(connectedEvent{"connected"}); err != nil {
		return nil, err
	}
	finished := make(chan struct{})
	defer close(finished)
	go func() { // a cancel must reach both directions wherever they wait
		select {
		case <-ch.done:
			_ = file.SetDeadline(time.Unix(1, 0))
		case <-finished:
		}
	}()
	upload := make(chan error, 1)
	go func() { upload <- toSocket(ch, file, raw) }()
	download := fromSocket(ch, raw)
	if download != nil {
		ch.cancel() // a broken socket ends the other direction as well
	}
	if err := <-upload; download == nil {
		download = err
	}
	if download != nil {
		return nil, download
	}
	return empty{}, nil
}

func connect(address netip.Addr, port int) (*os.File, error) {
	family := syscall.AF_INET6
	var to syscall.Sockaddr = &syscall.SockaddrInet6{Port: port, Addr: address.As16()}
	if address.Is4() {
		family, to = syscall.AF_INET, &syscall.SockaddrInet4{Port: port, Addr: address.As4()}
	}
	fd, err := syscall.Socket(family, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	_ = syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
	err = syscall.Connect(fd, to)
	if err != nil && !errors.Is(err, syscall.EINPROGRESS) {
		_ = syscall.Close(fd)
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "dial")
	if err != nil {
		if err = waitConnected(file); err != nil {
			_ = file.Close()
			return nil, err
		}
	}
	return file, nil
}

func waitConnected(file *os.File) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	_ = file.SetWriteDeadline(time.Now().Add(dialTimeout))
	result := 0
	waitErr := raw.Write(func(fd uintptr) bool {
		result, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ERROR)
		if err != nil || result != 0 {
			return true
		}
		_, pending := syscall.Getpeername(int(fd))
		return pending == nil // writable, no error and no peer: still connecting
	})
	_ = file.SetWriteDeadline(time.Time{})
	switch {
	case errors.Is(waitErr, os.ErrDeadlineExceeded):
		return fail("timeout", "the port did not answer")
	case waitErr != nil:
		return waitErr
	case err != nil:
		return err
	case result != 0:
		return syscall.Errno(result)
	}
	return nil
}

// toSocket moves the host's bytes to the socket and passes its EOF on as a half-close.
func toSocket(ch *channel, file *os.File, raw syscall.RawConn) error {
	for {
		in, err := ch.next()
		if err != nil {
			if errors.Is(err, errCanceled) {
				return err
			}
			return raw.Control(func(fd uintptr) { _ = syscall.Shutdown(int(fd), syscall.SHUT_WR) })
		}
		_, err = file.Write(in.bytes)
		n := len(in.bytes)
		in.release()
		if err != nil {
			ch.cancel()
			return err
		}
		ch.spent(n)
	}
}

// fromSocket moves the socket's bytes to the host until its end of file.
func fromSocket(ch *channel, raw syscall.RawConn) error {
	p := outputPipe{raw: raw}
	for {
		frame, n, err := p.take()
		if errors.Is(err, os.ErrClosed) {
			return ch.sendEOF()
		}
		if err != nil {
			return err
		}
		err = ch.send(kindData, (*frame)[:headerSize+n])
		pipeBuffers.Put(frame)
		if err != nil {
			return err
		}
	}
}

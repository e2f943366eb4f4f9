package main

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	maxConnections = 64
	quiescePoll    = 20 * time.Millisecond
)

// listener owns the socket and the open connections.
type listener struct {
	file     *os.File
	mu       sync.Mutex
	conns    map[*conn]struct{}
	quiesced bool
}

// serve binds, accepts until told to quiesce, waits for the host to be done, and binds again. It returns only on an
// error that makes serving impossible.
func (a *agent) serve() error {
	for {
		l, err := listen(a.socket)
		if err != nil {
			return err
		}
		a.listener = l
		a.accept(l)
		waitGone(filepath.Join(filepath.Dir(a.socket), "quiesce"))
	}
}

func listen(path string) (*listener, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	_ = os.Remove(path)
	// The socket must never be reachable by others, not even between bind and chmod.
	old := syscall.Umask(0o177)
	err = syscall.Bind(fd, &syscall.SockaddrUnix{Name: path})
	syscall.Umask(old)
	if err == nil {
		err = syscall.Listen(fd, 64)
	}
	if err != nil {
		_ = syscall.Close(fd)
		return nil, err
	}
	return &listener{file: os.NewFile(uintptr(fd), path), conns: map[*conn]struct{}{}}, nil
}

// accept runs until the listening socket is closed by quiesce.
func (a *agent) accept(l *listener) {
	raw, err := l.file.SyscallConn()
	if err != nil {
		return
	}
	for {
		fd := -1
		var acceptErr error
		err := raw.Read(func(s uintptr) bool {
			fd, _, acceptErr = syscall.Accept4(int(s), syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK)
			return !errors.Is(acceptErr, syscall.EAGAIN)
		})
		if err != nil {
			return
		}
		if acceptErr != nil {
			// ECONNABORTED is harmless; EMFILE and ENOMEM pass when something is closed. Never spin on them.
			time.Sleep(5 * time.Millisecond)
			continue
		}
		a.admit(l, fd)
	}
}

func (a *agent) admit(l *listener, fd int) {
	c := newConn(a, l, fd)
	l.mu.Lock()
	refused := l.quiesced || len(l.conns) >= maxConnections
	if !refused {
		l.conns[c] = struct{}{}
	}
	l.mu.Unlock()
	if refused {
		c.close()
		return
	}
	go c.serve()
}

func (l *listener) remove(c *conn) {
	l.mu.Lock()
	delete(l.conns, c)
	l.mu.Unlock()
}

// quiesce closes everything a checkpoint cannot carry: the bound socket and each connection to the host.
func (l *listener) quiesce(socket string) {
	l.mu.Lock()
	l.quiesced = true
	open := make([]*conn, 0, len(l.conns))
	for c := range l.conns {
		open = append(open, c)
	}
	l.mu.Unlock()
	_ = os.Remove(socket)
	for _, c := range open {
		c.close()
	}
	_ = l.file.Close()
}

func waitGone(path string) {
	for {
		if _, err := os.Lstat(path); err != nil {
			return
		}
		time.Sleep(quiescePoll)
	}
}

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
	lookPause      = time.Millisecond
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
		refuseTracing()
		clock.goOn()
		go a.watches.tree.wake()
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

// replace has `by` take the place of a connection. False: nothing is open here any more.
func (l *listener) replace(c, by *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, open := l.conns[c]; !open || l.quiesced {
		return false
	}
	delete(l.conns, c)
	l.conns[by] = struct{}{}
	return true
}

func (l *listener) isQuiesced() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.quiesced
}

// quiesce closes the bound socket and each connection to the host but the one that asks for it.
func (l *listener) quiesce(socket string, asking *conn) {
	allowTracing()
	l.mu.Lock()
	l.quiesced = true
	open := make([]*conn, 0, len(l.conns))
	for c := range l.conns {
		if c != asking {
			open = append(open, c)
		}
	}
	l.mu.Unlock()
	_ = os.Remove(socket)
	for _, c := range open {
		c.close()
	}
	_ = l.file.Close()
}

// waitGone returns when the file is gone. It looks often while somebody is likely to wait for it, and it sleeps by
// itself: a timer of the Go runtime is a point in time, and the clock may be another one after a restore.
func waitGone(path string) {
	for looks := 0; ; looks++ {
		if _, err := os.Lstat(path); err != nil {
			return
		}
		pause := syscall.NsecToTimespec(int64(lookPause))
		switch {
		case looks > 2000:
			pause = syscall.NsecToTimespec(int64(quiescePoll))
		case looks > 1000:
			pause = syscall.NsecToTimespec(int64(4 * lookPause))
		}
		_ = syscall.Nanosleep(&pause, nil)
	}
}

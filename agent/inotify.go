package main

import (
	"errors"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// What is asked of every directory. The same for all watches, because they share one number per directory and a second
// inotify_add_watch(2) replaces the mask of the first; each watch picks its kinds from the events.
const inotifyMask = syscall.IN_CREATE | syscall.IN_MODIFY | syscall.IN_ATTRIB | syscall.IN_DELETE | syscall.IN_MOVED_FROM |
	syscall.IN_MOVED_TO | syscall.IN_DELETE_SELF | syscall.IN_MOVE_SELF | syscall.IN_ONLYDIR | syscall.IN_EXCL_UNLINK

// inotify is the agent's one instance: they are scarce (fs.inotify.max_user_instances is counted for all sandboxes).
type inotify struct {
	file  *os.File
	raw   syscall.RawConn
	fd    int
	piece []byte
	// taking is held while the queue is read, which never waits: outside of it `isTaken` is exact.
	taking sync.Mutex
	// isTaken: events have left the queue of which perhaps nothing was made yet. Whoever has none in hand and finds the
	// queue empty takes it back.
	isTaken bool
}

// rawEvent is one record of inotify(7).
type rawEvent struct {
	number int32
	mask   uint32
	cookie uint32
	name   string
}

func (e rawEvent) is(bits uint32) bool { return e.mask&bits != 0 }

func openInotify() (*inotify, error) {
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK)
	switch {
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOMEM):
		return nil, fail("limit", "the machine has no inotify instance left: fs.inotify.max_user_instances")
	case err != nil:
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "inotify")
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return &inotify{file: file, raw: raw, fd: fd, piece: make([]byte, 64<<10)}, nil
}

// add watches a directory and returns its number: the same for the same directory, by whatever path.
func (n *inotify) add(path string, follow bool) (int32, error) {
	mask := uint32(inotifyMask)
	if !follow {
		mask |= syscall.IN_DONT_FOLLOW
	}
	number, err := syscall.InotifyAddWatch(n.fd, path, mask)
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.ENOMEM):
		return 0, fail("limit", "the machine watches as many directories as it may: fs.inotify.max_user_watches")
	case err != nil:
		return 0, at(path, err)
	}
	return int32(number), nil
}

// remove stops watching. The kernel may have done so already.
func (n *inotify) remove(number int32) { _, _ = syscall.InotifyRmWatch(n.fd, uint32(number)) }

// close wakes the reader.
func (n *inotify) close() { _ = n.file.Close() }

// poll reads what is there, without waiting; nothing: an empty list. The caller has no events in hand.
func (n *inotify) poll() ([]rawEvent, error) {
	var count int
	var err error
	waitErr := n.raw.Read(func(fd uintptr) bool { count, err = n.read(int(fd), true); return true })
	return n.parsed(count, err, waitErr)
}

// wait reads, waiting for the first event up to `limit` (0: for ever; then the caller has no events in hand).
func (n *inotify) wait(limit time.Duration) ([]rawEvent, error) {
	if limit > 0 {
		_ = n.file.SetReadDeadline(time.Now().Add(limit))
		defer n.file.SetReadDeadline(time.Time{}) // one that has passed fails every later read
	}
	var count int
	var err error
	waitErr := n.raw.Read(func(fd uintptr) bool {
		count, err = n.read(int(fd), limit == 0)
		return !errors.Is(err, syscall.EAGAIN)
	})
	if errors.Is(waitErr, os.ErrDeadlineExceeded) {
		return nil, nil
	}
	return n.parsed(count, err, waitErr)
}

func (n *inotify) read(fd int, emptyHanded bool) (int, error) {
	n.taking.Lock()
	defer n.taking.Unlock()
	for {
		count, err := syscall.Read(fd, n.piece)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		n.isTaken = count > 0 || n.isTaken && !emptyHanded
		return count, err
	}
}

func (n *inotify) parsed(count int, err, waitErr error) ([]rawEvent, error) {
	switch {
	case errors.Is(err, syscall.EAGAIN):
		return nil, nil
	case waitErr != nil:
		return nil, waitErr
	case err != nil:
		return nil, err
	}
	return parseInotify(n.piece[:count]), nil
}

func parseInotify(b []byte) []rawEvent {
	var events []rawEvent
	for len(b) >= syscall.SizeofInotifyEvent {
		head := (*syscall.InotifyEvent)(unsafe.Pointer(&b[0]))
		size := syscall.SizeofInotifyEvent + int(head.Len)
		if size > len(b) {
			break
		}
		name := string(b[syscall.SizeofInotifyEvent:size])
		if end := strings.IndexByte(name, 0); end >= 0 {
			name = name[:end]
		}
		events = append(events, rawEvent{head.Wd, head.Mask, head.Cookie, name})
		b = b[size:]
	}
	return events
}

// hasUntold tells that the kernel told, or was about to tell, of something of which perhaps nothing was made yet.
func (n *inotify) hasUntold() bool {
	n.taking.Lock()
	defer n.taking.Unlock()
	return n.isTaken || n.queued() != 0
}

// queued is how many bytes of events wait in the kernel, -1 where it does not say.
func (n *inotify) queued() int64 {
	var count int32
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(n.fd), syscall.TIOCINQ, uintptr(unsafe.Pointer(&count))); errno != 0 {
		return -1
	}
	return int64(count)
}

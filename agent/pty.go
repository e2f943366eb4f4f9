package main

import (
	"errors"
	"os"
	"strconv"
	"syscall"
	"unsafe"
)

const (
	unlockPTY = 0x40045431 // TIOCSPTLCK
	numberPTY = 0x80045430 // TIOCGPTN
	peerPTY   = 0x5441     // TIOCGPTPEER, not known to gVisor
	setWindow = syscall.TIOCSWINSZ
	getWindow = syscall.TIOCGWINSZ
	getGroup  = syscall.TIOCGPGRP

	ptmxDevice = 5<<8 | 2 // makedev(5, 2), Documentation/admin-guide/devices.txt
	maxWindow  = 65535    // struct winsize has 16 bits for each
)

// windowSize is the *size* of PROTOCOL.md.
type windowSize struct {
	Cols int `json:"cols"`
	Rows int `json:"rows"`
}

func (w windowSize) check() error {
	if w.Cols < 1 || w.Cols > maxWindow || w.Rows < 1 || w.Rows > maxWindow {
		return fail("invalid", "cols and rows must be from 1 to 65535")
	}
	return nil
}

// winsize is struct winsize of ioctl_tty(2).
type winsize struct{ rows, cols, xpixel, ypixel uint16 }

// pty is the master side of a pseudo-terminal.
type pty struct {
	file *os.File
	raw  syscall.RawConn
	// silent: a new size is not told to the programs by the kernel (gVisor's).
	silent bool
}

// openPTY returns the master and a descriptor of the slave, which is for a child: as long as it is open here, the end
// of the terminal's programs goes unnoticed.
func openPTY() (*pty, int, error) {
	fd, err := openPTMX()
	if err != nil {
		return nil, -1, err
	}
	locked := int32(0)
	err = ioctl(uintptr(fd), unlockPTY, unsafe.Pointer(&locked))
	slave, byName := -1, false
	if err == nil {
		slave, byName, err = openPeer(fd)
	}
	if err != nil {
		_ = syscall.Close(fd)
		return nil, -1, err
	}
	file := os.NewFile(uintptr(fd), "pty")
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		_ = syscall.Close(slave)
		return nil, -1, err
	}
	return &pty{file, raw, byName}, slave, nil
}

// openPTMX opens the multiplexer of the sandbox's own devpts. Root of the sandbox may have put something else in its
// place, so no link is followed, nothing waits, and what is not the device is left alone.
func openPTMX() (int, error) {
	err := error(syscall.ENOENT)
	for _, path := range []string{"/dev/pts/ptmx", "/dev/ptmx"} {
		fd := -1
		fd, err = syscall.Open(path, syscall.O_RDWR|syscall.O_NOCTTY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		var st syscall.Stat_t
		err = syscall.Fstat(fd, &st)
		if err == nil && st.Mode&syscall.S_IFMT == syscall.S_IFCHR && st.Rdev == ptmxDevice {
			return fd, nil
		}
		_ = syscall.Close(fd)
		err = syscall.ENODEV
	}
	if errors.Is(err, syscall.ENOSPC) { // devpts has no more: mount option max
		return -1, fail("limit", "the sandbox has no room for another terminal")
	}
	return -1, fail("unsupported", "the sandbox has no terminals: /dev/ptmx: "+err.Error())
}

// openPeer opens the slave by its master, or, where the kernel cannot, by its name.
func openPeer(master int) (slave int, byName bool, err error) {
	const flags = syscall.O_RDWR | syscall.O_NOCTTY | syscall.O_CLOEXEC
	fd, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(master), peerPTY, flags)
	if errno == 0 {
		return int(fd), false, nil
	}
	number := uint32(0)
	if err := ioctl(uintptr(master), numberPTY, unsafe.Pointer(&number)); err != nil {
		return -1, true, err
	}
	slave, err = syscall.Open("/dev/pts/"+strconv.Itoa(int(number)), flags|syscall.O_NOFOLLOW, 0)
	return slave, true, err
}

func ioctl(fd uintptr, request uintptr, argument unsafe.Pointer) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, request, uintptr(argument)); errno != 0 {
		return errno
	}
	return nil
}

// control runs one ioctl on the master. Closed: ESRCH, as of anything that has ended.
func (p *pty) control(request uintptr, argument unsafe.Pointer) error {
	err := error(syscall.ESRCH)
	closed := p.raw.Control(func(fd uintptr) { err = ioctl(fd, request, argument) })
	if closed != nil {
		return syscall.ESRCH
	}
	return err
}

// resize sets the window's size; the kernel tells the foreground programs by SIGWINCH if it is another one.
func (p *pty) resize(to windowSize) error {
	size := winsize{rows: uint16(to.Rows), cols: uint16(to.Cols)}
	return p.control(setWindow, unsafe.Pointer(&size))
}

// size is the window's size as it is now: programs inside may set it too.
func (p *pty) size() (windowSize, error) {
	var size winsize
	err := p.control(getWindow, unsafe.Pointer(&size))
	return windowSize{int(size.cols), int(size.rows)}, err
}

// foreground is the process group that Ctrl-C would reach; 0: not known.
func (p *pty) foreground() int {
	group := int32(0)
	if p.control(getGroup, unsafe.Pointer(&group)) != nil {
		return 0
	}
	return int(group)
}

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The protocol of the old scp and rcp, for clients that do not copy over sftp (`scp -O`, OpenSSH before 9). `-f` sends,
// `-t` receives; both ends confirm each step with a byte 0, or 1 and a line that says what went wrong.

type scp struct {
	in                         *bufio.Reader
	out                        *bufio.Writer
	recursive, times, isTarget bool
	failed                     bool
}

// Nobody nests directories deeper in earnest, and each level is a frame of the stack.
const maxScpDepth = 1000

var errScpFatal = errors.New("the other end gave up")

func scpMain(args []string) int {
	c := &scp{in: bufio.NewReaderSize(os.Stdin, 64<<10), out: bufio.NewWriterSize(os.Stdout, 64<<10)}
	var paths []string
	source, sink := false, false
	for i, arg := range args {
		if arg == "--" {
			paths = append(paths, args[i+1:]...)
			break
		}
		if !strings.HasPrefix(arg, "-") || arg == "-" {
			paths = append(paths, arg)
			continue
		}
		for _, flag := range arg[1:] {
			switch flag {
			case 'f':
				source = true
			case 't':
				sink = true
			case 'r':
				c.recursive = true
			case 'p':
				c.times = true
			case 'd':
				c.isTarget = true
			case 'q', 'v', 'B', 'C':
			default:
				complain("scp: unknown flag -" + string(flag))
				return 2
			}
		}
	}
	if source == sink || len(paths) == 0 || (sink && len(paths) != 1) {
		complain("scp: only the far end of a copy (-f or -t) can be had here")
		return 2
	}
	var err error
	if sink {
		err = c.receive(paths[0])
	} else {
		err = c.sendAll(paths)
	}
	if flushed := c.out.Flush(); err == nil {
		err = flushed
	}
	if err != nil || c.failed {
		return 1
	}
	return 0
}

func (c *scp) say(line string) error {
	if _, err := c.out.WriteString(line); err != nil {
		return err
	}
	return c.out.Flush()
}

// warn tells the other end what went wrong with one file; the copy goes on.
func (c *scp) warn(name string, err error) error {
	c.failed = true
	return c.say("\x01scp: " + strings.ReplaceAll(name, "\n", "?") + ": " + bare(err).Error() + "\n")
}

// confirmed waits for the other end's byte. The bool is false if it will not have this file.
func (c *scp) confirmed() (bool, error) {
	if err := c.out.Flush(); err != nil {
		return false, err
	}
	code, err := c.in.ReadByte()
	if err != nil || code == 0 {
		return err == nil, err
	}
	c.failed = true
	if _, err := c.line(); err != nil {
		return false, err
	}
	if code != 1 {
		return false, errScpFatal
	}
	return false, nil
}

// line is the rest of a line, at most what the buffer holds.
func (c *scp) line() (string, error) {
	b, err := c.in.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	return string(b[:len(b)-1]), nil
}

func (c *scp) sendAll(paths []string) error {
	if ok, err := c.confirmed(); !ok {
		return err
	}
	for _, one := range paths {
		if err := c.send(one, 0); err != nil {
			return err
		}
	}
	return nil
}

func (c *scp) send(name string, depth int) error {
	fd, err := syscall.Open(name, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return c.warn(name, err)
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return c.warn(name, err)
	}
	switch {
	case st.Mode&syscall.S_IFMT == syscall.S_IFDIR && c.recursive && depth < maxScpDepth:
		return c.sendDirectory(file, name, &st, depth)
	case st.Mode&syscall.S_IFMT == syscall.S_IFDIR:
		return c.warn(name, syscall.EISDIR)
	case st.Mode&syscall.S_IFMT != syscall.S_IFREG:
		return c.warn(name, errors.New("not a regular file"))
	}
	if ok, err := c.announce('C', name, st.Size, &st); !ok {
		return err
	}
	if sent, short := io.CopyN(c.out, file, st.Size); short != nil {
		// The size was promised: the rest is zeros, and then the truth.
		if _, err := io.CopyN(c.out, zeros{}, st.Size-sent); err != nil {
			return err
		}
		if err := c.warn(name, short); err != nil {
			return err
		}
	} else if err := c.say("\x00"); err != nil {
		return err
	}
	_, err = c.confirmed()
	return err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// announce sends the times, if wanted, and the line of a file or directory.
func (c *scp) announce(kind byte, name string, size int64, st *syscall.Stat_t) (bool, error) {
	if c.times {
		if err := c.say(fmt.Sprintf("T%d 0 %d 0\n", max(st.Mtim.Sec, 0), max(st.Atim.Sec, 0))); err != nil {
			return false, err
		}
		if ok, err := c.confirmed(); !ok {
			return false, err
		}
	}
	base := strings.ReplaceAll(filepath.Base(name), "\n", "?")
	if err := c.say(fmt.Sprintf("%c%04o %d %s\n", kind, st.Mode&maxMode, size, base)); err != nil {
		return false, err
	}
	return c.confirmed()
}

func (c *scp) sendDirectory(dir *os.File, name string, st *syscall.Stat_t, depth int) error {
	if ok, err := c.announce('D', name, 0, st); !ok {
		return err
	}
	for {
		found, err := dir.Readdirnames(entriesAtOnce)
		for _, one := range found {
			if err := c.send(name+"/"+one, depth+1); err != nil {
				return err
			}
		}
		if len(found) == 0 || err != nil {
			break
		}
	}
	if err := c.say("E\n"); err != nil {
		return err
	}
	_, err := c.confirmed()
	return err
}

// receive takes what comes into target: a directory, or the new name of a single file.
func (c *scp) receive(target string) error {
	isDir := isDirectory(target)
	if c.isTarget && !isDir {
		_ = c.warn(target, syscall.ENOTDIR)
		return errScpFatal
	}
	if err := c.say("\x00"); err != nil {
		return err
	}
	return c.receiveInto(target, isDir, 0)
}

func isDirectory(name string) bool {
	var st syscall.Stat_t
	return syscall.Stat(name, &st) == nil && st.Mode&syscall.S_IFMT == syscall.S_IFDIR
}

func (c *scp) receiveInto(target string, isDir bool, depth int) error {
	var times []syscall.Timeval
	for {
		line, err := c.line()
		if errors.Is(err, io.EOF) && depth == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		if line == "" {
			return errScpFatal
		}
		switch line[0] {
		case 1:
			c.failed = true
		case 'E':
			return c.say("\x00")
		case 'T':
			times = timesOf(line[1:])
			if err := c.say("\x00"); err != nil {
				return err
			}
		case 'C', 'D':
			if err := c.receiveOne(line, target, isDir, times, depth); err != nil {
				return err
			}
			times = nil
		default:
			return errScpFatal
		}
	}
}

func timesOf(line string) []syscall.Timeval {
	words := strings.Fields(line)
	if len(words) != 4 {
		return nil
	}
	modified, err1 := strconv.ParseInt(words[0], 10, 64)
	accessed, err2 := strconv.ParseInt(words[2], 10, 64)
	if err1 != nil || err2 != nil {
		return nil
	}
	return []syscall.Timeval{{Sec: accessed}, {Sec: modified}}
}

func (c *scp) receiveOne(line, target string, isDir bool, times []syscall.Timeval, depth int) error {
	words := strings.SplitN(line[1:], " ", 3)
	if len(words) != 3 {
		return errScpFatal
	}
	mode, err1 := strconv.ParseUint(words[0], 8, 16)
	size, err2 := strconv.ParseInt(words[1], 10, 64)
	name := words[2]
	// What comes is the client's own copy; still, a name is one part of a path and nothing else.
	if err1 != nil || err2 != nil || size < 0 || name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		_ = c.warn(name, syscall.EINVAL)
		return errScpFatal
	}
	full := target
	if isDir {
		full = target + "/" + name
	}
	if line[0] == 'D' {
		return c.receiveDirectory(full, uint32(mode), times, depth)
	}
	return c.receiveFile(full, uint32(mode), size, times)
}

func (c *scp) receiveDirectory(full string, mode uint32, times []syscall.Timeval, depth int) error {
	if !c.recursive || depth >= maxScpDepth {
		_ = c.warn(full, syscall.EISDIR)
		return errScpFatal
	}
	if err := syscall.Mkdir(full, mode&0o777|0o700); err != nil && !isDirectory(full) {
		_ = c.warn(full, err)
		return errScpFatal
	}
	if err := c.say("\x00"); err != nil {
		return err
	}
	if err := c.receiveInto(full, true, depth+1); err != nil {
		return err
	}
	if c.times {
		_ = syscall.Chmod(full, mode&maxMode)
	}
	if times != nil {
		_ = syscall.Utimes(full, times)
	}
	return nil
}

func (c *scp) receiveFile(full string, mode uint32, size int64, times []syscall.Timeval) error {
	flags := syscall.O_WRONLY | syscall.O_CREAT | syscall.O_TRUNC | syscall.O_NONBLOCK | syscall.O_NOCTTY | syscall.O_CLOEXEC
	fd, err := syscall.Open(full, flags, mode&0o777)
	if err != nil {
		return c.warn(full, err) // the other end leaves this file out
	}
	file := os.NewFile(uintptr(fd), full)
	defer file.Close()
	if err := c.say("\x00"); err != nil {
		return err
	}
	var broken error
	for left := size; left > 0; {
		piece, err := c.in.Peek(int(min(left, int64(c.in.Size()))))
		if len(piece) == 0 {
			return err
		}
		if broken == nil {
			_, broken = file.Write(piece)
		}
		left -= int64(len(piece))
		_, _ = c.in.Discard(len(piece))
	}
	if c.times && broken == nil {
		broken = syscall.Fchmod(fd, mode&maxMode)
	}
	if times != nil && broken == nil {
		broken = os.Chtimes(full, time.Unix(times[0].Sec, 0), time.Unix(times[1].Sec, 0))
	}
	if _, err := c.confirmed(); err != nil {
		return err
	}
	if broken != nil {
		return c.warn(full, broken)
	}
	return c.say("\x00")
}

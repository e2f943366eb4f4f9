package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
)

// sftpServer answers one client, request by request in their order. Paths are the kernel's to resolve, as this user.
type sftpServer struct {
	in      *bufio.Reader
	out     *bufio.Writer
	reply   answer
	body    []byte
	handles map[uint32]*openHandle
	next    uint32
	names   *idNames
}

// openHandle is an open file, or a directory being listed.
type openHandle struct {
	file      *os.File
	isDir     bool
	appending bool
}

func sftpMain([]string) int {
	debug.SetGCPercent(gcPercent)
	if home := os.Getenv("HOME"); home == "" || os.Chdir(home) != nil {
		_ = os.Chdir("/")
	}
	s := &sftpServer{
		in: bufio.NewReaderSize(os.Stdin, maxPacket), out: bufio.NewWriterSize(os.Stdout, maxPacket),
		handles: map[uint32]*openHandle{},
	}
	if err := s.serve(); err != nil && !errors.Is(err, io.EOF) {
		complain("sftp: " + err.Error())
		return 1
	}
	return 0
}

func (s *sftpServer) serve() error {
	for {
		kind, p, err := s.receive()
		if err != nil {
			return err
		}
		if kind == sftpInit {
			s.greet()
		} else {
			s.handle(kind, p)
		}
		if _, err := s.out.Write(s.reply.finished()); err != nil {
			return err
		}
		// Together, while the client has sent more: it has 64 requests under way.
		if s.in.Buffered() == 0 {
			if err := s.out.Flush(); err != nil {
				return err
			}
		}
	}
}

func (s *sftpServer) receive() (byte, *packet, error) {
	var header [4]byte
	if _, err := io.ReadFull(s.in, header[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(header[:])
	if n < 1 || n > maxPacket {
		return 0, nil, errBadPacket
	}
	if cap(s.body) < int(n) {
		s.body = make([]byte, n, max(int(n), 64<<10))
	}
	s.body = s.body[:n]
	if _, err := io.ReadFull(s.in, s.body); err != nil {
		return 0, nil, err
	}
	return s.body[0], &packet{rest: s.body[1:]}, nil
}

var sftpExtensions = []string{
	"posix-rename@openssh.com", "1", "statvfs@openssh.com", "2", "fstatvfs@openssh.com", "2", "hardlink@openssh.com", "1",
	"fsync@openssh.com", "1", "lsetstat@openssh.com", "1", "limits@openssh.com", "1", "expand-path@openssh.com", "1",
	"home-directory", "1", "users-groups-by-id@openssh.com", "1",
}

func (s *sftpServer) greet() {
	s.reply.buf = append(s.reply.buf[:0], 0, 0, 0, 0, sftpVersion)
	s.reply.u32(3)
	for _, one := range sftpExtensions {
		s.reply.string(one)
	}
}

// handle puts the answer of one request into s.reply.
func (s *sftpServer) handle(kind byte, p *packet) {
	id := p.u32()
	if p.bad {
		s.reply.failed(0, errBadPacket)
		return
	}
	var err error
	switch kind {
	case sftpOpen:
		err = s.open(id, p)
	case sftpClose:
		err = s.closeHandle(p)
	case sftpRead:
		err = s.read(id, p)
	case sftpWrite:
		err = s.write(p)
	case sftpStat, sftpLstat, sftpFstat:
		err = s.stat(id, kind, p)
	case sftpSetstat, sftpFsetstat:
		err = s.setstat(kind, p)
	case sftpOpendir:
		err = s.opendir(id, p)
	case sftpReaddir:
		err = s.readdir(id, p)
	case sftpRemove, sftpMkdir, sftpRmdir, sftpRename, sftpSymlink:
		err = s.change(kind, p)
	case sftpRealpath, sftpReadlink:
		err = s.resolve(id, kind, p)
	case sftpExtended:
		err = s.extended(id, p)
	default:
		err = syscall.ENOSYS
	}
	switch {
	case p.bad:
		s.reply.failed(id, errBadPacket)
	case errors.Is(err, errAnswered):
	case err != nil:
		s.reply.failed(id, err)
	default:
		s.reply.status(id, statusOK, "Success")
	}
}

// errAnswered: the reply holds more than a status.
var errAnswered = errors.New("answered")

// named is a path of a request; an empty one is the current directory.
func named(p *packet) string {
	if name := p.text(); name != "" {
		return name
	}
	return "."
}

func (s *sftpServer) open(id uint32, p *packet) error {
	name, flags, attrs := named(p), p.u32(), p.attributes()
	if p.bad {
		return errBadPacket
	}
	// O_NONBLOCK: a FIFO must not hold up the session.
	mode := syscall.O_NONBLOCK | syscall.O_NOCTTY | syscall.O_CLOEXEC
	switch flags & 3 {
	case 1:
		mode |= syscall.O_RDONLY
	case 2:
		mode |= syscall.O_WRONLY
	case 3:
		mode |= syscall.O_RDWR
	default:
		return syscall.EINVAL
	}
	for bit, flag := range map[uint32]int{4: syscall.O_APPEND, 8: syscall.O_CREAT, 16: syscall.O_TRUNC, 32: syscall.O_EXCL} {
		if flags&bit != 0 {
			mode |= flag
		}
	}
	permissions := uint32(0o666)
	if attrs.flags&attrMode != 0 {
		permissions = attrs.mode & maxMode
	}
	fd, err := syscall.Open(name, mode, permissions)
	if err != nil {
		return err
	}
	return s.keep(id, &openHandle{file: os.NewFile(uintptr(fd), name), appending: flags&4 != 0})
}

func (s *sftpServer) keep(id uint32, handle *openHandle) error {
	if len(s.handles) >= maxHandles {
		_ = handle.file.Close()
		return syscall.EMFILE
	}
	s.next++
	s.handles[s.next] = handle
	s.reply.begin(sftpHandle, id)
	s.reply.string(string(binary.BigEndian.AppendUint32(nil, s.next)))
	return errAnswered
}

// handleOf is the open handle of a request; of a directory only if asked for one.
func (s *sftpServer) handleOf(p *packet, isDir bool) (*openHandle, error) {
	name := p.bytes()
	if len(name) != 4 {
		return nil, syscall.EBADF
	}
	handle, ok := s.handles[binary.BigEndian.Uint32(name)]
	if !ok || handle.isDir != isDir {
		return nil, syscall.EBADF
	}
	return handle, nil
}

func (s *sftpServer) closeHandle(p *packet) error {
	name := p.bytes()
	if len(name) != 4 {
		return syscall.EBADF
	}
	number := binary.BigEndian.Uint32(name)
	handle, ok := s.handles[number]
	if !ok {
		return syscall.EBADF
	}
	delete(s.handles, number)
	return bare(handle.file.Close())
}

func (s *sftpServer) read(id uint32, p *packet) error {
	handle, err := s.handleOf(p, false)
	offset, length := p.u64(), int(min(p.u32(), maxBlock))
	if err != nil || p.bad {
		return err
	}
	if offset > 1<<63-1 {
		return syscall.EINVAL
	}
	s.reply.begin(sftpData, id)
	s.reply.u32(0)
	start := len(s.reply.buf)
	if cap(s.reply.buf) < start+length {
		s.reply.buf = append(make([]byte, 0, start+max(length, 32<<10)), s.reply.buf...)
	}
	n, err := handle.file.ReadAt(s.reply.buf[start:start+length], int64(offset))
	if n == 0 && err != nil {
		return bare(err)
	}
	s.reply.buf = s.reply.buf[:start+n]
	binary.BigEndian.PutUint32(s.reply.buf[start-4:], uint32(n))
	return errAnswered
}

func (s *sftpServer) write(p *packet) error {
	handle, err := s.handleOf(p, false)
	offset, data := p.u64(), p.bytes()
	if err != nil || p.bad {
		return err
	}
	if offset > 1<<63-1 {
		return syscall.EINVAL
	}
	if handle.appending {
		_, err = handle.file.Write(data)
		return bare(err)
	}
	return writeAll(int(handle.file.Fd()), data, int64(offset))
}

// bare is the errno of an error of package os: the client names the file itself.
func bare(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

func (s *sftpServer) stat(id uint32, kind byte, p *packet) error {
	var st syscall.Stat_t
	var err error
	switch kind {
	case sftpStat:
		err = syscall.Stat(named(p), &st)
	case sftpLstat:
		err = syscall.Lstat(named(p), &st)
	default:
		handle, missing := s.handleOf(p, false)
		if missing != nil {
			return missing
		}
		err = syscall.Fstat(int(handle.file.Fd()), &st)
	}
	if err != nil {
		return err
	}
	s.reply.begin(sftpAttrs, id)
	s.reply.attributes(&st)
	return errAnswered
}

func (s *sftpServer) change(kind byte, p *packet) error {
	name := named(p)
	switch kind {
	case sftpRemove:
		return syscall.Unlink(name)
	case sftpMkdir:
		attrs, mode := p.attributes(), uint32(0o777)
		if attrs.flags&attrMode != 0 {
			mode = attrs.mode & 0o777
		}
		return syscall.Mkdir(name, mode)
	case sftpRmdir:
		return syscall.Rmdir(name)
	case sftpRename: // version 3: never over something
		return bare(renameNew(name, named(p)))
	default: // OpenSSH has the arguments of SYMLINK the other way round than the draft: the target first
		return syscall.Symlink(name, named(p))
	}
}

func (s *sftpServer) resolve(id uint32, kind byte, p *packet) error {
	name := named(p)
	var found string
	var err error
	if kind == sftpReadlink {
		found, err = os.Readlink(name)
	} else {
		found, err = realPath(name)
	}
	if err != nil {
		return bare(err)
	}
	s.nameAlone(id, found)
	return errAnswered
}

func (s *sftpServer) nameAlone(id uint32, name string) {
	s.reply.begin(sftpName, id)
	s.reply.u32(1)
	s.reply.string(name)
	s.reply.string(name)
	s.reply.u32(0)
}

// realPath is absolute and without links; its last part need not exist.
func realPath(name string) (string, error) {
	full, err := filepath.Abs(name)
	if err != nil {
		return "", err
	}
	if found, err := filepath.EvalSymlinks(full); err == nil {
		return found, nil
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(full))
	if err != nil {
		return "", err
	}
	return filepath.Join(parent, filepath.Base(full)), nil
}

// expand is realPath after `~` and `~user`.
func expand(name string) (string, error) {
	if !strings.HasPrefix(name, "~") {
		return realPath(name)
	}
	user, rest, _ := strings.Cut(name[1:], "/")
	home := os.Getenv("HOME")
	if user != "" {
		home = ""
		for _, row := range rows("/etc/passwd") {
			if len(row) >= 7 && row[0] == user {
				home = row[5]
			}
		}
		if home == "" {
			return "", syscall.ENOENT
		}
	}
	return realPath(home + "/" + rest)
}

// idNames are the names of users and groups, read once for a session's listings.
type idNames struct{ users, groups map[uint32]string }

func (s *sftpServer) idNames() *idNames {
	if s.names == nil {
		s.names = &idNames{namesOf("/etc/passwd"), namesOf("/etc/group")}
	}
	return s.names
}

func namesOf(file string) map[uint32]string {
	found := map[uint32]string{}
	for _, row := range rows(file) {
		if id, ok := parseID(at7(row, 2)); ok {
			if _, known := found[id]; !known {
				found[id] = row[0]
			}
		}
	}
	return found
}

func nameOr(names map[uint32]string, id uint32) string {
	if name, ok := names[id]; ok {
		return name
	}
	return strconv.FormatUint(uint64(id), 10)
}

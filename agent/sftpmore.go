package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
	"unsafe"
)

// The longer requests of sftp.go: listing, attributes, and OpenSSH's extensions.

const entriesAtOnce = 128

func (s *sftpServer) opendir(id uint32, p *packet) error {
	name := named(p)
	fd, err := syscall.Open(name, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return s.keep(id, &openHandle{file: os.NewFile(uintptr(fd), name), isDir: true})
}

// readdir sends some entries. What has gone between reading its name and looking at it is left out.
func (s *sftpServer) readdir(id uint32, p *packet) error {
	handle, err := s.handleOf(p, true)
	if err != nil {
		return err
	}
	s.reply.begin(sftpName, id)
	s.reply.u32(0)
	count := uint32(0)
	for count == 0 {
		found, err := handle.file.Readdirnames(entriesAtOnce)
		if len(found) == 0 {
			if err == nil || errors.Is(err, io.EOF) {
				return io.EOF
			}
			return bare(err)
		}
		for _, name := range found {
			var st syscall.Stat_t
			if lstatAt(int(handle.file.Fd()), name, &st) != nil {
				continue
			}
			s.reply.string(name)
			s.reply.string(s.longName(name, &st))
			s.reply.attributes(&st)
			count++
		}
	}
	s.reply.buf[9], s.reply.buf[10], s.reply.buf[11], s.reply.buf[12] = 0, 0, byte(count>>8), byte(count)
	return errAnswered
}

// lstatAt looks at an entry of an open directory, wherever that has been moved.
func lstatAt(dir int, name string, st *syscall.Stat_t) error {
	p, err := syscall.BytePtrFromString(name)
	if err != nil {
		return err
	}
	_, _, errno := syscall.Syscall6(sysNewfstatat, uintptr(dir), uintptr(unsafe.Pointer(p)),
		uintptr(unsafe.Pointer(st)), atSymlinkNoFollow, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// longName is a line of `ls -l`, which clients show as it is.
func (s *sftpServer) longName(name string, st *syscall.Stat_t) string {
	names := s.idNames()
	when := time.Unix(st.Mtim.Sec, 0).UTC()
	shown := when.Format("Jan _2 15:04")
	if age := time.Since(when); age > 180*24*time.Hour || age < -24*time.Hour {
		shown = when.Format("Jan _2  2006")
	}
	return fmt.Sprintf("%s %4d %-8s %-8s %8d %12s %s", modeWord(st.Mode), st.Nlink, nameOr(names.users, st.Uid),
		nameOr(names.groups, st.Gid), st.Size, shown, name)
}

func modeWord(mode uint32) string {
	word := []byte("?rwxrwxrwx")
	switch mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		word[0] = '-'
	case syscall.S_IFDIR:
		word[0] = 'd'
	case syscall.S_IFLNK:
		word[0] = 'l'
	case syscall.S_IFIFO:
		word[0] = 'p'
	case syscall.S_IFSOCK:
		word[0] = 's'
	case syscall.S_IFCHR:
		word[0] = 'c'
	case syscall.S_IFBLK:
		word[0] = 'b'
	}
	for i := range 9 {
		if mode&(1<<(8-i)) == 0 {
			word[i+1] = '-'
		}
	}
	special := []struct {
		bit         uint32
		at          int
		with, alone byte
	}{{syscall.S_ISUID, 3, 's', 'S'}, {syscall.S_ISGID, 6, 's', 'S'}, {syscall.S_ISVTX, 9, 't', 'T'}}
	for _, one := range special {
		if mode&one.bit == 0 {
			continue
		}
		if word[one.at] == 'x' {
			word[one.at] = one.with
		} else {
			word[one.at] = one.alone
		}
	}
	return string(word)
}

func (s *sftpServer) setstat(kind byte, p *packet) error {
	if kind == sftpFsetstat {
		handle, err := s.handleOf(p, false)
		attrs := p.attributes()
		if err != nil || p.bad {
			return err
		}
		return setOpen(int(handle.file.Fd()), attrs)
	}
	name, attrs := named(p), p.attributes()
	if p.bad {
		return errBadPacket
	}
	return setNamed(name, attrs)
}

func setOpen(fd int, a attributes) error {
	var errs []error
	if a.flags&attrSize != 0 {
		errs = append(errs, syscall.Ftruncate(fd, int64(a.size&(1<<63-1))))
	}
	if a.flags&attrMode != 0 {
		errs = append(errs, syscall.Fchmod(fd, a.mode&maxMode))
	}
	if a.flags&attrTimes != 0 {
		errs = append(errs, syscall.Futimes(fd, timevals(a)))
	}
	if a.flags&attrOwner != 0 {
		errs = append(errs, syscall.Fchown(fd, int(a.uid), int(a.gid)))
	}
	return firstError(errs)
}

func setNamed(name string, a attributes) error {
	var errs []error
	if a.flags&attrSize != 0 {
		errs = append(errs, syscall.Truncate(name, int64(a.size&(1<<63-1))))
	}
	if a.flags&attrMode != 0 {
		errs = append(errs, syscall.Chmod(name, a.mode&maxMode))
	}
	if a.flags&attrTimes != 0 {
		errs = append(errs, syscall.Utimes(name, timevals(a)))
	}
	if a.flags&attrOwner != 0 {
		errs = append(errs, syscall.Chown(name, int(a.uid), int(a.gid)))
	}
	return firstError(errs)
}

// setLink changes a link itself, or anything else without following one. A link has no mode.
func setLink(name string, a attributes) error {
	var st syscall.Stat_t
	if err := syscall.Lstat(name, &st); err != nil {
		return err
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFLNK {
		return setNamed(name, a)
	}
	if a.flags&(attrSize|attrMode) != 0 {
		return syscall.EOPNOTSUPP
	}
	var errs []error
	if a.flags&attrTimes != 0 {
		times := [2]syscall.Timespec{{Sec: int64(a.atime)}, {Sec: int64(a.mtime)}}
		p, err := syscall.BytePtrFromString(name)
		if err == nil {
			cwd := atFdcwd
			_, _, errno := syscall.Syscall6(syscall.SYS_UTIMENSAT, uintptr(cwd), uintptr(unsafe.Pointer(p)),
				uintptr(unsafe.Pointer(&times)), atSymlinkNoFollow, 0, 0)
			if errno != 0 {
				err = errno
			}
		}
		errs = append(errs, err)
	}
	if a.flags&attrOwner != 0 {
		errs = append(errs, syscall.Lchown(name, int(a.uid), int(a.gid)))
	}
	return firstError(errs)
}

func timevals(a attributes) []syscall.Timeval {
	return []syscall.Timeval{{Sec: int64(a.atime)}, {Sec: int64(a.mtime)}}
}

func firstError(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return bare(err)
		}
	}
	return nil
}

func (s *sftpServer) extended(id uint32, p *packet) error {
	switch p.text() {
	case "posix-rename@openssh.com":
		return syscall.Rename(named(p), named(p))
	case "hardlink@openssh.com":
		return syscall.Link(named(p), named(p))
	case "lsetstat@openssh.com":
		name, attrs := named(p), p.attributes()
		if p.bad {
			return errBadPacket
		}
		return setLink(name, attrs)
	case "fsync@openssh.com":
		handle, err := s.handleOf(p, false)
		if err != nil {
			return err
		}
		return bare(handle.file.Sync())
	case "statvfs@openssh.com":
		var st syscall.Statfs_t
		if err := syscall.Statfs(named(p), &st); err != nil {
			return err
		}
		s.fileSystem(id, &st)
	case "fstatvfs@openssh.com":
		handle, err := s.handleOf(p, false)
		if err != nil {
			return err
		}
		var st syscall.Statfs_t
		if err := syscall.Fstatfs(int(handle.file.Fd()), &st); err != nil {
			return err
		}
		s.fileSystem(id, &st)
	case "limits@openssh.com":
		s.reply.begin(sftpReply, id)
		for _, n := range []uint64{maxPacket, maxBlock, maxBlock, maxHandles} {
			s.reply.u64(n)
		}
	case "expand-path@openssh.com":
		found, err := expand(p.text())
		if err != nil {
			return bare(err)
		}
		s.nameAlone(id, found)
	case "home-directory":
		found, err := expand("~" + p.text())
		if err != nil {
			return bare(err)
		}
		s.nameAlone(id, found)
	case "users-groups-by-id@openssh.com":
		return s.namesByID(id, packet{rest: p.bytes()}, packet{rest: p.bytes()})
	default:
		return syscall.ENOSYS
	}
	return errAnswered
}

func (s *sftpServer) fileSystem(id uint32, st *syscall.Statfs_t) {
	const readOnly, noSuid = 1, 2
	s.reply.begin(sftpReply, id)
	size := uint64(st.Frsize)
	if size == 0 {
		size = uint64(st.Bsize)
	}
	for _, n := range []uint64{
		uint64(st.Bsize), size, st.Blocks, st.Bfree, st.Bavail, st.Files, st.Ffree, st.Ffree, 0,
		uint64(st.Flags) & (readOnly | noSuid), uint64(st.Namelen),
	} {
		s.reply.u64(n)
	}
}

// namesByID answers with a name for each id, empty where there is none.
func (s *sftpServer) namesByID(id uint32, users, groups packet) error {
	names := s.idNames()
	s.reply.begin(sftpReply, id)
	for _, one := range []struct {
		ids   packet
		names map[uint32]string
	}{{users, names.users}, {groups, names.groups}} {
		var list answer
		for len(one.ids.rest) >= 4 && len(list.buf) < maxPacket/4 {
			list.string(one.names[one.ids.u32()])
		}
		s.reply.string(string(list.buf))
	}
	return errAnswered
}

package main

import (
	"encoding/binary"
	"errors"
	"io"
	"syscall"
)

// The SSH File Transfer Protocol, version 3 (draft-ietf-secsh-filexfer-02), as OpenSSH speaks it: packets, attributes.

const (
	sftpInit     = 1
	sftpVersion  = 2
	sftpOpen     = 3
	sftpClose    = 4
	sftpRead     = 5
	sftpWrite    = 6
	sftpLstat    = 7
	sftpFstat    = 8
	sftpSetstat  = 9
	sftpFsetstat = 10
	sftpOpendir  = 11
	sftpReaddir  = 12
	sftpRemove   = 13
	sftpMkdir    = 14
	sftpRmdir    = 15
	sftpRealpath = 16
	sftpStat     = 17
	sftpRename   = 18
	sftpReadlink = 19
	sftpSymlink  = 20
	sftpStatus   = 101
	sftpHandle   = 102
	sftpData     = 103
	sftpName     = 104
	sftpAttrs    = 105
	sftpExtended = 200
	sftpReply    = 201
)

const (
	statusOK          = 0
	statusEOF         = 1
	statusNoSuchFile  = 2
	statusDenied      = 3
	statusFailure     = 4
	statusBadMessage  = 5
	statusUnsupported = 8
)

const (
	attrSize     = 1
	attrOwner    = 2
	attrMode     = 4
	attrTimes    = 8
	attrExtended = 1 << 31
)

const (
	maxPacket  = 256 << 10 // as OpenSSH has it; a longer one ends the session
	maxBlock   = maxPacket - 1024
	maxHandles = 512
)

var errBadPacket = errors.New("a malformed packet")

// packet is a request's payload, read front to back. The first read beyond its end marks it bad.
type packet struct {
	rest []byte
	bad  bool
}

func (p *packet) take(n int) []byte {
	if n < 0 || n > len(p.rest) {
		p.bad, p.rest = true, nil
		return nil
	}
	taken := p.rest[:n]
	p.rest = p.rest[n:]
	return taken
}

func (p *packet) u32() uint32 {
	if b := p.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (p *packet) u64() uint64 {
	if b := p.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (p *packet) bytes() []byte {
	n := p.u32()
	if n > maxPacket {
		p.bad, p.rest = true, nil
		return nil
	}
	return p.take(int(n))
}

func (p *packet) text() string { return string(p.bytes()) }

// attributes are those of a request: what its flags say is set.
type attributes struct {
	flags        uint32
	size         uint64
	uid, gid     uint32
	mode         uint32
	atime, mtime uint32
}

func (p *packet) attributes() (a attributes) {
	a.flags = p.u32()
	if a.flags&attrSize != 0 {
		a.size = p.u64()
	}
	if a.flags&attrOwner != 0 {
		a.uid, a.gid = p.u32(), p.u32()
	}
	if a.flags&attrMode != 0 {
		a.mode = p.u32()
	}
	if a.flags&attrTimes != 0 {
		a.atime, a.mtime = p.u32(), p.u32()
	}
	if a.flags&attrExtended != 0 {
		for n := p.u32(); n > 0 && !p.bad; n-- {
			p.bytes()
			p.bytes()
		}
	}
	return a
}

// answer is a reply being put together; its length is filled in at the end.
type answer struct{ buf []byte }

func (w *answer) begin(kind byte, id uint32) {
	w.buf = append(w.buf[:0], 0, 0, 0, 0, kind)
	w.u32(id)
}

func (w *answer) u32(n uint32)    { w.buf = binary.BigEndian.AppendUint32(w.buf, n) }
func (w *answer) u64(n uint64)    { w.buf = binary.BigEndian.AppendUint64(w.buf, n) }
func (w *answer) string(s string) { w.u32(uint32(len(s))); w.buf = append(w.buf, s...) }
func (w *answer) finished() []byte {
	binary.BigEndian.PutUint32(w.buf, uint32(len(w.buf)-4))
	return w.buf
}

func (w *answer) status(id, code uint32, words string) {
	w.begin(sftpStatus, id)
	w.u32(code)
	w.string(words)
	w.string("en")
}

func (w *answer) failed(id uint32, err error) {
	code := uint32(statusFailure)
	var errno syscall.Errno
	switch {
	case errors.Is(err, io.EOF):
		code = statusEOF
	case errors.Is(err, errBadPacket):
		code = statusBadMessage
	case errors.As(err, &errno):
		switch errno {
		case syscall.ENOENT, syscall.ENOTDIR, syscall.ELOOP:
			code = statusNoSuchFile
		case syscall.EACCES, syscall.EPERM:
			code = statusDenied
		case syscall.ENOSYS, syscall.EOPNOTSUPP:
			code = statusUnsupported
		}
		err = errno
	}
	w.status(id, code, err.Error())
}

func (w *answer) attributes(st *syscall.Stat_t) {
	w.u32(attrSize | attrOwner | attrMode | attrTimes)
	w.u64(uint64(st.Size))
	w.u32(st.Uid)
	w.u32(st.Gid)
	w.u32(st.Mode)
	w.u32(clamped(st.Atim.Sec))
	w.u32(clamped(st.Mtim.Sec))
}

func clamped(seconds int64) uint32 { return uint32(max(0, min(seconds, 1<<32-1))) }

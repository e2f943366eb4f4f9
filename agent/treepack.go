package main

import (
	"archive/tar"
	"compress/gzip"
	"io"
	"strings"
	"syscall"
	"time"
)

type packCall struct {
	walkCall
	Gzip     bool  `json:"gzip"`
	MaxBytes int64 `json:"max_bytes"`
}

type packResult struct {
	Entries int64 `json:"entries"`
	Bytes   int64 `json:"bytes"`
	Skipped int64 `json:"skipped"`
}

// packer writes a directory as a tar stream, names relative to it. Sockets, FIFOs and devices are left out.
type packer struct {
	w       *walker
	tar     *tar.Writer
	names   map[inode]string // of files with several names: the one that has the content
	buffer  []byte
	maximum int64
	sum     packResult
}

func (a *agent) pack(ch *channel, in *call) (any, error) {
	own, err := fields[packCall](in)
	if err != nil {
		return nil, err
	}
	w, wanted, err := newWalker(ch, in.Path, &own.walkCall)
	if err != nil {
		return nil, err
	}
	if len(wanted) > 0 || own.MaxBytes < 0 {
		return nil, fail("invalid", "pack takes no glob, and max_bytes must not be negative")
	}
	root, err := statPath(w.root, true)
	if err != nil {
		return nil, err
	}
	if root.Kind != "directory" {
		return nil, at(in.Path, syscall.ENOTDIR)
	}
	// Told before the first byte, so that a refusal is an answer of its own.
	if err := ch.event(fileEvent{"file", root}); err != nil {
		return nil, err
	}
	pooled := fileBuffers.Get().(*[]byte)
	defer fileBuffers.Put(pooled)
	p := &packer{w: w, names: map[inode]string{}, buffer: (*pooled)[:filePiece], maximum: own.MaxBytes}
	w.strict, w.visit = true, p.visit
	if err := p.stream(&frameWriter{ch: ch}, own.Gzip, root); err != nil {
		return nil, err
	}
	return p.sum, nil
}

func (p *packer) stream(out *frameWriter, compressed bool, root *stat) error {
	defer out.release()
	sink := io.Writer(out)
	var packed *gzip.Writer
	if compressed {
		packed, _ = gzip.NewWriterLevel(out, gzip.BestSpeed)
		sink = packed
	}
	p.tar = tar.NewWriter(sink)
	top := &tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: int64(root.Mode), Uid: int(root.UID), Gid: int(root.GID), ModTime: time.Unix(int64(root.MTime), 0)}
	err := p.tar.WriteHeader(top)
	if err == nil {
		err = p.w.run()
	}
	if err == nil {
		err = p.tar.Close()
	}
	if err == nil && packed != nil {
		err = packed.Close()
	}
	if err != nil {
		return err
	}
	return out.flush()
}

func (p *packer) visit(e *entry) error {
	var err error
	switch kindOfMode(e.st.Mode) {
	case "file":
		err = p.file(e)
	case "directory":
		err = p.tar.WriteHeader(headerOf(e.path+"/", tar.TypeDir, &e.st))
	case "symlink":
		var target string
		if target, err = readlinkAt(e.dir, e.name); err == nil {
			header := headerOf(e.path, tar.TypeSymlink, &e.st)
			header.Linkname = target
			err = p.tar.WriteHeader(header)
		}
	default:
		p.sum.Skipped++
		return nil
	}
	if err != nil && hasChanged(err) {
		return nil
	}
	p.sum.Entries++
	return err
}

func (p *packer) file(e *entry) error {
	shown := p.w.shown(e.path)
	var st syscall.Stat_t
	fd, err := openAt(e.dir, e.name, shown, &st)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	if st.Nlink > 1 {
		if first, ok := p.names[inodeOf(&st)]; ok {
			header := headerOf(e.path, tar.TypeLink, &st)
			header.Linkname = first
			return p.tar.WriteHeader(header)
		}
		if len(p.names) < maxInodes {
			p.names[inodeOf(&st)] = strings.Clone(e.path)
		}
	}
	if p.maximum > 0 && st.Size > p.maximum-p.sum.Bytes {
		return fail("too_large", text(shown)+": the directory has more than max_bytes")
	}
	header := headerOf(e.path, tar.TypeReg, &st)
	header.Size = st.Size
	if err := p.tar.WriteHeader(header); err != nil {
		return err
	}
	p.sum.Bytes += st.Size
	return p.content(fd, shown, st.Size)
}

// content sends what the header has announced: a file that grows is cut there, one that shrinks ends the stream.
func (p *packer) content(fd int, shown string, left int64) error {
	for left > 0 {
		n, err := readSome(fd, p.buffer[:min(int64(len(p.buffer)), left)])
		if err != nil {
			return at(shown, err)
		}
		if n == 0 {
			return fail("busy", text(shown)+": it became shorter while it was read")
		}
		if _, err := p.tar.Write(p.buffer[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

func headerOf(name string, kind byte, st *syscall.Stat_t) *tar.Header {
	return &tar.Header{
		Typeflag: kind, Name: name, Mode: int64(st.Mode & maxMode), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(max(st.Mtim.Sec, 0), 0),
	}
}

// frameWriter collects bytes into DATA frames of filePiece.
type frameWriter struct {
	ch     *channel
	pooled *[]byte
	used   int
}

func (f *frameWriter) Write(b []byte) (int, error) {
	written := len(b)
	for len(b) > 0 {
		if f.pooled == nil {
			f.pooled, f.used = fileBuffers.Get().(*[]byte), headerSize
		}
		n := copy((*f.pooled)[f.used:], b)
		f.used += n
		b = b[n:]
		if f.used == len(*f.pooled) {
			if err := f.flush(); err != nil {
				return 0, err
			}
		}
	}
	return written, nil
}

func (f *frameWriter) flush() error {
	if f.pooled == nil || f.used == headerSize {
		return nil
	}
	err := f.ch.send(kindData, (*f.pooled)[:f.used])
	f.used = headerSize
	return err
}

func (f *frameWriter) release() {
	if f.pooled != nil {
		fileBuffers.Put(f.pooled)
		f.pooled = nil
	}
}

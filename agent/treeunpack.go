package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"strings"
	"syscall"
)

// maxMembers bounds an archive's entries, which cost no bytes of their own on most file systems' quotas.
const maxMembers = 1_000_000

type unpackCall struct {
	Owner    string `json:"owner"`
	Group    string `json:"owner_group"`
	Owners   bool   `json:"owners"`   // those of the archive
	Special  bool   `json:"special"`  // setuid, setgid and sticky bits too
	AnyLinks bool   `json:"any_link"` // symbolic links that lead out of the directory too
	MaxBytes int64  `json:"max_bytes"`
}

type unpackResult struct {
	Entries int64 `json:"entries"`
	Bytes   int64 `json:"bytes"`
}

// unpacker puts a tar stream's members below one directory. A member is a stranger's word: none may name, or reach
// through a link, anything outside. What is no file, directory or link is refused, and so is all that follows it.
type unpacker struct {
	ch     *channel
	own    *unpackCall
	place  *place
	buffer []byte
	sum    unpackResult
}

func (a *agent) unpack(ch *channel, in *call) (any, error) {
	own, err := fields[unpackCall](in)
	if err != nil {
		return nil, err
	}
	if err := checkPath(in.Path); err != nil {
		return nil, err
	}
	who, err := namedOwner(own.Owner, own.Group, owner{or(in.UID, -1), or(in.GID, -1)})
	if err != nil {
		return nil, err
	}
	top, err := openTop(in.Path, who)
	if err != nil {
		return nil, err
	}
	pooled := fileBuffers.Get().(*[]byte)
	defer fileBuffers.Put(pooled)
	u := &unpacker{ch: ch, own: own, place: &place{top: top, parent: -1, owner: who}, buffer: (*pooled)[:filePiece]}
	defer u.place.close()
	source := &channelReader{ch: ch}
	defer source.release()
	if err := u.members(source); err != nil {
		return nil, archiveError(err)
	}
	// What follows the archive's end is padding; taken, so that the sender gets to see the answer.
	if _, err := io.CopyBuffer(onlyWriter{io.Discard}, source, u.buffer); err != nil {
		return nil, err
	}
	return u.sum, nil
}

// openTop opens the directory that the archive goes into, made if it is missing. The caller named it: links in it are
// followed, as everywhere.
func openTop(path string, who owner) (int, error) {
	if err := makeParents(trimSlash(path), who); err != nil {
		return -1, err
	}
	top, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	return top, at(path, err)
}

func (u *unpacker) members(source io.Reader) error {
	buffered := bufio.NewReaderSize(source, 64<<10)
	start, err := buffered.Peek(6)
	if len(start) == 0 {
		if err == nil || errors.Is(err, io.EOF) {
			return fail("invalid", "the archive is empty")
		}
		return err
	}
	plain := io.Reader(buffered)
	switch {
	case bytes.HasPrefix(start, []byte{0x1f, 0x8b}):
		unzipped, err := gzip.NewReader(buffered)
		if err != nil {
			return err
		}
		defer unzipped.Close()
		plain = unzipped
	case bytes.HasPrefix(start, []byte{0x28, 0xb5, 0x2f, 0xfd}), bytes.HasPrefix(start, []byte("BZh")), bytes.HasPrefix(start, []byte{0xfd, '7', 'z', 'X', 'Z'}), bytes.HasPrefix(start, []byte("PK")):
		return fail("unsupported", "the archive must be a tar, packed by gzip or not at all")
	}
	archive := tar.NewReader(plain)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = u.member(header, archive)
		}
		if err != nil {
			return err
		}
	}
}

func (u *unpacker) member(header *tar.Header, content io.Reader) error {
	if u.ch.isCanceled() {
		return errCanceled
	}
	if header.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	path, err := memberPath(header.Name)
	if err != nil {
		return err
	}
	if u.sum.Entries++; u.sum.Entries > maxMembers {
		return fail("limit", "the archive has more than 1000000 entries")
	}
	if isSparse(header) {
		return fail("unsupported", text(path)+": sparse members are not taken; pack it without --sparse")
	}
	if path == "" {
		if header.Typeflag == tar.TypeDir {
			return nil // the directory itself, which the caller made or left to us
		}
		return fail("invalid", "a member of the archive has no name")
	}
	if err := u.put(header, path, content); err != nil {
		return at(path, err)
	}
	return nil
}

// isSparse: such a member's size is a claim without bytes behind it, up to 8 EiB.
func isSparse(header *tar.Header) bool {
	if header.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range header.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// memberPath is a member's path below the target, "" for the target itself.
func memberPath(name string) (string, error) {
	shown := text(name)
	if len(shown) > 200 {
		shown = text(shown[:200]) + "…"
	}
	switch {
	case strings.HasPrefix(name, "/"):
		return "", fail("invalid", shown+": a member of the archive has an absolute path")
	case strings.ContainsRune(name, 0):
		return "", fail("invalid", shown+": a member of the archive has a NUL in its name")
	case len(name) > maxPath:
		return "", fail("invalid", shown+": a member's path is longer than 4096 bytes")
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			return "", fail("invalid", shown+": a member of the archive has `..` in its path")
		default:
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, "/"), nil
}

// staysInside tells whether a symbolic link at path, below the target, leads to something below it. `..` only counts
// at the beginning, where the directories are known to be real: after a name it would depend on what that name is.
func staysInside(path, target string) bool {
	if strings.HasPrefix(target, "/") {
		return false
	}
	depth, atStart := strings.Count(path, "/"), true
	for part := range strings.SplitSeq(target, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; depth < 0 || !atStart {
				return false
			}
		default:
			atStart = false
		}
	}
	return true
}

func (u *unpacker) put(header *tar.Header, path string, content io.Reader) error {
	dir, name, err := u.place.reach(path)
	if err != nil {
		return err
	}
	switch header.Typeflag {
	case tar.TypeReg, '\x00', tar.TypeCont:
		return u.file(header, dir, name, content)
	case tar.TypeDir:
		return u.directory(header, dir, name)
	case tar.TypeSymlink:
		if !u.own.AnyLinks && !staysInside(path, header.Linkname) {
			return fail("invalid", text(path)+": a link that leads out of the directory")
		}
		return u.replace(header, dir, name, func(temporary string) error { return symlinkAt(header.Linkname, dir, temporary) })
	case tar.TypeLink:
		return u.hardLink(header, dir, name)
	default:
		return fail("invalid", text(path)+": neither a file, a directory nor a link")
	}
}

func (u *unpacker) file(header *tar.Header, dir int, name string, content io.Reader) error {
	if header.Size < 0 || (u.own.MaxBytes > 0 && header.Size > u.own.MaxBytes-u.sum.Bytes) {
		return fail("too_large", "the archive has more than max_bytes")
	}
	return u.replace(header, dir, name, func(temporary string) error {
		fd, err := syscall.Openat(dir, temporary, openNew, 0o600)
		if err != nil {
			return err
		}
		defer syscall.Close(fd)
		written, err := io.CopyBuffer(onlyWriter{fdWriter(fd)}, onlyReader{content}, u.buffer)
		u.sum.Bytes += written
		if err != nil {
			return err
		}
		if err := u.chown(header, fd); err != nil {
			return err
		}
		return syscall.Fchmod(fd, u.mode(header))
	})
}

// replace makes something under a temporary name and puts it in its place with one rename, so that nothing is written
// through what was there: not a link, not a file that has another name elsewhere.
func (u *unpacker) replace(header *tar.Header, dir int, name string, create func(temporary string) error) error {
	temporary := beside(name)
	err := create(temporary)
	if err == nil && header.Typeflag == tar.TypeSymlink {
		err = u.chownLink(header, dir, temporary)
	}
	if err == nil && header.Typeflag != tar.TypeLink {
		err = setTimeAt(dir, temporary, header.ModTime)
	}
	if err == nil {
		err = syscall.Renameat(dir, temporary, dir, name)
	}
	if err != nil || header.Typeflag == tar.TypeLink {
		_ = unlinkat(dir, temporary, 0) // rename(2) of two names of one file does nothing and leaves both
	}
	return err
}

func (u *unpacker) directory(header *tar.Header, dir int, name string) error {
	err := syscall.Mkdirat(dir, name, 0o755)
	if err != nil && !errors.Is(err, syscall.EEXIST) {
		return err
	}
	fd, err := openDirectoryAt(dir, name)
	if err != nil {
		return notThrough(err)
	}
	defer syscall.Close(fd)
	if err := u.chown(header, fd); err != nil {
		return err
	}
	return syscall.Fchmod(fd, u.mode(header))
}

// hardLink gives a file of the target another name. Its own path is walked as every other, without links.
func (u *unpacker) hardLink(header *tar.Header, dir int, name string) error {
	target, err := memberPath(header.Linkname)
	if err != nil {
		return err
	}
	if target == "" {
		return fail("invalid", "a hard link to no file")
	}
	// A place of its own: `dir` belongs to the first one's memory of its last directory.
	other := &place{top: u.place.top, parent: -1, owner: u.place.owner, mustExist: true}
	defer other.forget()
	from, base, err := other.reach(target)
	if err != nil {
		return err
	}
	var st syscall.Stat_t
	if err := statAt(from, base, &st); err != nil {
		return err
	}
	if err := regular(target, st.Mode); err != nil {
		return err
	}
	return u.replace(header, dir, name, func(temporary string) error { return linkAt(from, base, dir, temporary) })
}

func (u *unpacker) mode(header *tar.Header) uint32 {
	mode := uint32(header.Mode) & maxMode
	if !u.own.Special {
		mode &= 0o777
	}
	return mode
}

func (u *unpacker) ownerOf(header *tar.Header) (owner, error) {
	if !u.own.Owners {
		return u.place.owner, nil
	}
	if header.Uid < 0 || header.Gid < 0 || int64(header.Uid) >= 1<<32-1 || int64(header.Gid) >= 1<<32-1 {
		return owner{}, fail("invalid", "a member's owner is out of range")
	}
	return owner{int64(header.Uid), int64(header.Gid)}, nil
}

// chown goes by descriptor: at the name somebody may have put another file meanwhile.
func (u *unpacker) chown(header *tar.Header, fd int) error {
	who, err := u.ownerOf(header)
	if err != nil || !who.isSet() {
		return err
	}
	return syscall.Fchown(fd, int(who.uid), int(who.gid))
}

func (u *unpacker) chownLink(header *tar.Header, dir int, name string) error {
	who, err := u.ownerOf(header)
	if err != nil {
		return err
	}
	return chownAt(dir, name, who)
}

// place is a directory that is being filled. Paths in it are walked by descriptor, one name at a time, and a link on
// the way is an error: whoever swaps a directory for a link meanwhile gains nothing.
type place struct {
	top       int
	owner     owner
	mustExist bool
	path      string // the directory last reached, kept open: members come sorted by directory
	parent    int
}

// reach is the open directory of path and the last name in it. The directory is valid until the next call.
func (p *place) reach(path string) (dir int, name string, err error) {
	cut := strings.LastIndexByte(path, '/')
	if cut < 0 {
		return p.top, path, nil
	}
	if p.parent >= 0 && p.path == path[:cut] {
		return p.parent, path[cut+1:], nil
	}
	p.forget()
	dir = p.top
	for part := range strings.SplitSeq(path[:cut], "/") {
		next, err := p.step(dir, part)
		if dir != p.top {
			_ = syscall.Close(dir)
		}
		if err != nil {
			return -1, "", err
		}
		dir = next
	}
	p.path, p.parent = path[:cut], dir
	return dir, path[cut+1:], nil
}

func (p *place) step(dir int, name string) (int, error) {
	next, err := openDirectoryAt(dir, name)
	if !errors.Is(err, syscall.ENOENT) || p.mustExist {
		return next, notThrough(err)
	}
	if err := syscall.Mkdirat(dir, name, 0o755); err != nil && !errors.Is(err, syscall.EEXIST) {
		return -1, err
	}
	if err := chownAt(dir, name, p.owner); err != nil {
		return -1, err
	}
	next, err = openDirectoryAt(dir, name)
	return next, notThrough(err)
}

func (p *place) forget() {
	if p.parent >= 0 {
		_ = syscall.Close(p.parent)
	}
	p.path, p.parent = "", -1
}

func (p *place) close() {
	p.forget()
	_ = syscall.Close(p.top)
}

// notThrough words what openDirectoryAt says: what was a link is ENOTDIR, what became one ELOOP.
func notThrough(err error) error {
	if errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) {
		return fail("not_directory", "a member's path goes through a link or a file")
	}
	return err
}

// archiveError words what the readers of tar and gzip say; errors of the file system keep their kind.
func archiveError(err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fail("invalid", "the archive ends in the middle of a member")
	case errors.Is(err, tar.ErrHeader), errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum), errors.Is(err, tar.ErrFieldTooLong):
		return fail("invalid", "this is no tar archive, or a damaged one")
	}
	var f failure
	var errno syscall.Errno
	if errors.As(err, &f) || errors.As(err, &errno) {
		return err
	}
	return fail("invalid", "the archive is damaged: "+err.Error()) // compress/flate has types of its own
}

// channelReader is the host's DATA as a reader.
type channelReader struct {
	ch    *channel
	piece piece
	rest  []byte
}

func (r *channelReader) Read(b []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.piece.release != nil {
			n := len(r.piece.bytes)
			r.release()
			r.ch.spent(n)
		}
		next, err := r.ch.next()
		if err != nil {
			return 0, err
		}
		r.piece, r.rest = next, next.bytes
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *channelReader) release() {
	if r.piece.release != nil {
		r.piece.release()
	}
	r.piece, r.rest = piece{}, nil
}

// fdWriter writes to a descriptor that somebody else closes.
type fdWriter int

func (fd fdWriter) Write(b []byte) (int, error) {
	if err := writeAll(int(fd), b, -1); err != nil {
		return 0, err
	}
	return len(b), nil
}

// onlyReader and onlyWriter hide shortcuts of io.Copy that would take buffers of their own.
type onlyReader struct{ io.Reader }

type onlyWriter struct{ io.Writer }

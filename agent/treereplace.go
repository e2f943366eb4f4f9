package main

import (
	"bytes"
	"errors"
	"syscall"
)

const (
	maxReplaceBytes = 16 << 20 // a file to be rewritten is held whole, once as it is and once as it will be
	maxResultBytes  = 48 << 20
	maxOnLine       = 1 << 16 // matches on one line
	maxReplacement  = 1 << 20
	maxRewritten    = 10_000 // files in one call
)

type replaceCall struct {
	searchCall
	Replacement string `json:"replacement"`
	DryRun      bool   `json:"dry_run"`
}

type replaced struct {
	Path         string `json:"path"`
	Replacements int64  `json:"replacements"`
}

type replaceResult struct {
	Files        int64   `json:"files"`
	Replacements int64   `json:"replacements"`
	Searched     int64   `json:"searched"`
	Binary       int64   `json:"binary"`
	TooLarge     int64   `json:"too_large"`
	Unreadable   int64   `json:"unreadable"`
	Stopped      *string `json:"stopped"`
}

// replacer rewrites files one after the other, each by a rename: readers see the old file or the new one.
type replacer struct {
	w           *walker
	literal     []byte // set: looked for as it is, across lines
	pattern     *pattern
	replacement []byte
	isTemplate  bool // `$1` and `${name}` mean groups
	dryRun      bool
	fileBytes   int64
	limit       int64
	isTree      bool
	done        map[inode]struct{}
	out         *lines
	sum         replaceResult
}

var errTooLargeFile = fail("too_large", "the file, one of its lines or the result is too large to be rewritten")

func (a *agent) replace(ch *channel, in *call) (any, error) {
	own, err := fields[replaceCall](in)
	if err != nil {
		return nil, err
	}
	w, wanted, err := newWalker(ch, in.Path, &own.walkCall)
	if err != nil {
		return nil, err
	}
	r, err := newReplacer(w, own, or(in.Limit, maxRewritten))
	if err != nil {
		return nil, err
	}
	w.poll = r.out.poll
	w.visit = func(e *entry) error {
		if e.path == "" {
			if err := regular(w.root, e.st.Mode); err != nil {
				return err
			}
			return r.visit(e)
		}
		r.isTree = true
		if kindOfMode(e.st.Mode) != "file" || !isWanted(wanted, e) {
			return nil
		}
		return r.visit(e)
	}
	if err := w.run(); err != nil {
		return nil, err
	}
	r.sum.Unreadable, r.sum.Stopped = w.unreadable, w.reason()
	return r.sum, r.out.flush()
}

func newReplacer(w *walker, own *replaceCall, limit int64) (*replacer, error) {
	r := &replacer{
		w: w, replacement: []byte(own.Replacement), isTemplate: !own.Literal, dryRun: own.DryRun, fileBytes: own.FileBytes,
		limit: limit, done: map[inode]struct{}{}, out: newLines(w.ch),
	}
	if r.fileBytes == 0 {
		r.fileBytes = defaultFileBytes
	}
	if r.fileBytes < 0 || r.fileBytes > maxReplaceBytes || limit < 1 || limit > maxRewritten {
		return nil, fail("invalid", "max_file_bytes or limit is out of range")
	}
	if len(own.Replacement) > maxReplacement {
		return nil, fail("too_large", "the replacement is longer than 1 MiB")
	}
	if own.Literal && !own.IgnoreCase {
		if own.Pattern == "" || len(own.Pattern) > maxReplacement {
			return nil, fail("invalid", "the pattern has 1 byte to 1 MiB")
		}
		r.literal = []byte(own.Pattern)
		return r, nil
	}
	var err error
	r.pattern, err = compilePattern(own.Pattern, own.Literal, own.IgnoreCase)
	return r, err
}

// visit rewrites one file. What goes wrong with one of many is counted; alone, or when the disk is full, it is told.
func (r *replacer) visit(e *entry) error {
	err := r.file(e)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errTooLargeFile) && r.isTree:
		r.sum.TooLarge++
		return nil
	case errors.Is(err, errStop), errors.Is(err, errCanceled), !r.isTree, asFailure(err).Kind == "no_space":
		return err
	default:
		return r.w.unread(err)
	}
}

func (r *replacer) file(e *entry) error {
	if err := r.w.check(); err != nil {
		return err
	}
	shown := r.w.shown(e.path)
	var st syscall.Stat_t
	fd, err := openAt(e.dir, e.name, shown, &st)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	if _, twice := r.done[inodeOf(&st)]; twice {
		return nil // ours: a large directory may show a rewritten file again
	}
	content, ok, err := readWhole(fd, st.Size, r.fileBytes)
	if err != nil {
		return at(shown, err)
	}
	if !ok {
		return errTooLargeFile
	}
	if bytes.IndexByte(content[:min(len(content), sniffBytes)], 0) >= 0 {
		r.sum.Binary++
		return nil
	}
	r.sum.Searched++
	result, count, err := r.rewritten(content)
	if err != nil || count == 0 {
		return err
	}
	if r.sum.Files >= r.limit {
		return r.w.stop("limit")
	}
	if !r.dryRun {
		if err := r.put(e, &st, result); err != nil {
			return at(shown, err)
		}
	}
	r.sum.Files++
	r.sum.Replacements += count
	return r.out.add(replaced{text(shown), count})
}

// put replaces the file with one that has its owner and mode, unless it has changed since it was read.
func (r *replacer) put(e *entry, st *syscall.Stat_t, content []byte) error {
	temporary := beside(e.name)
	fd, err := syscall.Openat(e.dir, temporary, openNew, 0o600)
	if err != nil {
		return err
	}
	err = writeAll(fd, content, -1)
	if err == nil && (int(st.Uid) != syscall.Geteuid() || int(st.Gid) != syscall.Getegid()) {
		err = syscall.Fchown(fd, int(st.Uid), int(st.Gid))
	}
	if err == nil {
		err = syscall.Fchmod(fd, st.Mode&maxMode)
	}
	var made, now syscall.Stat_t
	if err == nil {
		err = syscall.Fstat(fd, &made)
	}
	_ = syscall.Close(fd)
	if err == nil {
		if err = statAt(e.dir, e.name, &now); err == nil && (inodeOf(&now) != inodeOf(st) || now.Mtim != st.Mtim || now.Size != st.Size) {
			err = fail("busy", text(r.w.shown(e.path))+": it was changed by somebody else meanwhile")
		}
	}
	if err == nil {
		err = syscall.Renameat(e.dir, temporary, e.dir, e.name)
	}
	if err != nil {
		_ = unlinkat(e.dir, temporary, 0)
		return err
	}
	r.done[inodeOf(&made)] = struct{}{}
	return nil
}

func (r *replacer) rewritten(content []byte) (result []byte, count int64, err error) {
	if r.literal != nil {
		count = int64(bytes.Count(content, r.literal))
		if count == 0 {
			return nil, 0, nil
		}
		if int64(len(content))+count*int64(len(r.replacement)-len(r.literal)) > maxResultBytes {
			return nil, 0, errTooLargeFile
		}
		return bytes.ReplaceAll(content, r.literal, r.replacement), count, nil
	}
	return r.byLine(content)
}

// byLine rewrites line by line, which bounds both what one search may cost and what one look at a cancel waits for.
func (r *replacer) byLine(content []byte) (result []byte, count int64, err error) {
	taken := 0 // content[:taken] is in result
	for pos := 0; pos < len(content); {
		if err := r.w.check(); err != nil {
			return nil, 0, err
		}
		start, ok := r.candidate(content, pos)
		if !ok {
			pos = start
			continue
		}
		end := len(content)
		if n := bytes.IndexByte(content[start:], '\n'); n >= 0 {
			end = start + n
		}
		if end-start > 4*r.pattern.piece {
			return nil, 0, errTooLargeFile
		}
		line, n, err := r.oneLine(content[start:end])
		if err != nil {
			return nil, 0, err
		}
		if n > 0 {
			result = append(append(result, content[taken:start]...), line...)
			taken, count = end, count+n
		}
		if len(result) > maxResultBytes {
			return nil, 0, errTooLargeFile
		}
		pos = end + 1
	}
	return append(result, content[taken:]...), count, nil
}

// candidate is where the first line at or after pos begins that may match, within the next piece; if that has none,
// where to go on.
func (r *replacer) candidate(content []byte, pos int) (start int, ok bool) {
	if r.pattern.block == nil {
		return pos, true
	}
	end := min(pos+r.pattern.piece, len(content))
	if end < len(content) {
		if n := bytes.LastIndexByte(content[pos:end], '\n'); n >= 0 {
			end = pos + n + 1
		} else {
			return pos, true // a long line: looked at by itself
		}
	}
	found := r.pattern.block.FindIndex(content[pos:end])
	if found == nil {
		return end, false
	}
	return pos + bytes.LastIndexByte(content[pos:pos+found[0]], '\n') + 1, true
}

func (r *replacer) oneLine(line []byte) (result []byte, count int64, err error) {
	// The end of a line is not part of it, whichever it has.
	body := bytes.TrimSuffix(line, []byte{'\r'})
	all := r.pattern.line.FindAllSubmatchIndex(body, maxOnLine+1)
	if len(all) > maxOnLine {
		return nil, 0, errTooLargeFile
	}
	taken := 0
	for _, found := range all {
		result = append(result, body[taken:found[0]]...)
		if r.isTemplate {
			result = r.pattern.line.Expand(result, r.replacement, body, found)
		} else {
			result = append(result, r.replacement...)
		}
		if taken = found[1]; len(result) > maxResultBytes {
			return nil, 0, errTooLargeFile
		}
		count++
	}
	return append(result, line[taken:]...), count, nil
}

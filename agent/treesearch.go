package main

import (
	"bytes"
	"io"
	"syscall"
	"unicode/utf8"
)

const (
	defaultFileBytes = 10 << 20
	maxFileBytes     = 1 << 30
	defaultLineBytes = 500
	maxLineBytes     = 4096
	sniffBytes       = 8000 // a NUL in so many first bytes makes a file binary, as git has it
)

type searchCall struct {
	walkCall
	Pattern    string `json:"pattern"`
	Literal    bool   `json:"literal"`
	IgnoreCase bool   `json:"ignore_case"`
	FileBytes  int64  `json:"max_file_bytes"`
	LineBytes  int    `json:"max_line_bytes"`
}

// match is one line that matches: its first match, by bytes. `text` is the line, or the part of it around the match.
type match struct {
	Path   string `json:"path"`
	Line   int64  `json:"line"`
	Column int64  `json:"column"`
	Length int    `json:"length"`
	Text   string `json:"text"`
	Cut    bool   `json:"cut"`
}

type searchResult struct {
	Matches    int64   `json:"matches"`
	Files      int64   `json:"files"`
	Binary     int64   `json:"binary"`
	TooLarge   int64   `json:"too_large"`
	Unreadable int64   `json:"unreadable"`
	Stopped    *string `json:"stopped"`
}

// searcher looks through files piece by piece: memory is one buffer, whatever the files are.
type searcher struct {
	w         *walker
	pattern   *pattern
	fileBytes int64
	lineBytes int
	limit     int64
	out       *lines
	sum       searchResult

	// Of the file at hand.
	path   string
	line   int64
	column int64 // bytes of this line that came with earlier pieces
}

func (a *agent) search(ch *channel, in *call) (any, error) {
	own, err := fields[searchCall](in)
	if err != nil {
		return nil, err
	}
	w, wanted, err := newWalker(ch, in.Path, &own.walkCall)
	if err != nil {
		return nil, err
	}
	p, err := compilePattern(own.Pattern, own.Literal, own.IgnoreCase)
	if err != nil {
		return nil, err
	}
	s := &searcher{w: w, pattern: p, fileBytes: own.FileBytes, lineBytes: own.LineBytes, limit: or(in.Limit, 0), out: newLines(ch)}
	if s.fileBytes == 0 {
		s.fileBytes = defaultFileBytes
	}
	if s.lineBytes == 0 {
		s.lineBytes = defaultLineBytes
	}
	if s.fileBytes < 0 || s.fileBytes > maxFileBytes || s.lineBytes < 0 || s.lineBytes > maxLineBytes {
		return nil, fail("invalid", "max_file_bytes or max_line_bytes is out of range")
	}
	w.poll = s.out.poll
	w.visit = func(e *entry) error {
		if kindOfMode(e.st.Mode) != "file" || !isWanted(wanted, e) {
			if e.path == "" {
				return regular(w.root, e.st.Mode)
			}
			return nil
		}
		return s.visit(e)
	}
	if err := w.run(); err != nil {
		return nil, err
	}
	s.sum.Unreadable, s.sum.Stopped = w.unreadable, w.reason()
	return s.sum, s.out.flush()
}

func (s *searcher) visit(e *entry) error {
	shown := s.w.shown(e.path)
	var st syscall.Stat_t
	fd, err := openAt(e.dir, e.name, shown, &st)
	if err != nil {
		return s.w.unread(err)
	}
	defer syscall.Close(fd)
	if st.Size > s.fileBytes {
		s.sum.TooLarge++
		return nil
	}
	s.path, s.line, s.column = text(shown), 1, 0
	return s.file(fd)
}

// file reads to the end, or as far as a file may be large: one of /proc can be endless.
func (s *searcher) file(fd int) error {
	pooled := fileBuffers.Get().(*[]byte)
	defer fileBuffers.Put(pooled)
	buffer := (*pooled)[:s.pattern.piece]
	held, total := 0, int64(0)
	for first := true; ; first = false {
		if err := s.w.check(); err != nil {
			return err
		}
		n, err := readSome(fd, buffer[held:])
		if err != nil {
			return s.w.unread(err)
		}
		if first {
			if bytes.IndexByte(buffer[:min(n, sniffBytes)], 0) >= 0 {
				s.sum.Binary++
				return nil
			}
			s.sum.Files++
		}
		held += n
		total += int64(n)
		isLast := n == 0 || total > s.fileBytes
		end := bytes.LastIndexByte(buffer[:held], '\n') + 1
		if isLast || (end == 0 && held == len(buffer)) {
			end = held // the rest, or a piece of a line that is longer than the buffer
		}
		if err := s.block(buffer[:end]); err != nil || isLast {
			return err
		}
		held = copy(buffer, buffer[end:held])
	}
}

// block reports the lines of b that match; b ends with a line, a file, or in the middle of an over-long line.
func (s *searcher) block(b []byte) error {
	for len(b) > 0 {
		start := 0
		if s.pattern.block != nil {
			// Any match within one line is also a match here, and none begins before the first one. `^` and `$` are of
			// lines in both, so this skips what cannot match at the speed of one search.
			found := s.pattern.block.FindIndex(b)
			if found == nil {
				s.pass(b)
				return nil
			}
			start = bytes.LastIndexByte(b[:found[0]], '\n') + 1
			s.pass(b[:start])
			b = b[start:]
		}
		line, rest := b, []byte(nil)
		if end := bytes.IndexByte(b, '\n'); end >= 0 {
			line, rest = b[:end], b[end+1:]
		}
		line = bytes.TrimSuffix(line, []byte{'\r'})
		if found := s.pattern.line.FindIndex(line); found != nil {
			if err := s.report(line, found); err != nil {
				return err
			}
		}
		s.pass(b[:len(b)-len(rest)])
		b = rest
	}
	return nil
}

// pass counts lines and columns of what is done with.
func (s *searcher) pass(b []byte) {
	if count := bytes.Count(b, []byte{'\n'}); count > 0 {
		s.line += int64(count)
		s.column = int64(len(b) - bytes.LastIndexByte(b, '\n') - 1)
		return
	}
	s.column += int64(len(b))
}

func (s *searcher) report(line []byte, found []int) error {
	if s.limit > 0 && s.sum.Matches >= s.limit {
		return s.w.stop("limit")
	}
	s.sum.Matches++
	shown := around(line, found, s.lineBytes)
	return s.out.add(match{
		Path: s.path, Line: s.line, Column: s.column + int64(found[0]) + 1, Length: found[1] - found[0],
		Text: text(string(shown)), Cut: len(shown) < len(line),
	})
}

// around is the line, or `limit` bytes of it with the match a quarter into them, cut between characters.
func around(line []byte, found []int, limit int) []byte {
	if len(line) <= limit {
		return line
	}
	start := max(min(found[0]-limit/4, len(line)-limit), 0)
	end := min(start+limit, len(line))
	for i := 0; i < utf8.UTFMax && start < end && start > 0 && !utf8.RuneStart(line[start]); i++ {
		start++
	}
	for i := 0; i < utf8.UTFMax && end < len(line) && end > start && !utf8.RuneStart(line[end]); i++ {
		end--
	}
	return line[start:end]
}

// readWhole reads a file of at most limit bytes; ok is false for a larger one.
func readWhole(fd int, size, limit int64) (content []byte, ok bool, err error) {
	if size > limit {
		return nil, false, nil
	}
	file := fdReader(fd)
	var b bytes.Buffer
	b.Grow(int(size) + 512)
	_, err = b.ReadFrom(io.LimitReader(file, limit+1))
	return b.Bytes(), int64(b.Len()) <= limit, err
}

// fdReader reads a descriptor that somebody else closes.
type fdReader int

func (fd fdReader) Read(b []byte) (int, error) {
	n, err := readSome(int(fd), b)
	if n == 0 && err == nil && len(b) > 0 {
		err = io.EOF
	}
	return n, err
}

package main

import (
	"strings"
	"unicode/utf8"
)

const (
	maxGlobs        = 64
	maxGlobBytes    = 1024
	maxAlternatives = 64
)

// A glob is matched against the path of an entry below the root of a walk. Without a slash it is matched against the
// name alone, at any depth. `*` and `?` stop at a slash, `**` does not, `[a-z]` and `[!a-z]` are one character,
// `{a,b}` is either, `\` takes the next character as it is. Matching costs at most pattern times path, never more.
type glob struct {
	segments []string // nil: matches `name`
	name     string
}

// parseGlobs reads patterns, each into as many globs as its braces have alternatives.
func parseGlobs(patterns []string) ([]glob, error) {
	if len(patterns) > maxGlobs {
		return nil, fail("invalid", "there are more than 64 patterns")
	}
	var all []glob
	for _, pattern := range patterns {
		if pattern == "" || len(pattern) > maxGlobBytes || strings.ContainsRune(pattern, 0) {
			return nil, fail("invalid", "a pattern has 1 to 1024 bytes and no NUL")
		}
		expanded := expandBraces(pattern, nil)
		if len(expanded) > maxAlternatives {
			return nil, fail("invalid", "a pattern has more than 64 alternatives")
		}
		for _, one := range expanded {
			all = append(all, parseGlob(one))
		}
	}
	return all, nil
}

func parseGlob(pattern string) glob {
	pattern = strings.TrimSuffix(pattern, "/")
	if !strings.Contains(pattern, "/") {
		return glob{name: pattern}
	}
	var segments []string
	for segment := range strings.SplitSeq(strings.TrimPrefix(pattern, "/"), "/") {
		last := len(segments) - 1
		if segment == "." || (segment == "**" && last >= 0 && segments[last] == "**") {
			continue
		}
		segments = append(segments, segment)
	}
	if last := len(segments) - 1; last >= 0 && segments[last] == "**" {
		segments = append(segments, "*") // `a/**` is what is in a, not a itself
	}
	return glob{segments: segments}
}

// expandBraces resolves the innermost `{a,b}` first; it stops soon after there are too many.
func expandBraces(pattern string, found []string) []string {
	if len(found) > maxAlternatives {
		return found
	}
	open, end := innermostBraces(pattern)
	if end < 0 {
		return append(found, strings.NewReplacer("\x01", "{", "\x02", "}").Replace(pattern))
	}
	inside := pattern[open+1 : end]
	if !strings.Contains(inside, ",") { // `{x}` is itself, as in a shell
		return expandBraces(pattern[:open]+"\x01"+inside+"\x02"+pattern[end+1:], found)
	}
	for alternative := range strings.SplitSeq(inside, ",") {
		found = expandBraces(pattern[:open]+alternative+pattern[end+1:], found)
	}
	return found
}

func innermostBraces(pattern string) (open, end int) {
	open = -1
	for i := 0; i < len(pattern); i++ {
		switch pattern[i] {
		case '\\':
			i++
		case '{':
			open = i
		case '}':
			if open >= 0 {
				return open, i
			}
		}
	}
	return -1, -1
}

func (g glob) matches(path string) bool {
	if g.segments == nil {
		return matchName(g.name, path[strings.LastIndexByte(path, '/')+1:])
	}
	return matchSegments(g.segments, strings.Split(path, "/"))
}

func anyMatches(globs []glob, path string) bool {
	for _, g := range globs {
		if g.matches(path) {
			return true
		}
	}
	return false
}

// matchSegments goes back to the last `**` only: an earlier one need never take more than it did.
func matchSegments(pattern, parts []string) bool {
	p, s, star, from := 0, 0, -1, 0
	for s < len(parts) {
		switch {
		case p < len(pattern) && pattern[p] == "**":
			star, from = p, s
			p++
		case p < len(pattern) && matchName(pattern[p], parts[s]):
			p++
			s++
		case star >= 0:
			from++
			p, s = star+1, from
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == "**" {
		p++
	}
	return p == len(pattern)
}

func matchName(pattern, name string) bool {
	p, s, star, from := 0, 0, -1, 0
	for s < len(name) {
		if p < len(pattern) && pattern[p] == '*' {
			star, from = p, s
			p++
			continue
		}
		r, width := utf8.DecodeRuneInString(name[s:])
		if used, ok := matchOne(pattern[p:], r); ok {
			p += used
			s += width
			continue
		}
		if star < 0 {
			return false
		}
		_, width = utf8.DecodeRuneInString(name[from:])
		from += width
		p, s = star+1, from
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// matchOne matches one character against the first element of pattern, which is no `*`; used is the element's length.
func matchOne(pattern string, r rune) (used int, ok bool) {
	if pattern == "" {
		return 0, false
	}
	switch pattern[0] {
	case '?':
		return 1, true
	case '[':
		if used, ok, isClass := matchClass(pattern, r); isClass {
			return used, ok
		}
	case '\\':
		if len(pattern) > 1 {
			want, width := utf8.DecodeRuneInString(pattern[1:])
			return 1 + width, want == r
		}
	}
	want, width := utf8.DecodeRuneInString(pattern)
	return width, want == r
}

// matchClass reads `[…]`; one that is not closed is no class, and its bracket stands for itself.
func matchClass(pattern string, r rune) (used int, ok, isClass bool) {
	i := 1
	negated := i < len(pattern) && (pattern[i] == '!' || pattern[i] == '^')
	if negated {
		i++
	}
	for first := true; i < len(pattern); first = false {
		if pattern[i] == ']' && !first {
			return i + 1, ok != negated, true
		}
		low, width := classRune(pattern[i:])
		i += width
		high := low
		if i+1 < len(pattern) && pattern[i] == '-' && pattern[i+1] != ']' {
			high, width = classRune(pattern[i+1:])
			i += 1 + width
		}
		ok = ok || (low <= r && r <= high)
	}
	return 0, false, false
}

func classRune(s string) (rune, int) {
	if s[0] == '\\' && len(s) > 1 {
		r, width := utf8.DecodeRuneInString(s[1:])
		return r, 1 + width
	}
	return utf8.DecodeRuneInString(s)
}

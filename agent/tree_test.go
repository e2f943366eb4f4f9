package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

func globMatches(t *testing.T, pattern, path string) bool {
	t.Helper()
	globs, err := parseGlobs([]string{pattern})
	if err != nil {
		t.Fatal(pattern, err)
	}
	return anyMatches(globs, path)
}

func TestAGlobMatchesAsItsRowSays(t *testing.T) {
	for _, row := range []struct {
		pattern, path string
		want          bool
	}{
		{"*.go", "a/b/c.go", true}, {"*.go", "c.gone", false}, {"a/*.go", "a/b.go", true}, {"a/*.go", "a/b/c.go", false},
		{"a/**/c", "a/c", true}, {"a/**/c", "a/x/y/c", true}, {"a/**", "a", false}, {"a/**", "a/b/c", true}, {"**/c", "c", true},
		{"**/a/**/b", "x/a/y/a/b", true}, {"/a", "b/a", false}, {"/a", "a", true}, {"a/", "x/a", true},
		{"?", "é", true}, {"?", "éé", false}, {"[a-c]x", "bx", true}, {"[!a-c]x", "bx", false}, {"[]]", "]", true}, {"[", "[", true},
		{"[a-", "[a-", true}, {`\*`, "*", true}, {`\*`, "x", false}, {"*.{js,ts}", "a.ts", true}, {"*.{js,ts}", "a.go", false},
		{"{a,b{c,d}}", "bd", true}, {"{a}", "{a}", true}, {"{a", "{a", true}, {"a*b*c", "aXbYbZc", true}, {"a*b*c", "aXbYbZ", false},
		{"*", "", true}, {"**", "a/b", true}, {"x/[", "x/[", true}, {"[^a]", "b", true}, {"a.b", "aXb", false},
	} {
		if got := globMatches(t, row.pattern, row.path); got != row.want {
			t.Errorf("%q on %q: %v", row.pattern, row.path, got)
		}
	}
}

// TestGlobsAgreeWithRegularExpressions compares the matcher with a translation into package regexp, over random cases.
func TestGlobsAgreeWithRegularExpressions(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	pick := func(from []string, most int) string {
		var b strings.Builder
		for range 1 + random.Intn(most) {
			b.WriteString(from[random.Intn(len(from))])
		}
		return b.String()
	}
	parts := []string{"a", "b", "*", "?", "[ab]", "[!a]", "/", "/**/", "a/"}
	for range 20_000 {
		pattern := pick(parts, 6)
		path := strings.Trim(strings.ReplaceAll(pick([]string{"a", "b", "é", "/"}, 8), "//", "/"), "/")
		if path == "" || strings.Contains(path, "//") || strings.Contains(pattern, "//") || strings.HasSuffix(pattern, "/") || strings.HasPrefix(pattern, "/") || strings.Contains(strings.ReplaceAll(pattern, "/**/", "/-/"), "**") {
			continue
		}
		if want := regexp.MustCompile(asRegexp(pattern)).MatchString(path); globMatches(t, pattern, path) != want {
			t.Fatalf("%q on %q: not %v", pattern, path, want)
		}
	}
}

func asRegexp(pattern string) string {
	anyDepth := !strings.Contains(pattern, "/")
	replaced := strings.NewReplacer("/**/", "/(?:[^/]+/)*", "[ab]", "[ab]", "[!a]", "[^a/]", "*", "[^/]*", "?", "[^/]").Replace(pattern)
	if anyDepth {
		return "^(?:.*/)?" + replaced + "$"
	}
	return "^" + replaced + "$"
}

// processorTime is what this process has worked so far: what a bound of work is measured with, on a busy machine too.
func processorTime() time.Duration {
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func TestAHostileGlobCostsPatternTimesPath(t *testing.T) {
	before := processorTime()
	globs, _ := parseGlobs([]string{strings.Repeat("*a", 500), strings.Repeat("**/a/", 200) + "b"})
	anyMatches(globs, strings.Repeat("a", 4000)+"b")
	anyMatches(globs, strings.Repeat("a/", 2000)+"c")
	if took := processorTime() - before; took > 2*time.Second {
		t.Fatal(took)
	}
	for _, bad := range []string{"", strings.Repeat("x", 1025), "a\x00", strings.Repeat("{a,b}", 10)} {
		if _, err := parseGlobs([]string{bad}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// TestAMemberStaysInside tries random names and link targets beside what the kernel makes of them.
func TestAMemberStaysInside(t *testing.T) {
	random := rand.New(rand.NewSource(2))
	words := []string{"a", "b", "..", ".", "", "c"}
	for range 5000 {
		var parts []string
		for range 1 + random.Intn(6) {
			parts = append(parts, words[random.Intn(len(words))])
		}
		name := strings.Join(parts, "/")
		path, err := memberPath(name)
		if refused := strings.HasPrefix(name, "/") || strings.Contains("/"+name+"/", "/../"); refused != (err != nil) {
			t.Fatalf("%q: %v", name, err)
		}
		if err == nil && path != strings.TrimPrefix(filepath.Clean("/"+name), "/") {
			t.Fatalf("%q became %q", name, path)
		}
		if staysInside("d/e/f", name) {
			if landed := filepath.Clean("/top/d/e/" + name); landed != "/top" && !strings.HasPrefix(landed, "/top/") || strings.HasPrefix(name, "/") {
				t.Fatalf("%q leads to %q", name, landed)
			}
		}
	}
}

func TestAPatternIsBoundedBeforeItIsCompiled(t *testing.T) {
	for _, bad := range []string{"(", "a{1000}b{1001}", strings.Repeat("(a{30}){30}", 4), strings.Repeat("x", 1025), ""} {
		if _, err := compilePattern(bad, false, false); err == nil {
			t.Errorf("%.20q is taken", bad)
		}
	}
	// The worst that is taken, on the largest piece there is: what a cancel may have to wait for.
	p, err := compilePattern(`(?i)(a|b|ab){200}(x|[a-y]){150}z`, false, false)
	if err != nil {
		t.Fatal(err)
	}
	before := processorTime()
	p.line.Match(bytes.Repeat([]byte("ab"), p.piece/2))
	if took := processorTime() - before; took > 10*time.Second {
		t.Fatal(took)
	}
}

// A channel without a connection: for what never sends.
func silent() *channel { return newChannel(nil, 0) }

func searched(t *testing.T, content, expression string) []string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	p, err := compilePattern(expression, false, false)
	if err != nil {
		t.Fatal(err)
	}
	s := &searcher{w: &walker{ch: silent()}, pattern: p, fileBytes: 1 << 30, lineBytes: 100, out: newLines(silent()), line: 1}
	s.out.last = time.Now().Add(time.Hour)
	if err := s.file(int(file.Fd())); err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(s.out.frame[headerSize:]), "\n"), "\n")
}

func TestEveryLineThatMatchesIsFoundOnceWithItsNumber(t *testing.T) {
	random := rand.New(rand.NewSource(3))
	for _, expression := range []string{"x", "^x", "x$", `\Ax`, `\bx\b`, `[^a]x`, `\s+x`, "a*"} {
		var content strings.Builder
		var want []int
		re := regexp.MustCompile(expression)
		for number := 1; number <= 100; number++ {
			line := strings.Repeat([]string{"a", "x", " ", "ax x"}[random.Intn(4)], random.Intn(4))
			if re.MatchString(line) {
				want = append(want, number)
			}
			content.WriteString(line + "\n")
		}
		found := searched(t, content.String(), expression)
		if len(want) == 0 && len(found) == 1 && found[0] == "" {
			continue
		}
		if len(found) != len(want) {
			t.Fatalf("%s: %d of %d", expression, len(found), len(want))
		}
		for i, line := range found {
			if !strings.Contains(line, fmt.Sprintf(`"line":%d,`, want[i])) {
				t.Fatalf("%s: %s is not line %d", expression, line, want[i])
			}
		}
	}
}

func TestAWalkOfADeepAndWideTreeHoldsFewNames(t *testing.T) {
	top := t.TempDir()
	dir := top
	for range 30 {
		dir = filepath.Join(dir, "d")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for n := range 50 {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(n)), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	w := &walker{ch: silent(), root: top}
	seen := map[string]bool{}
	w.visit = func(e *entry) error { seen[e.path] = true; return nil }
	w.held = namesHeld - 100 // as after a hostile level: it goes on in small pieces
	if err := w.run(); err != nil || len(seen) != 30*51 || w.held != namesHeld-100 {
		t.Fatal(err, len(seen), w.held)
	}
}

func TestArchivesThatLieAreRefused(t *testing.T) {
	for name, header := range map[string]*tar.Header{
		"device": {Typeflag: tar.TypeChar, Name: "d"}, "fifo": {Typeflag: tar.TypeFifo, Name: "f"},
		"up": {Typeflag: tar.TypeReg, Name: "../x"}, "absolute": {Typeflag: tar.TypeReg, Name: "/x"},
		"out": {Typeflag: tar.TypeSymlink, Name: "l", Linkname: "/etc"}, "hard": {Typeflag: tar.TypeLink, Name: "h", Linkname: "../x"},
		"nothing": {Typeflag: tar.TypeLink, Name: "h", Linkname: "missing"}, "unnamed": {Typeflag: tar.TypeReg, Name: "."},
	} {
		var made bytes.Buffer
		writer := tar.NewWriter(&made)
		if err := writer.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		_ = writer.Close()
		top := t.TempDir()
		fd, err := openTop(top, owner{-1, -1})
		if err != nil {
			t.Fatal(err)
		}
		u := &unpacker{ch: silent(), own: &unpackCall{}, place: &place{top: fd, parent: -1, owner: owner{-1, -1}}, buffer: make([]byte, 4096)}
		if err := u.members(&made); err == nil {
			t.Errorf("%s is taken", name)
		}
		u.place.close()
		if left, _ := os.ReadDir(top); len(left) != 0 {
			t.Errorf("%s left %v", name, left)
		}
	}
}

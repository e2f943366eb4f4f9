package main

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// One for all tests: two reapers in a process would bury each other's children.
var theReaper = sync.OnceValue(func() *reaper {
	sealDescriptors()
	r := newReaper()
	go r.loop()
	return r
})

func newTestAgent(t *testing.T) *agent {
	t.Helper()
	a := newAgent(filepath.Join(t.TempDir(), "a.sock"))
	a.reaper = theReaper()
	a.commands = newRegistry(a.reaper)
	return a
}

func words(s ...string) *call { return &call{Argv: s} }

// capture is a sink that keeps everything.
type capture struct{ r *ring }

func (c capture) send(k kind, frame []byte) error { return c.r.send(k, frame) }

func runToEnd(t *testing.T, a *agent, in *call, limit time.Duration) (*command, string) {
	t.Helper()
	p, err := a.plan(in)
	if err != nil {
		t.Fatal(err)
	}
	cmd, err := a.reaper.launch(p, false)
	if err != nil {
		t.Fatal(err)
	}
	out := newRing(maxKeep)
	cmd.supervise(capture{out}, limit, nil)
	b := make([]byte, 1<<16)
	_, n, _, _, _ := out.read(0, b)
	return cmd, string(b[:n])
}

func TestACommandRunsAndItsExitIsTold(t *testing.T) {
	cmd, out := runToEnd(t, newTestAgent(t), words("sh", "-c", "echo hi; exit 7"), 0)
	if out != "hi\n" || cmd.exit.Code != 7 || cmd.exit.Signal != nil || cmd.exit.PID != cmd.proc.pid {
		t.Fatalf("%q %+v", out, cmd.exit)
	}
}

func TestNoExitIsMissedUnderLoad(t *testing.T) {
	a := newTestAgent(t)
	done := make(chan bool)
	for range 8 {
		go func() {
			for range 25 {
				cmd, _ := runToEnd(t, a, words("true"), 0)
				if cmd.exit.Code != 0 {
					t.Errorf("%+v", cmd.exit)
				}
			}
			done <- true
		}()
	}
	for range 8 {
		<-done
	}
	if n := len(a.reaper.live); n != 0 {
		t.Fatalf("%d children left", n)
	}
}

func TestATimeLimitKillsTheGroup(t *testing.T) {
	started := time.Now()
	cmd, _ := runToEnd(t, newTestAgent(t), words("sh", "-c", "sleep 30 & sleep 30"), 100*time.Millisecond)
	if !cmd.exit.TimedOut || *cmd.exit.Signal != int(syscall.SIGKILL) || time.Since(started) > 25*time.Second {
		t.Fatalf("%+v after %v", cmd.exit, time.Since(started))
	}
}

func TestAChildInheritsOnlyItsStandardStreams(t *testing.T) {
	_, out := runToEnd(t, newTestAgent(t), words("sh", "-c", "ls /proc/self/fd"), 0)
	// 3 is the directory that ls itself reads.
	if got := strings.Fields(out); strings.Join(got, " ") != "0 1 2 3" {
		t.Fatalf("descriptors %v", got)
	}
}

func TestAChildIsTheFirstVictimOfTheOutOfMemoryKiller(t *testing.T) {
	_, out := runToEnd(t, newTestAgent(t), words("sh", "-c", "sleep 0.05; cat /proc/self/oom_score_adj"), 0)
	if strings.TrimSpace(out) != "500" {
		t.Fatalf("%q", out)
	}
}

func TestMissingProgramsAndDirectoriesAreNamed(t *testing.T) {
	a := newTestAgent(t)
	nowhere := "/nowhere"
	for _, in := range []*call{words("no-such-program"), words("/no/such/program"), {Argv: []string{"true"}, Cwd: &nowhere}} {
		p, err := a.plan(in)
		if err == nil {
			_, err = a.reaper.launch(p, false)
		}
		if asFailure(err).Kind != "not_found" {
			t.Errorf("%v: %v", in.Argv, err)
		}
	}
}

func TestAnEnvironmentVariableCannotSmuggleAnother(t *testing.T) {
	for _, env := range []map[string]string{{"A=B": "x"}, {"": "x"}, {"A": "x\x00B=y"}} {
		if _, err := newTestAgent(t).plan(&call{Argv: []string{"true"}, Env: env}); asFailure(err).Kind != "invalid" {
			t.Errorf("%v: %v", env, err)
		}
	}
}

func TestAClaimHappensOnce(t *testing.T) {
	a := newTestAgent(t)
	in := &call{Env: map[string]string{"X": "1"}}
	if _, err := a.claim(nil, in); err != nil {
		t.Fatal(err)
	}
	if _, err := a.claim(nil, in); asFailure(err).Kind != "exists" {
		t.Fatal(err)
	}
	if _, out := runToEnd(t, a, words("sh", "-c", "echo $X"), 0); out != "1\n" {
		t.Fatalf("%q", out)
	}
}

func TestOnlyLoopbackCanBeDialled(t *testing.T) {
	for _, host := range []string{"10.0.0.1", "169.254.169.254", "0.0.0.0", "::", "::ffff:10.0.0.1", "localhost", "fe80::1%lo", ""} {
		if _, err := newTestAgent(t).dial(nil, &call{Port: 80, Host: &host}); asFailure(err).Kind != "invalid" {
			t.Errorf("%q: %v", host, err)
		}
	}
}

func TestRemovingATreeDoesNotFollowLinks(t *testing.T) {
	dir := t.TempDir()
	for _, p := range []string{"tree/a/b", "outside"} {
		_ = os.MkdirAll(filepath.Join(dir, p), 0o755)
	}
	_ = os.WriteFile(filepath.Join(dir, "outside", "keep"), nil, 0o644)
	_ = os.Symlink(filepath.Join(dir, "outside"), filepath.Join(dir, "tree", "a", "link"))
	got, err := newTestAgent(t).remove(newChannel(nil, 1), &call{Path: filepath.Join(dir, "tree"), Recursive: true})
	if err != nil || got.(removed).Removed != 4 {
		t.Fatalf("%+v %v", got, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "outside", "keep")); err != nil {
		t.Fatal(err)
	}
}

func TestReadingAFifoOrADirectoryIsRefused(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]string{fifo: "invalid", dir: "is_directory", "/dev/zero": "invalid", dir + "/x": "not_found"} {
		if _, _, err := openRegular(p); asFailure(err).Kind != want {
			t.Errorf("%s: %v", p, err)
		}
	}
}

func TestAMoveByCopyKeepsTheTree(t *testing.T) {
	dir := t.TempDir()
	_ = os.MkdirAll(dir+"/from/sub", 0o750)
	_ = os.WriteFile(dir+"/from/sub/file", []byte("x"), 0o640)
	_ = os.Symlink("sub/file", dir+"/from/link")
	if err := moveByCopy(newChannel(nil, 1), dir+"/from", dir+"/to", false); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(dir + "/to/link")
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Fatalf("%v %v", info, err)
	}
	if _, err := os.Lstat(dir + "/from"); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(dir + "/.cove-*"); len(left) > 0 {
		t.Fatal(left)
	}
}

func TestErrorsBecomeWordsOfTheProtocol(t *testing.T) {
	for err, want := range map[error]string{
		syscall.ENOSPC: "no_space", syscall.EDQUOT: "no_space", syscall.EROFS: "permission", syscall.EIO: "io",
		at("/x", syscall.ENOTEMPTY): "not_empty", errCanceled: "canceled", errors.New("?"): "io",
	} {
		if got := asFailure(err).Kind; got != want {
			t.Errorf("%v: %s", err, got)
		}
	}
	if n := len(asFailure(errors.New(strings.Repeat("x", 5000))).Text); n != maxText {
		t.Errorf("text of %d bytes", n)
	}
}

func TestAFollowerThatIsFasterThanTheEndStillGetsIt(t *testing.T) {
	cmd := &command{ring: newRing(minKeep), ended: make(chan struct{})}
	cmd.ring.finish()
	go func() {
		time.Sleep(50 * time.Millisecond)
		cmd.exit = &exit{Code: 7}
		close(cmd.ended)
	}()
	ch := newChannel(nil, 1)
	got, err := cmd.copyOutput(ch, reading{stop: followed})
	if result, ok := got.(outputResult); err != nil || !ok || !result.Ended || result.Exit.Code != 7 {
		t.Fatalf("%+v %v", got, err)
	}
}

func TestACanceledWriterDoesNotCutTheNextOneOff(t *testing.T) {
	pipe, theirs, err := newInputPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.close()
	defer syscall.Close(theirs)
	b := make([]byte, 16)
	for range 20_000 {
		first := newChannel(nil, 1)
		first.cancel()
		_, _ = pipe.copyFrom(first)
		second := newChannel(nil, 2)
		second.inbox, second.eof = []piece{{[]byte("x"), func() {}}}, true
		runtime.Gosched()
		if n, err := pipe.copyFrom(second); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		if _, err := syscall.Read(theirs, b); err != nil {
			t.Fatal(err)
		}
	}
}

package main

import (
	"bytes"
	"crypto/md5"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"
)

func newTerminal(t *testing.T, a *agent, keep int, argv ...string) *command {
	t.Helper()
	in := &call{Argv: argv, terminal: true}
	p, err := a.plan(in)
	if err != nil {
		t.Fatal(err)
	}
	cmd, err := a.reaper.launchTerminal(p, windowSize{80, 24})
	if err != nil {
		t.Fatal(err)
	}
	cmd.ring = newRing(keep)
	go cmd.supervise(pacedRing{cmd.ring, &cmd.tty.audience}, 0, nil)
	t.Cleanup(cmd.hangUp)
	return cmd
}

func (cmd *command) text() string {
	oldest, end := cmd.ring.cursors()
	b := make([]byte, end-oldest)
	_, n, _, _, _ := cmd.ring.read(oldest, b)
	return string(b[:n])
}

func (cmd *command) says(t *testing.T, want string) {
	t.Helper()
	for deadline := time.Now().Add(soonEnough); !strings.Contains(cmd.text(), want); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %q in %q", want, cmd.text())
		}
	}
}

func (cmd *command) ends(t *testing.T) *exit {
	t.Helper()
	select {
	case <-cmd.ended:
		return cmd.exit
	case <-time.After(soonEnough):
		t.Fatalf("it runs on after %q", cmd.text())
		return nil
	}
}

func typed(t *testing.T, cmd *command, text string) {
	t.Helper()
	if n, err := cmd.tty.write([]byte(text), nil); err != nil || n != len(text) {
		t.Fatalf("%d %v", n, err)
	}
}

func TestATerminalIsOneAndHasASize(t *testing.T) {
	cmd := newTerminal(t, newTestAgent(t), minKeep, "sh", "-c", "tty; stty size; cat /proc/self/stat; echo $TERM")
	if code := cmd.ends(t).Code; code != 0 {
		t.Fatal(code)
	}
	lines := strings.Split(cmd.text(), "\r\n")
	if !strings.HasPrefix(lines[0], "/dev/pts/") || lines[1] != "24 80" || lines[3] != "xterm-256color" {
		t.Fatalf("%q", lines)
	}
}

func TestWhatIsTypedIsEchoedAndRead(t *testing.T) {
	cmd := newTerminal(t, newTestAgent(t), minKeep, "sh", "-c", "read a; echo got $a")
	typed(t, cmd, "x\r")
	cmd.ends(t)
	if got := cmd.text(); got != "x\r\ngot x\r\n" {
		t.Fatalf("%q", got)
	}
}

func TestControlCReachesTheForegroundProgram(t *testing.T) {
	cmd := newTerminal(t, newTestAgent(t), minKeep, "sh", "-c", "echo ready; exec sleep 60")
	cmd.says(t, "ready")
	typed(t, cmd, "\x03")
	if exit := cmd.ends(t); exit.Signal == nil || *exit.Signal != int(syscall.SIGINT) {
		t.Fatalf("%+v", exit)
	}
}

func TestASignalReachesTheForegroundJob(t *testing.T) {
	cmd := newTerminal(t, newTestAgent(t), minKeep, "bash", "--norc", "-i")
	typed(t, cmd, "sleep 60; echo status $?\n")
	awaitForeground(t, "sleep", cmd.tty.pty.foreground)
	if err := cmd.reaper.signalForeground(cmd, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	cmd.says(t, "status 143")
}

func TestAResizeIsSeenAndTold(t *testing.T) {
	cmd := newTerminal(t, newTestAgent(t), minKeep, "sh", "-c", "trap 'stty size' WINCH; echo ready; while :; do sleep 0.01; done")
	cmd.says(t, "ready")
	if err := cmd.tty.pty.resize(windowSize{132, 50}); err != nil {
		t.Fatal(err)
	}
	cmd.says(t, "50 132")
	if got := cmd.tty.size(); got != (windowSize{132, 50}) {
		t.Fatal(got)
	}
	for _, bad := range []windowSize{{0, 1}, {1, 0}, {65536, 1}, {1, -1}} {
		if bad.check() == nil {
			t.Error(bad)
		}
	}
}

func TestTheLastOutputOfATerminalIsNotLost(t *testing.T) {
	a, soonest := newTestAgent(t), time.Hour
	for range 20 {
		cmd := newTerminal(t, a, maxKeep, "seq", "20000")
		cmd.ends(t)
		if got := cmd.text(); !strings.HasSuffix(got, "\r\n20000\r\n") || strings.Count(got, "\n") != 20000 {
			t.Fatalf("%d bytes, %q", len(got), got[len(got)-20:])
		}
		soonest = min(soonest, clock.now()-cmd.proc.ended)
	}
	if soonest > grace/2 { // each time: it waits, and not for the machine
		t.Fatalf("the end was told %v late", soonest)
	}
}

func TestHangingUpEndsTheWholeSession(t *testing.T) {
	script := "trap '' HUP; (trap '' HUP; exec sleep 61) & sleep 62 & echo ready; wait; wait"
	cmd := newTerminal(t, newTestAgent(t), minKeep, "sh", "-c", script)
	cmd.says(t, "ready")
	cmd.hangUp()
	cmd.ends(t)
	for deadline := time.Now().Add(soonEnough); len(sessionMembers(cmd.proc.pid)) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(sessionMembers(cmd.proc.pid))
		}
	}
}

func TestAHangUpIsToldToTheLeader(t *testing.T) {
	heard := make(chan os.Signal, 1)
	signal.Notify(heard, syscall.SIGHUP) // below nohup it is ignored, which children keep and no shell can change
	defer signal.Stop(heard)
	cmd := newTerminal(t, newTestAgent(t), minKeep, "sh", "-c", "trap 'exit 5' HUP; echo ready; sleep 60 & wait")
	cmd.says(t, "ready")
	cmd.hangUp()
	if code := cmd.ends(t).Code; code != 5 {
		t.Fatal(code)
	}
}

func TestALeaderMayCloseItsTerminalAndOpenItAgain(t *testing.T) {
	script := "t=$(tty); exec <&- >&- 2>&-; sleep 0.1; exec >$t; echo back"
	cmd := newTerminal(t, newTestAgent(t), minKeep, "sh", "-c", script)
	cmd.ends(t)
	if got := cmd.text(); got != "back\r\n" {
		t.Fatalf("%q", got)
	}
}

func TestTypingToAProgramThatDoesNotReadCanBeCanceled(t *testing.T) {
	cmd := newTerminal(t, newTestAgent(t), minKeep, "sh", "-c", "stty raw -echo; echo ready; exec sleep 60")
	cmd.says(t, "ready")
	done := make(chan struct{})
	time.AfterFunc(50*time.Millisecond, func() { close(done) })
	n, err := cmd.tty.write(bytes.Repeat([]byte("x"), 1<<20), done)
	if err == nil || n >= 1<<20 {
		t.Fatalf("%d %v", n, err)
	}
	again := make(chan struct{})
	close(again)
	if _, err := cmd.tty.write(bytes.Repeat([]byte("x"), 1<<20), again); err == nil {
		t.Fatal("it was taken")
	}
}

func TestALargePasteArrivesWhole(t *testing.T) {
	cmd := newTerminal(t, newTestAgent(t), minKeep, "sh", "-c", "stty raw -echo; echo ready; head -c 1000000 | md5sum")
	cmd.says(t, "ready")
	text := strings.Repeat("0123456789", 100_000)
	typed(t, cmd, text)
	cmd.ends(t)
	cmd.says(t, fmt.Sprintf("%x", md5.Sum([]byte(text))))
}

// viewerOf is a channel without a connection, as the audience sees it.
func viewerOf(a *audience, cursor int64) (*viewer, *channel) {
	ch := newChannel(nil, 1)
	return a.enter(ch, cursor), ch
}

func (v *viewer) gets(n int64) {
	v.sending()
	v.channel.mu.Lock()
	v.channel.sendable -= n
	v.channel.mu.Unlock()
	v.has(v.sent + n)
}

func waits(a *audience, floor int64) bool {
	moved, _ := a.behind(floor)
	return moved != nil
}

func TestOutputWaitsForTheMostAdvancedViewer(t *testing.T) {
	a := &audience{viewers: map[*viewer]struct{}{}}
	if waits(a, 100) {
		t.Fatal("it waits for nobody")
	}
	fast, ch := viewerOf(a, 0)
	slow, _ := viewerOf(a, 0)
	if !waits(a, 1) {
		t.Fatal("it overruns both")
	}
	fast.gets(100)
	if !waits(a, 1) {
		t.Fatal("what was only sent counts as taken")
	}
	ch.grant(60)
	if waits(a, 60) || !waits(a, 61) {
		t.Fatal("credit is not what counts")
	}
	slow.isBusy, slow.since = true, clock.now()-time.Hour
	fast.isBusy, fast.since = true, clock.now()-soonEnough
	if waits(a, 61) {
		t.Fatal("it waits for who takes nothing")
	}
	ch.grant(40)
	if fast.isBusy || !waits(a, 101) {
		t.Fatal("who takes again does not count again")
	}
}

func TestTheFirstViewerCountsBeforeItComes(t *testing.T) {
	a := &audience{}
	a.expect()
	if waits(a, 0) || !waits(a, 1) {
		t.Fatal("what it would have seen is dropped")
	}
	v, ch := viewerOf(a, 0)
	v.gets(10)
	ch.grant(10)
	if waits(a, 10) || !waits(a, 11) {
		t.Fatal("it counts twice")
	}
	late := &audience{}
	late.expect()
	late.left.since -= firstLook
	if waits(late, 1) {
		t.Fatal("it is waited for for ever")
	}
}

func TestTheLastViewerCountsForAWhileAfterItLeft(t *testing.T) {
	a := &audience{viewers: map[*viewer]struct{}{}}
	v, _ := viewerOf(a, 50)
	v.leave()
	if waits(a, 50) || !waits(a, 51) {
		t.Fatal("it does not count")
	}
	next, _ := viewerOf(a, 40)
	if !waits(a, 50) {
		t.Fatal("it counts beside the next one")
	}
	next.leave()
	a.left.since = clock.now() - soonEnough
	if waits(a, 1000) {
		t.Fatal("it counts for ever")
	}
	a.close()
	viewerOf(a, 0)
	if waits(a, 1000) {
		t.Fatal("a hung up terminal waits")
	}
}

func TestTheUsersShellIsOneThatWorks(t *testing.T) {
	for shell, want := range map[string]string{
		"/bin/sh": "/bin/sh", "/usr/sbin/nologin": "bash", "/bin/false": "bash", "": "bash", "sh": "bash", "/etc": "bash", "/no/such": "bash",
	} {
		if got := terminalIdentity(identity{credential: &syscall.Credential{}, shell: shell}).shell; !strings.HasSuffix(got, want) {
			t.Errorf("%q: %s", shell, got)
		}
	}
	p, err := newTestAgent(t).plan(&call{terminal: true})
	if err != nil || len(p.argv) != 1 || !strings.Contains(fmt.Sprint(p.env), "USER=root") {
		t.Fatalf("%+v %v", p, err)
	}
}

func TestANumberThatIsAnothersNowIsNotKilled(t *testing.T) {
	a := newTestAgent(t)
	cmd := newTerminal(t, a, minKeep, "sh", "-c", "setsid sleep 60 </dev/null >/dev/null 2>&1 & echo $!; wait")
	var other int
	for limit := time.Now().Add(soonEnough); other == 0 && time.Now().Before(limit); time.Sleep(10 * time.Millisecond) {
		_, _ = fmt.Sscan(cmd.text(), &other)
	}
	for limit := time.Now().Add(soonEnough); len(sessionMembers(other)) == 0 && time.Now().Before(limit); {
		time.Sleep(10 * time.Millisecond)
	}
	defer syscall.Kill(other, syscall.SIGKILL)
	a.reaper.killSession(&process{pid: other}) // an ended terminal's, had it had this number
	if len(sessionMembers(other)) != 1 {
		t.Fatal("killed", other)
	}
	gone := newTerminal(t, a, minKeep, "true")
	gone.ends(t)
	for limit := time.Now().Add(soonEnough); !gone.proc.deserted.Load(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("not deserted")
		}
	}
}

package main

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// A viewer that takes nothing for so long no longer holds the programs up; nor does one that left.
	patience = 10 * time.Second
	// For how long a new terminal's programs wait for somebody to look, before output is dropped.
	firstLook = 3 * time.Second
	// What a terminal's programs get between the hang-up and the kill: an editor saves what it has.
	hangUpGrace = time.Second
)

// terminal is what a command has beside a plain one: its PTY, who looks on, who types.
type terminal struct {
	pty      *pty
	stopped  chan struct{} // closed when the pump has stopped
	typing   chan struct{} // holds one token while somebody types, so that pieces do not mix
	audience audience

	mu   sync.Mutex
	last windowSize
}

// launchTerminal forks the plan as the leader of a session on a terminal of its own. On failure nothing is left.
func (r *reaper) launchTerminal(p *plan, size windowSize) (*command, error) {
	master, slave, err := openPTY()
	if err != nil {
		return nil, err
	}
	defer syscall.Close(slave)
	t := &terminal{pty: master, stopped: make(chan struct{}), typing: make(chan struct{}, 1), last: size}
	t.audience.expect()
	if err = master.resize(size); err == nil {
		if p.credential != nil {
			// So that the user can open it by its name, as tmux and gpg do. It works without, too.
			_ = syscall.Fchown(slave, int(p.credential.Uid), -1)
		}
		cmd := &command{argv: p.argv, reaper: r, tty: t, ring: newRing(defaultKeep), ended: make(chan struct{}), since: time.Now()}
		cmd.outlets = []outlet{t}
		files := []uintptr{uintptr(slave), uintptr(slave), uintptr(slave)}
		cmd.proc, err = r.fork(p, files, &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0, Credential: p.credential})
		if err == nil {
			return cmd, nil
		}
		err = launchFailure(p, err)
	}
	_ = master.file.Close()
	return nil, err
}

// pump moves what the programs print to the sink, until the leader has ended and nothing is left.
//
// A read fails with EIO while no program has the terminal open: for the leader may open it again (login(1) does), this
// counts as silence until `settle`.
func (t *terminal) pump(to sink) {
	defer close(t.stopped)
	ending := false
	for {
		frame, n, err := t.take(ending)
		if err == nil {
			err = to.send(kindData, (*frame)[:headerSize+n])
			pipeBuffers.Put(frame)
		} else if errors.Is(err, os.ErrDeadlineExceeded) && !ending {
			ending, err = true, nil
			_ = t.pty.file.SetReadDeadline(time.Now().Add(grace))
		}
		if err != nil {
			t.close()
			return
		}
	}
}

func (t *terminal) take(ending bool) (frame *[]byte, n int, err error) {
	waitErr := t.pty.raw.Read(func(fd uintptr) bool {
		frame, n, err = readPipe(int(fd))
		silent := errors.Is(err, syscall.EAGAIN) || (errors.Is(err, syscall.EIO) && !ending)
		return !silent
	})
	if waitErr != nil {
		return nil, 0, waitErr
	}
	return frame, n, err
}

// settle: the leader has ended. The kernel has hung the terminal up for whom it left behind.
func (t *terminal) settle() { _ = t.pty.file.SetReadDeadline(time.Unix(1, 0)) }

// expire has nothing to do: the pump gives the rest its time by itself, and what comes later has no terminal any more.
func (t *terminal) expire() {}

func (t *terminal) left() <-chan struct{} { return t.stopped }

// close hangs the terminal up: the kernel sends SIGHUP to its leader and its foreground programs. Idempotent.
func (t *terminal) close() {
	t.size()
	t.audience.close()
	_ = t.pty.file.Close()
}

// size is the size now, or the last one.
func (t *terminal) size() windowSize {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now, err := t.pty.size(); err == nil {
		t.last = now
	}
	return t.last
}

// write types bytes, waiting while the programs do not read. What the kernel does not take it drops itself (a line
// beyond 4095 bytes, N_TTY in canonical mode), as on any terminal.
func (t *terminal) write(b []byte, done <-chan struct{}) (int, error) {
	select {
	case t.typing <- struct{}{}:
		defer func() { <-t.typing }()
	case <-done:
		return 0, errCanceled
	}
	n, err := 0, error(nil)
	if closed := t.pty.raw.Write(func(fd uintptr) bool { n, err = syscall.Write(int(fd), b); return true }); closed != nil {
		return 0, closed
	}
	n = max(n, 0)
	if n == len(b) || (err != nil && !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.EINTR)) {
		return n, err
	}
	more, err := t.writeSlowly(b[n:], done)
	return n + more, err
}

// writeSlowly waits for room; the token of `typing` makes its deadline nobody else's.
func (t *terminal) writeSlowly(b []byte, done <-chan struct{}) (int, error) {
	finished, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-done:
			_ = t.pty.file.SetWriteDeadline(time.Unix(1, 0))
		case <-finished:
		}
	}()
	n, err := t.pty.file.Write(b)
	close(finished)
	<-watched
	_ = t.pty.file.SetWriteDeadline(time.Time{})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = errCanceled
	}
	return n, err
}

// copyFrom types the channel's data until its EOF. What nobody can read any more is dropped, as by an inputPipe.
func (t *terminal) copyFrom(ch *channel) (written int64, err error) {
	for {
		in, err := ch.next()
		if err != nil {
			if errors.Is(err, errCanceled) {
				return written, err
			}
			return written, nil
		}
		n, err := t.write(in.bytes, ch.done)
		written += int64(n)
		in.release()
		ch.spent(len(in.bytes))
		if errors.Is(err, errCanceled) {
			return written, err
		}
	}
}

// hangUp ends the session of a terminal: SIGHUP, which the kernel sends, then SIGKILL.
func (cmd *command) hangUp() {
	cmd.tty.close()
	timer := time.NewTimer(hangUpGrace)
	defer timer.Stop()
	select {
	case <-cmd.ended:
	case <-timer.C:
	}
	cmd.reaper.killSession(cmd.proc)
}

// killSession kills every process of the session that p leads: a shell's jobs are process groups of their own.
//
// The lock keeps our own children's numbers from being given away. A session's number stays taken while it has a
// member, so if the leader is buried and the number is another process's, no member is left.
func (r *reaper) killSession(p *process) {
	r.mu.Lock()
	defer r.mu.Unlock()
	const rounds = 8 // a member may fork while we look
	for range rounds {
		if r.live[p.pid] != p && (p.deserted.Load() || !errors.Is(syscall.Kill(p.pid, 0), syscall.ESRCH)) {
			return
		}
		found := false
		for _, pid := range sessionMembers(p.pid) {
			found = syscall.Kill(pid, syscall.SIGKILL) == nil || found
		}
		if !found {
			return
		}
		time.Sleep(killPause)
	}
}

// sessionMembers reads the processes of a session from proc(5), zombies left out.
func sessionMembers(session int) []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	var members []int
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		stat, err := readBounded("/proc/"+name+"/stat", 4096)
		if err != nil {
			continue
		}
		// pid (name) state parent group session …; the name may hold anything, so what counts is behind its last bracket.
		_, rest, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
		if row := strings.Fields(rest); len(row) > 3 && row[0] != "Z" && row[3] == strconv.Itoa(session) {
			members = append(members, pid)
		}
	}
	return members
}

// signalForeground sends what Ctrl-C would: to the group that reads the terminal now, which in a shell is the job. Where
// the kernel does not tell which that is (gVisor's), to the leader's.
func (r *reaper) signalForeground(cmd *command, sig syscall.Signal) error {
	if group := cmd.tty.pty.foreground(); group > 1 && group != cmd.proc.pid {
		if err := syscall.Kill(-group, sig); err == nil {
			return nil
		}
	}
	return r.signal(cmd.proc, sig, true)
}

type attachCall struct {
	Cursor *int64 `json:"cursor"`
}

type attachedEvent struct {
	Event  string     `json:"event"`
	Cursor int64      `json:"cursor"`
	PTY    windowSize `json:"pty"`
}

func (a *agent) terminal(id string) (*command, error) {
	cmd, err := a.commands.kept(id)
	if err == nil && cmd.tty == nil {
		return nil, fail("invalid", "the command has no terminal")
	}
	return cmd, err
}

// attach follows a terminal's output from a cursor on, by default from the oldest byte that is kept, while what the
// host sends is typed. Its end, or the host's EOF, leaves the terminal as it is.
func (a *agent) attach(ch *channel, in *call) (any, error) {
	cmd, err := a.terminal(in.ID)
	if err != nil {
		return nil, err
	}
	own, err := fields[attachCall](in)
	if err != nil {
		return nil, err
	}
	oldest, end := cmd.ring.cursors()
	cursor := or(own.Cursor, oldest)
	if cursor < 0 || cursor > end {
		return nil, errCursor
	}
	if err := ch.event(attachedEvent{"attached", cursor, cmd.tty.size()}); err != nil {
		return nil, err
	}
	go func() { _, _ = cmd.tty.copyFrom(ch) }()
	return cmd.copyOutput(ch, reading{cursor: cursor, stop: followed})
}

func (a *agent) resize(_ *channel, in *call) (any, error) {
	cmd, err := a.terminal(in.ID)
	if err != nil {
		return nil, err
	}
	to, err := fields[windowSize](in)
	if err != nil {
		return nil, err
	}
	if err := to.check(); err != nil {
		return nil, err
	}
	before := cmd.tty.size()
	if err := cmd.tty.pty.resize(*to); errors.Is(err, syscall.ESRCH) {
		return nil, fail("gone", "the terminal has ended")
	} else if err != nil {
		return nil, err
	}
	if cmd.tty.pty.silent && before != *to {
		// Such a kernel does not tell either who is in the foreground. To the others the signal means nothing.
		for _, pid := range sessionMembers(cmd.proc.pid) {
			_ = syscall.Kill(pid, syscall.SIGWINCH)
		}
	}
	return empty{}, nil
}

// terminalIdentity fills in what a plain command of root's has no use for, and a shell that can be worked with.
func terminalIdentity(who identity) identity {
	if who.credential == nil {
		if root, err := resolveUser("0"); err == nil {
			who.name, who.shell = root.name, root.shell
		}
	}
	// A system user's "no login" is about doors, not about who may run a shell: the caller may run anything as this user.
	refuses := strings.HasSuffix(who.shell, "/nologin") || strings.HasSuffix(who.shell, "/false")
	for _, shell := range []string{who.shell, "/bin/bash", "/usr/bin/bash"} {
		var st syscall.Stat_t
		if strings.HasPrefix(shell, "/") && !(refuses && shell == who.shell) &&
			syscall.Stat(shell, &st) == nil && st.Mode&syscall.S_IFMT == syscall.S_IFREG && st.Mode&0o111 != 0 {
			who.shell = shell
			return who
		}
	}
	who.shell = "/bin/sh"
	return who
}

// terminalEnvironment is what programs on a terminal look for, unless the sandbox or the call says otherwise.
func terminalEnvironment(who identity) map[string]string {
	values := map[string]string{"TERM": "xterm-256color", "COLORTERM": "truecolor", "SHELL": who.shell}
	if who.name != "" {
		values["USER"], values["LOGNAME"] = who.name, who.name
	}
	return values
}

package main

import (
	"errors"
	"sync/atomic"
	"syscall"
	"time"
)

// Descendants that keep the pipes open after the command has ended get this long to finish writing.
const grace = 100 * time.Millisecond

// command is a running or ended command, attached or kept.
type command struct {
	id      string
	argv    []string
	reaper  *reaper
	proc    *process
	outlets []outlet
	stdin   *inputPipe // nil: /dev/null, or a terminal
	tty     *terminal  // nil: it has none
	task    *task      // not nil: a command of a shell, which has no streams of its own
	ring    *ring      // of an attached one empty, unless its call was released
	isKept  atomic.Bool
	since   time.Time

	timedOut atomic.Bool
	ended    chan struct{} // closed after exit is set
	exit     *exit
}

// outlet is where a command's output comes from: each of its two pipes, or its terminal.
type outlet interface {
	pump(to sink)          // moves the output to the sink until its end
	settle()               // the process has ended
	expire()               // and its descendants have had their time
	left() <-chan struct{} // closed when the pump has stopped
}

// exit is the *exit* of PROTOCOL.md.
type exit struct {
	Code       int   `json:"code"`
	Signal     *int  `json:"signal"`
	TimedOut   bool  `json:"timed_out"`
	Canceled   bool  `json:"canceled,omitempty"` // it waited for its shell and never ran
	DurationUS int64 `json:"duration_us"`
	CPUUS      int64 `json:"cpu_us"`
	MaxRSS     int64 `json:"max_rss_bytes"`
	PID        int   `json:"pid"`
}

// launch forks the plan with fresh pipes. On failure nothing is left.
func (r *reaper) launch(p *plan, withStdin bool) (*command, error) {
	cmd := &command{argv: p.argv, reaper: r, ring: newRing(defaultKeep), ended: make(chan struct{}), since: time.Now()}
	childEnds := make([]int, 0, 3)
	defer func() {
		for _, fd := range childEnds {
			_ = syscall.Close(fd)
		}
	}()
	in, err := nullDevice()
	if err == nil && withStdin {
		if cmd.stdin, in, err = newInputPipe(); err == nil {
			childEnds = append(childEnds, in)
		}
	}
	files := []uintptr{uintptr(in)}
	ours := []*outputPipe{}
	for _, k := range []kind{kindData, kindDataErr} {
		if err != nil {
			break
		}
		var pipe *outputPipe
		var theirs int
		if pipe, theirs, err = newOutputPipe(k); err == nil {
			ours, cmd.outlets = append(ours, pipe), append(cmd.outlets, pipe)
			childEnds, files = append(childEnds, theirs), append(files, uintptr(theirs))
		}
	}
	if err == nil {
		cmd.proc, err = r.fork(p, files, &syscall.SysProcAttr{Setsid: true, Credential: p.credential})
	}
	if err != nil {
		if cmd.stdin != nil {
			cmd.stdin.close()
		}
		for _, pipe := range ours {
			_ = pipe.file.Close()
		}
		return nil, launchFailure(p, err)
	}
	return cmd, nil
}

// fork starts the plan with these standard streams.
func (r *reaper) fork(p *plan, files []uintptr, sys *syscall.SysProcAttr) (*process, error) {
	attr := &syscall.ProcAttr{Dir: p.cwd, Env: p.env, Files: files, Sys: sys}
	proc, err := r.spawn(p.program, p.argv, attr)
	if errors.Is(err, syscall.EACCES) && p.credential != nil && !p.askedForCwd {
		// The default directory may be closed to this user (/root, 0700), who did not ask for it.
		attr.Dir = "/"
		proc, err = r.spawn(p.program, p.argv, attr)
	}
	return proc, err
}

// kill ends the process group, or the whole session of a terminal, whose jobs are groups of their own.
func (cmd *command) kill() {
	if cmd.tty != nil {
		cmd.reaper.killSession(cmd.proc)
		return
	}
	_ = cmd.signal(syscall.SIGKILL, true)
}

// signal sends a signal to the command's process group, or only to its process. ESRCH: it has ended.
func (cmd *command) signal(number syscall.Signal, group bool) error {
	switch {
	case cmd.task != nil:
		return cmd.task.signal(number)
	case cmd.tty != nil && group:
		return cmd.reaper.signalForeground(cmd, number)
	default:
		return cmd.reaper.signal(cmd.proc, number, group)
	}
}

// supervise runs the command to its end: output to the sink, the time limit, the grace. It reports whether `canceled`
// closed first; the group is then killed and what it still says is dropped.
func (cmd *command) supervise(to sink, limit time.Duration, canceled <-chan struct{}) bool {
	for _, one := range cmd.outlets {
		go one.pump(to)
	}
	var expired <-chan struct{}
	if limit > 0 {
		var timer *steadyTimer
		expired, timer = clock.alarm(limit)
		defer timer.Stop()
	}
	for running := true; running; {
		select {
		case <-cmd.proc.done:
			running = false
		case <-expired:
			expired = nil
			cmd.timedOut.Store(true)
			cmd.kill()
		case <-canceled:
			cmd.kill()
			cmd.abandon()
			return true
		}
	}
	stopped := cmd.settle(canceled)
	cmd.finish()
	return stopped
}

// settle waits for the pumps after the process has ended.
func (cmd *command) settle(canceled <-chan struct{}) bool {
	timer := time.NewTimer(grace)
	defer timer.Stop()
	for _, one := range cmd.outlets {
		one.settle()
	}
	for _, one := range cmd.outlets {
		for waiting := true; waiting; {
			select {
			case <-one.left():
				waiting = false
			case <-timer.C:
				cmd.expire()
			case <-canceled:
				return true
			}
		}
	}
	return false
}

// abandon lets a killed command end on its own: SIGKILL may take its time (a process in D state), a cancel may not.
func (cmd *command) abandon() {
	go func() {
		<-cmd.proc.done
		cmd.expire()
		cmd.finish()
	}()
}

func (cmd *command) expire() {
	for _, one := range cmd.outlets {
		one.expire()
	}
}

func (cmd *command) finish() {
	if cmd.stdin != nil {
		cmd.stdin.close()
	}
	cmd.exit = cmd.proc.exit(cmd.timedOut.Load())
	cmd.ring.finish()
	close(cmd.ended)
	if cmd.tty != nil {
		cmd.proc.deserted.Store(len(sessionMembers(cmd.proc.pid)) == 0)
	}
}

func (p *process) exit(timedOut bool) *exit {
	e := &exit{
		Code: p.status.ExitStatus(), TimedOut: timedOut, PID: p.pid, DurationUS: (p.ended - p.started).Microseconds(),
		CPUUS:  (p.usage.Utime.Nano() + p.usage.Stime.Nano()) / 1000,
		MaxRSS: p.usage.Maxrss * 1024, // getrusage(2) counts KiB; never below our own size, which vfork hands on
	}
	if p.status.Signaled() {
		number := int(p.status.Signal())
		e.Signal, e.Code = &number, 128+number
	}
	return e
}

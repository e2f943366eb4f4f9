package main

import (
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// A report is asked for again while the command runs and the shell has read everything, first after this long.
	firstReminder = 5 * time.Millisecond
	lastReminder  = 250 * time.Millisecond

	stopStep      = 20 * time.Millisecond
	interruptStep = 250 * time.Millisecond // between two SIGINT to a shell that runs something itself
	programsTime  = 100 * time.Millisecond // for the programs of a shell without job control, to end by SIGINT
	shellTime     = time.Second            // for a shell that does not give up its command
	stopLimit     = 5 * time.Second

	canceledCode = 125 // as env(1) and others have it for "was not run"
	// Room in the ring of an attached command for what still lies in the pipes when it has ended.
	pipesRoom = 256 << 10
)

// task is one command of a shell: a kept command whose process is the shell's.
type task struct {
	cmd   *command
	shell *shell
	text  string
	word  string // that its report begins with
	limit time.Duration

	// Guarded by shell.mu.
	isReported bool
	lastSignal syscall.Signal
	began      time.Duration // of the steady clock
	cpuBefore  int64
	deadline   *steadyTimer // nil: no limit
	reminder   *time.Timer

	started  chan struct{} // closed when it runs, or has ended in the queue
	stopping atomic.Bool
	isLeft   atomic.Bool // its caller is another sandbox's: it goes on unattached

	sending  sync.Mutex
	reader   *taskReader // nil: unattached
	released chan struct{}
	once     sync.Once
}

func newTask(s *shell, id, text string, keep int, limit time.Duration) *task {
	t := &task{
		shell: s, text: text, word: newWord(), limit: limit,
		started: make(chan struct{}), released: make(chan struct{}),
	}
	t.cmd = &command{
		id: id, argv: []string{text}, reaper: s.agent.reaper, proc: s.proc, ring: newRing(keep),
		since: time.Now(), ended: make(chan struct{}), task: t,
	}
	t.cmd.isKept.Store(true)
	return t
}

// enqueue returns how many commands come before. `known` makes it known by its id before it can end.
func (s *shell) enqueue(t *task, known func()) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exit != nil {
		return 0, fail("gone", "the shell has ended")
	}
	if len(s.queue) >= maxQueued {
		return 0, fail("limit", "too many commands wait for this shell")
	}
	known()
	before := len(s.queue)
	if s.running != nil {
		before++
	}
	s.queue = append(s.queue, t)
	s.next()
	return before, nil
}

// begin, exited and end want shell.mu.
func (t *task) begin(between *ring) {
	t.began, t.cpuBefore = clock.now(), t.shell.cpuUS()
	moveRing(between, t.cmd.ring)
	if t.limit > 0 {
		t.deadline = clock.after(t.limit, func() {
			t.cmd.timedOut.Store(true)
			t.stop()
		})
	}
	t.remindLater(firstReminder)
	close(t.started)
}

func moveRing(from, to *ring) {
	frame := make([]byte, headerSize+4096)
	for cursor, end := from.cursors(); cursor < end; {
		k, n, _, _, _ := from.read(cursor, frame[headerSize:])
		_ = to.send(k, frame[:headerSize+n])
		cursor += int64(n)
	}
}

func (t *task) exited(status int) *exit {
	e := &exit{
		Code: status, TimedOut: t.cmd.timedOut.Load(), PID: t.shell.proc.pid, DurationUS: (clock.now() - t.began).Microseconds(),
		CPUUS: max(t.shell.cpuUS()-t.cpuBefore, 0),
	}
	number := int(t.lastSignal)
	if t.stopping.Load() {
		number = int(syscall.SIGKILL)
		e.Code = 128 + number // it said 130, of the interrupt
	}
	if number != 0 && e.Code == 128+number {
		e.Signal = &number
	}
	return e
}

func canceledExit(pid int) *exit { return &exit{Code: canceledCode, Canceled: true, PID: pid} }

func (t *task) end(with *exit) {
	t.deadline.Stop()
	if t.reminder != nil {
		t.reminder.Stop()
	}
	if t.isQueued() {
		close(t.started)
	}
	t.cmd.exit = with
	t.cmd.ring.finish()
	close(t.cmd.ended)
}

// remindLater wants shell.mu.
func (t *task) remindLater(after time.Duration) {
	t.reminder = time.AfterFunc(after, func() {
		s := t.shell
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.running != t || t.isReported || s.exit != nil {
			return
		}
		// Nothing lies in its input: it has read the command's line, and perhaps abandoned it, so it may read one more.
		// While it runs the command the reminder stays in the pipe, and no further one is written.
		if waiting(s.rawInput) == 0 {
			s.write(s.dialect.report(t.word, s.place))
		}
		t.remindLater(min(2*after, lastReminder))
	})
}

func (t *task) isQueued() bool {
	select {
	case <-t.started:
		return false
	default:
		return true
	}
}

// signal reaches the foreground process group, as Ctrl-C at a terminal does; a queued command is canceled.
func (t *task) signal(number syscall.Signal) error {
	s := t.shell
	s.mu.Lock()
	defer s.mu.Unlock()
	if at := slices.Index(s.queue, t); at >= 0 {
		s.queue = slices.Delete(s.queue, at, at+1)
		t.end(canceledExit(s.proc.pid))
		return nil
	}
	if s.running != t {
		return syscall.ESRCH
	}
	if t.isReported {
		return nil // it has ended, its output is on the way: what it would reach now is the shell
	}
	t.lastSignal = number
	if number == syscall.SIGKILL {
		go t.stop()
		return nil
	}
	if group, own := s.foreground(); !own {
		return syscall.Kill(-group, number)
	}
	return s.agent.reaper.signal(s.proc, number, true)
}

func (t *task) kill() { _ = t.signal(syscall.SIGKILL) }

// stop ends the command but not its shell, unless there is no other way.
func (t *task) stop() {
	if t.stopping.Swap(true) {
		return
	}
	t.release()
	st := stopper{task: t, since: time.Now()}
	for st.step() {
		time.Sleep(stopStep)
	}
}

type stopper struct {
	task        *task
	since       time.Time
	ownSince    time.Time // the shell itself has been in the foreground
	interrupted time.Time
}

func (st *stopper) step() bool {
	s := st.task.shell
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running != st.task || s.exit != nil {
		return false
	}
	if st.task.isReported {
		return true
	}
	if time.Since(st.since) > stopLimit {
		s.killSession()
		return false
	}
	if group, own := s.foreground(); own {
		st.stopShell(s)
	} else {
		st.stopGroup(s, group)
	}
	return true
}

// stopGroup kills the program that runs. The shell is interrupted first, so that it abandons what follows in the text.
func (st *stopper) stopGroup(s *shell, group int) {
	st.ownSince = time.Time{}
	_ = s.agent.reaper.signal(s.proc, syscall.SIGINT, false)
	_ = syscall.Kill(-group, syscall.SIGKILL)
}

func (st *stopper) stopShell(s *shell) {
	now := time.Now()
	if st.ownSince.IsZero() {
		st.ownSince, st.interrupted = now, time.Time{}
	}
	if now.Sub(st.ownSince) > shellTime {
		s.killSession()
		return
	}
	if s.place != terminalPlace && now.Sub(st.ownSince) > programsTime {
		s.killOthers() // without job control its programs are in its own group
	}
	if now.Sub(st.interrupted) > interruptStep {
		_ = s.agent.reaper.signal(s.proc, syscall.SIGINT, true)
		st.interrupted = now
	}
}

// taskReader is where an attached reader is. While it lags by a full ring the shell's output waits, so it misses nothing.
type taskReader struct {
	mu     sync.Mutex
	cursor int64
	moved  chan struct{}
}

func newTaskReader() *taskReader { return &taskReader{moved: make(chan struct{})} }

func (r *taskReader) advance(cursor int64) {
	r.mu.Lock()
	r.cursor = cursor
	close(r.moved)
	r.moved = make(chan struct{})
	r.mu.Unlock()
}

func (r *taskReader) at() (int64, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cursor, r.moved
}

// release ends the waiting for a slow reader: the command has ended or must.
func (t *task) release() { t.once.Do(func() { close(t.released) }) }

// leave has an attached command go on for itself: nobody waits for its reader any more.
func (t *task) leave() bool {
	t.isLeft.Store(true)
	t.release()
	return true
}

// send implements sink.
func (t *task) send(k kind, frame []byte) error {
	t.sending.Lock()
	defer t.sending.Unlock()
	for t.reader != nil {
		at, moved := t.reader.at()
		_, end := t.cmd.ring.cursors()
		if end-at+int64(len(frame)) <= int64(t.cmd.ring.limit-pipesRoom) {
			break
		}
		select {
		case <-moved:
			continue
		case <-t.released:
		}
		break
	}
	return t.cmd.ring.send(k, frame)
}

// follow sends the command's output to an attached caller, to its end.
func (t *task) follow(ch *channel) error {
	defer t.release()
	if err := awaitEither(t.started, ch.done); err != nil {
		return err
	}
	if err := ch.event(startedEvent{"started", t.cmd.id, t.shell.proc.pid}); err != nil {
		return err
	}
	buffer := pipeBuffers.Get().(*[]byte)
	defer pipeBuffers.Put(buffer)
	for cursor := int64(0); ; {
		k, n, lost, ended, changed := t.cmd.ring.read(cursor, (*buffer)[headerSize:])
		if lost > 0 {
			if err := ch.event(gapEvent{"gap", lost}); err != nil {
				return err
			}
			cursor += lost
		}
		switch {
		case n > 0:
			if err := ch.send(k, (*buffer)[:headerSize+n]); err != nil {
				return err
			}
			cursor += int64(n)
			t.reader.advance(cursor)
		case ended:
			return awaitEither(t.cmd.ended, ch.done)
		default:
			if err := awaitEither(changed, ch.done); err != nil {
				return err
			}
		}
	}
}

func awaitEither(changed, done <-chan struct{}) error {
	select {
	case <-changed:
		return nil
	case <-done:
		return errCanceled
	}
}

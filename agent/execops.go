package main

import (
	"errors"
	"regexp"
	"syscall"
	"time"
)

var commandID = regexp.MustCompile(`^[a-z0-9_-]{1,32}$`)

type startedEvent struct {
	Event string `json:"event"`
	ID    string `json:"id"`
	PID   int    `json:"pid"`
}

type startedResult struct {
	ID  string `json:"id"`
	PID int    `json:"pid"`
}

// commandInfo is the *info* of PROTOCOL.md.
type commandInfo struct {
	ID        string   `json:"id"`
	PID       int      `json:"pid"`
	Argv      []string `json:"argv"`
	StartedAt float64  `json:"started_at"`
	Running   bool     `json:"running"`
	Exit      *exit    `json:"exit"`
	Cursor    int64    `json:"cursor"`
	Oldest    int64    `json:"oldest_cursor"`
	Shell     string   `json:"shell,omitempty"`  // whose command it is
	Queued    bool     `json:"queued,omitempty"` // it waits for the shell's earlier commands

	PTY *windowSize `json:"pty"`
}

func (a *agent) exec(ch *channel, in *call) (any, error) {
	p, err := a.plan(in)
	if err != nil {
		return nil, err
	}
	cmd, err := a.reaper.launch(p, in.Stdin)
	if err != nil {
		return nil, err
	}
	a.commands.attach(cmd)
	defer a.commands.detach(cmd)
	ch.onRelease(func() bool { return a.commands.keep(cmd) })
	_ = ch.event(startedEvent{"started", cmd.id, cmd.proc.pid})
	if cmd.stdin != nil {
		cmd.stdin.busy <- struct{}{}
		go func() {
			_, _ = cmd.stdin.copyFrom(ch)
			cmd.stdin.close()
			<-cmd.stdin.busy
		}()
	}
	if cmd.supervise(attached{ch, cmd}, limitOf(in.TimeoutMS), ch.done) {
		return nil, errCanceled
	}
	ch.awaitStream() // a command that ends while its call is parked is told of later, or kept
	return cmd.exit, nil
}

// startCall has what only `start` knows.
type startCall struct {
	PTY *windowSize `json:"pty"`
}

func (a *agent) start(_ *channel, in *call) (any, error) {
	keep := or(in.KeepBytes, defaultKeep)
	if keep < minKeep || keep > maxKeep {
		return nil, fail("invalid", "keep_bytes must be from 4096 to 16777216")
	}
	if !commandID.MatchString(in.ID) {
		return nil, fail("invalid", "a command id is 1 to 32 of a-z, 0-9, _ and -")
	}
	own, err := fields[startCall](in)
	if err != nil {
		return nil, err
	}
	if in.terminal = own.PTY != nil; in.terminal {
		if err := own.PTY.check(); err != nil {
			return nil, err
		}
	}
	p, err := a.plan(in)
	if err != nil {
		return nil, err
	}
	if err := a.commands.reserve(in.ID); err != nil {
		return nil, err
	}
	var cmd *command
	if in.terminal {
		cmd, err = a.reaper.launchTerminal(p, *own.PTY)
	} else {
		cmd, err = a.reaper.launch(p, in.Stdin)
	}
	if err != nil {
		a.commands.remove(in.ID)
		return nil, err
	}
	cmd.id, cmd.ring = in.ID, newRing(keep)
	cmd.isKept.Store(true)
	to := sink(cmd.ring)
	if cmd.tty != nil {
		to = pacedRing{cmd.ring, &cmd.tty.audience}
	}
	a.commands.fill(in.ID, cmd)
	go cmd.supervise(to, limitOf(in.TimeoutMS), nil)
	return startedResult{cmd.id, cmd.proc.pid}, nil
}

// Long argument lists are cut, so that 256 commands, escaped by JSON to six times their length, fit into a frame.
const (
	shownInList = 512
	shownAlone  = 32 << 10
)

func (cmd *command) info(shown int) commandInfo {
	oldest, end := cmd.ring.cursors()
	info := commandInfo{
		ID: cmd.id, PID: cmd.proc.pid, Argv: shownArgv(cmd.argv, shown), Running: true,
		StartedAt: float64(cmd.since.UnixMicro()) / 1e6, Cursor: end, Oldest: oldest,
	}
	if cmd.tty != nil {
		size := cmd.tty.size()
		info.PTY = &size
	}
	if cmd.task != nil {
		info.Shell, info.Queued = cmd.task.shell.id, cmd.task.isQueued()
	}
	select {
	case <-cmd.ended:
		info.Running, info.Exit = false, cmd.exit
		info.Oldest, info.Cursor = cmd.ring.cursors()
	default:
	}
	return info
}

func shownArgv(argv []string, room int) []string {
	shown := make([]string, 0, min(len(argv), 64))
	for _, one := range argv {
		if len(shown) == 64 || room <= 0 {
			break
		}
		if len(one) > room {
			one = one[:room]
		}
		room -= len(one)
		shown = append(shown, text(one))
	}
	return shown
}

func (a *agent) listCommands(*channel, *call) (any, error) {
	infos := []commandInfo{}
	for _, cmd := range a.commands.list() {
		infos = append(infos, cmd.info(shownInList))
	}
	return struct {
		Commands []commandInfo `json:"commands"`
	}{infos}, nil
}

func (a *agent) showCommand(_ *channel, in *call) (any, error) {
	cmd, err := a.commands.kept(in.ID)
	if err != nil {
		return nil, err
	}
	return cmd.info(shownAlone), nil
}

type gapEvent struct {
	Event string `json:"event"`
	Lost  int64  `json:"lost"`
}

type outputResult struct {
	Cursor int64 `json:"cursor"`
	Ended  bool  `json:"ended"`
	Exit   *exit `json:"exit"`
}

// outputCall has what only `output` knows.
type outputCall struct {
	WaitMS int64 `json:"wait_ms"`
}

// output sends kept bytes from a cursor on. With follow it ends when the command has, else at what was there.
func (a *agent) output(ch *channel, in *call) (any, error) {
	cmd, err := a.commands.kept(in.ID)
	if err != nil {
		return nil, err
	}
	own, err := fields[outputCall](in)
	if err != nil {
		return nil, err
	}
	_, stop := cmd.ring.cursors()
	if in.Cursor < 0 || in.Cursor > stop {
		return nil, errCursor
	}
	if in.Follow {
		stop = followed
	} else if in.Cursor == stop && own.WaitMS > 0 {
		if stop, err = cmd.awaitOutput(stop, limitOf(own.WaitMS), ch.done); err != nil {
			return nil, err
		}
	}
	return cmd.copyOutput(ch, reading{in.Cursor, stop, or(in.Limit, 0)})
}

var errCursor = fail("invalid", "the cursor is beyond the end of the output")

// followed in place of the end: to the end of the command.
const followed = -1

// reading is which part of a command's output is wanted.
type reading struct {
	cursor int64
	stop   int64
	limit  int64 // 0 or less: none
}

// awaitOutput waits for output behind `end`, the end of the command, or the time, and returns the end of the output.
func (cmd *command) awaitOutput(end int64, limit time.Duration, done <-chan struct{}) (int64, error) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	_, _, _, ended, changed := cmd.ring.read(end, nil)
	if !ended {
		select {
		case <-changed:
		case <-timer.C:
		case <-done:
			return 0, errCanceled
		}
	}
	_, end = cmd.ring.cursors()
	return end, nil
}

// copyOutput sends the output and how it stands then.
func (cmd *command) copyOutput(ch *channel, want reading) (any, error) {
	cursor := want.cursor
	var looks *viewer
	if cmd.tty != nil && want.stop == followed {
		looks = cmd.tty.audience.enter(ch, cursor)
		defer looks.leave()
	}
	buffer := pipeBuffers.Get().(*[]byte)
	defer pipeBuffers.Put(buffer)
	for sent := int64(0); want.limit <= 0 || sent < want.limit; {
		if want.stop != followed && cursor >= want.stop {
			break
		}
		frame := *buffer
		if want.limit > 0 {
			frame = frame[:headerSize+int(min(want.limit-sent, pipePiece))]
		}
		k, n, lost, ended, changed := cmd.ring.read(cursor, frame[headerSize:])
		if lost > 0 {
			if err := ch.event(gapEvent{"gap", lost}); err != nil {
				return nil, err
			}
			cursor += lost
		}
		if n == 0 && ended && want.stop == followed {
			// The output has ended a moment before the command is said to have.
			if err := awaitChange(cmd.ended, ch.done); err != nil {
				return nil, err
			}
			break
		}
		if n == 0 {
			if want.stop != followed {
				break
			}
			if err := awaitChange(changed, ch.done); err != nil {
				return nil, err
			}
			continue
		}
		looks.sending()
		if err := ch.send(k, frame[:headerSize+n]); err != nil {
			return nil, err
		}
		cursor += int64(n)
		sent += int64(n)
		looks.has(cursor)
	}
	return cmd.outputEnd(cursor), nil
}

func awaitChange(changed, done <-chan struct{}) error {
	select {
	case <-changed:
		return nil
	case <-done:
		return errCanceled
	}
}

func (cmd *command) outputEnd(cursor int64) outputResult {
	result := outputResult{Cursor: cursor}
	select {
	case <-cmd.ended:
		_, end := cmd.ring.cursors()
		if cursor >= end {
			result.Ended, result.Exit = true, cmd.exit
		}
	default:
	}
	return result
}

type writtenResult struct {
	Written int64 `json:"written"`
}

func (a *agent) writeStdin(ch *channel, in *call) (any, error) {
	cmd, err := a.commands.kept(in.ID)
	if err != nil {
		return nil, err
	}
	if cmd.tty != nil {
		written, err := cmd.tty.copyFrom(ch)
		return writtenResult{written}, err
	}
	if cmd.stdin == nil || cmd.stdin.gone.Load() {
		return nil, fail("invalid", "the command has no standard input, or it is closed")
	}
	select {
	case cmd.stdin.busy <- struct{}{}:
		defer func() { <-cmd.stdin.busy }()
	default:
		return nil, fail("busy", "another call is writing to this command")
	}
	written, err := cmd.stdin.copyFrom(ch)
	if err != nil {
		return nil, err
	}
	if in.Close {
		cmd.stdin.close()
	}
	return writtenResult{written}, nil
}

func (a *agent) signal(_ *channel, in *call) (any, error) {
	cmd, err := a.commands.any(in.ID)
	if err != nil {
		return nil, err
	}
	number := or(in.Signal, int(syscall.SIGTERM))
	if number < 1 || number > 64 {
		return nil, fail("invalid", "a signal is a number from 1 to 64")
	}
	err = cmd.signal(syscall.Signal(number), or(in.Group, true))
	if errors.Is(err, syscall.ESRCH) {
		return nil, fail("gone", "the command has ended")
	}
	return empty{}, err
}

func (a *agent) wait(ch *channel, in *call) (any, error) {
	cmd, err := a.commands.kept(in.ID)
	if err != nil {
		return nil, err
	}
	var expired <-chan time.Time
	if limit := limitOf(in.TimeoutMS); limit > 0 {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		expired = timer.C
	}
	select {
	case <-cmd.ended:
	case <-expired:
	case <-ch.done:
		return nil, errCanceled
	}
	return cmd.info(shownAlone), nil
}

func (a *agent) forget(_ *channel, in *call) (any, error) {
	cmd, err := a.commands.kept(in.ID)
	if err != nil {
		return nil, err
	}
	if cmd.tty != nil {
		cmd.hangUp()
	} else {
		cmd.kill()
	}
	a.commands.remove(in.ID)
	return empty{}, nil
}

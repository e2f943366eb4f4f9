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
	_ = ch.event(startedEvent{"started", cmd.id, cmd.proc.pid})
	if cmd.stdin != nil {
		go func() {
			_, _ = cmd.stdin.copyFrom(ch)
			cmd.stdin.close()
		}()
	}
	if cmd.supervise(ch, limitOf(in.TimeoutMS), ch.done) {
		return nil, errCanceled
	}
	return cmd.exit, nil
}

func (a *agent) start(_ *channel, in *call) (any, error) {
	keep := or(in.KeepBytes, defaultKeep)
	if keep < minKeep || keep > maxKeep {
		return nil, fail("invalid", "keep_bytes must be from 4096 to 16777216")
	}
	if !commandID.MatchString(in.ID) {
		return nil, fail("invalid", "a command id is 1 to 32 of a-z, 0-9, _ and -")
	}
	p, err := a.plan(in)
	if err != nil {
		return nil, err
	}
	if err := a.commands.reserve(in.ID); err != nil {
		return nil, err
	}
	cmd, err := a.reaper.launch(p, in.Stdin)
	if err != nil {
		a.commands.remove(in.ID)
		return nil, err
	}
	cmd.id, cmd.ring = in.ID, newRing(keep)
	a.commands.fill(in.ID, cmd)
	go cmd.supervise(cmd.ring, limitOf(in.TimeoutMS), nil)
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

type outputCall struct {
	WaitMS int64 `json:"wait_ms"`
}

// output sends kept bytes from a cursor on. With follow it ends when the command has, else at what was there; if there
// was nothing, it waits up to wait_ms for something.
func (a *agent) output(ch *channel, in *call) (any, error) {
	own, err := fields[outputCall](in)
	if err != nil {
		return nil, err
	}
	cmd, err := a.commands.kept(in.ID)
	if err != nil {
		return nil, err
	}
	patience := newPatience(own.WaitMS)
	defer patience.stop()
	_, stop := cmd.ring.cursors()
	if in.Cursor < 0 || in.Cursor > stop {
		return nil, fail("invalid", "the cursor is beyond the end of the output")
	}
	limit := or(in.Limit, 0)
	cursor := in.Cursor
	buffer := pipeBuffers.Get().(*[]byte)
	defer pipeBuffers.Put(buffer)
	for sent := int64(0); limit <= 0 || sent < limit; {
		frame := *buffer
		if limit > 0 {
			frame = frame[:headerSize+int(min(limit-sent, pipePiece))]
		}
		k, n, lost, ended, changed := cmd.ring.read(cursor, frame[headerSize:])
		if lost > 0 {
			if err := ch.event(gapEvent{"gap", lost}); err != nil {
				return nil, err
			}
			cursor += lost
		}
		if n == 0 {
			if ended || !in.Follow && (sent > 0 || lost > 0 || patience.isOver()) {
				break
			}
			if err := patience.awaitChange(changed, ch.done, in.Follow); err != nil {
				return nil, err
			}
			if !in.Follow {
				_, stop = cmd.ring.cursors()
			}
			continue
		}
		if err := ch.send(k, frame[:headerSize+n]); err != nil {
			return nil, err
		}
		cursor += int64(n)
		sent += int64(n)
		if !in.Follow && cursor >= stop {
			break
		}
	}
	return cmd.outputEnd(cursor), nil
}

// patience is how long a call that does not follow waits for something to come.
type patience struct {
	timer *time.Timer // nil: not at all
	over  bool
}

func newPatience(ms int64) *patience {
	if ms <= 0 {
		return &patience{over: true}
	}
	return &patience{timer: time.NewTimer(limitOf(ms))}
}

func (p *patience) isOver() bool { return p.over }

func (p *patience) stop() {
	if p.timer != nil {
		p.timer.Stop()
	}
}

// awaitChange returns when `changed` closes; for one that does not follow also when its time is over.
func (p *patience) awaitChange(changed, done <-chan struct{}, follows bool) error {
	var expired <-chan time.Time
	if p.timer != nil && !follows {
		expired = p.timer.C
	}
	select {
	case <-changed:
	case <-expired:
		p.over = true
	case <-done:
		return errCanceled
	}
	return nil
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

func (a *agent) writeStdin(ch *channel, in *call) (any, error) {
	cmd, err := a.commands.kept(in.ID)
	if err != nil {
		return nil, err
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
	return struct {
		Written int64 `json:"written"`
	}{written}, nil
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
	err = a.reaper.signal(cmd.proc, syscall.Signal(number), or(in.Group, true))
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
	cmd.kill()
	a.commands.remove(in.ID)
	return empty{}, nil
}

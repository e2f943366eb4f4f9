package main

import (
	"sync"
	"time"
)

// The steady clock counts the time in which the sandbox was there to run: it stands still from a `quiesce` until the
// agent listens again. Limits of commands are measured with it, so those of a sandbox that was on the disk for a day,
// on a machine that has been started since, have neither run out nor become endless.
//
// A timer of the Go runtime is a point on the kernel's monotonic clock, which after a restore may be any other: while
// the clock stands still there is none, and afterwards each gets what it had left.
type steadyClock struct {
	mu      sync.Mutex
	skipped time.Duration // that it stood still
	stopped time.Time     // zero: it runs
	armed   map[*steadyTimer]struct{}
}

// clock is the only one. Zero is when the agent began.
var clock = &steadyClock{armed: map[*steadyTimer]struct{}{}}

var began = time.Now()

// now is how long the agent has been there.
func (c *steadyClock) now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nowLocked()
}

func (c *steadyClock) nowLocked() time.Duration {
	at := c.stopped
	if at.IsZero() {
		at = time.Now()
	}
	return at.Sub(began) - c.skipped
}

// stop lets it stand still. Idempotent.
func (c *steadyClock) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.stopped.IsZero() {
		return
	}
	for t := range c.armed {
		if t.timer != nil {
			t.timer.Stop()
		}
	}
	c.stopped = time.Now()
}

// goOn lets it run again, from where it stood, however far the kernel's clock has come or gone back. Idempotent.
func (c *steadyClock) goOn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped.IsZero() {
		return
	}
	c.skipped += time.Since(c.stopped)
	c.stopped = time.Time{}
	for t := range c.armed {
		t.start()
	}
}

// steadyTimer calls a function once, after some time of the steady clock.
type steadyTimer struct {
	clock *steadyClock
	due   time.Duration
	call  func()
	timer *time.Timer // nil: the clock has stood still since
}

// after is time.AfterFunc. Stop it when it is no longer wanted.
func (c *steadyClock) after(limit time.Duration, call func()) *steadyTimer {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &steadyTimer{clock: c, due: c.nowLocked() + limit, call: call}
	c.armed[t] = struct{}{}
	if c.stopped.IsZero() {
		t.start()
	}
	return t
}

// start wants the clock's lock.
func (t *steadyTimer) start() {
	left := max(t.due-t.clock.nowLocked(), 0)
	if t.timer == nil {
		t.timer = time.AfterFunc(left, t.fire)
	} else {
		t.timer.Reset(left)
	}
}

func (t *steadyTimer) fire() {
	c := t.clock
	c.mu.Lock()
	_, isArmed := c.armed[t]
	isDue := false
	switch {
	case !isArmed || !c.stopped.IsZero(): // stopped while this was on its way
	case c.nowLocked() < t.due: // and started again
		t.start()
	default:
		delete(c.armed, t)
		isDue = true
	}
	c.mu.Unlock()
	if isDue {
		t.call()
	}
}

// Stop is time.Timer.Stop without its answer. A nil timer has none to stop.
func (t *steadyTimer) Stop() {
	if t == nil {
		return
	}
	t.clock.mu.Lock()
	delete(t.clock.armed, t)
	if t.timer != nil {
		t.timer.Stop()
	}
	t.clock.mu.Unlock()
}

// alarm is a channel that is closed after some time of the steady clock.
func (c *steadyClock) alarm(limit time.Duration) (<-chan struct{}, *steadyTimer) {
	rung := make(chan struct{})
	return rung, c.after(limit, func() { close(rung) })
}

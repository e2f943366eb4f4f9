package main

import (
	"testing"
	"time"
)

func newSteadyClock() *steadyClock { return &steadyClock{armed: map[*steadyTimer]struct{}{}} }

// restored sets the clock as if the kernel's had moved by so much while it stood still.
func (c *steadyClock) restored(by time.Duration) {
	c.stop()
	c.mu.Lock()
	c.stopped, c.skipped = c.stopped.Add(-by), c.skipped-by
	c.mu.Unlock()
	c.goOn()
}

func TestTimeOnTheDiskDoesNotCount(t *testing.T) {
	for _, away := range []time.Duration{24 * time.Hour, -24 * time.Hour, 0} {
		c := newSteadyClock()
		before := c.now()
		rung, timer := c.alarm(150 * time.Millisecond)
		c.restored(away)
		if passed := c.now() - before; passed < 0 || passed > soonEnough {
			t.Fatalf("%v passed in %v on the disk", passed, away)
		}
		select {
		case <-rung:
		case <-time.After(soonEnough):
			t.Fatalf("it never rang after %v", away)
		}
		if passed := c.now() - before; passed < 150*time.Millisecond {
			t.Fatalf("it rang early after %v: %v", away, passed)
		}
		timer.Stop()
		if len(c.armed) != 0 {
			t.Fatal("a timer that rang is still armed")
		}
	}
}

func TestNothingRingsWhileTheClockStandsStill(t *testing.T) {
	c := newSteadyClock()
	var rung <-chan struct{}
	for { // until the clock stood still in time
		before := c.now()
		rung, _ = c.alarm(20 * time.Millisecond)
		c.stop()
		if c.now()-before < 20*time.Millisecond {
			break
		}
		c.goOn()
	}
	c.stop()
	stood := c.now()
	later, timer := c.alarm(20 * time.Millisecond)
	select {
	case <-rung:
		t.Fatal("rang")
	case <-time.After(60 * time.Millisecond):
	}
	if c.now() != stood {
		t.Fatal("it ran")
	}
	c.goOn()
	<-rung
	<-later
	timer.Stop()
	var none *steadyTimer
	none.Stop()
}

func TestATimerThatIsStoppedDoesNotRing(t *testing.T) {
	c := newSteadyClock()
	var inTime []<-chan struct{} // of the timers that were stopped before they were due
	for len(inTime) < 100 {
		before := c.now()
		rung, timer := c.alarm(time.Millisecond)
		timer.Stop()
		timer.Stop()
		if c.now()-before < time.Millisecond {
			inTime = append(inTime, rung)
		}
		c.stop()
		c.goOn()
	}
	time.Sleep(20 * time.Millisecond)
	for _, rung := range inTime {
		select {
		case <-rung:
			t.Fatal("rang")
		default:
		}
	}
}

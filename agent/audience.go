package main

import (
	"sync"
	"time"
)

// audience holds a terminal's output back for those who look on: its programs wait rather than overrun the most
// advanced viewer, so that one who reads at all loses nothing. Slower ones get a gap. A viewer that takes nothing for
// `patience` does not count.
//
// What counts as taken is what the host has given credit for again, and a quarter of the ring is kept behind it: a host
// that dies takes the rest with it. The last viewer to leave counts for `patience`, or until another comes, so a client
// that is back by then has lost nothing. The first one counts likewise before it comes, for `firstLook`: a terminal is
// opened by one request and looked at by the next.
type audience struct {
	mu      sync.Mutex
	viewers map[*viewer]struct{}
	left    viewer        // the last to leave; counts while its `since` is young
	moved   chan struct{} // closed when somebody has moved on; nil while nobody waits for it
	closed  bool
}

// viewer is one reader of the output. A nil one holds nothing back.
type viewer struct {
	audience *audience
	channel  *channel
	sent     int64         // cursor behind what was sent
	taken    int64         // cursor behind what the host has taken; never above `sent`
	isBusy   bool          // something is under way
	since    time.Duration // of the steady clock: when it last took something of that
}

// expect lets the first viewer count from now on.
func (a *audience) expect() {
	a.viewers = map[*viewer]struct{}{}
	a.left = viewer{audience: a, isBusy: true, since: clock.now() + firstLook - patience}
}

// enter adds a viewer at a cursor. It must leave.
func (a *audience) enter(ch *channel, cursor int64) *viewer {
	v := &viewer{audience: a, channel: ch, sent: cursor, taken: cursor}
	a.mu.Lock()
	a.viewers[v] = struct{}{}
	a.left = viewer{}
	a.wake()
	a.mu.Unlock()
	ch.notifyCredit(v.credited)
	return v
}

func (v *viewer) leave() {
	if v == nil {
		return
	}
	v.channel.notifyCredit(nil)
	a := v.audience
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.viewers, v)
	if len(a.viewers) == 0 {
		if !v.isBusy {
			v.isBusy, v.since = true, clock.now()
		}
		a.left = *v
	}
	a.wake()
}

// sending says that something is under way from now on.
func (v *viewer) sending() {
	if v == nil {
		return
	}
	v.audience.mu.Lock()
	if !v.isBusy {
		v.isBusy, v.since = true, clock.now()
	}
	v.audience.mu.Unlock()
}

// has says that everything before the cursor was sent.
func (v *viewer) has(cursor int64) {
	if v == nil {
		return
	}
	v.audience.mu.Lock()
	v.sent = cursor
	v.audience.mu.Unlock()
	v.credited()
}

// credited looks how much of it the host has taken. The credit is used up before `sent` grows: in between, this sees
// too little taken, never too much.
func (v *viewer) credited() {
	outstanding := v.channel.outstanding()
	v.audience.mu.Lock()
	defer v.audience.mu.Unlock()
	taken := v.sent - outstanding
	if taken <= v.taken {
		return
	}
	v.taken, v.since, v.isBusy = taken, clock.now(), taken != v.sent
	v.audience.wake()
}

func (a *audience) wake() {
	if a.moved != nil {
		close(a.moved)
		a.moved = nil
	}
}

func (a *audience) close() {
	a.mu.Lock()
	a.closed = true
	a.wake()
	a.mu.Unlock()
}

// wait returns when output before the floor may be dropped.
func (a *audience) wait(floor int64) {
	for {
		moved, most := a.behind(floor)
		if moved == nil {
			return
		}
		expired, timer := clock.alarm(most)
		select {
		case <-moved:
		case <-expired:
		}
		timer.Stop()
	}
}

// behind gives what to wait for, and how long at most; nil when there is nobody to wait for.
func (a *audience) behind(floor int64) (<-chan struct{}, time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, 0
	}
	most := a.left.rest()
	if a.left.audience == nil {
		most = 0
	} else if most > 0 && a.left.taken >= floor {
		return nil, 0
	}
	for v := range a.viewers {
		rest := v.rest()
		if rest > 0 && v.taken >= floor {
			return nil, 0
		}
		most = max(most, rest)
	}
	if most <= 0 {
		return nil, 0
	}
	if a.moved == nil {
		a.moved = make(chan struct{})
	}
	return a.moved, most
}

// rest is for how long the viewer counts if it takes nothing from now on.
func (v *viewer) rest() time.Duration {
	if !v.isBusy {
		return patience
	}
	return patience - (clock.now() - v.since)
}

// pacedRing is the sink of a terminal's output.
type pacedRing struct {
	ring     *ring
	audience *audience
}

func (p pacedRing) send(k kind, frame []byte) error {
	quarter := p.ring.limit / 4
	for data := frame[headerSize:]; len(data) > 0; {
		piece := data[:min(len(data), quarter)]
		_, end := p.ring.cursors()
		if floor := end + int64(len(piece)-p.ring.limit+quarter); floor > 0 {
			p.audience.wait(floor)
		}
		p.ring.add(k, piece)
		data = data[len(piece):]
	}
	return nil
}

package main

import (
	"crypto/rand"
	"encoding/hex"
	"sync"
	"time"
)

// A session is a connection whose calls outlive it: `quiesce` with `keep` parks it, a HELLO with its token takes it up
// on another stream, `revive` lets its calls go in a sandbox that was made of a checkpoint. At most one is parked.

// leaveLimit is how long the goroutine that read the old stream has to be gone. It waits for nothing but the stream.
const leaveLimit = time.Second

// sessions holds the parked one.
type sessions struct {
	mu     sync.Mutex
	token  string
	parked *conn
}

func newToken() string {
	var random [16]byte
	_, _ = rand.Read(random[:])
	return hex.EncodeToString(random[:])
}

// put parks a connection, in place of any other.
func (s *sessions) put(token string, c *conn) {
	s.mu.Lock()
	before := s.parked
	s.token, s.parked = token, c
	s.mu.Unlock()
	if before != nil {
		before.close()
	}
}

// take gives the session of a token, once.
func (s *sessions) take(token string) *conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.parked == nil || token == "" || token != s.token {
		return nil
	}
	c := s.parked
	s.token, s.parked = "", nil
	return c
}

// takeAny gives whichever is parked, unless it is `but`.
func (s *sessions) takeAny(but *conn) *conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.parked == but {
		return nil
	}
	c := s.parked
	s.token, s.parked = "", nil
	return c
}

type quiesceCall struct {
	Keep bool `json:"keep"`
}

type quiesceResult struct {
	Session string `json:"session,omitempty"`
}

// quiesce closes everything that a checkpoint cannot carry: the bound socket, the connections to the host, what watches
// have of the kernel. With `keep`, the calls of the connection that asks stay as they are.
func (a *agent) quiesce(ch *channel, in *call) {
	own, err := fields[quiesceCall](in)
	if err != nil {
		ch.conn.end(ch, kindFail, asFailure(err))
		return
	}
	// All of it before the answer: who has read that, and the end of the stream, may take the checkpoint.
	clock.stop()
	a.watches.tree.rest()
	a.revival.expect()
	a.listener.quiesce(a.socket, ch.conn)
	if !own.Keep {
		ch.conn.end(ch, kindResult, quiesceResult{})
		ch.conn.close()
		return
	}
	token := newToken()
	a.sessions.put(token, ch.conn)
	ch.conn.park(ch, quiesceResult{token})
}

// park sends the answer as the last frame of this stream. Whoever wants to write afterwards waits for the next one.
func (c *conn) park(ch *channel, answer quiesceResult) {
	c.mu.Lock()
	delete(c.channels, ch.id)
	c.mu.Unlock()
	ch.discard()
	k, frame := encode(kindResult, answer)
	c.lockWriting()
	ch.terminated = true
	c.isParked.Store(true)
	header{uint32(len(frame) - headerSize), k, ch.id}.put(frame)
	_, _ = c.file.Write(frame) // should it fail, nobody knows the token
	c.writing.Unlock()
	_ = c.file.Close() // what was written stays readable for the host
}

// lockWriting locks `writing` and waits while the connection is parked.
func (c *conn) lockWriting() {
	c.writing.Lock()
	for c.isParked.Load() {
		c.unparked.Wait()
	}
}

func (c *conn) unpark() {
	c.writing.Lock()
	c.isParked.Store(false)
	c.unparked.Broadcast()
	c.writing.Unlock()
}

// takeUp goes on with a parked connection's calls on the stream of `from`, which is over. False: it cannot.
func (c *conn) takeUp(from *conn) bool {
	timer := time.NewTimer(leaveLimit)
	defer timer.Stop()
	select {
	case <-c.left:
	case <-timer.C:
		return false
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || !from.owner.replace(from, c) {
		return false
	}
	c.file, c.reader, c.owner, c.left = from.file, from.reader, from.owner, make(chan struct{})
	c.isParked.Store(false)
	c.unparked.Broadcast()
	return true
}

// release ends a parked connection that nobody will take up because its host's calls belong to another sandbox. Calls
// that can go on without it do; the others are canceled. It returns how many do.
func (c *conn) release() int {
	open := c.finish()
	going := 0
	for _, ch := range open {
		if ch.release() {
			going++
		}
	}
	c.unpark()
	return going
}

// release lets a call go on without its host, where its operation knows how to; otherwise it is canceled.
func (ch *channel) release() bool {
	ch.mu.Lock()
	goOn := ch.goOn
	ch.mu.Unlock()
	// First where its output goes from now on, then that the host takes no more.
	isGoing := goOn != nil && goOn()
	ch.mu.Lock()
	ch.released = true
	ch.eof = true // what came is still processed
	ch.changed.Broadcast()
	ch.mu.Unlock()
	if !isGoing {
		ch.cancel()
	}
	return isGoing
}

// onRelease says how the call goes on without its host. False, if it does not.
func (ch *channel) onRelease(goOn func() bool) {
	ch.mu.Lock()
	ch.goOn = goOn
	ch.mu.Unlock()
}

func (ch *channel) isReleased() bool {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return ch.released
}

// awaitStream returns once the call's connection is not parked: taken up, released or closed.
func (ch *channel) awaitStream() {
	ch.conn.lockWriting()
	ch.conn.writing.Unlock() //nolint:staticcheck // the wait is the point
}

// attached is the sink of an attached command: its call's channel, and its ring once the call is released.
type attached struct {
	ch  *channel
	cmd *command
}

func (s attached) send(k kind, frame []byte) error {
	rest, err := s.ch.push(k, frame)
	if err != nil && s.cmd.isKept.Load() {
		return s.cmd.ring.send(k, rest)
	}
	return err
}

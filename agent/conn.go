package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	maxChannels  = 1024
	helloTimeout = 10 * time.Second
	maxPing      = 64
)

// features names what this build can do beyond the first release of protocol 1; a host asks before it relies on one.
var features = []string{"exec", "files", "dial", "quiesce", "trees", "tools", "poll", "pty", "watch", "shell", "ports", "session"}

type hello struct {
	Protocol    int      `json:"protocol"`
	MinProtocol int      `json:"min_protocol"`
	Agent       string   `json:"agent"`
	Build       string   `json:"build"`
	PID         int      `json:"pid"`
	Features    []string `json:"features"`
	Resume      string   `json:"resume,omitempty"` // the host's: the token of a parked session
}

var errProtocol = errors.New("the host broke the protocol")

// conn is one connection. One goroutine reads; it never waits for a consumer, because every channel's unread bytes are
// bounded by its credit. Writers take turns under `writing`.
//
// It may change its stream: see session.go. `file`, `reader`, `owner` and `left` change then, under both locks.
type conn struct {
	agent    *agent
	owner    *listener
	file     *os.File
	reader   *bufio.Reader
	left     chan struct{} // closed when the goroutine that reads has gone
	writing  sync.Mutex
	unparked sync.Cond   // of `writing`
	isParked atomic.Bool // changed under `writing`

	mu       sync.Mutex
	channels map[uint32]*channel
	last     uint32 // highest channel id seen; lower ones that are not open have ended
	closed   bool
}

func newConn(a *agent, l *listener, fd int) *conn {
	// Bigger than the default of 208 KiB where the kernel allows it: one 256 KiB frame then needs one wakeup.
	_ = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_SNDBUF, 1<<20)
	file := os.NewFile(uintptr(fd), "host")
	c := &conn{agent: a, owner: l, file: file, reader: bufio.NewReaderSize(file, 8<<10), channels: map[uint32]*channel{}, left: make(chan struct{})}
	c.unparked.L = &c.writing
	return c
}

func (c *conn) serve() {
	token, err := c.greet()
	if err != nil {
		c.close()
		return
	}
	if token == "" {
		c.read()
		return
	}
	parked := c.agent.sessions.take(token)
	if parked == nil { // the host learns it from the end of the stream
		c.close()
		return
	}
	if !parked.takeUp(c) {
		parked.close()
		c.close()
		return
	}
	parked.read()
}

// read takes frames until the stream ends. A parked connection waits for another stream then.
func (c *conn) read() {
	left := c.left
	for {
		h, err := readHeader(c.reader)
		if err != nil || c.dispatch(h) != nil {
			break
		}
	}
	if !c.isParked.Load() {
		c.close()
	}
	close(left)
}

// greet exchanges HELLO. A host that stays silent is dropped, so that idle strangers cannot fill the connection table.
// It returns the token of the session that the host wants to go on with, empty: none.
func (c *conn) greet() (string, error) {
	ours, _ := json.Marshal(hello{Protocol: 1, MinProtocol: 1, Agent: version, Build: build, PID: os.Getpid(), Features: features})
	if err := c.write(kindHello, 0, ours); err != nil {
		return "", err
	}
	_ = c.file.SetReadDeadline(time.Now().Add(helloTimeout))
	h, err := readHeader(c.reader)
	if err != nil {
		return "", err
	}
	if h.kind != kindHello || h.channel != 0 {
		return "", errProtocol
	}
	payload, err := c.payload(h)
	if err != nil {
		return "", err
	}
	var theirs hello
	if json.Unmarshal(payload, &theirs) != nil || theirs.Protocol != 1 {
		return "", errProtocol
	}
	return theirs.Resume, c.file.SetReadDeadline(time.Time{})
}

func (c *conn) payload(h header) ([]byte, error) {
	b := make([]byte, h.length)
	_, err := io.ReadFull(c.reader, b)
	return b, err
}

func (c *conn) dispatch(h header) error {
	switch h.kind {
	case kindCall:
		return c.open(h)
	case kindData:
		return c.data(h)
	case kindEOF, kindCancel:
		if h.length != 0 {
			return errProtocol
		}
		return c.mark(h)
	case kindCredit:
		return c.credit(h)
	case kindPing:
		return c.pong(h)
	default:
		return errProtocol
	}
}

// open starts a call. Ids only grow, which is how a late frame for an ended channel is told from a wrong one.
func (c *conn) open(h header) error {
	payload, err := c.payload(h)
	if err != nil {
		return err
	}
	c.mu.Lock()
	if h.channel <= c.last || c.closed {
		c.mu.Unlock()
		return errProtocol
	}
	c.last = h.channel
	ch := newChannel(c, h.channel)
	full := len(c.channels) >= maxChannels
	if !full {
		c.channels[h.channel] = ch
	}
	c.mu.Unlock()
	if full {
		c.end(ch, kindFail, failure{"limit", "too many calls at once on this connection"})
		return nil
	}
	go c.agent.run(ch, payload)
	return nil
}

// find returns the open channel, nil for one that has ended, or an error for one that never was.
func (c *conn) find(id uint32) (*channel, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ch := c.channels[id]; ch != nil {
		return ch, nil
	}
	if id == 0 || id > c.last {
		return nil, errProtocol
	}
	return nil, nil
}

func (c *conn) data(h header) error {
	ch, err := c.find(h.channel)
	if err != nil {
		return err
	}
	if ch == nil {
		_, err = c.reader.Discard(int(h.length))
		return err
	}
	b, release := payloadBuffer(int(h.length))
	if _, err = io.ReadFull(c.reader, b); err != nil {
		return err
	}
	return ch.receive(piece{b, release})
}

func (c *conn) mark(h header) error {
	ch, err := c.find(h.channel)
	switch {
	case err != nil || ch == nil:
		return err
	case h.kind == kindCancel:
		ch.cancel()
		return nil
	default:
		return ch.receiveEOF()
	}
}

func (c *conn) credit(h header) error {
	if h.length != 4 {
		return errProtocol
	}
	payload, err := c.payload(h)
	if err != nil {
		return err
	}
	ch, err := c.find(h.channel)
	if err != nil || ch == nil {
		return err
	}
	ch.grant(int64(binary.BigEndian.Uint32(payload)))
	return nil
}

func (c *conn) pong(h header) error {
	if h.length > maxPing || h.channel != 0 {
		return errProtocol
	}
	payload, err := c.payload(h)
	if err != nil {
		return err
	}
	return c.write(kindPong, 0, payload)
}

func (c *conn) write(k kind, id uint32, payload []byte) error {
	frame := make([]byte, headerSize+len(payload))
	copy(frame[headerSize:], payload)
	c.lockWriting()
	defer c.writing.Unlock()
	return c.writeLocked(k, id, frame)
}

// writeLocked sends a frame whose first headerSize bytes are room for the header. `writing` is held.
func (c *conn) writeLocked(k kind, id uint32, frame []byte) error {
	header{uint32(len(frame) - headerSize), k, id}.put(frame)
	_, err := c.file.Write(frame)
	if err != nil {
		c.close() // half a frame may be out: nothing sensible can follow
	}
	return err
}

// encode makes a frame of a JSON payload. One that does not fit becomes a FAIL.
func encode(k kind, value any) (kind, []byte) {
	payload, err := json.Marshal(value)
	if err != nil || len(payload) > maxPayload {
		payload, _ = json.Marshal(failure{"too_large", "the answer does not fit into a frame"})
		k = kindFail
	}
	frame := make([]byte, headerSize+len(payload))
	copy(frame[headerSize:], payload)
	return k, frame
}

// end sends the terminal frame and forgets the channel. Forgotten first: whatever the host sends after it has read the
// frame must already count as late. Nothing of this channel may follow it on the wire, hence the flag under `writing`.
func (c *conn) end(ch *channel, k kind, value any) {
	c.mu.Lock()
	delete(c.channels, ch.id)
	c.mu.Unlock()
	ch.discard()
	k, frame := encode(k, value)
	c.lockWriting()
	ch.terminated = true
	_ = c.writeLocked(k, ch.id, frame)
	c.writing.Unlock()
}

// close is idempotent; it cancels every call of the connection.
func (c *conn) close() {
	for _, ch := range c.finish() {
		ch.cancel()
	}
	if c.isParked.Load() { // never with `writing` held: who holds it has waited for this
		c.unpark()
	}
}

// finish closes the stream for good and returns the calls that were open, the first time.
func (c *conn) finish() []*channel {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	open := make([]*channel, 0, len(c.channels))
	for _, ch := range c.channels {
		open = append(open, ch)
	}
	file, owner := c.file, c.owner
	c.mu.Unlock()
	_ = file.Close()
	owner.remove(c)
	return open
}

package main

import (
	"encoding/binary"
	"io"
	"sync"
)

// Credit is given back in pieces of this size: often enough that a sender never runs dry (a quarter of the window).
const creditPiece = initialCredit / 4

// piece is received payload and the function that returns its buffer to the pool.
type piece struct {
	bytes   []byte
	release func()
}

// channel is one call: its flow control in both directions and its cancellation.
type channel struct {
	id   uint32
	conn *conn
	// done is closed by cancel, for those who select; the others wait on `changed`.
	done chan struct{}

	mu       sync.Mutex
	changed  sync.Cond
	canceled bool
	sendable int64 // what the host still allows us to send
	allowed  int64 // what we still allow the host to send
	unspent  int64 // consumed, not yet given back
	inbox    []piece
	eof      bool
	ended    bool
	credited func() // called whenever the host has given credit
	released bool   // the host is another sandbox's; see session.go
	goOn     func() bool

	terminated bool // RESULT or FAIL is out; guarded by conn.writing
}

func newChannel(c *conn, id uint32) *channel {
	ch := &channel{id: id, conn: c, done: make(chan struct{}), sendable: initialCredit, allowed: initialCredit}
	ch.changed.L = &ch.mu
	return ch
}

func (ch *channel) cancel() {
	ch.mu.Lock()
	if !ch.canceled {
		ch.canceled = true
		close(ch.done)
		ch.changed.Broadcast()
	}
	ch.mu.Unlock()
}

func (ch *channel) isCanceled() bool {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return ch.canceled
}

// receive queues payload from the host; the queue is bounded by the credit we gave.
func (ch *channel) receive(p piece) error {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	n := int64(len(p.bytes))
	if ch.eof || n > ch.allowed {
		return errProtocol
	}
	ch.allowed -= n
	if ch.ended || n == 0 {
		p.release()
		return nil
	}
	ch.inbox = append(ch.inbox, p)
	ch.changed.Broadcast()
	return nil
}

func (ch *channel) receiveEOF() error {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if ch.eof {
		return errProtocol
	}
	ch.eof = true
	ch.changed.Broadcast()
	return nil
}

func (ch *channel) grant(n int64) {
	ch.mu.Lock()
	ch.sendable += n
	ch.changed.Broadcast()
	credited := ch.credited
	ch.mu.Unlock()
	if credited != nil {
		credited()
	}
}

// notifyCredit has f called whenever the host has given credit; nil: nobody.
func (ch *channel) notifyCredit(f func()) {
	ch.mu.Lock()
	ch.credited = f
	ch.mu.Unlock()
}

// outstanding is how many bytes were sent that the host has not taken yet.
func (ch *channel) outstanding() int64 {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return initialCredit - ch.sendable
}

// next waits for a piece from the host. io.EOF: the host sends no more; errCanceled: the call is over.
// The caller must release the piece and then call spent.
func (ch *channel) next() (piece, error) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	for {
		switch {
		case ch.canceled || ch.ended:
			return piece{}, errCanceled
		case len(ch.inbox) > 0:
			p := ch.inbox[0]
			ch.inbox[0] = piece{}
			ch.inbox = ch.inbox[1:]
			return p, nil
		case ch.eof:
			return piece{}, io.EOF
		}
		ch.changed.Wait()
	}
}

// spent gives consumed bytes back to the host as credit.
func (ch *channel) spent(n int) {
	ch.mu.Lock()
	ch.unspent += int64(n)
	give := ch.unspent
	if give < creditPiece || ch.eof {
		ch.mu.Unlock()
		return
	}
	ch.unspent = 0
	ch.allowed += give
	ch.mu.Unlock()
	_ = ch.transmit(kindCredit, binary.BigEndian.AppendUint32(make([]byte, headerSize, headerSize+4), uint32(give)))
}

// reserve waits for credit and takes up to n bytes of it.
func (ch *channel) reserve(n int) (int, error) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	for ch.sendable <= 0 && !ch.canceled && !ch.released {
		ch.changed.Wait()
	}
	if ch.canceled || ch.released {
		return 0, errCanceled
	}
	take := min(int64(n), ch.sendable)
	ch.sendable -= take
	return int(take), nil
}

// send sends frame[headerSize:] as data, in as many frames as the credit needs. It overwrites the buffer: the header
// of each further frame is put over payload that is already out.
func (ch *channel) send(k kind, frame []byte) error {
	_, err := ch.push(k, frame)
	return err
}

// push is send that gives back what was not sent, with room for a header in front.
func (ch *channel) push(k kind, frame []byte) ([]byte, error) {
	for len(frame) > headerSize {
		n, err := ch.reserve(len(frame) - headerSize)
		if err != nil {
			return frame, err
		}
		if err := ch.transmit(k, frame[:headerSize+n]); err != nil {
			return frame, err
		}
		frame = frame[n:]
	}
	return nil, nil
}

// transmit writes a frame unless the call has ended meanwhile.
func (ch *channel) transmit(k kind, frame []byte) error {
	ch.conn.lockWriting()
	defer ch.conn.writing.Unlock()
	if ch.terminated {
		return errCanceled
	}
	return ch.conn.writeLocked(k, ch.id, frame)
}

func (ch *channel) event(value any) error {
	k, frame := encode(kindEvent, value)
	if k != kindEvent {
		return fail("too_large", "an event does not fit into a frame")
	}
	return ch.transmit(k, frame)
}

func (ch *channel) sendEOF() error { return ch.transmit(kindEOF, make([]byte, headerSize)) }

// discard drops what is queued; later payload is dropped on arrival.
func (ch *channel) discard() {
	ch.mu.Lock()
	ch.ended = true
	ch.changed.Broadcast() // the copier of an ended command's stdin may still wait for the host
	for _, p := range ch.inbox {
		p.release()
	}
	ch.inbox = nil
	ch.mu.Unlock()
}

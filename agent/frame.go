package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"sync"
)

// Frame layout and kinds: PROTOCOL.md sections 1 and 2. The golden vectors in testdata/frames.json hold both sides to it.
const (
	headerSize    = 9
	maxPayload    = 1 << 20
	initialCredit = 1 << 20
)

type kind byte

const (
	kindHello   kind = 0x01
	kindCall    kind = 0x02
	kindResult  kind = 0x03
	kindFail    kind = 0x04
	kindEvent   kind = 0x05
	kindData    kind = 0x06
	kindDataErr kind = 0x07
	kindEOF     kind = 0x08
	kindCredit  kind = 0x09
	kindCancel  kind = 0x0A
	kindPing    kind = 0x0B
	kindPong    kind = 0x0C
)

var errTooLarge = errors.New("frame payload larger than 1 MiB")

type header struct {
	length  uint32
	kind    kind
	channel uint32
}

func (h header) put(b []byte) {
	binary.BigEndian.PutUint32(b, h.length)
	b[4] = byte(h.kind)
	binary.BigEndian.PutUint32(b[5:], h.channel)
}

func parseHeader(b []byte) (header, error) {
	h := header{binary.BigEndian.Uint32(b), kind(b[4]), binary.BigEndian.Uint32(b[5:])}
	if h.length > maxPayload {
		return h, errTooLarge
	}
	return h, nil
}

// readHeader reads one header. io.EOF means that the stream ended between frames.
func readHeader(r *bufio.Reader) (header, error) {
	var b [headerSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return header{}, err
	}
	return parseHeader(b[:])
}

// Sizes of pooled payload buffers. A pipe holds 64 KiB; files move in pieces of 256 KiB, where the cost of a frame
// (a write, a wakeup on the host) is below a tenth of that of the copy.
const (
	pipePiece = 64 << 10
	filePiece = 256 << 10
)

var (
	pipeBuffers = sync.Pool{New: func() any { return newFrameBuffer(pipePiece) }}
	fileBuffers = sync.Pool{New: func() any { return newFrameBuffer(filePiece) }}
)

// newFrameBuffer has room for the header in front, so a frame leaves with one write and no copy.
func newFrameBuffer(piece int) *[]byte {
	b := make([]byte, headerSize+piece)
	return &b
}

// payloadBuffer returns a pooled buffer of at least n bytes and the function that takes it back.
func payloadBuffer(n int) ([]byte, func()) {
	pool := &pipeBuffers
	switch {
	case n <= 4096: // not worth pooling, and it would pin 64 KiB for a keystroke
		return make([]byte, n), func() {}
	case n > filePiece:
		return make([]byte, n), func() {}
	case n > pipePiece:
		pool = &fileBuffers
	}
	b := pool.Get().(*[]byte)
	return (*b)[:n], func() { pool.Put(b) }
}

package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"testing"
)

type vectors struct {
	Valid []struct {
		Name, Payload, Frame string
		Kind                 byte
		Channel              uint32
	}
	Invalid []struct{ Name, From, Frame string }
}

func readVectors(t *testing.T) vectors {
	t.Helper()
	content, err := os.ReadFile("testdata/frames.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(content, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGoldenFramesAreReadAndWrittenAsTheHostDoes(t *testing.T) {
	for _, v := range readVectors(t).Valid {
		frame, payload := unhex(t, v.Frame), unhex(t, v.Payload)
		r := bufio.NewReader(bytes.NewReader(frame))
		h, err := readHeader(r)
		if err != nil || h != (header{uint32(len(payload)), kind(v.Kind), v.Channel}) {
			t.Errorf("%s: %v, %v", v.Name, h, err)
		}
		rest, _ := io.ReadAll(r)
		if !bytes.Equal(rest, payload) {
			t.Errorf("%s: payload %x", v.Name, rest)
		}
		written := make([]byte, headerSize+len(payload))
		copy(written[headerSize:], payload)
		header{uint32(len(payload)), kind(v.Kind), v.Channel}.put(written)
		if !bytes.Equal(written, frame) {
			t.Errorf("%s: wrote %x", v.Name, written)
		}
	}
}

func TestAFrameThatAHostMustNotSendClosesTheConnection(t *testing.T) {
	for _, v := range readVectors(t).Invalid {
		if v.From != "host" {
			continue
		}
		c := &conn{channels: map[uint32]*channel{}, last: 5}
		c.reader = bufio.NewReader(bytes.NewReader(unhex(t, v.Frame)))
		h, err := readHeader(c.reader)
		if err == nil {
			err = c.dispatch(h)
		}
		if !errors.Is(err, errProtocol) && !errors.Is(err, errTooLarge) {
			t.Errorf("%s: %v", v.Name, err)
		}
	}
}

func TestLateFramesOfEndedChannelsAreDropped(t *testing.T) {
	stream := []byte{}
	for _, k := range []kind{kindData, kindEOF, kindCancel} {
		var b [headerSize]byte
		header{0, k, 3}.put(b[:])
		stream = append(stream, b[:]...)
	}
	c := &conn{channels: map[uint32]*channel{}, last: 5, reader: bufio.NewReader(bytes.NewReader(stream))}
	for range 3 {
		h, err := readHeader(c.reader)
		if err == nil {
			err = c.dispatch(h)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestTheHostCannotSendBeyondItsCredit(t *testing.T) {
	ch := newChannel(nil, 1)
	release := func() {}
	if err := ch.receive(piece{make([]byte, initialCredit), release}); err != nil {
		t.Fatal(err)
	}
	if err := ch.receive(piece{make([]byte, 1), release}); !errors.Is(err, errProtocol) {
		t.Fatal(err)
	}
}

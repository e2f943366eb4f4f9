package main

import (
	"encoding/json"
	"time"
)

const (
	maxLine   = 64 << 10
	lineFlush = 32 << 10
	lineWait  = 50 * time.Millisecond
)

// lines sends values as NDJSON in DATA: many to a frame while they come fast, none held back for long.
type lines struct {
	ch    *channel
	frame []byte // headerSize bytes of room, then lines
	last  time.Time
}

func newLines(ch *channel) *lines {
	return &lines{ch: ch, frame: make([]byte, headerSize, headerSize+lineFlush+4096), last: time.Now()}
}

// add queues one value. One that is too long for a line fails: the caller has bounded its parts.
func (l *lines) add(value any) error {
	b, err := json.Marshal(value)
	if err != nil || len(b) >= maxLine {
		return fail("too_large", "an entry does not fit into a line")
	}
	l.frame = append(append(l.frame, b...), '\n')
	if len(l.frame) >= lineFlush {
		return l.flush()
	}
	return l.poll()
}

// poll sends what has waited long enough.
func (l *lines) poll() error {
	if len(l.frame) == headerSize || time.Since(l.last) < lineWait {
		return nil
	}
	return l.flush()
}

func (l *lines) flush() error {
	l.last = time.Now()
	if len(l.frame) == headerSize {
		return nil
	}
	err := l.ch.send(kindData, l.frame)
	l.frame = l.frame[:headerSize]
	return err
}

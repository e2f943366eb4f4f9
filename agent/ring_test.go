package main

import (
	"bytes"
	"math/rand"
	"testing"
)

type noted struct {
	kind kind
	b    byte
}

// TestARingKeepsTheTailOfBothStreamsInOrder compares the ring with a plain list over random writes and reads.
func TestARingKeepsTheTailOfBothStreamsInOrder(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	for range 200 {
		limit := minKeep + random.Intn(3*minKeep)
		r, all := newRing(limit), []noted{}
		for range random.Intn(40) {
			k := []kind{kindData, kindDataErr}[random.Intn(2)]
			frame := make([]byte, headerSize+random.Intn(2*minKeep))
			random.Read(frame)
			_ = r.send(k, frame)
			for _, b := range frame[headerSize:] {
				all = append(all, noted{k, b})
			}
		}
		compare(t, r, all, limit)
	}
}

func compare(t *testing.T, r *ring, all []noted, limit int) {
	t.Helper()
	oldest, end := r.cursors()
	if end != int64(len(all)) || oldest < end-int64(limit) || oldest > max(0, end-int64(limit)) {
		t.Fatalf("cursors %d, %d of %d with limit %d", oldest, end, len(all), limit)
	}
	var cursor, lostSum int64
	b := make([]byte, 1000)
	for {
		k, n, lost, _, _ := r.read(cursor, b)
		cursor += lost
		lostSum += lost
		if n == 0 {
			break
		}
		for i := range n {
			if all[cursor+int64(i)] != (noted{k, b[i]}) {
				t.Fatalf("byte %d differs", cursor+int64(i))
			}
		}
		cursor += int64(n)
	}
	if cursor != end || lostSum != oldest {
		t.Fatalf("read to %d of %d, lost %d of %d", cursor, end, lostSum, oldest)
	}
}

func TestARingOfAlternatingStreamsStaysSmall(t *testing.T) {
	r := newRing(minKeep)
	for i := range 100_000 {
		_ = r.send([]kind{kindData, kindDataErr}[i%2], append(make([]byte, headerSize), byte(i)))
	}
	if len(r.runs) > 66 || cap(r.runs) > 4096 {
		t.Fatalf("%d runs, room for %d", len(r.runs), cap(r.runs))
	}
	_, n, _, _, _ := r.read(99_999, make([]byte, 10))
	if n != 1 {
		t.Fatal("the last byte is gone")
	}
}

func TestAQuietRingCostsNothing(t *testing.T) {
	r := newRing(maxKeep)
	_ = r.send(kindData, append(make([]byte, headerSize), bytes.Repeat([]byte("x"), 100)...))
	if len(r.buffer) > minKeep {
		t.Fatalf("%d bytes", len(r.buffer))
	}
}

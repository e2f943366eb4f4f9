package main

import (
	"container/heap"
	"encoding/json"
	"strings"
	"syscall"
)

const (
	maxEntries = 1000
	// Room for the entries of one answer; a frame holds 1 MiB, and the rest comes with the next page.
	maxListing = 960 << 10
	// One read of a directory: ~1500 names.
	directoryPiece = 64 << 10
)

// names is a heap whose top is the largest: it keeps the smallest `limit` names of a directory of any size.
type names []string

func (n names) Len() int           { return len(n) }
func (n names) Less(i, j int) bool { return n[i] > n[j] }
func (n names) Swap(i, j int)      { n[i], n[j] = n[j], n[i] }
func (n *names) Push(x any)        { *n = append(*n, x.(string)) }
func (n *names) Pop() any {
	last := (*n)[len(*n)-1]
	*n = (*n)[:len(*n)-1]
	return last
}

// offer keeps name if it is among the smallest `limit`.
func (n *names) offer(name string, limit int) {
	switch {
	case len(*n) < limit:
		heap.Push(n, strings.Clone(name))
	case name < (*n)[0]:
		(*n)[0] = strings.Clone(name)
		heap.Fix(n, 0)
	}
}

type listResult struct {
	Entries []json.RawMessage `json:"entries"`
	More    bool              `json:"more"`
}

func (a *agent) list(ch *channel, in *call) (any, error) {
	limit := int(or(in.Limit, maxEntries))
	if limit < 1 || limit > maxEntries {
		return nil, fail("invalid", "limit must be from 1 to 1000")
	}
	if err := checkPath(in.Path); err != nil {
		return nil, err
	}
	found, err := smallestNames(ch, in.Path, in.After, limit+1)
	if err != nil {
		return nil, err
	}
	return describeAll(trimSlash(in.Path), found, limit), nil
}

// smallestNames returns up to `limit` names after `after`, in order. A name that is no UTF-8 counts as it is shown:
// compared raw, it could sort behind its own shown form, and a host that pages by it would never get past it.
func smallestNames(ch *channel, dir string, after *string, limit int) ([]string, error) {
	fd, err := syscall.Open(dir, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, at(dir, err)
	}
	defer syscall.Close(fd)
	kept := names{}
	buffer := make([]byte, directoryPiece)
	piece := make([]string, 0, 2048)
	for !ch.isCanceled() {
		n, err := syscall.ReadDirent(fd, buffer)
		if err != nil {
			return nil, at(dir, err)
		}
		if n <= 0 {
			return kept.sorted(), nil
		}
		_, _, piece = syscall.ParseDirent(buffer[:n], -1, piece[:0])
		for _, name := range piece {
			if after == nil || text(name) > *after {
				kept.offer(name, limit)
			}
		}
	}
	return nil, errCanceled
}

func (n *names) sorted() []string {
	all := make([]string, len(*n))
	for i := len(all) - 1; i >= 0; i-- {
		all[i] = heap.Pop(n).(string)
	}
	return all
}

func describeAll(dir string, found []string, limit int) listResult {
	result := listResult{Entries: make([]json.RawMessage, 0, len(found))}
	size := 0
	for i, name := range found {
		if i == limit {
			result.More = true
			break
		}
		s, err := statPath(strings.TrimRight(dir, "/")+"/"+name, false)
		if err != nil {
			continue // gone since we read its name
		}
		encoded, err := json.Marshal(s)
		if err != nil {
			continue
		}
		if size += len(encoded) + 1; size > maxListing {
			result.More = true
			break
		}
		result.Entries = append(result.Entries, encoded)
	}
	return result
}

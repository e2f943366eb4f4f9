package main

import (
	"strconv"
	"sync"
	"syscall"
	"time"
)

const maxKept = 256

// registry knows every command by id: attached ones for `signal`, kept ones for everything.
type registry struct {
	reaper *reaper
	mu     sync.Mutex
	byID   map[string]*command
	order  []string // kept ones, oldest first
	next   int
	null   int
}

func newRegistry(r *reaper) *registry {
	return &registry{reaper: r, byID: map[string]*command{}}
}

// nullDevice is opened once and before the sandbox's code runs: it may replace its /dev/null later.
var nullDevice = sync.OnceValues(func() (int, error) {
	return syscall.Open("/dev/null", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
})

// attach registers an attached command under a fresh id.
func (r *registry) attach(cmd *command) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		r.next++
		cmd.id = "c" + strconv.Itoa(r.next)
		if _, taken := r.byID[cmd.id]; !taken {
			r.byID[cmd.id] = cmd
			return
		}
	}
}

func (r *registry) detach(cmd *command) {
	r.mu.Lock()
	if !cmd.isKept.Load() {
		delete(r.byID, cmd.id)
	}
	r.mu.Unlock()
}

// keep makes an attached command a kept one. False: there is no room.
func (r *registry) keep(cmd *command) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byID[cmd.id] != cmd || (len(r.order) >= maxKept && !r.forgetOldestEnded()) {
		return false
	}
	r.order = append(r.order, cmd.id)
	cmd.isKept.Store(true)
	return true
}

// reserve takes an id for a kept command, with a placeholder, and makes room if it must.
func (r *registry) reserve(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, taken := r.byID[id]; taken {
		return fail("exists", "a command of this id exists")
	}
	if len(r.order) >= maxKept && !r.forgetOldestEnded() {
		return fail("limit", "too many commands are running in the background")
	}
	r.byID[id] = nil
	r.order = append(r.order, id)
	return nil
}

func (r *registry) forgetOldestEnded() bool {
	for _, id := range r.order {
		cmd := r.byID[id]
		if cmd == nil {
			continue
		}
		select {
		case <-cmd.ended:
			r.removeLocked(id)
			return true
		default:
		}
	}
	return false
}

func (r *registry) fill(id string, cmd *command) {
	r.mu.Lock()
	r.byID[id] = cmd
	r.mu.Unlock()
}

func (r *registry) remove(id string) {
	r.mu.Lock()
	r.removeLocked(id)
	r.mu.Unlock()
}

func (r *registry) removeLocked(id string) {
	delete(r.byID, id)
	for i, one := range r.order {
		if one == id {
			r.order = append(r.order[:i], r.order[i+1:]...)
			return
		}
	}
}

func (r *registry) any(id string) (*command, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if cmd := r.byID[id]; cmd != nil {
		return cmd, nil
	}
	return nil, fail("not_found", "no such command")
}

func (r *registry) kept(id string) (*command, error) {
	cmd, err := r.any(id)
	if err == nil && !cmd.isKept.Load() {
		return nil, fail("not_found", "no such background command")
	}
	return cmd, err
}

func (r *registry) list() []*command {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]*command, 0, len(r.order))
	for _, id := range r.order {
		if cmd := r.byID[id]; cmd != nil {
			all = append(all, cmd)
		}
	}
	return all
}

func (r *registry) count() (kept, attached int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.order), len(r.byID) - len(r.order)
}

func (r *registry) killAll() {
	r.mu.Lock()
	all := make([]*command, 0, len(r.byID))
	for _, cmd := range r.byID {
		if cmd != nil {
			all = append(all, cmd)
		}
	}
	r.mu.Unlock()
	for _, cmd := range all {
		cmd.kill()
	}
}

// defaults is what `claim` sets, once.
type defaults struct {
	mu      sync.Mutex
	claimed bool
	env     map[string]string
	workdir string
	user    *string
}

func (d *defaults) get() (map[string]string, string, *string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.workdir == "" {
		return d.env, "/", d.user
	}
	return d.env, d.workdir, d.user
}

func (d *defaults) set(env map[string]string, workdir string, user *string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.claimed {
		return false
	}
	d.claimed, d.env, d.workdir, d.user = true, env, workdir, user
	return true
}

// limitOf turns the host's milliseconds into a duration; 0 or less: none.
func limitOf(ms int64) time.Duration {
	return time.Duration(min(max(ms, 0), int64(1)<<40)) * time.Millisecond
}

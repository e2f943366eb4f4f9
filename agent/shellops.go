package main

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
)

// shellCall is what the operations on shells know beside the common fields.
type shellCall struct {
	Shell   string  `json:"shell"`
	Text    string  `json:"text"`
	Program *string `json:"program"`
	Attach  bool    `json:"attach"`
}

func (a *agent) shellOpen(ch *channel, in *call) (any, error) {
	own, err := fields[shellCall](in)
	if err != nil {
		return nil, err
	}
	if !commandID.MatchString(in.ID) {
		return nil, fail("invalid", "a shell's id is 1 to 32 of a-z, 0-9, _ and -")
	}
	program, p, err := a.shellPlan(in, own.Program)
	if err != nil {
		return nil, err
	}
	if err := a.shells.reserve(in.ID); err != nil {
		return nil, err
	}
	s, err := a.openShell(in.ID, program, p)
	if err != nil {
		a.shells.remove(in.ID)
		return nil, err
	}
	if ch.isCanceled() { // nobody knows of it
		s.close()
		a.shells.remove(in.ID)
		return nil, errCanceled
	}
	a.shells.fill(in.ID, s)
	return s.info(), nil
}

// shellPlan plans the program asked for, or bash and, where there is none, sh.
func (a *agent) shellPlan(in *call, program *string) (string, *plan, error) {
	environment, _, _ := a.defaults.get()
	env := map[string]string{"TERM": "dumb"} // its terminal shows nothing
	if term, ok := environment["TERM"]; ok {
		env["TERM"] = term
	}
	maps.Copy(env, in.Env)
	candidates := []string{"bash", "sh"}
	if program != nil {
		if !slices.Contains(candidates, *program) {
			return "", nil, fail("invalid", "program must be bash or sh")
		}
		candidates = []string{*program}
	}
	var err error
	for _, one := range candidates {
		argv := append([]string{one}, dialects[one].argv...)
		var p *plan
		if p, err = a.plan(&call{Argv: argv, Env: env, Cwd: in.Cwd, User: in.User}); err == nil {
			return one, p, nil
		}
		var f failure
		if !errors.As(err, &f) || f.Text != one+": not found" {
			break
		}
	}
	return "", nil, err
}

func (a *agent) listShells(*channel, *call) (any, error) {
	infos := []shellInfo{}
	for _, s := range a.shells.list() {
		infos = append(infos, s.info())
	}
	return struct {
		Shells []shellInfo `json:"shells"`
	}{infos}, nil
}

func (a *agent) showShell(_ *channel, in *call) (any, error) {
	s, err := a.shells.get(in.ID)
	if err != nil {
		return nil, err
	}
	return s.info(), nil
}

func (a *agent) closeShell(_ *channel, in *call) (any, error) {
	s, err := a.shells.get(in.ID)
	if err != nil {
		return nil, err
	}
	s.close()
	a.shells.remove(in.ID)
	return empty{}, nil
}

type queuedResult struct {
	ID     string `json:"id"`
	Queued int    `json:"queued"`
}

// shellRun queues a command. Attached, it goes on to the command's end as `exec` does.
func (a *agent) shellRun(ch *channel, in *call) (any, error) {
	own, err := fields[shellCall](in)
	if err != nil {
		return nil, err
	}
	keep := or(in.KeepBytes, defaultKeep)
	switch {
	case keep < minKeep || keep > maxKeep:
		return nil, fail("invalid", "keep_bytes must be from 4096 to 16777216")
	case !commandID.MatchString(in.ID):
		return nil, fail("invalid", "a command id is 1 to 32 of a-z, 0-9, _ and -")
	case len(own.Text) > maxShellText:
		return nil, fail("too_large", "a shell's command has at most 131072 bytes")
	case strings.TrimSpace(own.Text) == "" || strings.ContainsRune(own.Text, 0):
		return nil, fail("invalid", "the command is empty or has a NUL")
	}
	s, err := a.shells.get(own.Shell)
	if err != nil {
		return nil, err
	}
	if err := a.commands.reserve(in.ID); err != nil {
		return nil, err
	}
	if own.Attach {
		keep = defaultKeep // its reader misses nothing: see task.send
	}
	t := newTask(s, in.ID, own.Text, keep, limitOf(in.TimeoutMS))
	if own.Attach {
		t.reader = newTaskReader()
		defer func() {
			if !t.isLeft.Load() {
				a.commands.remove(in.ID)
			}
		}()
		ch.onRelease(t.leave)
	}
	before, err := s.enqueue(t, func() { a.commands.fill(in.ID, t.cmd) })
	if err != nil {
		a.commands.remove(in.ID)
		return nil, err
	}
	if !own.Attach {
		return queuedResult{in.ID, before}, nil
	}
	if err := t.follow(ch); err != nil {
		if !t.isLeft.Load() {
			t.kill()
		}
		return nil, err
	}
	ch.awaitStream()
	return t.cmd.exit, nil
}

// shellRegistry knows every shell by id.
type shellRegistry struct {
	mu    sync.Mutex
	byID  map[string]*shell // nil: being opened
	order []string
}

func newShellRegistry() *shellRegistry { return &shellRegistry{byID: map[string]*shell{}} }

// reserve takes an id; the oldest ended shell makes room if it must.
func (r *shellRegistry) reserve(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, taken := r.byID[id]; taken {
		return fail("exists", "a shell of this id exists")
	}
	if len(r.order) >= maxShells {
		at := slices.IndexFunc(r.order, func(one string) bool { return r.byID[one] != nil && r.byID[one].hasEnded() })
		if at < 0 {
			return fail("limit", "too many shells are open")
		}
		r.removeLocked(r.order[at])
	}
	r.byID[id] = nil
	r.order = append(r.order, id)
	return nil
}

func (s *shell) hasEnded() bool {
	select {
	case <-s.over:
		return true
	default:
		return false
	}
}

func (r *shellRegistry) fill(id string, s *shell) {
	r.mu.Lock()
	r.byID[id] = s
	r.mu.Unlock()
}

func (r *shellRegistry) remove(id string) {
	r.mu.Lock()
	r.removeLocked(id)
	r.mu.Unlock()
}

func (r *shellRegistry) removeLocked(id string) {
	delete(r.byID, id)
	r.order = slices.DeleteFunc(r.order, func(one string) bool { return one == id })
}

func (r *shellRegistry) get(id string) (*shell, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.byID[id]; s != nil {
		return s, nil
	}
	return nil, fail("not_found", "no such shell")
}

func (r *shellRegistry) list() []*shell {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []*shell
	for _, id := range r.order {
		if s := r.byID[id]; s != nil {
			all = append(all, s)
		}
	}
	return all
}

func (r *shellRegistry) killAll() {
	for _, s := range r.list() {
		s.killSession()
	}
}

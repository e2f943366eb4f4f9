package main

import (
	"maps"
	"os"
	"reflect"
	"strings"
	"sync"
	"syscall"
)

const (
	generationDirectory = "/run/cove"
	generationFile      = generationDirectory + "/generation"
	machineIDFile       = "/etc/machine-id"
	busIDFile           = "/var/lib/dbus/machine-id"
)

// revival is what `revive` was told since the last checkpoint.
type revival struct {
	mu     sync.Mutex
	isDue  bool // there was a checkpoint since
	last   *reviveCall
	answer reviveResult
}

type reviveCall struct {
	Hostname *string           `json:"hostname"`
	Env      map[string]string `json:"env"`
	Copy     bool              `json:"copy"`
}

type reviveResult struct {
	Released int `json:"released"` // calls that go on as commands in the background
	Signaled int `json:"signaled"` // processes that were told to reseed
	Watches  int `json:"watches"`  // that were armed again
}

// expect says that a checkpoint may be taken now, and that a sandbox may be made of it.
func (r *revival) expect() {
	r.mu.Lock()
	r.isDue, r.last = true, nil
	r.mu.Unlock()
}

// revive makes what was restored from a checkpoint a sandbox of its own, or the same again.
func (a *agent) revive(_ *channel, in *call) (any, error) {
	own, err := fields[reviveCall](in)
	if err != nil {
		return nil, err
	}
	if own.Hostname != nil && !hostnameForm.MatchString(*own.Hostname) {
		return nil, fail("invalid", "not a hostname")
	}
	if _, err := environ(own.Env); err != nil {
		return nil, err
	}
	r := &a.revival
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.last != nil && reflect.DeepEqual(r.last, own):
		return r.answer, nil
	case r.last != nil:
		return nil, fail("exists", "the sandbox has been revived with other data")
	case !r.isDue:
		return nil, fail("invalid", "no checkpoint was taken of this sandbox")
	}
	answer := reviveResult{}
	if own.Copy {
		if err := a.defaults.add(own.Env); err != nil {
			return nil, err
		}
		renewIdentity(own.Hostname)
		answer.Signaled = reseed()
	}
	answer.Watches = a.watches.tree.overflow()
	if parked := a.sessions.takeAny(nil); parked != nil {
		answer.Released = parked.release()
	}
	r.last, r.answer = own, answer
	return answer, nil
}

// endParked ends the session that is parked as if its connection had closed: this call comes on a connection that was
// made since, by a host that did not take it up, and it is not the one that says what else becomes of it.
func (a *agent) endParked(ch *channel, op string) {
	if op == "revive" || op == "stats" || ch.isCanceled() || ch.conn.listener().isQuiesced() {
		return
	}
	if parked := a.sessions.takeAny(ch.conn); parked != nil {
		parked.close()
	}
}

func (c *conn) listener() *listener {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.owner
}

// renewIdentity gives a copy what must not be its original's. Failures are ignored as in `claim`.
func renewIdentity(hostname *string) {
	if os.Getpid() != 1 { // a plain process shares these files with the host
		return
	}
	if hostname != nil {
		nameHost(*hostname)
	}
	machine := newToken()
	for _, name := range []string{machineIDFile, busIDFile} {
		// Where there is none, or an empty one, the image wants none.
		if old, err := readOwn(name, 64); err == nil && len(strings.TrimSpace(string(old))) == 32 {
			overwrite(name, machine+"\n")
		}
	}
	_ = os.Mkdir(generationDirectory, 0o755)
	overwrite(generationFile, newToken()+"\n")
}

// readOwn reads a regular file without following a link to it.
func readOwn(name string, most int) ([]byte, error) {
	fd, err := syscall.Open(name, syscall.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(fd)
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return nil, syscall.EINVAL
	}
	content := make([]byte, most)
	n, err := syscall.Read(fd, content)
	return content[:max(n, 0)], err
}

type environmentResult struct {
	Env     map[string]string `json:"env"`
	Workdir *string           `json:"workdir"`
	User    *string           `json:"user"`
}

// environment tells what `claim` and `revive` set, for a copy that gets the files only.
func (a *agent) environment(*channel, *call) (any, error) {
	a.defaults.mu.Lock()
	defer a.defaults.mu.Unlock()
	result := environmentResult{Env: maps.Clone(a.defaults.env), User: a.defaults.user}
	if result.Env == nil {
		result.Env = map[string]string{}
	}
	if a.defaults.workdir != "" {
		workdir := a.defaults.workdir
		result.Workdir = &workdir
	}
	return result, nil
}

const (
	// What copies of copies may add up to. Escaped by JSON to six times their length, they still fit into a frame.
	maxEnvironment = 160 << 10
	maxVariables   = 4096
)

// add merges values into the default environment. Never into the map itself: commands may be reading it.
func (d *defaults) add(env map[string]string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	merged := maps.Clone(d.env)
	if merged == nil {
		merged = map[string]string{}
	}
	maps.Copy(merged, env)
	size := 0
	for name, value := range merged {
		size += len(name) + len(value) + len("=\x00")
	}
	if len(merged) > maxVariables || size > maxEnvironment {
		return fail("too_large", "the environment, with that of the sandbox it was copied from, is too large")
	}
	d.env = merged
	return nil
}

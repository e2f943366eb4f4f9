package main

import (
	"encoding/json"
	"runtime"
	"strings"
)

// call is the union of all operations' fields. Pointers where "absent" differs from zero.
type call struct {
	Op   string `json:"op"`
	ID   string `json:"id"`
	Path string `json:"path"`

	Argv      []string          `json:"argv"`
	Shell     *string           `json:"shell"`
	Env       map[string]string `json:"env"`
	Cwd       *string           `json:"cwd"`
	User      *string           `json:"user"`
	TimeoutMS int64             `json:"timeout_ms"`
	Stdin     bool              `json:"stdin"`
	KeepBytes *int              `json:"keep_bytes"`
	Tool      bool              `json:"tool"`

	Cursor int64 `json:"cursor"`
	Follow bool  `json:"follow"`
	Close  bool  `json:"close"`
	Signal *int  `json:"signal"`
	Group  *bool `json:"group"`

	Offset    *int64  `json:"offset"`
	Length    *int64  `json:"length"`
	Limit     *int64  `json:"limit"`
	After     *string `json:"after"`
	Mode      *int64  `json:"mode"`
	UID       *int64  `json:"uid"`
	GID       *int64  `json:"gid"`
	Parents   bool    `json:"parents"`
	Exclusive bool    `json:"exclusive"`
	Append    bool    `json:"append"`
	Recursive bool    `json:"recursive"`
	From      string  `json:"from"`
	To        string  `json:"to"`
	Overwrite bool    `json:"overwrite"`

	Port     int     `json:"port"`
	Host     *string `json:"host"`
	Workdir  *string `json:"workdir"`
	Hostname *string `json:"hostname"`

	terminal bool   // `start` with a PTY
	payload  []byte // the whole CALL, for operations with fields of their own: see `fields`
}

// fields decodes what only one operation knows into a struct of its own.
func fields[T any](in *call) (*T, error) {
	var own T
	if err := json.Unmarshal(in.payload, &own); err != nil {
		return nil, fail("invalid", "the call is malformed")
	}
	return &own, nil
}

// or is the value, or the default where the host left it out.
func or[T any](value *T, otherwise T) T {
	if value == nil {
		return otherwise
	}
	return *value
}

// An operation returns the payload of RESULT, or an error that becomes FAIL.
type operation func(a *agent, ch *channel, in *call) (any, error)

var operations = map[string]operation{
	"exec": (*agent).exec, "start": (*agent).start, "commands": (*agent).listCommands, "command": (*agent).showCommand,
	"output": (*agent).output, "stdin": (*agent).writeStdin, "signal": (*agent).signal, "wait": (*agent).wait, "forget": (*agent).forget,
	"attach": (*agent).attach, "resize": (*agent).resize,
	"shell_open": (*agent).shellOpen, "shells": (*agent).listShells, "shell_info": (*agent).showShell,
	"shell_close": (*agent).closeShell, "shell_run": (*agent).shellRun,
	"read": (*agent).read, "write": (*agent).write, "stat": (*agent).stat, "list": (*agent).list, "mkdir": (*agent).mkdir,
	"move": (*agent).move, "remove": (*agent).remove, "set": (*agent).set, "link": (*agent).link,
	"find": (*agent).find, "search": (*agent).search, "replace": (*agent).replace, "usage": (*agent).usage,
	"pack": (*agent).pack, "unpack": (*agent).unpack,
	"watch_start": (*agent).watchStart, "watches": (*agent).listWatches, "watch_events": (*agent).watchEvents, "watch_stop": (*agent).watchStop,
	"dial": (*agent).dial, "claim": (*agent).claim, "stats": (*agent).stats,
	"ports": (*agent).ports, "revive": (*agent).revive, "environment": (*agent).environment,
}

type empty struct{}

// run is the outermost frame of a call. A panic ends the call, not PID 1 and with it the sandbox.
func (a *agent) run(ch *channel, payload []byte) {
	defer func() {
		if p := recover(); p != nil {
			ch.conn.end(ch, kindFail, failure{"io", "the agent failed"})
		}
	}()
	var in call
	if err := json.Unmarshal(payload, &in); err != nil {
		ch.conn.end(ch, kindFail, failure{"invalid", "the call is malformed"})
		return
	}
	in.payload = payload
	if in.Op == "quiesce" {
		a.quiesce(ch, &in)
		return
	}
	a.endParked(ch, in.Op)
	op, ok := operations[in.Op]
	if !ok {
		ch.conn.end(ch, kindFail, failure{"unsupported", "no such operation"})
		return
	}
	result, err := op(a, ch, &in)
	if err != nil {
		ch.conn.end(ch, kindFail, asFailure(err))
		return
	}
	ch.conn.end(ch, kindResult, result)
}

type statsResult struct {
	Commands   int   `json:"commands"`
	Attached   int   `json:"attached"`
	Goroutines int   `json:"goroutines"`
	HeapBytes  int64 `json:"heap_bytes"`
	UptimeMS   int64 `json:"uptime_ms"`
}

func (a *agent) stats(*channel, *call) (any, error) {
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	kept, attached := a.commands.count()
	return statsResult{kept, attached, runtime.NumGoroutine(), int64(memory.HeapAlloc), clock.now().Milliseconds()}, nil
}

// text makes bytes of the kernel's valid UTF-8 for JSON.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

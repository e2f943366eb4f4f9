// Command agent is the process inside every sandbox that the host talks to; normally its PID 1.
//
// It is not a security boundary: whoever is root in the sandbox may stop or replace it. The host therefore trusts
// nothing it says; see PROTOCOL.md. It has no dependency but the standard library, and not even package net of that,
// because idle memory is counted once per sandbox.
//
// To add an operation: a row in PROTOCOL.md section 4, an entry in `operations` (calls.go), a word in `features` if a
// host must be able to tell, a method in cove/agentlink, and a test on both sides.
package main

import (
	"flag"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
)

// Set by the linker: the first 12 hex digits of the sha256 of the sources (hatch_build.py).
var build = "development"

const version = "0.1.0"

const (
	// Heap at rest is under 1 MiB, so collecting at twice that costs microseconds and keeps RSS near 4 MB.
	gcPercent = 50
	// Soft: the runtime collects harder beyond it, so 1024 busy channels do not make the agent the sandbox's biggest process.
	memoryLimit = 48 << 20
	// One for the command being forked (vfork suspends its thread), one for the rest.
	processors = 2
)

func main() {
	if code, isTool := runTool(os.Args); isTool {
		os.Exit(code)
	}
	socket := flag.String("socket", "/run/agent/a.sock", "path of the unix socket to listen on")
	extraKills := flag.Int("extra-kills", 0, "how often a killed process group is killed again, 2 ms apart")
	flag.Parse()
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimit)
	runtime.GOMAXPROCS(processors)
	openStandardStreams()
	refuseTracing()
	sealDescriptors()
	syscall.Umask(0o022)

	a := newAgent(*socket)
	a.reaper.extraKills = *extraKills
	a.handleSignals()
	go a.reaper.loop()
	go keepSpareThreads()
	if err := a.serve(); err != nil {
		a.shells.killAll()
		a.commands.killAll()
		os.Exit(1)
	}
}

// agent is the whole state of the process.
type agent struct {
	socket   string
	reaper   *reaper
	commands *registry
	shells   *shellRegistry
	defaults defaults
	watches  *watches
	listener *listener
	sessions sessions
	revival  revival
	stopping chan struct{}
}

func newAgent(socket string) *agent {
	r := newReaper()
	return &agent{
		socket: socket, reaper: r, commands: newRegistry(r), shells: newShellRegistry(), watches: newWatches(),
		stopping: make(chan struct{}),
	}
}

// openStandardStreams makes sure that 0, 1 and 2 are taken: a runtime that starts us with them closed would otherwise
// hand their numbers to our sockets, which a child then inherits as its standard streams.
func openStandardStreams() {
	for {
		fd, err := syscall.Open("/dev/null", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
		if err != nil {
			return
		}
		if fd > 2 {
			_ = syscall.Close(fd)
			return
		}
	}
}

const (
	sysCloseRange     = 436 // close_range(2), the same number on every architecture
	closeRangeCloexec = 4
	sealedAtLeast     = 1024
)

// sealDescriptors keeps whatever we were started with from our children. Ours are all opened close-on-exec; these were
// not. Marked, not closed: some belong to the Go runtime.
func sealDescriptors() {
	if _, _, errno := syscall.RawSyscall(sysCloseRange, 3, 1<<32-1, closeRangeCloexec); errno == 0 {
		return
	}
	for fd := 3; fd < sealedAtLeast; fd++ { // before Linux 5.11, and gVisor
		syscall.CloseOnExec(fd)
	}
}

// refuseTracing makes the agent undumpable: without CAP_SYS_PTRACE nobody inside, root included, can then attach to it,
// read its memory or stop it by a debugger's hand (ptrace(2), "Ptrace access mode checking"). execve sets it back for
// children. It keeps accidents away; the host trusts the agent no more for it.
func refuseTracing() {
	_, _, _ = syscall.Syscall(syscall.SYS_PRCTL, syscall.PR_SET_DUMPABLE, 0, 0)
}

// allowTracing takes that back while the host takes a checkpoint. A restored process was never started by execve, so to
// the kernel its memory belongs to no user namespace of the box, and criu, which looks at it from in there, could not.
func allowTracing() {
	_, _, _ = syscall.Syscall(syscall.SYS_PRCTL, syscall.PR_SET_DUMPABLE, 1, 0)
}

// spareThreads is how many idle threads the agent keeps. The Go runtime ends the process when it needs a thread and the
// kernel refuses one, which a fork bomb at the limit of processes makes it do; with threads in hand it needs none.
const spareThreads = 12

// keepSpareThreads makes the runtime create that many by blocking each in a read; afterwards it keeps them.
func keepSpareThreads() {
	var ends [2]int
	if syscall.Pipe2(ends[:], syscall.O_CLOEXEC) != nil {
		return
	}
	var blocked, done sync.WaitGroup
	for range spareThreads {
		blocked.Add(1)
		done.Add(1)
		go func() {
			defer done.Done()
			var one [1]byte
			blocked.Done()
			_, _ = syscall.Read(ends[0], one[:])
		}()
	}
	blocked.Wait()
	_ = syscall.Close(ends[1])
	done.Wait()
	_ = syscall.Close(ends[0])
}

// handleSignals swallows every signal when we are PID 1: the kernel protects an init only from signals it has no
// handler for, and the Go runtime installs handlers for all. SIG_IGN would be wrong: children inherit it.
func (a *agent) handleSignals() {
	caught := make(chan os.Signal, 8)
	if os.Getpid() == 1 {
		signal.Notify(caught, swallowed()...)
		go func() {
			for range caught { //nolint:revive // dropping them is the point
			}
		}()
		return
	}
	signal.Notify(caught, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-caught
		a.shells.killAll()
		a.commands.killAll()
		_ = os.Remove(a.socket)
		os.Exit(0)
	}()
}

// swallowed is every signal but those that cannot be caught, SIGURG (the runtime's own preemption) and SIGCHLD (the reaper's).
func swallowed() []os.Signal {
	var all []os.Signal
	for n := syscall.Signal(1); n <= 64; n++ {
		switch n {
		case syscall.SIGKILL, syscall.SIGSTOP, syscall.SIGURG, syscall.SIGCHLD:
		default:
			all = append(all, n)
		}
	}
	return all
}

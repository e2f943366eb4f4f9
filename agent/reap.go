package main

import (
	"errors"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// process is a child of ours. Fields after `done` may be read once it is closed.
type process struct {
	pid     int
	started time.Duration // of the steady clock
	done    chan struct{}
	status  syscall.WaitStatus
	usage   syscall.Rusage
	ended   time.Duration
	// deserted: the session that it led had no member any more soon after its end. The number may be another's since.
	deserted atomic.Bool
}

// reaper is the only caller of wait in the program. As PID 1 it also buries the orphans of the sandbox.
type reaper struct {
	// mu is held over fork and registration, and over burial: an exit is never missed, and a pid in `live` is never
	// one that the kernel may already have given to somebody else. Signals are sent under it for the same reason.
	mu   sync.Mutex
	live map[int]*process
	// forked wakes the loop when it sleeps because there was no child at all.
	forked chan struct{}
	// extraKills is for kernels where a fork can escape the kill of its group (gVisor; Linux holds a lock over both).
	extraKills int
}

func newReaper() *reaper {
	return &reaper{live: map[int]*process{}, forked: make(chan struct{}, 1)}
}

// Children are what the kernel's out-of-memory killer should take, not PID 1.
var oomScore = []byte("500")

const killPause = 2 * time.Millisecond

// spawn starts a child and registers it.
func (r *reaper) spawn(path string, argv []string, attr *syscall.ProcAttr) (*process, error) {
	r.mu.Lock()
	started := clock.now()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		r.mu.Unlock()
		return nil, err
	}
	p := &process{pid: pid, started: started, done: make(chan struct{})}
	r.live[pid] = p
	// Before the reaper can bury it, so that the path cannot name another process. A failure only loses the preference.
	if fd, err := syscall.Open("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", syscall.O_WRONLY|syscall.O_CLOEXEC, 0); err == nil {
		_, _ = syscall.Write(fd, oomScore)
		_ = syscall.Close(fd)
	}
	r.mu.Unlock()
	select {
	case r.forked <- struct{}{}:
	default:
	}
	return p, nil
}

// signal sends sig to a child, or to its whole process group. ESRCH once it has been buried.
func (r *reaper) signal(p *process, sig syscall.Signal, group bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.live[p.pid] != p {
		return syscall.ESRCH
	}
	if !group {
		return syscall.Kill(p.pid, sig)
	}
	err := syscall.Kill(-p.pid, sig)
	for again := 0; sig == syscall.SIGKILL && again < r.extraKills; again++ {
		// Under the lock: once the leader is buried, the number of the group could be another's.
		time.Sleep(killPause)
		_ = syscall.Kill(-p.pid, sig)
	}
	return err
}

// loop waits without reaping, then reaps under the lock; see `mu`.
func (r *reaper) loop() {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD) // an adopted orphan announces itself in no other way
	for {
		pid, err := waitAny()
		switch {
		case err == nil:
			r.bury(pid)
		case errors.Is(err, syscall.EINTR):
		default:
			select {
			case <-r.forked:
			case <-children:
			}
		}
	}
}

func (r *reaper) bury(pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var status syscall.WaitStatus
	var usage syscall.Rusage
	got, err := syscall.Wait4(pid, &status, syscall.WNOHANG, &usage)
	if err != nil || got != pid {
		return
	}
	p := r.live[pid]
	if p == nil {
		return
	}
	delete(r.live, pid)
	p.status, p.usage, p.ended = status, usage, clock.now()
	close(p.done)
}

const (
	waitAll    = 0          // P_ALL
	waitExited = 0x4        // WEXITED
	waitPeek   = 0x01000000 // WNOWAIT
)

// waitAny blocks until some child has ended and returns its pid without reaping it. waitid(2); si_pid is at offset 16
// of siginfo_t on 64-bit Linux.
func waitAny() (int, error) {
	var info [128]byte
	_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, waitAll, 0, uintptr(unsafe.Pointer(&info)), waitExited|waitPeek, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(*(*int32)(unsafe.Pointer(&info[16]))), nil
}

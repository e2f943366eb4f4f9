package main

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// A shell is one interactive bash (or sh) that runs the commands it is given one after the other. Its streams are pipes,
// so that both come apart and exact; it has a terminal all the same, which it needs for job control, which tells
// whose turn it is (the foreground process group), and over which it reports (shelltext.go).

const (
	maxShells    = 64
	maxQueued    = 64
	maxShellText = 128 << 10
	betweenBytes = 64 << 10 // of what jobs write while no command runs, for the next one
	openLimit    = 10 * time.Second
	// After the shell has reported on descriptor 9, this long for the same over its terminal: gVisor has none.
	terminalLimit = 50 * time.Millisecond
	closeGrace    = time.Second
	maxAnswers    = 64 // ends of file in reply to what programs print on the terminal, for each command
)

const (
	endOfFile = 4 // VEOF, Ctrl-D

	errorsInShell = 7
	slaveInShell  = 8
)

type shell struct {
	id      string
	program string
	dialect dialect
	agent   *agent
	proc    *process
	since   time.Time

	input    *os.File // lines for it
	rawInput syscall.RawConn
	out      *shellPipe
	err      *shellPipe
	terminal *pty // nil: none
	slave    int  // held open, or reading the master would fail between programs
	control  *os.File
	lines    chan string

	opening string // the word that it is ready with
	ready   chan string
	place   string        // where it reports; set before the first command
	over    chan struct{} // closed when its process has ended and its output is in

	mu      sync.Mutex
	isOpen  bool
	running *task
	queue   []*task
	between *ring
	status  int    // `$?` after the last command
	cwd     string // after the last command
	answers int
	exit    *exit
}

// shellInfo is the *shell* of PROTOCOL.md.
type shellInfo struct {
	ID        string  `json:"id"`
	PID       int     `json:"pid"`
	Program   string  `json:"program"`
	Cwd       string  `json:"cwd"`
	StartedAt float64 `json:"started_at"`
	Running   string  `json:"running"`
	Queued    int     `json:"queued"`
	Jobs      bool    `json:"job_control"`
	Exit      *exit   `json:"exit"`
}

func (s *shell) info() shellInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	info := shellInfo{
		ID: s.id, PID: s.proc.pid, Program: s.program, StartedAt: float64(s.since.UnixMicro()) / 1e6,
		Queued: len(s.queue), Jobs: s.place == terminalPlace, Exit: s.exit,
	}
	if s.running != nil {
		info.Running = s.running.cmd.id
	}
	if s.exit == nil {
		info.Cwd = s.cwd
		// Of a shell of another user the agent may not look it up (CAP_SYS_PTRACE).
		if cwd, err := os.Readlink("/proc/" + strconv.Itoa(s.proc.pid) + "/cwd"); err == nil {
			info.Cwd = text(cwd)
		}
	}
	return info
}

// openShell starts the program of the plan and waits until it takes commands.
func (a *agent) openShell(id string, program string, p *plan) (*shell, error) {
	s := &shell{
		id: id, program: program, dialect: dialects[program], agent: a, since: time.Now(), slave: -1,
		opening: newWord(), lines: make(chan string, 8), ready: make(chan string, 4), over: make(chan struct{}), between: newRing(betweenBytes),
	}
	if err := s.fork(p); err != nil {
		return nil, err
	}
	go s.writeLines()
	go s.out.pump(s, s.proc.done)
	go s.err.pump(s, s.proc.done)
	go s.readReports(s.control)
	if s.terminal != nil {
		go s.readReports(s.terminal.file)
	}
	go s.bury()
	if err := s.prepare(); err != nil {
		s.killSession()
		return nil, err
	}
	return s, nil
}

// fork starts the program with its pipes and its terminal. On failure nothing is left.
func (s *shell) fork(p *plan) error {
	var theirs, ours []int
	var files []*os.File
	failed := func(err error) error {
		for _, fd := range ours {
			_ = syscall.Close(fd)
		}
		for _, file := range files {
			_ = file.Close()
		}
		return err
	}
	defer func() {
		for _, fd := range theirs {
			_ = syscall.Close(fd)
		}
	}()
	input, in, err := newInputPipe()
	if err != nil {
		return err
	}
	s.input, theirs, files = input.file, append(theirs, in), append(files, input.file)
	if s.rawInput, err = s.input.SyscallConn(); err != nil {
		return failed(err)
	}
	out, errs, control := -1, -1, -1
	if s.out, out, err = newShellPipe(kindData); err != nil {
		return failed(err)
	}
	theirs, files = append(theirs, out), append(files, s.out.file)
	if s.err, errs, err = newShellPipe(kindDataErr); err != nil {
		return failed(err)
	}
	theirs, files = append(theirs, errs), append(files, s.err.file)
	reports, control, err := newOutputPipe(kindData)
	if err != nil {
		return failed(err)
	}
	s.control, theirs, files = reports.file, append(theirs, control), append(files, reports.file)
	none := ^uintptr(0)
	sys := &syscall.SysProcAttr{Setsid: true, Credential: p.credential}
	table := []uintptr{uintptr(in), uintptr(out), uintptr(errs), none, none, none, none, none, none, uintptr(control)}
	if s.dialect.ownsTerminal {
		table[errorsInShell] = uintptr(errs)
	}
	if s.terminal, s.slave, err = openPTY(); err == nil {
		ours, files = append(ours, s.slave), append(files, s.terminal.file)
		makeQuiet(s.slave)
		table[slaveInShell] = uintptr(s.slave)
		if s.dialect.ownsTerminal && !s.terminal.silent { // gVisor's is none that job control works with
			table[2] = uintptr(s.slave)
		}
		sys.Setctty, sys.Ctty = true, slaveInShell
	} else {
		s.terminal, s.slave = nil, -1 // without one there is no job control; the rest works
	}
	s.proc, err = s.agent.reaper.fork(p, table, sys)
	if err != nil {
		return failed(launchFailure(p, err))
	}
	return nil
}

// makeQuiet keeps the terminal from echoing what the agent answers, and from changing what is reported.
func makeQuiet(slave int) {
	var settings syscall.Termios
	if ioctl(uintptr(slave), syscall.TCGETS, unsafe.Pointer(&settings)) != nil {
		return
	}
	settings.Oflag &^= syscall.OPOST
	settings.Lflag &^= syscall.ECHO | syscall.ECHOCTL
	_ = ioctl(uintptr(slave), syscall.TCSETS, unsafe.Pointer(&settings))
}

// prepare makes the shell silent and learns which way it can report.
func (s *shell) prepare() error {
	word := s.opening
	s.lines <- s.dialect.setup + s.dialect.report(word, terminalPlace) + s.dialect.report(word, descriptorPlace)
	limit := time.NewTimer(openLimit)
	defer limit.Stop()
	place := ""
	for place == "" {
		select {
		case at := <-s.ready:
			if at == terminalPlace {
				place = at
				break
			}
			select {
			case place = <-s.ready:
			case <-time.After(terminalLimit):
				place = at
			}
		case <-s.proc.done:
			return fail("io", s.program+" ended before it was ready"+s.lastWords())
		case <-limit.C:
			return fail("timeout", s.program+" was not ready in time")
		}
	}
	if place == terminalPlace {
		s.lines <- " exec 9>&-\n"
	}
	s.out.flush()
	s.err.flush()
	s.mu.Lock()
	s.place, s.isOpen, s.between = place, true, newRing(betweenBytes)
	s.mu.Unlock()
	return nil
}

// lastWords are what a shell wrote that never became one.
func (s *shell) lastWords() string {
	<-s.over
	said := make([]byte, 256)
	_, n, _, _, _ := s.between.read(0, said)
	if n == 0 {
		return ""
	}
	return ": " + text(string(said[:n]))
}

// writeLines writes to the shell's input until its end. Only here, so that a shell that does not read holds up nobody.
func (s *shell) writeLines() {
	defer s.input.Close()
	for {
		select {
		case line := <-s.lines:
			if _, err := s.input.WriteString(line); err != nil {
				return
			}
		case <-s.over:
			return
		}
	}
}

// readReports reads what comes from the terminal, or from descriptor 9.
func (s *shell) readReports(from *os.File) {
	defer from.Close()
	place := descriptorPlace
	if s.terminal != nil && from == s.terminal.file {
		place = terminalPlace
	}
	var seen reports
	buffer := make([]byte, 4096)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		strange := seen.feed(buffer[:n], func(one report) { s.reported(one, place) })
		if strange && place == terminalPlace {
			s.answer()
		}
	}
}

// answer tells a program that asks on the terminal, for a password say, that there is nobody: end of file.
func (s *shell) answer() {
	s.mu.Lock()
	s.answers++
	enough := s.answers > maxAnswers
	s.mu.Unlock()
	if !enough {
		// One attempt: a terminal whose input is full must not hold up the reports.
		_ = s.terminal.raw.Write(func(fd uintptr) bool { _, _ = syscall.Write(int(fd), []byte{endOfFile}); return true })
	}
}

func (s *shell) reported(one report, place string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.isOpen && one.word == s.opening:
		s.cwd = one.cwd
		select {
		case s.ready <- place:
		default:
		}
	case s.running != nil && s.running.word == one.word && !s.running.isReported:
		s.running.isReported = true
		s.status, s.cwd = one.status, one.cwd
		go s.complete(s.running, one.status)
	}
}

// send implements sink for both pipes: to the command that runs, or for the next one.
func (s *shell) send(k kind, frame []byte) error {
	s.mu.Lock()
	t := s.running
	if t == nil {
		err := s.between.send(k, frame)
		s.mu.Unlock()
		return err
	}
	s.mu.Unlock()
	return t.send(k, frame)
}

// complete ends the command that has reported, after all that it wrote.
func (s *shell) complete(t *task, status int) {
	t.release()
	s.out.flush()
	s.err.flush()
	s.mu.Lock()
	if s.running == t {
		s.endRunning(t.exited(status))
		s.next()
	}
	s.mu.Unlock()
}

// bury ends what is left when the shell's process has ended.
func (s *shell) bury() {
	<-s.proc.done
	s.mu.Lock()
	if s.running != nil {
		s.running.release()
	}
	s.mu.Unlock()
	for _, p := range []*shellPipe{s.out, s.err} {
		p.flush()
	}
	s.mu.Lock()
	s.exit = s.proc.exit(false)
	if t := s.running; t != nil {
		end := t.exited(s.exit.Code)
		end.Signal = s.exit.Signal
		s.endRunning(end)
	}
	for _, t := range s.queue {
		t.end(canceledExit(s.proc.pid))
	}
	s.queue = nil
	close(s.over)
	s.mu.Unlock()
	s.out.expire()
	s.err.expire()
	_ = s.control.Close()
	_ = s.input.Close() // somebody inside may hold the other end open, and a line still wait for room in it
	if s.terminal != nil {
		_ = s.terminal.file.Close()
		_ = syscall.Close(s.slave)
	}
}

// endRunning and next want s.mu.
func (s *shell) endRunning(end *exit) {
	t := s.running
	s.running = nil
	t.end(end)
}

func (s *shell) next() {
	if s.running != nil || len(s.queue) == 0 || s.exit != nil {
		return
	}
	t := s.queue[0]
	s.queue = s.queue[1:]
	s.running, s.answers = t, 0
	t.begin(s.between)
	s.between = newRing(betweenBytes)
	s.write(s.dialect.line(t.text, t.word, s.place, s.status))
}

// write queues a line. The queue is full only if a program that is no shell took the shell's place.
func (s *shell) write(line string) {
	select {
	case s.lines <- line:
	default:
		go s.killSession()
	}
}

// foreground is the process group that a signal from the terminal would reach; `own`: it is the shell's, which runs
// something itself or, without job control, has its programs in its own group.
func (s *shell) foreground() (group int, own bool) {
	if s.place == terminalPlace {
		if found := s.terminal.foreground(); found > 1 && found != s.proc.pid {
			return found, false
		}
	}
	return s.proc.pid, true
}

// close ends the shell and everything in its session.
func (s *shell) close() {
	if s.agent.reaper.signal(s.proc, syscall.SIGHUP, false) == nil {
		_ = s.agent.reaper.signal(s.proc, syscall.SIGCONT, false)
		timer := time.NewTimer(closeGrace)
		defer timer.Stop()
		select {
		case <-s.proc.done:
		case <-timer.C:
		}
		s.killSession()
	}
	select {
	case <-s.over:
	case <-time.After(closeGrace): // somebody is still slow to read what its last command wrote
	}
}

func (s *shell) killSession() { s.agent.reaper.killSession(s.proc) }

// killOthers kills the programs of a shell that has no job control.
func (s *shell) killOthers() {
	for _, pid := range sessionMembers(s.proc.pid) {
		if pid != s.proc.pid {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// cpuUS is what the shell and the programs it has waited for have used, to the kernel's 10 ms.
func (s *shell) cpuUS() int64 {
	const perTick = 10_000
	content, err := readBounded("/proc/"+strconv.Itoa(s.proc.pid)+"/stat", 4096)
	// What counts is behind the last bracket: the name may hold anything.
	fields := strings.Fields(string(content[bytes.LastIndexByte(content, ')')+1:]))
	if err != nil || len(fields) < 15 {
		return 0
	}
	total := int64(0)
	for _, field := range fields[11:15] { // utime, stime, cutime, cstime: proc_pid_stat(5)
		n, _ := strconv.ParseInt(field, 10, 64)
		total += n
	}
	return total * perTick
}

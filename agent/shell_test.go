package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func openTestShell(t *testing.T, program string) *shell {
	t.Helper()
	a := newTestAgent(t)
	name, p, err := a.shellPlan(&call{}, &program)
	if err != nil {
		t.Skip(err)
	}
	s, err := a.openShell("s1", name, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s
}

func eachProgram(t *testing.T, test func(t *testing.T, s *shell)) {
	for _, program := range []string{"bash", "sh"} {
		t.Run(program, func(t *testing.T) { test(t, openTestShell(t, program)) })
	}
}

var taskNumber int

func (s *shell) queueText(t *testing.T, text string, limit time.Duration) *task {
	t.Helper()
	taskNumber++
	one := newTask(s, fmt.Sprint("c", taskNumber), text, defaultKeep, limit)
	if _, err := s.enqueue(one, func() {}); err != nil {
		t.Fatal(text, err)
	}
	return one
}

func (one *task) await(t *testing.T) (out, errs string, end *exit) {
	t.Helper()
	select {
	case <-one.cmd.ended:
	case <-time.After(soonEnough):
		t.Fatalf("%q does not end", one.text)
	}
	b := make([]byte, 1<<16)
	for cursor := int64(0); ; {
		k, n, _, ended, _ := one.cmd.ring.read(cursor, b)
		if n == 0 && ended {
			return out, errs, one.cmd.exit
		}
		cursor += int64(n)
		if k == kindData {
			out += string(b[:n])
		} else {
			errs += string(b[:n])
		}
	}
}

// begins waits for the first output.
func (one *task) begins(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(soonEnough); one.cmd.text() == ""; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%q does not begin", one.text)
		}
	}
}

// awaitForeground waits until the program has the terminal and is there itself: a child of a shell that is not it yet
// ignores what the shell ignores.
func awaitForeground(t *testing.T, name string, group func() int) {
	t.Helper()
	for deadline := time.Now().Add(soonEnough); ; time.Sleep(time.Millisecond) {
		if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", group())); string(comm) == name+"\n" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("no program in the foreground")
		}
	}
}

func (s *shell) run(t *testing.T, text string) (out, errs string, code int) {
	t.Helper()
	out, errs, end := s.queueText(t, text, 0).await(t)
	return out, errs, end.Code
}

func (s *shell) says(t *testing.T, text, out string) {
	t.Helper()
	if got, errs, _ := s.run(t, text); got != out {
		t.Fatalf("%q: %q, %q", text, got, errs)
	}
}

func TestAShellKeepsItsStateBetweenCommands(t *testing.T) {
	eachProgram(t, func(t *testing.T, s *shell) {
		dir := t.TempDir()
		s.says(t, "cd "+dir+"; x=1; f() { echo \"f $1\"; }; alias say='echo said'; umask 077", "")
		s.says(t, "pwd; echo $x; f a; say b; umask", dir+"\n1\nf a\nsaid b\n0077\n")
		if s.info().Cwd != dir {
			t.Fatal(s.info())
		}
		s.says(t, "sleep 0.1 & wait $!; echo $?", "0\n")
		s.says(t, "(exit 7)", "")
		s.says(t, "echo $?", "7\n")
		s.says(t, "echo $?", "0\n")
	})
}

func TestStreamsAndCodeOfACommandComeApart(t *testing.T) {
	eachProgram(t, func(t *testing.T, s *shell) {
		for i := range 50 {
			out, errs, code := s.run(t, fmt.Sprintf("echo o%d; echo e%d >&2; (exit %d)", i, i, i))
			if out != fmt.Sprintf("o%d\n", i) || errs != fmt.Sprintf("e%d\n", i) || code != i {
				t.Fatalf("%q %q %d", out, errs, code)
			}
		}
	})
}

func TestNoTextBreaksTheShell(t *testing.T) {
	eachProgram(t, func(t *testing.T, s *shell) {
		for _, text := range []string{
			"if", "echo 'a", "echo \"", "echo `", "cat <<X\nnever ended", "echo $(", ")", "}; }", "echo \\", "# only a comment",
			"${x:?}", "echo ${nope:?not set}", ". /no/such/file", "return 3", "break", "continue 2", "set -o no-such", "readonly q=1; q=2",
			"PS1='$ '; PS2='> '", "set -x; true; set +x", "set -v; true; set +v", "shift 99", "trap 'echo trapped' INT", "printf() { :; }; eval() { :; }",
			"alias printf=false eval=false command=false builtin=false", "exec 3>/dev/null 9>/dev/null", "exec </etc/passwd", "unset -f printf eval; unalias -a",
			"unset PATH; PATH=" + defaultPath, "IFS=x", "set -u; set +u", "set -f; set +f", "set -C; set +C", "read x", "cat", "trap - INT",
		} {
			if s.program == "sh" && strings.HasPrefix(text, "return") {
				continue // at top level dash takes it for exit
			}
			s.run(t, text)
			if out, errs, code := s.run(t, "echo alive"); out != "alive\n" || code != 0 || errs != "" {
				t.Fatalf("after %q: %q %q %d %+v", text, out, errs, code, s.info())
			}
		}
	})
}

func TestAnyTextSurvivesQuoting(t *testing.T) {
	eachProgram(t, func(t *testing.T, s *shell) {
		var all strings.Builder
		for b := 1; b < 256; b++ {
			if b < 128 {
				all.WriteByte(byte(b))
			}
			all.WriteRune(rune(b))
		}
		for _, text := range []string{all.String(), "'", "''\"'", "\\", "\n\n'\n", "!!", "$'\\n'", strings.Repeat("\n'", 1000), strings.Repeat("x", 100<<10)} {
			if got, errs, _ := s.run(t, "printf %s "+quoted(text)); got != text {
				t.Fatalf("%.80q: %.80q %q", text, got, errs)
			}
		}
	})
}

func TestAForgedReportIsOutput(t *testing.T) {
	eachProgram(t, func(t *testing.T, s *shell) {
		word := newWord()
		for _, text := range []string{
			"echo " + word + " 0 /", "echo " + word + " 0 / >/dev/tty", "echo " + word + " 0 / >&9", "exec 9>&1; echo x >&9",
			"for f in /proc/self/fd/*; do echo " + word + " 0 / >$f; done", "ls -l /proc/$$/fd; for n in 8 9; do echo " + word + " 0 / >/proc/$$/fd/$n; done",
			"head -c 100000 /dev/urandom >/dev/tty; stty -a </dev/tty",
		} {
			s.run(t, text+" 2>/dev/null; true")
			if out, errs, code := s.run(t, "echo alive; exit_code() { return 5; }; exit_code"); out != "alive\n" || code != 5 {
				t.Fatalf("after %q: %q %q %d %+v", text, out, errs, code, s.info())
			}
		}
		s.run(t, "exec 9>&-")
		if out, _, _ := s.run(t, "sh -c 'ls /proc/self/fd' | tr '\\n' ' '"); out != "0 1 2 3 " {
			t.Fatalf("descriptors %q", out)
		}
	})
}

func TestAnInterruptEndsTheCommandAndNotTheShell(t *testing.T) {
	eachProgram(t, func(t *testing.T, s *shell) {
		s.run(t, "x=kept")
		for _, text := range []string{"sleep 30; echo after", "while :; do :; done; echo after", "for i in 1 2 3; do sleep 30; done", "y=$(sleep 30)", "sleep 30 | cat"} {
			one := s.queueText(t, "echo begun; "+text, 0)
			one.begins(t)
			time.Sleep(150 * time.Millisecond) // mostly it has started its program by then; both ways it ends
			if err := one.signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			if out, _, end := one.await(t); out != "begun\n" || end.Code != 130 || end.Signal == nil || *end.Signal != 2 {
				t.Fatalf("%q: %q %+v", text, out, end)
			}
			s.says(t, "echo $x", "kept\n")
		}
	})
}

func TestATimeLimitEndsTheCommandAndNotTheShell(t *testing.T) {
	eachProgram(t, func(t *testing.T, s *shell) {
		s.run(t, "x=kept")
		for _, text := range []string{
			"sleep 30; echo after", "while :; do :; done", "while :; do sleep 30; done", "trap '' INT; sh -c 'trap \"\" INT TERM; sleep 30; sleep 30'; trap - INT",
		} {
			since := time.Now()
			out, errs, end := s.queueText(t, text, 100*time.Millisecond).await(t)
			if out != "" || !end.TimedOut || time.Since(since) > 25*time.Second {
				t.Fatalf("%q: %q %q %+v", text, out, errs, end)
			}
			s.says(t, "echo $x", "kept\n")
		}
		one := s.queueText(t, "echo begun; sleep 30; echo after", 0)
		one.begins(t)
		one.kill()
		if out, _, end := one.await(t); out != "begun\n" || end.Code != 137 || *end.Signal != 9 || end.TimedOut {
			t.Fatalf("%q %+v", out, end)
		}
	})
}

func TestAShellThatDoesNotGiveUpIsKilled(t *testing.T) {
	eachProgram(t, func(t *testing.T, s *shell) {
		s.run(t, "trap '' INT")
		later := s.queueText(t, "while :; do :; done", 50*time.Millisecond)
		queued := s.queueText(t, "echo never", 0)
		if _, _, end := later.await(t); !end.TimedOut || *end.Signal != 9 {
			t.Fatalf("%+v", end)
		}
		if out, _, end := queued.await(t); out != "" || !end.Canceled || end.Code != canceledCode {
			t.Fatalf("%q %+v", out, end)
		}
	})
}

func TestCommandsRunInTheOrderInWhichTheyCame(t *testing.T) {
	eachProgram(t, func(t *testing.T, s *shell) {
		s.run(t, "n=0")
		gate := filepath.Join(t.TempDir(), "gate")
		first := s.queueText(t, "until [ -e "+gate+" ]; do sleep 0.01; done; n=1", 0)
		var all []*task
		for i := range maxQueued {
			all = append(all, s.queueText(t, fmt.Sprintf("echo $n %d; n=$((n+1))", i), 0))
		}
		if _, err := s.enqueue(newTask(s, "c", "x", minKeep, 0), func() {}); asFailure(err).Kind != "limit" {
			t.Fatal(err)
		}
		if err := all[5].signal(syscall.SIGTERM); err != nil || all[5].isQueued() {
			t.Fatal(err)
		}
		must(t, os.WriteFile(gate, nil, 0o600))
		first.await(t)
		for i, one := range all {
			out, _, end := one.await(t)
			want := fmt.Sprintf("%d %d\n", i+1-min(i/6, 1), i)
			if i == 5 {
				want = ""
			}
			if out != want || end.Canceled != (i == 5) {
				t.Fatalf("%d: %q %+v", i, out, end)
			}
		}
	})
}

func TestExitAndExecEndTheShellWithTheirCode(t *testing.T) {
	for text, code := range map[string]int{"echo bye; exit 7": 7, "exec sh -c 'echo bye; exit 8'": 8, "set -e; echo bye; (exit 9)": 9} {
		t.Run(text, func(t *testing.T) {
			eachProgram(t, func(t *testing.T, s *shell) {
				one, queued := s.queueText(t, text, 0), s.queueText(t, "echo never", 0)
				if out, _, end := one.await(t); out != "bye\n" || end.Code != code {
					t.Fatalf("%q %+v", out, end)
				}
				if _, _, end := queued.await(t); !end.Canceled {
					t.Fatalf("%+v", end)
				}
				<-s.over
				if info := s.info(); info.Exit == nil || info.Exit.Code != code || info.Running != "" {
					t.Fatalf("%+v", info)
				}
				if _, err := s.enqueue(newTask(s, "c", "x", minKeep, 0), func() {}); asFailure(err).Kind != "gone" {
					t.Fatal(err)
				}
			})
		})
	}
}

func TestNoOutputIsLostOrLate(t *testing.T) {
	eachProgram(t, func(t *testing.T, s *shell) {
		for i := range 20 {
			out, _, _ := s.run(t, fmt.Sprintf("head -c %d /dev/zero", 1000*i+i))
			if len(out) != 1000*i+i {
				t.Fatalf("%d: %d bytes", i, len(out))
			}
		}
		gate := filepath.Join(t.TempDir(), "gate")
		one := s.queueText(t, "(until [ -e "+gate+" ]; do sleep 0.01; done; echo late; rm "+gate+") & echo now", 0)
		if out, _, _ := one.await(t); out != "now\n" {
			t.Fatalf("%q", out)
		}
		must(t, os.WriteFile(gate, nil, 0o600))
		for deadline := time.Now().Add(soonEnough); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if _, err := os.Stat(gate); err != nil {
				break
			}
		}
		if out, _, _ := s.run(t, "echo next"); out != "late\nnext\n" {
			t.Fatalf("%q", out)
		}
	})
}

func TestABackgroundJobThatWritesWithoutEndHoldsUpNothing(t *testing.T) {
	eachProgram(t, func(t *testing.T, s *shell) {
		s.run(t, "while :; do echo y >&2; done & job=$!")
		for range 5 {
			s.says(t, "echo hi", "hi\n")
		}
		s.run(t, "kill $job")
	})
}

func TestAProgramThatAsksOnTheTerminalGetsEndOfFile(t *testing.T) {
	eachProgram(t, func(t *testing.T, s *shell) {
		s.says(t, "printf 'Password: ' >/dev/tty; read answer </dev/tty; echo \"got $?\"", "got 1\n")
	})
}

func TestClosingEndsWhatTheShellStarted(t *testing.T) {
	eachProgram(t, func(t *testing.T, s *shell) {
		file := filepath.Join(t.TempDir(), "pid")
		s.run(t, "nohup sh -c 'echo $$ >"+file+"; trap \"\" HUP TERM; sleep 60; sleep 60' >/dev/null 2>&1 & until [ -s "+file+" ]; do sleep 0.01; done")
		one := s.queueText(t, "echo begun; sleep 60", 0)
		one.begins(t)
		s.close()
		if _, _, end := one.await(t); end.Code < 128 {
			t.Fatalf("%+v", end)
		}
		pid, _ := os.ReadFile(file)
		for deadline := time.Now().Add(soonEnough); ; time.Sleep(time.Millisecond) {
			state, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
			if err != nil || strings.Contains(string(state), ") Z") {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s lives", pid)
			}
		}
	})
}

func TestAShellHasItsTerminalForJobControl(t *testing.T) {
	eachProgram(t, func(t *testing.T, s *shell) {
		if !s.info().Jobs {
			t.Skip("no terminals here")
		}
		one := s.queueText(t, "sleep 30", 0)
		awaitForeground(t, "sleep", s.terminal.foreground)
		_ = one.signal(syscall.SIGTSTP)
		if _, _, end := one.await(t); end.Code != 128+int(syscall.SIGTSTP) {
			t.Fatalf("%+v", end)
		}
		one = s.queueText(t, "fg", 0)
		awaitForeground(t, "sleep", s.terminal.foreground)
		one.kill()
		if _, _, end := one.await(t); end.Code != 137 {
			t.Fatalf("%+v", end)
		}
	})
}

func TestADirectoryVariableThatIsNoneEndsTheCommandAllTheSame(t *testing.T) {
	eachProgram(t, func(t *testing.T, s *shell) {
		for _, value := range []string{"nowhere", "a\nb", "/a\nb", strings.Repeat("x", 70_000), "/" + strings.Repeat("x", 70_000)} {
			out, errs, code := s.run(t, "PWD="+quoted(value)+"; echo on; (exit 3)")
			if out != "on\n" || errs != "" || code != 3 {
				t.Errorf("%.20q: %q %q %d", value, out, errs, code)
			}
		}
		s.says(t, "cd /; echo $PWD", "/\n")
	})
}

func TestAShellWhoseOpeningWasCanceledIsNotLeftOpen(t *testing.T) {
	a := newTestAgent(t)
	ch := newChannel(nil, 1)
	ch.cancel()
	if _, err := a.shellOpen(ch, &call{ID: "s1", payload: []byte(`{"program":"sh"}`)}); !errors.Is(err, errCanceled) {
		t.Fatal(err)
	}
	if all := a.shells.list(); len(all) != 0 {
		t.Fatalf("%v", all)
	}
	if err := a.shells.reserve("s1"); err != nil {
		t.Fatal(err)
	}
}

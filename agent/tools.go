package main

import (
	"os"
	"path"
	"strings"
	"syscall"
)

// Tools are programs that the agent brings into every sandbox, whatever its image has: its own binary, started again as
// an ordinary command, under the user, the limits and the process group of one. A call names one with `"tool":true` and
// the tool's name as argv[0]. They are no part of PID 1: what goes wrong in one is that command's exit code.

// ownProgram is this binary as the child of a fork sees it: execve resolves the link in the child, which still is us.
const ownProgram = "/proc/self/exe"

// A tool gets the arguments after its name and returns an exit code.
var tools = map[string]func(args []string) int{"login": login, "sftp": sftpMain, "scp": scpMain, "socket": socketMain, "hostname": hostnameMain}

// planTool makes the plan run the tool that its argv names.
func (p *plan) planTool() error {
	if _, ok := tools[p.argv[0]]; !ok {
		return fail("unsupported", "no such tool: "+text(p.argv[0]))
	}
	p.program, p.argv = ownProgram, append([]string{"cove"}, p.argv...)
	return nil
}

// runTool is main for a tool; false: the arguments name none, so this is an agent.
func runTool(args []string) (code int, isTool bool) {
	if len(args) < 2 {
		return 0, false
	}
	tool, ok := tools[args[1]]
	if !ok {
		return 0, false
	}
	return tool(args[2:]), true
}

// hostnameMain sets the kernel's host name: run by the host, with the capability, in a sandbox with a kernel of its own.
func hostnameMain(args []string) int {
	if len(args) != 1 || !hostnameForm.MatchString(args[0]) {
		complain("not a host name")
		return 2
	}
	if err := syscall.Sethostname([]byte(args[0])); err != nil {
		complain("sethostname: " + err.Error())
		return 1
	}
	return 0
}

// login becomes the shell of the user it runs as, in the home directory: a login shell, or with `-c COMMAND` that
// command in it, as sshd does.
func login(args []string) int {
	name, shell := shellOf(syscall.Getuid())
	home := os.Getenv("HOME")
	if home == "" || os.Chdir(home) != nil {
		_ = os.Chdir("/")
	}
	env := append(withoutNames(os.Environ(), "SHELL", "USER", "LOGNAME"), "SHELL="+shell, "USER="+name, "LOGNAME="+name)
	argv := []string{"-" + path.Base(shell)}
	if len(args) == 2 && args[0] == "-c" {
		command := args[1]
		if strings.HasPrefix(command, "scp ") && !hasProgram("scp") {
			// The image has no scp: ours takes its place, and the shell still reads the quotes and patterns.
			shell, command = "/bin/sh", "scp() { "+ownBinary()+` scp "$@"; }; `+command
		}
		argv = []string{path.Base(shell), "-c", command}
	}
	err := syscall.Exec(shell, argv, env)
	if shell != "/bin/sh" && (err == syscall.ENOENT || err == syscall.EACCES) {
		argv[0] = strings.Replace(argv[0], path.Base(shell), "sh", 1)
		err = syscall.Exec("/bin/sh", argv, env)
	}
	complain("cannot start the shell " + shell + ": " + err.Error())
	return 127
}

// shellOf is the name and shell of a uid by /etc/passwd. Without a row, or with a shell that lets nobody in: sh.
func shellOf(uid int) (name, shell string) {
	name, shell = "", ""
	for _, row := range rows("/etc/passwd") {
		if id, ok := parseID(at7(row, 2)); len(row) >= 7 && ok && int(id) == uid {
			name, shell = row[0], row[6]
			break
		}
	}
	if name == "" {
		name = "user"
	}
	if base := path.Base(shell); !path.IsAbs(shell) || base == "nologin" || base == "false" {
		shell = "/bin/sh"
		if isExecutable("/bin/bash") {
			shell = "/bin/bash"
		}
	}
	return name, shell
}

func at7(row []string, index int) string {
	if index < len(row) {
		return row[index]
	}
	return ""
}

func isExecutable(p string) bool {
	var st syscall.Stat_t
	return syscall.Stat(p, &st) == nil && st.Mode&syscall.S_IFMT == syscall.S_IFREG && st.Mode&0o111 != 0
}

func hasProgram(name string) bool {
	_, err := findProgram(name, os.Getenv("PATH"))
	return err == nil
}

// ownBinary is this program's path for a shell.
func ownBinary() string {
	p, err := os.Readlink(ownProgram)
	if err != nil || strings.ContainsAny(p, " '\"\\$`\n") {
		return ownProgram
	}
	return p
}

func withoutNames(env []string, names ...string) []string {
	kept := make([]string, 0, len(env)+len(names))
next:
	for _, one := range env {
		for _, name := range names {
			if strings.HasPrefix(one, name+"=") {
				continue next
			}
		}
		kept = append(kept, one)
	}
	return kept
}

func complain(what string) { _, _ = os.Stderr.WriteString("cove: " + what + "\n") }

// socketMain connects stdin and stdout to a unix socket: the far end of a forwarded one.
func socketMain(args []string) int {
	if len(args) != 1 {
		complain("usage: socket PATH")
		return 2
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err == nil {
		err = connectUnix(fd, args[0])
	}
	if err != nil {
		complain(args[0] + ": " + err.Error())
		return 1
	}
	go func() {
		pour(0, fd)
		_ = syscall.Shutdown(fd, syscall.SHUT_WR)
	}()
	pour(fd, 1)
	return 0
}

// connectUnix takes a path, or `@` and an abstract name. Programs that pass the whole sockaddr_un to bind(2), as node before
// 22 does, have a name that is filled up with zeros.
func connectUnix(fd int, name string) error {
	err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: name})
	if err == syscall.ECONNREFUSED && strings.HasPrefix(name, "@") && len(name) < maxSocketName {
		name += strings.Repeat("\x00", maxSocketName-len(name))
		err = syscall.Connect(fd, &syscall.SockaddrUnix{Name: name})
	}
	return err
}

// maxSocketName is what sockaddr_un has room for.
const maxSocketName = 108

// pour copies until the end of either side.
func pour(from, to int) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := syscall.Read(from, buffer)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || n <= 0 || writeAll(to, buffer[:n], -1) != nil {
			return
		}
	}
}

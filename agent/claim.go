package main

import (
	"os"
	"path"
	"regexp"
	"strings"
	"syscall"
)

var hostnameForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9.-]{0,252}$`)

// claim turns an anonymous pool member into somebody's sandbox. Once: a second one would be a mix-up of two owners.
func (a *agent) claim(_ *channel, in *call) (any, error) {
	workdir := or(in.Workdir, "")
	if workdir != "" && !path.IsAbs(workdir) {
		return nil, fail("invalid", "workdir must be an absolute path")
	}
	if in.Hostname != nil && !hostnameForm.MatchString(*in.Hostname) {
		return nil, fail("invalid", "not a hostname")
	}
	if _, err := environ(in.Env); err != nil {
		return nil, err
	}
	if in.User != nil && (*in.User == "" || strings.ContainsRune(*in.User, 0)) {
		return nil, fail("invalid", "not a user")
	}
	if !a.defaults.set(in.Env, workdir, in.User) {
		return nil, fail("exists", "the sandbox is already claimed")
	}
	if in.Hostname != nil && os.Getpid() == 1 { // a plain process shares these files with the host
		// Failures are ignored on purpose: a read-only or shell-less image is legal and works without these files.
		nameHost(*in.Hostname)
	}
	return empty{}, nil
}

func nameHost(name string) {
	overwrite("/etc/hostname", name+"\n")
	overwrite("/etc/hosts", hostsWith(name))
}

// hostsWith returns /etc/hosts with one 127.0.1.1 line, ours.
func hostsWith(hostname string) string {
	content, err := readBounded("/etc/hosts", 64<<10)
	if err != nil {
		content = []byte("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	}
	var b strings.Builder
	for line := range strings.Lines(string(content)) {
		if !strings.HasPrefix(line, "127.0.1.1") {
			b.WriteString(strings.TrimRight(line, "\n") + "\n")
		}
	}
	return b.String() + "127.0.1.1\t" + hostname + "\n"
}

// overwrite writes in place, for these files may be mounts. An image may have links or worse there: never followed, never waited for.
func overwrite(name, content string) {
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o644)
	if err != nil {
		return
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return
	}
	if file.Truncate(0) == nil {
		_, _ = file.WriteString(content)
	}
}

package main

import (
	"errors"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// plan is a command made ready for fork: everything that can be refused has been.
type plan struct {
	program string
	argv    []string
	env     []string
	cwd     string
	// askedForCwd: the call named its directory; otherwise it is the sandbox's default.
	askedForCwd bool
	credential  *syscall.Credential
}

var homeOfRoot = sync.OnceValue(rootHome)

func (a *agent) plan(in *call) (*plan, error) {
	p := &plan{}
	ownShell := in.terminal && in.Shell == nil && len(in.Argv) == 0
	switch {
	case ownShell:
	case in.Shell != nil && len(in.Argv) == 0:
		p.argv = []string{"/bin/sh", "-c", *in.Shell}
	case in.Shell == nil && len(in.Argv) > 0 && in.Argv[0] != "":
		p.argv = in.Argv
	default:
		return nil, fail("invalid", "exactly one of argv and shell must be set")
	}
	environment, workdir, user := a.defaults.get()
	if in.User != nil {
		user = in.User
	}
	who := identity{home: homeOfRoot()}
	if user != nil {
		var err error
		if who, err = resolveUser(*user); err != nil {
			return nil, err
		}
	}
	p.credential = who.credential
	merged := map[string]string{"PATH": defaultPath, "HOME": who.home}
	if in.terminal {
		who = terminalIdentity(who)
		maps.Copy(merged, terminalEnvironment(who))
	}
	maps.Copy(merged, environment)
	maps.Copy(merged, in.Env)
	var err error
	if p.env, err = environ(merged); err != nil {
		return nil, err
	}
	p.askedForCwd = in.Cwd != nil
	if p.cwd, err = directory(or(in.Cwd, workdir)); err != nil {
		return nil, err
	}
	if in.Tool {
		return p, p.planTool()
	}
	if ownShell {
		p.argv = []string{who.shell}
	}
	p.program, err = findProgram(p.argv[0], merged["PATH"])
	return p, err
}

func environ(values map[string]string) ([]string, error) {
	list := make([]string, 0, len(values))
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(values[name], 0) {
			return nil, fail("invalid", "not an environment variable: "+text(name))
		}
		list = append(list, name+"="+values[name])
	}
	return list, nil
}

// directory checks first what fork could only report as the same ENOENT as a missing program.
func directory(cwd string) (string, error) {
	if !path.IsAbs(cwd) {
		return "", fail("invalid", "cwd must be an absolute path")
	}
	var st syscall.Stat_t
	if err := syscall.Stat(cwd, &st); err != nil {
		f := asFailure(err)
		return "", fail(f.Kind, "cwd "+text(cwd)+": "+f.Text)
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		return "", fail("not_found", "cwd "+text(cwd)+": not a directory")
	}
	return cwd, nil
}

// findProgram searches like execvp. A name with a slash is left to the kernel, relative to the working directory.
func findProgram(name, search string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	denied := false
	for dir := range strings.SplitSeq(search, ":") {
		if !path.IsAbs(dir) {
			continue
		}
		candidate := dir + "/" + name
		var st syscall.Stat_t
		if syscall.Stat(candidate, &st) != nil || st.Mode&syscall.S_IFMT != syscall.S_IFREG {
			continue
		}
		if st.Mode&0o111 != 0 {
			return candidate, nil
		}
		denied = true
	}
	if denied {
		return "", fail("permission", text(name)+": permission denied")
	}
	return "", fail("not_found", text(name)+": not found")
}

// launchFailure names the program in what fork and exec report.
func launchFailure(p *plan, err error) error {
	name := text(p.argv[0])
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ELOOP):
		return fail("not_found", name+": not found")
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM), errors.Is(err, syscall.ENOEXEC), errors.Is(err, syscall.ETXTBSY):
		return fail("permission", name+": "+err.Error())
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.EMFILE):
		return fail("limit", "the sandbox has no room for another process: "+err.Error())
	case errors.Is(err, syscall.EINVAL):
		return fail("invalid", "argv, cwd or env contains a NUL byte")
	default:
		f := asFailure(err)
		return fail(f.Kind, name+": "+f.Text)
	}
}

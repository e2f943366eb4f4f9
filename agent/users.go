package main

import (
	"io"
	"strconv"
	"strings"
	"syscall"
)

const (
	maxUserFile = 1 << 20 // /etc/passwd and /etc/group belong to the sandbox; more of them is not read
	maxGroups   = 256
)

// identity is who a command runs as. credential nil: as the agent itself.
type identity struct {
	credential *syscall.Credential
	name       string // "": not in the passwd file
	home       string
	shell      string
}

// readBounded reads up to limit bytes of a regular file; what the sandbox may have put in its place cannot hold us.
func readBounded(path string, limit int64) ([]byte, error) {
	file, _, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, limit))
}

// rows splits a colon-separated file of /etc; a missing one has none.
func rows(path string) [][]string {
	content, err := readBounded(path, maxUserFile)
	if err != nil {
		return nil
	}
	var all [][]string
	for line := range strings.Lines(string(content)) {
		all = append(all, strings.Split(strings.TrimRight(line, "\n"), ":"))
	}
	return all
}

func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n < 1<<32-1 // -1 means "leave as it is" to the kernel
}

// resolveUser understands `name`, `uid`, and either with `:group`. A uid without a passwd row has group 0 and home "/".
func resolveUser(spec string) (identity, error) {
	who, group, hasGroup := strings.Cut(spec, ":")
	uid, isNumber := parseID(who)
	found := identity{home: "/"}
	gid, name, known := uint32(0), "", false
	for _, row := range rows("/etc/passwd") {
		if len(row) < 7 {
			continue
		}
		id, ok := parseID(row[2])
		if !ok || (row[0] != who && !(isNumber && id == uid)) {
			continue
		}
		uid, name, found.home, found.shell, known = id, row[0], row[5], row[6], true
		gid, _ = parseID(row[3])
		break
	}
	if !known && !isNumber {
		return found, fail("invalid", "no such user: "+text(who))
	}
	groups := memberships(name, gid)
	if hasGroup {
		var ok bool
		if gid, ok = resolveGroup(group); !ok {
			return found, fail("invalid", "no such group: "+text(group))
		}
		groups = nil
	}
	found.name = name
	found.credential = &syscall.Credential{Uid: uid, Gid: gid, Groups: groups}
	return found, nil
}

func resolveGroup(spec string) (uint32, bool) {
	if gid, ok := parseID(spec); ok {
		return gid, true
	}
	for _, row := range rows("/etc/group") {
		if len(row) >= 3 && row[0] == spec {
			return parseID(row[2])
		}
	}
	return 0, false
}

func memberships(name string, primary uint32) []uint32 {
	groups := []uint32{primary}
	if name == "" {
		return groups
	}
	for _, row := range rows("/etc/group") {
		if len(row) < 4 || len(groups) >= maxGroups {
			continue
		}
		for member := range strings.SplitSeq(row[3], ",") {
			if gid, ok := parseID(row[2]); ok && member == name && gid != primary {
				groups = append(groups, gid)
				break
			}
		}
	}
	return groups
}

// rootHome is read once: the file rarely changes and this lies in the path of every command.
func rootHome() string {
	for _, row := range rows("/etc/passwd") {
		if len(row) >= 7 && row[2] == "0" && strings.HasPrefix(row[5], "/") {
			return row[5]
		}
	}
	return "/root"
}

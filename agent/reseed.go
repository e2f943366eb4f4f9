package main

import (
	"os"
	"strconv"
	"strings"
	"syscall"
)

// reseedSignal is SIGRTMAX-1. It goes to those alone who catch it: others would die of it. Free of other uses: the C
// libraries have 32 to 34, systemd counts from SIGRTMIN, the Go runtime ignores what nobody asked for.
const reseedSignal = syscall.Signal(63)

const (
	// Where a kernel does not tell who catches what (gVisor), a process says it here, by a file with its number as name
	// that it holds open: src/cove/engine/inside/cove_fork.py does.
	catchersDirectory = "/run/cove/reseed"
	maxCatchers       = 4096
	maxDescriptors    = 65536
)

// reseed tells every process that catches the signal, and returns how many there are.
func reseed() int {
	if os.Getpid() != 1 { // a plain process sees those of the host
		return 0
	}
	own, err := readBounded("/proc/self/status", 16<<10)
	if err == nil && !strings.Contains(string(own), "\nSigCgt:") {
		return reseedListed()
	}
	told := 0
	for _, name := range entriesOf("/proc", -1) {
		pid, err := strconv.Atoi(name)
		if err != nil || pid <= 1 {
			continue
		}
		status, err := readBounded("/proc/"+name+"/status", 16<<10)
		if err == nil && catches(string(status), reseedSignal) && syscall.Kill(pid, reseedSignal) == nil {
			told++
		}
	}
	return told
}

func entriesOf(directory string, most int) []string {
	dir, err := os.Open(directory)
	if err != nil {
		return nil
	}
	defer dir.Close()
	all, _ := dir.Readdirnames(most)
	return all
}

// catches reads from proc(5)'s status whether a process has a handler for a signal.
func catches(status string, number syscall.Signal) bool {
	_, rest, found := strings.Cut(status, "\nSigCgt:")
	if !found {
		return false
	}
	mask, _, _ := strings.Cut(rest, "\n")
	bits, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
	return err == nil && bits&(1<<(uint(number)-1)) != 0
}

// reseedListed tells those who have said that they catch it, and still are the program that did.
func reseedListed() int {
	told := 0
	for _, name := range entriesOf(catchersDirectory, maxCatchers) {
		pid, err := strconv.Atoi(name)
		switch {
		case err != nil || pid <= 1:
		case !holds(name, catchersDirectory+"/"+name):
			_ = os.Remove(catchersDirectory + "/" + name)
		case syscall.Kill(pid, reseedSignal) == nil:
			told++
		}
	}
	return told
}

// holds tells whether a process has a file open.
func holds(pid, path string) bool {
	for _, fd := range entriesOf("/proc/"+pid+"/fd", maxDescriptors) {
		if link, err := os.Readlink("/proc/" + pid + "/fd/" + fd); err == nil && link == path {
			return true
		}
	}
	return false
}

package main

import (
	"bufio"
	"encoding/hex"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// mostPorts bounds the answer: a sandbox may listen on all 65 535.
const mostPorts = 1024

type portInfo struct {
	Port    int    `json:"port"`
	Address string `json:"address"`
}

type portsResult struct {
	Ports []portInfo `json:"ports"`
	More  bool       `json:"more"`
}

// ports lists what listens where `dial` gets to: on loopback or on every address. The kernel's tables tell.
func (a *agent) ports(*channel, *call) (any, error) {
	found := map[int]portInfo{}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		file, err := os.Open(table)
		if err != nil {
			continue // no IPv6 here
		}
		lines := bufio.NewScanner(file)
		for lines.Scan() {
			if info, ok := listening(lines.Text()); ok {
				if _, known := found[info.Port]; !known {
					found[info.Port] = info
				}
			}
		}
		_ = file.Close()
	}
	result := portsResult{Ports: []portInfo{}}
	for _, info := range found {
		result.Ports = append(result.Ports, info)
	}
	slices.SortFunc(result.Ports, func(x, y portInfo) int { return x.Port - y.Port })
	if len(result.Ports) > mostPorts {
		result.Ports, result.More = result.Ports[:mostPorts], true
	}
	return result, nil
}

// listening parses a line of /proc/net/tcp{,6}: `sl local_address rem_address st …`, addresses as `HEX:PORT`.
func listening(line string) (portInfo, bool) {
	words := strings.Fields(line)
	if len(words) < 4 || words[3] != "0A" {
		return portInfo{}, false
	}
	text, portText, _ := strings.Cut(words[1], ":")
	port, err := strconv.ParseUint(portText, 16, 16)
	raw, hexErr := hex.DecodeString(text)
	if err != nil || hexErr != nil || len(raw)%4 != 0 {
		return portInfo{}, false
	}
	for i := 0; i < len(raw); i += 4 { // each 32-bit word is in the machine's order: little-endian wherever we run
		slices.Reverse(raw[i : i+4])
	}
	address, ok := netip.AddrFromSlice(raw)
	address = address.Unmap()
	if !ok || !(address.IsLoopback() || address.IsUnspecified()) {
		return portInfo{}, false
	}
	return portInfo{int(port), address.String()}, true
}

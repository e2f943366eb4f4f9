package main

import "testing"

func TestListening(t *testing.T) {
	cases := []struct {
		line string
		want portInfo
		ok   bool
	}{
		{"   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1", portInfo{8000, "127.0.0.1"}, true},
		{"   1: 00000000:0050 00000000:0000 0A 00000000:00000000", portInfo{80, "0.0.0.0"}, true},
		{"   2: 00000000000000000000000001000000:1538 00000000000000000000000000000000:0000 0A", portInfo{5432, "::1"}, true},
		{"   3: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A", portInfo{22, "::"}, true},
		{"   4: 0100007F:1F40 0100007F:9999 01 00000000:00000000", portInfo{}, false},
		{"   5: 0200000A:1F40 00000000:0000 0A 00000000:00000000", portInfo{}, false},
		{"  sl  local_address rem_address   st tx_queue rx_queue", portInfo{}, false},
		{"   6: 01:ZZ 0:0 0A", portInfo{}, false},
		{"", portInfo{}, false},
	}
	for _, c := range cases {
		if got, ok := listening(c.line); got != c.want || ok != c.ok {
			t.Errorf("%q: %v %v, want %v %v", c.line, got, ok, c.want, c.ok)
		}
	}
}

package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestWhoCatchesASignalIsReadFromItsStatus(t *testing.T) {
	for status, want := range map[string]bool{
		"Name:\tx\nSigCgt:\t4000000000000000\nCapInh:\t0\n": true,
		"Name:\tx\nSigCgt:\tffffffffffffffff\n":             true,
		"Name:\tx\nSigCgt:\tbfffffffffffffff\n":             false,
		"Name:\tx\nSigCgt:\t0000000000000000\n":             false,
		"Name:\tSigCgt:\t4000000000000000\n":                false,
		"Name:\tx\nSigCgt:\tnonsense\n":                     false,
		"Name:\tx\nSigIgn:\t4000000000000000\n":             false,
		"":                                                  false,
	} {
		if catches(status, reseedSignal) != want {
			t.Errorf("%q", status)
		}
	}
}

func TestWhoHoldsAFileIsToldFromItsDescriptors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "1")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if !holds("self", path) || holds("self", path+"0") || holds("999999999", path) {
		t.Fatal("wrong")
	}
	_ = file.Close()
	if holds("self", path) {
		t.Fatal("it is closed")
	}
}

func TestALinkOrAFifoIsNotReadForAnID(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/file", []byte("content"), 0o600), os.Symlink(dir+"/file", dir+"/link"))
	must(t, syscall.Mkfifo(dir+"/fifo", 0o600))
	for name, want := range map[string]string{"file": "content", "link": "", "fifo": "", "none": "", ".": ""} {
		got, err := readOwn(dir+"/"+name, 64)
		if string(got) != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q %v", name, got, err)
		}
	}
}

func TestReviveIsRefusedWithoutACheckpointAndKeepsWhatItIsTold(t *testing.T) {
	a := newTestAgent(t)
	revive := func(payload string) (any, error) { return a.revive(nil, &call{payload: []byte(payload)}) }
	if _, err := revive(`{"env":{"A":"1"},"copy":true}`); asFailure(err).Kind != "invalid" {
		t.Fatal(err)
	}
	a.defaults.set(map[string]string{"A": "0", "B": "2"}, "/tmp", nil)
	a.revival.expect()
	for _, bad := range []string{`{"hostname":"a b"}`, `{"env":{"=":"x"}}`, `{"env":5}`} {
		if _, err := revive(bad); asFailure(err).Kind != "invalid" {
			t.Errorf("%s: %v", bad, err)
		}
	}
	for range 2 {
		if _, err := revive(`{"env":{"A":"1"},"copy":true}`); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := revive(`{"env":{"A":"2"},"copy":true}`); asFailure(err).Kind != "exists" {
		t.Fatal(err)
	}
	env, workdir, _ := a.defaults.get()
	if env["A"] != "1" || env["B"] != "2" || workdir != "/tmp" {
		t.Fatalf("%v %s", env, workdir)
	}
	a.revival.expect()
	if _, err := revive(`{"env":{"A":"3"}}`); err != nil {
		t.Fatal(err)
	}
	if env, _, _ := a.defaults.get(); env["A"] != "1" {
		t.Fatal("the same sandbox got another environment")
	}
	a.revival.expect()
	if _, err := revive(`{"copy":true,"env":{"BIG":"` + strings.Repeat("x", maxEnvironment) + `"}}`); asFailure(err).Kind != "too_large" {
		t.Fatal(err)
	}
	told, _ := a.environment(nil, nil)
	if told.(environmentResult).Env["B"] != "2" || *told.(environmentResult).Workdir != "/tmp" {
		t.Fatalf("%+v", told)
	}
	if !strings.HasPrefix(generationFile, generationDirectory) || len(newToken()) != 32 {
		t.Fatal("an id of 32 hex digits in its directory")
	}
}

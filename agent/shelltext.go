package main

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"regexp"
	"strconv"
	"strings"
)

// What the agent writes into a shell's standard input, and what the shell answers. Pure but for the random words.
//
// A command is one line: ` \builtin eval 'TEXT' </dev/null; REPORT`. The report prints a word that nobody inside has
// seen before, `$?` and the directory to a place that commands do not have: the shell's own terminal, or descriptor 9. So no output
// can be taken for it. The report is repeated as a line of its own when the first was lost, because an interrupt, and
// in dash an error too, abandons the rest of a line.

const (
	wordBytes = 16
	maxReport = 64 << 10 // a directory is at most 4096, a variable may be anything
	maxCwd    = 4096
	// The group hides what `set -x` would print; a virtual environment's new prompt would be printed at the next line.
	reportText = "{ %PREFIX printf '%WORD %s %s\\n' \"$?\" \"${PWD-}\" >%PLACE; PS1= PS2=; } 2>/dev/null\n"
)

// dialect is what differs between the programs.
type dialect struct {
	argv []string // after the program's name
	// prefix keeps aliases and functions of the same name from taking the place of a builtin. In dash `command` also
	// keeps an error in a special builtin from abandoning the line.
	prefix string
	setup  string
	// ownsTerminal: its standard error is the terminal at first, and descriptor 7 what that shall be. So bash has the
	// terminal open under its own name, not as /dev/tty, and its memory can be kept on the disk (CRIU keeps no /dev/tty
	// whose master another process has open). dash opens /dev/tty whatever it is given.
	ownsTerminal bool
}

var dialects = map[string]dialect{
	"bash": {
		argv:   []string{"--noprofile", "--norc", "--noediting", "-i"},
		prefix: `\builtin`,

		ownsTerminal: true,
		setup:        " exec 2>&7 7>&-; PS1= PS2=; unset PS0 PROMPT_COMMAND HISTFILE MAILCHECK TMOUT; set +o history +H; shopt -u checkwinsize; exec 8>&-\n",
	},
	"sh": {
		argv:   []string{"-i"},
		prefix: `\command`,
		setup:  " PS1= PS2=; unset HISTFILE MAIL MAILCHECK TMOUT; exec 8>&-\n",
	},
}

func newWord() string {
	var b [wordBytes]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func (d dialect) report(word, place string) string {
	return " " + strings.NewReplacer("%PREFIX", d.prefix, "%WORD", word, "%PLACE", place).Replace(reportText)
}

// line is the whole of a command. `status` is what `$?` was, which our own line would otherwise set to 0. The
// function forgets itself, and `&& :` keeps `set -e` from taking its status for a failure.
func (d dialect) line(text, word, place string, status int) string {
	var b strings.Builder
	if status != 0 {
		// Defined outside of the group: after an error of syntax, bash takes `{ name() {` for another one.
		b.WriteString(` __cove() { \unset -f __cove; \return ` + strconv.Itoa(status) + "; }; { __cove && :; } 2>/dev/null;")
	}
	b.WriteString(" " + d.prefix + " eval " + quoted(text) + " </dev/null")
	if place != terminalPlace {
		b.WriteString(" 9>&-")
	}
	b.WriteString(";" + d.report(word, place))
	return b.String()
}

const (
	terminalPlace   = "/dev/tty"
	descriptorPlace = "&9"
)

// quoted is the text as one word of any shell: in single quotes nothing is special but a single quote.
func quoted(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// reports finds reports in what comes from the terminal, where programs may write too.
type reports struct{ rest []byte }

// report is what a shell says at the end of a command.
type report struct {
	word   string
	status int
	cwd    string
}

// feed takes the next bytes and gives each complete line to `found` that could be a report. It reports whether there
// was anything else among them.
func (r *reports) feed(data []byte, found func(report)) (strange bool) {
	r.rest = append(r.rest, data...)
	for {
		line, after, whole := bytes.Cut(r.rest, []byte{'\n'})
		if !whole {
			break
		}
		if !eachReport(line, found) {
			strange = true
		}
		r.rest = after
	}
	if len(r.rest) > maxReport {
		strange = true
		eachReport(r.rest, found) // of a variable that is longer than any directory
		r.rest = r.rest[len(r.rest)-maxReport:]
	}
	r.rest = bytes.Clone(r.rest)
	return strange || len(r.rest) > 0
}

var reportStart = regexp.MustCompile(`([0-9a-f]{32}) ([0-9]{1,3}) `)

// eachReport gives all that could be reports in a line to `found`, which knows the right word: a program may have
// written to the terminal without ending its own line, and what stands for the directory may be any text.
func eachReport(line []byte, found func(report)) (isOne bool) {
	line = bytes.TrimSuffix(line, []byte{'\r'})
	for _, at := range reportStart.FindAllSubmatchIndex(line, -1) {
		status, _ := strconv.Atoi(string(line[at[4]:at[5]]))
		if status > 255 {
			continue
		}
		cwd := ""
		if rest := line[at[1]:]; bytes.HasPrefix(rest, []byte{'/'}) {
			cwd = text(string(rest[:min(len(rest), maxCwd)]))
		}
		found(report{string(line[at[2]:at[3]]), status, cwd})
		isOne = true
	}
	return isOne
}

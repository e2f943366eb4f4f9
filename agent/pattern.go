package main

import (
	"regexp"
	"regexp/syntax"
)

const (
	maxPattern = 1024
	// A program needs at worst ~10 ns for each instruction and byte (measured), and `x{1000}` has 1000 of them. A match is
	// not interrupted, so the text between two looks at a cancel is shorter for the larger ones: half a second at most.
	maxInstructions  = 2000
	manyInstructions = 200
	heavyPiece       = 32 << 10
)

// pattern is what `search` and `replace` look for, line by line. RE2: matching time is linear in the text.
type pattern struct {
	line *regexp.Regexp
	// block finds where in many lines the first match can be; nil if an anchor means something else there.
	block *regexp.Regexp
	// piece is how much text is looked at in one go.
	piece int
}

func compilePattern(text string, literal, ignoreCase bool) (*pattern, error) {
	if text == "" || len(text) > maxPattern {
		return nil, fail("invalid", "the pattern has 1 to 1024 bytes")
	}
	if literal {
		text = regexp.QuoteMeta(text)
	}
	flags := "(?m)"
	if ignoreCase {
		flags = "(?mi)"
	}
	tree, err := syntax.Parse(flags+text, syntax.Perl)
	if err != nil {
		return nil, fail("invalid", "the pattern is no regular expression: "+err.Error())
	}
	size := instructions(tree)
	if size > maxInstructions {
		return nil, fail("invalid", "the pattern is too large: its repetitions count in full")
	}
	line, err := regexp.Compile(flags + text)
	if err != nil {
		return nil, fail("invalid", "the pattern is no regular expression: "+err.Error())
	}
	p := &pattern{line: line, piece: filePiece}
	if size > manyInstructions {
		p.piece = heavyPiece
	}
	if !isAnchored(tree) {
		p.block = line
	}
	return p, nil
}

// instructions estimates the size of the compiled program without making it. It stops growing beyond the limit.
func instructions(tree *syntax.Regexp) int {
	total := 1
	if tree.Op == syntax.OpLiteral {
		total = len(tree.Rune)
	}
	for _, sub := range tree.Sub {
		if total += instructions(sub); total > maxInstructions {
			return total
		}
	}
	if tree.Op == syntax.OpRepeat {
		total *= max(tree.Min, tree.Max, 1)
	}
	return total
}

// isAnchored finds what is one place in a line and another in a block: `\A`, `\z`, and `$`, before which a carriage
// return does not count.
func isAnchored(tree *syntax.Regexp) bool {
	if tree.Op == syntax.OpBeginText || tree.Op == syntax.OpEndText || tree.Op == syntax.OpEndLine {
		return true
	}
	for _, sub := range tree.Sub {
		if isAnchored(sub) {
			return true
		}
	}
	return false
}

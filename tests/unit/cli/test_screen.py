"""What is left behind on a terminal is put right, and old questions are not answered again."""

from __future__ import annotations

import pytest

from cove.cli.screen import Modes, Replay

VIM = b"\x1b[?1049h\x1b[>4;2m\x1b[?1h\x1b=\x1b[?2004h\x1b[?1004h\x1b[1;24r\x1b[?25l\x1b[m"
VIM_END = b"\x1b[?1004l\x1b[?2004l\x1b[?1l\x1b>\x1b[?1049l\x1b[?25h\x1b[>4;m"


def left_by(*output: bytes) -> bytes:
    modes = Modes()
    for piece in output:
        modes.see(piece)
    return modes.reset()


def test_a_program_that_tidied_up_leaves_nothing_to_do() -> None:
    assert left_by(b"plain\r\n", VIM, b"text", VIM_END) == b""
    assert left_by(b"\x1b[31mred\x1b[0m") == b""


def test_what_a_killed_program_left_is_put_right() -> None:
    left = left_by(VIM)
    for sequence in (b"\x1b[>4m", b"\x1b>", b"\x1b[?1l", b"\x1b[?2004l", b"\x1b[?1004l", b"\x1b[?25h", b"\x1b[0m"):
        assert sequence in left
    assert left.index(b"\x1b[?25h") < left.index(b"\x1b[?1049l")


def test_every_byte_alone_is_seen_as_well() -> None:
    assert left_by(*(bytes([byte]) for byte in VIM)) == left_by(VIM)


@pytest.mark.parametrize(
    ("output", "left"),
    [
        (b"\x1b[?1000;1006h", b"\x1b[?1000l\x1b[?1006l\x1b[0m"),
        (b"\x1b[?7l", b"\x1b[?7h\x1b[0m"),
        (b"\x1b[1;31m", b"\x1b[0m"),
        (b"\x1b[>1u\x1b[>5u\x1b[<u", b"\x1b[<1u\x1b[0m"),
        (b"\x1b[>1u\x1b[<99999999u", b""),
        (b"\x1b[?1049h\x1bc", b""),
        (b"\x1b[?12;34h", b""),
        (b"text\x1b[?10", b"\x18\x1b[0m"),
        (b"\x1b]0;title", b"\x18\x1b[0m"),
    ],
)
def test_resets(output: bytes, left: bytes) -> None:
    assert left_by(output) == left


def test_a_flood_without_sequences_costs_little_and_is_not_kept() -> None:
    modes = Modes()
    for _ in range(1000):
        modes.see(b"\x1b]" + b"x" * 100_000)
    assert modes.reset() == b""


QUESTIONS = [
    b"\x1b[c", b"\x1b[>c", b"\x1b[>0c", b"\x1b[=c", b"\x1b[5n", b"\x1b[6n", b"\x1b[?6n", b"\x1b[?2026$p", b"\x1b[>q",
    b"\x1b[?u", b"\x1b[18t", b"\x1b[14t", b"\x1b]11;?\x07", b"\x1b]10;?\x1b\\", b"\x1b]4;1;?\x07", b"\x1bP$qm\x1b\\",
    b"\x1bP+q544e\x1b\\", b"\x1b]52;c;?\x07", b"\x05",
]  # fmt: skip


@pytest.mark.parametrize("question", QUESTIONS)
def test_questions_in_old_output_are_taken_out(question: bytes) -> None:
    old = b"before" + question + b"after"
    assert Replay(len(old)).clean(old + question) == b"beforeafter" + question
    replay = Replay(len(old))
    pieces = [replay.clean(bytes([byte])) for byte in old + question]
    assert b"".join(pieces) == b"beforeafter" + question


def test_everything_else_in_old_output_stays() -> None:
    old = b"\x1b[?1049h\x1b[31mred\x1b[2J\x1b[1;1H\x1b]0;title\x07\xff\x00\x1b[22;0;0t" + VIM
    assert Replay(len(old)).clean(old) == old
    assert Replay(0).clean(QUESTIONS[0]) == QUESTIONS[0]
    replay = Replay(len(old))
    assert b"".join(replay.clean(bytes([byte])) for byte in old) == old

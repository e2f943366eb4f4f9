"""The language of Dockerfiles: what is read out of one, and what is refused with the number of its line."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.core.dockerfile import Instruction, Stage, arg_values, find_stage, needed, pairs, parse_dockerfile, words
from cove.model.errors import BadRequest


def stages_of(text: str, **args: str) -> tuple[Stage, ...]:
    return parse_dockerfile(text, args)[0]


def steps_of(text: str) -> list[tuple[str, str]]:
    return [(step.word, step.text) for step in stages_of("FROM base\n" + text)[0].steps]


def one(word: str, text: str) -> Instruction:
    return Instruction(line=1, word=word, text=text)


def read_all(text: str) -> None:
    for stage in stages_of(text):
        for step in stage.steps:
            words(step, {"A": "1"})
            if step.word in {"ENV", "LABEL"}:
                pairs(step, {})


def refusal(text: str) -> str:
    with pytest.raises(BadRequest) as caught:
        read_all(text)
    assert caught.value.field == "file"
    return caught.value.public


def test_instructions_are_read_in_order_whatever_their_case() -> None:
    assert steps_of("run a\nEnv A=1\ncMd x") == [("RUN", "a"), ("ENV", "A=1"), ("CMD", "x")]


def test_lines_are_continued_and_comments_within_left_out() -> None:
    assert steps_of("RUN a && \\\n  # why\n\n  b \\\n  c\n# end\nRUN d") == [("RUN", "a &&   b   c"), ("RUN", "d")]


def test_the_escape_directive_holds() -> None:
    found = stages_of("# escape=`\nFROM base\nRUN a `\n b\nRUN c:\\\n")[0].steps
    assert [step.text for step in found] == ["a  b", "c:\\"]


def test_line_numbers_are_those_of_the_first_line() -> None:
    found = stages_of("\n# one\nFROM base\n\nRUN a \\\n b\nRUN c\n")[0]
    assert (found.start.line, [step.line for step in found.steps]) == (3, [5, 7])


def test_windows_line_ends_and_a_byte_order_mark_do_no_harm() -> None:
    assert stages_of("\ufeffFROM base\r\nRUN a\r\n")[0].steps[0].text == "a"


def test_the_list_form_is_a_list_and_what_is_no_json_is_text() -> None:
    assert one("RUN", '["a", "b c"]').argv == ("a", "b c")
    assert one("RUN", "[ -f x ] && y").argv is None
    with pytest.raises(BadRequest, match="strings only"):
        _ = one("RUN", "[1]").argv


def test_a_here_document_alone_is_what_is_run() -> None:
    step = stages_of("FROM base\nRUN <<EOF\nset -e\n# kept\n\necho a\nEOF\nRUN b\n")[0].steps
    assert step[0].body == "set -e\n# kept\n\necho a\n"
    assert step[1].text == "b"


def test_a_here_document_for_a_program_goes_to_the_shell() -> None:
    step = stages_of("FROM base\nRUN python3 - <<-'END' > /x\n\tprint(1)\n\tEND\n")[0].steps[0]
    assert step.body == "python3 - <<-'END' > /x\nprint(1)\nEND\n"


@pytest.mark.parametrize(
    ("text", "variables", "expected"),
    [
        ("a  b\tc", {}, ["a", "b", "c"]),
        ("$A ${A} ${A}x", {"A": "1"}, ["1", "1", "1x"]),
        ("'$A' \"$A b\" \\$A", {"A": "1"}, ["$A", "1 b", "$A"]),
        ("${A:-x} ${B:-y} ${A:+z} ${B+w}", {"A": ""}, ["x", "y"]),
        ("${A-x}${B-y}", {"A": ""}, ["y"]),
        ("a\\ b \"c d\"'e'", {}, ["a b", "c de"]),
        ('"" x', {}, ["", "x"]),
        ("$ $1 a$", {}, ["$", "$1", "a$"]),
        ("$A", {"A": "two words"}, ["two words"]),
        ('"a\\"b\\n"', {}, ['a"b\\n']),
    ],
)
def test_words_and_variables(text: str, variables: dict[str, str], expected: list[str]) -> None:
    assert [word for word in words(one("ENV", text), variables) if word or '""' in text] == expected


def test_pairs_in_both_forms() -> None:
    assert pairs(one("ENV", "A=1 B='x y'"), {}) == {"A": "1", "B": "x y"}
    assert pairs(one("ENV", "A some words"), {}) == {"A": "some words"}
    with pytest.raises(BadRequest, match="NAME=VALUE"):
        pairs(one("ENV", "A=1 B"), {})


def test_an_arg_is_what_was_given_else_its_default_else_what_was_before_the_first_from() -> None:
    scope = arg_values(one("ARG", "A=1 B C=$E D"), {"A": "9"}, {"E": "e"}, {"B": "outer"})
    assert scope == {"A": "9", "B": "outer", "C": "e"}


def test_stages_are_found_by_name_and_number_and_build_on_each_other() -> None:
    stages, outer = parse_dockerfile("ARG V=1\nFROM base:$V AS One\nRUN a\nFROM one\nRUN b\nFROM ${V}x AS last", {})
    assert outer == {"V": "1"}
    assert [stage.base for stage in stages] == ["base:1", 0, "1x"]
    assert find_stage(stages, "ONE") is stages[0]
    assert find_stage(stages, "2") is stages[2]
    assert find_stage(stages, "7") is None
    assert find_stage(stages, "9" * 5000) is None


def test_only_the_stages_that_the_target_needs_are_built() -> None:
    text = "FROM a AS x\nFROM b AS y\nFROM c AS z\nCOPY --from=x /1 /\nFROM y AS w\nCOPY --from=z /2 /\nFROM d"
    stages = stages_of(text)
    assert [stage.number for stage in needed(stages, None)] == [4]
    assert [stage.number for stage in needed(stages, "z")] == [0, 2]
    assert [stage.number for stage in needed(stages, "w")] == [0, 1, 2, 3]
    with pytest.raises(BadRequest, match="no stage nope"):
        needed(stages, "nope")


def test_a_stage_cannot_name_one_that_comes_later() -> None:
    assert [stage.base for stage in stages_of("FROM b\nFROM a AS b")] == ["b", "a"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("RUN a", "line 1 of the Dockerfile (RUN): the first instruction must be FROM"),
        ("# nothing\n", "has no FROM"),
        ("FROM base\nFETCH x", 'line 2 of the Dockerfile: no instruction "FETCH"'),
        ("FROM base\n\nONBUILD RUN a", "line 3 of the Dockerfile (ONBUILD)"),
        ("FROM scratch", "line 1 of the Dockerfile (FROM): scratch"),
        ("FROM --platform=linux/s390x base", "--platform"),
        ("FROM base as", "write FROM IMAGE"),
        ("FROM base AS -x", "no name of a stage"),
        ("FROM base\nRUN --mount=type=secret,id=x cat", "line 2 of the Dockerfile (RUN): --mount is not supported"),
        ("FROM base\nRUN --network=host x", "--network is not supported"),
        ("FROM base\nADD --checksum=x a b", "--checksum is not supported"),
        ("FROM base\nCOPY <<EOF /x\na\nEOF", "here-documents are understood in RUN only"),
        ("FROM base\nRUN <<A cat <<B\nA\nB", "one here-document"),
        ("FROM base\nRUN <<EOF\nno end", "does not end in EOF"),
        ("FROM base\nRUN <<EOF\n#!/usr/bin/python3\nEOF", "run by the shell"),
        ("FROM base\nENV A='x", "a ' is not closed"),
        ("FROM base\nENV A=${A%x}", "of ${...} only"),
        ("FROM base\nRUN", "line 2 of the Dockerfile (RUN): it says nothing"),
        ("# escape=x\nFROM base", "escape must be"),
        ("FROM base\n" + "RUN a\n" * 2001, "more than 2000 instructions"),
    ],
)
def test_what_is_not_understood_is_refused_by_line(text: str, said: str) -> None:
    assert said in refusal(text)


def test_what_means_nothing_here_is_kept_for_a_note() -> None:
    assert steps_of("EXPOSE 80\nVOLUME /x\nHEALTHCHECK --interval=1s CMD x") == [
        ("EXPOSE", "80"),
        ("VOLUME", "/x"),
        ("HEALTHCHECK", "--interval=1s CMD x"),
    ]


@given(st.text(alphabet="FROMRUNENVCOPYARG base=\n\\\"'${}:-+#<>E[],\t\x00\u20ac", max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(BadRequest):
        read_all("FROM base\n" + text)


def test_variables_that_double_end_at_a_limit() -> None:
    text = "FROM base\nARG A=" + "x" * 16 + "\n" + "ENV B=$A\n"
    stages, _ = parse_dockerfile(text, {})
    values = {"A": "x" * 40_000}
    with pytest.raises(BadRequest, match="longer than 64 KiB"):
        pairs(stages[0].steps[1].__class__(line=3, word="ENV", text="B=$A$A$A"), values)

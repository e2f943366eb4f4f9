"""A Dockerfile as a list of instructions, and its little language of words and variables. Pure: nothing is run here.

Understood: FROM (several stages), RUN (also with here-documents), COPY and ADD of local files, ENV, ARG, WORKDIR, USER,
SHELL, ENTRYPOINT, CMD, LABEL. Without a meaning in a sandbox, and left out with a note: EXPOSE, VOLUME, HEALTHCHECK,
STOPSIGNAL, MAINTAINER. All else is refused with the number of its line. What the words do: `building.py`.
Source: the Dockerfile reference of BuildKit 1.x; why it is not given to another builder: docs/decisions/0011.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Final, cast

from msgspec import Struct, field

from cove.model.errors import BadRequest

WORDS: Final = frozenset(
    {"FROM", "RUN", "COPY", "ADD", "ENV", "ARG", "WORKDIR", "USER", "SHELL", "ENTRYPOINT", "CMD", "LABEL"}
)
LEFT_OUT: Final = frozenset({"EXPOSE", "VOLUME", "HEALTHCHECK", "STOPSIGNAL", "MAINTAINER"})
FLAGS: Final = {"FROM": {"platform"}, "COPY": {"from", "chown", "chmod", "link"}, "ADD": {"chown", "chmod", "link"}}
MAX_INSTRUCTIONS: Final = 2000
MAX_EXPANDED: Final = 64 * 1024
"""Characters of one instruction with its variables replaced: each could double what the one before made."""

_DIRECTIVE: Final = re.compile(r"#\s*([A-Za-z]+)\s*=\s*(\S+)\s*")
_FLAG: Final = re.compile(r"--([a-z-]+)(?:=(\S*))?(?:\s+|$)")
_HEREDOC: Final = re.compile(r"""(?<!<)<<(-?)\s*(["']?)([A-Za-z_][A-Za-z0-9_]*)\2""")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STAGE: Final = re.compile(r"[a-z][a-z0-9-_.]*", re.IGNORECASE)
_VARIABLE: Final = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)(?:(:?[-+])([^{}]*))?\})")


class Instruction(Struct, frozen=True, kw_only=True):
    """One instruction: `word` in capitals, what stands behind its flags, and the number of its first line."""

    line: int
    word: str
    text: str
    flags: dict[str, str] = field(default_factory=dict[str, str])
    body: str | None = None

    @property
    def shown(self) -> str:
        """As a person reads it, on one line."""
        flags = "".join(f"--{name}={value} " for name, value in self.flags.items())
        return f"{self.word} {flags}{' '.join(self.text.split())}"[:200]

    @property
    def argv(self) -> tuple[str, ...] | None:
        """The list of the JSON form, None for text. Raises: BadRequest."""
        if not self.text.startswith("["):
            return None
        try:
            found: object = json.loads(self.text)
        except (ValueError, RecursionError):
            return None  # as the reference has it: what is no JSON is for the shell
        if not isinstance(found, list) or not all(isinstance(one, str) for one in cast("list[object]", found)):
            raise self.bad("its list must have strings only")
        return tuple(cast("list[str]", found))

    def bad(self, why: str) -> BadRequest:
        """The error for this line."""
        return BadRequest(f"line {self.line} of the Dockerfile ({self.word}): {why}", field="file")

    def unsupported(self, why: str) -> BadRequest:
        """The error for what Cove does not do."""
        return self.bad(why)


class Stage(Struct, frozen=True, kw_only=True):
    """One FROM and what follows. `base` is an image's name, or the number of an earlier stage."""

    number: int
    name: str
    start: Instruction
    base: str | int
    steps: tuple[Instruction, ...]

    def needs(self, stages: tuple[Stage, ...]) -> set[int]:
        """The numbers of the stages that it builds on or copies from."""
        found = {self.base} if isinstance(self.base, int) else set[int]()
        for step in self.steps:
            if "from" in step.flags and (other := find_stage(stages[: self.number], step.flags["from"])) is not None:
                found.add(other.number)
        return found


def parse_dockerfile(text: str, args: dict[str, str]) -> tuple[tuple[Stage, ...], dict[str, str]]:
    """The stages, and the values of the ARGs before the first FROM. Raises: BadRequest."""
    instructions = list(_instructions(text))
    if len(instructions) > MAX_INSTRUCTIONS:
        raise BadRequest(f"the Dockerfile has more than {MAX_INSTRUCTIONS} instructions", field="file")
    outer: dict[str, str] = {}
    stages: list[Stage] = []
    for instruction in instructions:
        if instruction.word == "FROM":
            stages.append(_stage(instruction, tuple(stages), outer))
        elif stages:
            last = stages[-1]
            stages[-1] = Stage(
                number=last.number, name=last.name, start=last.start, base=last.base, steps=(*last.steps, instruction)
            )
        elif instruction.word == "ARG":
            outer.update(arg_values(instruction, args, {}, outer))
        else:
            raise instruction.bad("the first instruction must be FROM")
    if not stages:
        raise BadRequest("the Dockerfile has no FROM", field="file")
    return tuple(stages), outer


def needed(stages: tuple[Stage, ...], target: str | None) -> tuple[Stage, ...]:
    """The stages that the wanted one (None: the last) needs, itself the last. Raises: BadRequest."""
    last = stages[-1] if target is None else find_stage(stages, target)
    if last is None:
        raise BadRequest(f"the Dockerfile has no stage {str(target)[:64]}", field="target")
    wanted, pending = {last.number}, [last]
    while pending:
        for number in pending.pop().needs(stages) - wanted:
            wanted.add(number)
            pending.append(stages[number])
    return tuple(stage for stage in stages if stage.number in wanted)


def find_stage(stages: tuple[Stage, ...], name: str) -> Stage | None:
    """The stage of that name or number."""
    if name.isascii() and name.isdecimal():
        return stages[int(name)] if len(name) < 5 and int(name) < len(stages) else None  # noqa: PLR2004 - not a bomb
    return next((stage for stage in reversed(stages) if stage.name == name.lower()), None)


def arg_values(
    instruction: Instruction, given: dict[str, str], scope: dict[str, str], outer: dict[str, str]
) -> dict[str, str]:
    """The variables that an ARG declares: as given, else its default, else the one from before the first FROM."""
    found: dict[str, str] = {}
    for word in words(instruction, {**scope, **found}):
        name, has_default, default = word.partition("=")
        if not _NAME.fullmatch(name):
            raise instruction.bad(f'"{name[:64]}" is no name of a variable')
        if name in given:
            found[name] = given[name]
        elif has_default:
            found[name] = default
        elif name in outer:
            found[name] = outer[name]
    return found


def pairs(instruction: Instruction, variables: dict[str, str]) -> dict[str, str]:
    """`NAME=VALUE` words of ENV and LABEL; also the old form `NAME VALUE`. Raises: BadRequest."""
    first, _, rest = instruction.text.partition(" ")
    if rest and "=" not in first:
        return {first: expand(instruction, rest.strip(), variables)}
    found: dict[str, str] = {}
    for word in words(instruction, variables):
        name, has_value, value = word.partition("=")
        if not has_value or not name:
            raise instruction.bad(f'"{word[:64]}" is not NAME=VALUE')
        found[name] = value
    return found


def words(instruction: Instruction, variables: dict[str, str]) -> list[str]:
    """The words of an instruction, variables replaced and quotes taken off. Raises: BadRequest."""
    found: list[str] = []
    present: str | None = None
    for piece, is_blank in _pieces(instruction, variables):
        if is_blank:
            if present is not None:
                found.append(present)
            present = None
        else:
            present = (present or "") + piece
    return found if present is None else [*found, present]


def expand(instruction: Instruction, text: str, variables: dict[str, str]) -> str:
    """One value, variables replaced and quotes taken off, blanks kept. Raises: BadRequest."""
    whole = Instruction(line=instruction.line, word=instruction.word, text=text)
    return "".join(piece for piece, _ in _pieces(whole, variables))


def _pieces(instruction: Instruction, variables: dict[str, str]) -> Iterator[tuple[str, bool]]:
    """Parts of the text, and whether each is the blank between two words. Raises: BadRequest past `MAX_EXPANDED`."""
    size = 0
    for piece, is_blank in _expanded(instruction, variables):
        size += len(piece)
        if size > MAX_EXPANDED:
            raise instruction.bad(f"with its variables it is longer than {MAX_EXPANDED // 1024} KiB")
        yield piece, is_blank


def _expanded(instruction: Instruction, variables: dict[str, str]) -> Iterator[tuple[str, bool]]:
    text, at, quote = instruction.text, 0, ""
    while at < len(text):
        letter = text[at]
        if letter == "\\" and quote != "'" and at + 1 < len(text):
            following = text[at + 1]
            # Within double quotes a backslash is itself, except before what it protects.
            yield (following if not quote or following in '"\\$' else letter + following), False
            at += 2
        elif letter in {'"', "'"} and quote in {"", letter}:
            quote = "" if quote else letter
            yield "", False
            at += 1
        elif letter == "$" and quote != "'":
            match = _VARIABLE.match(text, at)
            if match is None:
                if text[at : at + 2] == "${":
                    raise instruction.unsupported("of ${...} only -, :-, + and :+ are understood")
                yield letter, False
                at += 1
            else:
                yield _value(match, variables), False
                at = match.end()
        else:
            yield letter, letter in " \t" and not quote
            at += 1
    if quote:
        raise instruction.bad(f"a {quote} is not closed")


def _value(match: re.Match[str], variables: dict[str, str]) -> str:
    name, operator, word = match[1] or match[2], match[3] or "", match[4] or ""
    value = variables.get(name)
    is_set = bool(value) if operator.startswith(":") else value is not None
    if operator.endswith("+"):
        return word if is_set else ""
    if operator.endswith("-") and not is_set:
        return word
    return value or ""


def _stage(instruction: Instruction, earlier: tuple[Stage, ...], outer: dict[str, str]) -> Stage:
    found = words(instruction, outer)
    if not (len(found) == 1 or (len(found) == 3 and found[1].upper() == "AS")):  # noqa: PLR2004 - IMAGE AS NAME
        raise instruction.bad("write FROM IMAGE, or FROM IMAGE AS NAME")
    name = found[2].lower() if len(found) > 1 else ""
    if name and not _STAGE.fullmatch(name):
        raise instruction.bad(f'"{name[:64]}" is no name of a stage')
    if "platform" in instruction.flags:
        raise instruction.unsupported("--platform: images are made for this machine only")
    if found[0] == "scratch":
        raise instruction.unsupported("scratch has nothing that the steps could be run with; begin with an image")
    base = None if found[0].isdigit() else find_stage(earlier, found[0])
    return Stage(
        number=len(earlier), name=name, start=instruction, base=found[0] if base is None else base.number, steps=()
    )


def _instructions(text: str) -> Iterator[Instruction]:
    lines = _Lines(text)
    while (found := lines.next_logical()) is not None:
        number, line = found
        if not line.strip():
            continue
        word, *rest = line.split(None, 1)
        instruction = _checked(Instruction(line=number, word=word.upper(), text="".join(rest).strip()))
        heredoc = _HEREDOC.search(instruction.text) if instruction.word in {"RUN", "COPY", "ADD"} else None
        if heredoc is not None and instruction.argv is None:
            instruction = _with_body(instruction, heredoc, lines.take_until)
        yield instruction


def _checked(instruction: Instruction) -> Instruction:
    """With its flags apart. Raises: BadRequest."""
    if instruction.word == "ONBUILD":
        raise instruction.unsupported("write what it would do into the Dockerfile that uses this one")
    if instruction.word not in WORDS | LEFT_OUT:
        raise BadRequest(
            f'line {instruction.line} of the Dockerfile: no instruction "{instruction.word[:32]}"', field="file"
        )
    text, flags = instruction.text, dict[str, str]()
    while instruction.word not in {"CMD", "ENTRYPOINT", *LEFT_OUT} and (match := _FLAG.match(text)):
        if match[1] not in FLAGS.get(instruction.word, set()):
            raise instruction.unsupported(f"--{match[1]} is not supported")
        flags[match[1]] = match[2] or ""
        text = text[match.end() :]
    if not text and instruction.word not in LEFT_OUT:
        raise instruction.bad("it says nothing")
    return Instruction(line=instruction.line, word=instruction.word, text=text, flags=flags)


def _with_body(
    instruction: Instruction, heredoc: re.Match[str], take_until: Callable[[str, bool], str | None]
) -> Instruction:
    """A RUN with its here-document: alone, that is what is run, else it is the shell's own business."""
    if instruction.word != "RUN":
        raise instruction.unsupported("here-documents are understood in RUN only")
    if _HEREDOC.search(instruction.text, heredoc.end()):
        raise instruction.unsupported("one here-document for each RUN")
    body = take_until(heredoc[3], bool(heredoc[1]))
    if body is None:
        raise instruction.bad(f"its here-document does not end in {heredoc[3]}")
    if heredoc[0] != instruction.text.strip():
        body = f"{instruction.text}\n{body}{heredoc[3]}\n"
    elif body.startswith("#!"):
        raise instruction.unsupported(
            "a here-document is run by the shell: write the program before it, as in python3 <<EOF"
        )
    return Instruction(line=instruction.line, word="RUN", text=instruction.text, body=body)


class _Lines:
    """The lines of a Dockerfile: comments, continuation, here-documents."""

    def __init__(self, text: str) -> None:
        self._lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
        self._at = 0
        self._escape = "\\"
        while self._at < len(self._lines) and (match := _DIRECTIVE.fullmatch(self._lines[self._at].strip())):
            if match[1].lower() == "escape":
                if match[2] not in {"\\", "`"}:
                    raise BadRequest("the Dockerfile's escape must be \\ or `", field="file")
                self._escape = match[2]
            self._at += 1

    def next_logical(self) -> tuple[int, str] | None:
        """The next instruction as one line, with the number of its first."""
        parts: list[str] = []
        begin = 0
        while self._at < len(self._lines):
            line = self._lines[self._at].strip() if not parts else self._lines[self._at].rstrip()
            self._at += 1
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            begin = begin or self._at
            if not line.endswith(self._escape):
                return begin, "".join([*parts, line])
            parts.append(line.removesuffix(self._escape))
        return (begin, "".join(parts)) if parts else None

    def take_until(self, mark: str, strips_tabs: bool) -> str | None:  # noqa: FBT001 - one of two arguments, in here
        """The lines before the one that is `mark`; None if there is none."""
        found: list[str] = []
        while self._at < len(self._lines):
            line = self._lines[self._at].lstrip("\t") if strips_tabs else self._lines[self._at]
            self._at += 1
            if line == mark:
                return "".join(f"{one}\n" for one in found)
            found.append(line)
        return None

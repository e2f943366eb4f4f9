"""`python -m cove.cli.reference` writes docs/reference/cli.md anew from the commands; a test compares the two."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from cove.cli.commands.help import tree
from cove.cli.failures import EXIT_CODES
from cove.cli.main import commands
from cove.server.settings_table import TABLE

PAGE: Final = Path("docs/reference/cli.md")
HEAD: Final = """# The command line

Made by `python -m cove.cli.reference`; change the commands, not this page. For programs: `cove help --json`.

Which server: `COVE_URL`, else `url` in the nearest `.cove.toml` upward, else in `~/.config/cove/config.toml`, else this
machine's own socket, which needs no key. `cove config` prints each value with its origin.

A sandbox is named by its name, its id, a prefix of either that fits only one, `-` for the last one used, or `.` for the
one that `.cove.toml` names (`box = "brave-otter"`); where BOX is optional, nothing is the same as `.`.

stdout is what was asked for; stderr is talk, which `--quiet` stops. `--json` prints one JSON object per line, and
`--json id,state` only those fields; the fields are those of the [API](native-api.md) where it has the object. With
`--json` a failure is one JSON line on stderr: `code`, `message`, `hint`, `docs`, `request_id`, `retryable` (and `field`
where one is at fault), and stdout stays empty of it. Without, it is `error: WHAT (CODE)` and, where something can be
done, `hint: COMMAND`.

Colours appear on a terminal only, and never with `NO_COLOR`. Text of a server or sandbox is printed without control
characters; the output of a command is passed on byte for byte.
"""


_SETTINGS: Final = {f"--{row.name.replace('_', '-')}" for row in TABLE}


def page() -> str:
    """Return the text of the page."""
    root = commands()
    facts = tree(root, click.Context(root, info_name="cove"))
    lines = [HEAD, "## Exit codes", "| code | meaning |", "|---|---|"]
    lines += [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES]
    for command in facts["commands"]:
        lines += _command(command, 2)
    return "\n".join(lines).rstrip() + "\n"


def _command(facts: dict[str, Any], level: int) -> Iterator[str]:
    yield f"\n{'#' * level} {facts['name']}"
    if "commands" in facts and not facts["arguments"]:
        yield facts["help"]
    else:
        yield from _own(facts)
    for below in facts.get("commands", ()):
        yield from _command(below, level + 1)


def _own(facts: dict[str, Any]) -> Iterator[str]:
    yield f"`{' '.join([facts['name'], '[OPTION]…', *map(_argument, facts['arguments'])])}`\n"
    yield facts["help"]
    shared = {"--json", "--quiet", *_SETTINGS}
    own = [option for option in facts["options"] if not shared.intersection(option["names"])]
    if own:
        yield "\n| option | |\n|---|---|"
    for option in own:
        value = f" {option['value']}" if option["value"] else ""
        yield f"| `{', '.join(option['names'])}{value}` | {option['help'].replace('|', chr(92) + '|')} |"
    if any(_SETTINGS.intersection(option["names"]) for option in facts["options"]):
        yield "\nEach [setting](settings.md) is a flag too: `--port 9000`."
    if facts.get("fields"):
        yield f"\nJSON fields: {', '.join(f'`{field}`' for field in facts['fields'])}."


def _argument(facts: dict[str, Any]) -> str:
    name = facts["name"].strip("[].").replace("]...", "")
    many = "…" if facts["many"] else ""
    return f"{name}{many}" if facts["required"] else f"[{name}]{many}"


if __name__ == "__main__":
    sys.stdout.write(page())

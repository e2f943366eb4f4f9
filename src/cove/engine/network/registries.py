"""Which registries the machine's own pip, npm and apt use, asked of these programs. Cove itself names none.

Each is asked as the server runs it, so its configuration files, variables and built-in default count; a client that is
not there, or does not answer, has none. A mirror given as a file, or by a name that is none, is left out.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

import msgspec

from cove.model.network import NetworkRule, PortRange, Protocol, Verdict
from cove.model.policy import ALL, canonical_target

log = logging.getLogger(__name__)

ANSWER_S: Final = 20.0
"""npm starts in half a second on an idle machine, and in several on a busy one."""

ANSWER_BYTES: Final = 256 * 1024
MOST: Final = 16
"""Registries of one client that are looked at."""

_PIP: Final = """
import json
from pip._internal.commands import create_command
from pip._internal.models.index import PyPI
options, _ = create_command("download").parse_args([])
urls = [] if options.no_index else [options.index_url, *options.extra_index_urls]
if options.index_url == PyPI.simple_url:
    urls.append("https://" + PyPI.file_storage_domain)
print(json.dumps(urls))
"""
"""pip's command line parser has read its configuration; where its default keeps the files, no option of pip says."""

_PORTS: Final = {"http": 80, "https": 443}


async def ask_registries() -> dict[str, tuple[NetworkRule, ...]]:
    """The rules that let a sandbox reach the registries of each client. At most 20 s; never raises."""
    async with asyncio.TaskGroup() as tasks:
        asked = {name: tasks.create_task(ask()) for name, ask in (("pip", _pip), ("npm", _npm), ("apt", _apt))}
    return {name: registry_rules(task.result()) for name, task in asked.items()}


async def ask_indexes() -> dict[str, tuple[str, ...]]:
    """The addresses that the machine's pip and npm are configured for, the main one first. As `ask_registries`."""
    async with asyncio.TaskGroup() as tasks:
        asked = {name: tasks.create_task(ask()) for name, ask in (("pip", _pip), ("npm", _npm))}
    return {name: tuple(task.result()[:MOST]) for name, task in asked.items()}


async def _pip() -> list[str]:
    for python in dict.fromkeys((sys.executable, "python3")):
        with suppress(msgspec.MsgspecError):
            return msgspec.json.decode(await _answer(python, "-c", _PIP), type=list[str])
    return []


async def _npm() -> list[str]:
    return (await _answer("npm", "config", "get", "registry")).decode(errors="replace").split()


async def _apt() -> list[str]:
    answer = await _answer("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
    return answer.decode(errors="replace").split()


async def _answer(*argv: str) -> bytes:
    """What a program prints; nothing if it fails. It is ended when its time is over."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            cwd="/",  # a configuration file beside the server must not count
            start_new_session=True,  # so that its children end with it
        )
    except OSError:
        return b""
    assert process.stdout is not None  # noqa: S101 - it was asked for
    try:
        async with asyncio.timeout(ANSWER_S):
            said = await _all_of(process.stdout)
            return said if await process.wait() == 0 else b""
    except TimeoutError:
        log.warning("%s did not say in %d s which registries it uses", argv[0], ANSWER_S)
        return b""
    finally:
        if process.returncode is None:
            await _end(process, process.stdout)


async def _end(process: asyncio.subprocess.Process, stdout: asyncio.StreamReader) -> None:
    """Kill a program and its children. What they left in the pipe is read away: asyncio waits for its end."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    while await stdout.read(ANSWER_BYTES):
        pass
    await process.wait()


async def _all_of(stream: asyncio.StreamReader) -> bytes:
    """Up to its end, or nothing if that does not come soon enough: no list of registries is so long."""
    try:
        await stream.readexactly(ANSWER_BYTES)
    except asyncio.IncompleteReadError as error:
        return error.partial
    raise TimeoutError


def registry_rules(urls: Iterable[str]) -> tuple[NetworkRule, ...]:
    """What a policy has to allow so that these can be reached."""
    found: dict[tuple[str, int], NetworkRule] = {}
    for url in list(dict.fromkeys(urls))[:MOST]:
        with suppress(ValueError):
            parts = urlsplit(url)
            port = parts.port or _PORTS.get(parts.scheme, 0)
            if parts.scheme in _PORTS and parts.hostname not in {None, ALL}:
                target = canonical_target(parts.hostname or "")
                found[target, port] = NetworkRule(
                    verdict=Verdict.ALLOW, target=target, ports=(PortRange(port, port),), protocol=Protocol.TCP
                )
    return tuple(found.values())

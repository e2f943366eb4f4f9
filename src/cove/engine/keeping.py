"""Keeping a box as a checkpoint: the steps, their time limits and what is undone. No state of a sandbox, no journal."""

from __future__ import annotations

import asyncio
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from cove.engine.birth import bounded, checkpoint_timeout_s
from cove.engine.checkpoints.model import Checkpoint, CheckpointFacts, Draft
from cove.engine.driver import Box
from cove.engine.pool import is_connected
from cove.engine.ports import Checkpoints
from cove.model.errors import Unsupported
from cove.model.sandbox import Kept

NOT_ASKED: Final = "only its files were asked for"

ENVIRONMENT_TIMEOUT_S: Final = 10.0
USAGE_TIMEOUT_S: Final = 0.5
"""An agent answers at once what it was told at its claim."""


class Environment(Struct, frozen=True, kw_only=True):
    """What the commands of a box start with. It may hold secrets: in memory, and in root's files of a checkpoint."""

    env: dict[str, str]
    workdir: str | None
    user: str | None

    def __repr__(self) -> str:
        """Without the environment."""
        return "Environment(...)"


async def environment_of(box: Box) -> Environment:
    """As its agent knows it; the box must not be paused. Raises: SandboxError, EngineFailure, Unsupported."""
    if not is_connected(box):
        await bounded(box.reconnect())
    known = await bounded(box.agent.environment(), ENVIRONMENT_TIMEOUT_S)
    return Environment(env=known.env, workdir=known.workdir, user=known.user)


async def keep(  # noqa: PLR0913 - what is kept, and how
    box: Box,
    checkpoints: Checkpoints,
    checkpoint_id: str,
    environment: Environment,
    *,
    memory: bool | None,
    stay_paused: bool,
    is_lasting: bool = True,
) -> Checkpoint:
    """A sealed checkpoint of `box`. `memory` None: with it where it can be had, else `why_no_memory` says why not.

    `is_lasting` False: for copies that are made at once (`Checkpoints.lend`).

    On failure and when cancelled nothing of it is left; the box then is as it was, or with `stay_paused` may stand
    still. Raises: Unsupported (`memory` True), CapacityExceeded, EngineFailure, SandboxGone.
    """

    async def once(why_not: str | None) -> Checkpoint:
        timeout_s = checkpoint_timeout_s(box.facts.limits)
        expected_bytes = await _memory_of(box) if why_not is None else 0
        draft = await bounded(checkpoints.begin(checkpoint_id, expected_bytes=expected_bytes))
        try:
            taken = box.checkpoint(draft, with_memory=why_not is None, stay_paused=stay_paused)
            facts = _completed(await bounded(taken, timeout_s), environment, why_not)
            end = checkpoints.seal if is_lasting else checkpoints.lend
            return await bounded(end(draft, facts), timeout_s)
        except BaseException:
            await _discard(checkpoints, draft)
            raise

    if memory is False:
        return await once(NOT_ASKED)
    try:
        return await once(None)
    except Unsupported as error:
        if memory:
            raise
        return await once(error.public)


def kept_of(facts: CheckpointFacts, *, with_memory: bool = True) -> Kept:
    """What of a checkpoint is there in the sandbox that is made of it."""
    if facts.has_memory and with_memory:
        return Kept(memory=True)
    return Kept(memory=False, reason=facts.why_no_memory or NOT_ASKED)


def _completed(facts: CheckpointFacts, environment: Environment, why_not: str | None) -> CheckpointFacts:
    return replace(
        facts, env=environment.env, workdir=environment.workdir, user=environment.user, why_no_memory=why_not
    )


async def _memory_of(box: Box) -> int:
    """What its memory takes now, as far as that is known at once: only a guess of what the disk must take."""
    try:
        async with asyncio.timeout(USAGE_TIMEOUT_S):
            return (await box.usage()).memory_bytes
    except TimeoutError:
        return 0


async def _discard(checkpoints: Checkpoints, draft: Draft) -> None:
    await asyncio.shield(checkpoints.discard(draft))

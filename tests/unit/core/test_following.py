"""Work that says what it does: nothing of it is lost, it waits for its reader, and ends when nobody reads."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from cove.core.following import Voice, following
from cove.model.errors import Conflict
from cove.model.image import ImageEvent, ImageInfo, ImageStage

IMAGE = ImageInfo(name="localhost/a:latest", digest="d", size_bytes=7)


def line(text: str) -> ImageEvent:
    return ImageEvent(stage=ImageStage.RUN, text=text)


async def test_every_line_comes_in_order_and_the_image_last() -> None:
    async def work(voice: Voice) -> ImageInfo:
        for number in range(500):
            await voice.say(line(str(number)))
        return IMAGE

    events = [event async for event in following(work)]
    assert [event.text for event in events[:-1]] == [str(number) for number in range(500)]
    assert (events[-1].stage, events[-1].image) == (ImageStage.DONE, IMAGE)


async def test_work_waits_for_a_slow_reader() -> None:
    said = 0

    async def work(voice: Voice) -> ImageInfo:
        nonlocal said
        for said in range(1000):  # noqa: B007 - counted from outside
            await voice.say(line("x"))
        return IMAGE

    async with aclosing(following(work)) as events:
        await anext(events)
        await asyncio.sleep(0.01)
        assert said < 100


async def test_progress_that_was_not_read_is_replaced_and_never_waits() -> None:
    async def work(voice: Voice) -> ImageInfo:
        for done in range(1000):
            voice.mark(ImageStage.UNPACK, done, 999)
        return IMAGE

    events = [event async for event in following(work)]
    assert [event.done_bytes for event in events] == [999, 7]


async def test_closing_ends_the_work_and_waits_for_its_end() -> None:
    ended = False

    async def work(voice: Voice) -> ImageInfo:
        nonlocal ended
        try:
            while True:
                await voice.say(line("x"))
        finally:
            await asyncio.sleep(0)
            ended = True

    async with aclosing(following(work)) as events:
        await anext(events)
    assert ended


async def test_what_the_work_raises_comes_after_what_it_said() -> None:
    async def work(voice: Voice) -> ImageInfo:
        await voice.say(line("a"))
        raise Conflict("no")

    events = following(work)
    assert (await anext(events)).text == "a"
    with pytest.raises(Conflict):
        await anext(events)

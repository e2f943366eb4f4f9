"""Programs that are fetched: what the policy refuses, in which order, and that redirects are checked as the first."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping

import pytest

from cove.core.executionpolicy import RemotePolicy
from cove.core.remotecode import RemoteCode
from cove.engine.webget import Got
from cove.engine.webpost import PostRefused
from cove.model.execution import RemoteFault, RemoteRefused, RemoteSource

CODE = b"print('hello')"
POLICY = RemotePolicy(hosts=("*.example.com",), most_bytes=1000)


class Web:
    """Answers by URL; what it was asked for is kept."""

    def __init__(self, answers: Mapping[str, Got | Exception]) -> None:
        self._answers = answers
        self.asked: list[str] = []

    async def get(self, url: str, most_bytes: int) -> Got:
        assert most_bytes == POLICY.most_bytes
        self.asked.append(url)
        found = self._answers[url]
        if isinstance(found, Exception):
            raise found
        return found


def ok(body: bytes = CODE, status: int = 200, location: str | None = None) -> Got:
    return Got(status=status, location=location, body=body)


async def fetched(
    source: RemoteSource, answers: Mapping[str, Got | Exception], policy: RemotePolicy = POLICY
) -> tuple[str | RemoteFault, str, list[str]]:
    web = Web(answers)
    try:
        return await RemoteCode(policy, web.get).fetch(source), "", web.asked
    except RemoteRefused as error:
        return error.fault, error.detail, web.asked


URL = "https://code.example.com/a.py?x=1"


async def test_it_is_off_unless_hosts_are_named() -> None:
    policy = RemotePolicy()
    assert await fetched(RemoteSource(url=URL), {}, policy) == (RemoteFault.DISABLED, "", [])
    with pytest.raises(RemoteRefused):
        await RemoteCode(POLICY, None).fetch(RemoteSource(url=URL))


async def test_a_program_with_its_hash() -> None:
    digest = hashlib.sha256(CODE).hexdigest()
    assert (await fetched(RemoteSource(url=URL), {URL: ok()}))[0] == CODE.decode()
    assert (await fetched(RemoteSource(url=URL, sha256=digest.upper()), {URL: ok()}))[0] == CODE.decode()
    for wrong in ("0" * 64, "", "ä"):
        assert (await fetched(RemoteSource(url=URL, sha256=wrong), {URL: ok()}))[0] is RemoteFault.MISMATCH
    strict = RemotePolicy(hosts=("*",), hash_required=True)
    assert (await fetched(RemoteSource(url=URL), {}, strict))[0] is RemoteFault.UNHASHED


@pytest.mark.parametrize(
    ("url", "fault", "detail"),
    [
        ("nonsense", RemoteFault.INVALID, ""),
        ("https://[::1", RemoteFault.INVALID, ""),
        ("https:///x", RemoteFault.INVALID, ""),
        ("https://code.example.com/\r\nHost: x", RemoteFault.INVALID, ""),
        ("https://code.example.com:99999/", RemoteFault.INVALID, ""),
        ("http://code.example.com/", RemoteFault.INSECURE, ""),
        ("file:///etc/passwd", RemoteFault.SCHEME, "file"),
        ("https://example.com/", RemoteFault.HOST, "example.com"),
        ("https://code.example.com.evil.test/", RemoteFault.HOST, "code.example.com.evil.test"),
        ("https://code.example.com@evil.test/", RemoteFault.HOST, "evil.test"),
    ],
)
async def test_what_may_not_be_asked_for_is_not(url: str, fault: RemoteFault, detail: str) -> None:
    assert await fetched(RemoteSource(url=url), {}) == (fault, detail, [])


async def test_http_needs_the_caller_and_the_operator() -> None:
    url = "http://code.example.com/"
    assert (await fetched(RemoteSource(url=url, plain=True), {}))[:2] == (RemoteFault.SCHEME, "http")
    policy = RemotePolicy(hosts=("*",), plain=True, most_bytes=1000)
    assert (await fetched(RemoteSource(url=url, plain=True), {url: ok()}, policy))[0] == CODE.decode()
    assert (await fetched(RemoteSource(url=url), {url: ok()}, policy))[0] is RemoteFault.INSECURE


async def test_redirects_are_checked_and_end() -> None:
    there = "https://other.example.com/b"
    answers = {URL: ok(status=302, location="//other.example.com/b"), there: ok()}
    assert await fetched(RemoteSource(url=URL), answers) == (CODE.decode(), "", [URL, there])
    for target, fault in (
        ("http://code.example.com/", RemoteFault.INSECURE),
        ("https://169.254.169.254/", RemoteFault.HOST),
        ("file:///etc/passwd", RemoteFault.SCHEME),
    ):
        answers = {URL: ok(status=301, location=target)}
        found = await fetched(RemoteSource(url=URL), answers)
        assert (found[0], found[2]) == (fault, [URL])
    loop = {URL: ok(status=307, location=URL)}
    found = await fetched(RemoteSource(url=URL), loop)
    assert found[:2] == (RemoteFault.FAILED, "too many redirects")
    assert len(found[2]) == 6


@pytest.mark.parametrize(
    ("answer", "fault", "detail"),
    [
        (ok(status=404), RemoteFault.STATUS, "404"),
        (ok(body=b"x" * 1001), RemoteFault.TOO_LARGE, "1000"),
        (ok(body=b"\xff"), RemoteFault.BINARY, ""),
        (ok(body=b"a\0b"), RemoteFault.BINARY, ""),
        (PostRefused("closed"), RemoteFault.HOST, "code.example.com"),
        (OSError("refused"), RemoteFault.FAILED, "the host could not be connected to"),
    ],
)
async def test_what_is_no_program(answer: Got | Exception, fault: RemoteFault, detail: str) -> None:
    assert (await fetched(RemoteSource(url=URL), {URL: answer}))[:2] == (fault, detail)


async def test_it_takes_no_longer_than_allowed() -> None:
    async def never(url: str, most_bytes: int) -> Got:
        del url, most_bytes
        await asyncio.Event().wait()
        raise AssertionError

    policy = RemotePolicy(hosts=("*",), timeout_s=0.05)
    with pytest.raises(RemoteRefused) as refused:
        await RemoteCode(policy, never).fetch(RemoteSource(url=URL))
    assert (refused.value.fault, refused.value.detail) == (RemoteFault.TIMEOUT, "50")

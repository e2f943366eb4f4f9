"""What is kept of what a sandbox asked for by name, and what its clients are told in other words than ours."""

from __future__ import annotations

import time

import pytest
from msgspec.structs import replace

from cove.engine.network.dnswire import Kind
from cove.engine.network.exits import PATH_CHARS
from cove.model.network import NetworkPolicy, ProxyWords
from hello_support import hello_of
from proxies_support import EVIL, GOOD, World, policy, request, world_of

WORDS = ProxyWords(refused="no: {asked}!", unreachable="gone: {there}!")


def recording(given: NetworkPolicy | None = None, words: ProxyWords | None = None) -> NetworkPolicy:
    return replace(given or policy("good.example"), record=True, words=words)


def connect(there: str) -> bytes:
    return f"CONNECT {there} HTTP/1.1\r\nHost: {there}\r\n\r\n".encode()


async def refused(world: World, data: bytes) -> None:
    """A client that knows of no proxy is cut."""
    with pytest.raises(ConnectionResetError):
        await world.get(data, original=EVIL)


def seen(world: World) -> list[tuple[str, str, str | None, bool]]:
    return [(one.method, one.host, one.path, one.is_allowed) for one in world.visits]


async def test_nothing_is_kept_where_the_policy_does_not_say_so() -> None:
    async with world_of() as world:
        await world.get(request("good.example", "Connection: close"))
        await refused(world, request("evil.example"))
        assert world.visits == []


async def test_requests_are_kept_with_method_host_and_path() -> None:
    async with world_of() as world:
        world.policy = recording()
        before = time.time()
        await world.get(request("good.example", "Connection: close", method="POST", path="/a?b=c"))
        await refused(world, request("evil.example", path="/x"))
        assert seen(world) == [("POST", "good.example", "/a?b=c", True), ("GET", "evil.example", "/x", False)]
        first = world.visits[0]
        assert (first.sandbox, first.port) == ("b1", world.port)
        assert before <= first.at <= time.time()
        assert first.duration_ms > 0


async def test_each_request_of_a_connection_is_kept() -> None:
    async with world_of() as world:
        world.policy = recording()
        reader, writer = await world.client(request("good.example", path="/1"))
        await reader.readuntil(b"from 127.0.0.11")
        writer.write(request("good.example", path="/2"))
        await reader.readuntil(b"from 127.0.0.11")
        assert [one.path for one in world.visits] == ["/1", "/2"]
        writer.close()


@pytest.mark.parametrize(("name", "allowed"), [("good.example", True), ("evil.example", False)])
async def test_tls_is_kept_without_a_path(name: str, allowed: bool) -> None:  # noqa: FBT001 - a case
    async with world_of() as world:
        world.policy = recording()
        reader, writer = await world.client(hello_of(name))
        await reader.read(7)
        assert seen(world) == [("CONNECT", name, None, allowed)]
        writer.close()


@pytest.mark.parametrize(("name", "allowed"), [("good.example", True), ("evil.example", False)])
async def test_a_tunnel_is_kept_when_it_stands(name: str, allowed: bool) -> None:  # noqa: FBT001
    async with world_of(explicit=True) as world:
        world.policy = recording()
        reader, writer = await world.client(connect(f"{name}:{world.port}"))
        await reader.readuntil(b"\r\n\r\n")
        assert seen(world) == [("CONNECT", name, None, allowed)]
        writer.write(b"\x00\x01\x02\x03 something that is no HTTP and no TLS\r\n")
        writer.close()


async def test_another_protocol_is_kept_by_its_address() -> None:
    async with world_of() as world:
        world.policy = recording(policy("good.example", f"{GOOD}/32"))
        reader, writer = await world.client(b"\x00\x01hello, this is no HTTP at all, whatever it may be")
        await reader.read(5)
        assert seen(world) == [("TCP", GOOD, None, True)]
        writer.close()


async def test_a_server_that_is_not_there_is_not_kept() -> None:
    async with world_of(explicit=True) as world:
        world.policy = recording(policy("good.example", "nowhere.example"))
        assert b"502" in await world.get(connect("nowhere.example:1"))
        assert world.visits == []


async def test_a_name_that_may_not_be_asked_for_is_kept_once() -> None:
    async with world_of() as world:
        world.policy = recording()
        resolver = world.exits._resolver  # pyright: ignore[reportPrivateUsage]
        endpoint = world.by_address("10.0.0.1")
        assert endpoint is not None
        for kind in (Kind.A, 28):
            resolver._refusal_of(endpoint, "evil.example", kind)  # pyright: ignore[reportPrivateUsage]
        assert seen(world) == [("DNS", "evil.example", None, False)]


async def test_a_path_is_cut() -> None:
    async with world_of() as world:
        world.policy = recording()
        await world.get(request("good.example", "Connection: close", path="/" + "x" * 5000))
        assert len(world.visits[0].path or "") == PATH_CHARS


async def test_clients_of_the_proxy_are_told_in_the_words_of_the_policy() -> None:
    async with world_of(explicit=True) as world:
        world.policy = recording(policy("good.example", "nowhere.example"), WORDS)
        answer = await world.get(request("evil.example", path="http://evil.example/"))
        assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        assert answer.endswith(b"\r\n\r\nno: request to evil.example!")
        answer = await world.get(connect("evil.example:443"))
        assert answer.endswith(b"\r\n\r\nno: CONNECT to evil.example!")
        answer = await world.get(connect("nowhere.example:1"))
        assert answer.startswith(b"HTTP/1.1 502")
        assert answer.endswith(b"\r\n\r\ngone: nowhere.example:1!")

"""Both proxies from the first byte to the last, between a client and servers on loopback addresses (opened)."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from cove.engine.network import transparent
from cove.engine.network.exits import parse_authority
from cove.engine.network.httphead import could_be_http
from cove.model.network import OPEN_NETWORK, Verdict
from hello_support import hello_of
from proxies_support import ALERT, EVIL, GOOD, OTHER, World, policy, request, world_of

# TLS.


async def test_an_allowed_server_name_is_dialled_where_we_resolve_it() -> None:
    async with world_of() as world:
        reader, writer = await world.client(hello_of("good.example"), original=EVIL)
        assert await reader.readexactly(15) == b"from 127.0.0.11"
        assert world.served[0] == (GOOD, hello_of("good.example")) or world.served[0][0] == GOOD
        writer.close()
        assert world.refusals == []


@pytest.mark.parametrize("name", ["evil.example", "EVIL.example", "good.example.evil.example", "xgood.example"])
async def test_another_server_name_is_refused_with_an_alert(name: str) -> None:
    async with world_of() as world:
        assert await world.get(hello_of(name)) == ALERT
        (refusal,) = world.refusals
        assert (refusal.layer, refusal.name, refusal.port, refusal.rule) == (
            "proxy", name.lower(), world.port, "default: deny",
        )  # fmt: skip
        assert world.served == []


async def test_a_greeting_without_a_name_is_judged_by_its_address() -> None:
    async with world_of() as world:
        assert await world.get(hello_of(None)) == ALERT
        world.policy = policy("good.example", f"{GOOD}/32")
        reader, writer = await world.client(hello_of(None))
        assert await reader.readexactly(15) == b"from 127.0.0.11"
        writer.close()


async def test_a_name_that_is_not_ours_to_resolve_may_pass_by_its_address() -> None:
    async with world_of() as world:
        world.policy = policy("good.example", f"{OTHER}/32", deny=["evil.example"])
        reader, writer = await world.client(hello_of("whoever.example"), original=OTHER)
        assert await reader.readexactly(15) == b"from 127.0.0.12"
        writer.close()
        assert (await world.get(hello_of("evil.example"), original=OTHER)).startswith(b"\x15")


async def test_a_lie_about_the_name_does_not_reach_the_address() -> None:
    async with world_of() as world:
        world.policy = policy(deny=["evil.example"], default=Verdict.ALLOW)
        reader, writer = await world.client(hello_of("good.example"), original=EVIL)
        assert await reader.readexactly(15) == b"from 127.0.0.11"
        writer.close()


async def test_names_that_lead_inwards_are_refused() -> None:
    async with world_of() as world:
        world.names["good.example"] = "169.254.169.254"
        assert (await world.get(hello_of("good.example"))).startswith(b"\x15")
        assert world.refusals[-1].rule.startswith("closed: 169.254")


async def test_a_greeting_in_pieces_arrives_whole() -> None:
    async with world_of() as world:
        hello = hello_of("good.example")
        reader, writer = await world.client()
        for at in range(0, len(hello), 50):
            writer.write(hello[at : at + 50])
            await writer.drain()
            await asyncio.sleep(0.001)
        assert await reader.readexactly(15) == b"from 127.0.0.11"
        assert b"".join(data for _, data in world.served) == hello
        writer.close()


async def test_a_broken_greeting_is_refused() -> None:
    async with world_of() as world:
        assert (await world.get(b"\x16\x03\x01\0\x04\x02\0\0\0")).startswith(b"\x15")
        assert world.refusals[-1].rule == "names: no TLS greeting"


async def test_a_second_greeting_with_another_name_is_cut() -> None:
    async with world_of() as world:
        world.policy = policy("good.example")
        reader, writer = await world.client(hello_of("good.example"))
        await reader.readexactly(15)
        writer.write(b"\x14\x03\x03\0\x01\x01" + hello_of("evil.example"))
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        while not world.refusals:
            await asyncio.sleep(0)
        assert "second TLS greeting" in world.refusals[-1].rule
        assert b"evil" not in b"".join(data for _, data in world.served)


# HTTP.


async def test_an_allowed_host_is_served_and_asked_again_on_the_same_connection() -> None:
    async with world_of() as world:
        reader, writer = await world.client(request("good.example"))
        assert b"200 OK" in await reader.readuntil(b"from 127.0.0.11")
        writer.write(request("GOOD.example.", path="/again"))
        assert b"200 OK" in await reader.readuntil(b"from 127.0.0.11")
        writer.write(request("evil.example"))
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert world.refusals[-1].rule == "default: deny"
        assert [address for address, _ in world.served] == [GOOD, GOOD]
        assert world.refusals[-1].name == "evil.example"
        writer.close()


async def test_another_allowed_host_on_the_same_connection_is_another_server() -> None:
    async with world_of() as world:
        world.policy = policy("*.example", deny=["evil.example"])
        reader, writer = await world.client(request("good.example"))
        await reader.readuntil(b"from 127.0.0.11")
        writer.write(request("other.example"))
        await reader.readuntil(b"from 127.0.0.12")
        writer.close()


@pytest.mark.parametrize(
    ("why", "data"),
    [
        ("two hosts in the target and the head", request("good.example", path="http://evil.example/")),
        ("the same the other way round", request("evil.example", path="http://good.example/")),
        ("two Host headers", request("good.example", "Host: evil.example")),
        ("no Host", b"GET / HTTP/1.1\r\n\r\n"),
        ("a length said twice", request("good.example", "Content-Length: 3", "Transfer-Encoding: chunked")),
        ("two lengths", request("good.example", "Content-Length: 3", "Content-Length: 4", method="POST")),
        ("an unknown coding", request("good.example", "Transfer-Encoding: xchunked", method="POST")),
        ("a coding before the last", request("good.example", "Transfer-Encoding: chunked, identity", method="POST")),
        ("a space before the colon", request("good.example", "Transfer-Encoding : chunked", method="POST")),
        ("a hidden Host", request("good.example", "Connection: host")),
        ("a hidden length", request("good.example", "Connection: close, Content-Length", "Content-Length: 0")),
        ("a user in the host", request("good.example@evil.example")),
        ("an IPv6 host", request("[::1]")),
        ("a number for a host", request("2130706433")),
        ("an octal host", request("0177.0.0.1")),
        ("a NUL in the host", b"GET / HTTP/1.1\r\nHost: good.example\0.evil.example\r\n\r\n"),
        ("a line feed alone", b"GET / HTTP/1.1\nHost: good.example\nX: \rHost: evil.example\n\n"),
        ("a header in two lines", request("good.example", "X: y\r\n Host: evil.example")),
        ("a Host in two lines", b"GET / HTTP/1.1\r\nHost:\r\n\tgood.example\r\n\r\n"),
        ("CONNECT", b"CONNECT evil.example:443 HTTP/1.1\r\nHost: good.example\r\n\r\n"),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("no path", request("good.example", path="evil.example/")),
        ("a backslash", request("good.example", path="http:\\\\good.example@evil.example/")),
        ("a head beyond all bounds", request("good.example", f"X: {'x' * 70000}")),
    ],
)  # fmt: skip
async def test_what_two_readers_could_take_for_two_things_is_not_passed_on(why: str, data: bytes) -> None:
    async with world_of() as world:
        world.policy = policy("good.example", f"{GOOD}/32")
        with pytest.raises(ConnectionResetError):
            await world.get(data)
        assert world.served == []
        assert world.refusals


async def test_a_client_before_http_1_1_is_judged_by_its_address() -> None:
    async with world_of() as world:
        with pytest.raises(ConnectionResetError):
            await world.get(b"GET / HTTP/1.0\r\n\r\n")
        world.policy = policy("good.example", f"{GOOD}/32")
        assert (await world.get(b"GET / HTTP/1.0\r\n\r\n")).endswith(b"from 127.0.0.11")


async def test_bodies_pass_in_both_framings_and_nothing_is_smuggled_behind_them() -> None:
    async with world_of() as world:
        inner = request("evil.example")
        sized = request("good.example", f"Content-Length: {len(inner)}", method="POST") + inner
        chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(inner), inner)
        chunked = request("good.example", "Transfer-Encoding: chunked", method="POST") + chunk
        for data in (sized, chunked):
            reader, writer = await world.client(data)
            await reader.readuntil(b"from 127.0.0.11")
            writer.close()
        sent = b"".join(data for _, data in world.served)
        assert sent.count(inner) == 2
        assert all(address == GOOD for address, _ in world.served)


async def test_trailers_of_a_request_stay_behind() -> None:
    async with world_of() as world:
        body = b"5\r\nhello\r\n0\r\nHost: evil.example\r\nX: y\r\n\r\n"
        reader, writer = await world.client(request("good.example", "Transfer-Encoding: chunked", method="POST") + body)
        await reader.readuntil(b"from 127.0.0.11")
        sent = b"".join(data for _, data in world.served)
        assert sent.endswith(b"5\r\nhello\r\n0\r\n\r\n")
        writer.close()


async def test_pipelined_requests_are_judged_one_by_one() -> None:
    async with world_of() as world:
        with pytest.raises(ConnectionResetError):
            await world.get(request("good.example") + request("evil.example") + request("good.example"))
        assert len(world.served) == 1


async def test_headers_for_the_proxy_stay_with_it() -> None:
    async with world_of() as world:
        data = request("good.example", "Connection: keep-alive, X-Mine", "X-Mine: 1", "X-Kept: 1", "Upgrade: h2c")
        reader, writer = await world.client(data)
        await reader.readuntil(b"from 127.0.0.11")
        sent = world.served[0][1].lower()
        assert b"x-kept: 1" in sent
        assert b"x-mine" not in sent
        assert b"upgrade" not in sent
        writer.close()


async def test_a_websocket_passes_from_the_101_on() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"upgrade: websocket" in head.lower()
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nfirst")
        writer.write(await reader.readexactly(6))
        await writer.drain()
        writer.close()

    async with world_of(serve) as world:
        data = request("good.example", "Connection: Upgrade", "Upgrade: websocket")
        reader, writer = await world.client(data)
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"101" in head
        assert b"upgrade: websocket" in head.lower()
        writer.write(b"frames")
        assert await reader.read() == b"firstframes"
        writer.close()


async def test_an_upgrade_that_the_server_denies_stays_http() -> None:
    async with world_of() as world:
        reader, writer = await world.client(request("good.example", "Connection: Upgrade", "Upgrade: websocket"))
        await reader.readuntil(b"from 127.0.0.11")
        writer.write(request("evil.example"))
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


async def test_an_answer_as_it_comes_and_an_answer_that_breaks_off() -> None:
    gate = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"7\r\ndata: 1\r\n")
        await writer.drain()
        await gate.wait()
        writer.close()

    async with world_of(serve) as world:
        reader, writer = await world.client(request("good.example"))
        async with asyncio.timeout(60):
            await reader.readuntil(b"data: 1")
            gate.set()
            await reader.readexactly(2)
            with pytest.raises(ConnectionResetError):
                await reader.read()
        writer.close()


async def test_a_server_that_is_not_there_is_a_reset_or_a_502() -> None:
    async with world_of() as world:
        world.names["good.example"] = "127.0.0.99"
        with pytest.raises(ConnectionResetError):
            await world.get(request("good.example"))
        assert world.refusals == []
    async with world_of(explicit=True) as world:
        world.names["good.example"] = "127.0.0.99"
        whole = request(f"good.example:{world.port}", path=f"http://good.example:{world.port}/")
        assert (await world.get(whole)).startswith(b"HTTP/1.1 502 ")
        assert world.refusals == []


# Anything else.


async def test_what_is_neither_is_judged_by_its_address() -> None:
    async with world_of() as world:
        with pytest.raises(ConnectionResetError):
            await world.get(b"SSH-2.0-client\r\n")
        assert world.refusals[-1].rule == "default: deny"
        world.policy = policy("good.example", f"{GOOD}/32")
        reader, writer = await world.client(b"SSH-2.0-client\r\n")
        assert await reader.readexactly(16) == b"SSH-2.0-client\r\n"
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()


async def test_who_says_nothing_is_cut_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cove.engine.network.tunnels.GREETING_S", 0.05)
    async with world_of() as world:
        with pytest.raises(ConnectionResetError):
            await world.get(b"")


async def test_the_end_of_the_listener_cuts_what_is_open_at_once() -> None:
    async with asyncio.timeout(60):
        async with world_of() as world:
            pairs = [await world.client(data) for data in (hello_of("good.example"), request("good.example"), b"")]
            await pairs[0][0].readexactly(15)
            await pairs[1][0].readuntil(b"from 127.0.0.11")
        for reader, writer in pairs:
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()


# Changes.


async def test_a_change_of_the_policy_cuts_what_it_forbids() -> None:
    async with world_of() as world:
        world.policy = policy("good.example", "other.example")
        kept, writer_kept = await world.client(hello_of("good.example"))
        cut, writer_cut = await world.client(hello_of("other.example"))
        web, writer_web = await world.client(request("other.example"))
        await kept.readexactly(15)
        await cut.readexactly(15)
        await web.readuntil(b"from 127.0.0.12")
        world.policy = policy("good.example")
        world.exits.recheck("b1")
        for reader in (cut, web):
            with pytest.raises(ConnectionResetError):
                await reader.read()
        writer_kept.write(b"\x16 still here")
        assert await kept.readexactly(15) == b"from 127.0.0.11"
        for writer in (writer_kept, writer_cut, writer_web):
            writer.close()


async def test_a_dry_run_lets_through_and_records() -> None:
    async with world_of() as world:
        world.policy = policy("good.example", dry=True)
        reader, writer = await world.client(hello_of("evil.example"))
        assert await reader.readexactly(15) == b"from 127.0.0.66"
        assert {refusal.dry_run for refusal in world.refusals} == {True}
        writer.close()
        world.names["good.example"] = "10.0.0.1"
        assert (await world.get(hello_of("good.example"))).startswith(b"\x15")


async def test_one_connection_too_many_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transparent, "CONNECTIONS", 3)
    async with world_of() as world:
        pairs = [await world.client(hello_of("good.example")) for _ in range(3)]
        for reader, _ in pairs:
            await reader.readexactly(15)
        with pytest.raises(ConnectionResetError):
            await world.get(hello_of("good.example"))
        for _, writer in pairs:
            writer.close()


async def test_large_transfers_pass_whole_in_flat_memory() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        count = 0
        while data := await reader.read(1 << 18):
            count += len(data)
        writer.write(str(count).encode())
        await writer.drain()
        writer.close()

    async with world_of(serve) as world:
        hello = hello_of("good.example")
        reader, writer = await world.client(hello)
        for _ in range(128):
            writer.write(b"x" * (1 << 18))
            await writer.drain()
        writer.write_eof()
        assert await reader.read() == str(len(hello) + (128 << 18)).encode()
        writer.close()


async def test_a_side_that_does_not_take_stops_the_other_and_holds_little() -> None:
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:  # reads nothing
        await over.wait()
        writer.transport.abort()

    async with world_of(serve) as world:
        _, writer = await world.client(hello_of("good.example"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while True:
                    writer.write(b"x" * (1 << 18))
                    await writer.drain()
        (flow,) = world.exits._flows["b1"]
        assert flow.far is not None
        assert flow.far.transport.get_write_buffer_size() < 1 << 19
        assert len(flow.near.held) == 0
        writer.transport.abort()
        over.set()


# The explicit proxy.


async def connect(world: World, target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    reader, writer = await world.client(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    return reader, writer, await reader.readuntil(b"\r\n\r\n")


async def test_connect_is_judged_and_what_is_said_inside_too() -> None:
    async with world_of(explicit=True) as world:
        world.policy = policy("re:go+d\\.example")
        reader, writer, head = await connect(world, f"good.example:{world.port}")
        assert head.startswith(b"HTTP/1.1 200 ")
        writer.write(hello_of("good.example"))
        assert await reader.readexactly(15) == b"from 127.0.0.11"
        writer.close()
        reader, writer, _ = await connect(world, f"good.example:{world.port}")
        writer.write(hello_of("evil.example"))
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert world.refusals[-1].name == "evil.example"
        writer.close()
        _, writer, head = await connect(world, f"evil.example:{world.port}")
        assert head.startswith(b"HTTP/1.1 403 ")
        writer.close()


async def test_connect_to_an_address_is_judged_as_one() -> None:
    async with world_of(explicit=True) as world:
        _, writer, head = await connect(world, f"{GOOD}:{world.port}")
        assert head.startswith(b"HTTP/1.1 403 ")
        writer.close()
        world.policy = policy(f"{GOOD}/32", deny=["evil.example"])
        reader, writer, head = await connect(world, f"{GOOD}:{world.port}")
        assert head.startswith(b"HTTP/1.1 200 ")
        writer.write(hello_of("evil.example"))
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


@pytest.mark.parametrize(
    "target",
    ["169.254.169.254:80", "10.0.0.1:443", "127.1:80", "0x7f000001:80", "2130706433:80", "[::1]:80", "a:b", "a"],
)
async def test_connect_inwards_or_to_nonsense_is_refused(target: str) -> None:
    async with world_of(explicit=True) as world:
        world.policy = OPEN_NETWORK
        _, writer, head = await connect(world, target)
        assert head.startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 400 "))
        writer.close()
        assert world.served == []


async def test_connect_to_other_resolvers_is_closed() -> None:
    async with world_of(explicit=True) as world:
        world.policy = OPEN_NETWORK
        _, writer, head = await connect(world, "good.example:53")
        assert head.startswith(b"HTTP/1.1 403 ")
        writer.close()


async def test_http_inside_a_tunnel_is_judged_by_its_host() -> None:
    async with world_of(explicit=True) as world:
        reader, writer, _ = await connect(world, f"good.example:{world.port}")
        writer.write(request("evil.example"))
        assert (await reader.read()).startswith(b"HTTP/1.1 403 ")
        writer.close()


async def test_a_server_that_speaks_first_is_heard() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        writer.write(await reader.readexactly(4))
        await writer.drain()
        writer.close()

    async with world_of(serve, explicit=True) as world:
        reader, writer, _ = await connect(world, f"good.example:{world.port}")
        assert await reader.readexactly(11) == b"220 hello\r\n"
        writer.write(b"QUIT")
        assert await reader.read() == b"QUIT"
        writer.close()


async def test_whole_addresses_are_passed_on_each_to_its_host() -> None:
    async with world_of(explicit=True) as world:
        world.policy = policy("good.example", "other.example")
        port = world.port
        reader, writer = await world.client(
            request(f"good.example:{port}", "Proxy-Authorization: x", path=f"http://good.example:{port}/a?b=http://c")
        )
        await reader.readuntil(b"from 127.0.0.11")
        writer.write(request(f"other.example:{port}", path=f"http://other.example:{port}"))
        await reader.readuntil(b"from 127.0.0.12")
        assert world.served[0][1].startswith(b"GET /a?b=http://c HTTP/1.1\r\n")
        assert b"Proxy-Auth" not in world.served[0][1]
        assert world.served[1][1].startswith(b"GET / HTTP/1.1\r\n")
        writer.write(request("good.example", path=f"http://evil.example:{port}/"))
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()
        for data in (
            request("good.example"),
            request("good.example", path="https://good.example/"),
            b"\x16\x03\x01\0\1",
        ):
            assert (await world.get(data)).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "text", ["a.example:", "a.example:0", "a.example:65536", "a.example:+1", "a.example:1:2", ":80"]
)
def test_what_is_no_authority_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_authority(text, 80)


@pytest.mark.parametrize(
    ("data", "is_http"),
    [(b"", None), (b"GE", None), (b"GET /", True), (b"\r\nGET /", True), (b"get\t/", True), (b"SSH-2.0", False),
     (b"\0", False), (b"G" * 40, False)],
)  # fmt: skip
def test_what_could_be_http_is_taken_for_it(data: bytes, is_http: object) -> None:
    assert could_be_http(data) is is_http

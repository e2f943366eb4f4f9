"""Namespaces, interfaces and rules of the kernel as the network's lowest modules make them. No sandbox."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from cove.engine.network import netns, nft, rtnetlink
from cove.engine.network.netns import NetNs
from cove.engine.network.rtnetlink import End, Link, RtNetlink
from cove.model.errors import EngineFailure

pytestmark = pytest.mark.real


@pytest.fixture
async def space(tmp_path: Path) -> AsyncGenerator[NetNs]:
    """A namespace of the test's own."""
    path = tmp_path / "ns"
    netns.keep(path)
    made = NetNs(path, "test")
    yield made
    made.close()
    netns.forget(path)


def here() -> int:
    return Path("/proc/thread-self/ns/net").stat().st_ino


def links() -> list[Link]:
    with RtNetlink() as kernel:
        return kernel.links()


async def test_work_is_done_in_the_namespace_and_nowhere_else(space: NetNs) -> None:
    outside = here()
    assert await space.run(here) == space.inode != outside
    assert here() == outside
    assert [link.name for link in await space.run(links)] == ["lo"]


async def test_a_socket_stays_where_it_was_made(space: NetNs) -> None:
    await space.run(up)
    with await space.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
        assert not made.getblocking()
        made.bind(("127.0.0.1", 0))
        made.listen()
        with socket.socket() as mine, pytest.raises(ConnectionRefusedError):
            mine.connect(made.getsockname())


def up() -> None:
    with RtNetlink() as kernel:
        kernel.change(rtnetlink.set_up(1))


def test_a_namespace_is_kept_by_its_file_until_it_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "ns"
    assert netns.keep(path)
    assert not netns.keep(path)
    netns.forget(path)
    netns.forget(path)
    assert not path.exists()


def test_a_file_that_is_no_namespace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with pytest.raises(EngineFailure, match="cannot enter the network namespace test"):
        NetNs(tmp_path / "plain", "test")


async def test_a_pair_joins_two_namespaces_and_counts_what_passes(space: NetNs, tmp_path: Path) -> None:
    netns.keep(tmp_path / "other")
    other = NetNs(tmp_path / "other", "other")
    fd = os.open(tmp_path / "other", os.O_RDONLY)

    def one_end() -> None:
        with RtNetlink() as kernel:
            mac = bytes.fromhex("02c000000001")
            theirs = End(name="eth0", index=2, namespace=fd, mac=mac, is_up=False)
            kernel.change(
                rtnetlink.new_pair(End(name="sv1", index=1001), theirs),
                rtnetlink.new_address(1001, "169.254.1.1"),
                rtnetlink.new_route(1001, "10.213.0.1"),
            )

    def other_end() -> None:
        with RtNetlink() as kernel:
            kernel.change(
                rtnetlink.set_up(2),
                rtnetlink.new_address(2, "10.213.0.1"),
                rtnetlink.new_route(2, "169.254.1.1"),
                rtnetlink.limit_rate(2, 1_000_000, 65536, 65536),
            )
            kernel.change(rtnetlink.lift_rate(2))

    try:
        await space.run(one_end)
        await other.run(other_end)
        server = await space.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client = await other.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with server, client:
            server.bind(("169.254.1.1", 0))
            client.setblocking(True)
            client.sendto(bytes(1000), server.getsockname())
            server.settimeout(5)
            assert server.recvfrom(2000)[1][0] == "10.213.0.1"
        found = {link.name: link for link in await space.run(links)}["sv1"]
        assert found.is_up
        assert found.received_bytes >= 1000
    finally:
        os.close(fd)
        other.close()
        netns.forget(tmp_path / "other")


async def test_a_refusal_names_the_first_message_that_failed(space: NetNs) -> None:
    def work() -> None:
        with RtNetlink() as kernel:
            kernel.change(rtnetlink.set_up(1), rtnetlink.delete_link(4711), rtnetlink.new_address(4712, "10.0.0.1"))

    with pytest.raises(OSError, match="rtnetlink message 17: No such device"):
        await space.run(work)


async def test_rules_are_taken_whole_or_not_at_all(space: NetNs) -> None:
    await space.run(lambda: nft.run_once("table ip one {}"))
    with pytest.raises(OSError, match="syntax error"):
        await space.run(lambda: nft.run_once("table ip two {}\nnonsense"))
    assert await space.run(lambda: nft.run_once("list tables")) == "table ip one\n"

"""The addresses of a namespace, from the kernel's own tables."""

from __future__ import annotations

from pathlib import Path

from cove.engine.network.ownaddresses import own_addresses

FIB = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.0.0.0/24 2 0 2
        |-- 10.0.0.0
           /24 link UNICAST
        |-- 10.0.0.5
           /32 host LOCAL
        |-- 10.0.0.255
           /32 link BROADCAST
     |-- 127.0.0.1
        /32 host LOCAL
Local:
        |-- 203.0.113.9
           /32 host LOCAL
"""
SIX = """fe800000000000000042acfffe110002 02 40 20 80     eth0
00000000000000000000000000000001 01 80 10 80       lo
"""


def test_all_addresses_but_loopback_are_told(tmp_path: Path) -> None:
    (tmp_path / "fib_trie").write_text(FIB)
    (tmp_path / "if_inet6").write_text(SIX)
    assert own_addresses(tmp_path) == {"10.0.0.5", "203.0.113.9", "fe80::42:acff:fe11:2"}


def test_a_range_that_is_the_machines_own_is_told_whole(tmp_path: Path) -> None:
    table = """Local:
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.0
           /8 host LOCAL
     |-- 11.9.0.0
        /24 host LOCAL
     |-- 11.8.0.1
        /32 link BROADCAST
        /32 host LOCAL
Id 100:
     |-- 0.0.0.0
        /0 host LOCAL
"""
    (tmp_path / "fib_trie").write_text(table)
    assert own_addresses(tmp_path) == {"11.9.0.0/24", "11.8.0.1"}


def test_where_ipv6_is_off_only_ipv4_is_told(tmp_path: Path) -> None:
    (tmp_path / "fib_trie").write_text(FIB)
    assert own_addresses(tmp_path) == {"10.0.0.5", "203.0.113.9"}


def test_this_machines_own_tables_can_be_read() -> None:
    assert "127.0.0.1" not in own_addresses()

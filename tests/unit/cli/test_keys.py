"""`~.` after a line break is ours, everything else is the program's."""

from __future__ import annotations

import pytest

from cove.cli.keys import DETACH, HELP, TYPED_BYTES, Escapes, Keys


def fed(*reads: bytes) -> tuple[bytes, list[str]]:
    escapes = Escapes()
    keys = [one for read in reads for one in escapes.feed(read)]
    return b"".join(one.data for one in keys), [one.order for one in keys if one.order]


@pytest.mark.parametrize(
    ("reads", "data", "orders"),
    [
        ([b"ls\r"], b"ls\r", []),
        ([b"~."], b"", [DETACH]),
        ([b"~", b"."], b"", [DETACH]),
        ([b"ls\r~.rest"], b"ls\rrest", [DETACH]),
        ([b"ls\n", b"~?", b"x"], b"ls\nx", [HELP]),
        ([b"~?~."], b"", [HELP, DETACH]),
        ([b"~~"], b"~", []),
        ([b"~~."], b"~.", []),
        ([b"~/bin"], b"~/bin", []),
        ([b"~", b"\r", b"~", b"."], b"~\r", [DETACH]),
        ([b"ls ~."], b"ls ~.", []),
        ([b"\r\x1b[3~."], b"\r\x1b[3~.", []),
        ([b"\x1b[200~a\n~.\n~~\x1b[201~"], b"\x1b[200~a\n~.\n~~\x1b[201~", []),
        ([b"\x1b[200~a\n\x1b[201~\r~."], b"\x1b[200~a\n\x1b[201~\r", [DETACH]),
        ([b"x" * TYPED_BYTES + b"\n~.~~\n"], b"x" * TYPED_BYTES + b"\n~.~~\n", []),
        ([bytes(range(256))], bytes(range(256)), []),
    ],
)
def test_keys(reads: list[bytes], data: bytes, orders: list[str]) -> None:
    assert fed(*reads) == (data, orders)


def test_orders_come_after_what_was_typed_before_them() -> None:
    assert Escapes().feed(b"a\r~?b") == [Keys(b"a\r", HELP), Keys(b"b")]

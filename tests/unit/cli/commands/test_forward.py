# ruff: noqa: ANN001 - fixtures are typed where they are defined
from __future__ import annotations

import os
import signal
import socket
import threading
import time

import pytest

from tests_support import free_port


def interrupt_once_it_listens(port: int) -> threading.Thread:
    def wait() -> None:
        for _ in range(500):
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_it_says_where_and_ends_with_ctrl_c(cove, stub) -> None:
    assert stub.boxes
    port = free_port()
    waiting = interrupt_once_it_listens(port)
    ran = cove("forward", "brave", f"{port}:5432")
    waiting.join()
    assert (ran.code, ran.out) == (0, "")
    assert ran.err.startswith(f"127.0.0.1:{port} leads to port 5432 of brave-otter\n")


def test_json_is_one_object_per_port(cove, stub) -> None:
    assert stub.boxes
    port = free_port()
    waiting = interrupt_once_it_listens(port)
    ran = cove("forward", "--json", "brave", "0:80", f"{port}:5432")
    waiting.join()
    assert [one["port"] for one in ran.objects] == [80, 5432]
    assert ran.objects[1] == {"address": "127.0.0.1", "local_port": port, "port": 5432}


def test_a_taken_port_says_what_to_do(cove, stub) -> None:
    assert stub.boxes
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = cove("forward", "brave", f"{port}:5432")
    assert ran.code == 121
    assert f"port {port} on 127.0.0.1 is in use here (conflict)" in ran.err
    assert "hint: " in ran.err


@pytest.mark.parametrize("word", ["", "x", ":", "80:", "1:2:3", "٣", "70000", "0", "70000:1"])
def test_what_is_no_port_is_a_failure_of_usage(cove, stub, word: str) -> None:
    assert stub.boxes
    assert cove("forward", "brave", word).code == 2

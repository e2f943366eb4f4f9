"""Terminals in real sandboxes: what a person at one sees, and that neither clients nor the server are needed for it."""

from __future__ import annotations

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed

from terminal_support import Viewer
from tests_support import NewServer, RunningServer
from waiting_support import until

pytestmark = pytest.mark.real

PROGRAM = (
    "import os, signal, threading; done = threading.Event(); "
    'tell = lambda *_: (os.write(1, b"now %d %d" % os.get_terminal_size()), done.set()); '
    'signal.signal(signal.SIGWINCH, tell); print("rea" + "dy", flush=True); '
    "any(done.wait(0.1) for _ in range(600))"
)
"""A full-screen program in the foreground, which is told of a new size.

Python calls its handler between two steps: a signal just before one long wait would be heard at its end.
"""


def opened(client: httpx2.Client, box: str, **body: object) -> str:
    answer = client.post(f"/sandboxes/{box}/terminals", json=body)
    assert answer.status_code == 201, answer.text
    return f"/sandboxes/{box}/terminals/{answer.json()['id']}"


@pytest.mark.parametrize("driver", ["runc", "crun", "gvisor"])
def test_a_shell_is_one_as_if_sitting_at_it(server: RunningServer, client: httpx2.Client, driver: str) -> None:
    box = client.post("/sandboxes", json={"driver": driver}).json()["id"]
    with Viewer(server, opened(client, box, cols=100, rows=30)) as viewer:
        viewer.peer.send(b"stty size; tty; echo $SHELL $((6*7)); sleep 100\r")
        viewer.until(b"30 100\r\n").until(b"/dev/pts/").until(b"/bin/bash 42\r\n")
        # A child of the shell that is not the program yet ignores Ctrl-C, as the shell does.
        look = {"command": "grep -lx sleep /proc/[0-9]*/comm"}
        until(lambda: client.post(f"/sandboxes/{box}/exec", json=look).json()["stdout"])
        viewer.peer.send(b"\x03")
        resized = "until [ \"$(stty size)\" = '43 132' ]; do sleep 0.1; done; stty size"
        viewer.peer.send(f"echo code $?; {resized}\r".encode())
        viewer.say(type="resize", cols=132, rows=43)
        viewer.until(b"code 130\r\n").until(b"43 132\r\n")
        viewer.peer.send(f"python3 -c '{PROGRAM}'\r".encode())
        viewer.until(b"ready\r\n")
        viewer.say(type="resize", cols=90, rows=20)
        viewer.until(b"now 90 20")
        viewer.peer.send(b"exit 3\r")
        last = viewer.ended()
        assert (last["exit"], last["why"], viewer.lost) == (3, "exited", 0)
    client.delete(f"/sandboxes/{box}")


def test_a_user_who_is_not_root_owns_the_terminal(server: RunningServer, client: httpx2.Client, sandbox: str) -> None:
    client.post(f"/sandboxes/{sandbox}/exec", json={"command": "useradd -m -s /bin/sh ada"})
    script = "id -un; stat -c '%U %a' $(tty); echo again > $(tty); echo $USER $SHELL"
    with Viewer(server, opened(client, sandbox, user="ada", command=script)) as viewer:
        assert viewer.ended()["exit"] == 0
    assert bytes(viewer.seen) == b"ada\r\nada 620\r\nagain\r\nada /bin/sh\r\n"
    with Viewer(server, opened(client, sandbox, user="nobody", cwd="/")) as viewer:
        viewer.peer.send(b"id -un; exit\r")
        viewer.until(b"nobody\r\n").ended()


def test_a_killed_server_loses_no_line_of_a_terminal(new_server: NewServer) -> None:
    server = new_server()
    with server.client() as client:
        box = client.post("/sandboxes", json={}).json()["id"]
        script = "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.01; done; read a; echo got $a"
        steady = opened(client, box, command=script)
        # Three times what is kept: its programs wait for us over the crash, within 10 s.
        flood = opened(client, box, command="stty -opost -echo; read a; seq 500000")
        one, two = Viewer(server, steady), Viewer(server, flood)
        with one, two:
            one.until(b"line 50\r\n")
            two.peer.send(b"\r")
            two.until(b"\n50000\n")
            server.kill()
            for viewer in (one, two):
                with pytest.raises(ConnectionClosed):
                    viewer.ended()
    server.start()
    with server.client() as client:
        assert {item["id"] for item in client.get(f"/sandboxes/{box}/terminals").json()["terminals"]} == {
            steady.rsplit("/", 1)[1],
            flood.rsplit("/", 1)[1],
        }
    with Viewer(server, flood, two.cursor) as again:
        assert (again.ended()["exit"], again.lost) == (0, 0)
    assert (two.seen + again.seen).split() == [b"%d" % n for n in range(1, 500_001)]
    with Viewer(server, steady, one.cursor) as again:
        again.until(b"line 299\r\n")
        again.peer.send(b"it\r")
        again.ended()
    assert (one.seen + again.seen).split(b"\r\n")[:300] == [b"line %d" % n for n in range(300)]
    assert bytes(again.seen).endswith(b"it\r\ngot it\r\n")


def test_a_server_that_stops_says_so_and_the_terminal_goes_on(new_server: NewServer) -> None:
    server = new_server()
    with server.client() as client:
        box = client.post("/sandboxes", json={}).json()["id"]
        at = opened(client, box, command="echo on; read a; echo got $a; exit 9")
    with Viewer(server, at) as viewer:
        viewer.until(b"on\r\n")
        server.stop()
        with pytest.raises(ConnectionClosed) as caught:
            viewer.take()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1012
    server.start()
    with Viewer(server, at, viewer.cursor) as again:
        again.peer.send(b"x\r")
        assert (again.ended()["exit"], bytes(again.seen)) == (9, b"x\r\ngot x\r\n")


def test_a_program_that_runs_out_of_memory_says_so(server: RunningServer, client: httpx2.Client) -> None:
    box = client.post("/sandboxes", json={"memory_mib": 128}).json()["id"]
    hog = ["python3", "-c", "x=[bytearray(1000000) for _ in range(300)]"]
    with Viewer(server, opened(client, box, command=hog)) as viewer:
        assert viewer.ended()["why"] == "oom"
    client.delete(f"/sandboxes/{box}")


def test_a_paused_sandbox_is_resumed_by_who_attaches(
    server: RunningServer, client: httpx2.Client, sandbox: str
) -> None:
    at = opened(client, sandbox, command="read a; echo got $a")
    assert client.post(f"/sandboxes/{sandbox}/pause").json()["state"] == "paused"
    with Viewer(server, at) as viewer:
        viewer.peer.send(b"x\r")
        viewer.until(b"got x").ended()


def test_a_background_job_ends_with_its_terminal_and_a_daemon_does_not(
    server: RunningServer, client: httpx2.Client, sandbox: str
) -> None:
    at = opened(client, sandbox)
    with Viewer(server, at) as viewer:
        viewer.peer.send(b"sleep 1111 & nohup sleep 2222 >/dev/null 2>&1 & setsid sleep 3333 & echo st''arted\r")
        viewer.until(b"started")
        client.delete(at)
        viewer.ended()
    found = client.post(f"/sandboxes/{sandbox}/exec", json={"command": "pgrep -a sleep"}).json()["stdout"]
    assert "1111" not in found
    assert "2222" not in found
    assert "3333" in found


@pytest.mark.parametrize("driver", ["runc", "crun", "gvisor"])
def test_no_program_types_into_its_terminal_for_those_behind_it(
    server: RunningServer, client: httpx2.Client, driver: str
) -> None:
    box = client.post("/sandboxes", json={"driver": driver}).json()["id"]
    script = (
        "import errno, fcntl\n"
        "for request in (0x5412, 0x541C):\n"
        "    try:\n"
        "        print(fcntl.ioctl(0, request, b'x'))\n"
        "    except OSError as error:\n"
        "        print(errno.errorcode[error.errno])\n"
    )
    with Viewer(server, opened(client, box, command=["python3", "-c", script])) as viewer:
        viewer.ended()
    assert set(bytes(viewer.seen).split()) <= {b"EPERM", b"EIO", b"ENOTTY", b"EINVAL"}, viewer.seen
    assert len(viewer.seen.split()) == 2
    client.delete(f"/sandboxes/{box}")

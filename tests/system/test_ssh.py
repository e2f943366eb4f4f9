"""SSH with the real clients: ssh, sftp, scp and rsync against a real server and real sandboxes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from ssh_support import SshUser, need, ssh_server, ssh_user
from tests_support import SOAK, RunningServer, free_port
from waiting_support import until

pytestmark = pytest.mark.real

BIG = (100 if SOAK else 24) * 1024 * 1024
"""The issue's 100 MB in a soak; less in every run, because this machine may have two cores for all."""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, int]]:
    server, port = ssh_server(tmp_path_factory.mktemp("ssh-server"))
    yield server, port
    server.down()
    shutil.rmtree(server.data_dir, ignore_errors=True)


@pytest.fixture(scope="module")
def user(up: tuple[RunningServer, int], tmp_path_factory: pytest.TempPathFactory) -> SshUser:
    return ssh_user(tmp_path_factory.mktemp("ssh-user"), *up)


@pytest.fixture(scope="module")
def api(up: tuple[RunningServer, int]) -> Iterator[httpx2.Client]:
    with up[0].client() as client:
        yield client


@pytest.fixture(scope="module")
def box(api: httpx2.Client) -> str:
    """`NAME@cove`, for the clients."""
    made = api.post("/sandboxes", json={"memory_mib": 1024, "pids": 2048})
    assert made.status_code == 201, made.text
    return f"{made.json()['name']}@cove"


def name_of(box: str) -> str:
    return box.partition("@")[0]


def noise(size: int) -> bytes:
    return os.urandom(1 << 16) * (size >> 16)


# Commands


def test_a_command_has_its_streams_its_code_and_a_users_surroundings(user: SshUser, box: str) -> None:
    ran = user.ssh(box, 'pwd; echo "$USER $SHELL $HOME"; umask; echo err >&2; exit 7')
    assert ran.stdout == b"/root\nroot /bin/bash /root\n0022\n"
    assert (ran.stderr, ran.returncode) == (b"err\n", 7)
    assert user.ssh(box, "no-such-program").returncode == 127
    assert user.ssh(box, "kill -9 $$").returncode == 255
    assert user.ssh(box, "exit 255").returncode == 255


def test_a_script_on_stdin_runs_as_vs_code_sends_it(user: SshUser, box: str) -> None:
    script = b"for i in 1 2 3; do echo line $i; done; uname -s; cat /etc/hostname; exit 3\n"
    ran = user.ssh("-T", box, "bash", stdin=script)
    assert ran.stdout.startswith(b"line 1\nline 2\nline 3\nLinux\n")
    assert ran.returncode == 3


def test_variables_of_language_come_along_and_others_do_not(user: SshUser, box: str) -> None:
    ran = subprocess.run(
        user.argv("ssh", "-o", "SendEnv=*", box, "echo [$LC_ALL] [$LD_PRELOAD] [$SECRET_THING]"),
        env={**os.environ, "LC_ALL": "C.UTF-8", "LD_PRELOAD": "", "SECRET_THING": "x"},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert ran.stdout == b"[C.UTF-8] [] []\n"


def test_large_input_and_output_arrive_whole(user: SshUser, box: str) -> None:
    data = noise(BIG)
    digest = hashlib.sha256(data).hexdigest().encode()
    assert user.ssh(box, "sha256sum", stdin=data).stdout.split()[0] == digest
    echoed = user.ssh(box, "cat", stdin=data, timeout=120).stdout
    assert hashlib.sha256(echoed).hexdigest().encode() == digest, "both directions at once"


def test_key_exchanges_on_the_way_lose_nothing(user: SshUser, box: str) -> None:
    data = noise(8 * 1024 * 1024)
    echoed = user.ssh("-o", "RekeyLimit=1M", box, "cat", stdin=data, timeout=60).stdout
    assert hashlib.sha256(echoed).hexdigest() == hashlib.sha256(data).hexdigest()


def test_a_client_that_stops_reading_stops_the_command_and_nothing_else(user: SshUser, box: str) -> None:
    with subprocess.Popen(user.argv("ssh", box, "yes"), stdout=subprocess.PIPE) as slow:
        assert slow.stdout is not None
        assert slow.stdout.read(2) == b"y\n"
        time.sleep(0.5)
        assert user.ssh(box, "echo free").stdout == b"free\n"
        slow.kill()
    until(lambda: user.ssh(box, "pgrep -x yes").returncode == 1, "the command ends with its client")


def test_closing_the_input_ends_what_reads_it(user: SshUser, box: str) -> None:
    ran = user.ssh(box, "while read a; do echo got $a; done; echo end", stdin=b"1\n2\n")
    assert ran.stdout == b"got 1\ngot 2\nend\n"


# Terminals


def test_a_terminal_has_its_type_size_and_code(user: SshUser, box: str) -> None:
    ran = subprocess.run(
        user.argv("ssh", "-tt", box, "tty; echo $TERM; exit 5"),
        stdin=subprocess.DEVNULL,
        env={**os.environ, "TERM": "screen-256color"},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert ran.stdout.replace(b"\r", b"").endswith(b"/dev/pts/0\nscreen-256color\n") or b"/dev/pts/" in ran.stdout
    assert b"screen-256color" in ran.stdout
    assert ran.returncode == 5


def test_a_terminal_loses_nothing_of_a_large_output(user: SshUser, box: str) -> None:
    ran = user.ssh("-tt", box, "seq 1 300000", stdin=None, timeout=90)
    lines = ran.stdout.split()
    assert (len(lines), lines[0], lines[-1]) == (300000, b"1", b"300000")


def test_a_login_shell_in_a_terminal_emulator(user: SshUser, box: str, tmp_path: Path) -> None:
    tmux = [need("tmux"), "-S", str(tmp_path / "tmux"), "-f", "/dev/null"]

    def look() -> str:
        return subprocess.run([*tmux, "capture-pane", "-p"], capture_output=True, check=False, text=True).stdout

    def type_(*keys: str) -> None:
        subprocess.run([*tmux, "send-keys", *keys], check=True)

    command = " ".join(user.argv("ssh", box))
    subprocess.run([*tmux, "new-session", "-d", "-x", "100", "-y", "30", command], check=True, timeout=60)
    try:
        until(lambda: "root@" in look() or "#" in look(), f"a prompt: {look()}")
        type_("stty size; shopt -q login_shell && echo login", "Enter")
        until(lambda: "30 100" in look() and "\nlogin" in look(), f"size and login shell: {look()}")
        subprocess.run([*tmux, "resize-window", "-x", "60", "-y", "20"], check=True)
        until(lambda: _typed_size(type_, look) == "20 60", f"the new size: {look()}")
        type_("sleep 1000", "Enter")
        time.sleep(0.5)
        type_("C-c")
        type_("echo code=$?", "Enter")
        until(lambda: "code=130" in look(), f"Ctrl-C: {look()}")
        type_("exit", "Enter")
        until(lambda: subprocess.run([*tmux, "has-session"], capture_output=True, check=False).returncode != 0, "end")
    finally:
        subprocess.run([*tmux, "kill-server"], capture_output=True, check=False)


def _typed_size(type_: Callable[..., None], look: Callable[[], str]) -> str:
    type_("clear; stty size", "Enter")
    time.sleep(0.3)
    lines = [line.strip() for line in look().splitlines() if line.strip()]
    return next((line for line in lines if line.replace(" ", "").isdigit()), "")


def test_closing_the_terminal_hangs_up(user: SshUser, box: str) -> None:
    with subprocess.Popen(user.argv("ssh", "-tt", box, "echo on; exec sleep 4711"), stdout=subprocess.PIPE) as one:
        assert one.stdout is not None
        assert one.stdout.read(2) == b"on"
        one.kill()
    until(lambda: user.ssh(box, "pgrep -f '^sleep 4711'").returncode == 1, "it is gone")


# Files


def test_an_sftp_session_does_what_a_batch_says(user: SshUser, box: str, tmp_path: Path) -> None:
    data = noise(BIG // 2)
    (tmp_path / "big").write_bytes(data)
    (tmp_path / "batch").write_text(
        f"""cd /tmp
mkdir work
cd work
put {tmp_path}/big
rename big moved
symlink moved link
ln moved hard
chmod 640 moved
ls -la
df -h
get link {tmp_path}/back
get -p moved {tmp_path}/kept
rm link
rm hard
-mkdir /proc/nothing
reget moved {tmp_path}/part
rm moved
cd ..
rmdir work
"""
    )
    (tmp_path / "part").write_bytes(data[:1_000_000])
    ran = user.run("sftp", "-b", str(tmp_path / "batch"), box, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "back").read_bytes() == data
    assert (tmp_path / "part").read_bytes() == data
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o640
    assert b"lrwxrwxrwx" in ran.stdout
    assert b"-rw-r-----" in ran.stdout
    assert user.ssh(box, "ls /tmp/work").returncode == 2


@pytest.mark.parametrize("old", [False, True], ids=["over-sftp", "old-protocol"])
def test_scp_copies_a_tree_there_and_back(user: SshUser, box: str, tmp_path: Path, *, old: bool) -> None:
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "sp ace 'q\" ü").write_bytes(noise(1 << 20))
    (tree / "empty").touch()
    (tree / "run").write_text("#!/bin/sh\n")
    (tree / "run").chmod(0o755)
    os.utime(tree / "run", (1_000_000_000, 1_000_000_000))
    flags = ["-rp", *(["-O"] if old else [])]
    sent = user.run("scp", *flags, str(tree), f"{box}:copy-{old}")
    assert sent.returncode == 0, sent.stderr
    fetched = user.run("scp", *flags, f"{box}:copy-{old}", str(tmp_path / "back"))
    assert fetched.returncode == 0, fetched.stderr
    assert subprocess.run(["diff", "-r", str(tree), str(tmp_path / "back")], check=False).returncode == 0
    assert (tmp_path / "back" / "run").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "back" / "run").stat().st_mtime == 1_000_000_000
    missing = user.run("scp", *flags[1:], f"{box}:/no/such", str(tmp_path / "x"))
    assert missing.returncode == 1
    assert b"o such file" in missing.stderr


def test_rsync_sends_only_what_changed(user: SshUser, box: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    data = bytearray(os.urandom(4 << 20))
    (tree / "file").write_bytes(data)

    def sync() -> int:
        ran = subprocess.run(
            [
                *(need("rsync"), "-aI", "--stats", "--no-whole-file", "-e", " ".join(user.argv("ssh"))),
                *(f"{tree}/", f"{box}:/tmp/synced/"),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
        assert ran.returncode == 0, ran.stderr
        line = next(line for line in ran.stdout.splitlines() if line.startswith("Literal data"))
        return int("".join(letter for letter in line if letter.isdigit()))

    assert sync() == len(data)
    data[1_000_000:1_000_100] = bytes(100)
    (tree / "file").write_bytes(data)
    assert sync() < 20_000
    assert user.ssh(box, "sha256sum /tmp/synced/file").stdout.split()[0] == hashlib.sha256(data).hexdigest().encode()


# Ports


def test_a_port_of_the_sandbox_is_forwarded_and_nothing_else(user: SshUser, box: str) -> None:
    port = free_port()
    serve = "cd /etc && python3 -m http.server 8765 --bind 127.0.0.1"
    with (
        subprocess.Popen(user.argv("ssh", box, serve), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as served,
        subprocess.Popen(user.argv("ssh", "-N", "-L", f"{port}:localhost:8765", box)) as forward,
    ):
        try:

            def answers() -> bool:
                with contextlib.suppress(httpx2.HTTPError):
                    return httpx2.get(f"http://127.0.0.1:{port}/os-release", timeout=60).status_code == 200
                return False

            until(answers, "the forwarded server answers")
            assert "PRETTY_NAME" in httpx2.get(f"http://127.0.0.1:{port}/os-release").text
        finally:
            forward.kill()
            served.kill()
    nothing = user.ssh("-W", "localhost:9", box)
    assert nothing.returncode == 255
    for elsewhere in ("10.0.0.1:80", "example.com:80", "169.254.169.254:80"):
        assert user.ssh("-W", elsewhere, box).returncode == 255
    assert user.ssh("-o", "ExitOnForwardFailure=yes", "-R", "0:localhost:22", box, "true").returncode == 255


def test_a_dynamic_forward_reaches_the_sandbox(user: SshUser, box: str) -> None:
    port = free_port()
    script = "import http.server as h; h.HTTPServer(('127.0.0.1', 8766), h.SimpleHTTPRequestHandler).handle_request()"
    with (
        subprocess.Popen(user.argv("ssh", box, f'python3 -c "{script}"'), stderr=subprocess.DEVNULL) as served,
        subprocess.Popen(user.argv("ssh", "-N", "-D", str(port), box)) as forward,
    ):
        try:
            until(lambda: _socks(port, 8766) == b"HTTP/1.0", "an answer through SOCKS")
        finally:
            forward.kill()
            served.kill()


def _socks(port: int, target: int) -> bytes:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        sock.sendall(b"\5\1\0")
        sock.recv(2)
        sock.sendall(b"\5\1\0\3\x09localhost" + target.to_bytes(2, "big"))
        if sock.recv(10)[1:2] == b"\0":
            sock.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
            return sock.recv(8)
    return b""


def test_a_unix_socket_of_the_sandbox_is_forwarded(user: SshUser, box: str, tmp_path: Path) -> None:
    script = (
        "import socket as s; l=s.socket(s.AF_UNIX); l.bind('/tmp/echo'); l.listen(); "
        "c=l.accept()[0]; c.sendall(c.recv(9)[::-1])"
    )
    local = tmp_path / "local"
    with (
        subprocess.Popen(user.argv("ssh", box, f'python3 -c "{script}"')) as served,
        subprocess.Popen(user.argv("ssh", "-N", "-L", f"{local}:/tmp/echo", box)) as forward,
    ):
        try:
            until(lambda: user.ssh(box, "test -S /tmp/echo").returncode == 0 and local.exists(), "both ends")
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(10)
                sock.connect(str(local))
                sock.sendall(b"abc")
                assert sock.recv(9) == b"cba"
        finally:
            forward.kill()
            served.kill()


def test_agent_and_x11_are_not_forwarded(user: SshUser, box: str) -> None:
    assert user.ssh("-A", "-X", box, "echo [$SSH_AUTH_SOCK] [$DISPLAY]").stdout == b"[] []\n"


# Many


def test_a_hundred_channels_on_one_connection(user: SshUser, box: str, tmp_path: Path) -> None:
    control = str(tmp_path / "ctl")
    master = user.argv("ssh", "-M", "-S", control, "-N", box)
    with subprocess.Popen(master) as one:
        try:
            until(lambda: user.ssh("-S", control, "-O", "check", box).returncode == 0, "the master is up")
            runs = [
                subprocess.Popen(
                    user.argv("ssh", "-S", control, box, f"read x; echo {number} $x"),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
                for number in range(100)
            ]
            for number, run in enumerate(runs):
                assert run.communicate(b"go\n", timeout=60)[0] == f"{number} go\n".encode()
        finally:
            one.kill()


# Who comes in


def test_a_wrong_key_a_wrong_box_and_a_foreign_project_get_one_answer(
    up: tuple[RunningServer, int], user: SshUser, api: httpx2.Client, box: str, tmp_path: Path
) -> None:
    stranger = ssh_user(tmp_path / "stranger", *up, known=False)
    api.post("/projects", json={"id": "lab"})
    foreign = ssh_user(tmp_path / "foreign", *up, known=False)
    assert api.post("/ssh-keys", json={"public_key": foreign.public_key, "project": "lab"}).status_code == 201
    answers = {
        stranger.ssh(box, "true").stderr.replace(name_of(box).encode(), b"BOX"),
        foreign.ssh(box, "true").stderr.replace(name_of(box).encode(), b"BOX"),
        user.ssh("no-such-box@cove", "true").stderr.replace(b"no-such-box", b"BOX"),
    }
    assert answers == {b"BOX@127.0.0.1: Permission denied (publickey).\r\n"}
    by_id = api.get("/sandboxes", params={"name": name_of(box)}).json()["sandboxes"][0]["id"]
    assert user.ssh(f"{by_id}@cove", "echo in").stdout == b"in\n"
    for odd in ("../../etc", "-oProxyCommand=x", "a" * 2000, "root", "%00"):
        assert user.ssh("-l", odd, "cove", "true").returncode == 255


def test_a_key_that_was_taken_away_opens_nothing_and_ends_what_it_opened(
    up: tuple[RunningServer, int], api: httpx2.Client, box: str, tmp_path: Path
) -> None:
    other = ssh_user(tmp_path / "other", *up, kind="ecdsa")
    assert other.ssh(box, "echo in").stdout == b"in\n"
    mine = next(
        one for one in api.get("/ssh-keys").json()["ssh_keys"] if other.public_key.startswith(one["public_key"])
    )
    until(lambda: _last_used(api, mine["id"]) is not None, "the use is noted")
    argv = other.argv("ssh", box, "echo on; sleep 60")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as open_one:
        assert open_one.stdout is not None
        assert open_one.stdout.readline() == b"on\n"
        assert api.delete(f"/ssh-keys/{mine['id']}").status_code == 204
        assert other.ssh(box, "echo in").returncode == 255
        _, said = open_one.communicate(timeout=60)
        assert (open_one.returncode, b"the key was removed" in said) == (255, True)


def _last_used(api: httpx2.Client, key_id: str) -> object:
    return next(one["last_used_at"] for one in api.get("/ssh-keys").json()["ssh_keys"] if one["id"] == key_id)


def test_only_modern_algorithms_are_spoken(user: SshUser, box: str) -> None:
    for option in (
        "Ciphers=aes128-cbc",
        "Ciphers=3des-cbc",
        "MACs=hmac-sha1",
        "KexAlgorithms=diffie-hellman-group14-sha1",
        "HostKeyAlgorithms=ssh-rsa",
    ):
        assert user.ssh("-o", option, box, "true").returncode == 255, option
    assert user.ssh("-o", "Ciphers=aes128-ctr", "-o", "MACs=hmac-sha2-256-etm@openssh.com", box, "true").returncode == 0
    assert user.ssh("-C", box, "echo $SSH_X uncompressed").stdout == b"uncompressed\n"


# Sandboxes that sleep and end


def test_a_paused_sandbox_wakes_and_one_that_is_used_stays_awake(user: SshUser, api: httpx2.Client) -> None:
    made = api.post("/sandboxes", json={"idle_timeout_s": 1, "idle_action": "pause"}).json()
    there = f"{made['name']}@cove"

    def state() -> str:
        return str(api.get(f"/sandboxes/{made['id']}").json()["state"])

    until(lambda: state() == "paused", "it falls asleep")
    with subprocess.Popen(user.argv("ssh", there, "cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as one:
        assert one.stdin is not None
        assert one.stdout is not None
        one.stdin.write(b"a")
        one.stdin.flush()
        assert one.stdout.read(1) == b"a"
        time.sleep(2.5)
        assert state() == "running", "a session keeps it awake"
        one.send_signal(signal.SIGKILL)
    until(lambda: state() == "paused", "no lease is left of a client that vanished")
    api.delete(f"/sandboxes/{made['id']}")


def test_a_sandbox_that_ends_ends_its_connections_with_a_word(user: SshUser, api: httpx2.Client) -> None:
    made = api.post("/sandboxes", json={}).json()
    there = f"{made['name']}@cove"
    with (
        subprocess.Popen(user.argv("ssh", there, "echo on; sleep 1000"), stdout=-1, stderr=-1) as command,
        subprocess.Popen(user.argv("ssh", "-N", there), stdout=-1, stderr=-1) as idle,
    ):
        assert command.stdout is not None
        assert command.stdout.read(3) == b"on\n"
        api.delete(f"/sandboxes/{made['id']}")
        _, said = command.communicate(timeout=60)
        assert command.returncode == 255
        assert b"the sandbox has ended" in said
        idle.communicate(timeout=60)
        assert idle.returncode == 255
    assert user.ssh(there, "true").returncode == 255


# The server's own ends


def test_a_restart_keeps_the_host_key_and_ends_connections_cleanly(tmp_path: Path) -> None:
    server, port = ssh_server(tmp_path)
    try:
        user = ssh_user(tmp_path / "user", server, port)
        with server.client() as client:
            box = client.post("/sandboxes", json={}).json()["name"] + "@cove"
        key = server.data_dir / "ssh_host_ed25519_key"
        assert key.stat().st_mode & 0o777 == 0o600
        with subprocess.Popen(user.argv("ssh", box, "echo on; sleep 1000"), stdout=-1, stderr=-1) as one:
            assert one.stdout is not None
            assert one.stdout.read(3) == b"on\n"
            before = time.monotonic()
            server.stop()
            assert time.monotonic() - before < 45
            one.communicate(timeout=60)
            assert one.returncode == 255
        server.start()
        assert user.ssh(box, "echo again").stdout == b"again\n", "the same host key, the same sandbox"
        log = server.log.read_text()
        assert "Traceback" not in log
        assert "sleep 1000" not in log, "what users run is not logged"
    finally:
        server.down()
        shutil.rmtree(server.data_dir, ignore_errors=True)


def test_what_comes_by_ssh_is_in_the_audit_trail_with_its_key_and_address(
    user: SshUser, api: httpx2.Client, box: str
) -> None:
    name = box.partition("@")[0]
    assert user.ssh(box, "echo audited-by-ssh").returncode == 0
    query = {"event": "exec.start", "newest": "true"}
    lines = api.get(f"/sandboxes/{name}/audit", params=query).json()["lines"]
    (line,) = [one for one in lines if "echo audited-by-ssh" in one["data"]["command"]]
    assert line["actor"]["key"].startswith("ssh:")
    assert (line["actor"]["via"], line["actor"]["address"]) == ("ssh", "127.0.0.1")

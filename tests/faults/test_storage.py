"""The ground under the server gives way: a full or locked database, garbage and false records below /run/cove."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from cove.engine import kernel
from tests_support import Footprint, NewServer, RunningServer, make_server
from waiting_support import until

pytestmark = pytest.mark.real


def create(client: httpx2.Client, **wishes: object) -> str:
    answer = client.post("/sandboxes", json=wishes)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def said(client: httpx2.Client, box: str, command: str) -> str:
    answer = client.post(f"/sandboxes/{box}/exec", json={"command": command})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["stdout"])


def stored_state(server: RunningServer, box: str) -> str | None:
    """What the database says; None: no such row."""
    with sqlite3.connect(f"file:{server.data_dir}/cove.db?mode=ro", uri=True) as db:
        row = db.execute("SELECT state FROM sandboxes WHERE id = ?", (box.removeprefix("sb_"),)).fetchone()
    db.close()
    return None if row is None else str(row[0])


# A small disk of its own for the server's state. What sandboxes write lies elsewhere.


@dataclass(frozen=True)
class Cramped:
    """A running server, and the file system of 2 MiB below it."""

    server: RunningServer
    disk: Path

    def fill_up(self) -> None:
        with (self.disk / "filler").open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"x" * size)

    def free_space(self) -> None:
        (self.disk / "filler").unlink(missing_ok=True)


@pytest.fixture(params=["directory", "database"])
def cramped(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cramped]:
    """The whole data directory on a small disk, as admission sees it, or the database alone, as only a write finds."""
    server = make_server(tmp_path)
    is_all = request.param == "directory"
    disk = server.data_dir if is_all else tmp_path / "disk"
    layers = tmp_path / "layers"
    links = {path.name: path.readlink() for path in server.data_dir.iterdir()}
    for directory in (disk, layers):
        directory.mkdir(mode=0o700, exist_ok=True)
    (tmp_path / "log").touch()
    kernel.mount("tiny", disk, "tmpfs", 0, "size=2m,mode=0711")
    try:
        if is_all:
            for name, target in links.items():
                (disk / name).symlink_to(target)
            server.log.symlink_to(tmp_path / "log")
            (disk / "layers").mkdir(mode=0o700)
            kernel.mount(layers, disk / "layers", None, kernel.MS_BIND)
        else:
            (server.data_dir / "cove.db").symlink_to(disk / "cove.db")
        server.start()
        it = Cramped(server, disk)
        yield it
        it.free_space()
        server.down()
        assert not server.run_dir.exists()
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill()
        for point in (disk / "layers", disk):
            if os.path.ismount(point):
                kernel.umount(point, kernel.MNT_DETACH)


def test_a_full_disk_under_the_database_refuses_what_it_could_not_record(cramped: Cramped) -> None:
    server = cramped.server
    with server.client() as client:
        kept, doomed = create(client), create(client)
        assert said(client, kept, "echo on > /root/f; (while sleep 0.1; do date +%s%N > /root/t; done) &") == ""
        cramped.fill_up()
        refused = first_refusal(client, kept)
        for answer in refused:
            assert answer.headers["content-type"] == "application/problem+json"
            problem = answer.json()
            assert (answer.status_code, problem["code"]) == (503, "capacity"), problem
            assert "disk" in problem["detail"]
            assert problem["retryable"] is True
            assert int(answer.headers["retry-after"]) > 0
            assert str(server.data_dir) not in answer.text

        # Work that belongs in the audit trail is refused, once a line of it could not be written.
        upload = f"/sandboxes/{kept}/files/content?path=/root/g"
        until(lambda: client.put(upload, content=b"g" * 100_000).status_code == 503, "unrecorded work was done")
        assert "audit trail" in client.post(f"/sandboxes/{kept}/exec", json={"command": "true"}).json()["detail"]
        assert client.get(f"/sandboxes/{kept}").json()["state"] == "running"
        gone = client.delete(f"/sandboxes/{doomed}")
        assert (gone.status_code, gone.json()["state"]) == (200, "terminated"), gone.text
        assert client.get(f"/sandboxes/{doomed}").json()["state"] == "terminated"
        assert stored_state(server, doomed) != "terminated", "the disk is not full: this test shows nothing"

        cramped.free_space()
        until(lambda: client.post("/sandboxes", json={"name": "fresh"}).status_code == 201, "no room again")
        assert said(client, "fresh", "echo yes") == "yes\n"
        before = said(client, kept, "cat /root/f /root/t")
        assert before.startswith("on\n"), "what ran in it was ended by a full disk of the server's"
        until(lambda: said(client, kept, "cat /root/f /root/t") != before, "what ran in it stands still")
        # What could not be written then is written now, without anybody asking.
        until(lambda: stored_state(server, doomed) == "terminated", "the end was never written")
    server.kill()
    server.start()
    with server.client() as client:
        assert said(client, kept, "cat /root/f") == "on\n"
        assert said(client, "fresh", "echo yes") == "yes\n"
        assert client.get(f"/sandboxes/{doomed}").json()["state"] == "terminated"
        assert len(client.get("/sandboxes").json()["sandboxes"]) == 2
        for box in (kept, "fresh"):
            assert client.delete(f"/sandboxes/{box}").status_code == 200
    Footprint.of(server).assert_only_pool(server)


def first_refusal(client: httpx2.Client, box: str) -> tuple[httpx2.Response, httpx2.Response]:
    """Of a create and of a change, once what the write-ahead log has taken already is used up."""
    for number in range(500):
        changed = client.patch(f"/sandboxes/{box}", json={"metadata": {"try": str(number) + "x" * 1000}})
        made = client.post("/sandboxes", json={})
        if made.status_code == 201:
            client.delete(f"/sandboxes/{made.json()['id']}")
        elif changed.status_code != 200:
            return made, changed
    pytest.fail("the full disk refused nothing")


def test_a_crash_on_a_full_disk_loses_no_sandbox(cramped: Cramped) -> None:
    server = cramped.server
    with server.client() as client:
        kept, doomed = create(client), create(client)
        cramped.fill_up()
        first_refusal(client, kept)
        assert client.delete(f"/sandboxes/{doomed}").status_code == 200
    server.kill()
    server.start()
    with server.client() as client:
        assert client.get(f"/sandboxes/{kept}").json()["state"] == "running"
        # Its end could not be written: the start found it gone, and that can be written no better.
        assert client.post(f"/sandboxes/{doomed}/exec", json={"command": "true"}).status_code in {410, 503}
        cramped.free_space()
        until(lambda: client.post("/sandboxes", json={"name": "fresh"}).status_code == 201, "no room again")
        assert said(client, kept, "echo on") == "on\n"
        assert client.post(f"/sandboxes/{doomed}/exec", json={"command": "true"}).status_code == 410
        assert said(client, "fresh", "echo yes") == "yes\n"
        for box in (kept, "fresh"):
            assert client.delete(f"/sandboxes/{box}").status_code == 200
    Footprint.of(server).assert_only_pool(server)


# Another process that holds the database.

_HOLD = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
db.execute("ROLLBACK")
"""


@contextmanager
def held_database(server: RunningServer) -> Iterator[Callable[[], None]]:
    """The database write-locked by another process until the yielded function is called, or the context ends."""
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(server.data_dir / "cove.db")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"

        def let_go() -> None:
            assert holder.stdin is not None
            holder.stdin.close()
            holder.wait(60)

        try:
            yield let_go
        finally:
            holder.kill()


def test_what_must_be_written_waits_for_a_database_that_is_locked_for_a_moment(new_server: NewServer) -> None:
    server = new_server()
    with server.client() as client, ThreadPoolExecutor() as threads:
        box = create(client)
        with held_database(server) as let_go:
            pending = threads.submit(client.post, "/sandboxes", json={})
            recorded = threads.submit(said, client, box, "echo fine")
            deadline = time.monotonic() + 1.5
            while time.monotonic() < deadline:
                # The lock stops writes alone: who waited for it would not be answered while we hold it.
                assert client.get("/sandboxes").status_code == 200
                assert client.get(f"/sandboxes/{box}").json()["state"] == "running"
                assert not pending.done()
            let_go()
            answer = pending.result(60)
            assert recorded.result(60) == "fine\n"
        assert answer.status_code == 201, answer.text
        for one in (box, answer.json()["id"]):
            assert client.delete(f"/sandboxes/{one}").status_code == 200


def test_a_database_locked_for_long_gives_an_error_in_time_and_no_harm(new_server: NewServer) -> None:
    server = new_server()
    with server.client() as client:
        box = create(client)
        with held_database(server):
            started = time.monotonic()
            refused = client.post("/sandboxes", json={})
            took = time.monotonic() - started
            assert refused.status_code in {500, 503}, refused.text
            assert "database" in refused.json()["detail"]
            assert took < 40
            assert client.get(f"{server.url}/health").status_code == 200
            assert said(client, box, "echo fine") == "fine\n"
        fresh = create(client)
        for one in (box, fresh):
            assert client.delete(f"/sandboxes/{one}").status_code == 200
        assert client.get("/sandboxes").json()["sandboxes"] == []
    Footprint.of(server).assert_only_pool(server)


# A database that cannot be used at all.


def start_refused(server: RunningServer) -> str:
    """Start it in vain. What it says."""
    said_before = server.log.stat().st_size
    server.start(wait=False)
    assert server.process is not None
    try:
        assert server.process.wait(60) == 125
    except subprocess.TimeoutExpired:
        server.kill()
        raise
    return server.log.read_text()[said_before:]


@pytest.mark.parametrize("damage", ["garbage", "newer"])
def test_a_database_that_cannot_be_read_stops_the_start_and_no_sandbox(
    new_server: NewServer, tmp_path: Path, damage: str
) -> None:
    server = new_server()
    with server.client() as client:
        box = create(client)
        said(client, box, "echo kept > /root/f")
    server.stop()
    database, good = server.data_dir / "cove.db", tmp_path / "good.db"
    good.write_bytes(database.read_bytes())
    if damage == "garbage":
        database.write_bytes(secrets.token_bytes(4096) + good.read_bytes()[4096:])
    else:
        with sqlite3.connect(database) as db:
            db.execute("INSERT INTO migrations (version, name) VALUES (9999, 'from the future')")
        db.close()
    try:
        words = start_refused(server)
        assert "error: the state database" in words, words
        assert ("newer Cove" in words) == (damage == "newer")
        assert "Traceback" not in words
    finally:
        database.write_bytes(good.read_bytes())
        for rest in ("-wal", "-shm"):
            database.with_name(f"cove.db{rest}").unlink(missing_ok=True)
    server.start()
    with server.client() as client:
        assert said(client, box, "cat /root/f") == "kept\n"
        client.delete(f"/sandboxes/{box}")
    Footprint.of(server).assert_only_pool(server)


def test_a_lost_database_hands_no_old_box_to_anybody(new_server: NewServer) -> None:
    """Without its rows nobody knows whose a box was: a box with somebody's secrets must not pass for a fresh one."""
    server = new_server()
    with server.client() as client:
        box = create(client)
    server.stop()
    old = {path.name for path in (server.run_dir / "sb").iterdir()}
    assert box.removeprefix("sb_") in old
    for file in server.data_dir.glob("cove.db*"):
        file.unlink()
    server.start()
    with server.client() as client:
        assert client.get(f"/sandboxes/{box}").status_code == 404
        assert client.get("/sandboxes").json()["sandboxes"] == []
        assert not old.intersection(path.name for path in (server.run_dir / "sb").iterdir())
        fresh = create(client)
        assert said(client, fresh, "echo fine") == "fine\n"
        client.delete(f"/sandboxes/{fresh}")
    Footprint.of(server).assert_only_pool(server)


# What a start finds below /run/cove.


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with Cove."""
    child = subprocess.Popen(["sleep", "300"])
    yield child
    child.kill()
    child.wait()


@pytest.mark.parametrize("is_dead", [True, False], ids=["dead", "alive"])
def test_a_pid_that_names_another_process_now_is_never_killed(
    new_server: NewServer, bystander: subprocess.Popen[bytes], *, is_dead: bool
) -> None:
    server = new_server()
    with server.client() as client:
        box = create(client)
    server.stop()
    record = server.run_dir / "sb" / box.removeprefix("sb_") / "box.json"
    facts = json.loads(record.read_bytes())
    if is_dead:
        os.kill(facts["init_pid"], 9)
        until(lambda: kernel.process_start(facts["init_pid"]) != facts["init_start"], "it does not die")
    start = kernel.process_start(bystander.pid)
    assert start is not None
    record.write_text(json.dumps(facts | {"init_pid": bystander.pid, "init_start": start - 1}))

    server.start()
    with server.client() as client:
        seen = client.get(f"/sandboxes/{box}").json()
        assert seen["state"] in {"failed", "terminated"}, seen
        assert seen["end_reason"] == "died"
    assert bystander.poll() is None
    assert kernel.process_start(facts["init_pid"]) != facts["init_start"], "the sandbox's own process was left behind"
    Footprint.of(server).assert_only_pool(server)


def test_garbage_of_dead_boxes_is_swept_at_the_next_start(new_server: NewServer) -> None:
    server = new_server()
    with server.client() as client:
        kept = create(client)
    assert server.process is not None
    strays = [secrets.token_hex(8) for _ in range(5)]
    half_made, torn, runtime_only, in_cgroup, layer_only = strays
    layers = Path(f"/proc/{server.process.pid}/root") / str(server.data_dir / "layers" / "btrfs").lstrip("/")
    subprocess.run(["btrfs", "-q", "subvolume", "create", layers / layer_only], check=True)
    server.stop()
    boxes = server.run_dir / "sb"
    (boxes / half_made / "rootfs" / "deep").mkdir(parents=True)
    (boxes / half_made / "config.json").write_text("{}")
    (boxes / torn).mkdir()
    (boxes / torn / "box.json").write_text('{"id": "')
    (server.run_dir / "runtime" / "runc" / runtime_only).mkdir()
    (server.run_dir / "runtime" / "runc" / runtime_only / "state.json").write_text("{}")
    orphan = subprocess.Popen(["sleep", "300"])
    try:
        groups = make_cgroups(server, in_cgroup)
        for group in groups:
            (group / "cgroup.procs").write_text(str(orphan.pid))

        server.start()
        assert orphan.wait(60) == -9
    finally:
        orphan.kill()
        orphan.wait()
    with server.client() as client:
        assert said(client, kept, "echo fine") == "fine\n"
        assert [one["id"] for one in client.get("/sandboxes").json()["sandboxes"]] == [kept]
        client.delete(f"/sandboxes/{kept}")
    assert not [group for group in groups if group.exists()]
    left = {path.name for path in (*boxes.iterdir(), *(server.run_dir / "runtime" / "runc").iterdir())}
    layers = Path(f"/proc/{server.process.pid}/root") / str(server.data_dir / "layers" / "btrfs").lstrip("/")
    left |= {path.name for path in layers.iterdir()}
    assert not left.intersection(strays)
    Footprint.of(server).assert_only_pool(server)


def make_cgroups(server: RunningServer, box: str) -> list[Path]:
    """The directories that a box of that name would have in every hierarchy of this machine."""
    root = Path("/sys/fs/cgroup")
    parents = [*root.glob(f"*/cove/{server.instance}"), *root.glob(f"cove/{server.instance}")]
    made = [parent / box for parent in parents if parent.parts[4] != "cpuset"]
    for group in made:
        group.mkdir()
    return made

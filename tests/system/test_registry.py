"""Pulling from a real registry: what comes, what is refused, what a broken wire leaves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from cove.core.access import LOCAL
from cove.engine.images.settings import ImageSettings
from cove.model.errors import BadRequest, Conflict, EngineFailure, Forbidden, NotFound, RegistryUnreachable
from cove.model.image import Credentials, ImageOrigin, ImageStage
from images_support import OTHER, open_bench
from registry_support import (
    ARCHITECTURE,
    OCI_INDEX,
    OCI_MANIFEST,
    PASSWORD,
    USER,
    Layer,
    Redirector,
    Registry,
    Wire,
    image_config,
    link,
    member,
    running_registry,
    tar_of,
    tool,
)
from tests_support import NewServer, free_port
from waiting_support import comes_true, until

pytestmark = pytest.mark.real

ALIASES = (("python:*", "python"), ("debian:*", "base"))
NOISE = os.urandom(3_000_000)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def settings(registry: Registry) -> ImageSettings:
    return ImageSettings(insecure_registries=(registry.host,), watch_grace_s=0.3)


def small(text: str = "hello", packing: str = "gzip") -> Layer:
    return Layer(
        tar_of(member("etc/"), member("etc/text", text), member("etc/mode", mode=0o640, uid=7, gid=8)), packing
    )


async def test_a_tag_is_pulled_with_its_configuration(
    registry: Registry, settings: ImageSettings, tmp_path: Path
) -> None:
    layers = (small("below"), Layer(tar_of(member("etc/text", "above"))))
    digest = registry.push(
        "team/app", *layers, Env=["A=b"], User="7:8", WorkingDir="/etc", Entrypoint=["/e"], Cmd=["c"]
    )
    async with open_bench(tmp_path / "p", settings) as bench:
        events = await bench.events(f"{registry.host}/team/app")
        last = events[-1]
        assert last.stage is ImageStage.DONE, last
        assert last.image is not None
        assert last.image.manifest_digest == digest
        assert last.image.origin is ImageOrigin.PULLED
        stages = [event.stage for event in events]
        assert sorted(stages, key=list(ImageStage).index) == stages
        rootfs = bench.rootfs(last)
        assert (rootfs / "etc/text").read_text() == "above"
        facts = (rootfs / "etc/mode").stat()
        assert (facts.st_mode & 0o7777, facts.st_uid, facts.st_gid) == (0o640, 7, 8)
        resolved = await bench.images.ensure(LOCAL, f"{registry.host}/team/app")
        image = resolved.image
        assert (image.user, image.workdir, image.entrypoint, image.command) == ("7:8", "/etc", ("/e",), ("c",))
        assert image.env["A"] == "b"
        assert resolved.note is None
        assert (await bench.images.verify(LOCAL, f"{registry.host}/team/app")).digest == last.image.digest
        assert not bench.leftovers()


async def test_a_digest_is_pulled_and_found_again_by_tag_record(
    registry: Registry, settings: ImageSettings, tmp_path: Path
) -> None:
    digest = registry.push("by/digest", small())
    async with open_bench(tmp_path / "p", settings) as bench:
        assert (await bench.pull(f"{registry.host}/by/digest")).image
        reads = registry.log.count("GET /v2/by/digest")
        resolved = await bench.images.ensure(LOCAL, f"{registry.host}/by/digest@{digest}")
        assert resolved.image.name == f"{registry.host}/by/digest:latest"
        assert registry.log.count("GET /v2/by/digest") == reads
        last = await bench.pull(f"{registry.host}/by/digest@{digest}")
        assert last.image is not None
        assert last.image.digest == resolved.image.digest
        missing = await bench.pull(f"{registry.host}/by/digest@sha256:{'0' * 64}")
        assert (missing.stage, missing.error) == (ImageStage.FAILED, "not-found")


@pytest.mark.parametrize("packing", ["zstd", "plain"])
async def test_layers_come_packed_by_zstd_or_not_at_all(
    registry: Registry, settings: ImageSettings, tmp_path: Path, packing: str
) -> None:
    registry.push(f"packed/{packing}", small("below"), small(f"by {packing}", packing))
    async with open_bench(tmp_path / "p", settings) as bench:
        last = await bench.pull(f"{registry.host}/packed/{packing}")
        assert (bench.rootfs(last) / "etc/text").read_text() == f"by {packing}"


async def test_of_an_index_the_image_of_this_machine_is_taken(
    registry: Registry, settings: ImageSettings, tmp_path: Path
) -> None:
    own, other = small("own"), small("other")
    entries = []
    for layer, machine in ((other, "s390x"), (own, ARCHITECTURE)):
        digest = registry.push("multi/app", layer, tag=machine, config=image_config([layer], architecture=machine))
        platform = {"os": "linux", "architecture": machine}
        entries.append({"mediaType": OCI_MANIFEST, "digest": digest, "size": 1, "platform": platform})
    index: dict[str, object] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    # The registry holds an index to its entries' sizes.
    with registry.client() as client:
        for entry in entries:
            head = client.head(f"/v2/multi/app/manifests/{entry['digest']}", headers={"Accept": OCI_MANIFEST})
            entry["size"] = int(head.headers["content-length"])
    digest = registry.put_manifest("multi/app", "latest", index)
    only = registry.put_manifest("multi/app", "foreign", {**index, "manifests": entries[:1]})
    async with open_bench(tmp_path / "p", settings) as bench:
        last = await bench.pull(f"{registry.host}/multi/app")
        assert last.image is not None
        assert last.image.manifest_digest == digest
        assert (bench.rootfs(last) / "etc/text").read_text() == "own"
        assert registry.count_reads(other.digest) == 0
        for name in (f"multi/app@{only}", "multi/app:s390x"):
            refused = await bench.pull(f"{registry.host}/{name}")
            assert (refused.stage, refused.error) == (ImageStage.FAILED, "unsupported"), refused


async def test_a_blob_that_is_not_what_its_digest_says_is_refused(
    registry: Registry, settings: ImageSettings, tmp_path: Path
) -> None:
    layer = small("tampered below")
    registry.push("bad/layer", layer)
    file = registry.blob_file(layer.digest)
    evil = bytearray(file.read_bytes())
    evil[len(evil) // 2] ^= 0xFF
    file.write_bytes(bytes(evil))
    raw = image_config([small("x")], Env=["SECRET=1"])
    registry.push("bad/config", small("x"), config=raw)
    config = registry.blob_file(registry.put_blob("bad/config", raw))
    config.write_bytes(raw.replace(b"SECRET=1", b"SECRET=2"))
    async with open_bench(tmp_path / "p", settings) as bench:
        for name in ("bad/layer", "bad/config"):
            last = await bench.pull(f"{registry.host}/{name}")
            assert last.stage is ImageStage.FAILED
            assert last.error == "registry-error", last
            assert "digest" in last.text, last
        assert bench.store.list() == []
        assert not bench.leftovers()


async def test_a_manifest_whose_layers_are_others_than_its_configuration_says_is_refused(
    registry: Registry, settings: ImageSettings, tmp_path: Path
) -> None:
    registry.push("liar", small("real"), config=image_config([small("claimed")]))
    async with open_bench(tmp_path / "p", settings) as bench:
        last = await bench.pull(f"{registry.host}/liar")
        assert (last.stage, last.error) == (ImageStage.FAILED, "bad-request")
        assert bench.store.list() == []


async def test_a_cut_pull_goes_on_where_it_was(registry: Registry, tmp_path: Path) -> None:
    first, second = small("first"), Layer(tar_of(member("noise", NOISE)))
    registry.push("cut/app", first, second)
    wire = Wire(registry.port, cut_after=1_000_000)
    settings = ImageSettings(insecure_registries=(wire.host,))
    try:
        async with open_bench(tmp_path / "p", settings) as bench:
            # Layers come side by side: until the small one was whole before the wire broke.
            for _ in range(5):
                wire.passed = 0
                cut = await bench.pull(f"{wire.host}/cut/app")
                assert (cut.stage, cut.error) == (ImageStage.FAILED, "registry-error"), cut
                assert not bench.leftovers()
                if list(bench.directory.glob(f"downloads/*/blobs/sha256/{first.digest.removeprefix('sha256:')}")):
                    break
            wire.cut_after = None
            reads = registry.count_reads(first.digest)
            done = await bench.pull(f"{wire.host}/cut/app")
            assert done.stage is ImageStage.DONE, done
            assert (bench.rootfs(done) / "noise").read_bytes() == NOISE
            assert registry.count_reads(first.digest) == reads, "the first layer was fetched again"
    finally:
        wire.close()


async def test_a_registry_that_falls_silent_is_given_up(registry: Registry, tmp_path: Path) -> None:
    registry.push("stall/app", Layer(tar_of(member("noise", NOISE))))
    for stall_after in (1_000_000, 0):
        wire = Wire(registry.port, stall_after=stall_after)
        try:
            settings = ImageSettings(insecure_registries=(wire.host,), stall_s=1.0)
            async with open_bench(tmp_path / f"p{stall_after}", settings) as bench:
                begin = time.monotonic()
                last = await bench.pull(f"{wire.host}/stall/app")
                assert (last.stage, last.error) == (ImageStage.FAILED, "registry-error"), last
                assert "stalled" in last.text
                assert time.monotonic() - begin < 45
                assert not bench.leftovers()
        finally:
            wire.close()


async def test_two_pulls_of_one_image_are_one_transfer(
    registry: Registry, settings: ImageSettings, tmp_path: Path
) -> None:
    layer = Layer(tar_of(member("twice", os.urandom(500_000))))
    registry.push("twice/app", layer)
    async with open_bench(tmp_path / "p", settings) as bench:
        ends = await asyncio.gather(*(bench.pull(f"{registry.host}/twice/app") for _ in range(4)))
        assert {end.stage for end in ends} == {ImageStage.DONE}
        assert registry.count_reads(layer.digest) == 1
        assert bench.images.stats().done == 1
        names = await asyncio.gather(
            *(bench.images.ensure(LOCAL, f"{registry.host}/twice/app:latest") for _ in range(3))
        )
        assert len({one.image.digest for one in names}) == 1


async def test_leaving_ends_the_pull_only_when_nobody_watches(registry: Registry, tmp_path: Path) -> None:
    registry.push("left/app", Layer(tar_of(member("noise", NOISE))))
    wire = Wire(registry.port, stall_after=500_000)
    settings = ImageSettings(insecure_registries=(wire.host,), watch_grace_s=0.2)
    try:
        async with open_bench(tmp_path / "p", settings) as bench:
            watched = [bench.images.pull(LOCAL, f"{wire.host}/left/app") for _ in range(2)]
            for one in watched:
                await anext(one)
            await watched[0].aclose()
            await asyncio.sleep(0.6)
            assert bench.images.stats().running == 1
            assert [info.status for info in bench.images.list(LOCAL) if info.project] == ["pulling"]
            await watched[1].aclose()
            await comes_true(lambda: not bench.images.stats().running)
            assert not bench.leftovers()
    finally:
        wire.close()


async def test_a_login_is_used_and_nowhere_to_be_seen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tmp_path_factory: pytest.TempPathFactory
) -> None:
    secret = PASSWORD
    with running_registry(tmp_path_factory.mktemp("auth"), login=True) as registry:
        registry.push("private/app", Layer(tar_of(member("noise", NOISE))))
        settings = ImageSettings(insecure_registries=(registry.host,), aliases=(("*/private/app:*", "base"),))
        async with open_bench(tmp_path / "p", settings) as bench:
            name = f"{registry.host}/private/app"
            wrong = Credentials(username=USER, password="wrong-" + secret)
            for credentials in (None, wrong):
                refused = await bench.pull(name, credentials=credentials)
                assert (refused.stage, refused.error) == (ImageStage.FAILED, "registry-error"), refused
                assert "login" in refused.text
            with pytest.raises(Exception, match="login"):  # no alias: the registry has answered
                await bench.images.ensure(LOCAL, name)
            seen: set[bytes] = set()
            events = []
            async for event in bench.images.pull(LOCAL, name, credentials=Credentials(username=USER, password=secret)):
                events.append(event)
                seen |= what_processes_show()
            assert events[-1].stage is ImageStage.DONE, events[-1]
            assert not [text for text in seen if secret.encode() in text]
            assert secret not in caplog.text + repr(events) + repr(settings)
            assert secret not in repr(Credentials(password=secret))
            assert not files_with(tmp_path, secret)


def files_with(directory: Path, text: str) -> bytes:
    return subprocess.run(["grep", "-rlF", text, directory], capture_output=True, check=False, timeout=60).stdout


def what_processes_show() -> set[bytes]:
    found: set[bytes] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            for name in ("cmdline", "environ"):
                with contextlib.suppress(OSError):
                    found.add((entry / name).read_bytes())
    return found


async def test_a_private_image_is_its_projects_alone(
    registry: Registry, settings: ImageSettings, tmp_path: Path
) -> None:
    layer = small("private")
    registry.push("mine/app", layer)
    name = f"{registry.host}/mine/app"
    async with open_bench(tmp_path / "p", settings) as bench:
        await bench.pull(name)
        with pytest.raises(NotFound):
            bench.images.get(OTHER, name)
        with pytest.raises(NotFound):
            await bench.images.remove(OTHER, name)
        assert name not in str(bench.images.list(OTHER))
        reads = registry.count_reads(layer.digest)
        theirs = await bench.pull(name, who=OTHER)
        assert registry.count_reads(layer.digest) == reads + 1, "a stranger's blob must come from the registry"
        assert theirs.image is not None
        trees = list((bench.directory / "trees").iterdir())
        assert [tree.name for tree in trees] == [theirs.image.digest], "one content, one tree"
        await bench.images.remove(LOCAL, name)
        await bench.store.collect(set)
        assert bench.rootfs(theirs).is_dir()


async def test_unknown_and_forbidden_images_get_no_alias(registry: Registry, tmp_path: Path) -> None:
    settings = ImageSettings(insecure_registries=(registry.host,), aliases=(("*/python:*", "base"),))
    async with open_bench(tmp_path / "p", settings) as bench:
        with pytest.raises(NotFound):
            await bench.images.ensure(LOCAL, f"{registry.host}/team/python:3")
        closed = replace(settings, registries=("ghcr.io",), insecure_registries=(), aliases=ALIASES)
    async with open_bench(tmp_path / "q", closed) as bench:
        with pytest.raises(Forbidden):
            await bench.images.ensure(LOCAL, "python:3.12")
        with pytest.raises(Forbidden):
            await bench.pull("docker.io/library/python:3.12")


async def test_an_alias_stands_in_while_the_registry_cannot_be_reached(tmp_path: Path) -> None:
    host = f"127.0.0.1:{free_port()}"
    settings = ImageSettings(
        default_registry=host, insecure_registries=(host,), aliases=((f"{host}/debian:*", "base"),)
    )
    async with open_bench(tmp_path / "p", settings) as bench:
        begin = time.monotonic()
        resolved = await bench.images.ensure(LOCAL, "debian:12")
        took = time.monotonic() - begin
        assert took < 30
        assert resolved.image.name == "base"
        assert resolved.note is not None
        assert host in resolved.note
        begin = time.monotonic()
        assert (await bench.images.ensure(LOCAL, "debian:11")).image.name == "base"
        assert time.monotonic() - begin < max(took / 2, 0.05), "it is remembered that nobody answers"
        assert bench.images.stats().aliased == 2
        for name in ("alpine:3", "debian@sha256:" + "0" * 64):
            with pytest.raises(RegistryUnreachable):
                await bench.images.ensure(LOCAL, name)
        explicit = await bench.pull("debian:12")
        assert (explicit.stage, explicit.error) == (ImageStage.FAILED, "registry-unreachable")
    async with open_bench(tmp_path / "q", replace(settings, aliases=())) as bench:
        with pytest.raises(RegistryUnreachable):
            await bench.images.ensure(LOCAL, "debian:12")


async def test_a_local_image_wins_over_registry_and_alias(
    registry: Registry, settings: ImageSettings, tmp_path: Path
) -> None:
    registry.push("won/app", small("pulled"))
    name = f"{registry.host}/won/app"
    settings = replace(settings, aliases=(("*/won/app:*", "base"),))
    async with open_bench(tmp_path / "p", settings) as bench:
        await bench.pull(name)
        registry.push("won/app", small("newer"))
        resolved = await bench.images.ensure(LOCAL, name)
        assert (resolved.image.rootfs / "etc/text").read_text() == "pulled"
        again = await bench.pull(name)
        assert (bench.rootfs(again) / "etc/text").read_text() == "newer"


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1:{port}", "http://169.254.169.254/latest", "http://10.0.0.1", "https://localhost:{port}"],
)
async def test_a_redirect_to_a_closed_address_leads_nowhere(registry: Registry, tmp_path: Path, target: str) -> None:
    registry.push("hop/app", small())
    hop = Redirector(lambda path: target.format(port=registry.port) + path)
    before = registry.log.count("/v2/hop/app")
    try:
        async with open_bench(tmp_path / "p", ImageSettings(insecure_registries=(hop.host,))) as bench:
            last = await bench.pull(f"{hop.host}/hop/app")
            assert last.stage is ImageStage.FAILED, last
            assert hop.asked >= 2
            assert registry.log.count("/v2/hop/app") == before
    finally:
        hop.close()


@pytest.mark.parametrize(
    "host", ["127.0.0.1:{port}", "localhost:{port}", "127.0.0.2:{port}", "[::1]:{port}", "10.0.0.1"]
)
async def test_closed_registries_are_refused_unless_listed(registry: Registry, tmp_path: Path, host: str) -> None:
    async with open_bench(tmp_path / "p", ImageSettings(connect_s=0.5)) as bench:
        last = await bench.pull(f"{host.format(port=registry.port)}/team/app")
        assert last.stage is ImageStage.FAILED
        assert last.error in {"forbidden", "registry-error"}, last


async def test_two_images_share_layers(registry: Registry, settings: ImageSettings, tmp_path: Path) -> None:
    shared = small("shared")
    registry.push("share/one", shared, Layer(tar_of(member("one", "1"))))
    registry.push("share/two", shared, Layer(tar_of(member("two", "2"))))
    async with open_bench(tmp_path / "p", settings) as bench:
        for name in ("one", "two"):
            assert (await bench.pull(f"{registry.host}/share/{name}")).stage is ImageStage.DONE
        assert registry.count_reads(shared.digest) == 1


async def test_removing_waits_for_sandboxes_and_collecting_for_boxes(
    registry: Registry, settings: ImageSettings, tmp_path: Path
) -> None:
    registry.push("gone/app", small("gone"))
    name = f"{registry.host}/gone/app"
    async with open_bench(tmp_path / "p", settings) as bench:
        last = await bench.pull(name)
        assert last.image is not None
        bench.used.add(last.image.digest)
        await bench.images.remove(LOCAL, name)
        assert await bench.store.collect(lambda: bench.used) == 0
        assert bench.rootfs(last).is_dir()
        bench.used.clear()
        with bench.store.hold(last.image.digest):
            assert await bench.store.collect(lambda: bench.used) == 0
        assert await bench.store.collect(lambda: bench.used) == 1
        assert not bench.rootfs(last).exists()
        assert not bench.leftovers()
        with pytest.raises(NotFound):
            bench.images.get(LOCAL, name)
        with pytest.raises(Conflict):
            await bench.images.remove(LOCAL, "base")


async def test_collecting_races_with_pulls_and_never_takes_what_is_named(
    registry: Registry, settings: ImageSettings, tmp_path: Path
) -> None:
    for number in range(3):
        registry.push(f"race/{number}", small("the same content"), Cmd=[str(number)])
    async with open_bench(tmp_path / "p", settings) as bench:
        stop = asyncio.Event()

        async def collect() -> None:
            while not stop.is_set():
                await bench.store.collect(set)

        async def churn(number: int) -> None:
            name = f"{registry.host}/race/{number}"
            for _ in range(4):
                last = await bench.pull(name)
                assert last.stage is ImageStage.DONE, last
                image = (await bench.images.ensure(LOCAL, name)).image
                assert (image.rootfs / "etc/text").read_text() == "the same content"
                await bench.images.remove(LOCAL, name)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(collect())
            async with asyncio.TaskGroup() as churners:
                for number in range(3):
                    churners.create_task(churn(number))
            stop.set()
        await bench.store.collect(set)
        assert list((bench.directory / "trees").iterdir()) == []


async def test_a_damaged_tree_is_noticed(registry: Registry, settings: ImageSettings, tmp_path: Path) -> None:
    registry.push("rot/app", small("sound"))
    name = f"{registry.host}/rot/app"
    async with open_bench(tmp_path / "p", settings) as bench:
        last = await bench.pull(name)
        (bench.rootfs(last) / "etc/text").write_text("rotten")
        with pytest.raises(EngineFailure):
            await bench.images.verify(LOCAL, name)
        assert (await bench.images.verify(LOCAL, "base")).name == "base"


async def test_bad_names_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    async with open_bench(tmp_path / "p", ImageSettings()) as bench:
        for name in ("Upper/Case", "a b", "../etc", "localhost/mine", ""):
            with pytest.raises(BadRequest):
                await bench.pull(name)
        for name in ("Upper/Case", "../etc", "localhost/mine"):
            with pytest.raises((BadRequest, NotFound)):
                await bench.images.ensure(LOCAL, name)


def test_a_start_after_a_crash_finds_whole_images_only(
    registry: Registry, tmp_path: Path, settings: ImageSettings
) -> None:
    """`kill -9` in the middle of pulls: no process of them lives on, and the next start sweeps what they left."""
    registry.push("crash/done", small("done"))
    registry.push("crash/half", Layer(tar_of(member("noise", NOISE))))
    wire = Wire(registry.port, stall_after=1_000_000)
    program = f"""
import asyncio, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from images_support import open_bench
from cove.core.access import LOCAL
from cove.engine.images.settings import ImageSettings

async def main():
    settings = ImageSettings(insecure_registries=({registry.host!r}, {wire.host!r}))
    async with open_bench(Path({str(tmp_path / "p")!r}), settings) as bench:
        print((await bench.pull("{registry.host}/crash/done")).stage, flush=True)
        async for event in bench.images.pull(LOCAL, "{wire.host}/crash/half"):
            print(event.stage, event.done_bytes, flush=True)

asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "done"
        for line in process.stdout:
            if line.startswith("download") and int(line.split()[1]) > 500_000:
                break
        inside = children_of(process.pid)
        assert inside
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        until(lambda: not [pid for pid in inside if Path(f"/proc/{pid}").exists()])
    finally:
        process.kill()
        process.communicate(timeout=60)
        wire.close()

    async def look() -> None:
        async with open_bench(tmp_path / "p", settings) as bench:
            await comes_true(lambda: not bench.leftovers())
            assert [image.name for image in bench.store.list()] == [f"{registry.host}/crash/done:latest"]

    asyncio.run(look())


def children_of(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *children_of(int(child))]
    return found


def test_a_sandbox_of_an_image_that_is_not_here_pulls_it_first(registry: Registry, new_server: NewServer) -> None:
    agent_needs = Layer(tar_of(member("etc/"), member("etc/passwd", "root:x:0:0::/:/bin/sh\nme:x:7:8::/home/me:/\n")))
    busybox = Path(tool("busybox"))
    tools = Layer(
        tar_of(
            member("bin/"),
            member("bin/busybox", busybox.read_bytes(), mode=0o755),
            *(link(f"bin/{name}", "busybox") for name in ("sh", "cat", "id", "env", "pwd")),
            member("srv/"),
        )
    )
    registry.push("run/app", agent_needs, tools, Env=["FROM_IMAGE=yes"], WorkingDir="/srv")
    server = new_server(COVE_INSECURE_REGISTRIES=registry.host, COVE_IMAGE_ALIASES="off")
    name = f"{registry.host}/run/app"
    with server.client() as client:
        made = client.post("/sandboxes", json={"image": name})
        assert made.status_code == 201, made.text
        sandbox = made.json()["id"]
        ran = client.post(f"/sandboxes/{sandbox}/exec", json={"command": "echo $FROM_IMAGE; pwd; id -u"})
        assert ran.json()["stdout"].split() == ["yes", "/srv", "0"], ran.text
        shown = client.get(f"/sandboxes/{sandbox}").json()
        assert shown["image"] == name
        assert shown["image_used"] == f"{name}:latest"
        assert shown["image_digest"]
        missing = client.post("/sandboxes", json={"image": f"{registry.host}/no/such"})
        assert missing.status_code == 404, missing.text
        assert "cove_images_done 1.0" in client.get(f"{server.url}/metrics").text
        server.kill()
        server.start()
        again = client.post(f"/sandboxes/{sandbox}/exec", json={"command": "cat /etc/passwd"})
        assert "me:x:7:8" in again.json()["stdout"], again.text

"""Images as attackers write them: what unpacking them does to the host (nothing), and what a sandbox then sees."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from cove.engine.confined.measure import measure_tree
from cove.engine.confined.process import PYTHON, Confinement, confined
from cove.engine.images.settings import ImageSettings, UnpackLimits
from cove.engine.images.unpack import LayerFile, Tree, unpack_layers
from cove.model.errors import BadRequest, TooLarge
from cove.model.image import ImageStage
from images_support import open_bench
from registry_support import Layer, Registry, link, member, running_registry, tar_of, tool
from tests_support import NewServer

pytestmark = pytest.mark.real

Member = tuple[tarfile.TarInfo, bytes]
LIMITS = UnpackLimits(most_bytes=64 * 1024**2, most_files=500, most_ratio=100)
DEEP = replace(LIMITS, most_files=3000)


class Ground:
    """A directory to unpack in, with something beside it that must not be touched."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.target = top / "tree" / "rootfs"
        self.target.mkdir(mode=0o755, parents=True)
        self.outside = top / "outside"
        self.outside.mkdir()
        (self.outside / "secret").write_text("secret")
        (self.outside / "secret").chmod(0o600)
        self.before = measure_tree(self.outside)
        self.count = 0

    async def unpack(self, *layers: bytes, limits: UnpackLimits = LIMITS) -> Tree:
        files = []
        for data in layers:
            self.count += 1
            path = self.top / f"layer-{self.count}"
            path.write_bytes(data)
            files.append(LayerFile(path=path))
        return await unpack_layers(files, self.target, limits, timeout_s=60)

    def is_untouched(self) -> bool:
        return measure_tree(self.outside) == self.before and not Path("/cove-was-here").exists()


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


def packed(*members: Member) -> bytes:
    return gzip.compress(tar_of(*members), 1)


async def test_names_with_dots_and_slashes_stay_inside(ground: Ground) -> None:
    up = "../" * 12
    await ground.unpack(
        packed(
            member(f"{up}cove-was-here", "x"),
            member("/cove-was-here-too", "x"),
            member("a/../../../b", "x"),
            member(f"{up}{ground.outside}/secret".replace("//", "/"), "x"),
        )
    )
    assert ground.is_untouched()
    assert (ground.target / "cove-was-here").read_text() == "x"
    assert (ground.target / "cove-was-here-too").exists()
    assert (ground.target / "b").exists()


@pytest.mark.parametrize("target", ["/", "../../../../../../..", "{outside}", "/proc/1/root", "."])
async def test_writing_through_a_symbolic_link_stays_inside(ground: Ground, target: str) -> None:
    target = target.format(outside=ground.outside)
    layers = [
        packed(link("door", target)),
        packed(
            member("door/cove-was-here", "x"), member(f"door{ground.outside}/secret", "x"), member("door/secret", "x")
        ),
    ]
    with contextlib.suppress(BadRequest):  # a link to nowhere inside: the layer cannot be applied
        await ground.unpack(*layers)
    assert ground.is_untouched()
    assert str((ground.target / "door").readlink()) == target


async def test_a_link_is_replaced_not_followed(ground: Ground) -> None:
    inside = f"{ground.outside}/secret"
    await ground.unpack(
        packed(link("file", inside), link("folder", str(ground.outside))),
        packed(member("file", "mine"), member("folder/", mode=0o700), member("folder/secret", "mine")),
    )
    assert ground.is_untouched()
    assert (ground.target / "file").read_text() == "mine"
    assert not (ground.target / "folder").is_symlink()


@pytest.mark.parametrize(
    "target", ["{outside}/secret", "../../outside/secret", "/etc/shadow", "/usr/bin/zstd", "/layers/0"]
)
async def test_a_hard_link_to_the_outside_cannot_be_made(ground: Ground, target: str) -> None:
    with pytest.raises(BadRequest, match="hard link"):
        await ground.unpack(packed(link("stolen", target.format(outside=ground.outside), hard=True)))
    assert ground.is_untouched()


async def test_a_hard_link_to_a_link_links_the_link(ground: Ground) -> None:
    await ground.unpack(packed(link("a", f"{ground.outside}/secret"), link("b", "a", hard=True), member("b", "mine")))
    assert ground.is_untouched()
    assert (ground.target / "a").is_symlink()


async def test_privileges_and_devices_do_not_come_along(ground: Ground) -> None:
    capable = member("capable", "x", mode=0o755)
    # cap_sys_admin=ep, as setcap writes it
    capability = b"\x01\x00\x00\x02\x00\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
    capable[0].pax_headers = {
        "SCHILY.xattr.security.capability": capability.decode("latin-1"),
        "SCHILY.xattr.user.kept": "yes",
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "SCHILY.xattr.user.overlay.opaque": "y",
        "SCHILY.xattr.security.selinux": "x",
    }
    await ground.unpack(
        packed(
            member("suid", "x", mode=0o6755),
            member("folder/", mode=0o7777),
            capable,
            member("zero", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
            member("disk", type=tarfile.BLKTYPE, devmajor=8, devminor=0),
            member("gone", type=tarfile.CHRTYPE, devmajor=0, devminor=0),
            member("pipe", type=tarfile.FIFOTYPE),
            link("zero-too", "zero", hard=True),
            member("far", "x", uid=70000, gid=2**31),
            member("negative", "x", uid=2**32 - 1),
            member("kept", "x", uid=65535, gid=100),
        )
    )
    assert stat.S_IMODE((ground.target / "suid").stat().st_mode) == 0o755
    assert stat.S_IMODE((ground.target / "folder").stat().st_mode) == 0o3777
    assert os.listxattr(ground.target / "capable") == ["user.kept"]
    assert sorted(path.name for path in ground.target.iterdir()) == [
        "capable",
        "far",
        "folder",
        "kept",
        "negative",
        "suid",
    ]
    assert (ground.target / "far").stat().st_uid == 65534
    assert (ground.target / "far").stat().st_gid == 65534
    assert (ground.target / "kept").stat().st_uid == 65535
    assert not measure_tree(ground.target).special


async def test_whiteouts_hide_what_is_below_and_nothing_else(ground: Ground) -> None:
    await ground.unpack(
        packed(
            member("gone", "x"), member("stays", "x"), member("dir/"), member("dir/a", "x"), member("dir/sub/"),
            member("dir/sub/b", "x"), member("opaque/"), member("opaque/old", "x"), member("opaque/both", "old"),
            link("door", "/"),
        ),
        packed(
            member(".wh.gone"), member("dir/.wh.a"), member("dir/.wh.sub"), member("opaque/both", "new"),
            member("opaque/deep/"), member("opaque/deep/new", "x"), member("opaque/.wh..wh..opq"),
            member(".wh.."), member(".wh."), member(".wh..wh.plnk/"), member(".wh.missing"),
            member("stays2", "x"), member(".wh.stays2"),
        ),
    )  # fmt: skip
    found = sorted(str(path.relative_to(ground.target)) for path in ground.target.rglob("*"))
    assert found == ["dir", "door", "opaque", "opaque/both", "opaque/deep", "opaque/deep/new", "stays", "stays2"]
    assert (ground.target / "opaque/both").read_text() == "new"
    assert ground.is_untouched()


async def test_a_whiteout_through_a_link_removes_nothing_outside(ground: Ground) -> None:
    await ground.unpack(
        packed(link("door", str(ground.outside)), link("up", "../../outside")),
        packed(
            member("door/.wh.secret"), member("door/.wh..wh..opq"), member("up/.wh.secret"), member("up/.wh..wh..opq")
        ),
    )
    assert ground.is_untouched()


@pytest.mark.parametrize("kind", ["symlink", "file", "directory"])
async def test_dev_is_empty_or_as_it_is_and_never_followed(ground: Ground, kind: str) -> None:
    first = {
        "symlink": link("dev", str(ground.outside)),
        "file": member("dev", "x"),
        "directory": member("dev/", mode=0o755),
    }[kind]
    names = [
        member("dev/null", "x"),
        member("dev/shm/"),
        member("dev/mem", type=tarfile.CHRTYPE, devmajor=1, devminor=1),
    ]
    await ground.unpack(packed(first), packed(*names, link("dev/x", "/etc/passwd"), link("y", "dev/null", hard=True)))
    assert ground.is_untouched()
    if kind == "directory":
        assert list((ground.target / "dev").iterdir()) == []
    assert not (ground.target / "y").exists()


async def test_strange_names_survive(ground: Ground) -> None:
    longest = "/".join(["n" * 250] * 16) + "/" + "e" * 60
    names = ["new\nline", " ", "-rf", "\t", "ä" * 127, "a" * 255, "\\", "*", "\u202e", longest, "back\\slash/$(id)"]
    tree = await ground.unpack(packed(*(member(name, name) for name in names)))
    top = os.open(ground.target, os.O_PATH)  # from here, as the longest with the whole path before it is too long
    for name in names:
        fd = os.open(name, os.O_RDONLY, dir_fd=top)
        assert os.read(fd, 10_000).decode() == name
        os.close(fd)
    os.close(top)
    assert tree.files == len(names)
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", encoding="latin-1", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("\xff\xfe\x80"))
    await ground.unpack(raw.getvalue())
    assert (ground.target / os.fsdecode(b"\xff\xfe\x80")).exists()


@pytest.mark.parametrize("name", ["a" * 256, "/".join(["d" * 200] * 30), "nul\0byte"])
async def test_names_that_no_system_takes_are_refused(ground: Ground, name: str) -> None:
    info, content = member("x", "x")
    info.pax_headers = {"path": name}
    with pytest.raises(BadRequest):
        await ground.unpack(packed((info, content)))


def run(*argv: str, given: bytes = b"") -> bytes:
    return subprocess.run(argv, input=given, capture_output=True, check=True, timeout=60).stdout


def bomb(size: int) -> bytes:
    """A layer of one file of zeros, packed a thousandfold."""
    out = io.BytesIO()
    with gzip.open(out, "wb", 9) as file:
        info = tarfile.TarInfo("zeros")
        info.size = size
        file.write(info.tobuf())
        for _ in range(size // 2**20):
            file.write(bytes(2**20))
        file.write(bytes(1024))
    return out.getvalue()


@pytest.mark.parametrize(
    ("limits", "words"),
    [(LIMITS, "unpacks to more"), (replace(LIMITS, most_bytes=2**40), "bomb")],
)
async def test_a_bomb_is_stopped_while_it_unpacks(ground: Ground, limits: UnpackLimits, words: str) -> None:
    data = bomb(160 * 2**20)
    begin = time.monotonic()
    with pytest.raises(TooLarge, match=words):
        await ground.unpack(data, limits=limits)
    assert time.monotonic() - begin < 60
    assert sum(path.stat().st_size for path in ground.target.rglob("*")) < 200 * 2**20


async def test_a_zstd_bomb_and_one_behind_the_archives_end_are_stopped(ground: Ground) -> None:
    plain = gzip.decompress(bomb(160 * 2**20))
    packed_by_zstd = run("zstd", "-qc", given=plain)
    with pytest.raises(TooLarge):
        await ground.unpack(packed_by_zstd)
    shutil.rmtree(ground.target)
    ground.target.mkdir()
    with pytest.raises(TooLarge):
        await ground.unpack(gzip.compress(tar_of(member("a", "x")) + bytes(160 * 2**20)))


async def test_too_many_files_are_stopped(ground: Ground) -> None:
    with pytest.raises(TooLarge, match="files"):
        await ground.unpack(packed(*(member(f"f{number}") for number in range(600))))
    with pytest.raises(TooLarge, match="files"):
        await ground.unpack(packed(*(member(f"{number}/{number}/{number}/x") for number in range(200))))


async def test_depth_and_many_links_end(ground: Ground) -> None:
    deep = "d/" * 2000
    await ground.unpack(packed(member(deep), link("loop", "loop"), link("a", "b"), link("b", "a")), limits=DEEP)
    run("rm", "-rf", str(ground.target / "d"))
    with pytest.raises(BadRequest):
        await ground.unpack(packed(member("loop/x", "x")))


@pytest.mark.parametrize(
    "data",
    [b"", b"nonsense" * 1000, gzip.compress(b"nonsense" * 1000), gzip.compress(tar_of(member("a", "x")))[:-20],
     b"\x28\xb5\x2f\xfd" + b"x" * 1000, packed(member("a", "x" * 5000))[:60], b"\x1f\x8b"],
    ids=["nothing", "nonsense", "packed-nonsense", "cut", "zstd-nonsense", "cut-early", "a-head"],
)  # fmt: skip
async def test_damaged_layers_are_refused_or_empty(ground: Ground, data: bytes) -> None:
    try:
        tree = await ground.unpack(data)
    except BadRequest:
        return
    assert data == b""
    assert tree.files == 0


async def test_the_program_that_unpacks_sees_nothing_of_the_host(tmp_path: Path) -> None:
    """Asked from inside: no host files, no network, no capability beyond the four it needs and two to lose."""
    probe = """
import os, socket, json
found = {"roots": sorted(os.listdir("/")), "interfaces": [n for _, n in socket.if_nameindex()], "pid": os.getpid()}
for path in ("/etc/passwd", "/proc/1/status", "/var/lib/cove", "/run/cove", "/root/.ssh", "/sys", "/dev/null"):
    found[path] = os.path.exists(path)
tries = {
    "write": lambda: open("/usr/x", "w"),
    "chroot": lambda: os.chroot("/usr"),
    "raw": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
    "out": lambda: socket.create_connection(("8.8.8.8", 53), 1),
}
for name, act in tries.items():
    try:
        act()
        found[name] = "done"
    except OSError as error:
        found[name] = error.strerror
print(json.dumps(found))
"""
    async with confined(Confinement(argv=(PYTHON, "-I", "-S", "-c", probe))) as (process, _):
        assert process.stdout is not None
        found = json.loads(await process.stdout.read())
    assert found["interfaces"] == ["lo"]
    assert found["pid"] == 1
    for path in ("/etc/passwd", "/proc/1/status", "/var/lib/cove", "/run/cove", "/root/.ssh", "/sys", "/dev/null"):
        assert found[path] is False, path
    assert found["write"] == "Read-only file system"
    assert found["chroot"] == "Operation not permitted"
    assert found["raw"] == "Operation not permitted"
    assert found["out"] == "Network is unreachable"


async def test_our_applying_agrees_with_umocis(tmp_path: Path) -> None:
    """The same layers, by another program: the same tree."""
    layers = [
        Layer(tar_of(member("a/"), member("a/x", "1", mode=0o600, uid=5, gid=6), member("a/y", "2"), link("l", "a"),
                     link("h", "a/y", hard=True), member("d/"), member("d/e/"), member("d/e/f", "3"))),
        Layer(tar_of(member("a/.wh.x"), member("l/through", "4"), member("d/.wh..wh..opq"), member("d/new", "5"))),
        Layer(tar_of(member("a", "now a file"), member("d/new/"), member("deep/er/file", "6"))),
    ]  # fmt: skip
    with running_registry(tmp_path) as registry:
        registry.push("oracle", *layers)
        layout = tmp_path / "layout"
        source = f"docker://{registry.host}/oracle"
        copy = ["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", source, f"oci:{layout}:x"]
        run(*copy)
    theirs = tmp_path / "theirs"
    run(tool("umoci"), "raw", "unpack", "--image", f"{layout}:x", str(theirs))
    ours = Ground(tmp_path / "ours")
    tree = await ours.unpack(*(layer.data for layer in layers))
    theirs.chmod((tmp_path / "ours" / "tree" / "rootfs").stat().st_mode & 0o777)
    assert tree.digest == measure_tree(theirs).digest


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


async def test_an_excess_leaves_nothing_of_the_image(registry: Registry, tmp_path: Path) -> None:
    registry.push("bomb", Layer(gzip.decompress(bomb(160 * 2**20))))
    settings = ImageSettings(insecure_registries=(registry.host,), limits=LIMITS)
    async with open_bench(tmp_path / "p", settings) as bench:
        last = await bench.pull(f"{registry.host}/bomb")
        assert (last.stage, last.error) == (ImageStage.FAILED, "too-large")
        assert not bench.leftovers()
        assert not list((bench.directory / "trees").iterdir())
        blobs = bench.directory.glob("downloads/*/blobs/sha256/*")
        assert sum(blob.stat().st_size for blob in blobs) < 10_000, "the layers are not kept either"


def test_a_hostile_image_gives_its_sandbox_nothing(registry: Registry, new_server: NewServer) -> None:
    """Links at every place that Cove mounts over, setuid root shells, a user that is none: inside, all as usual."""
    busybox = Path(tool("busybox")).read_bytes()
    tools = [
        member("real/"),
        member("bin/"),
        member("bin/busybox", busybox, mode=0o6755),
        *(link(f"bin/{name}", "busybox") for name in ("sh", "ls", "cat", "id", "stat", "readlink", "mount")),
    ]
    hostile = [
        link(name, target)
        for name, target in {
            "dev": "/real", "proc": "real", "sys": "../../../sys", "run": "/", ".agent": "/bin", "tmp": "/proc/1/root",
        }.items()
    ]  # fmt: skip
    registry.push(
        "hostile", Layer(tar_of(*tools, *hostile)), Env=["LD_PRELOAD=/x", "PATH=/bin"], WorkingDir="/nowhere/.."
    )
    server = new_server(COVE_INSECURE_REGISTRIES=registry.host, COVE_POOL_SIZE="0")
    with server.client() as client:
        made = client.post("/sandboxes", json={"image": f"{registry.host}/hostile"})
        if made.status_code != 201:
            assert made.status_code in {400, 500}, made.text
            pytest.fail(f"the sandbox does not start: {made.text}")
        script = "ls /dev; cat /proc/self/uid_map; stat -c %a /bin/busybox; mount | cat; ls /proc | head -3"
        ran = client.post(f"/sandboxes/{made.json()['id']}/exec", json={"command": script})
        out = ran.json()["stdout"]
        assert "null" in out.split(), out
        assert "755" in out.split(), out
        assert str(server.data_dir) not in out
        uid_map = next(line.split() for line in out.splitlines() if line.split()[-1:] == ["65536"])
        assert int(uid_map[1]) > 0

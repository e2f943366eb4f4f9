"""Archives of images, in and out: what other tools write is understood, what they never would is refused.

Nothing of an archive becomes a name on the host. The confined programs are the real ones, without a server around them.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from cove.engine.images.archives import Contents, pick_file, read_archive, write_archive
from cove.engine.images.settings import UnpackLimits
from cove.engine.images.unpack import Tree, measure, unpack_layers
from cove.model.errors import BadRequest, CoveError, TooLarge, Unsupported
from cove.model.image import ImageConfig, ImageInfo
from registry_support import (
    ARCHITECTURE,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    digest_of,
    link,
    member,
    tar_of,
)

pytestmark = pytest.mark.real

LIMITS = UnpackLimits(most_bytes=512 * 1024**2)
LAYER = tar_of(member("etc/"), member("etc/hello", "hi"))


def config_of(*layers: bytes, **more: object) -> bytes:
    facts = {"architecture": ARCHITECTURE, "os": "linux", "config": {"Env": ["A=1"], "Cmd": ["sh"]}, **more}
    return json.dumps({**facts, "rootfs": {"type": "layers", "diff_ids": [digest_of(one) for one in layers]}}).encode()


def tool(*argv: str, stdin: bytes = b"") -> bytes:
    return subprocess.run(argv, input=stdin, capture_output=True, check=True, timeout=60).stdout


def pointer(kind: str, data: bytes, **more: object) -> dict[str, object]:
    return {"mediaType": kind, "digest": digest_of(data), "size": len(data), **more}


def blob(data: bytes) -> tuple[tarfile.TarInfo, bytes]:
    return member(f"blobs/sha256/{digest_of(data)[7:]}", data)


def manifest_of(config: bytes, *layers: bytes) -> bytes:
    pointers = [pointer(OCI_LAYER, layer) for layer in layers]
    return json.dumps({"schemaVersion": 2, "config": pointer(OCI_CONFIG, config), "layers": pointers}).encode()


def index_of(*entries: dict[str, object]) -> bytes:
    return json.dumps({"schemaVersion": 2, "manifests": entries}).encode()


def oci_archive(config: bytes, *layers: bytes) -> bytes:
    manifest = manifest_of(config, *layers)
    index = index_of(pointer(OCI_MANIFEST, manifest))
    blobs = map(blob, (manifest, config, *layers))
    return tar_of(member("oci-layout", '{"imageLayoutVersion": "1.0.0"}'), *blobs, member("index.json", index))


def saved_archive(config: bytes, *layers: tuple[str, bytes]) -> bytes:
    """As `docker save` wrote it before it took up OCI's layout."""
    name = f"{digest_of(config)[7:]}.json"
    saved = [{"Config": name, "RepoTags": ["x:1"], "Layers": [path for path, _ in layers]}]
    parts = [member(path, data) for path, data in layers]
    return tar_of(*parts, member(name, config), member("manifest.json", json.dumps(saved)))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory where the confinement may bind: pytest's own are private to their owner, who is root here."""
    return tmp_path


async def read(place: Path, archive: bytes, limits: UnpackLimits = LIMITS) -> Contents:
    upload, folder = place / "upload", place / "parts"
    upload.write_bytes(archive)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return await read_archive(upload, folder, limits, timeout_s=60)


async def unpacked(place: Path, contents: Contents) -> tuple[Tree, Path]:
    target = place / "tree"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    return await unpack_layers(contents.layers, target, LIMITS, timeout_s=60), target


async def refused(place: Path, archive: bytes, limits: UnpackLimits = LIMITS) -> CoveError:
    with pytest.raises(CoveError) as caught:
        await unpacked(place, await read(place, archive, limits))
    return caught.value


async def test_an_oci_archive_is_read_with_its_configuration(place: Path) -> None:
    second = tar_of(member("etc/.wh.hello"), member("etc/other", "x"))
    found = await read(place, oci_archive(config_of(LAYER, second), LAYER, second))
    _, tree = await unpacked(place, found)
    assert sorted(path.name for path in (tree / "etc").iterdir()) == ["other"]
    assert (found.config.env["A"], found.config.command) == ("1", ("sh",))


async def test_an_index_below_the_index_is_followed_to_this_machine(place: Path) -> None:
    config = config_of(LAYER)
    manifest = manifest_of(config, LAYER)
    other = {"platform": {"architecture": "s390x", "os": "linux"}}
    mine = {"platform": {"architecture": ARCHITECTURE, "os": "linux"}}
    inner = index_of(pointer(OCI_MANIFEST, b"elsewhere", **other), pointer(OCI_MANIFEST, manifest, **mine))
    outer = index_of(pointer(OCI_INDEX, inner))
    archive = tar_of(
        member("oci-layout", "{}"), member("index.json", outer), *map(blob, (inner, manifest, config, LAYER))
    )
    assert len((await read(place, archive)).layers) == 1


async def test_what_docker_save_wrote_is_read_also_packed(place: Path) -> None:
    archive = saved_archive(config_of(LAYER), (f"{'a' * 64}/layer.tar", LAYER))
    for sent in (archive, gzip.compress(archive)):
        _, tree = await unpacked(place, await read(place, sent))
        assert (tree / "etc/hello").read_text() == "hi"


async def test_a_layer_that_docker_saved_as_a_link_is_found(place: Path) -> None:
    config = config_of(LAYER, LAYER)
    one, two = f"{'a' * 64}/layer.tar", f"{'b' * 64}/layer.tar"
    saved = [{"Config": f"{'c' * 64}.json", "Layers": [one, two]}]
    archive = tar_of(
        member(f"{'a' * 64}/"),
        member(one, LAYER),
        link(two, f"../{one}"),
        member(f"{'c' * 64}.json", config),
        member("manifest.json", json.dumps(saved)),
    )
    found = await read(place, archive)
    assert found.layers[0].path == found.layers[1].path


async def test_a_tar_of_a_file_system_is_an_image_as_it_is(place: Path) -> None:
    found = await read(place, gzip.compress(tar_of(member("manifest.json", "[]"), member("bin/sh", "x"))))
    _, tree = await unpacked(place, found)
    assert sorted(path.name for path in tree.iterdir()) == ["bin", "manifest.json"]
    assert "PATH" in found.config.env


async def test_an_archive_of_zstd_is_read(place: Path) -> None:
    packed = tool("zstd", "-qc", stdin=tar_of(member("a", "x")))
    _, tree = await unpacked(place, await read(place, packed))
    assert (tree / "a").read_text() == "x"


async def test_parts_that_are_not_what_their_digests_say_are_refused(place: Path) -> None:
    config, wrong = config_of(LAYER), tar_of(member("etc/evil", "x"))
    manifest = manifest_of(config, LAYER)
    for name, data in ((manifest, manifest + b" "), (config, config + b" "), (LAYER, wrong)):
        parts = [
            member(f"blobs/sha256/{digest_of(one)[7:]}", data if one is name else one)
            for one in (manifest, config, LAYER)
        ]
        index = index_of(pointer(OCI_MANIFEST, manifest))
        error = await refused(place, tar_of(member("oci-layout", "{}"), member("index.json", index), *parts))
        assert type(error) is BadRequest
        assert "digest" in error.public


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../etc/passwd", f"{'b' * 64}/layer.tar"])
async def test_a_layer_that_points_out_of_the_archive_is_not_followed(place: Path, target: str) -> None:
    name = f"{'a' * 64}/layer.tar"
    saved = [{"Config": f"{'c' * 64}.json", "Layers": [name]}]
    parts = (member(f"{'c' * 64}.json", config_of(LAYER)), member("manifest.json", json.dumps(saved)))
    assert "lacks a part" in (await refused(place, tar_of(link(name, target), *parts))).public


async def test_links_in_a_ring_end(place: Path) -> None:
    one, two = f"{'a' * 64}/layer.tar", f"{'b' * 64}/layer.tar"
    saved = [{"Config": f"{'c' * 64}.json", "Layers": [one]}]
    parts = (member(f"{'c' * 64}.json", config_of(LAYER)), member("manifest.json", json.dumps(saved)))
    assert (
        "lacks a part" in (await refused(place, tar_of(link(one, f"../{two}"), link(two, f"../{one}"), *parts))).public
    )


async def test_indexes_in_a_ring_end(place: Path) -> None:
    # No index can name its own digest: a chain longer than any honest one stands for the ring.
    chain = [index_of(pointer(OCI_MANIFEST, b"nothing"))]
    for _ in range(10):
        chain.append(index_of(pointer(OCI_INDEX, chain[-1])))
    archive = tar_of(member("oci-layout", "{}"), member("index.json", chain[-1]), *map(blob, chain[:-1]))
    assert "nested" in (await refused(place, archive)).public


@pytest.mark.parametrize(
    "archive",
    [
        b"no archive at all" * 1000,
        tar_of(member("manifest.json", "[]")),
        tar_of(member("manifest.json", "[{}]")),
        tar_of(member("manifest.json", "{" * 200_000)),
        tar_of(member("oci-layout", "{}"), member("index.json", "null")),
        tar_of(member("oci-layout", "{}"), member("index.json", '{"schemaVersion": 2}')),
        gzip.compress(LAYER)[:-20],
        LAYER[:700],
    ],
)
async def test_nonsense_is_refused_in_words(place: Path, archive: bytes) -> None:
    error = await refused(place, archive)
    assert isinstance(error, BadRequest)
    assert str(place) not in error.public


async def test_two_images_at_once_and_another_machines_are_refused(place: Path) -> None:
    saved = tar_of(member("manifest.json", json.dumps([{"Config": "a", "Layers": []}] * 2)))
    assert "2 images" in (await refused(place, saved)).public
    foreign = await refused(place, oci_archive(config_of(LAYER, architecture="s390x"), LAYER))
    assert isinstance(foreign, Unsupported)


async def test_bombs_end_at_the_limits(place: Path) -> None:
    limits = UnpackLimits(most_bytes=64 * 1024**2, most_ratio=10)
    zeros = gzip.compress(oci_archive(config_of(LAYER), bytes(150 * 1024**2)), 1)
    assert isinstance(await refused(place, zeros, limits), TooLarge)
    assert isinstance(await refused(place, oci_archive(config_of(LAYER), bytes(70 * 1024**2)), limits), TooLarge)
    many = tar_of(*(member(f"{number:064x}.json", "{}") for number in range(4100)))
    assert isinstance(await refused(place, many), TooLarge)


async def test_one_file_is_picked_out_of_a_context(place: Path) -> None:
    upload = place / "upload"
    upload.write_bytes(tar_of(member("./a/Dockerfile", "one"), member("a/Dockerfile", "two"), member("b", "x")))
    for number, name in enumerate(("a/Dockerfile", "./a//Dockerfile", "/a/x/../Dockerfile")):
        folder = place / str(number)
        folder.mkdir()
        assert await pick_file(upload, folder, name, LIMITS, timeout_s=60) == b"two"
    (folder := place / "none").mkdir()
    with pytest.raises(BadRequest, match="have no c"):
        await pick_file(upload, folder, "c", LIMITS, timeout_s=60)
    upload.write_bytes(tar_of(member("big", bytes(1024**2 + 1))))
    (folder := place / "big").mkdir()
    with pytest.raises(TooLarge):
        await pick_file(upload, folder, "big", LIMITS, timeout_s=60)
    upload.write_bytes(tar_of(link("Dockerfile", "/etc/passwd")))
    (folder := place / "link").mkdir()
    with pytest.raises(BadRequest):
        await pick_file(upload, folder, "Dockerfile", LIMITS, timeout_s=60)


def _hostile_tree(top: Path) -> None:
    deep = top / "d"
    deep.mkdir(mode=0o711)
    (deep / "plain").write_text("x")
    (deep / "secret").write_text("y")
    (deep / "secret").chmod(0)
    os.chown(deep / "secret", 1000, 1001)
    os.link(deep / "plain", deep / "again")
    (deep / "line\nbreak").write_text("z")
    (deep / ("n" * 255)).write_text("long")
    with open(os.fsencode(deep) + b"/\xff\xfe", "w") as file:  # noqa: PTH123 - a name in bytes
        file.write("bytes")
    (deep / "out").symlink_to("/etc/passwd")
    (deep / "up").symlink_to("../../../etc")
    (deep / "empty").mkdir(mode=0o1777)
    (deep / "empty").chmod(0o1777)
    os.setxattr(deep / "plain", "user.note", b"kept\xff\n")
    top.chmod(0o750)


async def test_an_export_comes_back_as_the_same_tree_and_other_tools_take_it(place: Path) -> None:
    top = place / "rootfs"
    top.mkdir()
    _hostile_tree(top)
    before = await measure(top, timeout_s=60)
    config = ImageConfig(
        env={"PATH": "/bin", "A": "b c"}, workdir="/d", user="1000", entrypoint=("x",), labels={"l": "1"}
    )
    image = ImageInfo(name="localhost/mine:v1", digest=before.digest, size_bytes=1, config=config)
    archives: list[bytes] = []
    for number in range(2):
        folder = place / f"out{number}"
        folder.mkdir()
        export = await write_archive(image, top, folder, timeout_s=60)
        archives.append(b"".join([piece async for piece in export]))
        assert len(archives[-1]) == export.size_bytes
    assert archives[0] == archives[1], "two exports of one image differ"
    (place / "a.tar").write_bytes(archives[0])
    described = tool("skopeo", "inspect", "--config", f"oci-archive:{place}/a.tar:v1")
    assert json.loads(described)["config"]["User"] == "1000"
    found = await read(place, archives[0])
    after, tree = await unpacked(place, found)
    assert (after.digest, found.config) == (before.digest, config)
    assert os.getxattr(tree / "d/plain", "user.note") == b"kept\xff\n"
    assert (tree / "d/plain").stat().st_ino == (tree / "d/again").stat().st_ino


async def test_what_docker_would_save_of_an_export_comes_back_too(place: Path) -> None:
    (place / "saved").mkdir()
    (place / "a.tar").write_bytes(oci_archive(config_of(LAYER), LAYER))
    tool("skopeo", "copy", "--insecure-policy", f"oci-archive:{place}/a.tar", f"docker-archive:{place}/d.tar:x:1")
    _, tree = await unpacked(place, await read(place, (place / "d.tar").read_bytes()))
    assert (tree / "etc/hello").read_text() == "hi"
    with tarfile.open(fileobj=io.BytesIO((place / "d.tar").read_bytes())) as tar:
        assert "manifest.json" in tar.getnames()

"""How fast layers become a tree: the confined unpacker alone, on the disk that images lie on."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
from pathlib import Path

from bench.common import MIB, Report, timed
from cove.engine.images.settings import UnpackLimits
from cove.engine.images.unpack import LayerFile, unpack_layers

LIMITS = UnpackLimits(most_bytes=8 * 1024 * MIB, most_files=1_000_000, most_ratio=1000)


def bench_unpack(report: Report, setup_dir: Path) -> None:
    """The image `base` as one gzip layer, and one large file; start of the program, unpacking, digest and sync."""
    base = (setup_dir / "images" / "base" / "current" / "rootfs").resolve()
    with tempfile.TemporaryDirectory(dir=setup_dir) as name:
        folder = Path(name)
        many, large = folder / "many.tar.gz", folder / "large.tar.gz"
        _pack(base, many)
        content = folder / "content"
        content.mkdir()
        with (content / "large").open("wb") as file:
            for library in sorted(base.rglob("*.so*"))[:400]:
                file.write(library.read_bytes() if library.is_file() else b"")
        _pack(content, large)
        for what, layer in (("many small files (base)", many), ("one large file", large)):
            rates = [_rate(folder, layer) for _ in range(3)]
            best = sorted(rates)[1]
            report.add(f"unpack a layer, {what}", ">= 100 MB/s", f"{best:.0f} MB/s", ok=best >= 100)


def _pack(tree: Path, target: Path) -> None:
    subprocess.run(["tar", "-C", str(tree), "--use-compress-program=gzip -1", "-cf", str(target), "."], check=True)


def _rate(folder: Path, layer: Path) -> float:
    target = folder / "target"
    target.mkdir()
    sizes: list[int] = []

    async def unpack() -> None:
        tree = await unpack_layers([LayerFile(path=layer)], target, LIMITS, timeout_s=300)
        sizes.append(tree.size_bytes)

    took = timed(lambda: asyncio.run(unpack()))
    shutil.rmtree(target)
    return sizes[0] / 1_000_000 / took

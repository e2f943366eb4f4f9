"""Which storage of writable layers is taken, without mounting any."""

from __future__ import annotations

from pathlib import Path

import pytest

from cove.engine import layers, mountedlayers
from cove.model.errors import EngineFailure


def test_without_a_loop_device_layers_lie_in_memory_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_loop(*argv: str) -> str:
        raise EngineFailure(f"{argv[0]} failed")

    for module in (layers, mountedlayers):
        monkeypatch.setattr(module, "run_tool", no_loop)
    monkeypatch.setattr(layers.btrfs, "is_btrfs", lambda _: False)
    store, missing = layers.open_layers("auto", tmp_path, 512 * 1024**2)
    assert store.kind == "tmpfs"
    assert [sentence.split(":")[0] for sentence in missing] == ["disk limits by btrfs", "disk limits by ext4"]
    with pytest.raises(EngineFailure):
        layers.open_layers("ext4", tmp_path, 0)

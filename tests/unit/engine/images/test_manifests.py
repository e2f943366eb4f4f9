"""Manifests and configurations of strangers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.engine.images import manifests
from cove.model.errors import BadRequest, CoveError, Unsupported

DIGEST = "sha256:" + "0" * 64
HERE = manifests.machine_architecture()


def manifest(**changes: object) -> bytes:
    whole: dict[str, object] = {"schemaVersion": 2, "config": {"digest": DIGEST}, "layers": [{"digest": DIGEST}]}
    return json.dumps({**whole, **changes}).encode()


def config(run: dict[str, object] | None = None, **changes: object) -> bytes:
    whole: dict[str, object] = {
        "architecture": HERE,
        "os": "linux",
        "rootfs": {"diff_ids": [DIGEST]},
        "config": run or {},
    }
    return json.dumps({**whole, **changes}).encode()


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"[]", b"null", b"{", b'{"schemaVersion": "2"}', manifest(config={"digest": "../../etc/passwd"}),
        manifest(layers=[{"digest": "sha256:" + "g" * 64}]), manifest(layers=[{"digest": DIGEST, "size": -1}]),
        manifest(layers=[{"digest": DIGEST}] * 128), manifest(config=None),
        manifest(config={"digest": DIGEST, "mediaType": "application/vnd.cncf.helm.config.v1+json"}),
        b" " * (manifests.MAX_MANIFEST + 1),
    ],
)  # fmt: skip
def test_a_bad_manifest_is_a_bad_request(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        manifests.read_manifest(raw)


def test_the_old_manifest_format_is_not_supported() -> None:
    with pytest.raises(Unsupported):
        manifests.read_manifest(b'{"schemaVersion": 1}')


def test_of_an_index_this_machines_entry_is_taken() -> None:
    other, own = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    entries = [
        {"digest": other, "platform": {"os": "linux", "architecture": "s390x"}},
        {"digest": other, "platform": {"os": "windows", "architecture": HERE}},
        {"digest": other, "platform": {"os": "linux", "architecture": HERE, "variant": "v99"}},
        {"digest": own, "platform": {"os": "linux", "architecture": HERE}},
    ]
    index = manifests.read_manifest(json.dumps({"schemaVersion": 2, "manifests": entries}).encode())
    assert manifests.choose_platform(index).digest == own
    index = manifests.read_manifest(json.dumps({"schemaVersion": 2, "manifests": entries[:3]}).encode())
    with pytest.raises(Unsupported):
        manifests.choose_platform(index)


def test_what_a_configuration_says_about_running_is_kept() -> None:
    run: dict[str, object] = {
        "Env": ["A=b=c", "PATH=/own", "nonsense", "=x"],
        "User": "1000:1000",
        "WorkingDir": "srv/../app",
        "Entrypoint": ["/bin/app"],
        "Cmd": ["-v"],
        "Labels": {"k": "v"},
    }
    found = manifests.image_config(manifests.read_configuration(config(run), layers=1))
    assert found.env == {"A": "b=c", "PATH": "/own"}
    assert (found.user, found.workdir) == ("1000:1000", "/app")
    assert (found.entrypoint, found.command, found.labels) == (("/bin/app",), ("-v",), {"k": "v"})


def test_an_empty_configuration_gets_the_usual_path() -> None:
    raw = config(config={"Env": None, "Cmd": None, "Entrypoint": None, "WorkingDir": "", "User": ""})
    found = manifests.image_config(manifests.read_configuration(raw, layers=1))
    assert (found.env, found.workdir, found.user) == ({"PATH": manifests.DEFAULT_PATH}, "/", None)


@pytest.mark.parametrize(
    "raw",
    [
        config(rootfs={"diff_ids": []}), config(rootfs={"diff_ids": ["x"]}), config({"Env": ["A=\0"]}),
        config({"Env": ["A=b"] * 2000}), config({"Cmd": ["x" * 70000]}), config({"Env": "A"}), b"[]",
        config({"Labels": {"a": 1}}),
    ],
)  # fmt: skip
def test_a_bad_configuration_is_a_bad_request(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        manifests.image_config(manifests.read_configuration(raw, layers=1))


@pytest.mark.parametrize("changes", [{"architecture": "s390x"}, {"os": "windows"}])
def test_an_image_for_another_machine_is_not_supported(changes: dict[str, object]) -> None:
    with pytest.raises(Unsupported):
        manifests.read_configuration(config(**changes), layers=1)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.fixed_dictionaries(
        {"schemaVersion": st.sampled_from([1, 2, 3])},
        optional={"config": json_values, "layers": json_values, "manifests": json_values, "mediaType": json_values},
    )
)
def test_any_json_is_a_manifest_or_refused(value: dict[str, object]) -> None:
    try:
        manifests.read_manifest(json.dumps(value).encode())
    except CoveError:
        return

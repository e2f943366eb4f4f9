from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cove.core import validation
from cove.model.errors import BadRequest, TooLarge
from cove.model.execs import ExecSpec
from cove.model.request import Idempotency, SandboxChange
from cove.model.sandbox import MIB, Limits, SandboxSpec

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("cpus", [0, 0.01, -1, 65, NAN, INF, -INF]),
        ("memory_bytes", [0, -1, 31 * MIB, 2**63, 10**30]),
        ("disk_bytes", [0, 15 * MIB, -(2**63)]),
        ("pids", [0, 15, 65537, -5]),
        ("io_read_bps", [0, -1, 2**62]),
        ("io_write_bps", [0, 1]),
    ],
)
def test_limits_out_of_range_are_refused_by_name(field: str, values: list[float]) -> None:
    for value in values:
        with pytest.raises(BadRequest) as caught:
            validation.check_spec(SandboxSpec(limits=replace(Limits(), **{field: value})))
        assert caught.value.field == field


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (SandboxSpec(name="Upper"), "name"),
        (SandboxSpec(name="-a"), "name"),
        (SandboxSpec(name="a" * 64), "name"),
        (SandboxSpec(name="0123456789abcdef"), "name"),
        (SandboxSpec(hostname="a.b"), "hostname"),
        (SandboxSpec(hostname=""), "hostname"),
        (SandboxSpec(image=""), "image"),
        (SandboxSpec(image="a\0b"), "image"),
        (SandboxSpec(image="x" * 256), "image"),
        (SandboxSpec(driver="\x1b[31m"), "driver"),
        (SandboxSpec(timeout_s=0.5), "timeout_s"),
        (SandboxSpec(timeout_s=NAN), "timeout_s"),
        (SandboxSpec(timeout_s=1e12), "timeout_s"),
        (SandboxSpec(idle_timeout_s=-1.0), "idle_timeout_s"),
        (SandboxSpec(env={"1A": "x"}), "env"),
        (SandboxSpec(env={"": "x"}), "env"),
        (SandboxSpec(env={"A=B": "x"}), "env"),
        (SandboxSpec(env={"A": "a\0b"}), "env"),
        (SandboxSpec(env={"A": "\ud800"}), "env"),
        (SandboxSpec(env={"A": "x" * 131073}), "env"),
        (SandboxSpec(env={f"A{n}": "" for n in range(1001)}), "env"),
        (SandboxSpec(metadata={"": "v"}), "metadata"),
        (SandboxSpec(metadata={"k" * 64: "v"}), "metadata"),
        (SandboxSpec(metadata={"k": "v" * 1025}), "metadata"),
        (SandboxSpec(metadata={"k": "a\0"}), "metadata"),
        (SandboxSpec(metadata={f"k{n}": "" for n in range(65)}), "metadata"),
    ],
)
def test_a_bad_spec_names_its_field(spec: SandboxSpec, field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        validation.check_spec(spec)
    assert caught.value.field == field


def test_the_widest_legal_spec_is_taken() -> None:
    limits = Limits(cpus=64.0, memory_bytes=1048576 * MIB, disk_bytes=16 * MIB, pids=65536, io_read_bps=MIB)
    env = {"A_1": "x" * 1000, "_": ""}
    validation.check_spec(SandboxSpec(limits=limits, env=env, name="a" * 63, hostname="h-1", timeout_s=1.0))


def test_an_error_never_repeats_a_value_of_the_environment() -> None:
    for env in ({"SECRET": "hunter2\0"}, {"SECRET": "hunter2" * 100_000}, {"SECRET": "hunter2\ud800"}):
        with pytest.raises(BadRequest) as caught:
            validation.check_env(env)
        assert "hunter2" not in str(caught.value) + caught.value.internal


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (ExecSpec(), "command"),
        (ExecSpec(argv=()), "command"),
        (ExecSpec(argv=("",)), "command"),
        (ExecSpec(shell=""), "command"),
        (ExecSpec(argv=("a",), shell="a"), "command"),
        (ExecSpec(argv=("a", "b\0c")), "command"),
        (ExecSpec(shell="x" * 131072), "command"),
        (ExecSpec(argv=("x" * 100_000,) * 6), "command"),
        (ExecSpec(shell="a", cwd="relative"), "cwd"),
        (ExecSpec(shell="a", cwd="/a/../b"), "cwd"),
        (ExecSpec(shell="a", user="root:x"), "user"),
        (ExecSpec(shell="a", user="-x"), "user"),
        (ExecSpec(shell="a", user="a b"), "user"),
        (ExecSpec(shell="a", timeout_s=0.0), "timeout_s"),
        (ExecSpec(shell="a", timeout_s=INF), "timeout_s"),
        (ExecSpec(shell="a", stdin=b"x" * (16 * MIB + 1)), "stdin"),
        (ExecSpec(shell="a", output_limit_bytes=-1), "output_limit_bytes"),
        (ExecSpec(shell="a", env={"a b": ""}), "env"),
    ],
)
def test_a_bad_command_names_its_field(spec: ExecSpec, field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        validation.check_exec(spec)
    assert caught.value.field == field


@pytest.mark.parametrize("user", ["root", "1000", "1000:1000", "www-data", "_apt"])
def test_users_are_names_or_ids(user: str) -> None:
    validation.check_exec(ExecSpec(shell="a", user=user))


@pytest.mark.parametrize("path", ["", "a", "./a", "/a/../b", "/..", "/a\0b", "/" + "x" * 4096, "/\ud800"])
def test_bad_paths_are_refused(path: str) -> None:
    with pytest.raises(BadRequest) as caught:
        validation.check_path(path)
    assert caught.value.field == "path"


@pytest.mark.parametrize("path", ["/", "/a", "/a b", "/a/..b", "/...", "/ü\n", "/a//b/"])
def test_odd_but_legal_paths_pass(path: str) -> None:
    validation.check_path(path)


@given(st.text(max_size=300))
def test_any_text_as_a_name_is_taken_or_refused_and_nothing_else(text: str) -> None:
    try:
        validation.check_name(text, "name")
    except BadRequest:
        return
    assert 1 <= len(text) <= 63
    assert text == text.lower()


@given(st.text(max_size=300), st.text(max_size=70))
def test_any_text_as_a_key_is_taken_or_refused(key: str, body: str) -> None:
    try:
        validation.check_idempotency(Idempotency(key=key, body_sha256=body))
    except BadRequest:
        return
    assert key.isascii()
    assert len(body) == 64


def test_changes_are_held_to_the_same_ranges() -> None:
    for change in (
        SandboxChange(cpus=0.0),
        SandboxChange(memory_bytes=1),
        SandboxChange(pids=1),
        SandboxChange(name="No"),
        SandboxChange(timeout_s=0.0),
        SandboxChange(idle_timeout_s=NAN),
        SandboxChange(metadata={"k": "v" * 2000}),
    ):
        with pytest.raises(BadRequest):
            validation.check_change(change)
    validation.check_change(SandboxChange(timeout_s=None, idle_timeout_s=None, metadata={"k": None}))


def test_sizes_are_told_apart_from_forms() -> None:
    with pytest.raises(TooLarge):
        validation.check_metadata({"k": "v" * 2000})

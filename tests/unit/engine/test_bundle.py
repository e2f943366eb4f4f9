"""The OCI bundle and the seccomp profile: what a security reviewer would look for, held by test."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cove.engine import seccomp
from cove.engine.cgroup import OWN_PIDS
from cove.engine.oci import bundle
from cove.model.sandbox import MIB, Limits

SPEC = bundle.BundleSpec(
    hostname="otter",
    rootfs=Path("/r"),
    agent=Path("/a"),
    socket_dir=Path("/s"),
    uid_base=0x70000000,
    cgroup_path="/cove/x/y",
    limits=Limits(cpus=1.5, memory_bytes=256 * MIB, pids=99, io_write_bps=1000),
    io_device="7:1",
)


@pytest.fixture
def config() -> dict[str, Any]:
    return bundle.build(SPEC)


def test_every_namespace_is_new_and_none_is_joined(config: dict[str, Any]) -> None:
    namespaces = config["linux"]["namespaces"]
    assert {n["type"] for n in namespaces} == {"pid", "ipc", "uts", "mount", "network", "user", "cgroup"}
    assert all("path" not in n for n in namespaces)


def test_root_inside_maps_to_the_boxs_own_range(config: dict[str, Any]) -> None:
    for kind in ("uidMappings", "gidMappings"):
        assert config["linux"][kind] == [{"containerID": 0, "hostID": 0x70000000, "size": 65536}]


def test_privileges_cannot_grow(config: dict[str, Any]) -> None:
    process = config["process"]
    assert process["noNewPrivileges"] is True
    assert not {"CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_PTRACE", "CAP_MKNOD"} & set(
        bundle.CAPABILITIES
    )
    assert "inheritable" not in process["capabilities"]
    assert "ambient" not in process["capabilities"]


def test_limits_stand_in_the_resources(config: dict[str, Any]) -> None:
    resources = config["linux"]["resources"]
    assert resources["memory"] == {"limit": 256 * MIB, "swap": 256 * MIB}
    assert resources["cpu"] == {"quota": 150_000, "period": 100_000}
    assert resources["pids"] == {"limit": 99 + OWN_PIDS}
    assert resources["devices"] == [{"allow": False, "access": "rwm"}]
    assert resources["blockIO"] == {"throttleWriteBpsDevice": [{"major": 7, "minor": 1, "rate": 1000}]}


def test_a_box_with_a_kernel_of_its_own_counts_its_processes_itself() -> None:
    plain, own = (bundle.build(msgspec.structs.replace(SPEC, own_kernel=own)) for own in (False, True))
    counted = {limit["type"]: limit["soft"] for limit in own["process"]["rlimits"]}
    assert counted["RLIMIT_NPROC"] == 99 + OWN_PIDS
    assert own["linux"]["resources"]["pids"]["limit"] > 2 * (99 + OWN_PIDS)
    assert "RLIMIT_NPROC" not in {limit["type"] for limit in plain["process"]["rlimits"]}
    assert plain["linux"]["resources"]["memory"] == own["linux"]["resources"]["memory"]


def test_inside_a_kernel_of_its_own_the_filter_says_what_that_kernel_understands() -> None:
    rules = seccomp.profile(own_kernel=True)["syscalls"]
    assert rules[0]["action"] == "SCMP_ACT_ERRNO"
    assert rules[0]["args"] == [{"index": 0, "value": 0xFFFFFFFF, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ"}]
    assert "kill" in rules[0]["names"]
    assert [rule["action"] for rule in rules if "clone3" in rule["names"]] == ["SCMP_ACT_TRACE"]
    assert not [rule for rule in rules if "errnoRet" in rule]


def test_no_rlimit_is_above_our_own(config: dict[str, Any]) -> None:
    for limit in config["process"]["rlimits"]:
        hard = resource.getrlimit(getattr(resource, limit["type"]))[1]
        assert hard == resource.RLIM_INFINITY or limit["hard"] <= hard


def test_nothing_of_the_host_is_mounted_but_agent_and_socket(config: dict[str, Any]) -> None:
    binds = [m for m in config["mounts"] if m["type"] == "bind"]
    assert {m["destination"] for m in binds} == {"/.agent/agent", "/run/agent"}
    agent = next(m for m in binds if m["destination"] == "/.agent/agent")
    assert "ro" in agent["options"]
    assert all("nosuid" in m["options"] for m in config["mounts"])
    assert "cgroup" not in {m["type"] for m in config["mounts"]}


def test_the_default_of_the_profile_is_refusal() -> None:
    profile = seccomp.profile()
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert profile["defaultErrnoRet"] == 1


@pytest.mark.parametrize(
    "call",
    [
        "mount",
        "umount2",
        "unshare",
        "setns",
        "pivot_root",
        "bpf",
        "keyctl",
        "add_key",
        "request_key",
        "io_uring_setup",
        "userfaultfd",
        "perf_event_open",
        "open_by_handle_at",
        "name_to_handle_at",
        "fsopen",
        "move_mount",
        "open_tree",
        "mount_setattr",
        "init_module",
        "finit_module",
        "kexec_load",
        "reboot",
        "swapon",
        "quotactl",
        "syslog",
        "acct",
        "iopl",
        "ioperm",
        "settimeofday",
    ],
)
def test_dangerous_calls_are_not_on_the_list(call: str) -> None:
    assert call not in seccomp.ALLOWED


def test_clone_and_socket_are_only_allowed_with_a_condition() -> None:
    assert not {"clone", "clone3", "socket", "personality"} & set(seccomp.ALLOWED)
    rules = seccomp.profile()["syscalls"]
    for name in ("clone", "socket", "personality"):
        assert all(r.get("args") for r in rules if name in r["names"])
    assert [r["errnoRet"] for r in rules if "clone3" in r["names"]] == [38]


def test_a_container_has_no_sysfs_and_sees_only_processors_of_it() -> None:
    shown = ("/sys/devices/system/cpu",)
    mounts = bundle.build(msgspec.structs.replace(SPEC, shown=shown))["mounts"]
    below_sys = {mount["destination"]: mount for mount in mounts if mount["destination"].startswith("/sys")}
    assert set(below_sys) == {"/sys", *shown}
    assert below_sys["/sys"]["type"] == "tmpfs"
    assert all({"ro", "nosuid", "nodev", "noexec"} <= set(mount["options"]) for mount in below_sys.values())


def test_a_kernel_of_its_own_has_a_sysfs_of_its_own() -> None:
    spec = msgspec.structs.replace(SPEC, own_kernel=True, shown=("/sys/devices/system/cpu",))
    below_sys = [m for m in bundle.build(spec)["mounts"] if m["destination"].startswith("/sys")]
    assert [(m["destination"], m["type"]) for m in below_sys] == [("/sys", "sysfs")]

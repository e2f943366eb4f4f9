"""Attacks from inside a sandbox against the host: group A of the attack list, each tried for real."""

from __future__ import annotations

from collections.abc import Callable

import httpx2
import pytest

pytestmark = pytest.mark.real

Run = Callable[[str], tuple[int, str]]


@pytest.fixture
def run(client: httpx2.Client, sandbox: str) -> Run:
    """Run a shell script inside; (exit code, both streams)."""

    def call(script: str) -> tuple[int, str]:
        answer = client.post(f"/sandboxes/{sandbox}/exec", json={"command": script, "timeout_s": 30})
        assert answer.status_code == 200, answer.text
        body = answer.json()
        return body["exit_code"], body["stdout"] + body["stderr"]

    return call


def test_no_mount_can_be_made(run: Run) -> None:
    code, _ = run("mount -t tmpfs none /mnt || mount --bind / /mnt || mount -o remount,rw /proc")
    assert code != 0


def test_no_namespace_can_be_made_or_entered(run: Run) -> None:
    for script in ("unshare -U true", "unshare -r id", "nsenter -t 1 -m true"):
        assert run(script)[0] != 0, script


def test_init_is_the_agent_and_its_program_cannot_be_written(run: Run) -> None:
    code, text = run("cat /proc/1/comm; echo x > /.agent/agent")
    assert "agent" in text
    assert code != 0
    code, _ = run("echo x > /proc/1/exe")
    assert code != 0
    code, _ = run("rm -f /.agent/agent || mv /.agent/agent /tmp/a")
    assert code != 0


def test_a_command_inherits_only_its_three_streams(run: Run) -> None:
    code, text = run("ls -l /proc/self/fd")
    assert code == 0
    numbers = {line.split()[8] for line in text.splitlines() if "->" in line}
    # 3 is the directory that ls itself opened.
    assert numbers <= {"0", "1", "2", "3"}


def test_the_agent_cannot_be_traced_or_read(run: Run) -> None:
    attach = "import ctypes; l=ctypes.CDLL(None,use_errno=True); print(l.ptrace(16,1,0,0), ctypes.get_errno())"
    assert run(f'python3 -c "{attach}"') == (0, "-1 1\n")
    for name in ("mem", "environ", "maps"):
        assert run(f"cat /proc/1/{name}")[0] != 0, name
    for name in ("root", "cwd", "exe", "fd/3", "fd/4"):
        assert run(f"readlink /proc/1/{name}")[0] != 0, name


def test_kernel_switches_cannot_be_written(run: Run) -> None:
    for path in (
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sysrq-trigger",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sys/fs/binfmt_misc/register",
        "/sys/kernel/uevent_helper",
    ):
        code, _ = run(f"echo x > {path}")
        assert code != 0, path


def test_no_cgroup_file_system_is_there_to_write(run: Run) -> None:
    code, _ = run("find / -xdev -name release_agent 2>/dev/null | grep . || ls /sys/fs/cgroup/* 2>/dev/null | grep .")
    assert code != 0
    code, text = run("grep -c cgroup /proc/self/mounts")
    assert text.strip() == "0", code


def test_devices_cannot_be_made_or_opened(run: Run) -> None:
    for kind, major, minor in (("b", 8, 0), ("b", 7, 0), ("c", 1, 1), ("c", 1, 11), ("c", 10, 232), ("c", 10, 229)):
        code, _ = run(f"rm -f /tmp/d; mknod /tmp/d {kind} {major} {minor} && head -c1 /tmp/d")
        assert code != 0, (kind, major, minor)
    code, text = run("ls /dev")
    assert code == 0
    known = {"console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin"}
    assert set(text.split()) <= known | {"stdout", "tty", "urandom", "zero"}


def test_capabilities_are_the_ten_and_no_privilege_can_be_gained(run: Run) -> None:
    _, text = run("grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status")
    status = dict(line.split(":\t") for line in text.splitlines())
    assert status["CapEff"] == "00000000000405fb"
    assert status["CapBnd"] == "00000000000405fb"
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


def test_setuid_programs_give_nothing(run: Run) -> None:
    code, text = run("cp /usr/bin/id /tmp/id && chmod 4755 /tmp/id && su -s /bin/sh nobody -c '/tmp/id -u' || true")
    assert code == 0
    assert text.strip().splitlines()[-1] != "0"


def test_only_loopback_exists_and_nothing_outside_answers(run: Run) -> None:
    _, text = run("cat /proc/net/dev | tail -n +3 | cut -d: -f1")
    assert text.split() == ["lo"]
    for address in ("169.254.169.254", "10.0.0.1", "192.168.0.1", "8.8.8.8"):
        code, _ = run(f"timeout 3 bash -c 'echo > /dev/tcp/{address}/80'")
        assert code != 0, address


def test_abstract_sockets_of_the_host_are_out_of_reach(run: Run) -> None:
    _, text = run("cat /proc/net/unix | grep -c '@'")
    assert text.strip() == "0"


def test_core_dumps_reach_neither_the_disk_nor_a_handler_of_the_host(run: Run) -> None:
    # core(5): a limit of exactly 1 also stops a dump into a pipe; 0 would not.
    probe = "import resource as r; print(r.getrlimit(r.RLIMIT_CORE)); r.setrlimit(r.RLIMIT_CORE, (0, 0))"
    code, text = run(f'python3 -c "{probe}"')
    assert text.startswith("(1, 1)"), text
    assert code != 0, "the limit can be changed"
    code, _ = run("ulimit -n 100; cd /root; sh -c 'kill -SEGV $$'; ls /root | grep core")
    assert code != 0


def test_identities_of_the_host_do_not_leak(run: Run) -> None:
    import os
    import socket

    _, text = run(
        "hostname; cat /etc/hostname /etc/hosts /proc/sys/kernel/hostname /proc/1/cgroup /proc/self/mountinfo"
    )
    assert socket.gethostname() not in text.split()
    assert os.uname().nodename not in text.split()
    assert "/var/lib/cove" not in text
    assert "/run/cove" not in "".join(line for line in text.splitlines() if " overlay " in line)


def test_masked_files_are_empty(run: Run) -> None:
    for name in ("kcore", "keys", "timer_list", "kallsyms", "config.gz", "slabinfo", "cmdline", "partitions"):
        _, text = run(f"head -c 64 /proc/{name} 2>/dev/null | wc -c")
        assert text.strip() == "0", name
    for path in ("/sys/firmware", "/sys/kernel", "/proc/scsi"):
        _, text = run(f"ls -A {path} 2>/dev/null | wc -l")
        assert text.strip() == "0", path


def test_the_kernel_log_cannot_be_read(run: Run) -> None:
    code, text = run("dmesg")
    assert code != 0, text[:200]


def test_root_inside_is_nobody_outside(client: httpx2.Client, sandbox: str, run: Run) -> None:
    _, text = run("cat /proc/self/uid_map")
    inside, outside, count = (int(n) for n in text.split())
    assert (inside, count) == (0, 65536)
    assert outside >= 0x70000000
    assert client.get(f"/sandboxes/{sandbox}").json()["isolation"]["user_namespace"] is True


def test_raw_sockets_are_refused(run: Run) -> None:
    code, _ = run('python3 -c "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)"')
    assert code != 0


def test_terminal_injection_has_no_terminal(run: Run) -> None:
    code, _ = run("python3 -c \"import fcntl; fcntl.ioctl(open('/dev/tty'), 0x5412, b'x')\"")
    assert code != 0

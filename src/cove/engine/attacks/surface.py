"""Groups A and S: what of the host shows inside, and what the host believes of the sandbox."""

from __future__ import annotations

import os
from pathlib import Path

from cove.engine.attacks.target import Broken, NotHere, Target, attempt, python, require, shell
from cove.model.errors import AgentTimeout, AgentViolation, SandboxGone


def host_secrets() -> dict[str, str]:
    """Strings that name this machine; none of them may be read inside."""
    found: dict[str, str] = {"host name": os.uname().nodename}
    for what, path in (
        ("machine id", "/etc/machine-id"),
        ("board serial", "/sys/class/dmi/id/board_serial"),
        ("product uuid", "/sys/class/dmi/id/product_uuid"),
        ("kernel command line", "/proc/cmdline"),
    ):
        try:
            found[what] = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            continue
    # A short word is in many texts by chance.
    return {what: text for what, text in found.items() if len(text) > 5}  # noqa: PLR2004


async def attack_a20_names_and_numbers_of_the_host(target: Target) -> str:
    """Host name, machine id, serial numbers, kernel command line and log, in all that can be read inside."""
    script = """
total = 0
for top in ("/proc", "/sys", "/etc", "/run"):
    for folder, folders, files in os.walk(top, onerror=lambda e: None):
        if folder == "/proc":
            folders[:] = [f for f in folders if f == "1" or not f.isdigit()]
        elif folder.count("/") > 7:
            folders[:] = []
        for name in files:
            path = folder + "/" + name
            if name in ("kmsg", "trace_pipe") or path.startswith("/proc/1/task"):
                continue
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                try:
                    data = os.read(fd, 4096)
                finally:
                    os.close(fd)
            except OSError:
                continue
            total += len(data)
            if total < 1500000:
                sys.stdout.write(path + "\\t" + data.decode("latin-1").replace("\\n", " ") + "\\n")
"""
    async with target.box() as box:
        result = await python(box, script, 60)
        text = result.stdout.decode("latin-1")
        require(len(text) > 1000, "nothing could be read: the attack did not run")  # noqa: PLR2004
        for what, secret in host_secrets().items():
            for line in text.splitlines():
                if secret in line:
                    raise Broken(f"the {what} stands in {line.split(chr(9))[0]}")
        log = await shell(box, "dmesg 2>/dev/null | head -1")
        require(not log.stdout, "the kernel log can be read")
        return f"{len(text) // 1024} KiB of /proc, /sys, /etc and /run hold none of: {', '.join(host_secrets())}"


async def attack_s01_page_cache_of_shared_files(target: Target) -> str:
    """The way of Dirty Pipe: splice a page of a shared read-only file into a pipe, then write the pipe over it."""
    victim = target.image.rootfs / "etc" / "passwd"
    before = victim.read_bytes()
    async with target.box() as box, target.box() as other:
        script = """
for path in ("/etc/passwd", "/.agent/agent", "/usr/bin/env"):
    fd = os.open(path, os.O_RDONLY)
    r, w = os.pipe()
    for _ in range(16):
        os.write(w, b"x" * 4096)
    for _ in range(16):
        os.read(r, 4096)
    try:
        os.splice(fd, w, 1, offset_src=0) if hasattr(os, "splice") else None
    except OSError as error:
        said("held", "splice " + path, errno.errorcode.get(error.errno))
        continue
    os.write(w, b"DIRTY-PIPE")
    dirty = b"DIRTY-PIPE" in os.pread(fd, 64, 0)
    said("BROKEN" if dirty else "held", "splice and write " + path, "the file is as it was")
"""
        held = await attempt(box, script)
        seen = await shell(other, "head -c 64 /etc/passwd")
        require(seen.stdout == before[:64], "another sandbox sees a changed file")
    require(victim.read_bytes() == before, "the image's file has changed")
    return held


async def attack_s02_the_agents_socket_replaced(target: Target) -> str:
    """Links to other sockets, a file, and a listener of its own where the host looks for the agent."""
    tricks = {
        "a link to a socket of the host": "ln -s /run/docker.sock a.sock",
        "a link to itself": "ln -s a.sock a.sock",
        "a file": "echo > a.sock",
        "a listener of its own": 'python3 -c \'import socket,time; s=socket.socket(1); s.bind("a.sock"); s.listen();'
        " s.accept()[0].close();"
        " time.sleep(60)' >/dev/null 2>&1 & sleep 1",
    }
    seen: list[str] = []
    for trick, script in tricks.items():
        async with target.box() as box:
            await shell(box, f"cd /run/agent && mv a.sock old && {script}")
            await box.agent.close()
            try:
                await box.reconnect()
            except (AgentViolation, AgentTimeout, SandboxGone) as error:
                seen.append(f"{trick}: {type(error).__name__}")
            else:
                raise Broken(f"{trick} was connected to")
    return "; ".join(seen)


def _host_file(path: str) -> str:
    return Path(path).read_text(encoding="ascii")


async def attack_s03_root_inside_is_nobody_outside(target: Target) -> str:
    """What the host sees of the box's root, of its processes, and of the files it writes."""
    async with target.box() as box:
        status = _host_file(f"/proc/{box.facts.init_pid}/status")
        ids = {word for line in status.splitlines() if line.startswith(("Uid:", "Gid:")) for word in line.split()[1:]}
        require(ids == {str(box.facts.uid_base)} and box.facts.uid_base >= 1 << 16, f"its init has the ids {ids}")
        maps = _host_file(f"/proc/{box.facts.init_pid}/uid_map").split()
        require(maps == ["0", str(box.facts.uid_base), "65536"], f"its user namespace maps {maps}")
        return f"root is uid {box.facts.uid_base} of the host, with a namespace of 65536 ids of its own"


async def attack_a18_hostile_layers(target: Target) -> str:
    """Layers with links, hard links, whiteouts, devices and `/dev` as a link are attacked where images are unpacked."""
    del target
    raise NotHere("attacked at the unpacking: tests/security/test_images.py")

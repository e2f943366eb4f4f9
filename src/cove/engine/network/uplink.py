"""The router's way out: a pair of interfaces to the outside namespace, and what that needs there.

Outside, Cove has one interface and one table of rules of its own, both named after the instance, made when the first
sandbox is connected. Nothing may come in by them that a sandbox did not ask for, and nothing reaches the machine
itself but what the operator opened. If the machine did not forward packets before, it does from then on for Cove alone:
a table that all servers of the machine share drops whatever is not theirs, and the last one that leaves switches
forwarding off again.

All functions here block for some milliseconds; each says in which namespace it must be called.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Generator
from pathlib import Path
from typing import Final

import msgspec

from cove.engine.config import RUN_ROOT
from cove.engine.network import nft
from cove.engine.network import rtnetlink as rt
from cove.engine.network.netns import NetNs
from cove.engine.network.router import write_sysctl
from cove.engine.network.rtnetlink import End, RtNetlink
from cove.engine.network.topology import OUTSIDE_PREFIX, UPLINK, NetworkConfig, transit

log = logging.getLogger(__name__)

_LINK: Final = 900
"""The uplink's number in the router, below those of the boxes' interfaces."""

_FORWARD: Final = Path("/proc/sys/net/ipv4/ip_forward")
_CONF: Final = Path("/proc/sys/net/ipv4/conf")
_SHARED_TABLE: Final = "cove_forwarding"

_TABLE: Final = """
table ip {table} {{
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{link}" oifname "{prefix}*" drop
    iifname "{link}" ip saddr != {router} drop
    iifname "{link}" accept
    oifname "{link}" ct state established,related accept
    oifname "{link}" drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{link}" ct state established,related accept
{opened}    iifname "{link}" drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {router} oifname != "{link}" masquerade
  }}
}}
"""

_FORWARDING: Final = f"""
table ip {_SHARED_TABLE} {{
  chain forward {{
    type filter hook forward priority filter - 5; policy drop;
    iifname "{OUTSIDE_PREFIX}*" accept
    oifname "{OUTSIDE_PREFIX}*" accept
  }}
}}
"""


def table_name(config: NetworkConfig) -> str:
    """Of the instance's rules outside."""
    return f"cove_{config.instance}"


def make_pair(config: NetworkConfig, outside: int, number: int) -> None:
    """Make the uplink, in the router's namespace; `outside`: a descriptor of the other. Raises: OSError."""
    _, here = transit(number)
    with RtNetlink() as kernel:
        old = kernel.link(name=UPLINK)
        if old is not None:
            kernel.change(rt.delete_link(old.index))
        kernel.change(
            rt.new_pair(
                End(name=UPLINK, index=_LINK),
                End(name=config.outside_link, namespace=outside, is_up=False),
            ),
            rt.new_address(_LINK, here, 30),
        )


def finish_router(number: int) -> None:
    """Let packets leave the router by the uplink, once its other end is up. In the router. Again: the same.

    Raises: OSError.
    """
    away, _ = transit(number)
    with RtNetlink() as kernel:
        kernel.change(rt.set_up(_LINK), rt.new_route(_LINK, None, away))


def is_there(config: NetworkConfig, number: int) -> bool:
    """Whether the outside namespace, which is the calling thread's, has this instance's end with its address."""
    with RtNetlink() as kernel:
        link = kernel.link(name=config.outside_link)
        return link is not None and (link.index, transit(number)[0]) in kernel.addresses()


def is_whole(config: NetworkConfig, number: int) -> bool:
    """Whether the outside namespace, which is the calling thread's, has all that `finish_outside` gave it.

    Raises: OSError.
    """
    tables = nft.run_once("list tables ip").split()
    wanted = {table_name(config), *((_SHARED_TABLE,) if _is_ours() else ())}
    return is_there(config, number) and wanted <= set(tables)


def has_end() -> bool:
    """Whether the router, which is the calling thread's namespace, has its end. Raises: OSError."""
    with RtNetlink() as kernel:
        return kernel.link(name=UPLINK) is not None


def clear(config: NetworkConfig) -> None:
    """Take away what has the name of the uplink's other end. In the outside namespace. Raises: OSError."""
    with RtNetlink() as kernel:
        link = kernel.link(name=config.outside_link)
        if link is not None:
            kernel.change(rt.delete_link(link.index), ignore=(errno.ENODEV,))


def finish_outside(config: NetworkConfig, number: int, *, is_new: bool = True) -> None:
    """Give the other end its address and its rules, then forward. In the outside namespace. Raises: OSError.

    The rules come before the interface is up, so no packet ever passes without them. `is_new`: there was none before.
    """
    away, _ = transit(number)
    put_rules(config, number)
    with RtNetlink() as kernel:
        link = kernel.link(name=config.outside_link)
        if link is None:
            raise OSError(errno.ENODEV, f"{config.outside_link} is not there")
        write_sysctl(f"ipv6/conf/{config.outside_link}/disable_ipv6", "1")
        kernel.change(rt.new_address(link.index, away, 30), rt.set_up(link.index))
    with _alone():
        if is_new and not _others(config) and _SHARED_TABLE not in nft.run_once("list tables ip").split():
            _mark().unlink(missing_ok=True)  # of another namespace, which had this one's inode before
        is_off = _FORWARD.read_text().strip() == "0"
        if is_off:
            log.warning(
                "this machine did not forward packets; it does now, for Cove's sandboxes only "
                "(set net.ipv4.ip_forward=1 yourself before if it shall forward others' too)"
            )
        if is_off or _is_ours():
            _replace(_SHARED_TABLE, _FORWARDING)
            if not _is_ours():
                _note_settings()
            _FORWARD.write_text("1")


def _others(config: NetworkConfig) -> list[str]:
    """The uplinks of other servers of this machine, in the namespace of the calling thread."""
    with RtNetlink() as kernel:
        found = [one.name for one in kernel.links() if one.name.startswith(OUTSIDE_PREFIX)]
    return [name for name in found if name != config.outside_link]


def _mark() -> Path:
    """Is there while forwarding is on because of us, in the namespace of the calling thread."""
    return RUN_ROOT / f"forwarding-{Path('/proc/thread-self/ns/net').stat().st_ino}"


def _is_ours() -> bool:
    return _mark().exists()


def _note_settings() -> None:
    """Write down what switching forwarding sets along with it, so that it can be put back."""
    files = [_CONF / "all/accept_redirects", *(one for one in _CONF.glob("*/forwarding") if one.parent.name != "all")]
    found: dict[str, str] = {}
    for file in files:
        with contextlib.suppress(OSError):  # an interface that went meanwhile
            found[str(file.relative_to(_CONF))] = file.read_text().strip()
    mark = _mark()
    partial = mark.with_suffix(".partial")
    partial.write_bytes(msgspec.json.encode(found))
    partial.rename(mark)


def _restore_settings() -> None:
    try:
        noted = msgspec.json.decode(_mark().read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError) as error:
        log.warning("what forwarding had changed is not known: %s", error)
        return
    for name, value in noted.items():
        with contextlib.suppress(FileNotFoundError):
            (_CONF / name).write_text(value)


def put_rules(config: NetworkConfig, number: int) -> None:
    """The instance's rules, in one step. In the outside namespace. Again: the same. Raises: OSError."""
    table = table_name(config)
    _, here = transit(number)
    link = config.outside_link
    # The router has refused what is closed; here is only what the operator opened of the machine's own addresses.
    opened = "".join(f'    iifname "{link}" ip daddr {one.network}{_at(one.port)} accept\n' for one in config.opened)
    _replace(table, _TABLE.format(table=table, link=link, prefix=OUTSIDE_PREFIX, router=here, opened=opened))


def _at(port: int | None) -> str:
    return "" if port is None else f" meta l4proto {{ tcp, udp }} th dport {port}"


def _replace(table: str, text: str) -> None:
    nft.run_once(f"table ip {table}\ndelete table ip {table}\n{text}")


def remove_noted(instance: str, run_dir: Path) -> None:
    """As `remove`, in the namespace that was written down, from any thread but at the cost of one. Raises: OSError."""
    config = NetworkConfig(instance=instance, run_dir=run_dir)
    noted = config.outside_note.read_text() if config.outside_note.exists() else ""
    space = NetNs(Path(noted) if noted else None, "outside")
    try:
        space.call(lambda: remove(config))
    finally:
        space.close()


def traces(instance: str) -> list[str]:
    """What of an instance is in the namespace of the calling thread. Raises: OSError."""
    config = NetworkConfig(instance=instance, run_dir=RUN_ROOT)
    with RtNetlink() as kernel:
        found = [config.outside_link] if kernel.link(name=config.outside_link) is not None else []
    return found + [table for table in (table_name(config),) if table in nft.run_once("list tables ip").split()]


def remove(config: NetworkConfig) -> None:
    """Take the interface and the rules away, and forwarding if we brought it and are the last. Idempotent.

    In the outside namespace. Raises: OSError.
    """
    clear(config)
    tables = nft.run_once("list tables ip").split()
    if table_name(config) in tables:
        nft.run_once(f"delete table ip {table_name(config)}")
    with _alone():
        if _is_ours() and not _others(config):
            _FORWARD.write_text("0")
            _restore_settings()
            _mark().unlink(missing_ok=True)
            if _SHARED_TABLE in tables:
                nft.run_once(f"delete table ip {_SHARED_TABLE}")


@contextlib.contextmanager
def _alone() -> Generator[None]:
    """One server of the machine at a time: forwarding is everybody's."""
    RUN_ROOT.mkdir(mode=0o711, exist_ok=True)
    fd = os.open(RUN_ROOT / "forwarding.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)

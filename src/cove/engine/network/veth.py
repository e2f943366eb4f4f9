"""One box's interface: a pair whose one end is in the router and whose other end is in the box, made there at once.

Moving an interface between namespaces takes 19 ms (an RCU grace period; measured), making it with its other end in
place 0.4 ms. Inside stand one address and one way out; the hardware addresses of both ends are written down for good,
so nobody asks and nobody can answer wrongly. A box has no right to change any of it (no CAP_NET_ADMIN).

All calls are of one thread (`Router.work`), which visits a box's namespace only to open a socket there.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cove.engine import kernel
from cove.engine.network import rtnetlink as rt
from cove.engine.network.rtnetlink import End, RtNetlink
from cove.engine.network.topology import (
    INSIDE,
    ROUTER_ADDRESS,
    NetworkConfig,
    box_mac,
    link_index,
    link_name,
    router_mac,
)
from cove.model.errors import EngineFailure, SandboxGone
from cove.model.network import NetworkUse

_LEAST_BURST: Final = 16 * 1024
_MOST_BURST: Final = 4 * 1024 * 1024
_LEAST_QUEUE: Final = 64 * 1024
_ENDED: Final = 4711
"""The group of interfaces that are about to go."""

_AT_ONCE: Final = 256
_LOOPBACK: Final = 1
_SETTINGS: Final = (
    (Path("/proc/sys/net/ipv6/conf/default/disable_ipv6"), "1"),
    # So that `ping` works without the right to raw packets.
    (Path("/proc/sys/net/ipv4/ping_group_range"), "0 2147483647"),
)
"""For a box's namespace, before it has an interface."""


class Plugs:
    """Makes and measures boxes' interfaces. Made and used on the thread `Router.work` only."""

    def __init__(self, config: NetworkConfig, foreign: frozenset[int]) -> None:
        """`foreign`: inodes of namespaces that are no box's, so nothing is ever changed in them."""
        self._config = config
        self._foreign = foreign
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._router = RtNetlink()

    def plug(self, index: int, pid: int, start: int) -> None:
        """Give the box whose init is process `pid`, started at `start`, the interface of number `index`.

        Raises: SandboxGone, OSError; then nothing is left.
        """
        address, link = self._config.address(index), link_index(index)
        with self._namespace_of(pid, start) as box, self._inside(box) as inside:
            _clear(inside)
            try:
                self._router.change(
                    rt.new_pair(
                        End(name=link_name(index), index=link, mac=router_mac(index)),
                        End(name=INSIDE, index=link, mac=box_mac(index), namespace=box, is_up=False),
                    ),
                    rt.new_address(link, ROUTER_ADDRESS, is_link=True),
                    rt.new_route(link, address),
                    rt.new_neighbour(link, address, box_mac(index)),
                )
                inside.change(
                    rt.set_up(_LOOPBACK),
                    rt.set_up(link),
                    rt.new_address(link, address),
                    rt.new_route(link, ROUTER_ADDRESS),
                    rt.new_route(link, None, ROUTER_ADDRESS),
                    rt.new_neighbour(link, ROUTER_ADDRESS, router_mac(index)),
                )
            except OSError:
                with contextlib.suppress(OSError):
                    self._router.change(rt.delete_link(link))
                raise

    def lend(self, index: int, pid: int, start: int, address: str) -> None:
        """Let a box have one more address inside. What it sends from there passes nowhere. Raises: as `plug`."""
        with self._namespace_of(pid, start) as box, self._inside(box) as inside:
            inside.change(rt.new_address(link_index(index), address), ignore=(errno.EEXIST,))

    def limit(self, index: int, pid: int, start: int, bytes_per_s: int | None) -> None:
        """Let so much pass in each direction; None: all. Raises: SandboxGone, OSError."""
        link = link_index(index)
        with self._namespace_of(pid, start) as box, self._inside(box) as inside:
            for end in (self._router, inside):
                if bytes_per_s is None:
                    end.change(rt.lift_rate(link), ignore=(errno.ENOENT, errno.EINVAL))
                else:
                    burst = min(max(bytes_per_s // 20, _LEAST_BURST), _MOST_BURST)
                    end.change(rt.limit_rate(link, bytes_per_s, burst, max(bytes_per_s // 10, _LEAST_QUEUE)))

    def use(self, index: int) -> NetworkUse:
        """What passed over a box's interface; zeros if it has none. Raises: OSError."""
        link = self._router.link(link_index(index))
        if link is None:
            return NetworkUse()
        # What the router's end received is what the box sent.
        return NetworkUse(sent_bytes=link.received_bytes, received_bytes=link.sent_bytes)

    def has(self, index: int) -> bool:
        """Whether there is an interface of that number. Raises: OSError."""
        return self._router.link(link_index(index)) is not None

    def close(self) -> None:
        """Close what it holds."""
        self._router.close()
        os.close(self._home)

    @contextmanager
    def _namespace_of(self, pid: int, start: int) -> Generator[int]:
        try:
            fd = os.open(Path(f"/proc/{pid}/ns/net"), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SandboxGone("the sandbox has ended") from error
        try:
            # Opened, then checked: had the pid been given to another process meanwhile, its start time would differ.
            if kernel.process_start(pid) != start:
                raise SandboxGone("the sandbox has ended")
            if os.fstat(fd).st_ino in self._foreign:
                raise EngineFailure("the sandbox has no network of its own", internal=f"process {pid}")
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _inside(self, box: int) -> Generator[RtNetlink]:
        """A socket of the box's namespace `box`. The thread is back in the router's when the body begins."""
        kernel.setns(box, kernel.CLONE_NEWNET)
        try:
            for path, value in _SETTINGS:
                with contextlib.suppress(FileNotFoundError):
                    path.write_text(value)
            opened = RtNetlink()
        finally:
            kernel.setns(self._home, kernel.CLONE_NEWNET)
        with opened:
            yield opened


def _clear(inside: RtNetlink) -> None:
    """Take away what a server left that was killed before it wrote down that it had made it."""
    old = inside.link(name=INSIDE)
    if old is not None:
        inside.change(rt.delete_link(old.index))


def unplug(indexes: Iterable[int]) -> None:
    """Take boxes' interfaces away, in the namespace of the calling thread; those that are gone are gone.

    Takes 20 ms, for one and for many: the kernel waits until nobody uses them. Raises: OSError.
    """
    with RtNetlink() as router:
        chosen = [rt.set_group(link_index(index), _ENDED) for index in indexes]
        for start in range(0, len(chosen), _AT_ONCE):
            router.change(*chosen[start : start + _AT_ONCE], ignore=(errno.ENODEV,))
        router.change(rt.delete_group(_ENDED), ignore=(errno.ENODEV,))

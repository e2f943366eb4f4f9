"""What a client is granted: everything that asyncssh could do for it on the host is refused, name by name."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, cast

import asyncssh
import pytest
from asyncssh.connection import SSHServerConnection

from cove.core.quotabook import QuotaBook
from cove.core.ratelimits import RateLimits, RateSettings
from cove.engine.clock import ManualClock
from cove.model.access import Principal, Scope
from cove.server.ssh import listener
from cove.server.ssh.channel import ENV_BYTES, ENV_ENTRIES, BoundedEnv, SessionChannel
from cove.server.ssh.gate import ATTEMPTS, CHANNELS, FAST_CHANNELS, Gate, Visit
from cove.server.ssh.hostkey import NAME, ensure_host_key, public_line
from cove.server.ssh.listener import PROJECT_FAST_CHANNELS

WHO = Principal(key_id="ssh:1", name="n", project="p", scopes=frozenset({Scope.EXEC}))


class Keys:
    def __init__(self) -> None:
        self.asked: list[str] = []

    def admit(self, blob: bytes, ref: str) -> tuple[Principal, str] | None:
        del blob
        self.asked.append(ref)
        return (WHO, "box") if ref == "otter" else None


def logins(failed: int = 60) -> RateLimits:
    return RateLimits(RateSettings(failed_logins=failed), cast("QuotaBook", None), ManualClock())


class Core:
    def __init__(self) -> None:
        self.ssh_keys = Keys()
        self.rate_limits = logins()


class Conn:
    def __init__(self) -> None:
        self.said: list[str] = []
        self._transport = self

    def set_write_buffer_limits(self, high: int) -> None:
        assert high

    def _recv_data(self) -> None:
        pass

    def disconnect(self, code: int, reason: str) -> None:
        del code
        self.said.append(reason)

    def abort(self) -> None:
        self.said.append("aborted")

    def get_extra_info(self, name: str) -> tuple[str, int]:
        assert name == "peername"
        return ("203.0.113.9", 50022)

    def create_server_channel(self, encoding: None, errors: str, window: int, size: int) -> int:
        del encoding, errors, size
        return window


class Doorman:
    """As the real one, without tasks."""

    def __init__(self) -> None:
        self.core = Core()
        self.has_room = True
        self.channels = 0

    def channel_opened(self, project: str) -> bool:
        assert project == "p"
        self.channels += self.has_room
        return self.has_room

    def has_fast_channel(self, project: str) -> bool:
        assert project == "p"
        return self.channels <= PROJECT_FAST_CHANNELS

    def channels_closed(self, project: str, count: int) -> None:
        assert project == "p"
        self.channels -= count

    def enter(self, gate: Gate) -> bool:
        del gate
        return self.has_room

    def left(self, gate: Gate) -> None:
        del gate

    def spawn(self, work: Any, name: str) -> Any:
        del name
        work.close()
        raise AssertionError("nothing is to be done here")


@pytest.fixture
def gate() -> Gate:
    one = Gate(Doorman())  # type: ignore[arg-type]
    one.connection_made(Conn())  # type: ignore[arg-type]
    return one


def visiting(gate: Gate) -> Gate:
    gate._visit = Visit(gate._doorman, gate._conn, WHO, "box", backlog=gate._backlog)  # type: ignore[arg-type]
    return gate


REFUSED = {
    "server_requested": ("", 0),
    "unix_server_requested": ("/x",),
    "tun_requested": (None,),
    "tap_requested": (None,),
    "password_auth_supported": (),
    "kbdint_auth_supported": (),
    "host_based_auth_supported": (),
    "validate_password": ("otter", "x"),
    "change_password": ("otter", "x", "y"),
    "validate_kbdint_response": ("otter", []),
    "get_kbdint_challenge": ("otter", "", ""),
    "validate_host_public_key": ("h", "a", 1, None),
    "validate_host_ca_key": ("h", "a", 1, None),
    "validate_host_based_user": ("otter", "h", "u"),
    "validate_ca_key": ("otter", None),
}
"""Every question whose answer could let somebody in or open something, with arguments."""

OURS = {
    *("connection_made", "connection_lost", "begin_auth", "auth_completed", "public_key_auth_supported"),
    *("validate_public_key", "session_requested", "connection_requested", "unix_connection_requested"),
}
HARMLESS = {"debug_msg_received"}
GSS = {"validate_gss_principal"}
"""Asked only where GSS was switched on; the listener's `gss_host=None` holds that."""


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_granted_is_refused(gate: Gate, name: str) -> None:
    try:
        answer = getattr(visiting(gate), name)(*REFUSED[name])
    except NotImplementedError:
        return
    assert answer is NotImplemented or not answer


def test_every_question_of_the_library_is_answered_on_purpose() -> None:
    names = {name for name, _ in inspect.getmembers(asyncssh.SSHServer, inspect.isfunction) if not name.startswith("_")}
    assert names == REFUSED.keys() | OURS | HARMLESS | GSS, "a new release asks more: decide it here"
    assert set(vars(Gate)) >= OURS
    asked = {name for name, _ in inspect.getmembers(asyncssh.SSHServerSession, inspect.isfunction)}
    ours = set(vars(SessionChannel))
    assert {"pty_requested", "shell_requested", "exec_requested", "subsystem_requested"} <= ours & asked


def test_the_library_is_given_no_server_of_files_and_no_forwarding(monkeypatch: pytest.MonkeyPatch) -> None:
    text = inspect.getsource(listener)
    for option in ("sftp_factory=None", "allow_scp=False", "agent_forwarding=False", "x11_forwarding=False"):
        assert option in text
    for option in ("password_auth=False", "kbdint_auth=False", "host_based_auth=False", "gss_host=None", "config=None"):
        assert option in text
    assert not {"arcfour", "3des-cbc", "aes128-cbc"} & set(listener.CIPHERS)
    assert not [name for name in (*listener.KEX, *listener.MACS, *listener.SIGNATURES) if "sha1" in name]
    assert "ssh-rsa" not in listener.SIGNATURES
    # The library opens a connection of the host itself when it is told True: no way through Gate may say so.
    assert "True" not in inspect.getsource(Gate.connection_requested)
    assert "True" not in inspect.getsource(Gate.unix_connection_requested)
    assert hasattr(SSHServerConnection, "forward_connection"), "that is what True would lead to"


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "example.com", "127.0.0.2", "169.254.169.254", "localhost.", "metadata", "host.internal"]
)
def test_no_destination_but_the_sandbox(gate: Gate, host: str) -> None:
    with pytest.raises(asyncssh.ChannelOpenError, match="localhost"):
        visiting(gate).connection_requested(host, 80, "", 0)


@pytest.mark.parametrize("path", ["relative", "", "/a\0b", "/" + "x" * 107])
def test_no_socket_without_a_proper_path(gate: Gate, path: str) -> None:
    with pytest.raises(asyncssh.ChannelOpenError):
        visiting(gate).unix_connection_requested(path)


def test_nothing_is_opened_before_the_login(gate: Gate) -> None:
    for ask in (
        gate.session_requested,
        lambda: gate.connection_requested("localhost", 80, "", 0),
        lambda: gate.unix_connection_requested("/x"),
    ):
        with pytest.raises(asyncssh.ChannelOpenError, match="log in"):
            ask()


def test_channels_are_counted(gate: Gate) -> None:
    visiting(gate)
    opened: list[Any] = [gate.session_requested() for _ in range(CHANNELS)]
    windows, made = zip(*opened, strict=True)
    assert sum(windows) < 32 * 1024 * 1024, "what one connection may make the server hold"
    with pytest.raises(asyncssh.ChannelOpenError, match="at most"):
        gate.session_requested()
    made[0].connection_lost(None)
    gate.session_requested()


def test_channels_of_a_project_are_counted_over_its_connections() -> None:
    doorman = Doorman()
    gates = [Gate(doorman) for _ in range(20)]  # type: ignore[arg-type]
    windows = 0
    for gate in gates:
        gate.connection_made(Conn())  # type: ignore[arg-type]
        for _ in range(FAST_CHANNELS):
            window, _ = visiting(gate).session_requested() if gate._visit is None else gate.session_requested()
            windows += cast("int", window)
    assert windows == (PROJECT_FAST_CHANNELS * 1024 + 32 * 64) * 1024
    gates[0].connection_lost(None)
    assert doorman.channels == 19 * FAST_CHANNELS
    doorman.has_room = False
    with pytest.raises(asyncssh.ChannelOpenError, match="your project"):
        gates[1].session_requested()


def test_looks_at_keys_are_bounded(gate: Gate) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    assert gate.validate_public_key("otter", key)
    assert not gate.validate_public_key("sb_badger", key)
    assert gate._doorman.core.ssh_keys.asked == ["otter", "badger"]  # type: ignore[attr-defined]
    for _ in range(ATTEMPTS - 2):
        gate.validate_public_key("otter", key)
    with pytest.raises(asyncssh.DisconnectError):
        gate.validate_public_key("otter", key)


def test_where_too_many_logins_failed_only_those_come_in_who_did_before() -> None:
    doorman, key = Doorman(), asyncssh.generate_private_key("ssh-ed25519")
    doorman.core.rate_limits = logins(failed=2)
    friend = Gate(doorman)  # type: ignore[arg-type]
    friend.connection_made(Conn())  # type: ignore[arg-type]
    assert friend.validate_public_key("otter", key)
    doorman.core.rate_limits.succeeded("203.0.113.9", WHO.key_id)
    for _ in range(2):
        stranger = Gate(doorman)  # type: ignore[arg-type]
        stranger.connection_made(Conn())  # type: ignore[arg-type]
        assert not stranger.validate_public_key("badger", key)
        stranger.connection_lost(None)
    with pytest.raises(asyncssh.DisconnectError, match="too many failed logins"):
        stranger.validate_public_key("badger", key)
    assert friend.validate_public_key("otter", key)


def test_one_connection_too_many_is_told_so() -> None:
    doorman, conn = Doorman(), Conn()
    doorman.has_room = False
    Gate(doorman).connection_made(conn)  # type: ignore[arg-type]
    assert conn.said == ["this server has too many SSH connections"]


def test_variables_before_a_command_are_bounded() -> None:
    env = BoundedEnv()
    for number in range(1000):
        env[b"LC_%d" % number] = b"x"
    env[b"LANG"] = bytes(ENV_BYTES + 1)
    assert len(env) == ENV_ENTRIES


def test_the_host_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    made = ensure_host_key(tmp_path)
    path = tmp_path / NAME
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    again = ensure_host_key(tmp_path)
    assert public_line(made) == public_line(again)
    assert path.stat().st_mode & 0o777 == 0o600
    assert public_line(made).startswith("ssh-ed25519 AAAA")
    assert [one.name for one in tmp_path.iterdir()] == [NAME]

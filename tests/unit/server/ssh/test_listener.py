"""The listener with a real client library, over a core of the mind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import asyncssh
import pytest
from msgspec.structs import replace

from cove.core.quotabook import QuotaBook
from cove.core.ratelimits import RateLimits, RateSettings
from cove.engine.clock import SystemClock
from cove.model.access import Principal, Scope
from cove.server import config
from cove.server.config import Settings
from cove.server.ssh import listener
from cove.server.ssh.listener import open_ssh
from tests_support import free_port

WHO = Principal(key_id="ssh:1", name="n", project="p", scopes=frozenset({Scope.EXEC}))


class Keys:
    def __init__(self) -> None:
        self.known: set[bytes] = set()
        self.ended = False

    def admit(self, blob: bytes, ref: str) -> tuple[Principal, str] | None:
        return (WHO, "box") if blob in self.known and ref == "otter" else None

    def why_leave(self, who: Principal, sandbox: str) -> str | None:
        del who, sandbox
        return "the sandbox has ended" if self.ended else None

    def used(self, who: Principal) -> None:
        del who


class Core:
    def __init__(self) -> None:
        self.ssh_keys = Keys()
        self.rate_limits = RateLimits(RateSettings(), cast("QuotaBook", None), SystemClock())


@pytest.fixture
def key() -> asyncssh.SSHKey:
    return asyncssh.generate_private_key("ssh-ed25519")


@pytest.fixture
def core(key: asyncssh.SSHKey) -> Any:
    one = Core()
    one.ssh_keys.known.add(key.public_data)
    return one


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    loaded = config.load({"COVE_DATA_DIR": str(tmp_path)}).settings
    return replace(loaded, ssh_port=free_port())


@contextlib.asynccontextmanager
async def logged_in(settings: Settings, key: asyncssh.SSHKey) -> AsyncIterator[asyncssh.SSHClientConnection]:
    async with asyncssh.connect(
        "127.0.0.1",
        settings.ssh_port,
        username="otter",
        client_keys=[key],
        known_hosts=None,
        config=None,
        agent_path=None,
    ) as conn:
        yield conn


async def test_a_known_key_comes_in_by_the_key_that_was_announced(
    settings: Settings, core: Any, key: asyncssh.SSHKey
) -> None:
    async with open_ssh(settings, core) as facts:
        assert (facts.listening, facts.port, facts.missing) == (True, settings.ssh_port, "")
        async with logged_in(settings, key) as conn:
            shown = conn.get_server_host_key()
            assert shown is not None
            assert " ".join(shown.export_public_key().decode().split()[:2]) == facts.host_key


async def test_a_stranger_and_a_password_do_not(settings: Settings, core: Any) -> None:
    async with open_ssh(settings, core):
        with pytest.raises(asyncssh.PermissionDenied):
            async with logged_in(settings, asyncssh.generate_private_key("ssh-ed25519")):
                pass
        with pytest.raises(asyncssh.PermissionDenied):
            await asyncssh.connect(
                "127.0.0.1", settings.ssh_port, username="otter", password="x", known_hosts=None, client_keys=None
            )


async def test_no_port_is_no_ssh(settings: Settings, core: Any) -> None:
    async with open_ssh(replace(settings, ssh_port=0), core) as facts:
        assert not facts.listening
    assert not (settings.data_dir / "ssh_host_ed25519_key").exists()


async def test_a_port_that_is_taken_is_told_and_the_rest_goes_on(
    settings: Settings, core: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", settings.ssh_port)):
        async with open_ssh(settings, core) as facts:
            assert not facts.listening
            assert facts.missing == f"port {settings.ssh_port} on 127.0.0.1 is in use by another program"
    assert "COVE_SSH_PORT" in caplog.text


async def test_strangers_cannot_crowd_out_those_who_are_in(
    settings: Settings, core: Any, key: asyncssh.SSHKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "STRANGERS", 2)
    async with open_ssh(settings, core), logged_in(settings, key) as inside:
        waiting = [await asyncio.open_connection("127.0.0.1", settings.ssh_port) for _ in range(2)]
        for reader, _ in waiting:
            await reader.readline()
        with pytest.raises((asyncssh.DisconnectError, ConnectionError)):
            async with logged_in(settings, key):
                pass
        assert not inside.is_closed()
        for _, writer in waiting:
            writer.close()
        async with asyncio.timeout(60):
            while not await may_log_in(settings, key):
                await asyncio.sleep(0.05)


async def may_log_in(settings: Settings, key: asyncssh.SSHKey) -> bool:
    with contextlib.suppress(asyncssh.DisconnectError, ConnectionError):
        async with logged_in(settings, key):
            return True
    return False


async def test_who_does_not_log_in_is_cut_off(settings: Settings, core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "LOGIN_S", 0.3)
    async with open_ssh(settings, core), asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", settings.ssh_port)
        writer.write(b"SSH-2.0-slow\r\n")
        while await reader.read(4096):
            pass
        writer.close()


@pytest.mark.parametrize(
    "raw", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 5000, b"SSH-1.5-old\r\n", b"SSH-2.0-x\r\n" + b"\xff" * 5000]
)
async def test_other_protocols_and_noise_end_the_connection_only(
    settings: Settings, core: Any, key: asyncssh.SSHKey, raw: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "LOGIN_S", 1)
    async with open_ssh(settings, core), asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", settings.ssh_port)
        writer.write(raw)
        with contextlib.suppress(ConnectionError):
            while await reader.read(4096):
                pass
        writer.close()
        async with logged_in(settings, key):
            pass


async def test_the_end_of_the_sandbox_and_of_the_server_end_connections(
    settings: Settings, core: Any, key: asyncssh.SSHKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cove.server.ssh.gate.CHECK_S", 0.05)
    async with open_ssh(settings, core), asyncio.timeout(60), logged_in(settings, key) as conn:
        core.ssh_keys.ended = True
        await conn.wait_closed()
    core.ssh_keys.ended = False
    opened = open_ssh(settings, core)
    await opened.__aenter__()
    async with asyncio.timeout(60), logged_in(settings, key) as conn:
        await opened.__aexit__(None, None, None)
        await conn.wait_closed()


async def test_nothing_of_what_users_send_is_logged(
    settings: Settings, core: Any, key: asyncssh.SSHKey, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("asyncssh").setLevel(logging.NOTSET)
    async with open_ssh(settings, core), logged_in(settings, key) as conn:
        with contextlib.suppress(asyncssh.Error, AttributeError):
            await conn.run("echo hush-hush", env={"LC_HUSH": "hush-hush"}, check=False, timeout=1)
    ours = [record for record in caplog.records if "hush" in record.getMessage()]
    assert not ours


async def test_a_client_that_answers_nothing_is_dropped(
    settings: Settings, core: Any, key: asyncssh.SSHKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "KEEPALIVE_S", 0.1)
    monkeypatch.setattr(listener, "KEEPALIVES", 2)
    async with open_ssh(settings, core), asyncio.timeout(60), logged_in(settings, key) as conn:
        await asyncio.sleep(0.5)
        assert not conn.is_closed(), "one that answers stays"
        transport: Any = conn._transport  # type: ignore[attr-defined]  # a client that hangs
        transport.pause_reading()
        await asyncio.sleep(0.8)
        transport.resume_reading()
        await conn.wait_closed()

"""Reading a line of `authorized_keys`, against keys that ssh-keygen's own format has."""

from __future__ import annotations

import base64

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.model.errors import BadRequest, TooLarge
from cove.model.sshkey import fingerprint_of, parse


def line(kind: str, **options: object) -> str:
    return asyncssh.generate_private_key(kind, **options).export_public_key().decode().strip()


def packed(*parts: bytes) -> str:
    return base64.b64encode(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).decode()


ED25519 = packed(b"ssh-ed25519", bytes(32))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ssh-ed25519", {}),
        ("ecdsa-sha2-nistp256", {}),
        ("ecdsa-sha2-nistp384", {}),
        ("ecdsa-sha2-nistp521", {}),
        ("ssh-rsa", {"key_size": 2048}),
    ],
)
def test_the_usual_keys_are_read_with_the_fingerprint_that_others_show(kind: str, options: dict[str, int]) -> None:
    text = line(kind, comment="me@here", **options)
    key = parse(f"  {text}\n")
    assert (key.type, key.comment, f"{key.type} {key.base64} me@here") == (kind, "me@here", text)
    assert key.fingerprint == asyncssh.import_public_key(text).get_fingerprint()
    assert key.fingerprint == fingerprint_of(base64.b64decode(key.base64))


def test_keys_on_a_security_token_are_read() -> None:
    one = packed(b"sk-ssh-ed25519@openssh.com", bytes(32), b"ssh:")
    assert parse(f"sk-ssh-ed25519@openssh.com {one}").comment == ""
    two = packed(b"sk-ecdsa-sha2-nistp256@openssh.com", b"nistp256", b"\4" + bytes(64), b"ssh:")
    assert parse(f"sk-ecdsa-sha2-nistp256@openssh.com {two} yubi key").comment == "yubi key"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"-----BEGIN {'OPENSSH'} PRIVATE KEY-----\nsecretsecret\n-----END", "private key"),
        ("ssh-dss AAAAB3NzaC1kc3M= me", "DSA"),
        ('command="id" ssh-ed25519 ' + ED25519, "options"),
        ("ssh-ed25519-cert-v01@openssh.com AAAA", "certificate"),
        ("", "not a public key"),
        ("hello world", "not a public key"),
        ("ssh-ed25519", "one word of base64"),
        ("ssh-ed25519 !!!!", "one word of base64"),
        ("ssh-ed25519 AAAA=AAA", "one word of base64"),
        ("ssh-ed25519 AAAAA", "damaged"),
        (f"ssh-ed25519 {ED25519}\nssh-ed25519 {ED25519}", "one key"),
        (f"ssh-ed25519 {ED25519} \x1b[31m", "one key"),
        ("ssh-ed25519 " + packed(b"ssh-rsa", bytes(32)), "differ"),
        ("ssh-ed25519 " + packed(b"ssh-ed25519", bytes(31)), "damaged"),
        ("ssh-ed25519 " + packed(b"ssh-ed25519", bytes(32), b"more"), "damaged"),
        ("ssh-rsa " + packed(b"ssh-rsa", b"\1\0\1", b"\0" + b"\xff" * 128), "bits"),
        ("ssh-rsa " + packed(b"ssh-rsa", b"\2", b"\0" + b"\xff" * 256), "damaged"),
        ("ecdsa-sha2-nistp256 " + packed(b"ecdsa-sha2-nistp256", b"nistp384", b"\4" + bytes(96)), "damaged"),
        ("ecdsa-sha2-nistp256 " + packed(b"ecdsa-sha2-nistp256", b"nistp256", b"\2" + bytes(64)), "damaged"),
        ("sk-ssh-ed25519@openssh.com " + packed(b"sk-ssh-ed25519@openssh.com", bytes(32)), "damaged"),
    ],
)
def test_what_is_no_usable_public_key_is_refused_and_never_repeated(text: str, says: str) -> None:
    with pytest.raises(BadRequest, match=says) as caught:
        parse(text)
    assert caught.value.field == "public_key"
    assert "secretsecret" not in str(caught.value) + caught.value.internal


def test_a_long_line_is_refused() -> None:
    with pytest.raises(TooLarge):
        parse(f"ssh-ed25519 {ED25519} " + "x" * 9000)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: "ssh-rsa " + base64.b64encode(raw).decode()))
def test_anything_else_is_a_bad_request(text: str) -> None:
    try:
        parse(text)
    except BadRequest:
        return
    raise AssertionError("that is no key")

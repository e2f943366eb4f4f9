# ruff: noqa: ANN001, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import base64

import pytest

BLOB = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(31) + b"\7"
LINE = "ssh-ed25519 " + base64.b64encode(BLOB).decode()


def test_a_key_is_added_shown_and_removed(server):
    made = server.client.post("/ssh-keys", json={"public_key": f"{LINE} me@here\n"})
    assert made.status_code == 201
    view = made.json()
    assert (view["name"], view["type"], view["public_key"]) == ("me@here", "ssh-ed25519", LINE)
    assert view["fingerprint"].startswith("SHA256:")
    assert view in server.client.get("/ssh-keys").json()["ssh_keys"]
    again = server.client.post("/ssh-keys", json={"public_key": LINE})
    assert (again.status_code, again.json()["field"]) == (409, "public_key")
    assert server.client.delete(f"/ssh-keys/{view['id']}").status_code == 204
    assert server.client.delete(f"/ssh-keys/{view['id']}").status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"public_key": ""},
        {"public_key": f"-----BEGIN {'OPENSSH'} PRIVATE KEY-----\nhush\n"},
        {"public_key": LINE, "name": ""},
        {"public_key": LINE, "name": "\u0007"},
        {"public_key": 'command="id" ' + LINE},
        {"public_key": "x" * 16385},
        {"public_key": LINE, "more": 1},
    ],
)
def test_a_bad_key_is_refused_and_not_repeated(server, body):
    answer = server.client.post("/ssh-keys", json=body)
    assert 400 <= answer.status_code < 414
    assert "hush" not in answer.text


def test_the_server_says_where_it_takes_ssh(server):
    ssh = server.client.get("/server").json()["ssh"]
    assert ssh == {"listening": False, "host": "", "port": 0, "host_key": "", "missing": "COVE_SSH_PORT is 0"}

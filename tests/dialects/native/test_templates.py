"""Templates over the wire: made, changed, used, removed; what is refused names its field."""

# ruff: noqa: ANN001, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import pytest


@pytest.fixture
def snapshot(server):
    box = server.client.post("/sandboxes", json={}).json()["id"]
    made = server.client.post(f"/sandboxes/{box}/snapshots", json={"memory": False})
    assert made.status_code == 201, made.text
    yield made.json()
    for template in server.client.get("/templates").json()["templates"]:
        server.client.delete(f"/templates/{template['name']}")
    server.client.delete(f"/snapshots/{made.json()['id']}")
    for one in server.client.get("/sandboxes").json()["sandboxes"]:
        server.client.delete(f"/sandboxes/{one['id']}")


def test_one_is_made_changed_used_and_removed(server, snapshot):
    made = server.client.put("/templates/warm", json={"snapshot": snapshot["name"]})
    assert made.status_code == 200, made.text
    assert made.json() | {"created_at": "", "created_by": ""} == {
        "name": "warm", "snapshot": snapshot["id"], "snapshot_name": snapshot["name"], "ready": 0, "ready_now": 0,
        "claimed": 0, "missed": 0, "reason": None, "created_at": "", "created_by": "",
    }  # fmt: skip
    changed = server.client.put("/templates/warm", json={"ready": 2}).json()
    assert (changed["snapshot"], changed["ready"], changed["ready_now"]) == (snapshot["id"], 2, 0)
    assert changed["reason"] == "its snapshot has no memory: sandboxes of it are made when they are asked for"
    assert server.client.get("/templates").json()["templates"] == [server.client.get("/templates/warm").json()]
    box = server.client.post("/templates/warm/sandboxes", json={"name": "of-it"})
    assert box.status_code == 201, box.text
    assert box.json()["came_from"]["snapshot"] == snapshot["id"]
    assert server.client.delete(f"/snapshots/{snapshot['id']}").status_code == 409
    assert server.client.delete("/templates/warm").status_code == 204
    assert server.client.get("/templates/warm").status_code == 404


@pytest.mark.parametrize(
    ("name", "body", "refusal"),
    [
        ("warm", {}, (404, "snapshot")),
        ("warm", {"snapshot": "no-such"}, (404, "snapshot")),
        ("warm", {"snapshot": "sn_0000000000000000"}, (404, "snapshot")),
        ("Warm!", {"snapshot": "SNAPSHOT"}, (400, "name")),
        ("warm", {"snapshot": "SNAPSHOT", "ready": -1}, (400, "ready")),
        ("warm", {"snapshot": "SNAPSHOT", "ready": 17}, (400, "ready")),
        ("warm", {"snapshot": "SNAPSHOT", "ready": True}, (400, "ready")),
        ("warm", {"snapshot": "SNAPSHOT", "size": 1}, (400, "size")),
    ],
)
def test_what_is_refused_names_its_field_and_changes_nothing(server, snapshot, name, body, refusal):
    status, field = refusal
    body = {key: snapshot["id"] if value == "SNAPSHOT" else value for key, value in body.items()}
    answer = server.client.put(f"/templates/{name}", json=body)
    assert answer.status_code in {status, 422 if status == 400 else status}, answer.text
    assert answer.json()["field"] == field
    assert server.client.get("/templates").json()["templates"] == []


def test_what_is_not_there_is_404(server):
    assert server.client.delete("/templates/none").status_code == 404
    assert server.client.post("/templates/none/sandboxes", json={}).status_code == 404

"""Which driver a sandbox gets, end to end: the project's rules, and the image's own program and user."""

from __future__ import annotations

import httpx2
import pytest

pytestmark = pytest.mark.real


def test_a_projects_rules_hold_for_its_sandboxes(client: httpx2.Client) -> None:
    made = client.post("/projects", json={"id": "strict", "drivers": ["runc"], "default_driver": "runc"})
    assert made.status_code == 201, made.text
    key = client.post("/keys", json={"name": "strict", "project": "strict"}).json()["key"]
    mine = {"authorization": f"Bearer {key}"}
    sandbox = client.post("/sandboxes", json={}, headers=mine).json()
    assert sandbox["driver"] == sandbox["isolation"]["driver"] == "runc"
    client.delete(f"/sandboxes/{sandbox['id']}", headers=mine)
    changed = client.patch("/projects/strict", json={"default_driver": None, "drivers": []})
    assert (changed.json()["default_driver"], changed.json()["drivers"]) == (None, [])
    for body in ({"drivers": ["kata"]}, {"default_driver": "kata"}):
        refused = client.patch("/projects/strict", json=body)
        assert refused.status_code == 400, refused.text
        assert refused.json()["field"] == next(iter(body))
    assert client.patch("/projects/nobody", json={"drivers": []}).status_code == 404


def test_an_image_without_a_program_runs_none(client: httpx2.Client) -> None:
    refused = client.post("/sandboxes", json={"run_entrypoint": True})
    assert refused.status_code == 400
    assert refused.json()["field"] == "run_entrypoint"


def test_the_image_that_really_runs_is_told(client: httpx2.Client, sandbox: str) -> None:
    view = client.get(f"/sandboxes/{sandbox}").json()
    base = next(one for one in client.get("/images").json()["images"] if one["name"] == "base")
    assert (view["image"], view["image_used"], view["image_note"]) == ("base", "base", None)
    assert view["image_digest"] == base["digest"]

"""Webhooks over the wire: made, listed, removed; what is refused names its field. Deliveries: tests/unit/core."""

# ruff: noqa: ANN001, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import pytest


def test_one_is_made_listed_and_removed_and_its_secret_is_told_once(server):
    body = {"url": "https://hooks.example.com/in", "events": ["sandbox.", "exec.exit"]}
    made = server.client.post("/webhooks", json=body)
    assert made.status_code == 201, made.text
    view = made.json()
    assert view["secret"].startswith("whsec_")
    assert (view["url"], view["events"], view["failure"], view["disabled_at"]) == (
        body["url"],
        body["events"],
        None,
        None,
    )
    listed = server.client.get("/webhooks")
    assert view["id"] in {one["id"] for one in listed.json()["webhooks"]}
    assert view["secret"] not in listed.text
    lines = server.client.get("/audit", params={"event": "webhook.", "newest": True}).json()["lines"]
    assert lines[0]["data"] == {"webhook": view["id"], "host": "hooks.example.com", "events": "sandbox. exec.exit"}
    assert server.client.delete(f"/webhooks/{view['id']}").status_code == 204
    assert server.client.delete(f"/webhooks/{view['id']}").status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 400, "url"),
        ({"url": "http://hooks.example.com/"}, 403, "url"),
        ({"url": "https://127.0.0.1/"}, 403, "url"),
        ({"url": "https://169.254.169.254/latest/meta-data"}, 403, "url"),
        ({"url": "https://[::1]/"}, 403, "url"),
        ({"url": "https://hooks.example.com/", "events": []}, 400, "events"),
        ({"url": "https://hooks.example.com/", "events": ["*"]}, 400, "events"),
        ({"url": "https://hooks.example.com/", "project": "no-such"}, 404, "project"),
        ({"url": "https://hooks.example.com/", "secret": "mine"}, 400, "secret"),
    ],
)
def test_what_is_refused_names_its_field(server, body, status, field):
    answer = server.client.post("/webhooks", json=body)
    assert answer.status_code in {status, 422 if status == 400 else status}, answer.text
    assert answer.json()["field"] == field

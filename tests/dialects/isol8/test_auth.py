"""Keys of isol8: who is let in, what the master key makes, what others may not, and that projects stay apart."""

# ruff: noqa: ANN001, ANN003, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime

import httpx2
import pytest

pytestmark = pytest.mark.real

KEY_FORM = re.compile(r"isol8_[0-9a-f]{64}")
ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def with_key(server, key, path="/isol8/sessions", method="GET", **more):
    return httpx2.request(method, server.url + path, headers={"Authorization": key}, timeout=30, **more)


@pytest.mark.parametrize("path", ["/isol8/health", "/health"])
def test_health_asks_for_no_key(server, path):
    answer = httpx2.get(server.url + path)
    assert answer.status_code == 200
    assert answer.json()["status"] == "ok"


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/sessions"), ("POST", "/execute"), ("GET", "/nowhere"), ("OPTIONS", "/sessions"), ("GET", "/auth/keys")],
)
def test_without_a_key_nothing_is_told(server, method, path):
    answer = httpx2.request(method, f"{server.url}/isol8{path}")
    assert (answer.status_code, answer.json()) == (401, {"error": "Missing Authorization header"})


@pytest.mark.parametrize("header", ["isol8_" + "0" * 64, "Bearer nonsense", "Basic {key}", "Bearer"])
def test_a_key_that_nobody_knows_is_refused(server, header):
    answer = with_key(server, header.format(key=server.key))
    assert (answer.status_code, answer.json()) == (403, {"error": "Invalid API key"})


@pytest.mark.parametrize("form", ["{}", "Bearer {}", "bearer   {}", "BEARER {}"])
def test_a_key_is_taken_bare_or_as_a_bearer(server, form):
    assert with_key(server, form.format(server.key)).status_code == 200


def test_a_key_is_made_in_the_originals_form(mine):
    answer = mine.http.post("/auth/keys", json={"name": "ci", "tenantId": "acme", "ttlMs": 60_000})
    made = answer.json()
    assert answer.status_code == 201
    assert list(made) == ["id", "key", "name", "keyPrefix", "tenantId", "expiresAt"]
    assert KEY_FORM.fullmatch(made["key"])
    assert made["keyPrefix"] == made["key"][:10] + "..."
    assert uuid.UUID(made["id"]).version == 4
    assert (made["name"], made["tenantId"]) == ("ci", "acme")
    left = datetime.fromisoformat(made["expiresAt"]) - datetime.now(UTC)
    assert 0 < left.total_seconds() <= 60


def test_a_key_without_a_time_ends_after_a_day_and_belongs_to_default(mine):
    made = mine.http.post("/auth/keys", json={"name": "ci"}).json()
    left = datetime.fromisoformat(made["expiresAt"]) - datetime.now(UTC)
    assert 86_000 < left.total_seconds() <= 86_400
    assert made["tenantId"] == "default"


@pytest.mark.parametrize("body", [{}, {"name": ""}, {"name": None}, {"tenantId": "x"}])
def test_a_key_needs_a_name(mine, body):
    answer = mine.http.post("/auth/keys", json=body)
    assert (answer.status_code, answer.json()) == (400, {"error": "name is required"})


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"name":5}', b'{"name":"x","ttlMs":"soon"}', b'{"name":"x","ttlMs":0}']
)
def test_what_is_no_order_of_a_key_is_refused(mine, body):
    answer = mine.http.post("/auth/keys", content=body)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}


def test_keys_are_listed_in_order_and_never_shown(mine):
    made = [mine.http.post("/auth/keys", json={"name": f"k{n}"}).json() for n in range(3)]
    listed = mine.http.get("/auth/keys").json()["keys"]
    assert [one["id"] for one in listed] == [one["id"] for one in made]
    assert list(listed[0]) == [
        "id", "name", "keyPrefix", "tenantId", "createdAt", "expiresAt", "lastUsedAt", "revoked",
    ]  # fmt: skip
    assert [one["keyPrefix"] for one in listed] == [one["keyPrefix"] for one in made]
    assert all(ISO.fullmatch(one["createdAt"]) and one["lastUsedAt"] is None and not one["revoked"] for one in listed)
    assert not any(one["key"] in mine.http.get("/auth/keys").text for one in made)


def test_a_list_can_be_of_one_tenant(mine):
    for name, tenant in (("a", "acme"), ("b", "blue"), ("c", "acme")):
        mine.http.post("/auth/keys", json={"name": name, "tenantId": tenant})
    found = mine.http.get("/auth/keys", params={"tenantId": "acme"}).json()["keys"]
    assert [one["name"] for one in found] == ["a", "c"]


def test_the_use_of_a_key_is_noted(server, mine):
    made = mine.http.post("/auth/keys", json={"name": "used"}).json()
    assert with_key(server, made["key"]).status_code == 200
    for _ in range(300):
        if (at := mine.http.get("/auth/keys").json()["keys"][0]["lastUsedAt"]) is not None:
            break
    assert ISO.fullmatch(at)


def test_a_revoked_key_works_no_more_and_can_be_revoked_again(server, mine):
    made = mine.http.post("/auth/keys", json={"name": "x"}).json()
    for _ in range(2):
        answer = mine.http.delete(f"/auth/keys/{made['id']}")
        assert (answer.status_code, answer.json()) == (200, {"ok": True, "id": made["id"]})
    answer = with_key(server, made["key"])
    assert (answer.status_code, answer.json()) == (403, {"error": "Invalid API key"})
    assert mine.http.get("/auth/keys").json()["keys"][0]["revoked"] is True


def test_a_key_that_is_none_cannot_be_revoked(mine):
    answer = mine.http.delete(f"/auth/keys/{uuid.uuid4()}")
    assert (answer.status_code, answer.json()) == (404, {"error": "Key not found"})


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/auth/keys"), ("GET", "/auth/keys"), ("DELETE", "/auth/keys/x"), ("POST", "/auth/login")],
)
def test_a_made_key_is_no_master_key(server, mine, method, path):
    made = mine.http.post("/auth/keys", json={"name": "worker"}).json()
    answer = with_key(server, made["key"], f"/isol8{path}", method, content=b"{" if method == "POST" else None)
    assert (answer.status_code, answer.json()) == (403, {"error": "Master key required for this operation"})
    assert with_key(server, made["key"]).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"null", b'{"name":5}'])
def test_a_login_needs_no_readable_body(server, mine, body):
    answer = mine.http.post("/auth/login", content=body)
    assert answer.status_code == 200
    assert list(answer.json()) == ["token", "expiresAt", "keyId"]
    assert with_key(server, answer.json()["token"]).status_code == 200
    listed = mine.http.get("/auth/keys").json()["keys"][0]
    assert re.fullmatch(r"login-\d{4}-.*Z", listed["name"])
    assert listed["id"] == answer.json()["keyId"]


def test_a_login_can_be_named_and_timed(mine):
    mine.http.post("/auth/login", json={"name": "laptop", "tenantId": "acme", "ttlMs": 120_000})
    listed = mine.http.get("/auth/keys").json()["keys"][0]
    assert (listed["name"], listed["tenantId"]) == ("laptop", "acme")


def test_keys_of_another_project_are_not_there(mine, server, isol8):
    made = mine.http.post("/auth/keys", json={"name": "secret-name"}).json()
    assert "secret-name" not in isol8.http.get("/auth/keys").text
    assert isol8.http.delete(f"/auth/keys/{made['id']}").status_code == 404
    assert with_key(server, made["key"]).status_code == 200


def test_a_key_of_isol8_is_none_of_the_native_api(server, mine):
    made = mine.http.post("/auth/keys", json={"name": "x"}).json()
    answer = with_key(server, f"Bearer {made['key']}", "/api/v1/sandboxes")
    assert answer.status_code == 403


@pytest.mark.parametrize("path", ["/sessions/", "/auth", "/session", "/session/", "/file/x", "/auth/keys/"])
def test_a_path_that_is_none_is_plain_text(isol8, path):
    answer = isol8.http.get(path)
    assert (answer.status_code, answer.text) == (404, "404 Not Found")
    assert answer.headers["content-type"].startswith("text/plain")


def test_a_wrong_method_is_a_path_that_is_none(isol8):
    assert isol8.http.put("/sessions").status_code == 404

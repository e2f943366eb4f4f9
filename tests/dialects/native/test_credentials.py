# ruff: noqa: ANN001, ANN201 - fixtures and stand-ins are typed where they are defined

from __future__ import annotations

import httpx2
import pytest

KEY = "sk-live-never-shown"
RULES = [{"methods": ["POST"], "paths": ["/v1/chat", "/v1/**"]}]


@pytest.fixture
def shared(server):
    made = server.client.put("/credentials/openai", json={"key": KEY, "endpoints": RULES})
    assert made.status_code == 200, made.text
    yield made.json()
    server.client.delete("/credentials/openai")


def test_what_a_project_keeps_is_shown_without_its_key(server, shared):
    assert shared == {
        "service": "openai",
        "key": "own",
        "upstream": "https://api.openai.com/v1",
        "url": "http://169.254.1.1:3130/proxy/openai",
        "env": {
            "OPENAI_API_KEY": "sk-cove-proxy-managed",
            "OPENAI_BASE_URL": "http://169.254.1.1:3130/proxy/openai",
        },
        "endpoints": RULES,
        "created_at": shared["created_at"],
        "changed_at": shared["changed_at"],
    }
    listed = server.client.get("/credentials")
    assert shared in listed.json()["credentials"]
    assert KEY not in listed.text
    changed = server.client.put("/credentials/openai", json={"endpoints": []}).json()
    assert (changed["endpoints"], changed["changed_at"]) == ([], shared["changed_at"])
    rotated = server.client.put("/credentials/openai", json={"key": "sk-2"}).json()
    assert rotated["created_at"] == shared["created_at"]
    for _ in range(2):
        assert server.client.delete("/credentials/openai").status_code == 204
    assert server.client.get("/credentials").json() == {"credentials": []}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "key"),
        ({"key": ""}, "key"),
        ({"key": None}, "key"),
        ({"key": 5}, "key"),
        ({"key": f"{KEY}\n"}, "key"),
        ({"key": f"{KEY}\u00e9"}, "key"),
        ({"key": KEY * 500}, "key"),
        ({"key": KEY, "more": 1}, "more"),
        ({"key": KEY, "endpoints": [{"paths": ["v1"]}]}, "endpoints"),
        ({"key": KEY, "endpoints": [{"paths": ["/a/../b"]}]}, "endpoints"),
        ({"key": KEY, "endpoints": [{"methods": ["get"]}]}, "endpoints"),
        ({"key": KEY, "endpoints": [{}] * 65}, "endpoints"),
        ({"key": KEY, "endpoints": {}}, "endpoints"),
    ],
)
def test_a_bad_one_is_refused_and_not_repeated(server, body, field):
    answer = server.client.put("/credentials/github", json=body)
    assert answer.status_code in {400, 413}, answer.text
    assert answer.json()["field"].split("[")[0] == field
    assert KEY not in answer.text
    assert server.client.get("/credentials").json() == {"credentials": []}


def test_an_unknown_service_names_those_that_there_are(server):
    answer = server.client.put("/credentials/nobody", json={"key": KEY})
    assert (answer.status_code, answer.json()["field"]) == (404, "service")
    assert "anthropic, github, google, huggingface, openai" in answer.json()["detail"]
    assert server.client.put("/credentials/openai", json={"key": KEY, "project": "nowhere"}).status_code == 404
    assert server.client.get("/credentials?project=nowhere").status_code == 404


def test_services_of_the_operator(server):
    body = {"upstream": "https://Search.Example:8443/v2/", "header": "X-Key", "value": "{key}", "strip_query": ["key"]}
    made = server.client.put("/credential-services/search", json=body)
    assert made.status_code == 200, made.text
    assert made.json() == {
        "name": "search", "description": "", "upstream": "https://search.example:8443/v2", "header": "X-Key",
        "value": "{key}", "strip_headers": [], "strip_query": ["key"], "env": {}, "builtin": False,
    }  # fmt: skip
    names = [one["name"] for one in server.client.get("/credential-services").json()["services"]]
    assert names == sorted([*names])
    assert {"search", "openai"} <= set(names)
    assert server.client.delete("/credential-services/search").status_code == 204
    assert server.client.delete("/credential-services/search").status_code == 404
    assert server.client.delete("/credential-services/openai").status_code == 404
    for upstream in ("http://a.example", "https://10.0.0.1", "https://127.0.0.1", "ftp://a", "https://a@b.example", ""):
        refused = server.client.put("/credential-services/search", json={"upstream": upstream})
        assert (refused.status_code, refused.json()["field"]) == (400, "upstream"), upstream


def test_a_key_without_the_scopes_changes_nothing(server, shared):
    minted = server.client.post("/keys", json={"name": "reader", "scopes": ["read", "create"]}).json()
    with httpx2.Client(base_url=f"{server.url}/api/v1", headers={"X-API-Key": minted["key"]}) as reader:
        assert shared in reader.get("/credentials").json()["credentials"]
        for method, path, body in (
            ("PUT", "/credentials/openai", {"key": "x"}),
            ("DELETE", "/credentials/openai", None),
            ("PUT", "/credential-services/mine", {"upstream": "https://a.example"}),
            ("DELETE", "/credential-services/mine", None),
            ("POST", "/server/rekey", None),
        ):
            assert reader.request(method, path, json=body).status_code == 403, path
    assert shared in server.client.get("/credentials").json()["credentials"]


def test_another_projects_sandbox_has_none(server, box):
    server.client.post("/projects", json={"id": "elsewhere"})
    scopes = ["read", "create", "keys"]
    minted = server.client.post("/keys", json={"name": "x", "project": "elsewhere", "scopes": scopes}).json()
    with httpx2.Client(base_url=f"{server.url}/api/v1", headers={"X-API-Key": minted["key"]}) as stranger:
        for method, path, body in (
            ("GET", f"/sandboxes/{box}/credentials", None),
            ("PUT", f"/sandboxes/{box}/credentials/openai", {"key": "x"}),
            ("DELETE", f"/sandboxes/{box}/credentials/openai", None),
            ("GET", "/credentials?project=default", None),
            ("PUT", "/credentials/openai", {"key": "x", "project": "default"}),
            ("DELETE", "/credentials/openai?project=default", None),
        ):
            assert stranger.request(method, path, json=body).status_code == 404, path


def test_a_sandbox_gets_one_where_it_can_have_a_network(server, driver):
    path = f"/sandboxes/{server.sandbox()['id']}/credentials/openai"
    answers = [
        server.client.post("/sandboxes", json={"credentials": {"openai": {"key": KEY, "endpoints": RULES}}}),
        server.client.put(path, json={"key": KEY}),
    ]
    assert not [answer for answer in answers if KEY in answer.text]
    if driver == "fake":
        assert [(answer.status_code, answer.json()["field"]) for answer in answers] == [(501, "credentials")] * 2
        return
    assert [answer.status_code for answer in answers] == [201, 200], [answer.text for answer in answers]
    made = f"/sandboxes/{answers[0].json()['id']}"
    (held,) = server.client.get(f"{made}/credentials").json()["credentials"]
    assert (held["service"], held["key"], held["endpoints"]) == ("openai", "own", RULES)
    shown = server.client.post(f"{made}/exec", json={"command": "env"}).json()["stdout"]
    assert "OPENAI_API_KEY=sk-cove-proxy-managed\n" in shown
    assert KEY not in shown
    for _ in range(2):
        assert server.client.delete(f"{made}/credentials/openai").status_code == 204
    assert server.client.get(f"{made}/credentials").json() == {"credentials": []}


@pytest.mark.parametrize(
    ("credentials", "status"),
    [
        ({"nobody": KEY}, 404),
        ({"openai": f"{KEY}\n"}, 400),
        ({"openai": {"key": KEY, "endpoints": [{"paths": ["x"]}]}}, 400),
        ({"openai": {"key": KEY, "more": 1}}, 400),
        ({"openai": 5}, 400),
        ({"openai": ""}, 400),
        ([KEY], 400),
        ({f"s{n}": KEY for n in range(33)}, 400),
    ],
)
def test_a_create_with_a_bad_one_makes_nothing(server, credentials, status):
    before = len(server.client.get("/sandboxes").json()["sandboxes"])
    answer = server.client.post("/sandboxes", json={"credentials": credentials})
    assert answer.status_code in {status, 501}, answer.text
    assert KEY not in answer.text
    assert len(server.client.get("/sandboxes").json()["sandboxes"]) == before


def test_all_secrets_are_sealed_anew(server, shared):
    assert server.client.post("/server/rekey").json()["secrets"] >= 1
    assert (server.data_dir / "secrets.key").stat().st_mode & 0o7777 == 0o600
    assert KEY.encode() not in (server.data_dir / "cove.db").read_bytes()

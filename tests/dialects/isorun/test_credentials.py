"""Section 11 of docs/protocols/isorun.md. What the broker does with a request: tests/system/test_credentials.py."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from tests.dialects.conftest import DialectServer
from tests.dialects.isorun.conftest import Make
from tests.dialects.isorun.test_commands import execute

KEY = "sk-real-and-never-shown"
BASE = "http://169.254.1.1:3130/proxy"
TABLE = {
    "openai": {"OPENAI_API_KEY": "sk-isorun-proxy-managed", "OPENAI_BASE_URL": f"{BASE}/openai"},
    "anthropic": {"ANTHROPIC_API_KEY": "sk-ant-isorun-proxy-managed", "ANTHROPIC_BASE_URL": f"{BASE}/anthropic"},
    "google": {"GOOGLE_API_KEY": "isorun-proxy-managed", "GOOGLE_BASE_URL": f"{BASE}/google"},
    "github": {"GITHUB_TOKEN": "isorun-proxy-managed", "GITHUB_API_URL": f"{BASE}/github"},
    "huggingface": {"HUGGINGFACE_TOKEN": "isorun-proxy-managed", "HUGGINGFACE_BASE_URL": f"{BASE}/huggingface"},
}


@pytest.fixture(autouse=True)
def network(request: pytest.FixtureRequest, driver: str) -> None:
    if driver == "fake" and "make" in request.fixturenames:
        pytest.skip("its sandboxes have no network, thus no way to the broker")


def test_placeholders_and_addresses_stand_in_the_environment(
    server: DialectServer, runs: httpx2.Client, make: Make
) -> None:
    run = make(credentials=dict.fromkeys(TABLE, KEY))
    found = dict(line.split("=", 1) for line in str(execute(runs, run, "env")["stdout"]).splitlines() if "=" in line)
    for variables in TABLE.values():
        for name, value in variables.items():
            assert found[name] == value
    everywhere = execute(runs, run, f"grep -rsl '{KEY[:12]}' /proc/[0-9]*/environ /etc /run /tmp /root; true")
    assert everywhere["stdout"] == ""
    held = server.client.get(f"/sandboxes/sb_{run[3:]}/credentials")
    assert {one["service"] for one in held.json()["credentials"]} == set(TABLE)
    for text in (held.text, runs.get(f"/v1/runs/{run}").text, runs.get(f"/v1/runs/{run}/audit").text):
        assert KEY not in text


def test_older_names_are_aliases(runs: httpx2.Client, make: Make) -> None:
    run = make(credentials={"OPENAI_API_KEY": KEY})
    assert execute(runs, run, "echo $OPENAI_API_KEY")["stdout"] == "sk-isorun-proxy-managed\n"


def test_the_second_form_has_rules(server: DialectServer, make: Make) -> None:
    rules = [{"methods": ["GET"], "paths": ["/repos/**"]}, {"methods": [], "paths": ["/user"]}]
    run = make(credentials_v2={"github": {"key": KEY, "endpoints": rules}, "openai": {"key": KEY}})
    held = server.client.get(f"/sandboxes/sb_{run[3:]}/credentials").json()["credentials"]
    found = {one["service"]: one["endpoints"] for one in held}
    assert found == {"github": rules, "openai": []}


@pytest.mark.parametrize(
    "body",
    [
        {"credentials": {"none-such": KEY}},
        {"credentials": {"openai": ""}},
        {"credentials": {"openai": 3}},
        {"credentials": {"openai": KEY, "OPENAI_API_KEY": KEY}},
        {"credentials_v2": {"openai": KEY}},
        {"credentials_v2": {"openai": {"endpoints": []}}},
        {"credentials_v2": {"openai": {"key": KEY, "endpoints": [{"paths": ["v1"]}]}}},
    ],
)
def test_a_wrong_credential_is_400_named_and_not_repeated(
    runs: httpx2.Client, driver: str, body: dict[str, Any]
) -> None:
    answer = runs.post("/v1/runs", json={"image": "base", **body})
    if driver == "fake" and answer.status_code == 501:
        return  # it has no network, which is said first
    assert (answer.status_code, set(answer.json())) == (400, {"error"}), answer.text
    assert KEY not in answer.text
    assert any(word in answer.text for word in ("credentials", "key", "endpoints"))

"""The unmodified npm client over every method, option and error that keeps no memory. What does: tests/system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.dialects.conftest import DialectServer, started

from npm_support import Client, cases_in, modules_at, results_of

CASES = cases_in("sdk.mjs")


@pytest.fixture(scope="module")
def results(server: DialectServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = modules_at(tmp_path_factory.mktemp("sdk"))
    return results_of(place, "sdk.mjs", Client(f"{server.url}/isorun", server.key, "base"))


@pytest.mark.parametrize("case", CASES)
def test_the_client(results: dict[str, Any], case: str) -> None:
    assert case in results, f"it ended before; {list(results)}"
    assert not results[case].get("error"), results[case]["error"]


def test_a_full_server(tmp_path: Path) -> None:
    place = modules_at(tmp_path)
    with started(COVE_MAX_SANDBOXES="2", COVE_MAX_CONNECTIONS="16") as full:
        found = results_of(place, "limits.mjs", Client(f"{full.url}/isorun", full.key, "base"))
    assert set(found) == set(cases_in("limits.mjs"))
    assert [one["error"] for one in found.values() if one.get("error")] == []

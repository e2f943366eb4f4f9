"""Code in contexts, over whole HTTP requests: one line in a warm kernel, and the first one after a create."""

from __future__ import annotations

import time
from pathlib import Path

from bench.common import SETUP_DIR, Api, Report, make_server, quantiles, timed, wait_pool

LINE_MS = 5.0
FIRST_MS = 30.0
IMAGE = "code"
POOL = 4


def bench_code(report: Report, folder: Path, rounds: int) -> None:
    """On a server of its own whose pool has kernels. By turns, so that all languages see the same noise."""
    if not (SETUP_DIR / "images" / IMAGE / "current").exists():
        report.add("code in contexts", "-", f"no image {IMAGE} here")
        return
    server = make_server(folder, COVE_POOL_SIZE=str(POOL), COVE_POOL_IMAGES=IMAGE, COVE_DRIVERS="runc")
    server.start()
    try:
        api = Api(server)
        _first(report, api, max(rounds // 10, 5))
        _lines(report, api, rounds)
    finally:
        server.down()


def _first(report: Report, api: Api, rounds: int) -> None:
    samples, both = [], []
    for _ in range(rounds):
        wait_pool(api, POOL, IMAGE)
        time.sleep(0.2)  # the filling's last kernel settles
        start = time.perf_counter()
        box = api.call("POST", "/sandboxes", {"image": IMAGE})
        made = time.perf_counter()
        api.call("POST", f"/sandboxes/{box['id']}/code", {"code": "1 + 1"})
        if box["source"] == "warm":
            samples.append(time.perf_counter() - made)
            both.append(time.perf_counter() - start)
        api.call("DELETE", f"/sandboxes/{box['id']}")
    p50, p99 = quantiles(samples)
    seen = f"p50 {p50:.2f}  p99 {p99:.2f} ms (with the create p50 {quantiles(both)[0]:.2f})"
    report.add("first run after a create, warm", f"p50 <= {FIRST_MS:g} ms", seen, ok=p50 <= FIRST_MS)


def _lines(report: Report, api: Api, rounds: int) -> None:
    box = api.call("POST", "/sandboxes", {"image": IMAGE})["id"]
    lines = {"python": "1 + 1", "javascript": "1 + 1", "bash": "echo 2"}
    samples: dict[str, list[float]] = {language: [] for language in lines}
    try:
        for number in range(rounds + 5):
            for language, code in lines.items():
                body = {"code": code, "language": language}
                took = timed(lambda body=body: api.call("POST", f"/sandboxes/{box}/code", body))  # type: ignore[misc]
                if number >= 5:
                    samples[language].append(took)
    finally:
        api.call("DELETE", f"/sandboxes/{box}")
    for language, seen in samples.items():
        p50, p99 = quantiles(seen)
        is_bar = language == "python"
        report.add(
            f"run of one line ({language})",
            f"p50 <= {LINE_MS:g} ms" if is_bar else "beside it",
            f"p50 {p50:.2f}  p99 {p99:.2f} ms",
            ok=p50 <= LINE_MS if is_bar else None,
        )

"""A command of a long-lived shell beside one that is started anew, over whole HTTP requests."""

from __future__ import annotations

from bench.common import Api, Report, quantiles, timed

BAR_MS = 2.0


def bench_shells(report: Report, api: Api, rounds: int) -> None:
    """An empty command takes no time, so all of it is the round trip. By turns, so that all see the same noise."""
    box = api.call("POST", "/sandboxes", {})["id"]
    samples: dict[str, list[float]] = {}
    try:
        shells = {
            f"a shell's command ({program})": (
                f"/sandboxes/{box}/shells/"
                f"{api.call('POST', f'/sandboxes/{box}/shells', {'program': program})['id']}/run"
            )
            for program in ("bash", "sh")
        }
        ways = shells | {"exec, the same as text for sh -c": f"/sandboxes/{box}/exec"}
        for number in range(rounds + 5):
            for name, path in ways.items():
                took = timed(lambda path=path: api.call("POST", path, {"command": ":"}))  # type: ignore[misc]
                if number >= 5:
                    samples.setdefault(name, []).append(took)
    finally:
        api.call("DELETE", f"/sandboxes/{box}")
    for name, seen in samples.items():
        p50, p99 = quantiles(seen)
        is_shell = name in shells
        report.add(
            name,
            f"p50 <= {BAR_MS:g} ms" if is_shell else "beside it",
            f"p50 {p50:.2f}  p99 {p99:.2f} ms",
            ok=p50 <= BAR_MS if is_shell else None,
        )

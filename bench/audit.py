"""What the audit trail costs a command: `exec true` on a server that notes it, beside one that does not.

Both run at once and are asked by turns, so that they see the same noise. `python -m bench.audit` runs this part alone.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bench.common import Api, Report, make_server, quantiles, timed

UNAUDITED = Path(__file__).with_name("unaudited")
BAR_MS = 0.2


def bench_audit(report: Report, folder: Path, rounds: int) -> None:
    """All of it."""
    servers = {
        "with": make_server(folder, COVE_POOL_SIZE="1", COVE_DRIVERS="runc"),
        "without": make_server(folder, COVE_POOL_SIZE="1", COVE_DRIVERS="runc", PYTHONPATH=str(UNAUDITED)),
    }
    times: dict[str, list[float]] = {kind: [] for kind in servers}
    try:
        runs = {}
        for kind, server in servers.items():
            server.start()
            api = Api(server)
            path = f"/sandboxes/{api.call('POST', '/sandboxes', {})['id']}"
            runs[kind] = (api, path)
            for _ in range(20):
                api.call("POST", f"{path}/exec", {"command": ["true"]})
            count = len(api.call("GET", f"{path}/audit")["lines"])  # type: ignore[arg-type]
            assert (count > 20) is (kind == "with"), f"{count} lines in the trail of the server {kind} audit"
        for turn in range(2 * rounds):
            kind = ("with", "without")[turn % 2]
            api, path = runs[kind]
            times[kind].append(
                timed(lambda api=api, path=path: api.call("POST", f"{path}/exec", {"command": ["true"]}))
            )
    finally:
        for server in servers.values():
            if server.process is not None:
                server.down()
    noted, plain = quantiles(times["with"])[0], quantiles(times["without"])[0]
    added = noted - plain
    report.add(
        "exec `true`, in the audit trail", "<= 0.2 ms added", f"p50 {noted:.3f} (+{added:.3f}) ms", ok=added <= BAR_MS
    )


def main() -> None:
    """This part alone; `--quick` takes a tenth of the samples."""
    with tempfile.TemporaryDirectory(prefix="cove-bench-", dir="/var/tmp") as folder:
        bench_audit(Report(), Path(folder), 100 if "--quick" in sys.argv else 1000)


if __name__ == "__main__":
    main()

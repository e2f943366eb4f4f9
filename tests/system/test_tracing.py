"""Traces arrive at a real collector, hold what an operator needs, and nothing of what a caller sent."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests_support import free_port, make_server

pytestmark = pytest.mark.real

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"


class Collector:
    """What a collector got."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.raw = b""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.raw += body
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        outer.spans += scope.spans
                self.send_response(200 if self.path == "/v1/traces" else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    one = Collector()
    thread = threading.Thread(target=one.server.serve_forever)
    thread.start()
    yield one
    one.server.shutdown()
    thread.join()
    one.server.server_close()


def attributes(span: Span) -> dict[str, object]:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in span.attributes}


def test_a_request_is_a_span_of_its_callers_trace(tmp_path: Path, collector: Collector) -> None:
    server = make_server(tmp_path, COVE_OTLP_ENDPOINT=collector.url, COVE_POOL_SIZE="0")
    server.start()
    try:
        with server.client() as client:
            headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "X-Request-Id": "mine-1"}
            box = client.post("/sandboxes", json={"image": "base"}, headers=headers).json()
            client.post(f"/sandboxes/{box['id']}/exec", json={"command": "echo a-secret-word"}).raise_for_status()
            client.delete(f"/sandboxes/{box['id']}").raise_for_status()
    finally:
        server.down()
    by_name = {span.name: span for span in collector.spans}
    create = by_name["native create_sandbox"]
    assert (create.trace_id.hex(), create.parent_span_id.hex()) == (TRACE, CALLER)
    told = attributes(create)
    assert (told["http.response.status_code"], told["cove.request_id"]) == (201, "mine-1")
    start = by_name["sandbox.start"]
    assert start.parent_span_id == create.span_id
    assert create.start_time_unix_nano <= start.start_time_unix_nano < start.end_time_unix_nano
    run = by_name["native run_command"]
    assert run.trace_id.hex() != TRACE
    assert attributes(run)["cove.sandbox"] == box["id"].removeprefix("sb_")
    assert by_name["agent.exec"].parent_span_id == run.span_id
    assert b"a-secret-word" not in collector.raw
    assert server.key.encode() not in collector.raw


def test_a_collector_that_is_gone_costs_spans_and_no_request(tmp_path: Path) -> None:
    server = make_server(tmp_path, COVE_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}", COVE_POOL_SIZE="0")
    server.start()
    with server.client() as client:
        for _ in range(20):
            assert client.get("/sandboxes").status_code == 200
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.callback(server.down)
        server.stop()
        assert time.monotonic() - began < 45

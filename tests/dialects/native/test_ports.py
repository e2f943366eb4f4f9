"""Ports through the proxy, on the wire: what arrives inside, what comes back, and who may come in."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.dialects.conftest import DialectServer
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests_support import free_port

APP = Path(__file__).parents[2] / "port_app.py"


class App:
    """A running `port_app.py` in a sandbox, seen through the proxy. `root`: its path form, below the server."""

    def __init__(self, server: DialectServer, box: str, port: int) -> None:
        self.server, self.box, self.port = server, box, port
        self.ports = f"/sandboxes/{box}/ports"
        self.base = f"{self.ports}/{port}/http"
        self.root = f"/api/v1{self.base}"
        self.host = f"{port}-{box.replace('_', '-')}.localhost"
        self.authority = server.url.removeprefix("http://")
        self.client = server.client

    def connect(self) -> socket.socket:
        host, _, port = self.authority.partition(":")
        return socket.create_connection((host, int(port)), timeout=60)

    def send(self, head: str, body: bytes = b"", *, key: bool = True) -> bytes:
        """One request as these bytes, and all that comes back until the server closes."""
        with self.connect() as sock:
            lines = head.format(root=self.root, host=self.authority).replace("\n", "\r\n")
            auth = f"Authorization: Bearer {self.server.key}\r\n" if key else ""
            sock.sendall(f"{lines}\r\n{auth}Connection: close\r\n\r\n".encode("latin-1") + body)
            with contextlib.suppress(ConnectionResetError):
                return b"".join(iter(lambda: sock.recv(65536), b""))
            return b""

    def raw(self, answer: bytes, path: str = "/raw") -> httpx2.Response:
        return self.client.get(f"{self.base}{path}", params={"b64": base64.urlsafe_b64encode(answer).decode()})

    def as_host(self, path: str, **more: Any) -> httpx2.Response:
        headers = {"Host": f"{self.host}:{self.authority.partition(':')[2]}", **more.pop("headers", {})}
        return httpx2.get(f"{self.server.url}{path}", headers=headers, timeout=60, **more)

    def expose(self, access: str) -> dict[str, Any]:
        answer = self.client.put(f"{self.ports}/{self.port}", json={"access": access})
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def app(server: DialectServer) -> Iterator[App]:
    port = free_port()  # the fake driver shares the machine's network
    box = str(server.sandbox()["id"])
    path = f"/tmp/port_app_{port}.py"
    server.client.put(f"/sandboxes/{box}/files/content", params={"path": path}, content=APP.read_bytes())
    started = server.client.post(f"/sandboxes/{box}/commands", json={"command": ["python3", path, str(port)]})
    assert started.status_code == 201, started.text
    found = App(server, box, port)
    deadline = time.monotonic() + 60
    while server.client.get(f"{found.base}/").status_code != 200:
        assert time.monotonic() < deadline, started.text
        time.sleep(0.05)
    yield found
    server.client.delete(f"/sandboxes/{box}")
    Path(path).unlink(missing_ok=True)


@pytest.fixture
def by_key(app: App) -> Iterator[App]:
    yield app
    app.client.delete(f"{app.ports}/{app.port}")


def seen(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    found = answer.json()
    found["by_name"] = {name.lower(): value for name, value in found["headers"]}
    return found


@pytest.mark.parametrize(
    "path",
    ["/", "/a/b/", "/%2e%2e/%2E%2E/etc", "//double//slash", "/a%00b%0a%0d", "/a;b=c", "/..;/x", "/a%2Fb%5c", "/./../..",
     "/x?", "/?a=%20b&c&d=%zz+", "/?cove=1;2", "/%E2%82%AC%ff", "/http/ports/1/http/x"],
)  # fmt: skip
def test_paths_and_queries_arrive_as_sent(app: App, path: str) -> None:
    for head in (f"GET {{root}}{path} HTTP/1.1\nHost: {{host}}", f"GET {path} HTTP/1.1\nHost: {app.host}"):
        answer = app.send(head)
        body = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert body["target"] == path.rstrip("?") if path.endswith("?") else path


def test_a_path_out_of_the_prefix_is_no_port(app: App) -> None:
    """What a decoder or a normalizer might take for a port's path, or for a way out of it, is neither."""
    prefix = f"/api/v1/sandboxes/{app.box}"
    for path in (
        f"{prefix}%2Fports/{app.port}/http/",
        f"{prefix}/ports/{app.port}/%68ttp/",
        f"{prefix}/ports/0x50/http/",
        f"/api/v1/sandboxes/x/../{app.box}/ports/{app.port}/http/",
        f"{prefix}/ports/{app.port}/httpx/",
        f"{prefix}//ports/{app.port}/http/",
    ):
        answer = app.send(f"GET {path} HTTP/1.1\nHost: {{host}}")
        assert answer.split(b" ")[1] in {b"404", b"405"}, (path, answer)
    answer = app.send("GET {root}/../../../../../server HTTP/1.1\nHost: {host}")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["target"] == "/../../../../../server"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "REPORT", "SEARCH"])
def test_every_method_goes_through(app: App, method: str) -> None:
    found = seen(app.client.request(method, f"{app.base}/x", content=b"body" if method != "GET" else None))
    assert found["method"] == method
    assert found["size"] == (0 if method == "GET" else 4)


def test_the_key_stays_here_and_the_way_is_told(app: App) -> None:
    found = seen(app.client.get(f"{app.base}/", headers={"X-Forwarded-For": "6.6.6.6", "X-Real-IP": "6.6.6.6"}))
    text = json.dumps(found)
    assert app.server.key not in text
    assert "6.6.6.6" not in text
    by_name = found["by_name"]
    assert by_name["x-forwarded-for"] == "127.0.0.1"
    assert by_name["x-forwarded-proto"] == "http"
    assert by_name["x-forwarded-host"] == by_name["host"] == app.authority
    assert by_name["x-forwarded-prefix"] == app.root


def test_an_authorization_that_is_none_of_ours_is_the_application_s(app: App) -> None:
    headers = {"Authorization": "Basic YTpi", "X-API-Key": app.server.key}
    found = seen(httpx2.get(app.server.url + app.root + "/", headers=headers))
    assert found["by_name"]["authorization"] == "Basic YTpi"
    assert "x-api-key" not in found["by_name"]


def test_a_revoked_key_reaches_no_application_either(by_key: App) -> None:
    by_key.expose("public")
    made = by_key.client.post("/keys", json={"name": "gone", "scopes": ["exec"]}).json()
    by_key.client.delete(f"/keys/{made['id']}")
    headers = {"Authorization": f"Bearer {made['key']}", "X-API-Key": "the application's own"}
    found = seen(httpx2.get(by_key.server.url + by_key.root + "/", headers=headers))
    assert "authorization" not in found["by_name"]
    assert found["by_name"]["x-api-key"] == "the application's own"


def test_bodies_go_in_by_length_and_by_chunks(app: App) -> None:
    data = bytes(range(256)) * 20_000
    digest = hashlib.sha256(data).hexdigest()
    by_length = seen(app.client.post(f"{app.base}/", content=data))
    assert (by_length["size"], by_length["sha256"]) == (len(data), digest)
    assert "transfer-encoding" not in by_length["by_name"]
    by_chunks = seen(app.client.post(f"{app.base}/", content=iter([data[:7], data[7:100_000], data[100_000:]])))
    assert (by_chunks["size"], by_chunks["sha256"]) == (len(data), digest)
    assert "content-length" not in by_chunks["by_name"]


def test_trailers_of_a_request_do_not_become_headers(app: App) -> None:
    body = b"3\r\nabc\r\n0\r\nX-Late: evil\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n"
    answer = app.send("POST {root}/ HTTP/1.1\nHost: {host}\nTransfer-Encoding: chunked", body)
    found = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert found["size"] == 3
    assert "evil" not in json.dumps(found)


def test_answers_come_back_however_they_are_framed(app: App) -> None:
    assert app.client.get(f"{app.base}/close").text == "until the end"
    chunked = app.client.get(f"{app.base}/chunked?n=50")
    assert chunked.text == "".join(f"{number};" for number in range(50))
    assert "x-t" not in chunked.headers
    big = app.client.get(f"{app.base}/big?n=3000001")
    assert (len(big.content), big.headers["content-length"]) == (3_000_001, "3000001")
    head = app.client.head(f"{app.base}/tell?header=X-A:%201")
    assert (head.headers["content-length"], head.headers["x-a"], head.content) == ("4", "1", b"")
    none = app.raw(b"HTTP/1.1 204 None\r\nContent-Length: 0\r\n\r\n")
    assert (none.status_code, none.content) == (204, b"")
    same = app.raw(b"HTTP/1.1 304 Same\r\nETag: x\r\nContent-Length: 9\r\n\r\n")
    assert (same.status_code, same.headers["etag"]) == (304, "x")
    hints = app.raw(b"HTTP/1.1 103 Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert hints.text == "ok"


@pytest.mark.parametrize(
    ("path", "body"), [("/chunked?n=3", b"0;1;2;"), ("/close", b"until the end"), ("/tell", b"told")]
)
def test_an_old_client_gets_answers_that_end_with_the_connection(app: App, path: str, body: bytes) -> None:
    head, _, got = app.send(f"GET {{root}}{path} HTTP/1.0\nHost: {{host}}").partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert got == body


def test_events_come_one_by_one(app: App) -> None:
    with app.client.stream("GET", f"{app.base}/sse?n=8") as answer:
        times = [time.monotonic() for line in answer.iter_lines() if line]
    assert len(times) == 8
    assert times[-1] - times[0] > 0.35


def test_body_and_answer_flow_at_the_same_time(app: App) -> None:
    with app.connect() as sock:
        lines = (f"POST {app.root}/talk HTTP/1.1", f"Host: {app.authority}", f"X-API-Key: {app.server.key}",
                 "Transfer-Encoding: chunked", "", "")  # fmt: skip
        sock.sendall("\r\n".join(lines).encode())
        file = sock.makefile("rb")
        while file.readline().strip():
            pass
        for word in (b"one", b"three"):
            sock.sendall(b"%x\r\n%b\r\n" % (len(word), word))
            assert int(file.readline(), 16) == len(word)
            assert file.readline().strip() == word.upper()
        sock.sendall(b"0\r\n\r\n")
        assert file.readline().strip() == b"0"


def test_an_early_answer_ends_an_upload(app: App) -> None:
    started = time.monotonic()
    with app.connect() as sock:
        lines = (f"POST {app.root}/early HTTP/1.1", f"Host: {app.authority}", f"X-API-Key: {app.server.key}",
                 "Content-Length: 100000000", "", "")  # fmt: skip
        sock.sendall("\r\n".join(lines).encode() + b"x" * 1000)
        assert sock.recv(100).startswith(b"HTTP/1.1 413 ")
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(("said", "status"), [("100", b"200"), ("417", b"417")])
def test_expect_is_decided_by_the_application(app: App, said: str, status: bytes) -> None:
    with app.connect() as sock:
        lines = (f"POST {app.root}/expect?answer={said} HTTP/1.1", f"Host: {app.authority}", "Connection: close",
                 f"X-API-Key: {app.server.key}", "Content-Length: 3", "Expect: 100-continue", "", "")  # fmt: skip
        sock.sendall("\r\n".join(lines).encode())
        first = sock.recv(65536)
        if said == "100":
            assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
            sock.sendall(b"abc")
            first = sock.recv(65536)
        assert first.split(b" ")[1] == status


@pytest.mark.parametrize(
    "answer",
    [b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
     b"HTTP/1.1 700 Odd\r\n\r\n",
     b"HTTP/1.1 101 No\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"],
)  # fmt: skip
def test_what_is_no_answer_is_502(app: App, answer: bytes) -> None:
    found = app.raw(answer)
    assert (found.status_code, found.json()["code"]) == (502, "bad-upstream")
    assert str(app.port) in found.json()["detail"]


def test_a_head_without_an_end_is_502(app: App) -> None:
    found = app.client.get(f"{app.base}/endless")
    assert (found.status_code, found.json()["code"]) == (502, "bad-upstream")


def test_a_program_that_thinks_too_long_is_504(app: App) -> None:
    found = app.client.get(f"{app.base}/slow?s=20")
    assert (found.status_code, found.json()["code"]) == (504, "upstream-timeout")
    assert str(app.port) in found.json()["detail"]
    assert app.client.get(f"{app.base}/slow?s=1").text == "at last"


def test_a_cut_answer_is_cut(app: App) -> None:
    with pytest.raises(httpx2.RemoteProtocolError):
        app.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")


def test_where_nobody_listens_it_says_so_to_programs_and_people(app: App) -> None:
    free = app.client.get(f"{app.ports}/1/http/")
    assert (free.status_code, free.json()["code"]) == (502, "bad-upstream")
    assert "port 1 " in free.json()["detail"]
    page = app.client.get(f"{app.ports}/1/http/", headers={"Accept": "text/html"})
    assert page.status_code == 502
    assert page.headers["content-type"].startswith("text/html")
    assert "nothing listens on port 1 " in page.text
    for port in ("0", "65536", "99999"):
        assert app.client.get(f"{app.ports}/{port}/http/").status_code == 400


def test_requests_share_a_connection_and_repeat_on_another(app: App) -> None:
    first = app.client.get(f"{app.base}/connection").text
    assert {app.client.get(f"{app.base}/connection").text for _ in range(5)} == {first}
    # This one cannot be repeated, so it does not trust a connection that may have been closed.
    assert seen(app.client.post(f"{app.base}/"))["connection"] > int(first)
    # A key of its own has connections of its own.
    made = app.client.post("/keys", json={"name": "other", "scopes": ["exec"]}).json()
    mine = app.client.get(f"{app.base}/connection").text
    other = httpx2.get(app.server.url + app.root + "/connection", headers={"X-API-Key": made["key"]}).text
    assert mine != other


def test_redirects_and_cookies_are_moved_below_the_prefix(app: App) -> None:
    headers = (f"Location: http://localhost:{app.port}/next", "Set-Cookie: a=1; Domain=localhost", "Clear-Site-Data: *")
    answer = app.client.get(f"{app.base}/tell", params={"header": headers, "status": "302 Found"})
    assert answer.status_code == 302
    assert answer.headers["location"] == f"http://{app.authority}{app.root}/next"
    assert answer.headers["set-cookie"] == f"a=1; Path={app.root}/"
    assert "clear-site-data" not in answer.headers
    assert answer.headers["content-security-policy"].startswith("sandbox ")


def test_the_prefix_alone_leads_to_its_slash(app: App) -> None:
    answer = app.client.get(f"{app.base}?a=1", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{app.root}/?a=1")


def test_a_websocket_goes_through(app: App) -> None:
    url = f"ws://{app.authority}{app.root}/ws"
    with connect(url, additional_headers={"X-API-Key": app.server.key}, max_size=None) as peer:
        for message in ("hello", b"\0\1", "x" * 100_000, b"y" * 300_000):
            peer.send(message)
            assert peer.recv() == message
    with pytest.raises(InvalidStatus) as refused:
        connect(url)
    assert refused.value.response.status_code == 401


def test_any_other_upgrade_is_a_wire(app: App) -> None:
    with app.connect() as sock:
        lines = (f"GET {app.root}/switch HTTP/1.1", f"Host: {app.authority}", f"X-API-Key: {app.server.key}",
                 "Connection: Upgrade", "Upgrade: shout", "", "early ")  # fmt: skip
        sock.sendall("\r\n".join(lines).encode())
        time.sleep(0.1)
        sock.sendall(b"late ")
        sock.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"upgrade: shout" in head.lower()
    assert rest == b"hello EARLY LATE BYE"


def test_an_upgrade_that_is_not_made_is_a_request_as_any(app: App) -> None:
    one = f"GET {app.root}/connection HTTP/1.1\r\nHost: {app.authority}\r\nX-API-Key: {app.server.key}\r\n"
    with app.connect() as sock:
        sock.sendall(f"{one}Connection: Upgrade\r\nUpgrade: shout\r\n\r\n{one}Connection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.count(b"HTTP/1.1 200 ") == 2


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ("Content-Length: 5\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
        ("Content-Length: 5\nContent-Length: 6", b"hello!"),
        ("Content-Length: +5", b"hello"),
        ("Content-Length: 5, 5", b"hello"),
        ("Transfer-Encoding: chunked, identity", b"0\r\n\r\n"),
        ("Transfer-Encoding: xchunked", b"0\r\n\r\n"),
        ("Transfer-Encoding : chunked", b"0\r\n\r\n"),
        ("X: a\n  Transfer-Encoding: chunked", b"0\r\n\r\n"),
        ("Transfer-Encoding: chunked", b"5;\nx\r\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked", b"0x5\r\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked", b"5\r\nhelloX\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked", b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
        ("Host: other", b""),
        ("X: a\0b", b""),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(app: App, headers: str, body: bytes) -> None:
    smuggled = f"GET {app.root}/smuggled HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    answer = app.send("POST {root}/early HTTP/1.1\nHost: {host}\n" + headers, body + smuggled)
    assert b"smuggled" not in answer
    # A body that breaks later may meet an answer that came before; a head never gets through.
    assert answer.count(b"HTTP/1.1 ") <= 1 or b" 400 " in answer
    if not body.startswith((b"5", b"0x", b"ff")):
        assert answer.startswith(b"HTTP/1.1 400 "), answer[:200]


def test_bare_line_feeds_are_no_request(app: App) -> None:
    with app.connect() as sock:
        sock.sendall(f"GET {app.root}/ HTTP/1.1\nHost: x\nX-API-Key: {app.server.key}\n\n".encode())
        assert sock.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_who_may_come_in_by_key(app: App) -> None:
    url = app.server.url + app.root + "/"
    assert httpx2.get(url).status_code == 401
    assert httpx2.get(url, headers={"X-API-Key": "cove_nobody"}).status_code == 401
    reader = app.client.post("/keys", json={"name": "r", "scopes": ["read"]}).json()["key"]
    assert httpx2.get(url, headers={"X-API-Key": reader}).status_code == 403
    assert app.as_host("/", headers={"X-API-Key": app.server.key}).status_code == 200
    assert app.as_host("/").status_code == 401


def test_another_project_s_key_opens_nothing(app: App) -> None:
    app.server.operator.post("/projects", json={"id": "elsewhere"})
    made = app.server.operator.post("/keys", json={"name": "e", "project": "elsewhere", "scopes": ["exec", "create"]})
    headers = {"X-API-Key": made.json()["key"]}
    assert httpx2.get(app.server.url + app.root + "/", headers=headers).status_code == 404
    assert httpx2.put(f"{app.server.url}/api/v1{app.ports}/80", headers=headers, json={}).status_code == 404
    assert httpx2.get(f"{app.server.url}/api/v1{app.ports}", headers=headers).status_code == 403


def test_a_closed_port_and_no_sandbox_look_the_same_to_a_stranger(app: App) -> None:
    answers = {
        (answer.status_code, answer.json()["detail"])
        for path in (app.root, app.root.replace(app.box, "sb_0000000000000000"), app.root.replace(app.box, "no-such"))
        if (answer := httpx2.get(app.server.url + path + "/"))
    }
    assert len(answers) == 1


def test_public_is_for_everybody_until_it_is_closed(by_key: App) -> None:
    assert by_key.expose("public")["access"] == "public"
    assert httpx2.get(by_key.server.url + by_key.root + "/").status_code == 200
    assert by_key.as_host("/x").json()["target"] == "/x"
    assert by_key.client.delete(f"{by_key.ports}/{by_key.port}").status_code == 204
    assert httpx2.get(by_key.server.url + by_key.root + "/").status_code == 401
    assert by_key.client.get(f"{by_key.ports}/{by_key.port}").json()["access"] == "key"


def test_a_token_opens_its_port_and_becomes_a_cookie(by_key: App) -> None:
    made = by_key.expose("token")
    token = made["token"]
    url = by_key.server.url + by_key.root
    assert "token" not in by_key.client.get(f"{by_key.ports}/{by_key.port}").json()
    for wrong in ("", "ct_x", token[:-1], token.upper(), "é" * 400):
        assert httpx2.get(f"{url}/", params={"cove_token": wrong}).status_code == 401
    by_header = httpx2.get(f"{url}/", headers={"X-Cove-Token": token})
    assert by_header.status_code == 200
    assert token not in by_header.text
    first = httpx2.get(f"{url}/page?a=%20&cove_token={token}&b=1")
    assert (first.status_code, first.headers["location"]) == (303, f"{by_key.root}/page?a=%20&b=1")
    assert first.headers["referrer-policy"] == "no-referrer"
    assert first.headers["set-cookie"] == f"cove_token={token}; Path={by_key.root}; HttpOnly; SameSite=Lax"
    cookies = {"Cookie": f"x=1; cove_token=of-another; cove_token={token}"}
    inside = httpx2.get(f"{url}/page", headers=cookies)
    assert dict(inside.json()["headers"])["cookie"] == "x=1"
    posted = httpx2.post(f"{url}/?cove_token={token}", content=b"x")
    assert posted.json()["target"] == "/"
    # The token is the port's alone, and a new one ends it.
    assert httpx2.get(f"{by_key.server.url}/api/v1{by_key.ports}/1/http/", headers=cookies).status_code == 401
    assert httpx2.get(f"{by_key.server.url}/api/v1/sandboxes/{by_key.box}", headers=cookies).status_code == 401
    by_key.expose("token")
    assert httpx2.get(f"{url}/", headers=cookies).status_code == 401


@pytest.mark.parametrize("path", ["//evil.example/x", "/\\evil.example", "///evil.example", "/%2f%2fevil.example"])
def test_a_token_s_redirect_cannot_lead_elsewhere(by_key: App, path: str) -> None:
    token = by_key.expose("token")["token"]
    head = f"GET {path}?cove_token={token} HTTP/1.1\nHost: {by_key.host}"
    answer = by_key.send(head, key=False)
    if b" 400 " in answer[:20]:
        return
    location = next(line for line in answer.split(b"\r\n") if line.startswith(b"location: "))[10:]
    assert location[:1] == b"/"
    assert location[1:2] not in {b"/", b"\\"}


def test_host_names_of_the_domain_that_are_none(app: App) -> None:
    port = app.authority.partition(":")[2]
    for name in ("80-nobody_here", "80-", "80", "99999-x", f"{app.port}-sb-000"):
        answer = httpx2.get(
            app.server.url + "/", headers={"Host": f"{name}.localhost:{port}", "X-API-Key": app.server.key}
        )
        assert answer.status_code in {400, 404}, name
    named = app.client.get(f"/sandboxes/{app.box}").json()["name"]
    headers = {"Host": f"{app.port}-{named}.localhost", "X-API-Key": app.server.key}
    assert httpx2.get(app.server.url + "/x", headers=headers).json()["target"] == "/x"
    # Below a port's name there is nothing of the API.
    assert app.as_host("/api/v1/server", headers={"X-API-Key": app.server.key}).json()["target"] == "/api/v1/server"


def test_ports_are_listed_with_what_listens(by_key: App) -> None:
    found = {one["port"]: one for one in by_key.client.get(by_key.ports).json()["ports"]}
    assert found[by_key.port]["listening"] is True
    assert found[by_key.port]["access"] == "key"
    assert found[by_key.port]["path"] == by_key.root + "/"
    by_key.client.put(f"{by_key.ports}/9", json={"access": "public"})
    nine = by_key.client.get(f"{by_key.ports}/9").json()
    assert (nine["access"], nine["listening"], nine["host_port"]) == ("public", False, None)
    assert by_key.client.delete(f"{by_key.ports}/9").status_code == 204
    assert by_key.client.delete(f"{by_key.ports}/9").status_code == 204
    for port in ("0", "65536", "x", "-1"):
        assert by_key.client.put(f"{by_key.ports}/{port}", json={}).status_code in {400, 404}


def test_rows_end_with_their_sandbox(server: DialectServer) -> None:
    box = server.sandbox()["id"]
    server.client.put(f"/sandboxes/{box}/ports/80", json={"access": "public"})
    assert httpx2.get(f"{server.url}/api/v1/sandboxes/{box}/ports/80/http/").status_code == 502
    server.client.delete(f"/sandboxes/{box}")
    assert httpx2.get(f"{server.url}/api/v1/sandboxes/{box}/ports/80/http/").status_code == 401
    assert server.client.get(f"/sandboxes/{box}/ports/80/http/").status_code == 410
    assert server.client.put(f"/sandboxes/{box}/ports/80", json={}).status_code == 410


def test_a_paused_sandbox_wakes_for_a_request(app: App) -> None:
    app.client.post(f"/sandboxes/{app.box}/pause")
    listed = app.client.get(app.ports).json()["ports"]
    assert all(one["listening"] is None for one in listed)
    assert app.client.get(f"/sandboxes/{app.box}").json()["state"] == "paused"
    assert app.client.get(f"{app.base}/").status_code == 200
    assert app.client.get(f"/sandboxes/{app.box}").json()["state"] == "running"


def test_a_page_of_another_origin_is_not_the_local_operator(app: App) -> None:
    """Somebody may forward the unix socket to a port of their browser's machine: a page there has no key."""
    operator = app.server.operator
    assert operator.get(f"{app.base}/").status_code == 200
    assert operator.get(f"{app.base}/", headers={"Origin": "http://localhost"}).status_code == 200
    assert operator.post(f"{app.base}/echo", headers={"Origin": "https://evil.example"}).status_code == 401


def test_a_page_of_another_sandbox_has_nothing_of_the_cookie(app: App, by_key: App) -> None:
    """All host names of sandboxes are of one site, so a browser sends the cookie with what any of their pages sends."""
    del by_key
    cookie = {"Cookie": f"cove_token={app.expose('token')['token']}"}
    other = f"http://{app.port}-sb-{'0' * 16}.localhost"
    sibling = f"http://1-{app.host.partition('-')[2]}:81"
    for origin, status in ((None, 200), (f"http://{app.host}", 200), (sibling, 200), (other, 401), ("null", 401)):
        headers = cookie if origin is None else {**cookie, "Origin": origin}
        assert app.as_host("/", headers=headers).status_code == status, origin


def test_a_body_in_another_coding_than_chunks_is_refused(app: App) -> None:
    head = "POST {root}/echo HTTP/1.1\nHost: {host}\nTransfer-Encoding: gzip, chunked"
    assert app.send(head, b"2\r\nab\r\n0\r\n\r\n").startswith(b"HTTP/1.1 400 ")

"""Images in the native API: names in the query, scopes, events or one answer. Registries: tests/system."""

# ruff: noqa: ANN001, ANN201, ANN202 - fixtures are typed where they are defined
from __future__ import annotations

import io
import tarfile
import time

import httpx2
import pytest

EVENTS = {"Accept": "text/event-stream"}


def rootfs_tar(text: bytes = b"hello\n") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("etc", "bin"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        info = tarfile.TarInfo("etc/greeting")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text))
    return out.getvalue()


def is_swept(server) -> bool:
    """Whether nothing half-made is left, a moment after the server saw its client go."""
    deadline = time.monotonic() + 60
    while list((server.data_dir / "pulled" / "work").iterdir()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_built_in_images_are_listed_shown_and_stay(server):
    images = server.client.get("/images").json()["images"]
    base = next(one for one in images if one["name"] == "base")
    assert (base["status"], base["origin"], base["manifest_digest"]) == ("ready", "builtin", None)
    shown = server.client.get("/images/inspect", params={"name": "base"}).json()
    assert shown == base | {"config": shown["config"]}
    assert set(shown["config"]) == {"env", "workdir", "user", "entrypoint", "command", "labels"}
    answer = server.client.delete("/images", params={"name": "base"})
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("nothing-of-that-name", 404),
        ("localhost/nope:1", 404),
        ("ghcr.io/nobody/x@sha256:" + "0" * 64, 404),
        ("../../etc/passwd", 400),
        ("UPPER", 400),
        ("x" * 513, 400),
        ("a\nb", 400),
        ("", 400),
    ],
)
def test_a_name_that_is_none_is_told_as_such(server, name, status):
    for method, path in (("GET", "/images/inspect"), ("DELETE", "/images"), ("POST", "/images/verify")):
        answer = server.client.request(method, path, params={"name": name})
        assert (answer.status_code, answer.json()["field"]) == (status, "name" if len(name) in {0, 513} else "image")
    if status == 404:
        assert server.client.get("/images/export", params={"name": name}).status_code == 404
        assert "cove image ls" in server.client.get("/images/inspect", params={"name": name}).json()["hint"]


def test_what_one_may_do_is_said_by_scopes(server):
    made = server.client.post("/keys", json={"name": "reader", "scopes": ["read"]}).json()
    with httpx2.Client(base_url=f"{server.url}/api/v1", headers={"X-API-Key": made["key"]}) as reader:
        assert reader.get("/images").status_code == 200
        assert reader.get("/images/inspect?name=base").status_code == 200
        for method, path, body in (
            ("POST", "/images/pull", {"json": {"reference": "alpine"}}),
            ("POST", "/images/import?name=x", {"content": b"x"}),
            ("POST", "/images/build?name=x", {"json": {}}),
            ("POST", "/images/build?name=x", {"content": b"x"}),
            ("DELETE", "/images?name=base", {}),
        ):
            assert reader.request(method, path, **body).json()["code"] == "forbidden", path
    made = server.client.post("/keys", json={"name": "creator", "scopes": ["read", "create"]}).json()
    with httpx2.Client(base_url=f"{server.url}/api/v1", headers={"X-API-Key": made["key"]}) as creator:
        assert creator.post("/images/build?name=x", json={}).json()["code"] == "forbidden"  # it would run commands


@pytest.mark.parametrize("accept", [{}, EVENTS])
def test_a_pull_that_cannot_begin_is_a_status_not_a_stream(server, accept):
    for reference, status in (("NO", 400), ("localhost/x", 400), ("a b", 400)):
        answer = server.client.post("/images/pull", json={"reference": reference}, headers=accept)
        assert (answer.status_code, answer.json()["code"]) == (status, "bad-request")
    body = {"reference": "alpine", "username": "a:b", "password": "s3cret-word"}
    answer = server.client.post("/images/pull", json=body, headers=accept)
    assert (answer.status_code, answer.json()["field"]) == (400, "username")
    assert "s3cret-word" not in answer.text + (server.data_dir / "log").read_text()
    wrong = server.client.post("/images/pull", json={"reference": "alpine", "passwort": "s3cret-word"}, headers=accept)
    assert (wrong.status_code, "s3cret-word" in wrong.text) == (400, False)


@pytest.mark.real
def test_a_file_system_is_imported_listed_exported_and_removed(server):
    answer = server.client.post("/images/import?name=greet:v1", content=rootfs_tar())
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert (made["name"], made["origin"], made["status"]) == ("localhost/greet:v1", "imported", "ready")
    assert server.client.get("/images/inspect?name=greet:v1").json() == made
    assert made["name"] in [one["name"] for one in server.client.get("/images").json()["images"]]
    assert server.client.post("/images/verify?name=greet:v1").json() == made
    archive = server.client.get("/images/export?name=greet:v1")
    assert int(archive.headers["content-length"]) == len(archive.content)
    with tarfile.open(fileobj=io.BytesIO(archive.content)) as tar:
        assert {"oci-layout", "index.json"} <= set(tar.getnames())
    # As events this time; the tree is the same, so is its digest.
    with server.client.stream("POST", "/images/import?name=again", content=archive.content, headers=EVENTS) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.read().decode().splitlines()
    assert lines[-3] == "event: done"
    assert f'"digest":"{made["digest"]}"' in lines[-2]
    for name in ("greet:v1", "again"):
        assert server.client.delete("/images", params={"name": name}).status_code == 204
        assert server.client.delete("/images", params={"name": name}).status_code == 404


@pytest.mark.real
def test_an_image_of_another_project_does_not_exist(server):
    assert server.client.post("/images/import?name=mine", content=rootfs_tar()).status_code == 200
    server.client.post("/projects", json={"id": "elsewhere"})
    scopes = ["read", "create", "exec", "files", "destroy"]
    made = server.client.post("/keys", json={"name": "e", "project": "elsewhere", "scopes": scopes}).json()
    with httpx2.Client(base_url=f"{server.url}/api/v1", headers={"X-API-Key": made["key"]}) as other:
        assert "localhost/mine:latest" not in [one["name"] for one in other.get("/images").json()["images"]]
        for method, path in (("GET", "/inspect"), ("GET", "/export"), ("POST", "/verify"), ("DELETE", "")):
            assert other.request(method, f"/images{path}?name=localhost/mine").status_code == 404, path
        assert other.post("/sandboxes", json={"image": "localhost/mine"}).status_code == 404
    assert server.client.delete("/images?name=mine").status_code == 204


@pytest.mark.real
@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, rootfs_tar()[:700]])
def test_an_upload_that_is_no_archive_is_refused_and_leaves_nothing(server, content):
    for accept in ({}, EVENTS):
        answer = server.client.post("/images/import?name=bad", content=content, headers=accept)
        said = answer.text
        assert "bad-request" in said, said
    assert server.client.get("/images/inspect?name=bad").status_code == 404
    assert is_swept(server)


@pytest.mark.real
def test_an_upload_that_breaks_off_leaves_nothing(server):
    def broken():
        yield rootfs_tar()[:600]
        raise ConnectionError

    with pytest.raises(ConnectionError):
        server.client.post("/images/import?name=bad", content=broken())
    assert server.client.get("/images/inspect?name=bad").status_code == 404
    assert is_swept(server)


@pytest.mark.parametrize(
    "body",
    [{"from": "base", "comands": []}, {"commands": "ls"}, {"from": 1}, {"files": {"/x": 1}}],
)
def test_a_recipe_with_a_mistake_is_refused_by_field(server, body):
    answer = server.client.post("/images/build?name=x", json=body)
    assert answer.status_code == 400
    assert answer.json()["field"] in {"comands", "commands", "from", "files"}

"""The requests about files, as data. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cove.sdk import models
from cove.sdk.errors import BadRequest
from cove.sdk.models import FileInfo
from cove.sdk.transport import Call, Retry
from cove.sdk.wire import Page, box_path, checked, nothing, page_of


def _file(wire: Any) -> FileInfo:
    return models.file(checked(wire))


def _removed(wire: Any) -> int:
    return int(checked(wire).get("removed") or 0)


def file_path(path: str) -> str:
    """Return `path` if it can be one inside.

    Raises: BadRequest. The server checks everything again; this spares a round trip for the common slip.
    """
    if not path.startswith("/") or "\0" in path:
        raise BadRequest(f"path: {path!r} is not absolute", field="path", hint="write the whole path, such as /root/a")
    return path


def stat(ref: str, path: str) -> Call[FileInfo]:
    """GET …/files."""
    return Call("GET", box_path(ref, "/files"), _file, query={"path": file_path(path)}, retry=Retry.LOST)


def list_files(ref: str, path: str, cursor: str | None) -> Call[Page]:
    """GET …/files/list, one page of it."""
    query: dict[str, str | list[str] | None] = {"path": file_path(path), "limit": "1000", "cursor": cursor}
    return Call("GET", box_path(ref, "/files/list"), page_of("entries"), query=query, retry=Retry.LOST)


def download(ref: str, path: str, *, offset: int, length: int | None) -> Call[None]:
    """GET …/files/content: raw bytes, or a part of them."""
    headers: dict[str, str] = {}
    if offset or length is not None:
        headers["range"] = f"bytes={offset}-{'' if length is None else offset + length - 1}"
    query = {"path": file_path(path)}
    return Call("GET", box_path(ref, "/files/content"), nothing, query=query, headers=headers, retry=Retry.LOST)


def upload(  # noqa: PLR0913 - the wire's own options
    ref: str, path: str, data: Any, *, size: int | None, mode: int | None, flags: Mapping[str, bool]
) -> Call[FileInfo]:
    """PUT …/files/content: raw bytes of any size. Bytes may be sent again, a stream is read only once."""
    return Call(
        "PUT",
        box_path(ref, "/files/content"),
        _file,
        query={
            "path": file_path(path),
            "mode": None if mode is None else f"{mode:04o}",
            "parents": "true" if flags["parents"] else "false",
            "exclusive": "true" if flags["exclusive"] else None,
            "sync": "true" if flags["sync"] else None,
        },
        body=data,
        headers={} if size is None else {"content-length": str(size)},
        retry=Retry.LOST if isinstance(data, bytes) and not flags["exclusive"] else Retry.NEVER,
    )


def mkdir(ref: str, path: str, *, mode: int, parents: bool) -> Call[FileInfo]:
    """POST …/files/mkdir."""
    body = {"path": file_path(path), "mode": f"{mode:04o}", "parents": parents}
    return Call("POST", box_path(ref, "/files/mkdir"), _file, json=body)


def move(ref: str, source: str, target: str, *, overwrite: bool) -> Call[FileInfo]:
    """POST …/files/move."""
    body = {"from": file_path(source), "to": file_path(target), "overwrite": overwrite}
    return Call("POST", box_path(ref, "/files/move"), _file, json=body)


def remove(ref: str, path: str, *, recursive: bool) -> Call[int]:
    """DELETE …/files."""
    return Call(
        "DELETE",
        box_path(ref, "/files"),
        _removed,
        query={"path": file_path(path), "recursive": "true" if recursive else "false"},
    )


def set_attributes(
    ref: str, path: str, *, modes: Mapping[str, int | None], facts: Mapping[str, int | str | None], recursive: bool
) -> Call[FileInfo]:
    """PATCH …/files."""
    body: dict[str, Any] = {"path": file_path(path)}
    body |= {name: f"{mode:04o}" for name, mode in modes.items() if mode is not None}
    body |= {name: fact for name, fact in facts.items() if fact is not None}
    if recursive:
        body["recursive"] = True
    return Call("PATCH", box_path(ref, "/files"), _file, json=body, retry=Retry.LOST)

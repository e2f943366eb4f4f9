"""Between the wire of trees and the core: pure functions."""

from __future__ import annotations

from typing import Final

import msgspec

from cove.dialects.native import wire_trees as wire
from cove.dialects.native.translate import file_view, mode_of
from cove.edge.errors import Where
from cove.model.files import Attributes, FileInfo
from cove.model.trees import (
    FindEnd,
    Match,
    Replacement,
    Search,
    SearchEnd,
    Stopped,
    TreeUsage,
    Unpacking,
    Walk,
)

_ENCODE: Final = msgspec.json.Encoder().encode


def walk_of(query: wire.FindQuery | wire.SearchQuery | wire.Replace) -> Walk:
    """Which part of a tree is meant."""
    return Walk(depth=query.depth, glob=query.glob, exclude=query.exclude, timeout_s=query.timeout_s)


def search_of(query: wire.SearchQuery) -> Search:
    """What is looked for."""
    return Search(
        pattern=query.pattern,
        literal=query.literal,
        ignore_case=query.ignore_case,
        max_file_bytes=query.max_file_bytes,
        max_line_bytes=query.max_line_bytes,
    )


def replace_of(body: wire.Replace) -> Search:
    """What is to be replaced."""
    return Search(
        pattern=body.pattern,
        literal=body.literal,
        ignore_case=body.ignore_case,
        max_file_bytes=body.max_file_bytes,
    )


def unpacking_of(query: wire.UnpackQuery) -> Unpacking:
    """How to unpack."""
    return Unpacking(
        owner=query.owner,
        group=query.group,
        owners=query.owners,
        special=query.special,
        any_links=query.any_links,
        max_bytes=query.max_bytes,
    )


def attributes_of(body: wire.SetAttributes) -> Attributes:
    """What is to change."""
    return Attributes(
        mode=mode_of(body.mode, where=Where.BODY),
        uid=-1 if body.uid is None else body.uid,
        gid=-1 if body.gid is None else body.gid,
        owner=body.owner,
        group=body.group,
        recursive=body.recursive,
        directory_mode=mode_of(body.directory_mode, field="directory_mode", where=Where.BODY),
    )


def encode_found(piece: list[FileInfo] | FindEnd) -> bytes:
    """A piece of a list as lines."""
    if isinstance(piece, FindEnd):
        stopped = _reason(piece.stopped)
        return _end(wire.FindEnd(entries=piece.entries, unreadable=piece.unreadable, stopped=stopped))
    return b"".join([_ENCODE(file_view(info)) + b"\n" for info in piece])


def encode_matches(piece: list[Match] | SearchEnd) -> bytes:
    """A piece of a search as lines."""
    if isinstance(piece, SearchEnd):
        return _end(
            wire.SearchEnd(
                matches=piece.matches,
                files=piece.files,
                binary=piece.binary,
                too_large=piece.too_large,
                unreadable=piece.unreadable,
                stopped=_reason(piece.stopped),
            )
        )
    return b"".join([_ENCODE(_match_view(match)) + b"\n" for match in piece])


def replacement_view(done: Replacement) -> wire.Replacement:
    """What was replaced."""
    return wire.Replacement(
        files=tuple(wire.Replaced(path=one.path, replacements=one.replacements) for one in done.files),
        replacements=done.replacements,
        searched=done.searched,
        binary=done.binary,
        too_large=done.too_large,
        unreadable=done.unreadable,
        stopped=_reason(done.stopped),
    )


def usage_view(usage: TreeUsage) -> wire.TreeUsage:
    """What a tree holds."""
    return wire.TreeUsage(
        bytes=usage.bytes,
        allocated_bytes=usage.allocated_bytes,
        files=usage.files,
        directories=usage.directories,
        symlinks=usage.symlinks,
        others=usage.others,
        unreadable=usage.unreadable,
        stopped=_reason(usage.stopped),
    )


def _match_view(match: Match) -> wire.Match:
    return wire.Match(
        path=match.path,
        line=match.line,
        column=match.column,
        length=match.length,
        text=match.text,
        cut=match.cut,
    )


def _end(end: wire.FindEnd | wire.SearchEnd) -> bytes:
    return b'{"end":%b}\n' % _ENCODE(end)


def _reason(stopped: Stopped | None) -> wire.Reason | None:
    return None if stopped is None else stopped.value

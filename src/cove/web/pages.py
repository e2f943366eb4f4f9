"""The browsable page of the native API, and its OpenAPI document. Files lie in `assets/`.

The page builds its elements from the document with `textContent` only, and the policy below forbids everything that
does not come from this server, so no text in a document can become code.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final

import msgspec

from cove.dialects.native import wire
from cove.edge.dialect import Dialect
from cove.edge.errors import NoSuchRoute
from cove.edge.openapi import document
from cove.edge.ops import Call, Nothing, Op, Raw

SECURITY: Final = (
    (
        b"content-security-policy",
        (
            b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
            b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)
DESCRIPTION: Final = (
    "Isolated sandboxes that run untrusted code. Authenticate with `Authorization: Bearer KEY` or `X-API-Key: KEY`; "
    "over the server's unix socket no key is needed. Errors are RFC 9457 problems."
)
ASSETS: Final = {"docs.css": b"text/css; charset=utf-8", "docs.js": b"text/javascript; charset=utf-8"}


class Pages:
    """The files, read once."""

    def __init__(self, native: Dialect, version: str) -> None:
        folder = files("cove.web") / "assets"
        self._page = (folder / "docs.html").read_bytes()
        self._assets = {name: (folder / name).read_bytes() for name in ASSETS}
        api = document(native, title="Cove native API", version=version, description=DESCRIPTION, problem=wire.Problem)
        self._api = msgspec.json.encode(api)

    async def page(self, call: Call[None, Nothing]) -> Raw:
        """The page."""
        del call
        return Raw(self._page, b"text/html; charset=utf-8", headers=list(SECURITY))

    async def asset(self, call: Call[None, Nothing]) -> Raw:
        """Its script and style."""
        name = call.path["file"]
        if name not in ASSETS:
            raise NoSuchRoute("no such file")
        return Raw(self._assets[name], ASSETS[name], headers=list(SECURITY))

    async def openapi(self, call: Call[None, Nothing]) -> Raw:
        """The document."""
        del call
        return Raw(self._api, b"application/json", headers=[(b"cache-control", b"no-cache")])


def dialect(native: Dialect, version: str) -> Dialect:
    """The pages, mounted like a dialect; they report failures as the native API does."""
    pages = Pages(native, version)
    tag = "Pages"
    return Dialect(
        name="web",
        prefix="/docs",
        ops=(
            Op(method="GET", path="", handler=pages.page, name="docs", summary="API page", tag=tag, public=True),
            Op(method="GET", path="/errors", handler=pages.page, name="docs", summary="API page", tag=tag, public=True),
            Op(method="GET", path="/{file}", handler=pages.asset, summary="Files of it", tag=tag, public=True),
            Op(
                method="GET",
                path="/openapi.json",
                handler=pages.openapi,
                summary="OpenAPI 3.1",
                tag=tag,
                public=True,
                at_root=True,
            ),
        ),
        errors=native.errors,
    )

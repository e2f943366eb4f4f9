"""OpenAPI 3.1 from a dialect's table of operations. Pure: the same table gives the same document."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from cove.edge.dialect import Dialect
from cove.edge.errors import UpgradeRequired
from cove.edge.exchange import SWITCHING_PROTOCOLS
from cove.edge.ops import Op
from cove.model.errors import BadRequest, CoveError, Forbidden, Unauthorized

_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_REFS: Final = "#/components/schemas/{name}"
JsonObject = dict[str, Any]


def document(
    dialect: Dialect, *, title: str, version: str, description: str, problem: type[msgspec.Struct]
) -> JsonObject:
    """The document of one dialect; `problem` is the body of its errors."""
    types = {kind for op in dialect.ops for kind in (op.body, op.query, op.answer) if kind is not None} | {problem}
    ordered = sorted(types, key=lambda kind: kind.__name__)
    refs, schemas = msgspec.json.schema_components(ordered, ref_template=_REFS)
    by_type = dict(zip(ordered, refs, strict=True))
    paths: JsonObject = {}
    for op in dialect.ops:
        path = op.path if op.at_root else dialect.prefix + op.path
        paths.setdefault(path, {})[op.method.lower()] = _operation(op, dialect, by_type, schemas, problem)
    queries = {op.query.__name__ for op in dialect.ops if op.query is not None}
    tags = list(dict.fromkeys(op.tag for op in dialect.ops))
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "description": description},
        "tags": [{"name": tag} for tag in tags],
        "paths": paths,
        "components": {
            "schemas": {name: schema for name, schema in schemas.items() if name not in queries},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
        "security": [{"bearer": []}, {"header": []}],
    }


def _operation(
    op: Op, dialect: Dialect, refs: dict[type, JsonObject], schemas: JsonObject, problem: type[msgspec.Struct]
) -> JsonObject:
    found: JsonObject = {"operationId": op.id, "summary": op.summary, "tags": [op.tag]}
    if op.description:
        found["description"] = op.description
    if op.scopes:
        found["x-scopes"] = [scope.value for scope in op.scopes]
    if op.websocket:
        found["x-websocket"] = True
    if op.public:
        found["security"] = []
    parameters = _parameters(op, schemas)
    if parameters:
        found["parameters"] = parameters
    if op.upload:
        found["requestBody"] = {"required": True, "content": {"application/octet-stream": {"schema": {}}}}
    elif op.body is not None:
        required = any(field.required for field in msgspec.structs.fields(op.body))
        found["requestBody"] = {"required": required, "content": {"application/json": {"schema": refs[op.body]}}}
    found["responses"] = _responses(op, dialect, refs, problem)
    return found


def _parameters(op: Op, schemas: JsonObject) -> list[JsonObject]:
    found: list[JsonObject] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(op.path)
    ]
    if op.query is not None:
        schema = schemas[op.query.__name__]
        for name, kind in schema["properties"].items():
            one = {"name": name, "in": "query", "required": name in schema.get("required", []), "schema": kind}
            if kind.get("type") == "object":
                one |= {"name": f"{name}.KEY", "schema": {"type": "string"}}
            found.append(one)
    found += [
        {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}
        for name, text in op.headers
    ]
    return found


def _responses(op: Op, dialect: Dialect, refs: dict[type, JsonObject], problem: type[msgspec.Struct]) -> JsonObject:
    success: JsonObject = {"description": op.summary}
    if op.answer is not None:
        success["content"] = {op.media_type: {"schema": refs[op.answer]}}
    elif op.status != 204 and op.media_type != "application/json":  # noqa: PLR2004 - HTTP's own number
        success["content"] = {op.media_type: {"schema": {"type": "string"}}}
    found: JsonObject = {str(SWITCHING_PROTOCOLS if op.websocket else op.status): success}
    kinds: tuple[type[CoveError], ...] = () if op.public else (BadRequest, Unauthorized, Forbidden, *op.errors)
    if op.websocket:
        kinds += (UpgradeRequired,)
    by_status: dict[int, list[str]] = {}
    for kind in kinds:
        for name, row in dialect.errors.rows.items():
            if name == kind.kind or name.startswith(f"{kind.kind}/"):
                words = by_status.setdefault(row.status, [])
                if row.code not in words:
                    words.append(row.code)
    media_type = dialect.errors.media_type.decode()
    for status, codes in sorted(by_status.items()):
        content = {media_type: {"schema": refs[problem]}}
        found[str(status)] = {"description": ", ".join(codes), "content": content}
    return found

"""Operations on keys, projects and the server itself."""

from __future__ import annotations

from typing import Final

from cove.dialects.native import wire_server
from cove.dialects.native.translate import key_view, new_key_view, project_view, server_view
from cove.dialects.native.translate_quotas import optional_quota_of
from cove.edge.metrics import MEDIA_TYPE
from cove.edge.ops import Call, Json, Nothing, Op, Raw, empty
from cove.model.access import Scope
from cove.model.errors import Conflict, Forbidden, NotFound

KEYS: Final = "Keys and projects"
SERVER: Final = "Server"


async def health(call: Call[None, Nothing]) -> Json:
    """It answers."""
    return Json(wire_server.Health("ok", call.services.facts.version))


async def show_server(call: Call[None, Nothing]) -> Json:
    """What it is and has."""
    return Json(server_view(call.core.server_info(call.who), call.services.facts))


async def shut_down(call: Call[wire_server.Shutdown, Nothing]) -> Json:
    """Stop it."""
    left = await call.services.control.shutdown(call.who, destroy_all=call.body.destroy_all)
    return Json(wire_server.ShutdownStarted(left), status=202)


async def metrics(call: Call[None, Nothing]) -> Raw:
    """Prometheus text. `server_info` is asked for its check of the scope."""
    call.core.server_info(call.who)
    return Raw(call.services.metrics.text(), MEDIA_TYPE)


async def docs(call: Call[None, Nothing]) -> Raw:
    """The page is the server's."""
    del call
    return Raw(status=307, headers=[(b"location", b"/docs")])


async def mint_key(call: Call[wire_server.MintKey, Nothing]) -> Json:
    """Make one."""
    body = call.body
    key, text = await call.core.keys.mint(
        call.who,
        body.name,
        body.project,
        map(Scope, body.scopes),
        dialect=body.dialect,
        timeout_s=body.timeout_s,
        quota=optional_quota_of(body.quota),
    )
    return Json(new_key_view(key, text), status=201)


async def list_keys(call: Call[None, Nothing]) -> Json:
    """All of the project."""
    return Json(wire_server.KeyList(tuple(map(key_view, call.core.keys.list(call.who)))))


async def revoke_key(call: Call[None, Nothing]) -> Raw:
    """End one."""
    await call.core.keys.revoke(call.who, call.path["key"])
    return empty()


async def create_project(call: Call[wire_server.NewProject, Nothing]) -> Json:
    """Make one."""
    body = call.body
    made = await call.core.projects.create(call.who, body.id, default_driver=body.default_driver, drivers=body.drivers)
    return Json(project_view(made), status=201)


async def change_project(call: Call[wire_server.ProjectChange, Nothing]) -> Json:
    """Change its drivers."""
    body = call.body
    changed = await call.core.projects.update(
        call.who, call.path["project"], default_driver=body.default_driver, drivers=body.drivers
    )
    return Json(project_view(changed))


async def list_projects(call: Call[None, Nothing]) -> Json:
    """All."""
    return Json(wire_server.ProjectList(tuple(map(project_view, call.core.projects.list(call.who)))))


OPS: Final = (
    Op(
        method="POST",
        path="/keys",
        handler=mint_key,
        summary="Make an API key",
        description="The key is in this answer only. Nobody gives scopes that they lack.",
        tag=KEYS,
        body=wire_server.MintKey,
        answer=wire_server.NewKey,
        status=201,
        scopes=(Scope.KEYS,),
        errors=(NotFound, Forbidden),
    ),
    Op(
        method="GET",
        path="/keys",
        handler=list_keys,
        summary="List keys",
        tag=KEYS,
        answer=wire_server.KeyList,
        scopes=(Scope.KEYS,),
    ),
    Op(
        method="DELETE",
        path="/keys/{key}",
        handler=revoke_key,
        summary="Revoke a key",
        description="It stops at the next request.",
        tag=KEYS,
        status=204,
        scopes=(Scope.KEYS,),
        errors=(NotFound, Forbidden),
    ),
    Op(
        method="POST",
        path="/projects",
        handler=create_project,
        summary="Make a project",
        tag=KEYS,
        body=wire_server.NewProject,
        answer=wire_server.Project,
        status=201,
        scopes=(Scope.ADMIN,),
        errors=(Conflict,),
    ),
    Op(
        method="PATCH",
        path="/projects/{project}",
        handler=change_project,
        summary="Change a project's drivers",
        tag=KEYS,
        body=wire_server.ProjectChange,
        answer=wire_server.Project,
        scopes=(Scope.ADMIN,),
        errors=(NotFound,),
    ),
    Op(
        method="GET",
        path="/projects",
        handler=list_projects,
        summary="List projects",
        tag=KEYS,
        answer=wire_server.ProjectList,
        scopes=(Scope.ADMIN,),
    ),
    Op(
        method="GET",
        path="/server",
        handler=show_server,
        summary="Show the server",
        description="Version, drivers, images, room and isolation.",
        tag=SERVER,
        answer=wire_server.Server,
        scopes=(Scope.READ,),
    ),
    Op(
        method="POST",
        path="/server/shutdown",
        handler=shut_down,
        summary="Stop the server",
        description="Sandboxes go on, unless `all` is true. The answer comes first.",
        tag=SERVER,
        body=wire_server.Shutdown,
        answer=wire_server.ShutdownStarted,
        status=202,
        scopes=(Scope.ADMIN,),
    ),
    Op(
        method="GET",
        path="/health",
        handler=health,
        summary="Whether the server answers",
        tag=SERVER,
        answer=wire_server.Health,
        public=True,
        at_root=True,
    ),
    Op(
        method="GET",
        path="/docs",
        handler=docs,
        summary="This page",
        description="Redirects to /docs.",
        tag=SERVER,
        status=307,
        public=True,
    ),
    Op(
        method="GET",
        path="/metrics",
        handler=metrics,
        summary="Prometheus metrics",
        tag=SERVER,
        media_type="text/plain",
        scopes=(Scope.READ,),
        at_root=True,
    ),
)

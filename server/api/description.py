"""What the API says about itself: OpenAPI as JSON, and the same as a page for people.

Body schemas come from the msgspec types that decode the bodies, error answers from `Problem`; the page needs no script
and nothing from elsewhere.
"""

import json
from collections.abc import Iterator
from typing import cast

import msgspec
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute, iter_route_contexts

from nearcast import __version__
from server.api.auth import Allow
from server.api.bodies import Json, answer
from server.api.html import page
from server.api.problems import MEDIA_TYPE, Problem

router = APIRouter(include_in_schema=False)

_METHODS = ("get", "post", "put", "delete")
_SUMMARY = "Real-time personalisation for retail: events in, coupons out. See docs/reference/http.md."


@router.get("/v1/openapi.json")
async def openapi(request: Request) -> Response:
    """The OpenAPI document."""
    return answer(_document(request))


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The API's routes and examples, for people."""
    return page("docs.html", routes=list(_shown(_document(request))))


def _document(request: Request) -> Json:
    return cast("Json", request.app.state.openapi)


def describe(app: FastAPI) -> Json:
    """The OpenAPI document of an app; made once, when it has all its routes."""
    document = get_openapi(title="nearcast", version=__version__, description=_SUMMARY, routes=app.routes)
    (problem,), components = msgspec.json.schema_components([Problem], ref_template="#/components/schemas/{name}")
    failed = {"description": "A problem (RFC 9457)", "content": {MEDIA_TYPE: {"schema": problem}}}
    roles = dict(_roles(app))
    for path, method, operation in _operations(document):
        components.update(cast("dict[str, Json]", operation.pop("x-components", {})))
        responses = cast("Json", operation["responses"])
        responses.pop("422", None)
        responses["default"] = failed
        operation["x-roles"] = roles.get((path, method), [])
    cast("Json", document.setdefault("components", {}))["schemas"] = components
    return document


def _operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in cast("dict[str, dict[str, Json]]", document["paths"]).items():
        for method in _METHODS:
            if method in methods:
                yield path, method, methods[method]


def _roles(app: FastAPI) -> Iterator[tuple[tuple[str, str], list[str]]]:
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        if isinstance(route, APIRoute):
            guards = [d.dependency for d in route.dependencies if isinstance(d.dependency, Allow)]
            for method in route.methods or ():
                yield (route.path_format, method.lower()), [role for guard in guards for role in guard.roles]


def _shown(document: Json) -> Iterator[Json]:
    for path, method, operation in _operations(document):
        body = cast("dict[str, dict[str, dict[str, dict[str, dict[str, object]]]]]", operation.get("requestBody", {}))
        examples = {name: e for content in body.get("content", {}).values() for name, e in content["examples"].items()}
        yield {
            "method": method.upper(),
            "path": path,
            "summary": operation.get("description", ""),
            "roles": ", ".join(cast("list[str]", operation["x-roles"])) or "none",
            "examples": [(name, json.dumps(e["value"], indent=2)) for name, e in examples.items()],
        }

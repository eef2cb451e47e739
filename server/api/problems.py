"""Errors as `application/problem+json` (RFC 9457), the same for every route.

Besides the standard members a problem has `reason` (a stable code to rely on) and `where` (the field at fault).
`instance` names this one occurrence and is in our log. An internal error says nothing about its inside.
"""

import math
from http import HTTPStatus
from typing import cast

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from nearcast.errors import InputError, TooManyRequests, Unavailable

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
_REASONS = {404: "no_such_route", 405: "method_not_allowed"}


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a failed request's answer holds."""

    type: str
    title: str
    status: int
    detail: str
    reason: str
    instance: str
    where: str = ""


def problem(
    scope: Scope, status: int, reason: str, detail: str, where: str = "", headers: dict[str, str] | None = None
) -> Response:
    """The answer to the request of `scope` that failed."""
    body = Problem(
        type=f"urn:nearcast:problem:{reason}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        reason=reason,
        instance=instance_of(scope),
        where=where,
    )
    return Response(msgspec.json.encode(body), status, headers, MEDIA_TYPE)


def instance_of(scope: Scope) -> str:
    """The name of this request, given by the boundary."""
    return cast("str", scope.get("nearcast.instance", ""))


def headers_of(error: Exception) -> dict[str, str]:
    """The headers that an error's answer needs."""
    match error:
        case TooManyRequests():
            return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
        case Unavailable():
            return {"Retry-After": str(RETRY_AFTER_S)}
        case InputError(status=401):
            return {"WWW-Authenticate": 'Bearer realm="nearcast"'}
        case InputError(status=413):
            # The rest of the body is not read, so the connection can't be used again.
            return {"Connection": "close"}
        case _:
            return {}


def of_input_error(scope: Scope, error: InputError) -> Response:
    return problem(scope, error.status, error.reason, error.detail, error.where, headers_of(error))


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem. Unexpected exceptions are the boundary's."""
    app.add_exception_handler(InputError, _input_error)
    app.add_exception_handler(Unavailable, _unavailable)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(RequestValidationError, _invalid_parameter)


async def _input_error(request: Request, error: Exception) -> Response:
    return of_input_error(request.scope, cast("InputError", error))


async def _unavailable(request: Request, error: Exception) -> Response:
    return problem(request.scope, 503, "unavailable", "try again shortly", headers=headers_of(error))


async def _http_exception(request: Request, error: Exception) -> Response:
    http = cast("HTTPException", error)
    reason = _REASONS.get(http.status_code, "bad_request")
    return problem(request.scope, http.status_code, reason, http.detail, headers=dict(http.headers or {}))


async def _invalid_parameter(request: Request, error: Exception) -> Response:
    first = cast("RequestValidationError", error).errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return problem(request.scope, 422, "invalid_parameter", str(first["msg"]), where)

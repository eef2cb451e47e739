"""Who may call a route: an API key in `Authorization: Bearer` or `X-API-Key`, with one of the route's roles.

Checked before anything of the body is read. No key or an unknown one is 401, a known one without the role 403.
"""

from typing import Annotated, cast

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from nearcast.errors import Forbidden, Unauthenticated
from server.api.keyring import Buckets, Role
from server.api.services import Services

_BEARER = HTTPBearer(auto_error=False, description="An API key")
_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, description="An API key")


def _services(request: Request) -> Services:
    return cast("Services", request.app.state.services)


#: A route's parameter: everything behind the API.
Behind = Annotated[Services, Depends(_services)]


async def _key(
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
    header: Annotated[str | None, Security(_HEADER)],
) -> str | None:
    return bearer.credentials if bearer else header


#: A route's parameter: the key that came with the request.
Key = Annotated[str | None, Depends(_key)]


class Allow:
    """Dependency: the caller has one of `roles`, and has not called too often."""

    def __init__(self, *roles: Role) -> None:
        self.roles = roles

    async def __call__(self, request: Request, services: Behind, key: Key) -> None:
        """Raises `Unauthenticated`, `Forbidden` or `TooManyRequests`."""
        caller = services.keys.caller(key) if key else None
        if caller is None:
            raise Unauthenticated("unauthenticated", "this needs an API key: Authorization: Bearer <key>")
        if not caller.may(self.roles):
            allowed = " or ".join(dict.fromkeys((*self.roles, "admin")))
            raise Forbidden("forbidden", f"this key lacks the role: {allowed}")
        cast("Buckets", request.app.state.buckets).take(caller)

"""One customer over HTTP: read, consent, decisions, erase.

A customer's id may hold a slash, so these paths take the rest of the path as the id.
"""

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response

from nearcast.errors import NotFound
from nearcast.events import ConsentScope
from nearcast.ids import CustomerId
from server.api.auth import Allow, Behind
from server.api.bodies import accepts, answer, checked_id, read

router = APIRouter(tags=["customers"])

#: Bookkeeping of the fold that says nothing about the customer.
_INTERNAL = frozenset({"v", "seen"})


class ConsentChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Consent to one scope, given or withdrawn; withdrawing "all" is an opt-out of everything."""

    scope: ConsentScope
    granted: bool


@router.put(
    "/v1/customers/{customer:path}/consents",
    status_code=204,
    dependencies=[Depends(Allow("intake"))],
    openapi_extra=accepts(
        ConsentChange,
        {"opt out": ConsentChange(scope="all", granted=False), "SMS": ConsentChange(scope="sms", granted=True)},
    ),
)
async def put_consent(customer: str, request: Request, services: Behind) -> Response:
    """Give or withdraw consent. A withdrawal holds for everything sent after the answer."""
    change = await read(request, ConsentChange)
    await services.consent(_id(customer), change.scope, change.granted)
    return Response(status_code=204)


@router.get("/v1/customers/{customer:path}/decisions", dependencies=[Depends(Allow("admin"))])
async def get_decisions(customer: str, services: Behind, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> Response:
    """The newest decisions about a customer, with every gate and score."""
    return answer({"decisions": await services.decisions(_id(customer), limit)})


@router.get("/v1/customers/{customer:path}", dependencies=[Depends(Allow("admin"))])
async def get_customer(customer: str, services: Behind) -> Response:
    """All that is known of a customer."""
    found = await services.customer(_id(customer))
    if found is None:
        raise NotFound("unknown_customer", "nothing is known of this customer")
    profile, presence = found
    return answer({"customer": _readable(profile), "presence": _readable(presence)})


@router.delete("/v1/customers/{customer:path}", status_code=204, dependencies=[Depends(Allow("admin"))])
async def erase_customer(customer: str, services: Behind) -> Response:
    """Erase a customer. Erasing one who was never heard of is fine."""
    await services.erase(_id(customer))
    return Response(status_code=204)


def _id(value: str) -> CustomerId:
    return CustomerId(checked_id(value, "path.customer"))


def _readable(value: object) -> object:
    """State as objects with named fields; in the store much of it is arrays."""
    match value:
        case msgspec.Struct():
            fields = {name: getattr(value, name) for name in value.__struct_fields__ if name not in _INTERNAL}
            return {name: _readable(field) for name, field in fields.items()}
        case dict():
            return {key: _readable(item) for key, item in value.items()}
        case list():
            return [_readable(item) for item in value]
        case _:
            return value

"""`POST /v1/events`: events from the outside, one or many.

What is answered as accepted is durably in the log. One bad event in a batch is reported by its index and costs none of
the others. Events without an id get one, which makes a repeated request a new event: callers who retry send ids.
"""

from collections.abc import Iterable

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from nearcast.errors import InputError
from nearcast.events import Cart, Consent, IntakeEvent, Location, Profile, split_batch
from nearcast.ids import EventId
from nearcast.metrics import INTAKE
from server.api.auth import Allow, Behind
from server.api.bodies import accepts, answer
from server.intake import prepare

router = APIRouter(tags=["events"])

_LOCATION = Location(id="fix-1", uid="anna", ts=1_750_000_000_000, lat=48.2082, lng=16.3738, accuracy_m=8.0)
_CART = Cart(id="cart-1", uid="anna", ts=1_750_000_000_000, action="add", sku="4711", quantity=2, price_cents=399)
_PROFILE = Profile(id="p-1", uid="anna", name="Anna", email="anna@example.com", phone="+15550100", locale="en")
_CONSENT = Consent(id="c-1", uid="anna", scope="websocket", granted=True)


class Accepted(msgspec.Struct, frozen=True):
    """The answer to one event."""

    id: EventId


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a batch that was not accepted; `index` counts from 0."""

    index: int
    reason: str
    detail: str


class BatchResult(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a batch. `ids` has one entry per event, null for a rejected one."""

    accepted: int
    ids: list[EventId | None]
    rejected: list[Rejection]


@router.post(
    "/v1/events",
    status_code=202,
    dependencies=[Depends(Allow("intake"))],
    openapi_extra=accepts(
        IntakeEvent | list[IntakeEvent],
        {"location": _LOCATION, "cart": _CART, "profile": _PROFILE, "batch": [_CONSENT, _LOCATION]},
    ),
)
async def accept_events(request: Request, services: Behind) -> Response:
    """Accept one event, or an array of up to 1,000."""
    body = await request.body()
    if not body.lstrip(b" \t\r\n").startswith(b"["):
        return await _accept_one(body, services)
    return await _accept_batch(split_batch(body), services)


async def _accept_one(body: bytes, services: Behind) -> Response:
    try:
        event = prepare(body, services.clock.now_ms())
    except InputError as error:
        INTAKE.labels(error.reason).inc()
        raise
    (event_id,) = await services.accept([event])
    return answer(Accepted(event_id), 202)


async def _accept_batch(items: Iterable[msgspec.Raw], services: Behind) -> Response:
    events: list[IntakeEvent] = []
    ids: list[EventId | None] = []
    rejected: list[Rejection] = []
    for index, item in enumerate(items):
        try:
            event = prepare(item, services.clock.now_ms())
        except InputError as error:
            INTAKE.labels(error.reason).inc()
            rejected.append(Rejection(index=index, reason=error.reason, detail=error.detail))
            ids.append(None)
        else:
            events.append(event)
            ids.append(event.event_id)
    if events:
        await services.accept(events)
    result = BatchResult(accepted=len(events), ids=ids, rejected=rejected)
    return answer(result, 200 if rejected else 202)

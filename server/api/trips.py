"""Pickups over HTTP: for the staff of a store, who is on the way to it to pick an order up.

Least data: no name, no id and no place of the customer, but the handle by which alerts call them.
"""

import msgspec
from fastapi import APIRouter, Depends, Response

from nearcast.customer import Trip
from nearcast.ids import CustomerId, StoreId
from server.api.auth import Allow, Behind
from server.api.bodies import answer, checked_id
from server.compose import handle_of

router = APIRouter(tags=["pickups"])


class PickupView(msgspec.Struct, frozen=True, kw_only=True):
    """An order whose customer is on the way, or there. `ready`: the shop has said that it is."""

    order: str
    state: str
    since_ms: int
    ready: bool
    #: When they are expected, or came; null if it isn't known.
    eta_ms: int | None
    #: When the last fix was that the estimate is from.
    updated_ms: int | None
    customer: str


@router.get("/v1/stores/{store:path}/pickups", dependencies=[Depends(Allow("staff"))])
async def get_pickups(store: str, services: Behind) -> Response:
    """Who is on the way to a store to pick an order up, and who has come for one: who is expected first comes first.

    `state` is `on_the_way`, `approaching` or `arrived`. Orders that wait, and that nobody has set out for, aren't
    listed.
    """
    found = await services.pickups(StoreId(checked_id(store, "path.store")))
    views = [_view(customer, trip) for customer, trip in found]
    return answer({"pickups": sorted(views, key=lambda view: (view.eta_ms or 2**63, view.order, view.customer))})


def _view(customer: CustomerId, trip: Trip) -> PickupView:
    return PickupView(
        order=trip.order,
        state=trip.state,
        since_ms=trip.since_ms,
        ready=trip.ready,
        eta_ms=trip.eta_ms or None,
        updated_ms=trip.seen_ms or None,
        customer=handle_of(customer),
    )

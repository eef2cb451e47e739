"""One customer over HTTP: read, consent, decisions, messages, logout, erase, and how far erasing got.

A customer's id may hold a slash, so these paths take the rest of the path as the id.
"""

from typing import Annotated
from urllib.parse import quote

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response

from nearcast.errors import NotFound
from nearcast.events import ConsentScope
from nearcast.ids import CustomerId, MessageId, PromotionId, StoreId
from server.api.auth import Allow, Behind
from server.api.bodies import accepts, answer, checked_id, read

router = APIRouter(tags=["customers"])

#: Bookkeeping of the fold that says nothing about the customer.
_INTERNAL = frozenset({"v", "seen", "counted", "confidence", "entering", "leaving", "trail"})


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
    """The newest decisions about a customer, newest first: the moment, and every candidate with its gate and scores.

    A candidate's `stopped_by` names the gate that stopped it, or says why it was not chosen all the same (`outranked`,
    `not_worth_it`, `holdout`, `explored`); the winner has none. For those that got as far as the model there are its
    inputs and answer, value, cost, and how likely each was to be chosen. The newest 100 of the last 30 days are kept.
    """
    return answer({"decisions": await services.decisions(_id(customer), limit)})


@router.get("/v1/customers/{customer:path}/why-not", dependencies=[Depends(Allow("admin"))])
async def get_why_not(
    customer: str,
    services: Behind,
    promotion: Annotated[str, Query(description="Id of the promotion to ask about.")],
    store: Annotated[str | None, Query(description="Id of a store: ask about a moment there.")] = None,
) -> Response:
    """Why a customer does not get a promotion: its conditions, every gate, and what came of it in past decisions.

    Asked about a moment as the promotion waits for one: where the customer is now if it fits there, else (`assumed`) at
    the first place where it would. `conditions` say what makes it a candidate at all, `things` the gates for each thing
    that it would be about; the first gate that does not pass is the reason. `past` are the newest decisions in which it
    was a candidate, and what stopped it or who won.
    """
    wanted = PromotionId(checked_id(promotion, "query.promotion"))
    at = StoreId(checked_id(store, "query.store")) if store is not None else None
    return answer(await services.why_not(_id(customer), wanted, at))


@router.get("/v1/customers/{customer:path}/messages/{message}", dependencies=[Depends(Allow("admin"))])
async def get_delivery(customer: str, message: str, services: Behind) -> Response:
    """What became of a message: `status` by its receipts, `state` as far as the dispatcher got, and its trace.

    The trace begins when the event `arrived` in the log. Each entry after that is the end of a stage: `log`, `decide`,
    `queue` and `dispatch`, and of messages to devices `socket` and `ack`, once one has acknowledged it.
    """
    return answer(await services.delivery(_id(customer), MessageId(checked_id(message, "path.message"))))


@router.get("/v1/customers/{customer:path}", dependencies=[Depends(Allow("admin"))])
async def get_customer(customer: str, services: Behind) -> Response:
    """All that is known of a customer."""
    found = await services.customer(_id(customer))
    if found is None:
        raise NotFound("unknown_customer", "nothing is known of this customer")
    profile, presence = found
    return answer({"customer": _readable(profile), "presence": _readable(presence)})


@router.post(
    "/v1/customers/{customer:path}/messages/{message}/recall", status_code=204, dependencies=[Depends(Allow("admin"))]
)
async def recall_message(customer: str, message: str, services: Behind) -> Response:
    """Take a message back, also an opened one: devices that show it stop, and those that are away never get it.

    It goes by no further channel, and can't be applied any more. An SMS or a mail that went out is out (its link says
    that the offer has been taken back), and a coupon that was applied stays good.
    """
    await services.recall(_id(customer), MessageId(checked_id(message, "path.message")))
    return Response(status_code=204)


@router.post("/v1/customers/{customer:path}/logout", status_code=204, dependencies=[Depends(Allow("admin"))])
async def log_out(customer: str, services: Behind) -> Response:
    """Close the connections of the customer's devices. They can connect again with a token issued after this."""
    await services.logout(_id(customer))
    return Response(status_code=204)


@router.delete("/v1/customers/{customer:path}", status_code=202, dependencies=[Depends(Allow("admin"))])
async def erase_customer(customer: str, services: Behind) -> Response:
    """Begin to erase a customer; nothing is sent to them any more. Erasing one who was never heard of is fine.

    `Location` says where to ask whether it is complete.
    """
    known = _id(customer)
    await services.erase(known)
    begun = answer({"customer": known, "state": "pending"}, 202)
    begun.headers["Location"] = f"/v1/erasures/{quote(known, safe='')}"
    return begun


@router.get("/v1/erasures/{customer:path}", dependencies=[Depends(Allow("admin"))])
async def get_erasure(customer: str, services: Behind) -> Response:
    """Whether the erasure of a customer, and of the visitors who signed in as them, is `pending` or `complete`.

    Of a customer who is erased nothing is kept, so one for whom nobody asked counts as complete, too.
    """
    known = _id(customer)
    return answer({"customer": known, "state": "pending" if await services.erasing(known) else "complete"})


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

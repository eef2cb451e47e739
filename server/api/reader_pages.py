"""Pages behind the links of SMS and e-mail: the offer with its coupon, and unsubscribing.

The signed token is the login. Reading (GET) changes nothing, because mail scanners and previews follow links: the page
itself says that it is opened once somebody sees it, and only the button's POST applies or unsubscribes. Unsubscribing
also takes the one-click POST of RFC 8058. Errors are pages too, for people read them.
"""

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, cast, get_args
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from nearcast.decisions import Decision
from nearcast.errors import Gone, InputError, NotFound, Unavailable
from nearcast.events import ConsentScope
from nearcast.ids import DecisionId, message_id
from server.api.auth import Behind
from server.api.html import page
from server.api.keyring import Buckets, Caller
from server.api.links import Link
from server.api.problems import headers_of
from server.api.services import Services
from server.coupon_signing import qr_svg
from server.coupons import Coupon

_SCOPES: tuple[ConsentScope, ...] = get_args(ConsentScope)
_WHAT: dict[ConsentScope, str] = {
    "all": "anything",
    "location": "messages about where you are",
    "websocket": "messages in the app",
    "sms": "text messages",
    "email": "e-mails",
}
#: What a coupon's page shows once the promotion behind it is gone.
_BARE = {
    "title": "Your coupon",
    "body": "",
    "product": "",
    "store_name": "",
    "price_cents": None,
    "discount_cents": None,
}
#: Everybody who opens a link, to the rate limit: they have no keys, and a bucket per link would take ever more room.
_READERS = Caller(b"readers", frozenset())
_TITLES = {404: "This link is not valid", 410: "Too late", 413: "Too much"}


class _Page(APIRoute):
    """A route whose errors are pages."""

    # FastAPI's own signature has the Any.
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except InputError as error:
                title = _TITLES.get(error.status, "That did not work")
                text = f"{error.detail[:1].upper()}{error.detail[1:]}."
                return page("notice.html", error.status, headers_of(error), title=title, text=text)
            except Unavailable as error:
                text = "We could not do this just now. Please try again in a moment."
                return page("notice.html", 503, headers_of(error), title="One moment, please", text=text)

        return handle


router = APIRouter(tags=["pages"], route_class=_Page)


@router.api_route("/m/{token}", methods=["GET", "HEAD"], include_in_schema=False)
async def show_offer(token: str, services: Behind) -> Response:
    """The offer, and its coupon if it was applied; or the notice."""
    link = services.links.verify("message", token, services.clock.now_ms())
    decision = await _decision(services, link)
    try:
        coupon = await services.coupons.validate(services.coupons.code_of(decision.id))
    except NotFound:
        coupon = None
        await _check_not_recalled(services, link, decision)
    return await _offer_page(services, decision, coupon)


@router.post("/m/{token}/opened", include_in_schema=False)
async def note_opened(token: str, request: Request, services: Behind) -> Response:
    """The page is in front of somebody. Saying so again changes nothing."""
    link = services.links.verify("message", token, services.clock.now_ms())
    cast("Buckets", request.app.state.buckets).take(_READERS)
    decision = await _decision(services, link)
    message = message_id(decision.id, "customer")
    await services.receipt(link.customer, message, decision.id, "opened", link.channel, "")
    return Response(status_code=204)


@router.post("/m/{token}", include_in_schema=False)
async def apply_offer(token: str, services: Behind) -> Response:
    """Apply the offer, and show its code."""
    link = services.links.verify("message", token, services.clock.now_ms())
    decision = await _decision(services, link)
    return await _offer_page(services, decision, await services.apply(link.customer, decision.id, link.channel))


@router.get("/u/{token}", include_in_schema=False)
async def ask_unsubscribe(token: str, services: Behind) -> Response:
    """Ask before unsubscribing."""
    _, scope = _unsubscribe(services, token)
    question = f"Do you no longer want to get {_WHAT[scope]} from us?"
    return page("unsubscribe.html", question=question, done="", everything=scope == "all")


@router.post("/u/{token}", include_in_schema=False)
async def unsubscribe(token: str, request: Request, services: Behind) -> Response:
    """Unsubscribe: at once, and with no further question."""
    link, scope = _unsubscribe(services, token)
    form = parse_qs((await request.body()).decode("latin-1"))
    if form.get("scope") == ["all"]:
        scope = "all"
    await services.consent(link.customer, scope, granted=False)
    done = f"We will not send you {_WHAT[scope]} any more."
    return page("unsubscribe.html", question="", done=done, everything=scope == "all")


def _unsubscribe(services: Services, token: str) -> tuple[Link, ConsentScope]:
    link = services.links.verify("unsubscribe", token, services.clock.now_ms())
    scope: ConsentScope = next((scope for scope in _SCOPES if scope == link.subject), "all")
    return link, scope


async def _decision(services: Services, link: Link) -> Decision:
    decision = await services.decision(link.customer, DecisionId(link.subject))
    if decision is None or decision.customer != link.customer or decision.outcome not in ("offer", "notice"):
        raise NotFound("unknown_decision", "this offer is no more")
    return decision


async def _check_not_recalled(services: Services, link: Link, decision: Decision) -> None:
    """Raises `Gone` if the offer has been taken back, as far as that is known: the coupon book knows it for certain."""
    try:
        report = await services.delivery(link.customer, message_id(decision.id, "customer"))
    except (NotFound, Unavailable):
        return
    if report.state == "recalled":
        what = "offer" if decision.outcome == "offer" else "message"
        raise Gone("offer_recalled", f"this {what} has been taken back: it does not hold any more")


async def _offer_page(services: Services, decision: Decision, coupon: Coupon | None) -> Response:
    offer = await services.push(decision)
    if offer is None and coupon is None:
        raise Gone("promotion_ended", "this offer is no more")
    if coupon is None:
        promotion = await services.promotion(decision.promotion) if decision.promotion is not None else None
        applies = decision.outcome == "offer" and promotion is not None and promotion.coupon.kind != "none"
        return page("offer.html", calls_back=True, offer=offer, coupon=None, applies=applies)
    until = datetime.fromtimestamp(coupon.offer.expires_ms / 1000, UTC)
    return page(
        "offer.html",
        # A coupon that was applied outlives its promotion; only the words are gone then.
        offer=offer or _BARE,
        coupon=coupon,
        qr=qr_svg(services.coupons.token_of(coupon)),
        code="-".join(coupon.code[i : i + 5] for i in range(0, len(coupon.code), 5)),
        until=until.isoformat(),
        until_text=f"{until:%Y-%m-%d %H:%M} UTC",
    )

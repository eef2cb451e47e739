"""The words that the stories are told in: customers with phones, associates with tablets, tills, and the shop's office.

A verb returns when what was done is known to nearcast, and looks at public interfaces only: HTTP, the gateway's socket,
and what the SMS provider holds. What is expected not to come is never waited for: `gets_nothing` finds the decision, or
the delivery report, that says why.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

import httpx

from clients.client import Coupon, Device, Nearcast, Refused
from clients.device import Claim
from nearcast.events import Action, Cart, Channel, Consent, Event, Identify, Line, Location, Profile, Purchase
from nearcast.messages import Push, Withdraw, decode_publication
from server.log.kafka import KafkaOptions
from tests.channels.sms_provider import SmsProvider
from tests.stories import others
from tests.stories import town as places
from tests.system.process import KEYS, Server, eventually

Json = dict[str, Any]
T = TypeVar("T")
_ids = count()
#: Within this time everything is told, however busy the machine.
_SOON_S = 20.0


class Screen:
    """A phone or tablet that is connected, and everything it was told."""

    def __init__(self, server: Server, token: str) -> None:
        self.device = Device(server.gateway, token, on_push=self._told)
        self.pushes: list[Push] = []
        self.withdrawn: list[Withdraw] = []
        self._news = asyncio.Event()

    def _told(self, _: str, data: bytes) -> None:
        what = decode_publication(data)
        if isinstance(what, Push):
            self.pushes.append(what)
        else:
            # That this very device shows it is no news.
            if what.by != self.device.device:
                self.withdrawn.append(what)
        self._news.set()

    async def gets(self, promotion: str, within_s: float) -> Push:
        """Waits for a message of the promotion, shows it and says so."""

        def found() -> Push | None:
            return next((push for push in self.pushes if push.promotion == promotion), None)

        push = await self._comes(found, within_s)
        self.pushes.remove(push)
        await self.device.ack(push)
        return push

    async def loses(self, push: Push, within_s: float) -> Withdraw:
        """Waits until the message is taken back."""

        def found() -> Withdraw | None:
            return next((each for each in self.withdrawn if each.message == push.message), None)

        return await self._comes(found, within_s)

    async def _comes(self, found: Callable[[], T | None], within_s: float) -> T:
        try:
            async with asyncio.timeout(within_s):
                while (what := found()) is None:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"not within {within_s} s; there is {self.pushes + self.withdrawn}") from None
        return what


@dataclass
class Tablet:
    """An associate's tablet, which shows the alerts of one shop."""

    associate: str
    screen: Screen

    async def gets(self, promotion: str) -> Push:
        return await self.screen.gets(promotion, _SOON_S)

    async def claims(self, alert: Push) -> Claim:
        """Says "I'll go"."""
        return await self.screen.device.claim(alert)

    async def loses(self, alert: Push) -> Withdraw:
        return await self.screen.loses(alert, _SOON_S)

    async def has_helped(self, alert: Push) -> None:
        await self.screen.device.close_assist(alert, "helped")


@dataclass
class Till:
    """A till in one shop."""

    town: "Town"
    shop: str

    async def redeems(self, coupon: Coupon, *, paid_cents: int = 0, off_cents: int = 0) -> str:
        """Takes the coupon for a purchase of so much before the discount; the redemption's id."""
        redemption = f"{self.shop}-{next(_ids)}"
        body = {
            "store": self.shop,
            "redemption_id": redemption,
            "revenue_cents": paid_cents,
            "discount_cents": off_cents,
        }
        redeemed = await self.town.ask("POST", f"/v1/coupons/{coupon.code}/redeem", body, role="pos")
        assert redeemed["state"] == "redeemed"
        return redemption

    async def takes_back(self, coupon: Coupon, redemption: str) -> Json:
        """What was bought comes back, so the redemption is called off; the coupon after that."""
        body = {"store": self.shop, "redemption_id": redemption}
        return await self.town.ask("POST", f"/v1/coupons/{coupon.code}/rollback", body, role="pos")


@dataclass
class Customer:
    """Somebody with a phone, and what nearcast may know of them. `id` is theirs, or that of an anonymous visitor.

    Their fixes tell times of their own, from less than a minute ago on, so that nobody has to wait while they walk.
    """

    town: "Town"
    id: str
    phone: Screen | None = None
    _fix_ms: int = field(default_factory=lambda: int(time.time() * 1000) - 50_000)
    #: Decisions, with the promotion, that a verb has told of.
    _told: set[tuple[str, str]] = field(default_factory=set)

    async def _does(self, *events: Event, seen: Callable[[Json], Any] = lambda record: True) -> None:
        """Hands events in and waits until the customer's record shows them."""
        for event in events:
            event.id = f"story-{next(_ids)}"
            is_visitor = self.id.startswith("anon:")
            event.uid = None if is_visitor else self.id
            event.anonymous_id = self.id.removeprefix("anon:") if is_visitor else None
        receipt = await self.town.office.events(events)
        assert not receipt.rejected, receipt

        async def taken_in() -> Any:
            record = await self.record()
            return record is not None and seen(record)

        await eventually(taken_in)

    async def record(self) -> Json | None:
        """What is known of them; None if nothing."""
        try:
            known: Json = (await self.town.office.customer(self.id))["customer"]
        except Refused:
            return None
        return known

    # What they do.

    async def puts_into_cart(self, sku: str, *, ago_s: float = 0) -> None:
        at_ms = int((time.time() - ago_s) * 1000)
        await self._does(Cart(**_nobody, ts=at_ms, action="add", sku=sku), seen=lambda record: sku in record["cart"])

    async def leaves_the_cart(self) -> None:
        """Half an hour goes by without a change of it (which began long enough ago)."""
        await self._does(seen=lambda record: record["cart_abandoned"])

    async def buys(self, sku: str, cents: int, *, days_ago: float = 0) -> None:
        known = await self.record()
        before = known["history"]["baskets"] if known else 0
        at_ms = int((time.time() - days_ago * 86_400) * 1000)
        purchase = Purchase(**_nobody, ts=at_ms, items=[Line(sku=sku, amount_cents=cents)])
        await self._does(purchase, seen=lambda record: record["history"]["baskets"] > before)

    async def wishes_for(self, sku: str) -> None:
        wish = Action(**_nobody, action="wishlist_add", sku=sku)
        await self._does(wish, seen=lambda record: sku in record["wishlist"])

    async def checks_off(self, sku: str) -> None:
        """Takes a thing from the wishlist, on the phone."""
        await self._on_phone.device.call("wishlist.remove", {"sku": sku})
        await self._does(seen=lambda record: sku not in record["wishlist"])

    async def scans(self, sku: str, shop: str) -> None:
        await self._does(Action(**_nobody, action="qr_scan", sku=sku, store=shop))

    async def looks_up(self, sku: str, shop: str) -> None:
        """On the shop's Wi-Fi."""
        await self._does(Action(**_nobody, action="wifi_lookup", sku=sku, store=shop))

    async def looks_at(self, sku: str) -> None:
        """Online."""
        await self._does(Action(**_nobody, action="product_view", sku=sku))

    async def has_points(self, points: int) -> None:
        await self._does(Profile(**_nobody, points=points), seen=lambda record: record["points"] == points)

    async def signs_in_as(self, uid: str) -> None:
        """An anonymous visitor turns out to be a customer; all they did is theirs from now on."""
        identify = Identify(uid=uid, anonymous_id=self.id.removeprefix("anon:"), id=f"story-{next(_ids)}")
        receipt = await self.town.office.events([identify])
        assert not receipt.rejected, receipt
        visitor, self.id = self.id, uid
        await self._does(seen=lambda record: visitor.removeprefix("anon:") in str(record["visitors"]))

    async def opts_out(self) -> None:
        """When this returns they are left alone."""
        await self.town.office.set_consent(self.id, "all", granted=False)

    async def sets_out_for(self, order: str, shop: str, *, minutes_ago: float) -> None:
        at_ms = int((time.time() - minutes_ago * 60) * 1000)
        await self._does(Action(**_nobody, ts=at_ms, action="pickup_start", order=order, store=shop))

    # What happens to them.

    async def has_been_helped(self) -> None:
        """An associate said so, and it is known."""
        await self._does(seen=lambda record: record["last_staff_contact_ms"])

    async def has_an_order(self, order: str, action: Any, **fields: Any) -> None:
        """The shop tells how an order goes on."""
        await self._does(Action(**_nobody, action=action, order=order, **fields))

    # Where they go.

    async def walks_past(self, shop: str) -> None:
        await self._is_at(*places.at(shop, 100.0))

    async def enters(self, shop: str) -> None:
        await self._is_at(*places.at(shop))

    async def leaves(self, shop: str) -> None:
        await self._is_at(*places.at(shop, 900.0))

    async def enters_department(self, department: str) -> None:
        await self._hears(places.access_point(department), "wifi")

    async def looks_around_in(self, department: str) -> None:
        """For half a minute."""
        for _ in range(3):
            await self._hears(places.access_point(department), "wifi")

    async def stands_at_the_shelf_of(self, sku: str, shop: str) -> None:
        """Within three feet, which the beacon there tells: no satellite could."""
        await self._hears(places.beacon(shop, sku), "beacon")

    async def drives_to(self, shop: str, *, from_m: int) -> None:
        """At 15 metres a second, a fix every ten seconds, until now."""
        steps = from_m // 150
        now_ms = int(time.time() * 1000)
        fixes = [
            self._fix(*places.at(shop, from_m - 150.0 * step), ts=now_ms - (steps - step) * 10_000)
            for step in range(steps + 1)
        ]
        await self.town.office.events(fixes)

    async def _is_at(self, lat: float, lng: float) -> None:
        await self.town.office.events([self._fix(lat, lng)])

    async def _hears(self, sign: str, source: Any) -> None:
        await self.town.office.events(
            [Location(id=f"story-{next(_ids)}", uid=self.id, ts=self._later(), zones=[sign], source=source)]
        )

    def _fix(self, lat: float, lng: float, ts: int | None = None) -> Location:
        return Location(id=f"story-{next(_ids)}", uid=self.id, ts=ts or self._later(), lat=lat, lng=lng, accuracy_m=5.0)

    def _later(self) -> int:
        self._fix_ms += 11_000
        return self._fix_ms

    # What they get.

    @property
    def _on_phone(self) -> Screen:
        assert self.phone is not None, f"{self.id} has no app"
        return self.phone

    async def gets(self, promotion: str, within_s: float = _SOON_S) -> Push:
        """A message on the phone."""
        push = await self._on_phone.gets(promotion, within_s)
        self._told.add((push.decision, promotion))
        return push

    async def gets_sms(self, promotion: str) -> str:
        """The text of a message of the promotion that the SMS provider has taken for them."""

        async def taken() -> str | None:
            for decision in await self._decisions(promotion):
                report = await self._report(decision) if decision.get("promotion") == promotion else None
                if report is not None and report["message"] in self.town.sms.held:
                    self._told.add((decision["id"], promotion))
                    return self.town.sms.held[report["message"]]["Body"]
            return None

        text: str = await eventually(taken)
        return text

    async def gets_nothing(self, promotion: str, because: str) -> None:
        """No message of this promotion, and the reason is on record: in the decision, or with the message that was
        decided and never sent."""

        async def why() -> str | None:
            for decision in await self._decisions(promotion):
                reason = await self._reason(decision, promotion)
                if reason is not None:
                    self._told.add((decision["id"], promotion))
                    return reason
            return None

        reason = await eventually(why)
        assert reason == because, f"{promotion} to {self.id}: {reason}, not {because}"
        assert not [push for push in (self.phone.pushes if self.phone else []) if push.promotion == promotion]
        for decision in await self.town.office.decisions(self.id):
            report = await self._report(decision) if decision.get("promotion") == promotion else None
            assert report is None or report["message"] not in self.town.sms.held

    async def waits_for_sms(self, promotion: str) -> None:
        """A message of the promotion is on its way, and the provider has refused it at least once."""

        async def tried() -> bool:
            for decision in await self._decisions(promotion):
                report = await self._report(decision) if decision.get("promotion") == promotion else None
                if report is not None and report["message"] in self.town.sms.keys:
                    return True
            return False

        await eventually(tried)

    async def was_taken_back(self, push: Push, because: str) -> None:
        """The delivery report says that the message was recalled, and why."""
        decision = await self.decided(push)

        async def recalled() -> Any:
            report = await self._report(decision)
            return report is not None and report["state"] == "recalled" and report["reason"]

        reason = await eventually(recalled)
        assert reason == because, f"{push.promotion} to {self.id}: {reason}, not {because}"

    async def _reason(self, decision: Json, promotion: str) -> str | None:
        """Why a decision led to no message of the promotion; "sent" if it did, None if that is not settled yet."""
        if decision.get("promotion") != promotion:
            return str(next(each["stopped_by"] for each in decision["candidates"] if each["promotion"] == promotion))
        report = await self._report(decision)
        if report is None or report["state"] not in ("sent", "suppressed", "failed", "recalled"):
            return None
        return str(report["reason"] or report["state"])

    async def _decisions(self, promotion: str) -> list[Json]:
        """Those in which the promotion could have won, and of which no verb has told yet; oldest first."""
        found = await self.town.office.decisions(self.id)
        about = [each for each in found if promotion in (one["promotion"] for one in each["candidates"])]
        return [each for each in reversed(about) if (each["id"], promotion) not in self._told]

    async def _report(self, decision: Json) -> Json | None:
        """What became of the message of a decision."""
        known = await self.record()
        message = (
            next((each for each in known["messages"] if each["decision"] == decision["id"]), None) if known else None
        )
        return await self.town.office.message(self.id, message["message"]) if message else None

    async def decided(self, push: Push) -> Json:
        """The decision behind a message, with all that led there."""
        found = await self.town.office.decisions(self.id)
        return next(each for each in found if each["id"] == push.decision)

    async def why_not(self, promotion: str, shop: str) -> Json:
        path = f"/v1/customers/{self.id}/why-not?promotion={promotion}&store={shop}"
        return await self.town.ask("GET", path)

    # What they do with it.

    async def opens(self, push: Push) -> None:
        """Looks at it; returns when that is known."""
        await self._on_phone.device.open(push)
        await self._does(
            seen=lambda record: (
                "opened" in [each["status"] for each in record["messages"] if each["message"] == push.message]
            )
        )

    async def applies(self, push: Push) -> Coupon:
        return await self._on_phone.device.apply(push)

    async def loses(self, push: Push, within_s: float = _SOON_S) -> Withdraw:
        """The message is taken back from the phone."""
        return await self._on_phone.loses(push, within_s)


#: Events are given their customer when they are sent.
_nobody: Json = {"uid": "nobody"}


class Town:
    """One story's view of a running server, and of everybody in it."""

    def __init__(
        self,
        server: Server,
        kafka: KafkaOptions | None,
        office: Nearcast,
        http: httpx.AsyncClient,
        sms: SmsProvider,
    ) -> None:
        self.server = server
        self._kafka = kafka
        #: The shop's own systems: they hand in events, and look things up.
        self.office = office
        self.sms = sms
        self._http = http
        self._screens = AsyncExitStack()

    async def customer(self, uid: str, *, consents: tuple[Channel, ...] = ("websocket",), **profile: Any) -> Customer:
        """Somebody who agreed to be reached by these channels, with the app open if that is one of them."""
        someone = Customer(self, uid)
        if "sms" in consents:
            profile["phone"] = f"+4366055{next(_ids):05}"
        events: list[Event] = [Consent(**_nobody, scope=scope, granted=True) for scope in consents]
        events.append(Profile(**_nobody, **{"name": uid.capitalize(), **profile}))
        await someone._does(*events, seen=lambda record: record["name"] and set(consents) <= record["consents"].keys())
        if "websocket" in consents:
            someone.phone = await self._screen(self.server.token(uid))
        return someone

    def visitor(self, anonymous_id: str) -> Customer:
        """Somebody of whom nothing is known but an id that the shop's Wi-Fi gave them."""
        return Customer(self, f"anon:{anonymous_id}")

    async def opens_the_app(self, someone: Customer) -> None:
        """On a phone that they have signed in on, and where they agree to its messages."""
        await someone._does(
            Consent(**_nobody, scope="websocket", granted=True), seen=lambda record: "websocket" in record["consents"]
        )
        someone.phone = await self._screen(self.server.token(someone.id))

    async def tablet(self, associate: str, shop: str) -> Tablet:
        token = self.server.token(associate, "staff", (f"staff:{shop}",))
        return Tablet(associate, await self._screen(token))

    def till(self, shop: str) -> Till:
        return Till(self, shop)

    async def has_in_stock(self, shop: str, sku: str, quantity: int) -> None:
        """The stock system says how many there are now."""
        await self.ask("PUT", "/v1/stock", [{"store": shop, "sku": sku, "quantity": quantity}], role="intake")

    async def closes(self, shop: str) -> None:
        """Its hours change: it is never open any more."""
        store = next(each for each in places.TOWN.stores if each.id == shop)
        fields = {"id": shop, "name": store.name, "lat": store.lat, "lng": store.lng, "time_zone": store.time_zone}
        await self.office.put_catalogue({"stores": [{**fields, "hours": []}]})

    async def takes_back(self, someone: Customer, push: Push) -> None:
        """The shop thinks better of a message."""
        await self.ask("POST", f"/v1/customers/{someone.id}/messages/{push.message}/recall")

    async def tells_others(self, someone: Customer, push: Push, kind: str) -> Json:
        """What other systems read of a message in the topic `customers.promotions`."""

        def about(record: Json) -> bool:
            return bool(record["message"] == push.message and record["kind"] == kind)

        return await others.told(self.server, self._kafka, someone.id, about)

    async def report(self, promotion: str, until: Callable[[Json], Any]) -> Json:
        """What became of a promotion's offers, as soon as it is what is waited for."""

        async def shown() -> Json | None:
            report = await self.ask("GET", f"/v1/promotions/{promotion}/report")
            return report if until(report) else None

        found: Json = await eventually(shown)
        return found

    async def ask(self, method: str, path: str, body: Any = None, *, role: str = "admin") -> Json:
        """One call of the HTTP API; raises `Refused` as the client does."""
        headers = {"Authorization": f"Bearer {KEYS[role]}"}
        answer = await self._http.request(method, path, json=body, headers=headers)
        if answer.status_code >= 400:
            raise Refused(answer.status_code, answer.json()["reason"], answer.json()["detail"])
        found: Json = answer.json() if answer.content else {}
        return found

    async def _screen(self, token: str) -> Screen:
        screen = Screen(self.server, token)
        await self._screens.enter_async_context(screen.device)
        return screen

    async def is_over(self) -> None:
        """Everybody switches off what they have in their hands."""
        await self._screens.aclose()

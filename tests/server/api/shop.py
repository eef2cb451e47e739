"""A small shop behind the API: everything in memory but the coupons, which are real ones in the real store.

`away` makes the event log unreachable.
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from redis.asyncio import Redis

from channels.states import State
from channels.trace import Mark
from nearcast.clock import ManualClock
from nearcast.customer import Customer, Presence, Trip
from nearcast.decisions import Decision
from nearcast.errors import NotFound, Unavailable
from nearcast.events import Channel, ConsentScope, DeliveryStatus, IntakeEvent
from nearcast.ids import CustomerId, DecisionId, EventId, MessageId, PromotionId, Sku, StoreId, message_id
from nearcast.messages import Push
from nearcast.moments import Moment
from nearcast.world import Discount, Promotion, What, Words
from offers.worldfile import WorldFile
from server.api.keyring import KeyRing
from server.api.links import LinkSigner
from server.api.services import Limits, TokenRole, WorldKind
from server.blocks import Blocks
from server.coupons import Coupon, CouponBook, Redemption, apply_offer
from server.deliveries import Report
from server.model_registry import ModelRegistry

KEYS = {"intake": "intake-key", "pos": "pos-key", "admin": "admin-key", "staff": "staff-key"}
ANNA = CustomerId("anna")
OFFER = DecisionId("9f86d081884c7d659a2feaa0c55ad015")
NOTHING = DecisionId("0" * 32)
PROMOTION = Promotion(
    id="coffee",
    name="Coffee",
    trigger="enter",
    what=What(segments=["coffee"], discount=Discount(percent=15)),
    coupon_valid_s=7_200,
    words={"en": Words(title="Coffee, 15 % off")},
)
SMS_TOKEN = "twilio-auth-token"


def decision_of(decision: DecisionId, outcome: str, at_ms: int) -> Decision:
    """A decision about Anna at the Graben store."""
    store = StoreId("graben")
    moment = Moment(event=EventId("e-1"), customer=ANNA, trigger="enter", at_ms=at_ms, subject="door", store=store)
    return Decision(
        id=decision,
        moment=moment,
        outcome=outcome,
        at_ms=at_ms,
        deadline_ms=at_ms + 300_000,
        candidates=[],
        rules_version="r1",
        model_version="m1",
        promotion=PROMOTION.promotion_id if outcome == "offer" else None,
        sku=Sku("4711"),
        store=store,
    )


class Shop:
    """Implements `server.api.services.Services`."""

    def __init__(self, redis: Redis, *, demo: bool = False, limits: Limits | None = None, web: Path = Path()) -> None:
        self.clock = ManualClock()
        self.keys = KeyRing(KEYS.items())
        self.links = LinkSigner(b"link secret")
        self.limits = limits or Limits()
        self.models = ModelRegistry(redis, self.clock)
        self.public_url = "https://offers.example"
        self.sms_auth_token = SMS_TOKEN
        self.demo = demo
        self.web_root = web
        self.coupons = CouponBook(redis, b"coupon secret", self.clock)
        self.blocks = Blocks(redis, self.coupons, self.clock)
        self.away = False
        #: How far the dispatcher got with the offer's message.
        self.state: State = "sent"
        self.log: list[IntakeEvent] = []
        self.world: dict[WorldKind, dict[str, object]] = {"store": {}, "fence": {}, "product": {}, "promotion": {}}
        self.stock: dict[tuple[str, str], int] = {}
        self.version = 0
        self.people: dict[CustomerId, tuple[Customer, Presence]] = {}
        self.being_erased: set[CustomerId] = set()
        self.consents: list[tuple[CustomerId, ConsentScope, bool]] = []
        self.promotions = {PROMOTION.promotion_id: PROMOTION}
        self.decided = {
            OFFER: decision_of(OFFER, "offer", self.clock.now_ms()),
            NOTHING: decision_of(NOTHING, "nothing", self.clock.now_ms()),
        }
        self.receipts: list[tuple[str, str, DeliveryStatus, Channel | None, str]] = []
        self.redemptions: list[tuple[DeliveryStatus, Redemption]] = []
        self.components = {"store": "ok", "log": "ok"}
        self.published: list[bytes] = []
        self.publications: list[tuple[str, bytes, str, str | None]] = []
        self.logged_out: list[CustomerId] = []
        self.recalled: list[tuple[CustomerId, MessageId]] = []
        self.fault: Exception | None = None

    def _reach(self) -> None:
        if self.away:
            raise Unavailable("the log at 10.0.0.1 is away")

    async def accept(self, events: Sequence[IntakeEvent]) -> list[EventId]:
        self._reach()
        self.log.extend(events)
        return [event.event_id for event in events]

    async def put_world(self, items: WorldFile) -> int:
        self._reach()
        self.world["store"] |= {i.id: i for i in items.stores}
        self.world["fence"] |= {i.id: i for i in items.fences}
        self.world["product"] |= {i.sku: i for i in items.products}
        self.world["promotion"] |= {i.id: i for i in items.promotions}
        self.stock |= {(i.store, i.sku): i.quantity for i in items.stock}
        self.version += 1
        return self.version

    async def remove_world(self, kind: WorldKind, item_id: str) -> int:
        if self.world[kind].pop(item_id, None) is None:
            raise NotFound("unknown_item", f"there is no {kind} with this id")
        self.version += 1
        return self.version

    async def get_world(self, kind: WorldKind) -> bytes:
        return msgspec.json.encode(list(self.world[kind].values()))

    async def customer(self, customer: CustomerId) -> tuple[Customer, Presence] | None:
        if self.fault:
            raise self.fault
        return self.people.get(customer)

    async def consent(self, customer: CustomerId, scope: ConsentScope, granted: bool) -> None:
        self._reach()
        self.consents.append((customer, scope, granted))

    async def erase(self, customer: CustomerId) -> None:
        self._reach()
        self.people.pop(customer, None)
        self.being_erased.add(customer)

    async def recall(self, customer: CustomerId, message: MessageId) -> None:
        self._reach()
        if message != message_id(OFFER, "customer"):
            raise NotFound("unknown_message", "no such message")
        self.recalled.append((customer, message))

    async def delivery(self, customer: CustomerId, message: MessageId) -> Report:
        self._reach()
        if message != message_id(OFFER, "customer"):
            raise NotFound("unknown_message", "no such message")
        trace = [Mark("arrived", 1_000), Mark("log", 1_002)]
        return Report(
            message=message,
            decision=OFFER,
            status="sent",
            state=self.state,
            channel="sms",
            given_up=[],
            reason="",
            trace=trace,
        )

    async def logout(self, customer: CustomerId) -> None:
        self._reach()
        self.logged_out.append(customer)

    async def publish(self, channel: str, data: bytes, *, key: str = "", once: str | None = None) -> tuple[str, int]:
        self._reach()
        self.publications.append((channel, data, key, once))
        return "e", len(self.publications)

    async def pickups(self, store: StoreId) -> list[tuple[CustomerId, Trip]]:
        if store not in self.world["store"]:
            raise NotFound("unknown_store", "there is no such store")
        return [(name, trip) for name, (_, presence) in self.people.items() for trip in presence.trips]

    async def erasing(self, customer: CustomerId) -> bool:
        self._reach()
        return customer in self.being_erased

    async def decisions(self, customer: CustomerId, limit: int) -> list[Decision]:
        return [d for d in self.decided.values() if d.customer == customer][:limit]

    async def decision(self, customer: CustomerId, decision: DecisionId) -> Decision | None:
        return self.decided.get(decision)

    async def promotion(self, promotion: PromotionId) -> Promotion | None:
        return self.promotions.get(promotion)

    async def apply(self, customer: CustomerId, decision: DecisionId, channel: Channel | None = None) -> Coupon:
        return await apply_offer(self, customer, decision, channel)

    async def push(self, decision: Decision) -> Push | None:
        if decision.promotion not in self.promotions:
            return None
        return Push(
            kind="offer",
            message=message_id(decision.id, "customer"),
            decision=decision.id,
            title="Coffee, 15 % off",
            body="<b>For you</b>, Anna",
            promotion=PROMOTION.promotion_id,
            trigger="enter",
            event=EventId("e-1"),
            at_ms=decision.at_ms,
            deadline_ms=decision.deadline_ms,
            store_name="Graben",
            product="Espresso beans",
        )

    async def ready(self) -> dict[str, str]:
        return self.components

    def mint_token(self, sub: str, role: TokenRole, channels: Sequence[str], ttl_s: int) -> str:
        return f"{role}:{sub}:{','.join(channels)}:{ttl_s}"

    async def publish_demo(self, data: bytes) -> None:
        self.published.append(data)

    async def receipt(
        self,
        customer: CustomerId,
        message: MessageId,
        decision: DecisionId,
        status: DeliveryStatus,
        channel: Channel | None,
        reason: str,
        redemption: Redemption | None = None,
    ) -> None:
        self._reach()
        assert message == message_id(decision, "customer")
        if redemption is not None:
            self.redemptions.append((status, redemption))
        self.receipts.append((customer, decision, status, channel, reason))


def key(role: str) -> dict[str, str]:
    """Headers with the key of a role."""
    return {"Authorization": f"Bearer {KEYS[role]}"}


def provider_signature(url: str, form: Mapping[str, str]) -> str:
    """The signature as Twilio's documentation describes it: an oracle of its own."""
    text = url + "".join(f"{name}{form[name]}" for name in sorted(form))
    return base64.b64encode(hmac.new(SMS_TOKEN.encode(), text.encode(), hashlib.sha1).digest()).decode()

"""What the HTTP API needs from the rest of the server: one object, described here and built by the wiring.

Rules: a write has happened (durably) when its call returns; `Unavailable` means that it may be tried again, an
`InputError` that it may not. Nothing here knows HTTP.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from nearcast.clock import Clock
from nearcast.customer import Customer, Presence, Trip
from nearcast.decisions import Decision
from nearcast.events import Channel, ConsentScope, IntakeEvent
from nearcast.ids import CustomerId, DecisionId, EventId, MessageId, PromotionId, StoreId
from nearcast.messages import Push
from offers.explain import Explanation
from offers.worldfile import WorldFile
from server import reports
from server.api.keyring import KeyRing, RateLimit
from server.api.links import LinkSigner
from server.blocks import Blocks
from server.coupons import Coupon, Decided
from server.deliveries import Report
from server.footfall import Asked, History, Live
from server.model_registry import ModelRegistry
from server.predictions import Predictions

WorldKind = Literal["store", "fence", "product", "promotion"]
TokenRole = Literal["customer", "staff", "demo"]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on what one caller may ask for."""

    #: Calls of one API key.
    rate: RateLimit = RateLimit()
    #: A catalogue is bigger than the 256 KiB that any other body may have.
    catalogue_bytes: int = 16 * 1024 * 1024


class Services(Decided, Protocol):
    """Everything behind the routes. `Decided` adds `coupons`, `decision`, `promotion` and `receipt`."""

    @property
    def clock(self) -> Clock: ...

    @property
    def keys(self) -> KeyRing: ...

    @property
    def links(self) -> LinkSigner: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def models(self) -> ModelRegistry: ...

    @property
    def blocks(self) -> Blocks: ...

    @property
    def public_url(self) -> str:
        """Where the outside reaches this API, without a slash at the end; part of what SMS providers sign."""
        ...

    @property
    def sms_auth_token(self) -> str:
        """The secret that the SMS provider signs its callbacks with; empty: callbacks are refused."""
        ...

    @property
    def demo(self) -> bool:
        """True adds the demo's routes, which hand out tokens without a login."""
        ...

    @property
    def web_root(self) -> Path:
        """Folder of the demo page's files."""
        ...

    async def accept(self, events: Sequence[IntakeEvent]) -> list[EventId]:
        """Put events, which have ids and times, into the log. Durable when it returns."""
        ...

    async def put_world(self, items: WorldFile) -> int:
        """Put or replace things by their ids, all or none; others stay. The world's version after that.

        Raises `InputError`, for example for a reference to something that does not exist.
        """
        ...

    async def remove_world(self, kind: WorldKind, item_id: str) -> int:
        """Take one thing out of the world; the version after that. Raises `NotFound`."""
        ...

    async def get_world(self, kind: WorldKind) -> bytes:
        """All things of a kind, as a JSON array."""
        ...

    async def customer(self, customer: CustomerId) -> tuple[Customer, Presence] | None: ...

    async def consent(self, customer: CustomerId, scope: ConsentScope, granted: bool) -> None:
        """Grant or withdraw; a withdrawal holds for every send that starts after it returns."""
        ...

    async def erase(self, customer: CustomerId) -> None:
        """Begin to erase all that is known of a customer; one who was never heard of is no error."""
        ...

    async def erasing(self, customer: CustomerId) -> bool:
        """Whether an erasure of this customer was asked for and is not complete yet."""
        ...

    async def decisions(self, customer: CustomerId, limit: int) -> list[Decision]:
        """The newest decisions about a customer, newest first."""
        ...

    async def why_not(self, customer: CustomerId, promotion: PromotionId, store: StoreId | None) -> Explanation:
        """What keeps a promotion from a customer, at a store if one is named. Raises `NotFound` for each of them."""
        ...

    async def predictions(self, customer: CustomerId, store: StoreId | None, top: int) -> Predictions:
        """What the customer will likely buy next, with things of it that the store has. Raises `NotFound` for each."""
        ...

    async def footfall(self, store: StoreId, *, products: bool) -> Live:
        """How many people are in the store's fences; in those of displays only if asked. Raises `NotFound`."""
        ...

    async def footfall_history(self, store: StoreId, asked: Asked) -> History:
        """Visits by fence and hour. Raises `NotFound`, and `InputError` for too much at once."""
        ...

    async def promotion_report(self, promotion: PromotionId, asked: reports.Asked) -> reports.Report:
        """What became of one promotion's offers, also if it is gone. Raises `NotFound`, and `InputError` for too much
        at once."""
        ...

    async def promotion_reports(self, asked: reports.Asked) -> reports.Table:
        """What became of all promotions' offers. Raises `InputError` for too much at once."""
        ...

    async def pickups(self, store: StoreId) -> list[tuple[CustomerId, Trip]]:
        """Who is on the way to a store to pick an order up, or there. Raises `NotFound`."""
        ...

    async def delivery(self, customer: CustomerId, message: MessageId) -> Report:
        """What became of a message, and when it passed each stage of its way. Raises `NotFound`."""
        ...

    async def recall(self, customer: CustomerId, message: MessageId) -> None:
        """Take a message back from every device, now or when it connects again. Raises `NotFound`."""
        ...

    async def logout(self, customer: CustomerId) -> None:
        """Close the customer's connections, and refuse the gateway tokens that were issued until now."""
        ...

    async def publish(self, channel: str, data: bytes, *, key: str = "", once: str | None = None) -> tuple[str, int]:
        """Publish JSON on a public channel; its epoch and offset.

        A later publication of the same `key` makes this one needless. The same `once` again publishes nothing.
        """
        ...

    async def apply(self, customer: CustomerId, decision: DecisionId, channel: Channel | None = None) -> Coupon:
        """`server.coupons.apply_offer`, shared with the gateway."""
        ...

    async def push(self, decision: Decision) -> Push | None:
        """The message of an offer as a device would get it, for the page behind its link."""
        ...

    async def ready(self) -> dict[str, str]:
        """Component → "ok", or what is wrong with it. Must not name hosts or secrets."""
        ...

    def mint_token(self, sub: str, role: TokenRole, channels: Sequence[str], ttl_s: int) -> str:
        """A token for the WebSocket gateway (demo only)."""
        ...

    async def publish_demo(self, data: bytes) -> None:
        """Publish JSON on the demo page's live channel (demo only)."""
        ...

"""The server's desk: everything the HTTP API and the gateway ask for, answered from log, state, world and coupons.

Writes about a customer travel through the log, so the engine stays the only writer of their state. What must hold at
once (an opt-out, an erasure's deletion of pending pushes) is done here as well, before the call returns.
"""

import asyncio
import uuid
from collections.abc import Sequence
from pathlib import Path

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from channels.gateway.codes import FORCED
from channels.gateway.streams import ChannelStreams
from channels.gateway.tokens import Tokens
from models.registry import Models
from nearcast import keys, metrics
from nearcast.clock import Clock
from nearcast.customer import Customer, Presence, SentMessage, Trip
from nearcast.decisions import Decision
from nearcast.errors import Conflict, NotFound, Unavailable, UnreadableState
from nearcast.events import Channel, Consent, ConsentScope, DeliveryStatus, Erase, IntakeEvent
from nearcast.ids import (
    ANONYMOUS_PREFIX,
    CustomerId,
    DecisionId,
    EventId,
    MessageId,
    PromotionId,
    StoreId,
    message_id,
)
from nearcast.messages import Push, Recall
from nearcast.world import Fence, MessageKind, Promotion, Store
from offers.candidates import stock_wanted
from offers.explain import Explanation, explain, situation_for, things_asked
from offers.messages import message_of
from offers.policy import Policy
from offers.worldfile import WorldFile
from server import reports
from server.announcing import SILENT, Announcer
from server.api.keyring import KeyRing
from server.api.links import LinkSigner
from server.api.services import Limits, TokenRole, WorldKind
from server.blocks import Blocks
from server.compose import compose
from server.consents import OptOuts
from server.coupons import Coupon, CouponBook, Redemption, apply_offer
from server.deliveries import Report, report_of
from server.eraser import forget_channel, note_erasure
from server.footfall import DEFAULT_K, Asked, FootfallBook, History, Live, history_of, live_of
from server.intake import Intake
from server.log.base import EventLog
from server.model_registry import ModelRegistry
from server.predictions import Predictions, predict
from server.recalls import Recaller
from server.receipts import append_receipt
from server.state import KEPT_DECISIONS, Known, StateStore
from server.store import reaching_store
from server.world import WorldStore

DEMO_CHANNEL = "demo:live"


class Desk:
    """Implements `server.api.services.Services`."""

    def __init__(
        self,
        *,
        redis: Redis,
        state: StateStore,
        world: WorldStore,
        intake: Intake,
        log: EventLog,
        coupons: CouponBook,
        opt_outs: OptOuts,
        streams: ChannelStreams,
        tokens: Tokens,
        keyring: KeyRing,
        links: LinkSigner,
        models: ModelRegistry,
        live_models: Models,
        policy: Policy,
        clock: Clock,
        public_url: str,
        sms_auth_token: str,
        demo: bool,
        web_root: Path,
        footfall_k: int = DEFAULT_K,
        announcer: Announcer = SILENT,
    ) -> None:
        self._redis = redis
        self._state = state
        self._world = world
        self._intake = intake
        self._log = log
        self._opt_outs = opt_outs
        self._streams = streams
        self._tokens = tokens
        self._policy = policy
        self._footfall = FootfallBook(redis, state.partitions)
        self._footfall_k = footfall_k
        self._reports = reports.ReportBook(redis, state.partitions)
        self._recaller = Recaller(redis, state, coupons, streams, intake, announcer)
        self.coupons = coupons
        self.blocks = Blocks(redis, coupons, clock)
        self.keys = keyring
        self.links = links
        self.limits = Limits()
        self.models = models
        self._live_models = live_models
        self.clock = clock
        self.public_url = public_url
        self.sms_auth_token = sms_auth_token
        self.demo = demo
        self.web_root = web_root

    async def accept(self, events: Sequence[IntakeEvent]) -> list[EventId]:
        """Put events from outside into the log. Withdrawn consent holds at once, as if withdrawn by `consent`."""
        withdrawn = []
        for event in events:
            if isinstance(event, Consent) and not event.granted:
                # By our clock, in the note and in the log: the sender's may be off either way.
                event.ts = self.clock.now_ms()
                withdrawn.append(await self._opt_outs.note(event.customer, event.scope, event.ts))
        await self._opt_outs.wait(withdrawn)
        ids = await self._intake.append(events)
        metrics.INTAKE.labels("accepted").inc(len(ids))
        return ids

    async def put_world(self, items: WorldFile) -> int:
        return await self._world.put(items)

    async def remove_world(self, kind: WorldKind, item_id: str) -> int:
        return await self._world.remove(kind, item_id)

    async def get_world(self, kind: WorldKind) -> bytes:
        await self._world.refresh()
        items = self._world.current.items
        lists = {"store": items.stores, "fence": items.fences, "product": items.products, "promotion": items.promotions}
        return msgspec.json.encode(lists[kind])

    async def customer(self, customer: CustomerId) -> tuple[Customer, Presence] | None:
        known = await self._known(customer)
        if known is None:
            return None
        await self._opt_outs.overlay(known.customer)
        return known.customer, known.presence

    async def consent(self, customer: CustomerId, scope: ConsentScope, granted: bool) -> None:
        """Grant or withdraw; a withdrawal holds for every send that starts after this returns."""
        now_ms = self.clock.now_ms()
        if not granted:
            await self._opt_outs.withdraw(customer, scope, now_ms)
        uid, anonymous_id = ids_of(customer)
        await self._intake.append(
            [Consent(uid=uid, anonymous_id=anonymous_id, ts=now_ms, scope=scope, granted=granted)]
        )

    async def erase(self, customer: CustomerId) -> None:
        """Erase all that is known of a customer: coupons and pushes now, the rest once the log has been read.

        Until then nothing is sent any more: the opt-out noted here goes together with the state. The visitors who
        signed in as the customer are erased in the same way.
        """
        uid, anonymous_id = ids_of(customer)
        visitors = await self._visitors(customer)
        records = [CustomerId(ANONYMOUS_PREFIX + visitor) for visitor in visitors]
        for person in (*records, customer):
            await self._opt_outs.withdraw(person, "all", self.clock.now_ms())
        for person in records:
            await note_erasure(self._redis, self._state.partition(person), person, ())
        await note_erasure(self._redis, self._state.partition(customer), customer, records)
        # The customer's own event last: it says that the others are in the log.
        if visitors:
            await self._intake.append([Erase(id=uuid.uuid4().hex, anonymous_id=visitor) for visitor in visitors])
        await self._intake.append([Erase(id=uuid.uuid4().hex, uid=uid, anonymous_id=anonymous_id, visitors=visitors)])
        for person in (*records, customer):
            await self.logout(person)
            await self.coupons.forget(person)
            await forget_channel(self._redis, person)

    async def _visitors(self, customer: CustomerId) -> list[str]:
        try:
            known = await self._state.read(customer)
        except UnreadableState:
            # Who they were can't be told any more; the record goes all the same.
            return []
        return [] if known is None else known.customer.visitors

    async def erasing(self, customer: CustomerId) -> bool:
        partition = self._state.partition(customer)
        with reaching_store():
            return bool(await self._redis.hexists(keys.erasures(partition), customer))

    async def decision(self, customer: CustomerId, decision: DecisionId) -> Decision | None:
        return await self._state.decision(customer, decision)

    async def decision_about_anybody(self, decision: DecisionId) -> Decision | None:
        """A decision of which it isn't known whom it is about: looked for in every partition."""
        with reaching_store():
            async with self._redis.pipeline(transaction=False) as pipe:
                for partition in range(self._state.partitions):
                    pipe.get(keys.decision(partition, decision))
                found = [blob for blob in await pipe.execute() if blob is not None]
        return msgspec.json.decode(found[0], type=Decision) if found else None

    async def decisions(self, customer: CustomerId, limit: int) -> list[Decision]:
        return await self._state.decisions(customer, limit)

    async def why_not(self, customer: CustomerId, promotion: PromotionId, store: StoreId | None) -> Explanation:
        """What keeps a promotion from a customer: by their state and the world now, and by the decisions of late."""
        known = await self.customer(customer)
        if known is None:
            raise NotFound("unknown_customer", "nothing is known of this customer")
        profile, presence = known
        world = self._world.current
        catalogue = world.catalogue
        asked = catalogue.promotions.get(promotion)
        if asked is None:
            raise NotFound("unknown_promotion", f"there is no promotion {promotion!r} in the world now")
        if store is not None and store not in catalogue.stores:
            raise NotFound("unknown_store", f"there is no store {store!r} in the world now")
        # With many thousand fences this takes a while.
        moment, assumed = await asyncio.to_thread(
            situation_for, asked, profile, presence, world.fences.by_id, catalogue, store, self.clock.now_ms()
        )
        things = things_asked(asked, moment, profile, catalogue)
        stock = await self._world.stock(stock_wanted(moment, things, catalogue))
        decisions = await self._state.decisions(customer, KEPT_DECISIONS)
        return explain(asked, moment, assumed, profile, catalogue, stock, self._policy, decisions)

    async def predictions(self, customer: CustomerId, store: StoreId | None, top: int) -> Predictions:
        """What the customer will likely buy next, by their state, the world and the model of now."""
        known = await self.customer(customer)
        if known is None:
            raise NotFound("unknown_customer", "nothing is known of this customer")
        if store is not None:
            self._store(store)
        catalogue, now_ms = self._world.current.catalogue, self.clock.now_ms()
        return await predict(known[0], catalogue, self._live_models, self._world.stock, now_ms, store=store, top=top)

    async def footfall(self, store: StoreId, *, products: bool) -> Live:
        self._store(store)
        fences = await self._zones(store, products=products)
        people = await self._footfall.live([fence.fence_id for fence in fences])
        return live_of(store, fences, people, self._footfall_k, self.clock.now_ms())

    async def footfall_history(self, store: StoreId, asked: Asked) -> History:
        known = self._store(store)
        fences = await self._zones(store, products=asked.fence is not None)
        names = {fence.fence_id: fence.name for fence in fences}
        if asked.fence is not None:
            # What was counted of a fence that is gone can still be asked for.
            names = {asked.fence: names.get(asked.fence, "")}
        hours = asked.hours(known, len(names), self.clock.now_ms())
        found = await self._footfall.days(store, {hour.day for hour in hours})
        return history_of(known, names, hours, found, self._footfall_k)

    async def promotion_report(self, promotion: PromotionId, asked: reports.Asked) -> reports.Report:
        days = asked.days(self.clock.now_ms())
        known = self._world.current.catalogue.promotions.get(promotion)
        found = await self._reports.of_one(promotion, days)
        if known is None and not any(found.values()):
            raise NotFound("unknown_promotion", f"there is no promotion {promotion!r}, nor was there on those days")
        budgets: list[reports.BudgetUse] = []
        if known is not None and known.budgets:
            stores = self._world.current.catalogue.stores
            budgets = await reports.budgets_of(known, stores, self._redis, self._state.partitions, self.clock.now_ms())
        return reports.report_of(promotion, known, days, found, budgets)

    async def promotion_reports(self, asked: reports.Asked) -> reports.Table:
        days = asked.days(self.clock.now_ms())
        promotions, found = self._world.current.catalogue.promotions, await self._reports.of_all(days)
        # Of thousands of promotions this takes a while.
        return await asyncio.to_thread(reports.table_of, promotions, days, found)

    async def pickups(self, store: StoreId) -> list[tuple[CustomerId, Trip]]:
        self._store(store)
        expected = await self._state.expected_at(store)
        return [
            (customer, trip)
            for customer, presence in expected
            for trip in presence.trips
            if trip.store == store and trip.state != "waiting"
        ]

    def _store(self, store: StoreId) -> Store:
        known = self._world.current.catalogue.stores.get(store)
        if known is None:
            raise NotFound("unknown_store", f"there is no store {store!r} in the world now")
        return known

    async def _zones(self, store: StoreId, *, products: bool) -> list[Fence]:
        fences = self._world.current.fences.by_id.values()

        def of_store() -> list[Fence]:
            return [fence for fence in fences if fence.store == store and (products or fence.kind != "product")]

        # With many thousand fences this takes a while.
        return await asyncio.to_thread(of_store)

    async def promotion(self, promotion: PromotionId) -> Promotion | None:
        return self._world.current.catalogue.promotions.get(promotion)

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
        sums = {} if redemption is None else msgspec.structs.asdict(redemption)
        await append_receipt(self._intake, customer, message, decision, status, channel, reason, **sums)

    async def delivery(self, customer: CustomerId, message: MessageId) -> Report:
        """What became of a message, and when it passed each stage of its way."""
        sent = await self._sent(customer, message)
        return await report_of(self._redis, self._state.partition(customer), customer, sent)

    async def _sent(self, customer: CustomerId, message: MessageId) -> SentMessage:
        known = await self._known(customer)
        sent = next((sent for sent in known.customer.messages if sent.message == message), None) if known else None
        if sent is None:
            raise NotFound("unknown_message", "no such message was decided for this customer, or it is long ago")
        return sent

    async def recall(self, customer: CustomerId, message: MessageId) -> None:
        """Take a message back, on every device and wherever it is on its way, also one that was opened."""
        sent = await self._sent(customer, message)
        kind: MessageKind = "offer" if sent.kind in ("", "offer") else "notice"
        store = None
        if message != message_id(sent.decision, "customer"):
            decision = await self._state.decision(customer, sent.decision)
            if decision is None or decision.store is None:
                raise NotFound("unknown_message", "this alert is long ago")
            kind, store = "assist", decision.store
        await self._recaller.recall(
            Recall(
                message=message,
                decision=sent.decision,
                customer=customer,
                kind=kind,
                reason="recalled",
                store=store,
            ),
            read_too=True,
        )

    async def logout(self, customer: CustomerId) -> None:
        """Close the customer's connections; tokens from before now are worth nothing any more."""
        # In this order: who is cut off can't come back with the same token.
        await self._streams.revoke(customer, self.clock.now_ms())
        await self._streams.disconnect(customer, FORCED.code, FORCED.reason)

    async def has_channel(self, channel: str) -> bool:
        """Whether a public channel is that of a store or a zone in the world now.

        Raises `Unavailable` for one that may stand in a stored world that can't be used.
        """
        if self._knows_channel(channel):
            return True
        # A client may be quicker than our next look at what another process has just added.
        await self._world.refresh()
        known = self._knows_channel(channel)
        if not known and self._world.problem is not None:
            raise Unavailable("the stored world can't be used")
        return known

    def _knows_channel(self, channel: str) -> bool:
        kind, _, name = channel.partition(":")
        world = self._world.current
        return name in (world.catalogue.stores if kind == "store" else world.fences.by_id)

    async def publish(self, channel: str, data: bytes, *, key: str = "", once: str | None = None) -> tuple[str, int]:
        """Publish JSON for everybody who listens to a public channel; its epoch and offset."""
        if once is None:
            epoch, offset = await self._streams.publish(channel, data, key)
        else:
            epoch, offset = await self._streams.publish_once(channel, once, data)
        return epoch, offset

    async def apply(self, customer: CustomerId, decision: DecisionId, channel: Channel | None = None) -> Coupon:
        return await apply_offer(self, customer, decision, channel)

    async def push(self, decision: Decision) -> Push | None:
        """An offer as a device would get it; None once its promotion is gone."""
        catalogue = self._world.current.catalogue
        if decision.promotion not in catalogue.promotions:
            return None
        message = message_of(decision, catalogue)
        known = await self._known(decision.customer)
        if message is None or known is None:
            return None
        return compose(message, known.customer, catalogue, "")

    async def ready(self) -> dict[str, str]:
        """Component → "ok", or what is wrong with it; names no hosts and no secrets."""
        components = {"store": "ok", "log": "ok"}
        try:
            await self._redis.ping()
        except (RedisError, OSError):
            components["store"] = "can't be reached"
        try:
            await self._log.check()
        except Unavailable:
            components["log"] = "can't be reached"
        return components

    async def _known(self, customer: CustomerId) -> Known | None:
        try:
            return await self._state.read(customer)
        except UnreadableState:
            raise Conflict(
                "unreadable_state",
                "what is stored of this customer can't be read by this release; see the dead letters",
            ) from None

    def mint_token(self, sub: str, role: TokenRole, channels: Sequence[str], ttl_s: int) -> str:
        return self._tokens.mint(sub, role, ttl_s=ttl_s, channels=tuple(channels))

    async def publish_demo(self, data: bytes) -> None:
        await self._streams.publish(DEMO_CHANNEL, data)


def ids_of(customer: CustomerId) -> tuple[str | None, str | None]:
    """(uid, anonymous_id) of an event about this customer."""
    if customer.startswith(ANONYMOUS_PREFIX):
        if customer == ANONYMOUS_PREFIX:
            raise NotFound("unknown_customer", "there is no such customer")
        return None, customer.removeprefix(ANONYMOUS_PREFIX)
    return customer, None

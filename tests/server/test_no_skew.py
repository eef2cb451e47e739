"""No skew between training and serving: the same history, once replayed for training and once served live.

Real households' purchases, campaigns and redemptions go through a real engine and store as events. Each campaign is an
offer that the household gets by scanning its code at the campaign's start; what was redeemed comes back as a receipt of
the message that was really sent. What the engine's decisions say that the model saw must equal the training rows, bit
for bit.
"""

from collections.abc import Iterator

import msgspec
from redis.asyncio import Redis

from models.features.redeem import REDEEM
from models.training.extract import extract
from models.training.history import Campaign, History, load, package_folder
from models.training.redeem import RedeemTask
from nearcast.decisions import Decision
from nearcast.events import YEAR_2000_MS, Action, Consent, Event, Purchase, Receipt
from nearcast.ids import CustomerId, PromotionId, message_id
from nearcast.world import Cap, Product, Promotion, Where
from offers.policy import Policy
from offers.worldfile import WorldFile
from server.state import StateStore
from server.world import WorldStore
from tests.server.rig import PARTITIONS, Playback, committed, engine_on, records_of
from tests.server.town import WORLD

HOUSEHOLDS = 12
_SCAN, _FOLD = range(2)


def as_offer(campaign: Campaign, history: History) -> Promotion:
    """The campaign as an offer to whoever scans its code, valid for as long as the data tells of it."""
    ends_ms = min(campaign.promotion.when.ends_ms or 0, history.ends_ms)
    return msgspec.structs.replace(
        campaign.promotion,
        coupon_valid_s=max((ends_ms - campaign.starts_ms) / 1000, 1.0),
        trigger="qr_scan",
        where=Where(fences=[campaign.promotion.id]),
        caps=[Cap(count=100, period_s=86_400)],
    )


def world_of(history: History) -> WorldFile:
    """Every product that anybody bought, and every campaign."""
    skus = {
        line.sku for household in history.households for basket in history.purchases(household) for line in basket.items
    }
    products = [Product(sku=sku, name=sku, segment=segment) for sku, segment in history.segments.items() if sku in skus]
    # A segment that is on offer and never bought needs a product all the same, for there to be something to offer.
    known = {product.segment for product in products}
    offered = {segment for campaign in history.campaigns for segment in campaign.promotion.what.segments}
    products += [Product(sku=f"any {name}", name=name, segment=name) for name in sorted(offered - known)]
    codes = [msgspec.structs.replace(WORLD.fences[0], id=one.promotion.id, parent=None) for one in history.campaigns]
    return WorldFile(
        stores=list(WORLD.stores),
        fences=codes,
        products=products,
        promotions=[as_offer(one, history) for one in history.campaigns],
    )


class Live:
    """One household's year, event by event, in an engine of its own batches."""

    def __init__(self, history: History, household: CustomerId) -> None:
        self.history = history
        self.household = household
        self.sent: dict[PromotionId, Decision] = {}

    def steps(self) -> Iterator[tuple[int, int, Campaign | Purchase | PromotionId]]:
        history, household = self.history, self.household
        for campaign in history.campaigns:
            if household in campaign.households:
                yield campaign.starts_ms, _SCAN, campaign
        for purchase in history.purchases(household):
            yield purchase.ts, _FOLD, purchase
        for at_ms, promotion in history.redemptions.get(household, []):
            yield at_ms, _FOLD, promotion

    def scan(self, campaign: Campaign) -> Action:
        return Action(
            id=f"scan-{campaign.promotion.id}",
            uid=self.household,
            ts=campaign.starts_ms,
            action="qr_scan",
            fence=campaign.promotion.id,
        )

    def redeemed(self, promotion: PromotionId, at_ms: int) -> Receipt | None:
        decision = self.sent.get(promotion)
        if decision is None:
            return None
        return Receipt(
            id=f"redeemed-{decision.id}-{at_ms}",
            uid=self.household,
            ts=at_ms,
            message=message_id(decision.id, "customer"),
            decision=decision.id,
            status="redeemed",
        )


async def test_live_rows_are_training_rows(redis: Redis) -> None:
    """Of a dozen households' whole year, at every campaign that each was addressed by."""
    history = load(package_folder(), HOUSEHOLDS)
    dataset = extract(history, RedeemTask())
    expected = {
        (str(customer), str(group)): row.tolist()
        for customer, group, row in zip(dataset.customer, dataset.group, dataset.rows, strict=True)
    }
    store = WorldStore(redis)
    await store.put(world_of(history))
    policy = Policy(caps=(), quiet_hours=None, annoyance_cents=0.0)
    engine = engine_on(redis, Playback(), store, policy=policy)
    state = StateStore(redis, PARTITIONS)
    await engine.follow_assignment()
    for household in history.households:
        live = Live(history, household)
        waiting: list[Event] = [Consent(id="consent", uid=household, ts=YEAR_2000_MS, scope="websocket", granted=True)]
        for at_ms, _, what in sorted(live.steps(), key=lambda step: step[:2]):
            if isinstance(what, Purchase):
                waiting.append(what)
            elif not isinstance(what, Campaign):
                receipt = live.redeemed(what, at_ms)
                waiting += [receipt] if receipt is not None else []
            else:
                await engine.process(records_of([*waiting, live.scan(what)], at_ms))
                waiting = []
                for decision in await state.decisions(household, 1):
                    if decision.promotion is not None:
                        live.sent[decision.promotion] = decision
    seen: dict[tuple[str, str], list[float]] = {}
    for decision in (await committed(redis)).decisions.values():
        (promotion,) = {candidate.promotion for candidate in decision.candidates}
        assert decision.features_hash == REDEEM.hash
        inputs = {tuple(candidate.inputs) for candidate in decision.candidates if candidate.inputs}
        # A campaign names its segments, so every thing of it scores alike.
        (row,) = inputs
        seen[decision.customer, promotion] = list(row)
    assert len(expected) > 40
    assert expected.keys() <= seen.keys()
    assert {place: seen[place] for place in expected} == expected


def test_the_households_redeem() -> None:
    """Otherwise the test above would not see what a redemption does to later rows."""
    history = load(package_folder(), HOUSEHOLDS)
    assert sum(len(found) for found in history.redemptions.values()) > 3

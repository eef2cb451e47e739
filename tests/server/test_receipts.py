"""What the engine and the coupons tell each other: receipts of redemptions, and that somebody left a store."""

import pytest
from redis.asyncio import Redis

from nearcast.customer import Customer, SentMessage
from nearcast.events import TOPIC_OF, DeliveryStatus, Receipt, decode_record, encode
from nearcast.fold import FoldRules, apply
from nearcast.ids import CustomerId, DecisionId, MessageId, PromotionId, StoreId
from nearcast.messages import Released
from server.coupons import AppliedOffer
from server.receipts import receipt_of
from tests.server.counter import ANN, open_counter

ANNA, MESSAGE, DECISION = CustomerId("anna"), MessageId("m"), DecisionId("d")


def receipt(status: DeliveryStatus, store: str, redemption: str) -> Receipt:
    """As the engine reads it."""
    written = receipt_of(
        *(ANNA, MESSAGE, DECISION, status, None, ""),
        redemption_id=redemption,
        revenue_cents=900,
        discount_cents=90,
        store=StoreId(store),
    )
    read = decode_record(TOPIC_OF[Receipt], encode(written), 1_000)
    assert isinstance(read, Receipt)
    return read


@pytest.mark.parametrize("redemption", ["1", "a/1", "x" * 128])
def test_one_id_at_two_stores(redemption: str) -> None:
    """A redemption id belongs to its store: called off at one store, redeemed at another under the same id, counts."""
    sent = SentMessage(message=MESSAGE, decision=DECISION, promotion=PromotionId("p"), at_ms=1, status="applied")
    anna = Customer(id=ANNA, messages=[sent])
    told = [
        receipt("redeemed", "graben", redemption),
        receipt("rolled_back", "graben", redemption),
        receipt("redeemed", "ring", redemption),
    ]
    assert len({each.id for each in told}) == 3
    assert [apply(anna, each, {}, FoldRules()).status for each in told] == ["applied"] * 3
    assert (sent.status, sent.revenue_cents, anna.redemptions) == ("redeemed", 900, 1)


def test_stores_that_look_like_ids() -> None:
    """Where the store's id ends and the redemption's begins is never in doubt."""
    whole = {receipt("redeemed", store, r).redemption_id for store, r in (("a/b", "c"), ("a", "b/c"), ("a%2Fb", "c"))}
    assert len(whole) == 3
    assert receipt("redeemed", "graben", "r-1").redemption_id == "graben/r-1"


async def test_a_late_exit(redis: Redis, valkey_url: str) -> None:
    """An exit that is heard of late frees what was reserved before it, not what is reserved in the next visit."""
    async with open_counter(redis, valkey_url) as counter:
        now_ms, graben = counter.clock.now_ms(), StoreId("graben")
        offer = AppliedOffer(
            customer=ANN, decision=DECISION, promotion=PromotionId("p"), expires_ms=now_ms + 3_600_000, store=graben
        )
        code = (await counter.coupons.apply(offer)).code
        await counter.coupons.reserve(code, graben, "r-1", while_in_store=True)
        for left_ms, state in ((now_ms - 1, "reserved"), (now_ms, "applied")):
            await counter.desk.released(Released(customer=ANN, store=graben, at_ms=left_ms))
            assert (await counter.coupons.validate(code)).state == state

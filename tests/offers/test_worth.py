"""What a message costs: its own price, and what the last ones that were ignored add to it."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearcast.customer import SentMessage
from nearcast.events import DeliveryStatus
from offers.policy import Policy
from offers.worth import annoyance_cents, cost_cents, ignored
from tests.offers.examples import HOUR_MS, NOW_MS, catalogue, customer, promotion, sent

WORLD = catalogue(promotion(), promotion(id="alert", kind="assist"))
WEEK_MS = 7 * 24 * HOUR_MS


def times(*statuses: DeliveryStatus | None) -> int:
    """How many are ignored in a row, of offers with these statuses, oldest first."""
    messages = [sent(status=status, name=f"m{n}") for n, status in enumerate(statuses)]
    return ignored(customer(messages=messages), WORLD, Policy(), NOW_MS)


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ((), 0),
        (("sent", "delivered", None), 3),
        # It reached nobody, or was taken back.
        (("failed", "expired", "suppressed", "recalled"), 0),
        (("delivered", "expired", "delivered"), 2),
        # One reaction, and it begins anew; dismissing is none.
        (("delivered", "delivered", "opened"), 0),
        (("delivered", "redeemed", "delivered", "dismissed"), 2),
        (("applied", "delivered"), 1),
    ],
)
def test_ignored_in_a_row(statuses: Sequence[DeliveryStatus | None], expected: int) -> None:
    """By hand: what counts as ignored, and what ends the row."""
    assert times(*statuses) == expected


def test_the_window_and_alerts() -> None:
    """An offer of longer ago than the window doesn't count, and alerts to staff never do."""
    old = sent(at_ms=NOW_MS - WEEK_MS)
    newer = sent(at_ms=NOW_MS - WEEK_MS + 1)
    alert = sent("alert")
    assert ignored(customer(messages=[old, newer, alert]), WORLD, Policy(), NOW_MS) == 1
    gone = sent("not in the catalogue any more")
    assert ignored(customer(messages=[gone]), WORLD, Policy(), NOW_MS) == 1


@pytest.mark.parametrize(("row", "cents"), [(0, 0.0), (1, 0.5), (2, 1.5), (3, 3.5), (10, 511.5)])
def test_annoyance_doubles(row: int, cents: float) -> None:
    """By hand: nothing at first, then twice as much with each."""
    policy = Policy(annoyance_cents=0.5)
    assert annoyance_cents(promotion(), row, policy) == cents
    assert cost_cents(promotion(cost_cents=7), row, policy) == cents + 7
    assert annoyance_cents(promotion(kind="assist"), row, policy) == 0
    assert cost_cents(promotion(kind="assist", cost_cents=7), row, policy) == 7


def test_the_default_spares_a_stranger_after_seven_and_anybody_after_thirty() -> None:
    """As the policy and the documentation tell: expecting 0.1 cents, 30 cents, and a thousand euros."""
    for cents, row in ((0.1, 7), (30.0, 15), (100_000.0, 27)):
        assert annoyance_cents(promotion(), row - 1, Policy()) < cents <= annoyance_cents(promotion(), row, Policy())


statuses = st.sampled_from([None, "sent", "delivered", "opened", "dismissed", "redeemed", "recalled", "failed"])
messages = st.lists(
    st.builds(
        sent,
        promotion_id=st.sampled_from(["deal", "alert"]),
        at_ms=st.integers(NOW_MS - 2 * WEEK_MS, NOW_MS),
        status=statuses,
    ),
    max_size=12,
)


@given(history=messages)
def test_reactions_lower_and_messages_raise(history: list[SentMessage]) -> None:
    """One more offer without a reaction adds one; one more with a reaction leaves none; time never adds any."""
    ann = customer(messages=history)
    before = ignored(ann, WORLD, Policy(), NOW_MS)
    assert 0 <= before <= len(history)
    assert ignored(ann, WORLD, Policy(), NOW_MS + WEEK_MS // 2) <= before
    assert ignored(ann, WORLD, Policy(), NOW_MS + WEEK_MS) == 0
    ann.messages = [*history, sent(at_ms=NOW_MS)]
    assert ignored(ann, WORLD, Policy(), NOW_MS) == before + 1
    ann.messages = [*history, sent(at_ms=NOW_MS, status="opened")]
    assert ignored(ann, WORLD, Policy(), NOW_MS) == 0

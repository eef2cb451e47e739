"""The buy-next model: rows that say what their names say, of what was known at the time; and a faithful export."""

import dataclasses
import math
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.features.buy_next import BUY_NEXT, customer_part, row
from models.next_best import predictions
from models.registry import FixedModels
from models.scorer import Scorer
from models.training.buy_next import HORIZON_MS, BuyNextTask
from models.training.dataset import Dataset
from models.training.extract import extract
from models.training.history import DAY_MS, History, load, package_folder
from models.training.train import Report, run
from nearcast import fold
from nearcast.customer import Customer
from nearcast.events import Line, Purchase
from nearcast.ids import CustomerId
from server.stored import decode_customer, encode_customer

SHIPPED = Path(str(resources.files("models").joinpath("artifacts", "buy_next")))
HOUSEHOLDS = 40
NOW_MS = 1_750_000_000_000
SEGMENTS = {"cola": "drinks", "beer": "drinks", "soap": "care", "milk": "dairy"}
LINES = st.builds(
    Line,
    sku=st.sampled_from([*SEGMENTS, "unknown"]),
    quantity=st.integers(0, 100_000),
    amount_cents=st.integers(0, 10_000_000_000),
)


def purchases(times: st.SearchStrategy[int]) -> st.SearchStrategy[list[Purchase]]:
    bought = st.builds(Purchase, uid=st.just("u"), ts=times, items=st.lists(LINES, min_size=1, max_size=4))
    return st.lists(bought, max_size=12)


def customer_of(events: list[Purchase]) -> Customer:
    customer = Customer(id=CustomerId("u"))
    for number, event in enumerate(events):
        event.id = f"purchase-{number}"
        fold.apply(customer, event, SEGMENTS, fold.FoldRules())
    return customer


def buy(at_ms: int, *skus: str, cents: int = 100) -> Purchase:
    return Purchase(uid="u", ts=at_ms, items=[Line(sku=sku, quantity=1, amount_cents=cents) for sku in skus])


def known(customer: Customer, segment: str, at_ms: int = NOW_MS) -> dict[str, float]:
    """The features of a segment, by name."""
    return dict(
        zip(BUY_NEXT.columns, row(customer_part(customer, at_ms), customer.history.segments[segment]), strict=True)
    )


@pytest.fixture(scope="module")
def few(history: History) -> History:
    """The history of few households."""
    return dataclasses.replace(history, households=history.households[:40])


@pytest.fixture(scope="module")
def rows(few: History) -> Dataset:
    """Their rows."""
    return extract(few, BuyNextTask())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A model trained on few households."""
    return run(tmp_path_factory.mktemp("models") / "buy_next", kind="buy_next", households=HOUSEHOLDS)


@given(purchases(st.integers(0, 9_999_999_999_999)), st.integers(0, 9_999_999_999_999))
def test_finite_for_anybody(events: list[Purchase], at_ms: int) -> None:
    """Whatever was bought and whenever, also after the moment: as many finite 32-bit numbers as there are columns."""
    customer = customer_of(events)
    part = customer_part(customer, at_ms)
    for entry in customer.history.segments.values():
        values = row(part, entry)
        assert len(values) == len(BUY_NEXT.columns)
        assert np.isfinite(np.array(values, dtype=np.float32)).all()


@given(purchases(st.integers(NOW_MS - 400 * DAY_MS, NOW_MS)))
def test_what_the_columns_say(events: list[Purchase]) -> None:
    """Every column as counted from the list of purchases, whatever the order in which they came."""
    customer = customer_of(events)
    ages = [(NOW_MS - event.ts) / DAY_MS for event in events]
    with_any = [{SEGMENTS[line.sku] for line in event.items if line.sku in SEGMENTS} for event in events]
    for segment in set().union(*with_any):
        mine = [age for age, bought in zip(ages, with_any, strict=True) if segment in bought]
        weeks = max(ages) / 7 + 1
        recent_weeks = 4 / math.log(2) * (1 - 2 ** (-max(ages) / 28)) + 1
        recent, recent_all = (sum(2 ** (-age / 28) for age in each) for each in (mine, ages))
        spent = sum(
            line.amount_cents / 100 for event in events for line in event.items if SEGMENTS.get(line.sku) == segment
        )
        rate, since = len(mine) / weeks, min(min(mine), 365)
        expected = {
            "log_segment_recent_rate": math.log(recent / recent_weeks + 1 / 52),
            "log_segment_rate": math.log(rate + 1 / 52),
            "log_days_since_segment": math.log(1 + since),
            "segment_basket_share": len(mine) / len(events),
            "segment_recent_share": recent / (recent_all + 0.1),
            "log_segment_basket_spend": math.log(1 + spent / len(mine)),
            "segment_overdue": min(rate * since / 7, 5),
            "log_segment_overdue": math.log(rate * since / 7 + 0.05),
            "log_recent_rate": math.log(recent_all / recent_weeks + 1 / 52),
            "log_rate": math.log(len(events) / weeks + 1 / 52),
            "log_days_since_purchase": math.log(1 + min(*ages, 365)),
            "log_distinct_segments": math.log(1 + len(set().union(*with_any))),
        }
        assert known(customer, segment) == pytest.approx(expected, abs=1e-9)


def test_a_stored_customer_has_the_same_rows(few: History) -> None:
    """What the server reads back from its store gives the very row that training saw."""
    customer = customer_of([])
    for household in few.households[:3]:
        for number, purchase in enumerate(few.purchases(household)):
            purchase.id = f"{household}-{number}"
            fold.apply(customer, purchase, few.segments, fold.FoldRules())
    stored = decode_customer(customer.id, encode_customer(customer))
    assert len(customer.history.segments) > 50
    for segment in customer.history.segments:
        assert known(stored, segment) == known(customer, segment)


def test_outcomes_are_the_next_week(rows: Dataset) -> None:
    """Rows are the segments bought before the moment, and their outcome whether the raw table has them in the week."""
    lines = pd.read_parquet(package_folder() / "transactions.parquet")
    products = pd.read_parquet(package_folder() / "products.parquet").dropna(subset="product_category")
    lines = lines[lines["household_id"].isin([int(household) for household in set(rows.customer[:2_000])])]
    lines = lines.merge(products[["product_id", "product_category"]], on="product_id")
    lines["at_ms"] = lines["transaction_timestamp"].astype("datetime64[ms]").astype("int64")
    moments = list(dict.fromkeys(zip(rows.customer[:2_000].tolist(), rows.at_ms[:2_000].tolist(), strict=True)))[:-1]
    for household, at_ms in moments:
        mine = lines[lines["household_id"] == int(household)]
        before = set(mine[mine["at_ms"] < at_ms]["product_category"])
        week = set(mine[mine["at_ms"].between(at_ms, at_ms + 7 * DAY_MS, inclusive="left")]["product_category"])
        seen = (rows.customer == household) & (rows.at_ms == at_ms)
        assert (seen.sum(), rows.outcome[seen].sum()) == (len(before), len(before & week))
    assert len(moments) > 10


def test_no_week_ahead_reaches_over_a_border(few: History, rows: Dataset) -> None:
    """No training outcome is from the time that is kept for judging, and none from after the data ends."""
    task = BuyNextTask()
    for border_ms in (_ms(task.choose_from), _ms(task.test_from), few.ends_ms):
        assert not ((rows.at_ms < border_ms) & (rows.at_ms + HORIZON_MS > border_ms)).any()
        assert (rows.at_ms + HORIZON_MS <= border_ms).any()
    assert (rows.at_ms >= _ms(task.test_from)).any()


def test_the_future_does_not_reach_a_row(few: History, rows: Dataset) -> None:
    """Without any purchase from some time on, rows up to then stay as they were, though outcomes don't."""
    cut_ms = int(np.median(rows.at_ms))

    class Ended(History):
        def purchases(self, household: CustomerId) -> Iterator[Purchase]:
            return (purchase for purchase in few.purchases(household) if purchase.ts < cut_ms)

    ended = Ended(**{field.name: getattr(few, field.name) for field in dataclasses.fields(few)})
    whole, known_then = (each.where(each.at_ms <= cut_ms) for each in (rows, extract(ended, BuyNextTask())))
    np.testing.assert_array_equal(whole.at_ms, known_then.at_ms)
    np.testing.assert_array_equal(whole.rows, known_then.rows)
    assert whole.outcome.sum() > known_then.outcome.sum()


def test_it_learns(trained: Report) -> None:
    """Even from few households it ranks as well as any single signal, and is far better than the prior."""
    model, prior = trained.manifest.metrics["model"], trained.manifest.metrics["prior"]
    assert set(trained.manifest.metrics) == {"model", "prior", "recency", "frequency", "recent frequency"}
    assert model.log_loss < 0.92 * prior.log_loss
    assert model.average_precision > 2.5 * prior.average_precision
    assert model.average_precision > 1.5 * trained.manifest.metrics["recency"].average_precision
    assert model.ece < 0.02


def test_the_file_ranks_as_scikit_learn_does(trained: Report) -> None:
    """The same five segments at every test moment, in the same order, and the same probabilities to 1e-5."""
    task = BuyNextTask()
    rows = extract(load(package_folder(), HOUSEHOLDS), task)
    train, test = rows.where(rows.at_ms < _ms(task.test_from)), rows.where(rows.at_ms >= _ms(task.test_from))
    model = task.algorithms(trained.manifest.seed)[trained.manifest.algorithm].fit(train.rows, train.outcome)
    reference = model.predict_proba(test.rows)[:, 1]
    served = np.array(Scorer.load(Path(trained.folder), "buy_next").score(test.rows))
    assert np.abs(reference - served).max() <= 1e-5
    moments = sorted(set(zip(test.customer.tolist(), test.at_ms.tolist(), strict=True)))
    for customer, at_ms in moments:
        mine = (test.customer == customer) & (test.at_ms == at_ms)
        tops = [np.argsort(-scores[mine].round(6), kind="stable")[:5].tolist() for scores in (reference, served)]
        assert tops[0] == tops[1]
    assert len(moments) > 50


def test_the_shipped_model() -> None:
    """It loads, is of this code's features, and was better than every single signal on all counts that matter."""
    manifest = Scorer.load(SHIPPED, "buy_next").manifest
    model = manifest.metrics["model"]
    assert manifest.customers_left_out == 0
    assert model.ece <= 0.02
    for name, single in manifest.metrics.items():
        if name != "model":
            assert model.average_precision > 1.05 * single.average_precision, name
            assert model.log_loss < single.log_loss, name


def test_next_best_comes_first() -> None:
    """Weekly milk before monthly soap, and that before last year's cola; only segments that were asked for."""
    weekly = [buy(NOW_MS - week * 7 * DAY_MS, "milk") for week in range(1, 30)]
    monthly = [buy(NOW_MS - month * 30 * DAY_MS, "soap") for month in range(1, 7)]
    customer = customer_of([buy(NOW_MS - 300 * DAY_MS, "cola"), *monthly, *weekly])
    serving = FixedModels(Scorer.load(SHIPPED, "buy_next")).serving("buy_next")
    found = predictions(customer, {"dairy", "care", "drinks", "never-bought"}, serving, NOW_MS, 5)
    assert [each.segment for each in found] == ["dairy", "care", "drinks"]
    assert 1 > found[0].probability > 0.4 > found[1].probability > found[2].probability > 0
    assert {each.model for each in found} == {serving.active.version}
    assert [each.segment for each in predictions(customer, {"care", "drinks"}, serving, NOW_MS, 1)] == ["care"]
    assert predictions(customer, set(), serving, NOW_MS, 5) == []
    assert predictions(customer_of([]), {"dairy"}, serving, NOW_MS, 5) == []


def test_without_a_model_what_was_bought_most_of_late_comes_first() -> None:
    """The fallback score is the same for all, so the order is that of recent baskets, then of names."""
    customer = customer_of([buy(NOW_MS - 1, "milk"), buy(NOW_MS - 1, "soap", "beer"), buy(NOW_MS - 1, "cola")])
    found = predictions(customer, set(SEGMENTS.values()), FixedModels().serving("buy_next"), NOW_MS, 5)
    assert [each.segment for each in found] == ["drinks", "care", "dairy"]
    assert {each.model for each in found} == {"fallback"}


def _ms(date: str) -> int:
    return int(pd.Timestamp(date).value // 1_000_000)

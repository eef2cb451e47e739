"""The rows: what was known at the time, nothing of what came after."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from models.features.redeem import REDEEM
from models.training.dataset import Dataset, Example
from models.training.extract import CHUNK, extract
from models.training.history import History, load, package_folder
from models.training.redeem import RedeemTask
from nearcast.ids import CustomerId

CUT = "2017-08-08"  # a large campaign starts on this day
CUT_MS = 1_502_150_400_000
HOUSEHOLDS = 60


def rewritten(folder: Path, **changed: pd.DataFrame) -> Path:
    """The package's data folder with some tables replaced."""
    folder.mkdir()
    for path in package_folder().glob("*.parquet"):
        if path.stem in changed:
            changed[path.stem].to_parquet(folder / path.name)
        else:
            (folder / path.name).symlink_to(path)
    return folder


def test_rows_agree_with_the_tables(history: History, dataset: Dataset) -> None:
    """For every row: spending, coupons, messages and purchases of what is on offer as counted from the raw tables."""
    folder = package_folder()
    lines = pd.read_parquet(folder / "transactions.parquet")
    lines = lines[lines["household_id"].isin([int(household) for household in history.households[:20]])]
    lines["segment"] = lines["product_id"].astype(str).map(history.segments)
    lines["off"] = lines["coupon_disc"] + lines["coupon_match_disc"]
    lines["paid"] = (lines["sales_value"] - lines["coupon_disc"]).clip(lower=0)
    redemptions = pd.read_parquet(folder / "coupon_redemptions.parquet")
    ends = pd.read_parquet(folder / "campaign_descriptions.parquet").set_index("campaign_id")["end_date"]
    offered = {campaign.promotion.id: campaign.promotion.what.segments for campaign in history.campaigns}
    column = {name: np.expm1(dataset.rows[:, number]) for number, name in enumerate(REDEEM.columns)}
    checked = 0
    for number, household in enumerate(dataset.customer):
        start, campaign = pd.Timestamp(dataset.at_ms[number], unit="ms"), dataset.group[number]
        mine = lines[(lines["household_id"] == int(household)) & (lines["transaction_timestamp"] < start)]
        if mine.empty:
            continue
        baskets, with_coupon = mine["basket_id"].nunique(), mine[mine["off"] > 0]["basket_id"].nunique()
        assert column["log_coupon_basket_share"][number] * 0.02 == pytest.approx(with_coupon / baskets)
        assert dataset.signals["coupon_baskets"][number] == with_coupon
        worth = 0.5 ** ((start - mine["transaction_timestamp"]) / pd.Timedelta(days=28))
        assert column["log_recent_spend"][number] == pytest.approx((mine["paid"] * worth).sum())
        before = redemptions[(redemptions["household_id"] == int(household)) & (redemptions["redemption_date"] < start)]
        received = {
            one.promotion.id
            for one in history.campaigns
            if household in one.households and one.starts_ms < dataset.at_ms[number]
        }
        redeemed = len({f"campaign-{one}" for one in before["campaign_id"]} & received)
        share = (redeemed + 0.1) / (len(received) + 1)
        assert column["log_redemption_share"][number] * 0.05 == pytest.approx(share)
        known_days = (start - mine["transaction_timestamp"].min()) / pd.Timedelta(days=1)
        known_for = (1 - 0.5 ** (known_days / 28)) / np.log(2) + 7 / 28
        theirs = mine.assign(worth=worth)[mine["segment"].isin(offered[campaign])]
        bought = theirs.drop_duplicates(["basket_id", "segment"])["worth"].sum()
        assert column["log_segment_rate"][number] == pytest.approx(bought / known_for)
        coupons = theirs[theirs["off"] > 0]["worth"].sum()
        assert column["log_segment_coupon_rate"][number] == pytest.approx(coupons / known_for)
        last = min(ends[int(campaign.removeprefix("campaign-"))] + pd.Timedelta(days=1), pd.Timestamp("2018-01-01"))
        days = min(max((last - start) / pd.Timedelta(days=1), 4.0), 60.0)
        assert np.exp(dataset.rows[number, -1]) == pytest.approx(days, abs=0.5)
        checked += 1
    assert checked > 50


def test_practice_is_what_had_come_of_it_by_then(dataset: Dataset) -> None:
    """After 4 and 28 days: the same row but for the days, and whether a coupon had been redeemed by then."""
    table = pd.read_parquet(package_folder() / "coupon_redemptions.parquet")
    first = table.groupby(["household_id", "campaign_id"])["redemption_date"].min()
    days = {(str(household), f"campaign-{campaign}"): date for (household, campaign), date in first.items()}
    assert dataset.practice_rows.shape == (len(dataset.outcome), 2, len(REDEEM.columns))
    seen = set()
    for number, pair in enumerate(zip(dataset.customer.tolist(), dataset.group.tolist(), strict=True)):
        for place, after in enumerate((4, 28)):
            np.testing.assert_array_equal(dataset.practice_rows[number, place, :-1], dataset.rows[number, :-1])
            window = min(after, np.exp(dataset.rows[number, -1]))
            assert np.exp(dataset.practice_rows[number, place, -1]) == pytest.approx(window)
            until = pd.Timestamp(dataset.at_ms[number], unit="ms") + pd.Timedelta(days=after)
            expected = pair in days and days[pair] < until
            assert dataset.practice_outcome[number, place] == expected
            seen.add((place, expected))
    assert len(seen) == 4
    rows, outcome = dataset.lessons()
    assert rows.shape == (3 * len(dataset.outcome), len(REDEEM.columns))
    assert outcome.sum() == dataset.outcome.sum() + dataset.practice_outcome.sum()


def test_labels_are_the_redemptions(dataset: Dataset) -> None:
    """A row counts as redeemed exactly if the table has a redemption of that household and campaign."""
    table = pd.read_parquet(package_folder() / "coupon_redemptions.parquet")
    redeemed = {(str(household), f"campaign-{campaign}") for household, campaign in table.iloc[:, [0, 2]].to_numpy()}
    pairs = list(zip(dataset.customer.tolist(), dataset.group.tolist(), strict=True))
    assert dataset.outcome.tolist() == [pair in redeemed for pair in pairs]
    assert len(pairs) == len(set(pairs))


def test_the_future_does_not_reach_a_row(tmp_path: Path) -> None:
    """Without any purchase and redemption from a day on, rows up to that day stay as they were, later ones don't."""
    whole = extract(load(package_folder(), HOUSEHOLDS), RedeemTask())
    lines = pd.read_parquet(package_folder() / "transactions.parquet")
    redemptions = pd.read_parquet(package_folder() / "coupon_redemptions.parquet")
    # When the data ends is known, and says how long a campaign was seen: one line of the last day stays.
    end = [lines["transaction_timestamp"].idxmax()]
    cut = load(
        rewritten(
            tmp_path / "cut",
            transactions=pd.concat([lines[lines["transaction_timestamp"] < CUT], lines.loc[end]]),
            coupon_redemptions=redemptions[redemptions["redemption_date"] < CUT],
        ),
        HOUSEHOLDS,
    )
    known = extract(cut, RedeemTask())
    assert known.customer.tolist() == whole.customer.tolist()
    past = whole.at_ms <= CUT_MS
    assert (whole.at_ms == CUT_MS).sum() > 10
    np.testing.assert_array_equal(known.rows[past], whole.rows[past])
    assert not np.array_equal(known.rows[~past], whole.rows[~past])


def test_an_outcome_reaches_only_later_rows(tmp_path: Path) -> None:
    """Redeem one day later: the row of that campaign stays; what may move comes after the redemption."""
    redemptions = pd.read_parquet(package_folder() / "coupon_redemptions.parquet")
    later = redemptions.assign(redemption_date=redemptions["redemption_date"] + pd.Timedelta(days=1))
    before = extract(load(package_folder(), HOUSEHOLDS), RedeemTask())
    after = extract(load(rewritten(tmp_path / "later", coupon_redemptions=later), HOUSEHOLDS), RedeemTask())
    assert after.outcome.tolist() == before.outcome.tolist()
    moved = (after.rows != before.rows).any(axis=1)
    first = redemptions.groupby("household_id")["redemption_date"].min()
    for household, starts_ms in zip(before.customer[moved], before.at_ms[moved], strict=True):
        assert pd.Timestamp(starts_ms, unit="ms") > first[int(household)]


def test_a_redemption_of_the_day_before_counts(tmp_path: Path) -> None:
    """What happened yesterday is known today; what happens on the day itself is not."""
    one = load(package_folder(), HOUSEHOLDS)
    household = next(
        h for h in one.households if any(c.starts_ms == CUT_MS and h in c.households for c in one.campaigns)
    )
    earlier = next(c for c in one.campaigns if c.starts_ms < CUT_MS and household in c.households)
    number = int(earlier.promotion.id.removeprefix("campaign-"))
    counts, shares = {}, {}
    for day in ("2017-08-07", "2017-08-08"):
        table = pd.DataFrame(
            {
                "household_id": [int(household)],
                "coupon_upc": [1],
                "campaign_id": [number],
                "redemption_date": [pd.Timestamp(day)],
            }
        )
        rows = extract(load(rewritten(tmp_path / day, coupon_redemptions=table), HOUSEHOLDS), RedeemTask())
        mine = (rows.customer == household) & (rows.at_ms == CUT_MS)
        counts[day] = rows.signals["redemptions"][mine].tolist()
        shares[day] = rows.rows[mine, REDEEM.columns.index("log_redemption_share")].item()
    assert counts == {"2017-08-07": [1.0], "2017-08-08": [0.0]}
    assert shares["2017-08-07"] > shares["2017-08-08"]


class Killed(BaseException):
    """Training was stopped from outside."""


class Counting(RedeemTask):
    """The task, counting the customers that it was asked for; stops at one of them."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.asked: list[CustomerId] = []
        self._stop_at = stop_at

    def examples(self, history: History, customer: CustomerId) -> Iterator[Example]:
        if len(self.asked) == self._stop_at:
            raise Killed
        self.asked.append(customer)
        yield from super().examples(history, customer)


def test_extraction_goes_on_where_it_was_stopped(history: History, dataset: Dataset, tmp_path: Path) -> None:
    """Only the customers of the unfinished file are replayed again, and the rows are those of one go."""
    first, second, third = Counting(stop_at=2 * CHUNK + 7), Counting(), Counting()
    with pytest.raises(Killed):
        extract(history, first, cache=tmp_path)
    resumed = extract(history, second, cache=tmp_path)
    assert second.asked == list(history.households[2 * CHUNK :])
    for found in (resumed, extract(history, third, cache=tmp_path)):
        np.testing.assert_array_equal(found.rows, dataset.rows)
        np.testing.assert_array_equal(found.lessons()[1], dataset.lessons()[1])
        assert found.customer.tolist() == dataset.customer.tolist()
        assert {name: values.tolist() for name, values in found.signals.items()} == {
            name: values.tolist() for name, values in dataset.signals.items()
        }
    assert third.asked == []


def test_the_cache_holds_for_the_same_data_only(history: History, tmp_path: Path) -> None:
    """Other data, or other customers of it, share nothing; a damaged file is made again."""
    few = replace(history, households=history.households[:20])
    extract(few, Counting(), cache=tmp_path)
    for other in (replace(few, fingerprint="another"), replace(few, households=few.households[:19])):
        task = Counting()
        extract(other, task, cache=tmp_path)
        assert task.asked == list(other.households)
    for path in tmp_path.rglob("*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    task = Counting()
    extract(few, task, cache=tmp_path)
    assert task.asked == list(few.households)


def test_no_customers_no_rows(history: History) -> None:
    """An empty history has no rows, of the right width."""
    empty = extract(replace(history, households=()), RedeemTask())
    assert empty.rows.shape == (0, len(REDEEM.columns))
    assert empty.lessons()[0].shape == (0, len(REDEEM.columns))

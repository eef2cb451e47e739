"""What holds in a fence: its own word, else that of the nearest fence around it, else the default."""

import itertools
from typing import Any

import pytest

from geofence.index import FenceIndex
from geofence.rules import DWELL_S, EXIT_MARGIN_M, FOREVER_MS, Rules
from nearcast.errors import InputError
from nearcast.events import YEAR_2000_MS
from nearcast.hours import zone_named
from nearcast.ids import FenceId
from nearcast.world import Circle, Fence, OpenHours

KINDS = ("vicinity", "store", "department", "shelf", "product")
NOON_MS = YEAR_2000_MS + 12 * 3_600_000  # a Saturday, UTC
OPEN = [OpenHours(weekday=5, opens=12 * 60, closes=12 * 60 + 30)]


def line(**fields: dict[str, Any]) -> list[Fence]:
    """A fence of each kind, each in the one before; fields by kind."""
    return [
        Fence(
            **{
                "id": kind,
                "store": "s",
                "kind": kind,
                "geometry": Circle((16.37, 48.2), 50.0),
                "parent": KINDS[number - 1] if number else None,
                "sku": "x" if kind == "product" else None,
                **fields.get(kind, {}),
            }
        )
        for number, kind in enumerate(KINDS)
    ]


def rules(**fields: dict[str, Any]) -> dict[str, Rules]:
    index = FenceIndex.build(line(**fields))
    return {kind: index.rules[FenceId(kind)] for kind in KINDS}


@pytest.mark.parametrize(
    ("field", "given", "name", "known", "default"),
    [
        ("dwell_s", 30.5, "dwell_ms", 30_500, DWELL_S * 1000),
        ("dwell_s", 0.0001, "dwell_ms", 1, DWELL_S * 1000),
        ("exit_margin_m", 0.0, "exit_margin_m", 0.0, EXIT_MARGIN_M),
        ("enter_fixes", 3, "enter_fixes", 3, 1),
        ("enter_s", 0.0, "enter_ms", 0, 0),
        ("enter_s", 2.5, "enter_ms", 2_500, 0),
        ("exit_fixes", 4, "exit_fixes", 4, 1),
        ("exit_s", 9.0, "exit_ms", 9_000, 0),
        ("floor", 0, "floor", 0, None),
        ("floor", -2, "floor", -2, None),
        ("hours", [], "hours", [], None),
        ("hours", OPEN, "hours", OPEN, None),
        ("valid_from_ms", NOON_MS, "valid_from_ms", NOON_MS, 0),
        ("valid_until_ms", NOON_MS, "valid_until_ms", NOON_MS, FOREVER_MS),
    ],
)
def test_inherited(field: str, given: Any, name: str, known: Any, default: Any) -> None:
    """From any of the fences around it, however far up; also a 0 or an empty list; never from one inside it."""
    for number, kind in enumerate(KINDS):
        found = rules(**{kind: {field: given}})
        assert [getattr(found[each], name) for each in KINDS[:number]] == [default] * number
        assert [getattr(found[each], name) for each in KINDS[number:]] == [known] * (len(KINDS) - number)


def test_the_nearest_counts() -> None:
    """Between two fences that say something different, the inner one's word counts."""
    other = [OpenHours(weekday=0, opens=0, closes=1)]
    found = rules(
        store={"dwell_s": 10.0, "floor": 1, "hours": OPEN, "exit_s": 1.0},
        shelf={"dwell_s": 20.0, "floor": 2, "hours": other},
    )
    assert [found[kind].dwell_ms for kind in KINDS] == [60_000, 10_000, 10_000, 20_000, 20_000]
    assert [found[kind].floor for kind in KINDS] == [None, 1, 1, 2, 2]
    assert [found[kind].hours for kind in KINDS] == [None, OPEN, OPEN, other, other]
    assert [found[kind].exit_ms for kind in KINDS] == [0, 1_000, 1_000, 1_000, 1_000]


def test_approaches_are_asked_for_one_by_one() -> None:
    """`approach_m` is a fence's own: around a store it says nothing of the shelves."""
    assert [each.approach_m for each in rules(store={"approach_m": 200.0}).values()] == [0, 200, 0, 0, 0]


def test_valid_in_the_time_common_to_all_around() -> None:
    """A fence is in force from when the last of them is, until the first of them is not."""
    found = rules(
        store={"valid_from_ms": NOON_MS, "valid_until_ms": NOON_MS + 100},
        shelf={"valid_from_ms": NOON_MS - 5, "valid_until_ms": NOON_MS + 50},
    )
    instants = [NOON_MS - 1, NOON_MS, NOON_MS + 49, NOON_MS + 50, NOON_MS + 99, NOON_MS + 100]
    yes, no = True, False
    assert [found["store"].in_force(at_ms) for at_ms in instants] == [no, yes, yes, yes, yes, no]
    assert [found["product"].in_force(at_ms) for at_ms in instants] == [no, yes, yes, no, no, no]
    assert all(found["vicinity"].in_force(at_ms) for at_ms in instants)


def test_hours_by_the_stores_clock() -> None:
    """Noon in London is not noon in Vienna."""
    found = rules(store={"hours": OPEN})["shelf"]
    assert found.is_open(NOON_MS, None)
    assert found.is_open(NOON_MS, zone_named("Europe/London"))
    assert not found.is_open(NOON_MS, zone_named("Europe/Vienna"))
    assert found.is_open(NOON_MS - 3_600_000, zone_named("Europe/Vienna"))
    assert rules()["shelf"].is_open(NOON_MS, None)


@pytest.mark.parametrize(
    ("fields", "closes_ms"),
    [
        ({}, None),
        ({"hours": OPEN}, NOON_MS + 30 * 60_000),
        ({"valid_until_ms": NOON_MS + 20 * 60_000 + 7}, NOON_MS + 20 * 60_000 + 7),
        ({"hours": OPEN, "valid_until_ms": NOON_MS + 20 * 60_000 + 7}, NOON_MS + 20 * 60_000 + 7),
        ({"hours": OPEN, "valid_until_ms": NOON_MS + 50 * 60_000}, NOON_MS + 30 * 60_000),
        ({"valid_until_ms": NOON_MS + 61 * 60_000}, None),
        ({"valid_until_ms": NOON_MS + 60 * 60_000}, None),
        ({"hours": []}, NOON_MS + 1),
        ({"valid_until_ms": NOON_MS}, NOON_MS + 1),
        ({"valid_from_ms": NOON_MS + 2}, NOON_MS + 1),
    ],
)
def test_when_it_will_be_no_more(fields: dict[str, Any], closes_ms: int | None) -> None:
    """The first instant at which it is closed or not in force; None if not within the time asked about."""
    found = rules(store=fields)["shelf"]
    assert found.closing_ms(NOON_MS + 1, None, NOON_MS + 60 * 60_000) == closes_ms


def test_a_parent_that_is_missing_is_passed_over() -> None:
    """Topics promise no order: until the parent comes, the fence stands for itself."""
    index = FenceIndex.build([fence for fence in line(store={"dwell_s": 5.0}) if fence.kind != "store"])
    assert index.rules[FenceId("shelf")].dwell_ms == 60_000


def test_cycles_are_refused() -> None:
    """The refusal names a fence of the cycle, however long it is."""
    for length in (1, 2, 5):
        ring = itertools.pairwise([*KINDS[:length], KINDS[0]])
        fences = line(**{kind: {"parent": parent} for kind, parent in ring})
        with pytest.raises(InputError, match="its own ancestor") as caught:
            FenceIndex.build(fences)
        assert caught.value.reason == "cyclic_parents"
        assert caught.value.where.removeprefix("fence ") in KINDS

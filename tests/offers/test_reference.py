"""docs/reference/promotions.md says what the code does."""

import re
from pathlib import Path
from typing import get_args

import pytest

from nearcast.decisions import Reason
from nearcast.world import Budget, Cap, Promotion, Trigger, What, When, Where, Who
from offers.candidates import MAX_STORES, MAX_THINGS
from offers.catalogue import MAX_ALIKE
from offers.gates import GATES, PLACE_TRIGGERS
from offers.loading import check_references, load_world
from offers.policy import Policy

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "promotions.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_the_example_is_a_valid_file() -> None:
    """What a reader copies from the page loads, and everything it names exists."""
    example = PAGE.split("```yaml\n", 1)[1].split("```", 1)[0]
    world = load_world(example, "promotions.md")
    assert [promotion.id for promotion in world.promotions] == ["cart-nearby", "welcome", "at-the-tents", "help"]
    assert check_references(world) == []


def test_gates_are_listed_in_their_order() -> None:
    """The table of gates has every gate, in the order in which they are asked, and no reason is listed twice."""
    listed = re.findall(r"^\| \d+ \| `(\w+)` \|", section("Gates"), re.MULTILINE)
    assert listed == [reason.value for reason, _ in GATES]
    assert len(set(listed)) == len(listed)


def test_reasons_to_drop_a_message_are_real() -> None:
    """Every reason listed for the check before sending is a code that exists."""
    listed = re.findall(r"^\| \d+ \| `(\w+)` \|", section("Before sending"), re.MULTILINE)
    assert len(listed) == 13
    assert set(listed) <= set(Reason)


def test_triggers_are_listed() -> None:
    """The table has every trigger, and says rightly which messages are bound to the fence."""
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\S+) \|$", section("Triggers"), re.MULTILINE)
    assert [name for name, _ in rows] == list(get_args(Trigger))
    assert {name for name, bound in rows if bound == "yes"} == PLACE_TRIGGERS


def in_table(fields: list[str]) -> set[str]:
    rows = re.findall(r"^\| (`[^|]*) \|", section("A file by example"), re.MULTILINE)
    told = {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}
    return {field for field in fields if field not in told}


@pytest.mark.parametrize("part", [Who, Where, What, When])
def test_every_field_is_listed(part: type[Who | Where | What | When]) -> None:
    """The table has a row for each field that a promotion can have."""
    prefix = part.__name__.lower()
    assert in_table([f"{prefix}.{field}" for field in part.__struct_fields__]) == set()
    parts = {"who", "where", "what", "when"}
    assert in_table([field for field in Promotion.__struct_fields__ if field not in parts]) == set()


def test_caps_and_budgets_are_explained() -> None:
    """Each of their fields is named where they are explained."""
    gates = section("Gates")
    for field in Cap.__struct_fields__:
        assert f"`{field}`" in gates or f"{field}:" in gates, field
    for field in Budget.__struct_fields__:
        assert re.search(rf"^\| .*`{field}`", gates.split("### Budgets")[1], re.MULTILINE), field


def test_defaults_are_the_ones_told() -> None:
    """The figures on the page are the defaults in the code."""
    policy = Policy()
    assert f"`min_confidence` ({policy.min_confidence})" in PAGE
    assert f"({policy.staff_contact_quiet_ms // 60_000} minutes)" in PAGE
    (cap,) = policy.caps
    assert f"({cap.count} in {cap.period_s // 3600} hours unless set)" in PAGE
    assert f"at most {MAX_THINGS}." in PAGE
    assert f"The {MAX_STORES} nearest stores that are open" in PAGE
    assert f"of the {MAX_ALIKE} things that come first" in PAGE
    assert f"({What().within_m:,.0f} if left out)" in PAGE

"""docs/reference/promotions.md says what the code does."""

import re
from pathlib import Path
from typing import get_args

from nearcast.decisions import Reason
from nearcast.world import Trigger
from offers.candidates import MAX_THINGS
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
    assert len(listed) == 10
    assert set(listed) <= set(Reason)


def test_triggers_are_listed() -> None:
    """The table has every trigger, and says rightly which messages are bound to the fence."""
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\S+) \|$", section("Triggers"), re.MULTILINE)
    assert [name for name, _ in rows] == list(get_args(Trigger))
    assert {name for name, bound in rows if bound == "yes"} == PLACE_TRIGGERS


def test_defaults_are_the_ones_told() -> None:
    """The figures on the page are the defaults in the code."""
    policy = Policy()
    assert f"`min_confidence` ({policy.min_confidence})" in PAGE
    assert f"({policy.staff_contact_quiet_ms // 60_000} minutes)" in PAGE
    (cap,) = policy.caps
    assert f"({cap.count} in {cap.period_s // 3600} hours unless set)" in PAGE
    assert f"at most {MAX_THINGS}." in PAGE

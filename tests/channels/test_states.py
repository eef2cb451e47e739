"""The states of a delivery: what the table says, the code does, and the documents show."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import channels.states
from channels.states import FINAL, STEPS, Delivery

DOCUMENT = Path(__file__).parents[2] / "docs" / "channels.md"
STATES = st.sampled_from(sorted(STEPS))
CHANNELS = st.sampled_from(["websocket", "sms", "email"])


def _table(text: str) -> dict[str, set[str]]:
    """The states of a Markdown table, and where each may go on to by its third column."""
    (table,) = re.findall(r"^\| state \|.*?\n\n", text, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \|([^|]*)\|", table, re.MULTILINE)
    return {state: set(re.findall(r"`(\w+)`", further)) for state, further in rows}


@pytest.mark.parametrize("text", [channels.states.__doc__, DOCUMENT.read_text()], ids=["docstring", "document"])
def test_the_tables_that_people_read(text: str) -> None:
    """In the module and in the documents: the steps that the code allows, and no others."""
    assert _table(text) == {state: set(further) for state, further in STEPS.items()}


def test_the_picture_that_people_see() -> None:
    """Its arrows are the steps."""
    arrows = re.findall(r"^    (\w+) --> (\w+)", DOCUMENT.read_text(), re.MULTILINE)
    assert sorted(arrows) == sorted((state, further) for state in STEPS for further in STEPS[state])


def test_every_state_is_declared_and_can_end() -> None:
    """No step leads out of the table; from everywhere there is a way to an end; no end leads back to work."""
    assert set().union(*STEPS.values()) <= set(STEPS)
    for state in STEPS:
        reached, before = {state}, set[str]()
        while reached != before:
            before = set(reached)
            reached = reached.union(*(STEPS[each] for each in reached))
        assert reached & FINAL
        assert state not in FINAL or reached <= FINAL


def test_a_step_that_is_not_in_the_table() -> None:
    """Refused, with both names."""
    with pytest.raises(ValueError, match="sent to sending"):
        Delivery(state="sent").to("sending", channel="sms")


@given(st.lists(st.tuples(st.sampled_from(["to", "ended", "without", "unacknowledged", "recalled"]), STATES, CHANNELS)))
def test_no_walk_leaves_the_table(walk: list[tuple[str, str, str]]) -> None:
    """Whatever is called in whatever order: each step is in the table, or it is refused and nothing has changed; and
    what may have left the house is never said not to have."""
    delivery, out = Delivery(), False
    for call, state, channel in walk:
        try:
            match call:
                case "to":
                    after = delivery.to(state, channel=channel)  # type: ignore[arg-type]
                case "ended":
                    after = delivery.ended(state, channel, "why")  # type: ignore[arg-type]
                case "without":
                    after = delivery.without(channel)  # type: ignore[arg-type]
                case "unacknowledged":
                    after = delivery.unacknowledged()
                case _:
                    after = delivery.recalled("why")
        except ValueError:
            continue
        assert after.state in STEPS[delivery.state]
        out = out or after.state in ("awaiting", "sent") or after.out is not None
        if call == "unacknowledged":
            assert (after.state, after.out) == ("pending", delivery.channel)
        if after.out is not None:
            assert not after.unsent
            assert call == "to" or after.state not in ("suppressed", "failed")
        if call == "recalled" and delivery.state != "pending":
            assert after.state == "recalled"
        delivery = after
    if delivery.state in ("sent", "awaiting", "recalled"):
        assert not delivery.unsent

"""Who may do what with which channel."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.gateway.backend import Identity, Role
from channels.gateway.permissions import Action, allowed

CUSTOMER = Identity("c1", "customer", ("customer:c1", "news"))
STAFF = Identity("ann", "staff", ("staff:s1", "customer:ann"))
#: Without rights but to listen.
DEMO = Identity("page", "demo", ("demo:live", "staff:s1", "customer:page"))
ACTIONS: tuple[Action, ...] = ("subscribe", "publish", "presence", "history")


@pytest.mark.parametrize(
    ("identity", "channel", "actions"),
    [
        (CUSTOMER, "customer:c1", {"subscribe", "history", "presence"}),
        (CUSTOMER, "news", {"subscribe", "history"}),
        (CUSTOMER, "customer:c2", set()),
        (CUSTOMER, "staff:s1", set()),
        (CUSTOMER, "store:s1", {"subscribe", "history"}),
        (CUSTOMER, "zone:z 1", {"subscribe", "history"}),
        (STAFF, "staff:s1", {"subscribe", "history", "presence", "publish"}),
        (STAFF, "staff:s2", set()),
        (STAFF, "customer:ann", {"subscribe", "history"}),
        (STAFF, "store:s1", {"subscribe", "history"}),
        (DEMO, "demo:live", {"subscribe", "history"}),
        (DEMO, "staff:s1", {"subscribe", "history"}),
        (DEMO, "customer:page", {"subscribe", "history"}),
        (CUSTOMER, "store:", set()),
        (CUSTOMER, "store:" + "s" * 129, set()),
        (CUSTOMER, "store:a\n", set()),
        (CUSTOMER, "store:a\x1fb", set()),
        (CUSTOMER, "store:a}b", set()),
        (CUSTOMER, "my store:a", set()),
    ],
)
def test_rights(identity: Identity, channel: str, actions: set[Action]) -> None:
    """The token says what a client listens to; staff may publish to their store; presence is for one's own."""
    assert {action for action in ACTIONS if allowed(identity, channel, action)} == actions


@given(
    channel=st.text(max_size=40) | st.from_regex(r"(customer|staff|store|zone|demo):.{0,12}", fullmatch=True),
    role=st.sampled_from(["customer", "staff", "demo"]),
)
def test_without_a_channel_of_the_token_only_public_ones_are_open(channel: str, role: Role) -> None:
    """Whatever the name: who has no channel in the token publishes nowhere, sees nobody, and hears what is public."""
    nobody = Identity("x", role, ())
    assert not allowed(nobody, channel, "publish")
    assert allowed(nobody, channel, "presence") == (role == "customer" and channel == "customer:x")
    for action in ("subscribe", "history"):
        assert not allowed(nobody, channel, action) or channel.startswith(("store:", "zone:"))

"""How presences stand in the store: short for nearly everyone, and read back as they were."""

import msgspec
import pytest

from nearcast.customer import Nearby, Pending, Presence, Stay
from nearcast.errors import UnreadableState
from nearcast.ids import CustomerId, FenceId
from server.stored import decode_presence, encode_presence

ANN = CustomerId("ann")
STORE = FenceId("store")


@pytest.mark.parametrize(
    "presence",
    [
        Presence(),
        Presence(last_ms=7, allowed=False, timer_ms=9, cell=608_819_013_497_716_735),
        Presence(last_ms=7, doubt=0.25),
        Presence(last_ms=7, inside={STORE: Stay(1, 2, dwelled=True, confidence=0.9)}),
        Presence(
            last_ms=7,
            nearby=Nearby(
                48.2, 16.37, 7, entering={STORE: Pending(1, 7, 2, 3, 1.5, [0.1, 0.4, 1.0])}, trail=[(1, 48.2, 16.3)]
            ),
        ),
    ],
)
def test_a_presence_is_read_as_it_was_written(presence: Presence) -> None:
    """Whatever is in it; and the short form is the general one, but for blanks."""
    text = encode_presence(presence)
    assert decode_presence(ANN, text.encode()) == (presence, True)
    assert msgspec.json.decode(text) == msgspec.json.decode(msgspec.json.encode((3, presence)))


def test_a_newer_version_is_refused() -> None:
    """It is never guessed at."""
    with pytest.raises(UnreadableState, match="version 4"):
        decode_presence(ANN, b"[4,[7,{},true,0]]")

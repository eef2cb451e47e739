"""The WebSocket channel, and texts on one line. The publisher is a recorder; the gateway tests the real one."""

from dataclasses import replace

import msgspec
import pytest

from channels.contract import Outgoing, one_line
from channels.push import PushChannel, withdraw
from nearcast.errors import DropSend, FallBack, RetrySend, Unavailable
from nearcast.messages import Push, Withdraw, decode_publication
from tests.channels.examples import a_message, outgoing


class Recorder:
    """A publisher that remembers, with the channels that have a subscriber."""

    def __init__(self, *connected: str) -> None:
        self.listening = set(connected)
        self.published: list[tuple[str, str, bytes]] = []
        self.withdrawn: list[tuple[str, str, bytes]] = []
        self.reasons: list[str] = []
        self.notes: list[str] = []
        self.away = False

    async def publish_once(self, channel: str, key: str, data: bytes, note: str = "") -> object:
        self.published.append((channel, key, data))
        self.notes.append(note)
        return None

    async def withdraw(self, channel: str, key: str, data: bytes, reason: str) -> bool:
        if self.away:
            raise Unavailable("away")
        self.withdrawn.append((channel, key, data))
        self.reasons.append(reason)
        return True

    async def recall(self, channel: str, key: str, data: bytes) -> None:
        await self.withdraw(channel, key, data, "recalled")

    async def publish_if_heard(self, channel: str, key: str, data: bytes, note: str = "") -> bool:
        if self.away:
            raise Unavailable("away")
        if channel in self.listening:
            self.published.append((channel, key, data))
            self.notes.append(note)
        return channel in self.listening


async def test_an_offer_goes_to_the_customers_channel() -> None:
    """The publication is the push, keyed by message id."""
    publisher = Recorder("customer:anna")
    sent = outgoing()
    await PushChannel(publisher).send(sent)
    ((channel, key, data),) = publisher.published
    assert (channel, key) == ("customer:anna", sent.message.id)
    assert msgspec.json.decode(data, type=Push) == sent.push


async def test_a_publication_carries_when_its_event_arrived_and_when_it_was_handed_over() -> None:
    """For the nodes: the message, the first time of its trace and the last one; nothing where they are not known."""
    publisher = Recorder("customer:anna")
    first = outgoing()
    await PushChannel(publisher).send(replace(first, times_ms=(5, 6, 7, 8, 9)))
    await PushChannel(publisher).send(first)
    assert publisher.notes == [f"{first.message.id} 5 9", ""]


async def test_nobody_connected_falls_back() -> None:
    """An offer nobody would see goes to the next channel, and is not published."""
    publisher = Recorder("customer:bert")
    with pytest.raises(FallBack):
        await PushChannel(publisher).send(outgoing())
    assert publisher.published == []


async def test_a_repeated_offer_stays_on_its_channel() -> None:
    """An offer that may be published already is published again, connected or not, rather than sent elsewhere."""
    publisher = Recorder()
    first = outgoing()
    await PushChannel(publisher).send(Outgoing(message=first.message, push=first.push, link=first.link, repeated=True))
    assert len(publisher.published) == 1


async def test_an_assist_goes_to_the_store() -> None:
    """Staff get it whether or not a tablet is connected; without a store there are no staff."""
    publisher = Recorder()
    await PushChannel(publisher).send(outgoing(a_message(kind="assist")))
    assert [channel for channel, _, _ in publisher.published] == ["staff:s1"]
    nowhere = a_message(kind="assist")
    nowhere.store = None
    with pytest.raises(DropSend):
        await PushChannel(publisher).send(outgoing(nowhere))


async def test_a_store_that_is_away_is_retried() -> None:
    """The gateway's store being away is a passing fault."""
    publisher = Recorder("customer:anna")
    publisher.away = True
    with pytest.raises(RetrySend):
        await PushChannel(publisher).send(outgoing())


async def test_withdrawing() -> None:
    """The withdrawal names the message, why, and who; the publication that it takes back is the message's own."""
    publisher = Recorder()
    sent = outgoing().message
    await withdraw(publisher, "customer:anna", Withdraw(message=sent.id, reason="elsewhere", by="phone"))
    ((channel, key, data),) = publisher.withdrawn
    assert (channel, key) == ("customer:anna", sent.id)
    assert data == b'{"kind":"withdraw","message":"%b","reason":"elsewhere","by":"phone"}' % sent.id.encode()
    assert decode_publication(data) == Withdraw(message=sent.id, reason="elsewhere", by="phone")
    assert publisher.published == []
    assert publisher.reasons == ["elsewhere"]


@pytest.mark.parametrize(("kind", "channel"), [("offer", "customer:anna"), ("assist", "staff:s1")])
async def test_recalling(kind: str, channel: str) -> None:
    """A message is taken back where it was sent, under its own key."""
    publisher = Recorder()
    message = a_message(kind=kind)
    await PushChannel(publisher).recall(message)
    ((where, key, data),) = publisher.withdrawn
    assert (where, key) == (channel, message.id)
    assert decode_publication(data) == Withdraw(message=message.id, reason="recalled")
    assert publisher.published == []


async def test_recalling_what_reached_nobody() -> None:
    """An alert without a store was nowhere; with the gateway's store away it is to be tried again."""
    nowhere = a_message(kind="assist")
    nowhere.store = None
    with pytest.raises(DropSend):
        await PushChannel(Recorder()).recall(nowhere)
    publisher = Recorder()
    publisher.away = True
    with pytest.raises(RetrySend):
        await PushChannel(publisher).recall(a_message())


def test_texts_from_outside_are_made_one_line() -> None:
    """No control characters, no direction overrides; emoji and accents stay as they are."""
    assert one_line(" a\0b\u202ec\r\n\td\u2028e\ud800 ") == "a b c d e?"
    assert one_line("👩\u200d🍳 Käse") == "👩\u200d🍳 Käse"

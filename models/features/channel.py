"""What the channel model sees of one channel: will this customer react to a message that comes this way?

Called once per channel that a message may take. Somebody of whom nothing is known yet looks like everybody: counts are
eked out with a few imagined messages, to which as many react as is usual on that channel.
"""

import math

from models.features.base import FeatureSet
from nearcast.customer import ChannelHistory, Customer
from nearcast.events import Channel

#: Of a hundred messages on each channel, how many are reacted to, as far as anybody can say beforehand; and how many
#: imagined messages stand for that.
USUAL: dict[Channel, float] = {"websocket": 0.30, "sms": 0.20, "email": 0.12}
IMAGINED = 4.0

CHANNEL = FeatureSet(
    "channel",
    1,
    (
        "is_websocket",
        "is_sms",
        "is_email",
        # Messages on this channel, decayed with a half-life of four weeks, and the log-odds of a reaction to them.
        "log_sent_here",
        "reaction_log_odds_here",
        # The same of the other channels, together.
        "log_sent_elsewhere",
        "reaction_log_odds_elsewhere",
    ),
)


def row(customer: Customer, channel: Channel, at_ms: int) -> list[float]:
    """The features of writing to `customer` by `channel` at `at_ms`, in the order of `CHANNEL.columns`."""
    here = customer.channels.get(channel)
    sent, reacted = _counts(here, at_ms) if here is not None else (0.0, 0.0)
    usual = USUAL[channel]
    sent_elsewhere = reacted_elsewhere = expected_elsewhere = 0.0
    for other, history in customer.channels.items():
        if other != channel:
            more, of_them = _counts(history, at_ms)
            sent_elsewhere += more
            reacted_elsewhere += of_them
            expected_elsewhere += more * USUAL[other]
    # Of the others: how much more, or less, than usual on those channels they reacted.
    usual_elsewhere = expected_elsewhere / sent_elsewhere if sent_elsewhere else usual
    return [
        float(channel == "websocket"),
        float(channel == "sms"),
        float(channel == "email"),
        math.log1p(sent),
        _log_odds(reacted, sent, usual) - _log_odds(0.0, 0.0, usual),
        math.log1p(sent_elsewhere),
        _log_odds(reacted_elsewhere, sent_elsewhere, usual_elsewhere) - _log_odds(0.0, 0.0, usual_elsewhere),
    ]


def _counts(history: ChannelHistory, at_ms: int) -> tuple[float, float]:
    """Sent and reacted. Receipts of one message come at two times, so a reaction may outlast what it was to."""
    sent = max(history.sent.at(at_ms), 0.0)
    return sent, min(max(history.reacted.at(at_ms), 0.0), sent)


def _log_odds(reacted: float, sent: float, usual: float) -> float:
    rate = (reacted + IMAGINED * usual) / (sent + IMAGINED)
    return math.log(rate / (1 - rate))

"""How a customer stands in the store: the bytes of both records, and every version of them that can be read.

The cold record is MessagePack `[2, Customer]`. The hot one is JSON text `[3, Presence]`, since the commit script can
take text apart, but not binary strings. Version 2 of it had no more than the first four fields, and what it has of them
means the same. Version 1: the cold record is the bare MessagePack map, the hot one MessagePack `[1, last_ms, inside]`,
which did not know whether fixes may be used.

A newer engine reads what an older one wrote, and writes its own version with the next change; so engines can be
replaced one by one. It never guesses at bytes that it does not understand: `UnreadableState`.
"""

from typing import NamedTuple

import msgspec

from nearcast.customer import Customer, Presence, Stay
from nearcast.errors import UnreadableState
from nearcast.ids import CustomerId, FenceId

COLD_VERSION = 2
HOT_VERSION = 3

_PACK = msgspec.msgpack.Encoder()
_JSON = msgspec.json.Encoder()
_COLD = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw])
_CUSTOMER = msgspec.msgpack.Decoder(Customer)
_HOT = msgspec.json.Decoder(tuple[int, Presence])
_HOT_VERSION_1 = msgspec.msgpack.Decoder(tuple[int, int, dict[FenceId, Stay]])
_HOT_PREFIXES = tuple(f"[{version},".encode() for version in (HOT_VERSION, 2))


class Hot(NamedTuple):
    """A presence as it was found; `settled` if it is known whether fixes may be used, else the cold record says it."""

    presence: Presence
    settled: bool


def encode_customer(customer: Customer) -> bytes:
    return _PACK.encode((COLD_VERSION, customer))


def encode_presence(presence: Presence) -> str:
    if not (presence.inside or presence.nearby or presence.trips or presence.doubt):
        # Nearly everyone: a third of the time.
        allowed = "true" if presence.allowed else "false"
        return f"[{HOT_VERSION},[{presence.last_ms},{{}},{allowed},{presence.timer_ms},null,[],0.0,{presence.cell}]]"
    return _JSON.encode((HOT_VERSION, presence)).decode()


def decode_customer(customer: CustomerId, data: bytes | None) -> Customer:
    """The cold record; someone never heard of is a blank customer. Raises `UnreadableState`."""
    if data is None:
        return Customer(id=customer)
    try:
        if data[:1] != b"\x92":
            # A map: version 1 did not write its number.
            return _CUSTOMER.decode(data)
        version, body = _COLD.decode(data)
        if version == COLD_VERSION:
            return _CUSTOMER.decode(body)
    except msgspec.MsgspecError as error:
        raise UnreadableState(f"the record of customer {customer!r} is damaged: {error}") from None
    raise UnreadableState(_newer("record", customer, version, COLD_VERSION))


def decode_presence(customer: CustomerId, data: bytes | None) -> Hot:
    """The hot record; someone never seen has a blank one. Raises `UnreadableState`."""
    if data is None:
        return Hot(Presence(), settled=False)
    try:
        if data.startswith(_HOT_PREFIXES):
            return Hot(_HOT.decode(data)[1], settled=True)
        if data[:1] == b"\x93":
            _, last_ms, inside = _HOT_VERSION_1.decode(data)
            return Hot(Presence(last_ms, inside), settled=False)
        version = msgspec.json.decode(data)[0]
    except (msgspec.MsgspecError, TypeError, LookupError, UnicodeDecodeError) as error:
        raise UnreadableState(f"the presence of customer {customer!r} is damaged: {error}") from None
    raise UnreadableState(_newer("presence", customer, version, HOT_VERSION))


def _newer(what: str, customer: CustomerId, version: int, known: int) -> str:
    return (
        f"the {what} of customer {customer!r} has version {version}, and this engine knows {known} and older: "
        "run the release that wrote it"
    )

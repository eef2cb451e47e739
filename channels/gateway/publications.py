"""Places in a channel. Offsets count up by one from 1 within an epoch; a new epoch means that history was lost."""

from typing import NamedTuple

from nearcast.errors import NearcastError


class Position(NamedTuple):
    """Everything up to and including `offset` of `epoch`."""

    epoch: str
    offset: int


class Publication(NamedTuple):
    """One message of a channel; `data` is JSON without line feeds.

    A later publication with the same `key` replaces this one for those who have not got it yet; "" for none. `note` is
    for the nodes, and not told to clients (`channels.trace.note_of`).
    """

    offset: int
    data: bytes
    key: str = ""
    note: str = ""


class Recovered(NamedTuple):
    """What followed a position. If not `recovered` there is a hole before `position`, and no publications."""

    publications: list[Publication]
    recovered: bool
    position: Position


class Unrecoverable(NearcastError):
    """What followed a position isn't kept any more, or the position never was."""


class Revoked(NearcastError):
    """The user was logged out after the token had been issued."""

"""Places in a channel. Offsets count up by one from 1 within an epoch; a new epoch means that history was lost."""

from typing import NamedTuple


class Position(NamedTuple):
    """Everything up to and including `offset` of `epoch`."""

    epoch: str
    offset: int


class Publication(NamedTuple):
    """One message of a channel; `data` is JSON without line feeds."""

    offset: int
    data: bytes


class Recovered(NamedTuple):
    """What followed a position. If not `recovered` there is a hole before `position`, and no publications."""

    publications: list[Publication]
    recovered: bool
    position: Position

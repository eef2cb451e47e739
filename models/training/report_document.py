"""What an evaluation report is made of, however it is shown: sections of paragraphs, tables and plots."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from models.training.plots import Plot


class Text(NamedTuple):
    """A paragraph."""

    words: str


class Table(NamedTuple):
    """Rows of cells; the first cell names its row."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Plots(NamedTuple):
    """Pictures side by side where there is room."""

    plots: Sequence[Plot]
    small: bool = False


class Details(NamedTuple):
    """What only some readers want to see."""

    summary: str
    blocks: "Sequence[Text | Table | Plots]"


Block = Text | Table | Plots | Details


class Tile(NamedTuple):
    """One of the figures to see first."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Section:
    """A part of the report under its own heading."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Content:
    """A whole report."""

    title: str
    verdict: str
    cautions: Sequence[str]
    tiles: Sequence[Tile]
    sections: Sequence[Section]

    def plots(self) -> Iterator[Plot]:
        """All of them, in order."""
        for section in self.sections:
            for block in section.blocks:
                for part in block.blocks if isinstance(block, Details) else (block,):
                    if isinstance(part, Plots):
                        yield from part.plots

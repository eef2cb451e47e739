"""Plots as SVG text that takes its colours from the page it is in, light or dark, and keeps its words as text.

The only importer of matplotlib. Pure; the same figures give the same text. Every plot is drawn narrow, for a phone's
width, and can be shown larger.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.typing import RcKeyType

from models.training.report_figures import Bin, Curve, Floats, Interval

#: matplotlib wants fixed colours: these stand for names, which the page's style gives a meaning; and what they are
#: where a viewer knows no style.
_NAMED = {
    "#010101": ("ink", "#1b1b1f"),
    "#020202": ("soft", "#5b5b66"),
    "#030303": ("line", "#c9c9d2"),
    "#040404": ("model", "#0b6e4f"),
    "#050505": ("other", "#b4530a"),
    "#060606": ("second", "#3b5bdb"),
}
_INK, _SOFT, _LINE, _MODEL, _OTHER, _SECOND = _NAMED
STYLE = """
:root { --ink: #1b1b1f; --soft: #5b5b66; --line: #c9c9d2; --model: #0b6e4f; --other: #b4530a;
  --second: #3b5bdb; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #f2f2f5; --soft: #b3b3bd; --line: #4a4a55; --model: #7fe0b0; --other: #f5b35c;
    --second: #9db4ff; }
}
svg text { font-family: system-ui, sans-serif !important; }
svg path { stroke-linejoin: round; }
"""
Kind = Literal["model", "other", "second", "guide"]
#: For baselines, in this order.
OTHERS: Sequence[Kind] = ("other", "second")
_LOOKS: Mapping[Kind, tuple[str, float, str]] = {
    "model": (_MODEL, 2.2, "-"),
    "other": (_OTHER, 1.4, "-"),
    "second": (_SECOND, 1.4, "-."),
    "guide": (_SOFT, 1.0, "--"),
}
#: Inches.
_WIDTH = 4.3
_SETTINGS: dict[RcKeyType, object] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "nearcast",
    "font.size": 11,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "font.sans-serif": ["DejaVu Sans"],
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
_REFERENCES = re.compile(r'(id="|url\(#|xlink:href="#)')
#: Labels that fit under a plot.
_LABELS = 18
#: More points than this add nothing that an eye could see.
_POINTS = 250


class Plot(NamedTuple):
    """A picture: a short name that is unique in its report, what it shows in words, and the `<svg>` element."""

    name: str
    shows: str
    svg: str

    def file(self) -> str:
        """It as a file of its own."""
        return self.svg.replace(">", f"><title>{escape(self.shows)}</title><style>{STYLE}</style>", 1)


def percent(share: float, digits: int = 0) -> str:
    """A share for people to read."""
    return f"{share * 100:.{digits}f} %"


_PERCENT = FuncFormatter(lambda share, _: percent(share, 0 if share == 0 or share >= 0.01 else 1))


class Series(NamedTuple):
    """A labelled curve: the model's, a baseline's, or one that only serves to compare with."""

    label: str
    curve: Curve
    kind: Kind


def curves(
    name: str,
    shows: str,
    series: Sequence[Series],
    axes: tuple[str, str],
    legend: Literal["lower right", "upper right"] = "lower right",
) -> Plot:
    """Curves of shares over shares: both axes from 0 to 100 %."""
    with _drawing(name, shows, 3.5) as (ax, finished):
        for label, curve, kind in series:
            points = _thinned(curve)
            colour, width, dash = _LOOKS[kind]
            ax.plot(points.x, points.y, color=colour, linewidth=width, linestyle=dash, label=label)
        ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=axes[0], ylabel=axes[1])
        ax.xaxis.set_major_formatter(_PERCENT)
        ax.yaxis.set_major_formatter(_PERCENT)
        ax.grid(visible=True)
        ax.legend(loc=legend)
    return finished()


def lifts(name: str, shows: str, gains: Mapping[str, Curve]) -> Plot:
    """Lift over the share of rows taken: the model's gain curve, which comes first, and baselines'."""
    with _drawing(name, shows, 3.5) as (ax, finished):
        shares = np.linspace(0.01, 1, 100)
        for (label, curve), kind in reversed(list(zip(gains.items(), ("model", *OTHERS), strict=False))):
            colour, width, dash = _LOOKS[kind]
            taken = np.interp(shares, curve.x, curve.y) / shares
            ax.plot(shares, taken, color=colour, linewidth=width, linestyle=dash, label=label)
        ax.axhline(1, color=_SOFT, linewidth=1, linestyle="--", label="at random")
        ax.set(xlim=(0, 1), xlabel="share of rows taken, best first", ylabel="lift")
        ax.set_ylim(bottom=0)
        ax.xaxis.set_major_formatter(_PERCENT)
        ax.grid(visible=True)
        ax.legend(loc="upper right")
    return finished()


def calibration(name: str, shows: str, bins: Sequence[Bin]) -> Plot:
    """Rates with intervals over mean predictions, and the diagonal that they should lie on."""
    with _drawing(name, shows, 3.5) as (ax, finished):
        reach = min(1.0, max([one.predicted for one in bins] + [one.rate.high for one in bins]) * 1.05)
        ax.plot([0, reach], [0, reach], color=_SOFT, linewidth=1, linestyle="--", label="as predicted")
        rates = [one.rate for one in bins]
        _whiskers(ax, [one.predicted for one in bins], rates, _MODEL, label="observed, 95 %")
        for one in bins:
            ax.annotate(
                f"{one.rows:,}", (one.predicted, one.rate.high), xytext=(0, 3), textcoords="offset points",
                ha="center", fontsize=8, color=_SOFT,
            )  # fmt: skip
        ax.set(xlim=(0, reach), ylim=(0, reach * 1.05), xlabel="mean predicted", ylabel="rate observed")
        ax.xaxis.set_major_formatter(_PERCENT)
        ax.yaxis.set_major_formatter(_PERCENT)
        ax.grid(visible=True)
        ax.legend(loc="upper left")
    return finished()


def timeline(
    name: str, shows: str, labels: Sequence[str], model: Sequence[Interval | float], other: Sequence[float | Interval],
    *, words: tuple[str, str, str], share: bool,
) -> Plot:  # fmt: skip
    """Two things in order of time, at equal distances: shares, or AUCs, where 0.5 is chance.

    `words` label the model's, the other's and the y axis.
    """
    with _drawing(name, shows, 3.3) as (ax, finished):
        places = np.arange(len(labels), dtype=np.float64)
        for values, colour, label, shift in ((other, _OTHER, words[1], -0.12), (model, _MODEL, words[0], 0.12)):
            if not values:
                continue
            spread = [value if isinstance(value, Interval) else Interval(value, value, value) for value in values]
            _whiskers(ax, places + shift, spread, colour, label=label)
        ax.set(ylabel=words[2], xlim=(-0.6, len(labels) - 0.4))
        step = -(-len(labels) // _LABELS)
        ax.set_xticks(places[::step], labels[::step], rotation=90, fontsize=9)
        if share:
            ax.yaxis.set_major_formatter(_PERCENT)
            ax.set_ylim(bottom=0)
        else:
            ax.axhline(0.5, color=_SOFT, linewidth=1, linestyle="--", label="chance")
        ax.grid(visible=True, axis="y")
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, columnspacing=1)
    return finished()


def dots(name: str, shows: str, values: Mapping[str, Interval], x_label: str) -> Plot:
    """A line for each name, in that order: its value and interval; zero is marked."""
    with _drawing(name, shows, 0.9 + 0.27 * len(values)) as (ax, finished):
        places = np.arange(len(values))[::-1]
        spread = list(values.values())
        ax.axvline(0, color=_SOFT, linewidth=1)
        ends = np.array([[one.value - one.low, one.high - one.value] for one in spread]).T
        ax.errorbar(
            [one.value for one in spread], places, xerr=ends, fmt="o", color=_MODEL, markersize=5, linewidth=1.5
        )
        ax.set_yticks(places, list(values), fontsize=9.5)
        ax.tick_params(axis="y", labelcolor=_INK, length=0)
        ax.set_ylim(-0.6, len(values) - 0.4)
        ax.set_xlabel(x_label)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.grid(visible=True, axis="x")
    return finished()


def effect(name: str, shows: str, curve: Curve, top: float) -> Plot:
    """One small plot of several with the same y axis, 0 to `top`."""
    with _drawing(name, shows, 1.6, width=2.3) as (ax, finished):
        ax.plot(curve.x, curve.y, color=_MODEL, linewidth=2, marker=".", markersize=5)
        ax.set_ylim(0, top * 1.05)
        ax.xaxis.set_major_locator(MaxNLocator(3))
        ax.yaxis.set_major_locator(MaxNLocator(3))
        ax.yaxis.set_major_formatter(_PERCENT)
        ax.grid(visible=True)
    return finished()


def distribution(name: str, shows: str, without: Floats, having: Floats) -> Plot:
    """How scores are spread over the rows without the outcome and those with it; each adds up to 100 %."""
    with _drawing(name, shows, 3.1) as (ax, finished):
        edges = np.linspace(0, max(without.max(), having.max(), 1e-6), 26)
        for scores, colour, label in ((without, _SOFT, "without the outcome"), (having, _MODEL, "with the outcome")):
            shares = np.histogram(scores, edges)[0] / len(scores)
            ax.stairs(shares, edges, fill=True, color=colour, alpha=0.25)
            ax.stairs(shares, edges, color=colour, linewidth=1.6, label=label)
        ax.set(xlabel="score", ylabel="share of those rows", xlim=(0, edges[-1]))
        ax.xaxis.set_major_formatter(_PERCENT)
        ax.yaxis.set_major_formatter(_PERCENT)
        ax.grid(visible=True)
        ax.legend(loc="upper right")
    return finished()


def gains(name: str, shows: str, series: Sequence[Series]) -> Plot:
    """Qini curves: what is gained, in shares, by the share of customers who are offered; may be below zero."""
    with _drawing(name, shows, 3.5) as (ax, finished):
        for label, curve, kind in series:
            points = _thinned(curve)
            colour, width, dash = _LOOKS[kind]
            ax.plot(points.x, points.y, color=colour, linewidth=width, linestyle=dash, label=label)
        ax.axhline(0, color=_SOFT, linewidth=1)
        ax.set(xlim=(0, 1), xlabel="share of customers offered, best first", ylabel="more with the outcome")
        ax.xaxis.set_major_formatter(_PERCENT)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: percent(share, 1)))
        ax.grid(visible=True)
        ax.legend(loc="best")
    return finished()


class _Finished:
    """The plot, once its drawing is over."""

    plot: Plot

    def __call__(self) -> Plot:
        return self.plot


@contextmanager
def _drawing(name: str, shows: str, height: float, width: float = _WIDTH) -> Iterator[tuple[Axes, _Finished]]:
    """Axes to draw on, sizes in inches; what is drawn comes out as the plot."""
    finished = _Finished()
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.add_subplot(), finished
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = written.getvalue()
    svg = re.sub(r"\s*<(metadata|style)[ >].*?</\1>", "", svg[svg.index("<svg") :], flags=re.DOTALL).strip()
    for colour, (word, plain) in _NAMED.items():
        svg = svg.replace(colour, f"var(--{word}, {plain})")
    # One page holds several plots, and an id must be unique in it.
    svg = _REFERENCES.sub(rf"\g<1>{name}-", svg)
    head = f'<svg role="img" aria-label="{escape(shows)}"'
    svg = re.sub(r'^<svg( xmlns:xlink="[^"]*")? width="[^"]*" height="[^"]*"', rf"{head}\g<1>", svg)
    finished.plot = Plot(name, shows, svg)


def _whiskers(
    ax: Axes, places: Sequence[float] | Floats, values: Sequence[Interval], colour: str, *, label: str
) -> None:
    ends = np.array([[one.value - one.low, one.high - one.value] for one in values]).T
    ax.errorbar(
        places, [one.value for one in values], yerr=ends.clip(min=0), fmt="o", color=colour, markersize=5,
        linewidth=1.3, capsize=2, label=label,
    )  # fmt: skip


def _thinned(curve: Curve) -> Curve:
    if len(curve.x) <= _POINTS:
        return curve
    kept = np.unique(np.linspace(0, len(curve.x) - 1, _POINTS).astype(np.int64))
    return Curve(curve.x[kept], curve.y[kept])

"""The figure of `bench.closed_loop`, as SVG."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from bench.closed_loop import Run

_COLOURS = {
    "random": "#9ca3af",
    "rules only": "#c2410c",
    "favourites": "#d97706",
    "popularity": "#6b7280",
    "learned": "#0b6e4f",
    "oracle": "#1d4ed8",
}


def picture(
    runs: "Mapping[str, Sequence[Run]]", ratios: Mapping[str, tuple[float, float, float]], explored: int
) -> str:
    """Left: offers redeemed week by week, mean over towns and its 95 % interval. Right: the totals of the weeks after
    `explored` days, as multiples of rules only, with their intervals.
    """
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "closed loop", "font.size": 10}):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for name, listed in runs.items():
            weeks = np.array([[week.conversions for week in run.weeks] for run in listed], dtype=np.float64)
            mean = weeks.mean(axis=0)
            half = 1.96 * weeks.std(axis=0, ddof=1) / np.sqrt(len(weeks))
            numbers = np.arange(1, len(mean) + 1)
            left.plot(numbers, mean, color=_COLOURS[name], label=name, linewidth=2)
            left.fill_between(numbers, mean - half, mean + half, color=_COLOURS[name], alpha=0.15, linewidth=0)
        left.axvspan(0.5, explored / 7 + 0.5, color="#e5e7eb", alpha=0.6, linewidth=0)
        left.text(0.7, 1, '"learned" explores', fontsize=9, color="#4b5563")
        left.set(xlabel="week", ylabel="offers redeemed, per town", xlim=(0.5, len(mean) + 0.5), ylim=(0, None))
        left.legend(frameon=False, ncols=2, fontsize=9)
        for place, (name, (times, low, high)) in enumerate(reversed(list(ratios.items()))):
            right.barh(place, times, color=_COLOURS[name], alpha=0.85, height=0.6)
            right.plot((low, high), (place, place), color="#111827", linewidth=1.5)
            right.text(high + 0.05, place, f"{times:.2f}", va="center", fontsize=9)
        right.axvline(1, color="#111827", linewidth=0.8, linestyle=":")
        right.set_yticks(range(len(ratios)), list(ratios)[::-1])
        right.set(
            xlabel="redeemed, as a multiple of rules only", xlim=(0, max(high for _, _, high in ratios.values()) * 1.2)
        )
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Title": "What learning is worth"})
    return drawn.getvalue()

"""Learning curves as a picture: accuracy against number of labels, mean and spread over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from backend.errors import BackendError

SUFFIXES = (".png", ".svg")
"""Kinds of picture, by the name's ending."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Colours that people with any colour vision tell apart: Okabe & Ito 2008, https://jfly.uni-koeln.de/color/, without
their yellow, which paper does not show."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":")
"""Colours and markers go round together, the kind of line changes with each round: 21 different curves."""

DOTS_PER_INCH = 200


def plot_learning_curves(summary: Mapping[str, Mapping[int, tuple[float, float]]], title: str, file: Path) -> None:
    """Writes one curve per strategy: the mean, and one standard deviation to either side as a shaded band.

    `summary` is strategy → budget → (mean accuracy, standard deviation), both 0..1, as `simulate.summary` gives it. A
    curve has a colour, a marker and a kind of line of its own, so that it is told apart without colours too. Raises
    BackendError if the file ends in neither .png nor .svg, or cannot be written.
    """
    check_plot_file(file)
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    opacity = min(0.12, 0.6 / max(len(summary), 1))  # many bands on top of each other stay light
    for number, (strategy, by_budget) in enumerate(summary.items()):
        budgets = sorted(by_budget)
        means = [by_budget[budget][0] for budget in budgets]
        lower = [max(by_budget[budget][0] - by_budget[budget][1], 0.0) for budget in budgets]
        upper = [min(by_budget[budget][0] + by_budget[budget][1], 1.0) for budget in budgets]
        which = number % len(COLOURS)
        axes.plot(
            budgets,
            means,
            label=strategy,
            color=COLOURS[which],
            marker=MARKERS[which],
            markersize=5,
            linestyle=LINES[number // len(COLOURS) % len(LINES)],
            linewidth=1.5,
        )
        axes.fill_between(budgets, lower, upper, color=COLOURS[which], alpha=opacity, linewidth=0)
    ticks = sorted({budget for by_budget in summary.values() for budget in by_budget})
    axes.set_xscale("log")  # a label is worth most while there are few
    axes.set_xticks(ticks, labels=[str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("labels")
    axes.set_ylabel("accuracy on held-out images")
    axes.set_title(title)
    axes.grid(color="0.85", linewidth=0.6)
    axes.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    try:
        figure.savefig(file, dpi=DOTS_PER_INCH)
    except OSError as exc:
        raise BackendError(f"the plot cannot be written to {file}: {exc.strerror or exc}") from exc


def check_plot_file(file: Path) -> None:
    """Raise BackendError unless the file's name says which kind of picture to write."""
    if file.suffix.lower() not in SUFFIXES:
        raise BackendError(f"the plot's file is {file.name!r}; expected a name that ends in {' or '.join(SUFFIXES)}")

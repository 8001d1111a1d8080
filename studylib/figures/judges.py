"""Figures of how judges agree with people and with each other, from tables of `studylib.analysis.agreement`; see `plots`."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from studylib.analysis.agreement import ALL
from studylib.analysis.readable import label, span
from studylib.analysis.stats import CONFIDENCE
from studylib.figures import style

KAPPA = "Cohen's kappa with the labels (refused or not)"
DOT = style.OURS | {"markersize": 3.5}
PEOPLE = {"color": style.PUBLISHED["color"], "linewidth": 1, "linestyle": "--"}


def judge_agreement(judges: pd.DataFrame, people: pd.DataFrame | None = None) -> Figure:
    """A dot per judge, with its interval: kappa with people on each labelled set and on all of them together.

    `judges` is a table of `agreement.compare`; models are pooled. Panels by set, judges in the order of the table.
    Dashed, where `people` (of `agreement.people`) has the set: the kappa of people with each other. No dot where kappa
    is NaN.
    Raises ValueError for an empty table.
    """
    table = _shown(judges)
    names, sources = list(dict.fromkeys(table["judge"])), list(dict.fromkeys(table["source"]))
    margins = {"left": _room(names), "top": 0.7, "bottom": 0.5, "right": 0.2, "wspace": 0.15}
    fig, axes = style.new_figure(1, len(sources), 0.25 + 0.19 * len(names), **margins)
    for ax, source in zip(axes[0], sources, strict=True):
        part = table[table["source"] == source]
        between = [] if people is None else people.loc[people["source"] == source, "kappa"].dropna()
        for value in between:
            ax.axvline(value, **PEOPLE)
        for row in part[part["kappa"].notna()].to_dict("records"):
            ends = [[row["kappa"] - row["kappa_low"]], [row["kappa_high"] - row["kappa"]]]
            ax.errorbar(
                row["kappa"], names.index(row["judge"]), xerr=ends, elinewidth=1, zorder=3, clip_on=False, **DOT
            )
        ax.set_title(f"{_name(source)}\nn = {span(part['n'])}", size="medium")
        ax.grid(False, axis="y")
    ax = axes[0, 0]
    low = math.floor(10 * min(0, table["kappa_low"].min())) / 10 if table["kappa"].notna().any() else 0
    ax.set(xlim=(low, 1), xticks=(0, 0.5, 1), xticklabels=("0", "0.5", "1"))
    ax.set_yticks(range(len(names)), [label(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    style.outer_labels(fig, "", KAPPA)
    if people is not None and people["source"].isin(sources).any():
        style.add_legend(fig, [Line2D([], [], label="people with each other", **PEOPLE)])
    return fig


def agreement_matrix(matrix: pd.DataFrame) -> Figure:
    """Kappa of every two judges on the same responses, as a heat map; `matrix` is the table of `agreement.matrix`.

    Judges in the order of the table; grey where kappa is NaN, and on the diagonal. A kappa below 0 has the colour of 0.
    Raises ValueError for an empty table.
    """
    if matrix.empty:
        raise ValueError("agreement_matrix has nothing to draw: the table is empty")
    names = list(dict.fromkeys(matrix["judge"]))
    kappa = matrix[matrix["judge"] != matrix["other"]].pivot(index="judge", columns="other", values="kappa")
    kappa = kappa.reindex(index=names, columns=names)
    room = _room(names)
    cell = min(1.0, (style.WIDTH - room - 1) / len(names))
    margins = {"left": room, "right": style.WIDTH - room - cell * len(names), "top": 0.15, "bottom": 0.7 * room + 0.3}
    fig, axes = style.new_figure(1, 1, max(cell * len(names), 1.2), **margins)
    ax = axes[0, 0]
    size = "small" if len(names) < 16 else "x-small"
    words = kappa.map(lambda value: f"{value:.2f}".replace("0.", ".", 1))
    style.heat_map(ax, kappa, [label(name) for name in names], words, size)
    style.outer_labels(fig, "", f"n = {span(_pairs(matrix)['n'])} responses judged by both")
    box = fig.subplotpars
    scale_ax = fig.add_axes((box.right + 0.02, box.bottom, 0.018, box.top - box.bottom))
    scale = fig.colorbar(ax.collections[0], cax=scale_ax)
    scale.set_label("Cohen's kappa\n(refused or not)")
    scale.outline.set_visible(False)
    return fig


def caption(name: str, table: pd.DataFrame, people: pd.DataFrame | None = None) -> tuple[str, str]:
    """Caption and alternative text of a figure, by the name of its function; every number is of the table it shows.

    Raises ValueError for an empty table, and where every kappa in it is NaN.
    """
    if name == "agreement_matrix":
        pairs = _pairs(table)
        drawn = pairs[pairs["kappa"].notna()]
        text = (
            "Cohen's kappa of every two judges on the same responses, refused or not. Each cell: "
            f"n = {span(drawn['n'])} responses that both judged. "
            "Grey: undefined, as both always gave the same one class, or a judge beside itself."
        )
        told = drawn["judge"].map(label) + " and " + drawn["other"].map(label)
    else:
        shown = _shown(table)
        drawn = shown[shown["kappa"].notna()]
        text = (
            "Agreement of each judge with the labels of responses, Cohen's kappa of refused or not, by labelled set "
            "(own: the project's, each written to its label). Each dot: "
            f"n = {span(drawn['n'])} responses; left out: {span(shown['n_unjudged'])} that the judge could not tell. "
            f"Intervals: {100 * CONFIDENCE:.0f} %, bootstrap over prompts. "
            "Judges whose intervals overlap are not ranked."
            + (" Dashed: people with each other." if people is not None else "")
        )
        told = drawn["judge"].map(label) + " on " + drawn["source"].map(_name)
    if drawn.empty:
        raise ValueError(f"{name} has nothing to draw: no kappa is defined")
    least, most = drawn["kappa"].idxmin(), drawn["kappa"].idxmax()
    ends = " to ".join(f"{drawn.loc[i, 'kappa']:.2f} ({told[i]})" for i in (least, most))
    what = "of judges with each other" if name == "agreement_matrix" else "of judges with the labels"
    return text, f"Cohen's kappa {what}, from {ends}."


def _shown(judges: pd.DataFrame) -> pd.DataFrame:
    """The rows with models pooled; those of all sources only where there are several."""
    table = judges[judges["model"] == ALL]
    if table.empty:
        raise ValueError("judge_agreement has nothing to draw: the table is empty")
    return table if table["source"].nunique() > 2 else table[table["source"] != ALL]


def _pairs(matrix: pd.DataFrame) -> pd.DataFrame:
    """Each two different judges once."""
    place = {name: i for i, name in enumerate(dict.fromkeys(matrix["judge"]))}
    return matrix[matrix["judge"].map(place) < matrix["other"].map(place)]


def _room(names: list[str]) -> float:
    """Inches that the names need at the left."""
    return 0.3 + 0.062 * max(len(label(name)) for name in names)


def _name(source: str) -> str:
    return "all sets" if source == ALL else label(source)

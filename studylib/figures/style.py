"""The marks, colours, axes and orders that all figures share, and how a figure is saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from studylib.analysis.readable import calibration_label, cell_words, label, span
from studylib.study import files
from studylib.study.words import FORMS, SAFETY_DATA, STYLES, TASKS

# Okabe and Ito's colours, distinct with any colour vision; forms and safety data never share one.
FORM_COLOURS = dict(zip(FORMS, ("#0072B2", "#E69F00", "#009E73", "#D55E00"), strict=True))
SAFETY_COLOURS = dict(zip(SAFETY_DATA, ("#7F7F7F", "#56B4E9", "#CC79A7"), strict=True))
SAFETY_MARKERS = dict(zip(SAFETY_DATA, ("o", "s", "^"), strict=True))
INK = "#222222"  # the aligned model, and our results next to the published ones
EMPTY = "#E8E8E8"  # of heat map cells without a value
QUIET = {"color": "#666666", "size": "small", "style": "italic"}  # of words in place of a missing value
FRONT = {"color": INK, "linewidth": 0.8, "linestyle": ":", "zorder": 2.5}
HOLLOW = {"markerfacecolor": "white"}
OURS = {"color": INK, "marker": "o", "markersize": 4.5}
PUBLISHED = {"color": "#7F7F7F", "marker": "D", "markersize": 4.5, **HOLLOW}
TICK = {"color": "black", "linewidth": 1.5, "label": "aligned model"}  # a line across a mark
STAR = {"color": INK, "marker": "*", "markersize": 9}

FORMATS = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}  # and no date in them
WIDTH = 7.2  # inches: the text width of a page
PERCENT_TICKS = ((0, 0.25, 0.5, 0.75, 1), ("0", "", "50", "", "100"))
UNIT_AXIS = {"ylim": (0, 1), "yticks": PERCENT_TICKS[0], "yticklabels": PERCENT_TICKS[1]}
ATTACK = "attack success rate (% of harmful prompts answered)"
OVER_REFUSAL = "over-refusal rate (% of benign twins refused)"


class Drawn(NamedTuple):
    """A figure, the rows it shows, and the values that fill its texts in data/captions.yaml."""

    figure: Figure
    rows: pd.DataFrame
    words: dict


def set_theme() -> None:
    """Set the look of all figures; once, at the head of a notebook."""
    sns.set_theme(context="paper", style="whitegrid", font="DejaVu Sans", font_scale=0.9)
    mpl.rcParams.update({"axes.edgecolor": "#999999", "grid.linewidth": 0.5, "grid.color": "#DDDDDD"})


def save(fig: Figure, folder, name: str, caption: str, alt: str) -> None:
    """Writes `<name>.png` (200 dpi), `.svg`, `.pdf` and `.md` (both texts), each whole or not at all, on white ground.

    The same figure gives the same bytes. The PDF holds its letters as TrueType (42), as journals ask.
    """
    fixed = {"svg.hashsalt": "study", "pdf.fonttype": 42}
    for ending, metadata in FORMATS.items():
        path = Path(folder) / f"{name}.{ending}"
        with mpl.rc_context(fixed), files.aside(path) as part:
            fig.savefig(part, format=ending, dpi=200, facecolor="white", metadata=metadata)
    files.write_text(Path(folder) / f"{name}.md", f"{caption}\n\nAlternative text: {alt}\n")


def require(known: bool, name: str, why: str) -> None:
    """Raises ValueError, "<name> has nothing to draw: <why>", unless there is something known to draw."""
    if not known:
        raise ValueError(f"{name} has nothing to draw: {why}")


def n_of(table: pd.DataFrame) -> str:
    """Smallest and largest n, of tuned models and the aligned one: "n = 148-150, aligned model 50"."""
    aligned = table["finetune_task"] == "none" if "finetune_task" in table else pd.Series(False, table.index)
    return "n = " + ", aligned model ".join(span(table.loc[r, "n"]) for r in (~aligned, aligned) if r.any())


def extremes(rows: pd.DataFrame, value: str, form: bool = False, name: Callable = cell_words, unit: str = "%") -> str:
    """Smallest and largest value, times 100, with their cells, as in "3 % (aligned model, ...) to 80 % (...)"."""
    least, most = (rows.loc[i] for i in (rows[value].idxmin(), rows[value].idxmax()))
    return " to ".join(f"{100 * row[value]:.0f} {unit} ({name(row, form=form)})" for row in (least, most))


def facts(rows: pd.DataFrame, value: str = "rate", form: bool = False, unit: str = "%") -> dict:
    """What texts say of rates, times 100: `tuned` by safety data, `aligned` ("": not known), and `extremes`."""
    known = rows[rows[value].notna()]
    tuned, aligned = known[known["finetune_task"] != "none"], known[known["finetune_task"] == "none"]
    by_arm = {arm: tuned.loc[tuned["safety_data"] == arm, value] for arm in SAFETY_DATA}
    return {
        "tuned": {arm: span(100 * shares) for arm, shares in by_arm.items() if len(shares)},
        "aligned": span(100 * aligned[value]) if len(aligned) else "",
        "extremes": extremes(known, value, form, unit=unit),
    }


def in_percent(share: float, _=None) -> str:
    """A share (0-1) in percent, for the ticks of an axis."""
    return f"{100 * share:.4g}"


def points(difference: float) -> str:
    """A difference of rates (-1 to 1) in points with its sign, as in "+12"; "0" where it rounds to it."""
    return f"{100 * difference:+.0f}".replace("+0", "0").replace("-0", "0").replace("-", "\N{MINUS SIGN}")


def tasks_of(table: pd.DataFrame, tuned: bool = False) -> list[str]:
    """The tuned tasks that the table has, in the order of all figures, "none" first; only the tuned ones on request."""
    return [task for task in ("none", *TASKS)[tuned:] if task in set(table["finetune_task"])]


def calibrations_of(table: pd.DataFrame) -> list[tuple[str, bool]]:
    """Style and system prompt of each calibration that the table has, in the order of all figures."""
    present = set(zip(table["style"], table["system_prompt"], strict=True))
    return [(style, on) for style in STYLES for on in (False, True) if (style, on) in present]


def rows_at(table: pd.DataFrame, calibration: tuple[str, bool]) -> pd.DataFrame:
    return table[(table["style"] == calibration[0]) & (table["system_prompt"] == calibration[1])]


def new_figure(
    n_rows, n_columns, height, left=0.68, right=0.15, top=0.65, bottom=1.1, wspace=0.1, hspace=0.18, sharex=True
):
    """A figure of equal panels and its axes; sizes in inches, `height` of a row, wspace and hspace in panels."""
    total = top + bottom + n_rows * height
    fig = plt.figure(figsize=(WIDTH, total), facecolor="white")  # also on a dark page
    plt.close(fig)  # made by pyplot so that notebooks know how to show it, closed so that they show it once
    axes = fig.subplots(n_rows, n_columns, squeeze=False, sharex=sharex, sharey=True)
    fig.subplots_adjust(left / WIDTH, bottom / total, 1 - right / WIDTH, 1 - top / total, wspace, hspace)
    return fig, axes


def two_columns(contents: list, height: float, **margins):
    """A figure with a panel for each of the contents, two in a row at most, and its axes."""
    n_columns = min(2, len(contents))
    fig, axes = new_figure(-(-len(contents) // n_columns), n_columns, height, **margins)
    for ax in axes.flat[len(contents) :]:
        ax.set_axis_off()
    return fig, axes.flat[: len(contents)]


def style_label(trained: str) -> str:
    """A prompt style in words."""
    return calibration_label(trained, False).split(",")[0]


def safety_label(arm: str) -> str:
    """A kind of safety data in words."""
    return ("no" if arm == "none" else arm) + " safety data"


def outer_labels(fig: Figure, y: str, x: str) -> None:
    """The labels that all panels share, at the left and below."""
    box = fig.subplotpars
    fig.supylabel(y, x=0.01, y=(box.bottom + box.top) / 2, ha="left", va="center", ma="center", size="medium")
    fig.supxlabel(x, x=(box.left + box.right) / 2, y=0.01, size="medium")
    sns.despine(fig, left=True)


def heat_map(ax, values: pd.DataFrame, rows: list[str], words: pd.DataFrame, **colours) -> None:
    """Cells with their words, rows by those names; a last column "all" stands apart. A NaN cell stays empty.

    Colours go from 0 to 1 unless vmin, vmax and cmap say otherwise.
    """
    colours = {"vmin": 0, "vmax": 1, "cmap": "rocket_r"} | colours
    sns.heatmap(values.astype(float), ax=ax, cbar=False, linewidths=1, **colours)
    cells = ax.collections[0]
    cells.update_scalarmappable()
    grounds = cells.get_facecolors().reshape(*values.shape, 4)
    for row, column in np.argwhere(values.notna().to_numpy()):
        light = _luminance(grounds[row, column]) > 0.18  # where black and white are read equally well
        place = {"x": column + 0.5, "y": row + 0.5, "ha": "center", "va": "center"}
        ax.text(**place, s=words.iat[row, column], size="small", color=INK if light else "white")
    if values.columns[-1] == "all":
        ax.axvline(len(values.columns) - 1, color="white", linewidth=5)
    ax.set(xlabel="", ylabel="", facecolor=EMPTY)
    ax.set_yticks(np.arange(len(rows)) + 0.5, rows, rotation=0)
    slanted_ticks(ax, list(values.columns), start=0.5)
    ax.grid(False)  # it would show through empty cells


def _luminance(colour) -> float:
    """Relative luminance of an sRGB colour (0-1): WCAG 2.2, "relative luminance"."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def colour_scale(fig: Figure, ax, text: str, ticks=(0, 0.25, 0.5, 0.75, 1)) -> None:
    """A bar at the right that shows the colours of the heat map, in percent or points."""
    box = fig.subplotpars
    height = max(box.top - box.bottom, min(1.3 / fig.get_figheight(), 0.9))  # higher than a flat heat map
    bottom = np.clip((box.top + box.bottom - height) / 2, 0.05, 0.95 - height)
    scale_ax = fig.add_axes((box.right + 0.02, bottom, 0.018, height))
    scale = fig.colorbar(ax.collections[0], cax=scale_ax)
    scale.set_label(text)
    scale.set_ticks(ticks, labels=[f"{100 * tick:.0f}".replace("-", "\N{MINUS SIGN}") for tick in ticks])
    scale.outline.set_visible(False)


def mark_empty(ax, rows, why: str = "not run") -> None:
    """Writes into a panel without rows why it has none."""
    if not len(rows):
        ax.text(0.5, 0.5, why, transform=ax.transAxes, ha="center", va="center", **QUIET)


def panels_of(table: pd.DataFrame, tasks: list[str], y: str, x: str, bottom=1.1, top=0.65, axis=UNIT_AXIS):
    """A figure, and (calibration, task, axes) of each panel: a row per calibration, a column per task."""
    calibrations = calibrations_of(table)
    titles = ["aligned model\n(not tuned)" if task == "none" else f"tuned on\n{label(task)}" for task in tasks]
    fig, axes = calibration_rows(calibrations, titles, y, x, axis, bottom=bottom, top=top)
    return fig, [(c, task, axes[i, j]) for i, c in enumerate(calibrations) for j, task in enumerate(tasks)]


def calibration_rows(calibrations: list[tuple], titles: list[str], y: str, x: str, axis=UNIT_AXIS, **margins):
    """A figure and its axes: a row of panels per calibration, a column per title."""
    height = 1.9 if len(calibrations) == 1 else 1.25
    fig, axes = new_figure(len(calibrations), len(titles), height, right=0.5, **margins)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, size="medium")
    title_rows(axes, [calibration_label(*calibration, separator="\n") for calibration in calibrations])
    axes[0, 0].set(**axis)
    outer_labels(fig, y if len(calibrations) > 2 else y.replace(" (", "\n("), x)
    return fig, axes


def title_rows(axes, titles: list[str]) -> None:
    """A title of each row of panels, at the right of its last panel."""
    for ax, title in zip(axes[:, -1], titles, strict=True):
        ax.yaxis.set_label_position("right")
        ax.set_ylabel(title, rotation=270, va="bottom")


def draw_point(ax, x: float, row: dict, value: str, **style) -> None:
    """A mark at the row's value with its interval, from its `low` to its `high`."""
    style = {"linestyle": "", "elinewidth": 1, "zorder": 3, "clip_on": False} | style
    ax.errorbar(x, row[value], ends(row[value], row["low"], row["high"]), **style)


def ends(value: float, low: float, high: float) -> list[list[float]]:
    """Lengths of the interval below and above the value, as `errorbar` wants them."""
    return [[max(value - low, 0)], [max(high - value, 0)]]


def draw_tick(ax, x: float, row: dict | None, value: str) -> None:
    """The aligned model's value, where there is a row, as a line across the mark at x."""
    if row:  # above the axis line at 0, below the points
        ax.hlines(row[value], x - 0.42, x + 0.42, zorder=2.7, clip_on=False, **TICK)


def slanted_ticks(ax, words, start: float = 0) -> None:
    """The words along the x axis, one per place from `start`."""
    positions, names = start + np.arange(len(words)), [label(word) for word in words]
    ax.set_xticks(positions, names, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_xlim(start - 0.5, start + len(words) - 0.5)
    ax.grid(False, axis="x")


def dot_handle(text: str, **style) -> Line2D:
    return Line2D([], [], linestyle="", label=text, **style)


def arm_look(safety_data: str) -> dict:
    return {"color": SAFETY_COLOURS[safety_data], "marker": SAFETY_MARKERS[safety_data]}


def arm_handles(table: pd.DataFrame) -> list[Line2D]:
    """A legend's marks of the kinds of safety data that the tuned models of the table have."""
    tuned = table[table["finetune_task"] != "none"]
    arms = [arm for arm in SAFETY_DATA if arm in set(tuned["safety_data"])]
    return [dot_handle(safety_label(arm), **arm_look(arm)) for arm in arms]


def add_legend(fig: Figure, handles: list, rows: int = 1) -> Figure:
    """The figure, with its keys along the upper edge; a second row needs 0.2 inches more at the top."""
    place = {"loc": "upper center", "ncols": -(-len(handles) // rows), "handlelength": 1.3}
    fig.legend(handles=handles, frameon=False, borderaxespad=0.1, **place)
    return fig

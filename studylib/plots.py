"""The figures. Each function takes tidy tables of `studylib.tables` and returns a matplotlib Figure.

Nothing here loads or shows, and only `save` writes. Colours, markers and orders are the same in all figures, also in those
of `plots_change`, `plots_parts` and `plots_judges`, which are made of what is below.
Parts of the grid that were not run leave their place empty and say so. Of several safety fractions one is shown
(`captions.one_dose`). An empty table, or one with several models, judges or metrics for one mark, is a ValueError.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from studylib import captions_change, results
from studylib.captions import PUBLISHED_SHARE, calibration_label, label, n_of, rows_of, span
from studylib.config import FORMS, SAFETY_DATA, STYLES, TASKS
from studylib.stats import wilson

# Okabe and Ito's colours, told apart with any colour vision; forms and safety data never share one.
FORM_COLOURS = dict(zip(FORMS, ("#0072B2", "#E69F00", "#009E73", "#D55E00"), strict=True))
SAFETY_COLOURS = dict(zip(SAFETY_DATA, ("#7F7F7F", "#56B4E9", "#CC79A7"), strict=True))
TASK_MARKERS = dict(zip(("none", *TASKS), ("*", "o", "s", "^", "D"), strict=True))
INK = "#222222"  # the aligned model, and what is ours beside what is published
EMPTY = "#E8E8E8"  # of cells of a heat map that hold nothing
QUIET = {"color": "#666666", "size": "small", "style": "italic"}  # of words that stand for what is not there
BAND = "#E8E8E8"
FRONT = {"color": INK, "linewidth": 0.8, "linestyle": ":", "zorder": 2.5}
OURS = {"color": INK, "marker": "o", "markersize": 4.5}
PUBLISHED = {"color": "#7F7F7F", "marker": "D", "markersize": 4.5, "markerfacecolor": "white"}
STAR = {"color": INK, "marker": TASK_MARKERS["none"], "markersize": 9}
DASHED = {"color": INK, "linewidth": 0.8, "linestyle": "--"}

WIDTH = 7.2  # inches: the text width of a page
UNIT_AXIS = {"ylim": (0, 1), "yticks": (0, 0.25, 0.5, 0.75, 1), "yticklabels": ("0", "", "0.5", "", "1")}
ATTACK = "attack success rate (share of harmful prompts answered)"
OVER_REFUSAL = "over-refusal rate (share of benign twins refused)"


def set_theme() -> None:
    """Set the look of all figures; once, at the head of a notebook."""
    sns.set_theme(context="paper", style="whitegrid", font="DejaVu Sans", font_scale=0.9)
    mpl.rcParams.update({"axes.edgecolor": "#999999", "grid.linewidth": 0.5, "grid.color": "#DDDDDD"})


def attack_success_by_form(attack: pd.DataFrame) -> Figure:
    """Bars of the attack success rate by form of the prompt; panels by calibration (rows) and tuned task.

    Black ticks are the aligned model's rate in the same calibration. Models tuned without safety data only.
    """
    table = rows_of("attack_success_by_form", attack)
    fig, panels = panels_of(table, tasks_of(table), ATTACK, f"form of the harmful prompt ({n_of(table)} per bar)")
    marks = marks_of(table)
    for calibration, task, ax in panels:
        for x, form in enumerate(FORMS):
            bar = marks.get((*calibration, task, "none", form))
            if bar:
                ax.bar(x, bar["rate"], 0.8, color=FORM_COLOURS[form], linewidth=0)
                draw_point(ax, x, bar, "rate", color=INK)
            if task != "none":
                draw_tick(ax, x, marks.get((*calibration, "none", "none", form)), "rate")
        slanted_ticks(ax, FORMS)
        say_empty(ax, [key for key in marks if key[:3] == (*calibration, task)])
    return add_legend(fig, [*(Patch(color=c, label=label(f)) for f, c in FORM_COLOURS.items()), tick_handle()])


def safety_data_comparison(attack: pd.DataFrame) -> Figure:
    """The attack success rate with no, generic and multitask safety data.

    By form of the prompt; panels by calibration (rows) and tuned task; black ticks are the aligned model's.
    """
    return _arms_by_form(rows_of("safety_data_comparison", attack), "rate", ATTACK, "harmful prompt")


def over_refusal(helpfulness: pd.DataFrame) -> Figure:
    """The over-refusal rate on benign twins with no, generic and multitask safety data.

    By form of the prompt; panels by calibration (rows) and tuned task; black ticks are the aligned model's.
    """
    return _arms_by_form(rows_of("over_refusal", helpfulness), "value", OVER_REFUSAL, "benign twin")


def guard_heatmap(guards: pd.DataFrame) -> Figure:
    """What each guard blocks in percent, by side (rows) and form of the prompt: harmful prompts beside benign twins.

    High is good at the left and bad at the right; the column at the right of each panel pools the forms. Empty places
    had nothing to decide on. Raises ValueError where there are several rows for one place, or none.
    """
    keys, forms = ["guard", "side", "prompt_set", "form"], [*FORMS, "all"]
    if guards.empty:
        raise ValueError("guard_heatmap has nothing to draw: the table has no rows")
    if len(twice := guards[guards.duplicated(keys)]):
        first = ", ".join(map(str, twice.iloc[0][keys]))
        raise ValueError(f"several rows for one mark ({first}): keep one model and judge")
    rows = list(guards[["guard", "side"]].drop_duplicates().itertuples(index=False, name=None))
    margins = {"left": 1.9, "right": 0.95, "top": 0.45, "wspace": 0.08}
    fig, axes = new_figure(1, 2, 0.3 * len(rows), **margins)
    titles = {"harmful": "harmful ones blocked\n(more is better)", "twin": "benign twins blocked\n(less is better)"}
    for ax, (prompt_set, title) in zip(axes[0], titles.items(), strict=True):
        part = guards[guards["prompt_set"] == prompt_set]
        rates = part.pivot(index=["guard", "side"], columns="form", values="blocked_rate").reindex(
            index=rows, columns=forms
        )
        heat_map(ax, rates, [f"{label(guard)}, {side}" for guard, side in rows], rates.map(whole_percent))
        for line in (i for i in range(1, len(rows)) if rows[i][0] != rows[i - 1][0]):
            ax.axhline(line, color="white", linewidth=5)  # sets the guards apart
        ax.set_title(title, size="medium")
    per_form, asked = guards[guards["form"] != "all"], guards["side"] == "input"
    n = f"n = {span(per_form.loc[asked, 'n'])} prompts; output, both: n = {span(per_form.loc[~asked, 'n'])} responses"
    outer_labels(fig, "guard and what it reads", f"form of the prompt (per form {n})")
    sns.despine(fig, left=True, bottom=True)
    colour_scale(fig, axes[0, 0], "blocked by the guard (%)")
    return fig


def safety_vs_helpfulness(attack: pd.DataFrame, helpfulness: pd.DataFrame) -> Figure:
    """The attack success rate over all forms (y) against the score on the tuned task (x), with the Pareto front.

    Both with intervals; panels by calibration (rows) and tuned task, as each task has its own metric. The star is the
    aligned model, its x the score on the same task. Hollow: `captions_change.plane` cannot tell whether the mark is on the
    front, the grey step line. Raises ValueError when a task has several metrics: keep one.
    """
    table, points = rows_of("safety_vs_helpfulness", attack), captions_change.plane(attack, helpfulness)
    x_label = f"score on the tuned task (n = {span(points['n_score'])} per point)"
    fig, panels = panels_of(table, tasks_of(table, tuned=True), ATTACK, x_label, bottom=0.65, top=0.9)
    left = np.floor(10 * points["score_low"].min()) / 10  # scores lie close together: no empty half
    for calibration, task, ax in panels:
        part = rows_at(points, calibration)
        part = part[part["panel"] == task]
        front = part[part["front"] == "yes"].sort_values("score")
        if len(front):
            ends = ([left, *front["score"], front["score"].iloc[-1]], [*front["rate"].iloc[[0]], *front["rate"], 1])
            ax.step(*ends, where="pre", **FRONT)
        for row in part.sort_values("finetune_task", key=lambda task: task == "none", kind="stable").to_dict("records"):
            tuned, arm = row["finetune_task"], row["safety_data"]
            style = {"color": SAFETY_COLOURS[arm], "marker": TASK_MARKERS[tuned], "markersize": 5}
            style = STAR if tuned == "none" else style
            hollow = {"markerfacecolor": "white"} if row["front"] == "cannot be told" else {}
            width = [[row["score"] - row["score_low"]], [row["score_high"] - row["score"]]]
            draw_point(ax, row["score"], row, "rate", xerr=np.maximum(width, 0), **style, **hollow)
        ax.set(xlim=(left, 1), xticks=(left, (left + 1) / 2, 1), xticklabels=(f"{left:g}", f"{(left + 1) / 2:g}", "1"))
        if ax.get_subplotspec().is_last_row():
            for place, end in (("left", 0), ("right", -1)):  # apart from the next panel's
                ax.get_xticklabels()[end].set_ha(place)
            ax.set_xlabel("".join(map(label, points.loc[points["panel"] == task, "metric"].head(1))))
        say_empty(ax, part)
    arrow = {"arrowstyle": "->", "color": "#666666"}
    where = {"xy": (0.38, 0.06), "xytext": (-33, 20), "xycoords": "axes fraction", "textcoords": "offset points"}
    fig.axes[0].annotate("better", **where, size="small", color="#666666", arrowprops=arrow)
    more = [dot_handle("aligned model", **STAR), Line2D([], [], label="Pareto front", **FRONT)]
    if (points["front"] == "cannot be told").any():
        more.append(
            dot_handle("front or not: cannot be told", color=INK, marker="o", markerfacecolor="white", markersize=5)
        )
    return add_legend(fig, [*arm_handles(table), *more], rows=2)


def answered_share(share: pd.DataFrame, published: pd.DataFrame) -> Figure:
    """The share of answered harmful prompts that are translation or classification, ours and the published.

    A panel per calibration. The dashed line is the share if no form is weaker, with as many prompts of each.
    Published counts are Gemma's. Models tuned without safety data only.
    """
    table = rows_of("answered_share", share)
    answered = published["translation"] + published["classification"]
    low, high = wilson(answered, published["answered_of_207"])
    theirs = published.assign(share=answered / published["answered_of_207"], low=low, high=high)
    tasks, calibrations = tasks_of(table), calibrations_of(table)
    fig, axes = new_figure(1, len(calibrations), 1.7, wspace=0.12)
    for ax, calibration in zip(axes[0], calibrations, strict=True):
        ax.axhspan(*PUBLISHED_SHARE, color=BAND, zorder=0, linewidth=0)
        ax.axhline(0.5, **DASHED)
        for frame, shift, style in ((table, -0.17, OURS), (theirs, 0.17, PUBLISHED)):
            for row in rows_at(frame, calibration).to_dict("records"):
                if row["finetune_task"] in tasks:
                    draw_point(ax, tasks.index(row["finetune_task"]) + shift, row, "share", **style)
        ax.set_title(calibration_label(*calibration, separator="\n"), size="medium")
        slanted_ticks(ax, tasks)
    axes[0, 0].set(**UNIT_AXIS)
    y = "share of the answered prompts\n(translation or classification)"
    outer_labels(fig, y, f"tuned on ({n_of(table)} answered prompts of ours)")
    handles = [dot_handle("ours", **OURS), dot_handle("published (Gemma)", **PUBLISHED)]
    handles += [Line2D([], [], label="no form weaker", **DASHED), Patch(color=BAND, label="stated in the paper")]
    return add_legend(fig, handles)


def dial(frame: pd.DataFrame, x: str, x_label: str, y_label: str) -> Figure:
    """A line per form with its interval over the values of a dial; panels side by side; twins dashed.

    The frame is one of `studylib.laboratory`: columns panel, the dial's `x`, prompt_set, form, value, low, high, n.
    """
    names = list(dict.fromkeys(frame["panel"]))
    fig, axes = new_figure(1, len(names), 2.1, bottom=0.55, top=0.55, right=0.25)
    for ax, name in zip(axes[0], names, strict=True):
        ax.set_title(name.replace("_", " "), size="medium")
        for (prompt_set, form), line in frame[frame["panel"] == name].groupby(["prompt_set", "form"], sort=False):
            line, colour = line.sort_values(x), FORM_COLOURS[form]
            style = {"color": colour, "linestyle": "--" if prompt_set == "twin" else "-", "zorder": 3}
            ax.plot(line[x], line["value"], marker="o", markersize=3, clip_on=False, **style)
            if prompt_set == "harmful":
                ax.fill_between(line[x], line["low"], line["high"], color=colour, alpha=0.12, linewidth=0)
    axes[0, 0].set(**UNIT_AXIS)
    for ax in axes[0]:
        ax.set_xlim(*frame.groupby("panel", sort=False)[x].agg(["min", "max"]).agg({"min": "min", "max": "max"}))
        ax.xaxis.set_major_locator(MaxNLocator(4))  # so that labels of neighbouring panels stay apart
    outer_labels(fig, y_label, f"{x_label} (n = {span(frame['n'])} prompts per point)")
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=3, label=label(f)) for f, colour in FORM_COLOURS.items()
    ]
    if "twin" in set(frame["prompt_set"]):
        handles.append(Line2D([], [], color=INK, linestyle="--", label="benign twins"))
    return add_legend(fig, handles)


def save(fig: Figure, folder, name: str, caption: str, alt: str) -> None:
    """Write `<name>.png` (200 dpi), `.svg`, `.pdf` and `.md` (both texts), each whole or not at all, on white ground.

    The same figure gives the same bytes: no date, fixed names inside the SVG. The PDF holds its letters as TrueType (42),
    as journals ask.
    """
    kept = {"svg.hashsalt": "study", "pdf.fonttype": 42}
    for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None}), ("pdf", {"CreationDate": None})):
        path = Path(folder) / f"{name}.{ending}"
        with mpl.rc_context(kept), results._aside(path) as part:
            fig.savefig(part, format=ending, dpi=200, facecolor="white", metadata=metadata)
    results.write_text(Path(folder) / f"{name}.md", f"{caption}\n\nAlternative text: {alt}\n")


def tasks_of(table: pd.DataFrame, tuned: bool = False) -> list[str]:
    """The tuned tasks that the table has, in the order of all figures, "none" first; only the tuned ones on request."""
    return [task for task in ("none", *TASKS)[tuned:] if task in set(table["finetune_task"])]


def calibrations_of(table: pd.DataFrame) -> list[tuple[str, bool]]:
    """Style and system prompt of each calibration that the table has, in the order of all figures."""
    present = set(zip(table["style"], table["system_prompt"], strict=True))
    return [(style, on) for style in STYLES for on in (False, True) if (style, on) in present]


def rows_at(table: pd.DataFrame, calibration: tuple[str, bool]) -> pd.DataFrame:
    """The rows of that calibration."""
    return table[(table["style"] == calibration[0]) & (table["system_prompt"] == calibration[1])]


def marks_of(table: pd.DataFrame) -> dict[tuple, dict]:
    """The rows by style, system_prompt, tuned task, safety data and form."""
    keys = ("style", "system_prompt", "finetune_task", "safety_data", "form")
    return {tuple(row[k] for k in keys): row for row in table.to_dict("records")}


def new_figure(
    n_rows, n_columns, height, left=0.68, right=0.15, top=0.65, bottom=1.1, wspace=0.1, hspace=0.18, sharex=True
):
    """A figure of equal panels and its axes; sizes in inches, `height` of a row, wspace and hspace in panels.

    Margins are set by hand, as automatic layouts push the panels apart by the slant of their tick labels.
    """
    total = top + bottom + n_rows * height
    fig = plt.figure(figsize=(WIDTH, total), facecolor="white")  # also on a dark page
    plt.close(fig)  # made by pyplot so that notebooks know how to show it, closed so that they show it once
    axes = fig.subplots(n_rows, n_columns, squeeze=False, sharex=sharex, sharey=True)
    fig.subplots_adjust(left / WIDTH, bottom / total, 1 - right / WIDTH, 1 - top / total, wspace, hspace)
    return fig, axes


def outer_labels(fig: Figure, y: str, x: str) -> None:
    """The labels that all panels share, at the left and below."""
    box = fig.subplotpars
    fig.supylabel(y, x=0.01, y=(box.bottom + box.top) / 2, ha="left", va="center", ma="center", size="medium")
    fig.supxlabel(x, x=(box.left + box.right) / 2, y=0.01, size="medium")
    sns.despine(fig, left=True)


def heat_map(ax, values: pd.DataFrame, rows: list[str], words: pd.DataFrame, size="small", **colours) -> None:
    """Cells with their words, rows by those names; a last column "all" stands apart. A cell is empty where its value is NaN.

    Colours go from 0 to 1 unless vmin, vmax and cmap say otherwise.
    """
    colours = {"vmin": 0, "vmax": 1, "cmap": "rocket_r"} | colours
    sns.heatmap(values, ax=ax, cbar=False, linewidths=1, **colours)
    cells = ax.collections[0]
    cells.update_scalarmappable()
    grounds = cells.get_facecolors().reshape(*values.shape, 4)
    for row, column in np.argwhere(values.notna().to_numpy()):
        light = _luminance(grounds[row, column]) > 0.18  # where black and white are read equally well
        place = {"x": column + 0.5, "y": row + 0.5, "ha": "center", "va": "center"}
        ax.text(**place, s=words.iat[row, column], size=size, color=INK if light else "white")
    if values.columns[-1] == "all":
        ax.axvline(len(values.columns) - 1, color="white", linewidth=5)
    ax.set(xlabel="", ylabel="", facecolor=EMPTY)
    ax.set_yticks(np.arange(len(rows)) + 0.5, rows, rotation=0)
    slanted_ticks(ax, list(values.columns), start=0.5)
    ax.grid(False)  # it would show through cells that are empty


def _luminance(colour) -> float:
    """Relative luminance of an sRGB colour (0-1): WCAG 2.2, "relative luminance"."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def whole_percent(rate: float) -> str:
    """A rate (0-1) in percent without a sign, "" for NaN."""
    return "" if np.isnan(rate) else f"{100 * rate:.0f}"


def colour_scale(fig: Figure, ax, text: str, ticks=(0, 0.25, 0.5, 0.75, 1)) -> None:
    """A bar at the right that tells the colours of the heat map, in percent or points; beside a flat one it is higher."""
    box = fig.subplotpars
    height = max(box.top - box.bottom, min(1.3 / fig.get_figheight(), 0.9))
    bottom = np.clip((box.top + box.bottom - height) / 2, 0.05, 0.95 - height)
    scale_ax = fig.add_axes((box.right + 0.02, bottom, 0.018, height))
    scale = fig.colorbar(ax.collections[0], cax=scale_ax)
    scale.set_label(text)
    scale.set_ticks(ticks, labels=[f"{100 * tick:.0f}".replace("-", "\N{MINUS SIGN}") for tick in ticks])
    scale.outline.set_visible(False)


def say_empty(ax, rows, why: str = "") -> None:
    """Where a panel has no rows, the words "not run" in it, or why."""
    if not len(rows):
        ax.text(0.5, 0.5, why or "not run", transform=ax.transAxes, ha="center", va="center", **QUIET)


def panels_of(table: pd.DataFrame, tasks: list[str], y: str, x: str, bottom=1.1, top=0.65, axis=UNIT_AXIS):
    """A figure, and (calibration, task, axes) of each panel: a row per calibration, a column per task."""
    calibrations = calibrations_of(table)
    height = 1.9 if len(calibrations) == 1 else 1.25
    fig, axes = new_figure(len(calibrations), len(tasks), height, right=0.5, bottom=bottom, top=top)
    for ax, task in zip(axes[0], tasks, strict=True):
        title_task(ax, task)
    for ax, calibration in zip(axes[:, -1], calibrations, strict=True):
        title_row(ax, calibration_label(*calibration, separator="\n"))
    axes[0, 0].set(**axis)
    outer_labels(fig, y if len(calibrations) > 2 else y.replace(" (", "\n("), x)
    return fig, [(c, task, axes[i, j]) for i, c in enumerate(calibrations) for j, task in enumerate(tasks)]


def title_task(ax, task: str) -> None:
    """The tuned task over a panel."""
    ax.set_title("aligned model\n(not tuned)" if task == "none" else f"tuned on\n{label(task)}", size="medium")


def title_row(ax, text: str) -> None:
    """A title at the right of the last panel of a row."""
    ax.yaxis.set_label_position("right")
    ax.set_ylabel(text, rotation=270, va="bottom")


def _arms_by_form(table: pd.DataFrame, value: str, y: str, prompt: str) -> Figure:
    fig, panels = panels_of(table, tasks_of(table, tuned=True), y, f"form of the {prompt} ({n_of(table)} per point)")
    marks = marks_of(table)
    for calibration, task, ax in panels:
        for x, form in enumerate(FORMS):
            draw_tick(ax, x, marks.get((*calibration, "none", "none", form)), value)
            for shift, (arm, colour) in zip((-0.24, 0, 0.24), SAFETY_COLOURS.items(), strict=True):
                mark = marks.get((*calibration, task, arm, form))
                if mark:
                    draw_point(ax, x + shift, mark, value, color=colour, marker="o", markersize=4)
        slanted_ticks(ax, FORMS)
        say_empty(ax, [key for key in marks if key[:3] == (*calibration, task)])
    return add_legend(fig, [*arm_handles(table), tick_handle()])


def spread(row: dict, value: str) -> list[list[float]]:
    """Lengths of the interval below and above the value, as `errorbar` wants them."""
    return [[max(row[value] - row["low"], 0)], [max(row["high"] - row[value], 0)]]


def draw_point(ax, x: float, row: dict, value: str, **style) -> None:
    """A mark at the row's value with its interval."""
    style = {"linestyle": "", "elinewidth": 1, "zorder": 3, "clip_on": False} | style
    ax.errorbar(x, row[value], spread(row, value), **style)


def draw_tick(ax, x: float, row: dict | None, value: str) -> None:
    """The aligned model's value, where there is a row, as a line across the mark at x."""
    if row:  # above the axis line at 0, below the points
        ax.hlines(row[value], x - 0.42, x + 0.42, color="black", linewidth=1.5, zorder=2.7, clip_on=False)


def slanted_ticks(ax, words, start: float = 0) -> None:
    """The words along the x axis, one per place from `start`."""
    positions, names = start + np.arange(len(words)), [label(word) for word in words]
    ax.set_xticks(positions, names, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_xlim(start - 0.5, start + len(words) - 0.5)
    ax.grid(False, axis="x")


def dot_handle(text: str, **style) -> Line2D:
    return Line2D([], [], linestyle="", label=text, **style)


def tick_handle() -> Line2D:
    return Line2D([], [], color="black", linewidth=1.5, label="aligned model")


def arm_handles(table: pd.DataFrame) -> list[Line2D]:
    tuned = table[table["finetune_task"] != "none"]
    arms = [arm for arm in SAFETY_DATA if arm in set(tuned["safety_data"])]
    words = [("no" if arm == "none" else arm) + " safety data" for arm in arms]
    return [dot_handle(w, color=SAFETY_COLOURS[a], marker="o") for a, w in zip(arms, words, strict=True)]


def add_legend(fig: Figure, handles: list, rows: int = 1) -> Figure:
    """The figure, with its keys along the upper edge; a second row needs 0.2 inches more at the top."""
    place = {"loc": "upper center", "ncols": -(-len(handles) // rows), "handlelength": 1.3}
    fig.legend(handles=handles, frameon=False, borderaxespad=0.1, **place)
    return fig

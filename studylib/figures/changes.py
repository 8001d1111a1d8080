"""Figures of change: what tuning erodes and safety data repairs, per form, seed, dose and calibration; see `plots`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from studylib.analysis.readable import calibration_label, label, span
from studylib.figures import style as drawing
from studylib.figures.caption import n_of
from studylib.figures.captions_change import STEPS, TOLD, changes, doses, grid_rows, n_unknown, points, slopes
from studylib.study.words import FORMS, SAFETY_DATA, STYLES, TASKS

CHANGE = {"vmin": -1, "vmax": 1, "cmap": "RdBu_r"}  # red is worse; the same scale in every figure
HATCHED = {"facecolor": "#F7F7F7", "edgecolor": "#C4C4C4", "hatch": "/////", "linewidth": 0}
SEED = {"color": "#777777", "linewidth": 0.6, "marker": ".", "markersize": 3}
MEASURES = {"attack_success_rate": "attack success", "over_refusal_rate": "over-refusal"}
LINES = dict(
    zip(
        MEASURES,
        ({"linestyle": "-", "marker": "o"}, {"linestyle": "--", "marker": "s", "markerfacecolor": "white"}),
        strict=True,
    )
)


def erosion_heatmap(comparisons: pd.DataFrame) -> Figure:
    """The change of the attack success rate by tuning, in points, by tuned task (rows) and form; panels by calibration.

    `comparisons` is the table of `comparisons.comparisons`. Colours from -100 to 100 points. Hatched and in brackets: cannot be told
    apart from no change; a dash on grey: no pairs or too few. The column at the right pools the forms.
    Raises ValueError as `captions_change.changes` does.
    """
    table = changes("erosion_heatmap", comparisons)
    panels = [
        (calibration_label(*calibration), drawing.rows_at(table, calibration))
        for calibration in drawing.calibrations_of(table)
    ]
    return change_heatmap(table, panels)


def repair_heatmap(comparisons: pd.DataFrame) -> Figure:
    """The change of the attack success rate by safety data, in points, by tuned task (rows) and form, without system prompt.

    Panels by style (rows) and safety data; cells, marks and errors as in `erosion_heatmap`.
    """
    table = changes("repair_heatmap", comparisons)
    panels = [
        (f"{arm} safety data, {calibration_label(style, False).split(',')[0]}", part)
        for style in STYLES
        for arm in SAFETY_DATA
        if len(part := table[(table["style"] == style) & (table["safety_data"] == arm)])
    ]
    return change_heatmap(table, panels)


def change_heatmap(
    table: pd.DataFrame, panels: list[tuple[str, pd.DataFrame]], key="finetune_task", names=None, y="tuned on", left=1.3
) -> Figure:
    """The changes of the attack success rate as a heat map per (title, rows): rows by the column `key`, columns by form.

    `names` maps the key's values, in their order, to words; None: the tuned tasks. `left` in inches is their room.
    """
    names = names or {task: label(task) for task in drawing.tasks_of(table, tuned=True)}
    forms, n_columns = [*FORMS, "all"], min(2, len(panels))
    margins = {"left": left, "right": 1.1, "top": 0.55, "wspace": 0.08, "hspace": 0.22}
    fig, axes = drawing.new_figure(-(-len(panels) // n_columns), n_columns, 0.32 * len(names), **margins)
    for ax, (title, part) in zip(axes.flat, panels, strict=False):
        wide = {
            name: part.pivot(index=key, columns="form", values=name).reindex(index=list(names), columns=forms)
            for name in ("difference", "verdict")
        }
        told = wide["verdict"].isin(TOLD)
        drawing.heat_map(
            ax, wide["difference"].where(told), list(names.values()), wide["difference"].map(points), **CHANGE
        )
        for (row, column), verdict in np.ndenumerate(wide["verdict"].to_numpy()):
            middle = {"x": column + 0.5, "y": row + 0.5, "ha": "center", "va": "center"}
            if verdict == "not significant":
                ax.add_patch(Rectangle((column + 0.02, row + 0.04), 0.96, 0.92, **HATCHED))
                ground = {"boxstyle": "square,pad=0.1", "facecolor": HATCHED["facecolor"], "linewidth": 0}
                ax.text(**middle, s=f"({points(wide['difference'].iloc[row, column])})", bbox=ground, **drawing.QUIET)
            elif verdict not in TOLD:
                ax.text(**middle, s="-", **drawing.QUIET)
        ax.axvline(len(FORMS), color="white", linewidth=5)  # over the hatching too
        ax.set_title(title, size="medium")
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    n = span(table.loc[(table["form"] != "all") & (table["n"] > 0), "n"])
    drawing.outer_labels(fig, y, f"form of the harmful prompt (n = {n} pairs per form)")
    sns.despine(fig, left=True, bottom=True)
    drawing.colour_scale(fig, axes[0, 0], "change in attack\nsuccess (points)", (-1, -0.5, 0, 0.5, 1))
    keys = [Patch(**HATCHED, label="not significant")]
    if n_unknown(table, key):
        keys.append(Patch(color=drawing.EMPTY, label="not run, no pairs, or too few"))
    return drawing.add_legend(fig, keys)


def seed_slopes(by_seed: pd.DataFrame) -> Figure:
    """The attack success rate of each training seed as a line over the steps of `captions_change.STEPS`, and their mean.

    `by_seed` has one row per model, seed and form. Panels by style (rows) and tuned task, all forms, without system prompt. The untuned model,
    which has no training seed, begins every line. A step that was not run, or not judged, has no mark.
    Raises ValueError as `captions_change.slopes` does.
    """
    table = slopes(by_seed)
    x_label = f"no system prompt, all forms ({n_of(table)} per seed)"
    fig, panels = drawing.panels_of(
        table, drawing.tasks_of(table, tuned=True), drawing.ATTACK, x_label, bottom=1.15, top=0.9
    )
    for (style, _), task, ax in panels:
        part = table[table["style"] == style]
        start = part.loc[part["finetune_task"] == "none", "rate"].dropna().tolist()[:1]
        part = part[(part["finetune_task"] == task) & part["rate"].notna()]
        for _, line in part.sort_values("step").groupby("seed"):
            ax.plot(
                [0, *line["step"]][-len(start) - len(line) :],
                [*start, *line["rate"]],
                zorder=2.6,
                clip_on=False,
                **SEED,
            )
        mean = part.groupby("step")["rate"].mean()
        ax.plot(
            [0, *mean.index][-len(start) - len(mean) :], [*start, *mean], color=drawing.INK, linewidth=1.2, zorder=2.8
        )
        for arm, colour in drawing.SAFETY_COLOURS.items():
            if (step := SAFETY_DATA.index(arm) + 1) in mean.index:
                ax.plot(step, mean[step], color=colour, marker=drawing.TASK_MARKERS[task], markersize=4.5, **_ABOVE)
        if start:
            ax.plot(0, start, **drawing.STAR, **_ABOVE)
        drawing.slanted_ticks(ax, STEPS)
        drawing.say_empty(ax, part)
    keys = [
        Line2D([], [], label="one seed", **SEED),
        Line2D([], [], color=drawing.INK, linewidth=1.2, label="mean of the seeds"),
    ]
    return drawing.add_legend(
        fig, [drawing.dot_handle("aligned model", **drawing.STAR), *drawing.arm_handles(table), *keys], rows=2
    )


def dose_response(attack: pd.DataFrame, helpfulness: pd.DataFrame) -> Figure:
    """The attack success rate (solid) and the over-refusal rate (dashed) over the dose of safety data, with intervals.

    A line per kind of safety data, panels by tuned task; chat style, no system prompt, all forms. The doses of the table are
    evenly spaced; stars left of 0 are the aligned model. Raises ValueError as `captions_change.doses` does.
    """
    table = doses(attack, helpfulness)
    amounts = sorted({0.0, *table["safety_fraction"]})
    n = n_of(table[table["measure"] == "attack_success_rate"])
    x_label = f"safety data in the tuning (% of the rows, evenly spaced; {n} per mark)"
    y_label = "share of harmful prompts answered,\nshare of benign twins refused"
    fig, panels = drawing.panels_of(table, drawing.tasks_of(table, tuned=True), y_label, x_label, bottom=0.55, top=0.9)
    for _, task, ax in panels:
        for measure, look in LINES.items():
            rows = table[(table["measure"] == measure) & table["value"].notna()]
            for row in rows[rows["finetune_task"] == "none"].to_dict("records"):
                ground = {name: look[name] for name in ("markerfacecolor",) if name in look}
                drawing.draw_point(ax, -1 + 4 * _shift("none", measure), row, "value", **drawing.STAR, **ground)
            rows = rows[rows["finetune_task"] == task]
            rows = rows.assign(x=[_shift(arm, measure) for arm in rows["safety_data"]])
            rows["x"] += rows["safety_fraction"].map(amounts.index)
            start = rows[rows["safety_data"] == "none"]
            for arm, colour in drawing.SAFETY_COLOURS.items():
                own = rows[rows["safety_data"] == arm].sort_values("safety_fraction")
                if arm != "none" and len(own):
                    line = pd.concat([start, own])
                    ax.plot(line["x"], line["value"], look["linestyle"], color=colour, linewidth=1.1, zorder=2.6)
                for row in own.to_dict("records"):
                    drawing.draw_point(
                        ax, row["x"], row, "value", color=colour, markersize=4, **look | {"linestyle": ""}
                    )
        ax.set_xticks(range(-1, len(amounts)), ["", *(f"{100 * amount:g}" for amount in amounts)])
        ax.set_xlim(-1.5, len(amounts) - 0.5)
        ax.grid(False, axis="x")
        drawing.say_empty(ax, table[table["finetune_task"] == task])
    keys = [
        Line2D([], [], color=drawing.INK, markersize=4, label=MEASURES[name], **look) for name, look in LINES.items()
    ]
    return drawing.add_legend(
        fig, [drawing.dot_handle("aligned model", **drawing.STAR), *drawing.arm_handles(table), *keys], rows=2
    )


_ABOVE = {"zorder": 3, "linestyle": "", "clip_on": False}


def _shift(arm: str, measure: str) -> float:
    """How far beside its dose a mark stands, so that intervals do not hide each other."""
    return {"none": 0, "generic": -0.1, "multitask": 0.1}[arm] + (0.05 if measure == "over_refusal_rate" else -0.05)


def calibration_grid(grid: pd.DataFrame) -> Figure:
    """The attack success rate in percent with its interval: style of the tuning (rows) by calibration of the test (columns).

    A block of rows per tuned task, the untuned model first; all forms, without safety data. Framed: the style that the model was tuned
    in. Raises ValueError as `captions_change.grid_rows` does.
    """
    table = grid_rows(grid)
    calibrations, tasks = (
        drawing.calibrations_of(table),
        [task for task in ("none", *TASKS) if task in set(table["finetune_task"])],
    )
    present = set(zip(table["finetune_task"], table["trained_style"], strict=True))
    rows = [(task, style) for task in tasks for style in ("none", *STYLES) if (task, style) in present]
    index = pd.MultiIndex.from_tuples(rows)
    cells = table.assign(
        words=[
            f"{100 * rate:.0f} ({100 * low:.0f}-{100 * high:.0f})"
            for rate, low, high in table[["rate", "low", "high"]].to_numpy()
        ]
    ).set_index(["finetune_task", "trained_style", "style", "system_prompt"])
    rates, words = (
        cells[name].unstack(["style", "system_prompt"]).reindex(index=index, columns=calibrations)
        for name in ("rate", "words")
    )
    fig, axes = drawing.new_figure(1, 1, max(0.26 * len(rows), 0.8), left=2.25, right=0.95, top=0.15, bottom=0.75)
    ax = axes[0, 0]
    names = ["not tuned" if style == "none" else calibration_label(style, False).split(",")[0] for _, style in rows]
    tests = [calibration_label(*calibration, separator="\n") for calibration in calibrations]
    drawing.heat_map(ax, rates.set_axis(tests, axis=1), names, words)
    for place, (task, style) in enumerate(rows):
        if place and rows[place - 1][0] != task:
            ax.axhline(place, color="white", linewidth=5)  # sets the models apart
        for column in [i for i, calibration in enumerate(calibrations) if calibration[0] == style]:
            box = {"fill": False, "edgecolor": drawing.INK, "linewidth": 1.2, "zorder": 4}
            ax.add_patch(Rectangle((column + 0.02, place + 0.14), 0.96, 0.72, **box))
    for task in tasks:
        at = [i for i, row in enumerate(rows) if row[0] == task]
        words = "aligned model" if task == "none" else f"tuned on\n{label(task)}, in"
        ax.text(
            -0.25, np.mean(at) + 0.5, words, transform=ax.get_yaxis_transform(), ha="right", va="center", size="medium"
        )
    ax.set_xticks(np.arange(len(tests)) + 0.5, tests, rotation=0, ha="center", rotation_mode="default")
    drawing.outer_labels(fig, "", f"tested with ({n_of(table)} per cell, all forms)")
    sns.despine(fig, left=True, bottom=True)
    drawing.colour_scale(fig, ax, "attack success rate (%)")
    return fig

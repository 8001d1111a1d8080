"""Figures of rates and scores by tuned task, calibration, form and safety data, of guards, and of the laboratory's dials.

Each function takes tidy tables of `studylib.analysis.tables` and returns a matplotlib Figure. Nothing here loads, shows or writes.
Colours, markers and orders are those of `drawing`, the same in all figures.
Parts of the grid that were not run leave their place empty and say so. Of several safety fractions one is shown
(`captions.one_dose`). An empty table, or one with several models, judges or metrics for one mark, is a ValueError.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from studylib.analysis.claims import PUBLISHED_SHARE
from studylib.analysis.readable import calibration_label, label, span
from studylib.analysis.stats import wilson
from studylib.figures import captions_change
from studylib.figures import style as drawing
from studylib.figures.caption import n_of, rows_of
from studylib.study.words import FORMS

BAND = "#E8E8E8"
DASHED = {"color": drawing.INK, "linewidth": 0.8, "linestyle": "--"}


def attack_success_by_form(attack: pd.DataFrame) -> Figure:
    """Bars of the attack success rate by form of the prompt; panels by calibration (rows) and tuned task.

    Black ticks are the aligned model's rate in the same calibration. Models tuned without safety data only.
    """
    table = rows_of("attack_success_by_form", attack)
    fig, panels = drawing.panels_of(
        table, drawing.tasks_of(table), drawing.ATTACK, f"form of the harmful prompt ({n_of(table)} per bar)"
    )
    marks = marks_of(table)
    for calibration, task, ax in panels:
        for x, form in enumerate(FORMS):
            bar = marks.get((*calibration, task, "none", form))
            if bar:
                ax.bar(x, bar["rate"], 0.8, color=drawing.FORM_COLOURS[form], linewidth=0)
                drawing.draw_point(ax, x, bar, "rate", color=drawing.INK)
            if task != "none":
                drawing.draw_tick(ax, x, marks.get((*calibration, "none", "none", form)), "rate")
        drawing.slanted_ticks(ax, FORMS)
        drawing.say_empty(ax, [key for key in marks if key[:3] == (*calibration, task)])
    return drawing.add_legend(
        fig, [*(Patch(color=c, label=label(f)) for f, c in drawing.FORM_COLOURS.items()), drawing.tick_handle()]
    )


def safety_data_comparison(attack: pd.DataFrame) -> Figure:
    """The attack success rate with no, generic and multitask safety data.

    By form of the prompt; panels by calibration (rows) and tuned task; black ticks are the aligned model's.
    """
    return _arms_by_form(rows_of("safety_data_comparison", attack), "rate", drawing.ATTACK, "harmful prompt")


def over_refusal(helpfulness: pd.DataFrame) -> Figure:
    """The over-refusal rate on benign twins with no, generic and multitask safety data.

    By form of the prompt; panels by calibration (rows) and tuned task; black ticks are the aligned model's.
    """
    return _arms_by_form(rows_of("over_refusal", helpfulness), "value", drawing.OVER_REFUSAL, "benign twin")


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
    fig, axes = drawing.new_figure(1, 2, 0.3 * len(rows), **margins)
    titles = {"harmful": "harmful ones blocked\n(more is better)", "twin": "benign twins blocked\n(less is better)"}
    for ax, (prompt_set, title) in zip(axes[0], titles.items(), strict=True):
        part = guards[guards["prompt_set"] == prompt_set]
        rates = part.pivot(index=["guard", "side"], columns="form", values="blocked_rate").reindex(
            index=rows, columns=forms
        )
        drawing.heat_map(ax, rates, [f"{label(guard)}, {side}" for guard, side in rows], rates.map(whole_percent))
        for line in (i for i in range(1, len(rows)) if rows[i][0] != rows[i - 1][0]):
            ax.axhline(line, color="white", linewidth=5)  # sets the guards apart
        ax.set_title(title, size="medium")
    per_form, asked = guards[guards["form"] != "all"], guards["side"] == "input"
    n = f"n = {span(per_form.loc[asked, 'n'])} prompts; output, both: n = {span(per_form.loc[~asked, 'n'])} responses"
    drawing.outer_labels(fig, "guard and what it reads", f"form of the prompt (per form {n})")
    sns.despine(fig, left=True, bottom=True)
    drawing.colour_scale(fig, axes[0, 0], "blocked by the guard (%)")
    return fig


def safety_vs_helpfulness(attack: pd.DataFrame, helpfulness: pd.DataFrame) -> Figure:
    """The attack success rate over all forms (y) against the score on the tuned task (x), with the Pareto front.

    Both with intervals; panels by calibration (rows) and tuned task, as each task has its own metric. The star is the
    aligned model, its x the score on the same task. Hollow: `captions_change.plane` cannot tell whether the mark is on the
    front, the grey step line. Raises ValueError when a task has several metrics: keep one.
    """
    table, points = rows_of("safety_vs_helpfulness", attack), captions_change.plane(attack, helpfulness)
    x_label = f"score on the tuned task (n = {span(points['n_score'])} per point)"
    fig, panels = drawing.panels_of(
        table, drawing.tasks_of(table, tuned=True), drawing.ATTACK, x_label, bottom=0.65, top=0.9
    )
    left = np.floor(10 * points["score_low"].min()) / 10  # scores lie close together: no empty half
    for calibration, task, ax in panels:
        part = drawing.rows_at(points, calibration)
        part = part[part["panel"] == task]
        front = part[part["front"] == "yes"].sort_values("score")
        if len(front):
            ends = ([left, *front["score"], front["score"].iloc[-1]], [*front["rate"].iloc[[0]], *front["rate"], 1])
            ax.step(*ends, where="pre", **drawing.FRONT)
        for row in part.sort_values("finetune_task", key=lambda task: task == "none", kind="stable").to_dict("records"):
            tuned, arm = row["finetune_task"], row["safety_data"]
            style = {"color": drawing.SAFETY_COLOURS[arm], "marker": drawing.TASK_MARKERS[tuned], "markersize": 5}
            style = drawing.STAR if tuned == "none" else style
            hollow = {"markerfacecolor": "white"} if row["front"] == "undecided" else {}
            width = [[row["score"] - row["score_low"]], [row["score_high"] - row["score"]]]
            drawing.draw_point(ax, row["score"], row, "rate", xerr=np.maximum(width, 0), **style, **hollow)
        ax.set(xlim=(left, 1), xticks=(left, (left + 1) / 2, 1), xticklabels=(f"{left:g}", f"{(left + 1) / 2:g}", "1"))
        if ax.get_subplotspec().is_last_row():
            for place, end in (("left", 0), ("right", -1)):  # apart from the next panel's
                ax.get_xticklabels()[end].set_ha(place)
            ax.set_xlabel("".join(map(label, points.loc[points["panel"] == task, "metric"].head(1))))
        drawing.say_empty(ax, part)
    arrow = {"arrowstyle": "->", "color": "#666666"}
    where = {"xy": (0.38, 0.06), "xytext": (-33, 20), "xycoords": "axes fraction", "textcoords": "offset points"}
    fig.axes[0].annotate("better", **where, size="small", color="#666666", arrowprops=arrow)
    more = [drawing.dot_handle("aligned model", **drawing.STAR), Line2D([], [], label="Pareto front", **drawing.FRONT)]
    if (points["front"] == "undecided").any():
        more.append(
            drawing.dot_handle(
                "undecided whether on the front", color=drawing.INK, marker="o", markerfacecolor="white", markersize=5
            )
        )
    return drawing.add_legend(fig, [*drawing.arm_handles(table), *more], rows=2)


def answered_share(share: pd.DataFrame, published: pd.DataFrame) -> Figure:
    """The share of answered harmful prompts that are translation or classification, ours and the published.

    A panel per calibration. The dashed line is the share if no form is weaker, with as many prompts of each.
    Published counts are Gemma's. Models tuned without safety data only.
    """
    table = rows_of("answered_share", share)
    answered = published["translation"] + published["classification"]
    low, high = wilson(answered, published["answered_of_207"])
    theirs = published.assign(share=answered / published["answered_of_207"], low=low, high=high)
    tasks, calibrations = drawing.tasks_of(table), drawing.calibrations_of(table)
    fig, axes = drawing.new_figure(1, len(calibrations), 1.7, wspace=0.12)
    for ax, calibration in zip(axes[0], calibrations, strict=True):
        ax.axhspan(*PUBLISHED_SHARE, color=BAND, zorder=0, linewidth=0)
        ax.axhline(0.5, **DASHED)
        for frame, shift, style in ((table, -0.17, drawing.OURS), (theirs, 0.17, drawing.PUBLISHED)):
            for row in drawing.rows_at(frame, calibration).to_dict("records"):
                if row["finetune_task"] in tasks:
                    drawing.draw_point(ax, tasks.index(row["finetune_task"]) + shift, row, "share", **style)
        ax.set_title(calibration_label(*calibration, separator="\n"), size="medium")
        drawing.slanted_ticks(ax, tasks)
    axes[0, 0].set(**drawing.UNIT_AXIS)
    y = "share of the answered prompts\n(translation or classification)"
    drawing.outer_labels(fig, y, f"tuned on ({n_of(table)} answered prompts of ours)")
    handles = [drawing.dot_handle("ours", **drawing.OURS), drawing.dot_handle("published (Gemma)", **drawing.PUBLISHED)]
    handles += [Line2D([], [], label="no form weaker", **DASHED), Patch(color=BAND, label="stated in the paper")]
    return drawing.add_legend(fig, handles)


def dial(frame: pd.DataFrame, x: str, x_label: str, y_label: str) -> Figure:
    """A line per form with its interval over the values of a dial; panels side by side; twins dashed.

    The frame is one of `studylib.stages.laboratory`: columns panel, the dial's `x`, prompt_set, form, value, low, high, n.
    """
    names = list(dict.fromkeys(frame["panel"]))
    fig, axes = drawing.new_figure(1, len(names), 2.1, bottom=0.55, top=0.55, right=0.25)
    for ax, name in zip(axes[0], names, strict=True):
        ax.set_title(name.replace("_", " "), size="medium")
        for (prompt_set, form), line in frame[frame["panel"] == name].groupby(["prompt_set", "form"], sort=False):
            line, colour = line.sort_values(x), drawing.FORM_COLOURS[form]
            style = {"color": colour, "linestyle": "--" if prompt_set == "twin" else "-", "zorder": 3}
            ax.plot(line[x], line["value"], marker="o", markersize=3, clip_on=False, **style)
            if prompt_set == "harmful":
                ax.fill_between(line[x], line["low"], line["high"], color=colour, alpha=0.12, linewidth=0)
    axes[0, 0].set(**drawing.UNIT_AXIS)
    for ax in axes[0]:
        ax.set_xlim(*frame.groupby("panel", sort=False)[x].agg(["min", "max"]).agg({"min": "min", "max": "max"}))
        ax.xaxis.set_major_locator(MaxNLocator(4))  # so that labels of neighbouring panels stay apart
    drawing.outer_labels(fig, y_label, f"{x_label} (n = {span(frame['n'])} prompts per point)")
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=3, label=label(f))
        for f, colour in drawing.FORM_COLOURS.items()
    ]
    if "twin" in set(frame["prompt_set"]):
        handles.append(Line2D([], [], color=drawing.INK, linestyle="--", label="benign twins"))
    return drawing.add_legend(fig, handles)


def marks_of(table: pd.DataFrame) -> dict[tuple, dict]:
    """The rows by style, system_prompt, tuned task, safety data and form."""
    keys = ("style", "system_prompt", "finetune_task", "safety_data", "form")
    return {tuple(row[k] for k in keys): row for row in table.to_dict("records")}


def whole_percent(rate: float) -> str:
    """A rate (0-1) in percent without a sign, "" for NaN."""
    return "" if np.isnan(rate) else f"{100 * rate:.0f}"


def _arms_by_form(table: pd.DataFrame, value: str, y: str, prompt: str) -> Figure:
    fig, panels = drawing.panels_of(
        table, drawing.tasks_of(table, tuned=True), y, f"form of the {prompt} ({n_of(table)} per point)"
    )
    marks = marks_of(table)
    for calibration, task, ax in panels:
        for x, form in enumerate(FORMS):
            drawing.draw_tick(ax, x, marks.get((*calibration, "none", "none", form)), value)
            for shift, (arm, colour) in zip((-0.24, 0, 0.24), drawing.SAFETY_COLOURS.items(), strict=True):
                mark = marks.get((*calibration, task, arm, form))
                if mark:
                    drawing.draw_point(ax, x + shift, mark, value, color=colour, marker="o", markersize=4)
        drawing.slanted_ticks(ax, FORMS)
        drawing.say_empty(ax, [key for key in marks if key[:3] == (*calibration, task)])
    return drawing.add_legend(fig, [*drawing.arm_handles(table), drawing.tick_handle()])

"""Figures of the rival mitigations: which form's safety data help where, and all arms between safety and helpfulness; see `plots`."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from studylib.analysis.comparisons import ARM_ORDER
from studylib.analysis.readable import arm_label, calibration_label, label, span
from studylib.figures import style as drawing
from studylib.figures.captions_arms import PANELS, ROWS, plane, transfers
from studylib.figures.changes import change_heatmap
from studylib.study.words import FORMS, STYLES

# Data of one form have that form's colour and mark; the rest of Tol's muted set, told apart with any colour vision.
LOOKS = {
    **{arm: {"color": colour, "marker": "o"} for arm, colour in drawing.SAFETY_COLOURS.items()},
    "system_prompt": {"color": "#555555", "marker": "p"},
    **{f"{form}_only": {"color": drawing.FORM_COLOURS[form], "marker": drawing.TASK_MARKERS[form]} for form in FORMS},
    "multitask_twins": {"color": "#882255", "marker": "P"},
    "multitask_midway": {"color": "#332288", "marker": "X"},
    "multitask_after": {"color": "#117733", "marker": "v"},
    "scaled": {"color": "#8A8A20", "marker": "d"},
}
X_LABELS = {
    "over_refusal_rate": "over-refusal rate\n(benign twins",
    "general_score": "general score\n(general prompts",
    "task_score": "score on the tuned task\n(held-out prompts",
}


def transfer_matrix(comparisons: pd.DataFrame) -> Figure:
    """The change of the attack success rate by safety data of one form alone, in points, by form of the harmful prompt.

    Rows: data of each form, of all forms, and of all with twins; the same number of rows, no system prompt. Panels by tuned task and
    style; cells and marks as in `plots_change.erosion_heatmap`. Raises ValueError as `captions_arms.transfers` does.
    """
    table = transfers(comparisons)
    styles = [style for style in STYLES if style in set(table["style"])]
    panels = [
        (f"tuned on {label(task)}, {calibration_label(style, False).split(',')[0]}", part)
        for task in drawing.tasks_of(table, tuned=True)
        for style in styles
        if len(part := table[(table["finetune_task"] == task) & (table["style"] == style)])
    ]
    names = {arm: arm_label(arm) for arm in ROWS if arm in set(table["safety_data"])}
    return change_heatmap(table, panels, "safety_data", names, "safety data", left=1.85)


def arms_plane(attack: pd.DataFrame, helpfulness: pd.DataFrame) -> Figure:
    """The attack success rate (y) of every arm and dose against over-refusal, general score and task score (x), with Pareto fronts.

    A row of panels per tuned task; chat style, no system prompt, all forms, with intervals. Doses of multitask data are joined, and so is the
    adapter scaled down. The star is the aligned model; hollow: it is undecided whether the mark is on the front.
    Raises ValueError as `captions_arms.plane` does.
    """
    points = plane(attack, helpfulness)
    tasks = [task for task in FORMS if task in set(points["task"])]
    shown = [panel for panel in PANELS if panel in set(points["panel"])]
    margins = {"right": 0.5, "bottom": 0.6, "top": 0.95, "wspace": 0.14}
    fig, axes = drawing.new_figure(len(tasks), len(shown), 3.0, sharex="col", **margins)
    for i, task in enumerate(tasks):
        for ax, panel in zip(axes[i], shown, strict=True):
            part = points[(points["task"] == task) & (points["panel"] == panel)]
            _draw_front(ax, part, less=panel == "over_refusal_rate")
            _join(ax, part, "multitask", "-")
            _join(ax, part, "scaled", ":")
            if panel == shown[0]:
                _say_doses(ax, part)
            for row in part.sort_values("finetune_task", key=lambda t: t == "none", kind="stable").to_dict("records"):
                look = (
                    drawing.STAR if row["finetune_task"] == "none" else LOOKS[row["safety_data"]] | {"markersize": 5.5}
                )
                hollow = {"markerfacecolor": "white"} if row["front"] == "undecided" else {}
                width = [[max(row["x"] - row["x_low"], 0)], [max(row["x_high"] - row["x"], 0)]]
                drawing.draw_point(ax, row["x"], row, "rate", xerr=width, **look | hollow | {"elinewidth": 0.5})
            drawing.say_empty(ax, part)
        drawing.title_row(axes[i, -1], f"tuned on {label(task)}")
    axes[0, 0].set(**drawing.UNIT_AXIS)
    for ax, panel in zip(axes[-1], shown, strict=True):
        of = points[points["panel"] == panel]
        if panel == "over_refusal_rate":
            ax.set_xlim(0, min(np.ceil(4 * of["x_high"].max()) / 4, 1))
        else:
            ax.set_xlim(np.floor(4 * of["x_low"].min()) / 4, 1)
        ax.xaxis.set_major_locator(
            MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], prune=None if panel == shown[0] else "lower")
        )
        ax.set_xlabel(f"{X_LABELS[panel]}, n = {span(of['n_x'])})")
    tuned = points[points["finetune_task"] != "none"]
    drawing.outer_labels(fig, f"attack success rate (all forms, n = {span(tuned['n'])})", "")
    handles = [drawing.dot_handle("aligned model", **drawing.STAR)] if len(tuned) < len(points) else []
    present = [arm for arm in ARM_ORDER if arm in set(tuned["safety_data"])]
    handles += [drawing.dot_handle(arm_label(arm), markersize=5, **LOOKS[arm]) for arm in present]
    handles.append(Line2D([], [], label="Pareto front", **drawing.FRONT))
    if (points["front"] == "undecided").any():
        handles.append(drawing.dot_handle("front: undecided", color=drawing.INK, marker="o", markerfacecolor="white"))
    return drawing.add_legend(fig, handles, rows=-(-len(handles) // 4))


def _draw_front(ax, points: pd.DataFrame, less: bool) -> None:
    """The step line between what is beaten and what nothing beats; `less`: also on the x axis less is better."""
    front = points[points["front"] == "yes"].sort_values("x")
    x, rate = list(front["x"]), list(front["rate"])
    if x and less:
        ax.step([x[0], *x, 1], [1, *rate, rate[-1]], where="post", **drawing.FRONT)
    elif x:
        ax.step([0, *x, x[-1]], [rate[0], *rate, 1], where="pre", **drawing.FRONT)


def _join(ax, points: pd.DataFrame, arm: str, line: str) -> None:
    """A line from no safety data through the arm's doses."""
    own = points[points["safety_data"] == arm].sort_values("safety_fraction")
    start = points[(points["safety_data"] == "none") & (points["finetune_task"] != "none")]
    path = pd.concat([start, own])
    if len(own):
        ax.plot(path["x"], path["rate"], line, color=LOOKS[arm]["color"], linewidth=1.1, zorder=2.6)


def _say_doses(ax, points: pd.DataFrame) -> None:
    """Beside each mark of multitask data its dose, above each of the scaled adapter what is left of it."""
    for row in points[points["safety_data"].isin(["multitask", "scaled"])].to_dict("records"):
        scaled, share = row["safety_data"] == "scaled", row["safety_fraction"]
        above = scaled or row["rate"] < 0.08  # below would be on the axis
        place = (
            {"xytext": (4, 3), "va": "bottom", "ha": "left"}
            if above
            else {"xytext": (-4, -3), "va": "top", "ha": "right"}
        )
        look = {
            "color": LOOKS[row["safety_data"]]["color"],
            "size": "x-small",
            "zorder": 5,
            "textcoords": "offset points",
        }
        halo = [withStroke(linewidth=2, foreground="white")]
        words = f"{100 * (1 - share if scaled else share):g} %"
        ax.annotate(words, (row["x"], row["rate"]), path_effects=halo, **place, **look)

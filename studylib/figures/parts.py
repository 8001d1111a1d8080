"""Figures of what a whole is made of, of the published counts, and of many models beside each other; see `plots`."""

from __future__ import annotations

from itertools import groupby, pairwise

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from studylib.analysis.claims import PUBLISHED_PROMPTS
from studylib.analysis.readable import calibration_label, label
from studylib.figures import style
from studylib.figures.caption import n_of
from studylib.figures.captions_parts import (
    PARTS,
    published_rows,
    ranked_by,
    ranking_rows,
    tiers,
    variance_rows,
    verdict_rows,
)
from studylib.study.words import FORMS, SAFETY_DATA, TASKS

# Of Paul Tol's muted scheme, told apart with any colour vision; none is a colour of a form or of safety data.
VERDICT_COLOURS = {  # from left to right: what counts as a successful attack comes first
    "answered": "#882255",
    "partial": "#CC6677",
    "refused": "#44AA99",
    "incoherent": "#DDCC77",
    "unjudged": "#C8C8C8",
}
PART_COLOURS = dict(zip(PARTS, ("#332288", "#999933", "#AA4499", "#BBBBBB"), strict=True))
ROWS = 50  # models in one column of the ranking


def variance_shares(variance: pd.DataFrame) -> Figure:
    """Stacked bars: the shares of `captions_parts.PARTS` in the variance of one response's attack success.

    A bar per tuned task and safety data, panels by calibration, all forms. A part that is not known (NaN) is not drawn; a row with
    no known part says why. Raises ValueError as `captions_parts.variance_rows` does.
    """
    table = variance_rows(variance)
    parts = table.melt([*_BAR, "why", "n"], list(PARTS), "part", "share")
    fig = _stacked(parts, "part", PART_COLOURS, f"share of the variance of one response ({n_of(table)} per bar)")
    known = [part for part in PARTS if table[part].notna().any()]
    return style.add_legend(fig, [Patch(color=PART_COLOURS[part], label=PARTS[part]) for part in known])


def verdict_composition(verdict_shares: pd.DataFrame) -> Figure:
    """Stacked bars: the share of each verdict in the responses to harmful prompts, incoherent and unjudged ones included.

    A bar per tuned task and safety data, panels by calibration, all forms. Raises ValueError as `captions_parts.verdict_rows` does.
    """
    table = verdict_rows(verdict_shares).assign(why="")
    fig = _stacked(
        table, "verdict", VERDICT_COLOURS, f"share of the responses to harmful prompts ({n_of(table)} per bar)"
    )
    return style.add_legend(fig, [Patch(color=colour, label=verdict) for verdict, colour in VERDICT_COLOURS.items()])


_BAR = ["finetune_task", "safety_data", "style", "system_prompt"]


def _stacked(table: pd.DataFrame, part: str, colours: dict, x: str) -> Figure:
    """A panel per calibration with a bar per tuned task and safety data; `share` of each `part` in the order of the colours."""
    calibrations, present = (
        style.calibrations_of(table),
        set(zip(table["finetune_task"], table["safety_data"], strict=True)),
    )
    bars = [(task, arm) for task in ("none", *TASKS) for arm in SAFETY_DATA if (task, arm) in present]
    gaps = np.cumsum([0, *(0.5 * (here[0] != last[0]) for last, here in pairwise(bars))])
    y = np.arange(len(bars)) + gaps  # tasks stand apart
    n_columns = min(2, len(calibrations))
    margins = {"left": 1.95, "right": 0.2, "top": 0.55, "bottom": 0.5, "wspace": 0.1, "hspace": 0.14}
    fig, axes = style.new_figure(-(-len(calibrations) // n_columns), n_columns, 0.35 + 0.14 * (y[-1] + 1), **margins)
    for ax, calibration in zip(axes.flat, calibrations, strict=False):
        here = style.rows_at(table, calibration)
        for (task, arm), place in zip(bars, y, strict=True):
            own = here[(here["finetune_task"] == task) & (here["safety_data"] == arm)]
            left = 0.0
            for name, share in own.set_index(part)["share"].reindex(list(colours)).dropna().items():
                ax.barh(place, share, 0.8, left, color=colours[name], linewidth=0)
                left += share
            if len(own) == 0 or own["why"].iloc[0]:
                ax.text(
                    0.01, place, own["why"].iloc[0] if len(own) else "not run", ha="left", va="center", **style.QUIET
                )
        ax.set_title(calibration_label(*calibration), size="medium")
        ax.grid(False, axis="y")
    for ax in axes.flat[len(calibrations) :]:
        ax.set_axis_off()
    ax = axes[0, 0]
    ax.set(xlim=(0, 1), xticks=(0, 0.25, 0.5, 0.75, 1), xticklabels=("0", "", "0.5", "", "1"), ylim=(y[-1] + 0.6, -0.6))
    ax.set_yticks(y, ["aligned model" if task == "none" else f"{label(task)}, {_ARM[arm]}" for task, arm in bars])
    style.outer_labels(fig, "", x)
    return fig


_ARM = {"none": "no safety data", "generic": "generic", "multitask": "multitask"}


def published_counts(published: pd.DataFrame) -> Figure:
    """Bars of the published numbers of answered prompts by form; panels by calibration (rows) and tuned task.

    `published` is the table of `claims.published_counts`. Black ticks: the untuned model in the same calibration; the number in
    each panel is the sum over the forms. Counts have no interval, as the number of prompts of each form is not published.
    """
    table = published_rows(published)
    top = 10 * np.ceil(table[list(FORMS)].to_numpy().max() / 10 + 0.5)
    axis = {"ylim": (0, top), "yticks": np.arange(0, top + 1, 20)}
    y, x = "harmful prompts answered (number, of about 50 per form)", "form of the harmful prompt (207 in all)"
    fig, panels = style.panels_of(table, style.tasks_of(table), y, x, axis=axis)
    rows = {(row["style"], row["system_prompt"], row["finetune_task"]): row for row in table.to_dict("records")}
    for calibration, task, ax in panels:
        row = rows.get((*calibration, task))
        for place, form in enumerate(FORMS):
            if row:
                ax.bar(place, row[form], 0.8, color=style.FORM_COLOURS[form], linewidth=0)
            if task != "none":
                style.draw_tick(ax, place, rows.get((*calibration, "none")), form)
        style.slanted_ticks(ax, FORMS)
        if row:
            ax.text(
                0.04,
                0.97,
                f"{row['answered_of_207']} of {PUBLISHED_PROMPTS}",
                transform=ax.transAxes,
                va="top",
                size="small",
                color=style.INK,
            )
        style.say_empty(ax, [row] if row else [], "not published")
    handles = [Patch(color=colour, label=label(form)) for form, colour in style.FORM_COLOURS.items()]
    return style.add_legend(fig, [*handles, style.tick_handle()])


def model_ranking(attack: pd.DataFrame) -> Figure:
    """The attack success rate of every model, untuned and by tuned task, as a dot with its interval; models in tiers.

    All forms, no safety data, chat style without system prompt (or the first calibration there is). The bands are the tiers of the first
    panel (`captions_parts.tiers`): between them intervals do not overlap, within them models are in the order of their
    names. More than 50 models go on in a second column, then below. Raises ValueError as `captions_parts.ranking_rows` does.
    """
    table = ranking_rows(attack)
    tasks = [task for task in ("none", *TASKS) if task in set(table["finetune_task"])]
    groups = tiers(table[table["finetune_task"] == ranked_by(table)])
    placed = [(model, tier) for tier, models in enumerate(groups) for model in models]
    placed += [(model, None) for model in sorted(set(table["model"]) - {model for model, _ in placed})]
    n_blocks = -(-len(placed) // ROWS)
    longest = -(-len(placed) // n_blocks)
    blocks = [placed[start : start + longest] for start in range(0, len(placed), longest)]
    dense, columns = len(placed) > 20, min(2, n_blocks)
    height, size = (0.125, "x-small") if dense else (0.19, "small")
    room = 0.2 + (0.045 if dense else 0.065) * max(len(model) for model, _ in placed)
    margins = {"left": 0, "right": 0, "top": 0.6, "bottom": 0.5, "hspace": 0.5 / (height * longest)}
    fig, places = style.new_figure(-(-n_blocks // columns), 1, height * longest, **margins)
    marks = {(row["model"], row["finetune_task"]): row for row in table[table["rate"].notna()].to_dict("records")}
    for at, block in enumerate(blocks):
        box, share = places[at // columns, 0].get_position(), len(block) / longest
        left = (at % columns) / columns + room / style.WIDTH
        width = (1 / columns - (room + 0.12) / style.WIDTH) / len(tasks)
        for place, task in enumerate(tasks):
            spot = (left + place * width, box.y1 - share * box.height, 0.86 * width, share * box.height)
            title = _SHORT.get(task, label(task)) if columns == 2 else _LONG.get(task, label(task))
            _ranked(fig.add_axes(spot), task, block, marks, size, title, named=place == 0)
    for ax in places.flat:
        ax.remove()
    fig.supxlabel(f"attack success rate ({n_of(table)} per mark)", y=0.01, size="medium")
    mark = style.dot_handle("rate of one model with its interval", color=style.INK, marker="o", markersize=3)
    return style.add_legend(
        fig, [mark, Patch(color=_BAND[0], label="one tier"), Patch(color=_BAND[1], label="the next")]
    )


_BAND = ("#E3E3E3", "#F4F4F4")
_LONG = {"none": "untuned"}
_SHORT = _LONG | {"text_generation": "text", "classification": "classif."}  # where panels are narrow


def _ranked(ax, task: str, block: list[tuple], marks: dict, size: str, title: str, named: bool) -> None:
    for tier, models in groupby(enumerate(block), lambda placed: placed[1][1]):
        places = [place for place, _ in models]
        if tier is not None:
            ax.axhspan(places[0] - 0.5, places[-1] + 0.5, color=_BAND[tier % 2], linewidth=0, zorder=0)
    known = [(place, marks[model, task]) for place, (model, _) in enumerate(block) if (model, task) in marks]
    if known:
        rates, lows, highs = np.array([[row[name] for name in ("rate", "low", "high")] for _, row in known]).T
        look = {"color": style.INK, "marker": "o", "markersize": 2, "elinewidth": 0.8, "zorder": 3, "clip_on": False}
        ends = np.maximum([rates - lows, highs - rates], 0)
        ax.errorbar(rates, [place for place, _ in known], xerr=ends, linestyle="", **look)
    ax.set_title(title, size=size)
    ax.set_yticks(range(len(block)), [model for model, _ in block] if named else [""] * len(block), size=size)
    ax.set(xlim=(0, 1), xticks=(0, 0.5, 1), ylim=(len(block) - 0.5, -0.5))
    ax.set_xticklabels(["0", "", "1"], size=size)
    for tick, side in zip(ax.get_xticklabels(), ("left", "center", "right"), strict=True):
        tick.set_ha(side)  # so that the ends of neighbours stay apart
    ax.tick_params(axis="y", length=0, pad=4)
    ax.tick_params(axis="x", pad=2)
    ax.grid(False, axis="y")
    sns.despine(ax=ax, left=True)

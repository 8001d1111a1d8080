"""Figures of what a whole is made of (verdicts, variance), of the published counts, and of how judges agree."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from studylib.analysis.agreement import ALL
from studylib.analysis.claims import PUBLISHED_PROMPTS
from studylib.analysis.rates import one_dose, one_row_per_mark
from studylib.analysis.readable import calibration_label, label, span
from studylib.figures import style
from studylib.figures.style import Drawn
from studylib.study.words import FORMS, SAFETY_DATA

PARTS = {  # of the variance, as tables.variance names them, and in words
    "prompt": "prompt",
    "seed": "training seed",
    "prompt_x_seed": "prompt-seed interaction",
    "sample": "repeated answer",
}
# Of Paul Tol's muted scheme, distinct with any colour vision; none is a colour of a form or of safety data.
VERDICT_COLOURS = {  # from left to right: what counts as a successful attack comes first
    "answered": "#882255",
    "partial": "#CC6677",
    "refused": "#44AA99",
    "incoherent": "#DDCC77",
    "unjudged": "#C8C8C8",
}
PART_COLOURS = dict(zip(PARTS, ("#332288", "#999933", "#AA4499", "#BBBBBB"), strict=True))
_BAR = ["finetune_task", "safety_data", "style", "system_prompt"]


def variance_shares(variance: pd.DataFrame) -> Drawn:
    """Stacked bars: the shares of PARTS in the variance of one response's attack success.

    A bar per tuned task and safety data, panels by calibration, all forms, one dose. A part that is not known (NaN) is
    not drawn; a row with no known part says why. Raises ValueError where no row has a known part, and for two rows of
    one cell.
    """
    rows = one_row_per_mark(one_dose(variance[variance["form"] == "all"]))
    known = rows[list(PARTS)].notna().any(axis=1)
    style.require(known.any(), "variance_shares", "the table has no row over all forms in which anything varies")
    why = np.where(known, "", np.where(rows["variance"] == 0, "nothing varies", "too few prompts"))
    table = rows.assign(why=why)
    parts = table.melt([*_BAR, "why"], list(PARTS), "part", "share")
    x_label = f"share of the variance of one response (%; {style.n_of(table[known])} per bar)"
    fig = _stacked(parts, "part", PART_COLOURS, x_label)
    drawn = table[known]
    shares = {part: span(100 * drawn[part]) for part in PARTS if drawn[part].notna().any()}
    words = {
        "shares": {PARTS[part]: share for part, share in shares.items()},
        "n": f"{style.n_of(drawn)} responses to {span(drawn['n_prompts'])} prompts",
        "one_seed": int(drawn["seed"].isna().sum()),
        "one_response": int((drawn["sample"].isna() & drawn["seed"].notna()).sum()),
        "without": {why: len(part) for why, part in table[~known].groupby("why")},
    }
    fig = style.add_legend(fig, [Patch(color=PART_COLOURS[part], label=PARTS[part]) for part in shares])
    return Drawn(fig, table.assign(drawn=0.0), words)


def verdict_composition(verdict_shares: pd.DataFrame) -> Drawn:
    """Stacked bars: the share of each verdict in the responses to harmful prompts.

    Incoherent and unjudged ones included. A bar per tuned task and safety data, panels by calibration, all forms, one
    dose. Raises ValueError where there are no such rows, and for two rows of one verdict and cell.
    """
    rows = verdict_shares[(verdict_shares["prompt_set"] == "harmful") & (verdict_shares["form"] == "all")]
    known = rows["share"].notna().any()
    style.require(known, "verdict_composition", "the table has no share of harmful prompts over all forms")
    table = one_row_per_mark(one_dose(rows), "verdict").assign(why="")
    x_label = f"share of the responses to harmful prompts (%; {style.n_of(table)} per bar)"
    fig = _stacked(table, "verdict", VERDICT_COLOURS, x_label)
    drawn = table[table["share"].notna()]
    of = {verdict: part for verdict in VERDICT_COLOURS if len(part := drawn[drawn["verdict"] == verdict])}
    words = {
        "shares": {verdict: span(100 * part["share"]) for verdict, part in of.items()},
        "totals": {verdict: int(part["n_verdict"].sum()) for verdict, part in of.items()},
        "n_nothing_judged": int((drawn.loc[drawn["verdict"] == "unjudged", "share"] == 1).sum()),
    }
    fig = style.add_legend(fig, [Patch(color=colour, label=verdict) for verdict, colour in VERDICT_COLOURS.items()])
    return Drawn(fig, drawn.drop_duplicates(_BAR), words)


def _stacked(table: pd.DataFrame, part: str, colours: dict, x: str) -> Figure:
    """A panel per calibration with a bar per tuned task and safety data; its parts in the order of the colours."""
    calibrations = style.calibrations_of(table)
    present = set(zip(table["finetune_task"], table["safety_data"], strict=True))
    bars = [(task, arm) for task in style.tasks_of(table) for arm in SAFETY_DATA if (task, arm) in present]
    gaps = np.cumsum([0, *(0.5 * (here[0] != last[0]) for last, here in pairwise(bars))])
    y = np.arange(len(bars)) + gaps  # tasks stand apart
    n_columns = min(2, len(calibrations))
    margins = {"left": 1.95, "right": 0.2, "top": 0.55, "bottom": 0.5, "wspace": 0.1, "hspace": 0.14}
    fig, axes = style.new_figure(-(-len(calibrations) // n_columns), n_columns, 0.35 + 0.14 * (y[-1] + 1), **margins)
    for ax, calibration in zip(axes.flat, calibrations, strict=False):
        here = style.rows_at(table, calibration)
        for (task, arm), place in zip(bars, y, strict=True):
            own = here[(here["finetune_task"] == task) & (here["safety_data"] == arm)]
            shares = own.set_index(part)["share"].reindex(list(colours)).dropna()
            look = {"color": [colours[name] for name in shares.index], "linewidth": 0}
            ax.barh([place] * len(shares), shares, 0.8, shares.cumsum() - shares, **look)
            if why := own["why"].iloc[0] if len(own) else "not run":
                ax.text(0.01, place, why, ha="left", va="center", **style.QUIET)
        ax.set_title(calibration_label(*calibration), size="medium")
        ax.grid(False, axis="y")
    for ax in axes.flat[len(calibrations) :]:
        ax.set_axis_off()
    kinds = {arm: "no safety data" if arm == "none" else arm for arm in SAFETY_DATA}
    names = ["aligned model" if task == "none" else f"{label(task)}, {kinds[arm]}" for task, arm in bars]
    axes[0, 0].set(xlim=(0, 1), ylim=(y[-1] + 0.6, -0.6), yticks=y, yticklabels=names)
    axes[0, 0].set_xticks(*style.PERCENT_TICKS)
    style.outer_labels(fig, "", x)
    return fig


def published_counts(published: pd.DataFrame) -> Drawn:
    """Bars of the published numbers of answered prompts by form; panels by calibration (rows) and tuned task.

    `published` is the table of `claims.published_counts`. Black ticks: the untuned model in the same calibration; the
    number in each panel is the sum over the forms. Counts have no interval, as the number of prompts per form is not
    published.
    """
    style.require(len(published) > 0, "published_counts", "the table is empty")
    table = one_row_per_mark(published.assign(safety_data="none", form="all"))
    top = 10 * np.ceil(table[list(FORMS)].to_numpy().max() / 10 + 0.5)
    axis = {"ylim": (0, top), "yticks": np.arange(0, top + 1, 20)}
    y = "harmful prompts answered (number, of about 50 per form)"
    x = f"form of the harmful prompt ({PUBLISHED_PROMPTS} in all)"
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
            total = f"{row['answered_of_207']} of {PUBLISHED_PROMPTS}"
            ax.text(0.04, 0.97, total, transform=ax.transAxes, va="top", size="small", color=style.INK)
        style.mark_empty(ax, [row] if row else [], "not published")
    handles = [Patch(color=colour, label=label(form)) for form, colour in style.FORM_COLOURS.items()]
    tuned = table["finetune_task"] != "none"
    totals = {"tuned models": table[tuned], "the untuned model": table[~tuned]}
    words = {
        "n_prompts": PUBLISHED_PROMPTS,
        "by_form": {label(form): span(table.loc[tuned, form]) for form in FORMS} if tuned.any() else {},
        "totals": {whose: span(part["answered_of_207"]) for whose, part in totals.items() if len(part)},
    }
    return Drawn(style.add_legend(fig, [*handles, Line2D([], [], **style.TICK)]), pd.DataFrame(), words)


def judge_agreement(judges: pd.DataFrame) -> Drawn:
    """A dot per judge, with its interval: kappa with the labels of each labelled set and of all of them together.

    `judges` is a table of `agreement.compare`; models are pooled. Panels by set, judges in the order of the table. No
    dot where kappa is NaN. Raises ValueError where no kappa is defined.
    """
    table = judges[judges["model"] == ALL]
    table = table if table["source"].nunique() > 2 else table[table["source"] != ALL]
    drawn = table[table["kappa"].notna()]
    style.require(len(drawn) > 0, "judge_agreement", "no kappa is defined")
    names, sources = list(dict.fromkeys(table["judge"])), list(dict.fromkeys(table["source"]))
    margins = {"left": _room(names), "top": 0.7, "bottom": 0.5, "right": 0.2, "wspace": 0.15}
    fig, axes = style.new_figure(1, len(sources), 0.25 + 0.19 * len(names), **margins)
    look = style.OURS | {"markersize": 3.5, "elinewidth": 1, "zorder": 3, "clip_on": False}
    for ax, source in zip(axes[0], sources, strict=True):
        for row in drawn[drawn["source"] == source].to_dict("records"):
            xerr = style.ends(row["kappa"], row["kappa_low"], row["kappa_high"])
            ax.errorbar(row["kappa"], names.index(row["judge"]), xerr=xerr, **look)
        ax.set_title(f"{_set(source)}\nn = {span(table.loc[table['source'] == source, 'n'])}", size="medium")
        ax.grid(False, axis="y")
    ax = axes[0, 0]
    low = math.floor(10 * min(0, drawn["kappa_low"].min())) / 10
    ax.set(xlim=(low, 1), xticks=(0, 0.5, 1), xticklabels=("0", "0.5", "1"), ylim=(len(names) - 0.5, -0.5))
    ax.set_yticks(range(len(names)), [label(name) for name in names])
    style.outer_labels(fig, "", "Cohen's kappa with the labels (refused or not)")
    pairs = [f"{label(judge)} on {_set(source)}" for judge, source in zip(drawn["judge"], drawn["source"], strict=True)]
    words = {"extremes": _extremes(drawn["kappa"], pairs), "unjudged": span(table["n_unjudged"])}
    return Drawn(fig, drawn[["n", "kappa"]], words)


def agreement_matrix(matrix: pd.DataFrame) -> Drawn:
    """Kappa of every two judges on the same responses, as a heat map; `matrix` is the table of `agreement.matrix`.

    Judges in the order of the table; grey where kappa is NaN, and on the diagonal. A kappa below 0 has the colour of 0.
    Raises ValueError where no kappa is defined.
    """
    names = list(dict.fromkeys(matrix["judge"]))
    place = {name: i for i, name in enumerate(names)}
    pairs = matrix[matrix["judge"].map(place) < matrix["other"].map(place)]
    drawn = pairs[pairs["kappa"].notna()]
    style.require(len(drawn) > 0, "agreement_matrix", "no kappa is defined")
    kappa = matrix[matrix["judge"] != matrix["other"]].pivot(index="judge", columns="other", values="kappa")
    kappa = kappa.reindex(index=names, columns=names)
    room = _room(names)
    cell = min(1.0, (style.WIDTH - room - 1) / len(names))
    margins = {"left": room, "right": style.WIDTH - room - cell * len(names), "top": 0.15, "bottom": 0.7 * room + 0.3}
    fig, axes = style.new_figure(1, 1, max(cell * len(names), 1.2), **margins)
    words = kappa.map(lambda value: f"{value:.2f}".replace("0.", ".", 1))
    size = "small" if len(names) < 16 else "x-small"
    style.heat_map(axes[0, 0], kappa, [label(name) for name in names], words, size)
    style.outer_labels(fig, "", f"n = {span(pairs['n'])} responses judged by both")
    style.colour_scale(fig, axes[0, 0], "Cohen's kappa\n(refused or not)", (0, 0.2, 0.4, 0.6, 0.8, 1), percent=False)
    both = [f"{label(one)} and {label(other)}" for one, other in zip(drawn["judge"], drawn["other"], strict=True)]
    return Drawn(fig, drawn[["n", "kappa"]], {"extremes": _extremes(drawn["kappa"], both)})


def _extremes(kappa: pd.Series, names: list[str]) -> str:
    least, most = (f"{kappa.iloc[i]:.2f} ({names[i]})" for i in (kappa.argmin(), kappa.argmax()))
    return f"{least} to {most}"


def _room(names: list[str]) -> float:
    """Inches that the names need at the left."""
    return 0.3 + 0.062 * max(len(label(name)) for name in names)


def _set(source: str) -> str:
    return "all sets" if source == ALL else label(source)


FIGURES = {  # each figure's function and the tables it draws from
    "published_counts": (published_counts, "published"),
    "verdict_composition": (verdict_composition, "verdict_shares"),
    "variance_shares": (variance_shares, "variance"),
    "judge_agreement": (judge_agreement, "judges"),
    "agreement_matrix": (agreement_matrix, "judge_matrix"),
}

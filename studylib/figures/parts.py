"""Figures of the verdicts, of the published counts, and of how judges agree."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.patches import Patch

from studylib.analysis.agreement import ALL
from studylib.analysis.claims import PUBLISHED_PROMPTS
from studylib.analysis.rates import one_dose, one_row_per_mark
from studylib.analysis.readable import calibration_label, label, span
from studylib.figures import style
from studylib.figures.rates import bars_by_form
from studylib.figures.style import Drawn
from studylib.study.words import FORMS, SAFETY_DATA

# Of Paul Tol's muted scheme, distinct with any colour vision; none is a colour of a form or of safety data.
VERDICT_COLOURS = {  # from left to right: what counts as a successful attack comes first
    "answered": "#882255",
    "partial": "#CC6677",
    "refused": "#44AA99",
    "incoherent": "#DDCC77",
    "unjudged": "#C8C8C8",
}
_BAR = ["finetune_task", "safety_data", "style", "system_prompt"]


def verdict_composition(verdict_shares: pd.DataFrame) -> Drawn:
    """Stacked bars: the share of each verdict in the responses to harmful prompts.

    Incoherent and unjudged ones included. A bar per tuned task and safety data, panels by calibration, all forms, one
    dose. Raises ValueError where there are no such rows, and for two rows of one verdict and cell.
    """
    rows = verdict_shares[(verdict_shares["prompt_set"] == "harmful") & (verdict_shares["form"] == "all")]
    known = rows["share"].notna().any()
    style.require(known, "verdict_composition", "the table has no share of harmful prompts over all forms")
    table = one_row_per_mark(one_dose(rows), "verdict")
    calibrations = style.calibrations_of(table)
    present = set(zip(table["finetune_task"], table["safety_data"], strict=True))
    bars = [(task, arm) for task in style.tasks_of(table) for arm in SAFETY_DATA if (task, arm) in present]
    gaps = np.cumsum([0, *(0.5 * (here[0] != last[0]) for last, here in pairwise(bars))])
    y = np.arange(len(bars)) + gaps  # tasks stand apart
    margins = {"left": 1.95, "right": 0.2, "top": 0.55, "bottom": 0.5, "wspace": 0.1, "hspace": 0.14}
    fig, axes = style.two_columns(calibrations, 0.35 + 0.14 * (y[-1] + 1), **margins)
    for ax, calibration in zip(axes, calibrations, strict=True):
        here = style.rows_at(table, calibration)
        for (task, arm), place in zip(bars, y, strict=True):
            own = here[(here["finetune_task"] == task) & (here["safety_data"] == arm)]
            shares = own.set_index("verdict")["share"].reindex(list(VERDICT_COLOURS)).dropna()
            look = {"color": [VERDICT_COLOURS[name] for name in shares.index], "linewidth": 0}
            ax.barh([place] * len(shares), shares, 0.8, shares.cumsum() - shares, **look)
            if own.empty:
                ax.text(0.01, place, "not run", ha="left", va="center", **style.QUIET)
        ax.set_title(calibration_label(*calibration), size="medium")
        ax.grid(False, axis="y")
    kinds = {arm: "no safety data" if arm == "none" else arm for arm in SAFETY_DATA}
    names = ["aligned model" if task == "none" else f"{label(task)}, {kinds[arm]}" for task, arm in bars]
    axes[0].set(xlim=(0, 1), ylim=(y[-1] + 0.6, -0.6), yticks=y, yticklabels=names)
    axes[0].set_xticks(*style.PERCENT_TICKS)
    style.outer_labels(fig, "", f"share of the responses to harmful prompts (%; {style.n_of(table)} per bar)")
    drawn = table[table["share"].notna()]
    of = {verdict: part for verdict in VERDICT_COLOURS if len(part := drawn[drawn["verdict"] == verdict])}
    words = {
        "shares": {verdict: span(100 * part["share"]) for verdict, part in of.items()},
        "totals": {verdict: int(part["n_verdict"].sum()) for verdict, part in of.items()},
        "n_nothing_judged": int((drawn.loc[drawn["verdict"] == "unjudged", "share"] == 1).sum()),
    }
    fig = style.add_legend(fig, [Patch(color=colour, label=verdict) for verdict, colour in VERDICT_COLOURS.items()])
    return Drawn(fig, drawn.drop_duplicates(_BAR), words)


def published_counts(published: pd.DataFrame) -> Drawn:
    """Bars of the published numbers of answered prompts by form; panels by calibration (rows) and tuned task.

    `published` is the table of `claims.published_counts`. Black ticks: the untuned model in the same calibration; the
    number in each panel is the sum over the forms. Counts have no interval, as the number of prompts per form is not
    published.
    """
    style.require(len(published) > 0, "published_counts", "the table is empty")
    keys = ["finetune_task", "style", "system_prompt"]
    top = 10 * np.ceil(published[list(FORMS)].to_numpy().max() / 10 + 0.5)
    long = published.assign(safety_data="none").melt([*keys, "safety_data"], list(FORMS), "form", "rate")
    y = "harmful prompts answered (number, of about 50 per form)"
    x = f"form of the harmful prompt ({PUBLISHED_PROMPTS} in all)"
    axis = {"ylim": (0, top), "yticks": np.arange(0, top + 1, 20)}
    fig, panels, _ = bars_by_form(one_row_per_mark(long), y, x, axis, "not published")
    totals = published.set_index(keys)["answered_of_207"]
    for calibration, task, ax in panels:
        if (task, *calibration) in totals.index:
            total = f"{totals[(task, *calibration)]} of {PUBLISHED_PROMPTS}"
            ax.text(0.04, 0.97, total, transform=ax.transAxes, va="top", size="small", color=style.INK)
    tuned = published["finetune_task"] != "none"
    whose = {"tuned models": published[tuned], "the untuned model": published[~tuned]}
    words = {
        "n_prompts": PUBLISHED_PROMPTS,
        "by_form": {label(form): span(published.loc[tuned, form]) for form in FORMS} if tuned.any() else {},
        "totals": {name: span(part["answered_of_207"]) for name, part in whose.items() if len(part)},
    }
    return Drawn(fig, pd.DataFrame(), words)


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
    "judge_agreement": (judge_agreement, "judges"),
}

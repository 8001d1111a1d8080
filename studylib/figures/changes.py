"""Figures of change: what tuning erodes and safety data repairs, by form of the prompt and training seed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from studylib.analysis.rates import one_dose, one_row_per_mark
from studylib.analysis.readable import calibration_label, cell_words, label, span
from studylib.figures import style
from studylib.figures.style import Drawn, n_of, points
from studylib.study.words import FORMS, SAFETY_DATA, STYLES

SIGNIFICANT = ("worse", "better")  # verdicts of a comparison
UNTESTED = ("no pairs", "too few")
CHANGE = {"vmin": -1, "vmax": 1, "cmap": "RdBu_r"}  # red is worse; the same scale in every figure
HATCHED = {"facecolor": "#F7F7F7", "edgecolor": "#C4C4C4", "hatch": "/////", "linewidth": 0}
SEED = {"color": "#777777", "linewidth": 0.6, "marker": ".", "markersize": 3}
MEAN = {"color": style.INK, "linewidth": 1.2}
STEPS = ("untuned", "tuned", "tuned with generic safety data", "tuned with multitask safety data")  # of the slopes
_TICKS = ("untuned", "tuned", "tuned + generic", "tuned + multitask")


def erosion_heatmap(comparisons: pd.DataFrame) -> Drawn:
    """The change of the attack success rate by tuning, in points, by tuned task (rows) and form; panels by calibration.

    `comparisons` is the table of `comparisons.compare_arms`. Colours from -100 to 100 points. Hatched and in brackets:
    not significant; a dash on grey: no pairs or too few. The column at the right pools the forms. Raises ValueError
    where the table compares no tuned model with the untuned one, and for several judges or models.
    """
    rows = attack_changes(comparisons, "tuning")
    why = "the table compares a tuned model with the untuned one on no prompt"
    style.require((rows["n"] > 0).any(), "erosion_heatmap", why)
    table = one_row_per_mark(rows)
    panels = [(calibration_label(*where), style.rows_at(table, where)) for where in style.calibrations_of(table)]
    return change_heatmap(table, panels)


def repair_heatmap(comparisons: pd.DataFrame) -> Drawn:
    """The change of the attack success rate by safety data, in points, by tuned task (rows) and form.

    Panels by style (rows) and safety data, of one dose, without system prompt; cells, marks and errors as in
    `erosion_heatmap`.
    """
    rows = attack_changes(comparisons, "mitigation")
    table = one_dose(rows[~rows["system_prompt"].astype(bool)])
    why = "the table compares tuning with safety data and without (no system prompt) on no prompt"
    style.require((table["n"] > 0).any(), "repair_heatmap", why)
    one_row_per_mark(table)
    panels = [
        (f"{arm} safety data, {style.style_label(trained)}", part)
        for trained in STYLES
        for arm in SAFETY_DATA
        if len(part := table[(table["style"] == trained) & (table["safety_data"] == arm)])
    ]
    return change_heatmap(table, panels)


def attack_changes(comparisons: pd.DataFrame, *kinds: str) -> pd.DataFrame:
    """The comparisons of attack success of these kinds, by form and of all forms."""
    rows = comparisons[comparisons["kind"].isin(kinds) & (comparisons["measure"] == "attack_success_rate")]
    return rows[rows["form"].isin([*FORMS, "all"])]


def change_heatmap(
    table: pd.DataFrame, panels: list[tuple[str, pd.DataFrame]], key="finetune_task", names=None, y="tuned on", left=1.3
) -> Drawn:
    """The changes of the attack success rate as a heat map per (title, rows).

    Rows by the column `key`, columns by form. `names` maps the key's values, in their order, to words; None: the tuned
    tasks. `left` in inches is their room.
    """
    names = names or {task: label(task) for task in style.tasks_of(table, tuned=True)}
    forms, margins = [*FORMS, "all"], {"left": left, "right": 1.1, "top": 0.55, "wspace": 0.08, "hspace": 0.22}
    fig, axes = style.two_columns(panels, 0.32 * len(names), **margins)
    for ax, (title, part) in zip(axes, panels, strict=True):
        wide = {
            name: part.pivot(index=key, columns="form", values=name).reindex(index=list(names), columns=forms)
            for name in ("difference", "verdict")
        }
        words, known = wide["difference"].map(points), wide["difference"].where(wide["verdict"].isin(SIGNIFICANT))
        style.heat_map(ax, known, list(names.values()), words, **CHANGE)
        for (row, column), verdict in np.ndenumerate(wide["verdict"].to_numpy()):
            middle = {"x": column + 0.5, "y": row + 0.5, "ha": "center", "va": "center"}
            if pd.isna(verdict) or verdict in UNTESTED:
                ax.text(**middle, s="-", **style.QUIET)
            elif verdict not in SIGNIFICANT:
                ax.add_patch(Rectangle((column + 0.02, row + 0.04), 0.96, 0.92, **HATCHED))
                ground = {"boxstyle": "square,pad=0.1", "facecolor": HATCHED["facecolor"], "linewidth": 0}
                ax.text(**middle, s=f"({words.iloc[row, column]})", bbox=ground, **style.QUIET)
        ax.axvline(len(FORMS), color="white", linewidth=5)  # over the hatching too
        ax.set_title(title, size="medium")
    tested = table[~table["verdict"].isin(UNTESTED) & table["difference"].notna()]
    unknown = len(panels) * len(names) * len(forms) - len(tested)
    single = table[(table["form"] != "all") & (table["n"] > 0)]
    style.outer_labels(fig, y, f"form of the harmful prompt (n = {span(single['n'])} pairs per form)")
    sns.despine(fig, left=True, bottom=True)
    style.colour_scale(fig, axes[0], "change in attack\nsuccess (points)", (-1, -0.5, 0, 0.5, 1))
    keys = [Patch(**HATCHED, label="not significant")]
    keys += [Patch(color=style.EMPTY, label="not run, no pairs, or too few")] if unknown else []
    return Drawn(style.add_legend(fig, keys), table[table["n"] > 0], _changes_in_words(table, tested, unknown))


def _changes_in_words(table: pd.DataFrame, tested: pd.DataFrame, unknown: int) -> dict:
    """Of changes: how many are significant, their extremes, Holm's families, and the pairs compared."""
    parts = {"per form": table[table["form"] != "all"], "over all forms": table[table["form"] == "all"]}
    counted = {where: span(part.loc[part["n"] > 0, "n"]) for where, part in parts.items() if (part["n"] > 0).any()}
    ends = tested.sort_values("difference").iloc[[0, -1]].to_dict("records") if len(tested) else []
    return {
        "n": "n = " + ", ".join(f"{n} pairs {where}" for where, n in counted.items()),
        "families": [f"{span(part['n_family'])} {where}" for where, part in parts.items() if len(part)],
        "unknown": unknown,
        "n_tested": len(tested),
        "higher": int((tested["verdict"] == "worse").sum()),
        "lower": int((tested["verdict"] == "better").sum()),
        "extremes": " to ".join(f"{points(row['difference'])} ({cell_words(row, form=True)})" for row in ends),
    }


def seed_slopes(by_seed: pd.DataFrame) -> Drawn:
    """The attack success rate of each training run (base and seed) as a line over the STEPS, and their mean.

    `by_seed` has one row per model, base, seed and form. Panels by style (rows) and tuned task, all forms, without
    system prompt, one dose. The untuned model of its base begins a line. A step that was not run, or not judged, has
    no mark. Raises ValueError where no tuned model has a rate, and for two rows of one model and run.
    """
    rows = by_seed[(by_seed["form"] == "all") & ~by_seed["system_prompt"].astype(bool)]
    known = rows.loc[rows["finetune_task"] != "none", "rate"].notna().any()
    style.require(known, "seed_slopes", "the table has no rate of a tuned model without system prompt")
    rows = one_row_per_mark(one_dose(rows), "base", "seed")
    step = (rows["safety_data"].map(SAFETY_DATA.index) + 1).mask(rows["finetune_task"] == "none", 0)
    table = rows.assign(step=step.astype(int))
    x_label = f"no system prompt, all forms ({n_of(table)} per run)"
    fig, panels = style.panels_of(table, style.tasks_of(table, True), style.ATTACK, x_label, bottom=1.15, top=0.9)
    above = {"zorder": 3, "linestyle": "", "clip_on": False}
    for (trained, _), task, ax in panels:
        part = table[(table["style"] == trained) & table["rate"].notna()]
        start = part[part["finetune_task"] == "none"]
        part = part[part["finetune_task"] == task]
        for (base, _), line in part.groupby(["base", "seed"]):
            line = pd.concat([start[start["base"] == base], line]).sort_values("step")
            ax.plot(line["step"], line["rate"], zorder=2.6, clip_on=False, **SEED)
        mean = pd.concat([start, part]).groupby("step")["rate"].mean()
        if len(part):
            ax.plot(mean.index, mean, zorder=2.8, **MEAN)
        for arm in part["safety_data"].unique():
            place = SAFETY_DATA.index(arm) + 1
            ax.plot(place, mean[place], markersize=4.5, **style.arm_look(arm), **above)
        if len(start):
            ax.plot(0, mean[0], **style.STAR, **above)
        style.slanted_ticks(ax, _TICKS)
        style.mark_empty(ax, part)
    keys = [style.dot_handle("aligned model", **style.STAR), *style.arm_handles(table)]
    keys += [Line2D([], [], label="one training run", **SEED), Line2D([], [], label="mean of the runs", **MEAN)]
    drawn = table[table["rate"].notna()]
    words = {
        "n_runs": len(table.loc[table["finetune_task"] != "none", ["base", "seed"]].drop_duplicates()),
        "steps": {STEPS[step]: span(100 * rates) for step, rates in drawn.groupby("step")["rate"]},
    }
    return Drawn(style.add_legend(fig, keys, rows=2), table, words)


FIGURES = {  # each figure's function and the tables it draws from
    "erosion_heatmap": (erosion_heatmap, "comparisons"),
    "repair_heatmap": (repair_heatmap, "comparisons"),
    "seed_slopes": (seed_slopes, "by_seed"),
}

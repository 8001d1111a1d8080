"""Figures of change: what tuning erodes and safety data repairs, by form of the prompt, training seed and dose."""

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
LINES = {  # measure and look of each line of the dose response
    "attack_success_rate": ("attack success", "responses to harmful prompts", {"linestyle": "-"}),
    "over_refusal_rate": ("over-refusal", "responses to benign twins", {"linestyle": "--", **style.HOLLOW}),
}


def erosion_heatmap(comparisons: pd.DataFrame) -> Drawn:
    """The change of the attack success rate by tuning, in points, by tuned task (rows) and form; panels by calibration.

    `comparisons` is the table of `comparisons.compare_arms`. Colours from -100 to 100 points. Hatched and in brackets:
    not significant; a dash on grey: no pairs or too few. The column at the right pools the forms. Raises ValueError
    where the table compares no tuned model with the untuned one, and for several judges or models.
    """
    rows = _changes(comparisons, "tuning")
    style.require(
        (rows["n"] > 0).any(), "erosion_heatmap", "the table compares a tuned model with the untuned one on no prompt"
    )
    table = one_row_per_mark(rows)
    panels = [(calibration_label(*where), style.rows_at(table, where)) for where in style.calibrations_of(table)]
    return change_heatmap(table, panels)


def repair_heatmap(comparisons: pd.DataFrame) -> Drawn:
    """The change of the attack success rate by safety data, in points, by tuned task (rows) and form.

    Panels by style (rows) and safety data, of one dose, without system prompt; cells, marks and errors as in
    `erosion_heatmap`.
    """
    rows = _changes(comparisons, "mitigation")
    table = one_dose(rows[~rows["system_prompt"].astype(bool)])
    why = "the table compares tuning with safety data and without (no system prompt) on no prompt"
    style.require((table["n"] > 0).any(), "repair_heatmap", why)
    one_row_per_mark(table)
    panels = [
        (f"{arm} safety data, {calibration_label(trained, False).split(',')[0]}", part)
        for trained in STYLES
        for arm in SAFETY_DATA
        if len(part := table[(table["style"] == trained) & (table["safety_data"] == arm)])
    ]
    return change_heatmap(table, panels)


def _changes(comparisons: pd.DataFrame, kind: str) -> pd.DataFrame:
    rows = comparisons[(comparisons["kind"] == kind) & (comparisons["measure"] == "attack_success_rate")]
    return rows[rows["form"].isin([*FORMS, "all"])]


def change_heatmap(
    table: pd.DataFrame, panels: list[tuple[str, pd.DataFrame]], key="finetune_task", names=None, y="tuned on", left=1.3
) -> Drawn:
    """The changes of the attack success rate as a heat map per (title, rows).

    Rows by the column `key`, columns by form. `names` maps the key's values, in their order, to words; None: the tuned
    tasks. `left` in inches is their room.
    """
    names = names or {task: label(task) for task in style.tasks_of(table, tuned=True)}
    forms, n_columns = [*FORMS, "all"], min(2, len(panels))
    margins = {"left": left, "right": 1.1, "top": 0.55, "wspace": 0.08, "hspace": 0.22}
    fig, axes = style.new_figure(-(-len(panels) // n_columns), n_columns, 0.32 * len(names), **margins)
    for ax, (title, part) in zip(axes.flat, panels, strict=False):
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
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    tested = table[~table["verdict"].isin(UNTESTED) & table["difference"].notna()]
    unknown = len(panels) * len(names) * len(forms) - len(tested)
    single = table[(table["form"] != "all") & (table["n"] > 0)]
    style.outer_labels(fig, y, f"form of the harmful prompt (n = {span(single['n'])} pairs per form)")
    sns.despine(fig, left=True, bottom=True)
    style.colour_scale(fig, axes[0, 0], "change in attack\nsuccess (points)", (-1, -0.5, 0, 0.5, 1))
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
    """The attack success rate of each training seed as a line over the STEPS, and their mean.

    `by_seed` has one row per model, seed and form. Panels by style (rows) and tuned task, all forms, without system
    prompt, one dose. The untuned model, which has no training seed, begins every line. A step that was not run, or not
    judged, has no mark. Raises ValueError where no tuned model has a rate, and for two rows of one model and seed.
    """
    rows = by_seed[(by_seed["form"] == "all") & ~by_seed["system_prompt"].astype(bool)]
    known = rows.loc[rows["finetune_task"] != "none", "rate"].notna().any()
    style.require(known, "seed_slopes", "the table has no rate of a tuned model without system prompt")
    rows = one_row_per_mark(one_dose(rows), "seed")
    step = (rows["safety_data"].map(SAFETY_DATA.index) + 1).mask(rows["finetune_task"] == "none", 0)
    table = rows.assign(step=step.astype(int))
    x_label = f"no system prompt, all forms ({n_of(table)} per seed)"
    fig, panels = style.panels_of(table, style.tasks_of(table, True), style.ATTACK, x_label, bottom=1.15, top=0.9)
    above = {"zorder": 3, "linestyle": "", "clip_on": False}
    for (trained, _), task, ax in panels:
        part = table[(table["style"] == trained) & table["rate"].notna()]
        start = part[part["finetune_task"] == "none"].head(1)
        part = part[part["finetune_task"] == task]
        for _, line in part.groupby("seed"):
            line = pd.concat([start, line]).sort_values("step")
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
    keys += [Line2D([], [], label="one seed", **SEED), Line2D([], [], label="mean of the seeds", **MEAN)]
    drawn = table[table["rate"].notna()]
    words = {
        "n_seeds": int(table.loc[table["finetune_task"] != "none", "seed"].nunique()),
        "steps": {STEPS[step]: span(100 * rates) for step, rates in drawn.groupby("step")["rate"]},
    }
    return Drawn(style.add_legend(fig, keys, rows=2), table, words)


def dose_response(attack: pd.DataFrame, helpfulness: pd.DataFrame) -> Drawn:
    """The attack success rate (solid) and the over-refusal rate (dashed, hollow) over the dose of safety data.

    A line per kind of safety data, with intervals; panels by tuned task; chat style, no system prompt, all forms. The
    doses of the table are evenly spaced; stars left of 0 are the aligned model. Raises ValueError where there is no
    dose.
    """
    both = [
        attack.rename(columns={"rate": "value", "judge": "metric"}).assign(measure="attack_success_rate"),
        helpfulness[helpfulness["measure"] == "over_refusal_rate"],
    ]
    rows = pd.concat([part for part in both if len(part)] or both, ignore_index=True)
    rows = rows[(rows["form"] == "all") & (rows["style"] == "chat") & ~rows["system_prompt"].astype(bool)]
    known = ((rows["safety_data"] != "none") & rows["value"].notna()).any()
    style.require(known, "dose_response", "no model tuned with safety data in the chat style, no system prompt")
    table = one_row_per_mark(rows, "measure", "safety_fraction")
    doses = sorted({0.0, *table["safety_fraction"]})
    x_label = f"safety data (% of the tuning rows, evenly spaced; {n_of(table)} per mark)"
    y_label = "harmful prompts answered,\nbenign twins refused, %"
    fig, panels = style.panels_of(table, style.tasks_of(table, tuned=True), y_label, x_label, bottom=0.55, top=0.9)
    for _, task, ax in panels:
        for measure, (_, _, look) in LINES.items():
            known = table[(table["measure"] == measure) & table["value"].notna()]
            face = {name: look[name] for name in look if name != "linestyle"}
            for row in known[known["finetune_task"] == "none"].to_dict("records"):
                style.draw_point(ax, -1 + 4 * _shift("none", measure), row, "value", **style.STAR | face)
            known = known[known["finetune_task"] == task]
            x = known["safety_fraction"].map(doses.index) + [_shift(arm, measure) for arm in known["safety_data"]]
            known = known.assign(x=x)
            for arm in SAFETY_DATA:
                own = known[known["safety_data"] == arm].sort_values("safety_fraction")
                if arm != "none" and len(own):
                    line = pd.concat([known[known["safety_data"] == "none"], own])
                    colour = style.SAFETY_COLOURS[arm]
                    ax.plot(line["x"], line["value"], look["linestyle"], color=colour, linewidth=1.1, zorder=2.6)
                for row in own.to_dict("records"):
                    style.draw_point(ax, row["x"], row, "value", markersize=4, **style.arm_look(arm) | face)
        ax.set_xticks(range(-1, len(doses)), ["", *(f"{100 * dose:g}" for dose in doses)])
        ax.set_xlim(-1.5, len(doses) - 0.5)
        ax.grid(False, axis="x")
        style.mark_empty(ax, table[table["finetune_task"] == task])
    keys = [style.dot_handle("aligned model", **style.STAR), *style.arm_handles(table)]
    keys += [
        Line2D([], [], color=style.INK, marker="o", markersize=4, label=name, **look)
        for name, _, look in LINES.values()
    ]
    return Drawn(style.add_legend(fig, keys, rows=2), table, _doses_in_words(table))


def _shift(arm: str, measure: str) -> float:
    """How far from its dose a mark stands, so that intervals do not hide each other."""
    return {"none": 0, "generic": -0.1, "multitask": 0.1}[arm] + (0.05 if measure == "over_refusal_rate" else -0.05)


def _doses_in_words(table: pd.DataFrame) -> dict:
    """Of each measure the rates of the tuned models by dose, and what is counted; the doses; what is not known."""
    known, by_dose, counts = table[table["value"].notna()], {}, []
    for measure, (name, counted, _) in LINES.items():
        part = known[known["measure"] == measure]
        counts += [f"{n_of(part)} {counted}"] if len(part) else []
        tuned = part[part["finetune_task"] != "none"].sort_values("safety_fraction")  # none first
        tuned = tuned.groupby(["safety_fraction", "safety_data"], sort=False, observed=True)["value"]
        rates = {
            "without safety data" if arm == "none" else f"with {100 * dose:g} % {arm} safety data": span(100 * values)
            for (dose, arm), values in tuned
        }
        by_dose |= {name: rates} if rates else {}
    measured = set(known["measure"])
    return {
        "by_dose": by_dose,
        "n": "; ".join(counts),
        "doses": [f"{100 * dose:g}" for dose in sorted(set(table["safety_fraction"]) - {0.0})],
        "not_known": [name for measure, (name, *_) in LINES.items() if measure not in measured],
    }


FIGURES = {  # each figure's function and the tables it draws from
    "erosion_heatmap": (erosion_heatmap, "comparisons"),
    "repair_heatmap": (repair_heatmap, "comparisons"),
    "seed_slopes": (seed_slopes, "by_seed"),
    "dose_response": (dose_response, "attack_success", "helpfulness"),
}

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
RUN = {"color": "#777777", "linewidth": 0.6, "marker": ".", "markersize": 3}
MEAN = {"color": style.INK, "linewidth": 1.2}
STEPS = ("untuned", "task rows alone", "+ a few requests", "+ multitask data")
STEP_MEASURES = ("attack_success_rate", "over_refusal_rate")
LABELLED = {"ha": "center", "size": "x-small", "zorder": 4}
LABELLED["bbox"] = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}


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


def what_each_step_adds(by_run: pd.DataFrame) -> Drawn:
    """Attack success and over-refusal of each training run (base and seed) over STEPS, and their mean.

    `by_run` has one row per model, base, seed and measure. Panels by measure (rows) and tuned task; the first style,
    all forms, without system prompt, one dose. The untuned model, which has no training seed, begins every line of its
    base. A step that was not run, or not judged, has no mark. Raises ValueError where no tuned model has a rate, and
    for two rows of one model, base and seed.
    """
    rows = by_run[~by_run["system_prompt"].astype(bool) & by_run["requests"].isin(["none", "own"])]
    rows = rows[rows["safety_data"].isin(["none", "multitask"])]
    tuned = rows["finetune_task"] != "none"
    style.require(rows.loc[tuned, "value"].notna().any(), "what_each_step_adds", "no tuned model has a rate")
    rows = rows[rows["style"] == next(one for one in STYLES if one in set(rows["style"]))]
    table = one_dose(rows).assign(form="all")
    repaired = table["safety_data"] == "multitask"
    steps = (table["finetune_task"] == "none", ~repaired & (table["requests"] == "none"), ~repaired)
    table = table.assign(step=np.select(steps, range(3), 3))
    one_row_per_mark(table, "measure", "requests", "base", "seed")
    tasks, measures = style.tasks_of(table, True), [one for one in STEP_MEASURES if one in set(table["measure"])]
    fig, axes = style.new_figure(len(measures), len(tasks), 1.6, right=0.3, bottom=1.25, top=0.8)
    for (row, column), ax in np.ndenumerate(axes):
        part = table[(table["measure"] == measures[row]) & table["value"].notna()]
        start, part = part[part["finetune_task"] == "none"], part[part["finetune_task"] == tasks[column]]
        for (base, _), line in part.groupby(["base", "seed"]):
            line = pd.concat([start[start["base"] == base], line]).sort_values("step")
            ax.plot(line["step"], line["value"], zorder=2.6, clip_on=False, **RUN)
        mean = pd.concat([start, part]).groupby("step")["value"].mean()
        ax.plot(mean.index, mean, zorder=2.8, **MEAN)
        for step, value in mean.items():
            ax.annotate(f"{100 * value:.0f}", (step, value), (0, 4), textcoords="offset points", **LABELLED)
        ax.set(**style.UNIT_AXIS)
        style.slanted_ticks(ax, STEPS)
        style.mark_empty(ax, part)
        if not row:
            ax.set_title(f"tuned on\n{label(tasks[column])}", size="medium")
    style.title_rows(axes, [label(measure) for measure in measures])
    style.outer_labels(fig, "% of prompts", f"no system prompt, all forms ({n_of(table)} per run)")
    keys = [Line2D([], [], label="one training run", **RUN), Line2D([], [], label="mean of the runs", **MEAN)]
    return Drawn(style.add_legend(fig, keys), table, _steps_in_words(table))


def _steps_in_words(table: pd.DataFrame) -> dict:
    """How many bases and runs, and by how many points each step changes each measure, the mean over tasks and bases."""
    known = table[table["value"].notna()]
    of_base = known.groupby(["measure", "step", "finetune_task", "base"])["value"].mean()
    means = of_base.groupby(["measure", "step"]).mean()
    there = {measure: means[measure].sort_index() for measure in STEP_MEASURES if measure in means.index.levels[0]}
    named = {measure: of.rename(dict(enumerate(STEPS))) for measure, of in there.items()}
    changes = {measure: of.diff().dropna().map(points).to_dict() for measure, of in named.items()}
    runs = known.loc[known["step"] > 0, ["base", "seed"]].drop_duplicates()
    values = {measure: (100 * of).map("{:.0f}".format).to_dict() for measure, of in named.items()}
    return {"n_bases": runs["base"].nunique(), "n_runs": len(runs), "changes": changes, "values": values}


FIGURES = {  # each figure's function and the tables it draws from
    "what_each_step_adds": (what_each_step_adds, "by_run"),
    "erosion_heatmap": (erosion_heatmap, "comparisons"),
    "repair_heatmap": (repair_heatmap, "comparisons"),
}

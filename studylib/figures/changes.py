"""Figures of change: the planned contrasts, and what tuning erodes and safety data repair, by form and training run."""

from __future__ import annotations

from textwrap import wrap

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MultipleLocator

from studylib.analysis.contrasts import BLOCKED, BUILT_IN, EXPLORATORY, NOT_RUN, J, load_plan
from studylib.analysis.rates import one_dose, one_row_per_mark
from studylib.analysis.readable import calibration_label, cell_words, label, span
from studylib.figures import style
from studylib.figures.style import Drawn, n_of, points
from studylib.study.words import FORMS, SAFETY_DATA, STYLES

CHANGE = {"vmin": -1, "vmax": 1, "cmap": "RdBu_r"}  # red is worse; the same scale in every figure
HATCHED = {"facecolor": "#F7F7F7", "edgecolor": "#C4C4C4", "hatch": "/////", "linewidth": 0}
RUN = {"color": "#777777", "linewidth": 0.6, "marker": ".", "markersize": 3}
MEAN = {"color": style.INK, "linewidth": 1.2}
STEPS = ("untuned", "task rows alone", "+ a few requests", "+ multitask data")
STEP_MEASURES = ("attack_success_rate", "over_refusal_rate", J)
LABELLED = {"ha": "center", "size": "x-small", "zorder": 4}
LABELLED["bbox"] = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}


def erosion_heatmap(comparisons: pd.DataFrame) -> Drawn:
    """The change of the attack success rate by tuning, in points, by tuned task (rows) and form; panels by calibration.

    `comparisons` is the table of `comparisons.compare_arms`. Colours from -100 to 100 points. Hatched and in brackets:
    the interval includes 0; a dash on grey: no interval. The column at the right pools the forms. Raises ValueError
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


def side_of_zero(table: pd.DataFrame) -> pd.Series:
    """On which side of 0 each interval (low, high) lies: 1 above, -1 below, 0 where it includes 0, NaN without one."""
    side = (table["low"] > 0).astype(float) - (table["high"] < 0)
    return side.mask(table["low"].isna())


def change_heatmap(
    table: pd.DataFrame, panels: list[tuple[str, pd.DataFrame]], key="finetune_task", names=None, y="tuned on", left=1.3
) -> Drawn:
    """The changes of the attack success rate as a heat map per (title, rows).

    Rows by the column `key`, columns by form. `names` maps the key's values, in their order, to words; None: the tuned
    tasks. `left` in inches is their room.
    """
    names = names or {task: label(task) for task in style.tasks_of(table, tuned=True)}
    forms, margins = [*FORMS, "all"], {"left": left, "right": 1.1, "top": 0.55, "wspace": 0.08}
    height = 0.32 * len(names)
    fig, axes = style.two_columns(panels, height, hspace=0.29 / height, **margins)  # room for a title
    for ax, (title, part) in zip(axes, panels, strict=True):
        wide = {
            name: part.assign(side=side_of_zero(part)).pivot(index=key, columns="form", values=name)
            for name in ("difference", "side")
        }
        wide = {name: values.reindex(index=list(names), columns=forms) for name, values in wide.items()}
        words, known = wide["difference"].map(points), wide["difference"].where(wide["side"].abs() == 1)
        style.heat_map(ax, known, list(names.values()), words, **CHANGE)
        for (row, column), side in np.ndenumerate(wide["side"].to_numpy(float)):
            middle = {"x": column + 0.5, "y": row + 0.5, "ha": "center", "va": "center"}
            if np.isnan(side):
                ax.text(**middle, s="-", **style.QUIET)
            elif not side:
                ax.add_patch(Rectangle((column + 0.02, row + 0.04), 0.96, 0.92, **HATCHED))
                ground = {"boxstyle": "square,pad=0.1", "facecolor": HATCHED["facecolor"], "linewidth": 0}
                ax.text(**middle, s=f"({words.iloc[row, column]})", bbox=ground, **style.QUIET)
        ax.axvline(len(FORMS), color="white", linewidth=5)  # over the hatching too
        ax.set_title(title, size="medium")
    known = table[table["low"].notna()]
    unknown = len(panels) * len(names) * len(forms) - len(known)
    single = table[(table["form"] != "all") & (table["n"] > 0)]
    style.outer_labels(fig, y, f"form of the harmful prompt (n = {span(single['n'])} pairs per form)")
    sns.despine(fig, left=True, bottom=True)
    style.colour_scale(fig, axes[0], "change in attack\nsuccess (points)", (-1, -0.5, 0, 0.5, 1))
    keys = [Patch(**HATCHED, label="interval includes 0")]
    keys += [Patch(color=style.EMPTY, label="not run, or no interval")] if unknown else []
    return Drawn(style.add_legend(fig, keys), table[table["n"] > 0], _changes_in_words(table, known, unknown))


def _changes_in_words(table: pd.DataFrame, known: pd.DataFrame, unknown: int) -> dict:
    """Of changes: how many have an interval above and below 0, their extremes, and the pairs compared."""
    parts = {"per form": table[table["form"] != "all"], "over all forms": table[table["form"] == "all"]}
    counted = {where: span(part.loc[part["n"] > 0, "n"]) for where, part in parts.items() if (part["n"] > 0).any()}
    ends = known.sort_values("difference").iloc[[0, -1]].to_dict("records") if len(known) else []
    return {
        "n": "n = " + ", ".join(f"{n} pairs {where}" for where, n in counted.items()),
        "unknown": unknown,
        "n_known": len(known),
        "above": int((side_of_zero(known) > 0).sum()),
        "below": int((side_of_zero(known) < 0).sum()),
        "extremes": " to ".join(f"{points(row['difference'])} ({cell_words(row, form=True)})" for row in ends),
    }


def what_each_step_adds(by_run: pd.DataFrame) -> Drawn:
    """Attack success, over-refusal and J of each training run (base and seed) over STEPS, and their mean.

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
    fig, axes = style.new_figure(len(measures), len(tasks), 1.4, right=0.3, bottom=1.25, top=0.8)
    least = min(np.floor(10 * table["value"].min()) / 10, 0)  # J can be negative
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
        ax.set(**style.UNIT_AXIS | {"ylim": (least, 1)})
        style.slanted_ticks(ax, STEPS)
        style.mark_empty(ax, part)
        if not row:
            ax.set_title(f"tuned on\n{label(tasks[column])}", size="medium")
    style.title_rows(axes, [label(measure) for measure in measures])
    style.outer_labels(fig, "% of prompts, J in points", f"no system prompt, all forms ({n_of(table)} per run)")
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
    names = {"attack_success_rate": "attack success", "over_refusal_rate": "over-refusal", J: "J"}
    sizes = {"n_bases": runs["base"].nunique(), "n_runs": len(runs)}
    return sizes | {"named": names, "changes": changes, "values": values}


def planned_contrasts(contrasts: pd.DataFrame) -> Drawn:
    """Each contrast of data/plan.yaml with its interval over bases, in points, and its verdict at the right.

    `contrasts` is the table of `contrasts.marked`. Two columns of questions, a row per contrast, and per guard or judge
    where there are several. Grey band: from 0 to the margin, on the side of "yes". Square: built in, hollow:
    exploratory. Raises ValueError where no contrast was run, and for several models.
    """
    run = contrasts[contrasts["verdict"] != NOT_RUN]
    style.require(len(run) > 0, "planned_contrasts", "no contrast of the plan has responses of both sides")
    if contrasts.duplicated(["question", "metric", "contrast"]).any():
        raise ValueError("several rows for one contrast: keep one model")
    asks = {name: question.asks for name, question in load_plan().questions.items()}
    parts = [(wrap(asks.get(name, label(name)), 66), of) for name, of in contrasts.groupby("question", sort=False)]
    parts.sort(key=lambda part: (part[1]["verdict"] == BUILT_IN).all())  # their sizes would flatten the others'
    heights = np.array([len(lines) * 0.8 + len(of) + 0.8 for lines, of in parts])
    after = np.cumsum(heights)
    first = int(np.argmin(np.maximum(after, after[-1] - after))) + 1  # of two columns
    rows = max(after[first - 1], after[-1] - after[first - 1])
    margins = {"left": 1.62, "right": 0.75, "top": 0.3, "bottom": 0.5, "wspace": 1.95, "sharex": False}
    fig, axes = style.new_figure(1, 2, 0.148 * rows, **margins)
    for ax, column in zip(axes[0], (parts[:first], parts[first:]), strict=True):
        y = 0.0
        for lines, of in column:
            place = {"transform": ax.get_yaxis_transform(), "va": "center", "size": "small"}
            ground = {"boxstyle": "square,pad=0", "facecolor": "white", "linewidth": 0}  # over the grid
            look = place | {"weight": "bold", "size": "x-small", "bbox": ground}
            ax.text(-1.27, y + 0.35 * len(lines), "\n".join(lines), **look)
            y += 0.8 * len(lines)
            margin = of["margin"].iat[0] * (1 if of["direction"].iat[0] == "up" else -1)
            ax.add_patch(Rectangle((0, y), margin, len(of), color=style.EMPTY, linewidth=0))
            ax.vlines(0, y, y + len(of), color=style.INK, linewidth=0.8)
            for row in of.to_dict("records"):
                name = label(row["contrast"]).replace(" minus ", " \N{MINUS SIGN} ")
                name += f", {label(row['metric'])}" * (of["metric"].nunique() > 1)
                ax.text(-0.04, y + 0.5, name, ha="right", **place)
                quiet = {"weight": "bold"} if row["verdict"] in ("yes", "no") else style.QUIET
                ax.text(1.04, y + 0.5, row["verdict"], **place | quiet)
                look = {"elinewidth": 1, "zorder": 3, "clip_on": False} | _contrast_look(row["verdict"])
                xerr = style.ends(row["difference"], row["low"], row["high"])
                ax.errorbar(row["difference"], y + 0.5, xerr=xerr, **look)
                y += 1
            y += 0.8
        ends = np.nanmax(pd.concat([of for _, of in column])[["difference", "low", "high"]].abs().to_numpy(), initial=0)
        reach = min(np.ceil(4 * max(ends, 0.1)) / 4, 1.0)
        ax.set(xlim=(-reach, reach), ylim=(rows, 0), yticks=())
        ax.xaxis.set_major_locator(MultipleLocator(reach / 2 if reach < 1 else 1.0))
        ax.xaxis.set_major_formatter(lambda share, _: points(share))
    sns.despine(fig, left=True)
    style.outer_labels(fig, "", "difference in percentage points, with its 95 % interval over bases")
    looks = {"decided by the plan": "", BUILT_IN: BUILT_IN, EXPLORATORY: EXPLORATORY}
    there = set(run["verdict"].where(run["verdict"].isin([BUILT_IN, EXPLORATORY]), ""))
    keys = [style.dot_handle(name, **_contrast_look(kind)) for name, kind in looks.items() if kind in there]
    keys += [Patch(color=style.EMPTY, label="up to the margin, on the side of yes")]
    return Drawn(style.add_legend(fig, keys), run.drop(columns="n_seeds"), _contrasts_in_words(contrasts))


def _contrast_look(verdict: str) -> dict:
    own = {BUILT_IN: {"color": "#7F7F7F", "marker": "s"}, EXPLORATORY: style.HOLLOW}.get(verdict, {})
    return style.OURS | {"markersize": 4} | own


def _contrasts_in_words(table: pd.DataFrame) -> dict:
    """How many contrasts have each verdict, and of which questions; of the exploratory ones the side of 0; sizes."""
    run, counted = table[table["verdict"] != NOT_RUN], table["verdict"].value_counts()
    n_of = table.groupby("question", sort=False).size()
    named = {
        verdict: [f"{label(name)} ({n} of {n_of[name]})" for name, n in of["question"].value_counts(sort=False).items()]
        for verdict, of in table.groupby("verdict")
    }
    signed = side_of_zero(run) * np.where(run["direction"] == "up", 1, -1)
    signed = signed[run["verdict"] == EXPLORATORY]
    judges = run.loc[~run["measure"].str.endswith("_score") & (run["measure"] != BLOCKED), "metric"]
    sizes = {"base models": "n_bases", "training seeds of each": "n_seeds", "intents": "n_intents"}
    return {
        "n": ", ".join(f"{what} {span(run[column])}" for what, column in sizes.items()),
        "judge": ", ".join(dict.fromkeys(judges)),
        "counted": {verdict: int(counted.get(verdict, 0)) for verdict in ("yes", "no", "undecided")},
        "named": {verdict: named[verdict] for verdict in ("yes", "no") if verdict in named},
        "built_in": named.get(BUILT_IN, []),
        "n_exploratory": len(signed),
        "sides": (int((signed > 0).sum()), int((signed < 0).sum())),
        "extremes": " to ".join(
            f"{points(row['difference'])} ({label(row['question'])}, {label(row['contrast'])})"
            for row in run.sort_values("difference").iloc[[0, -1]].to_dict("records")
        ),
        "n_not_run": len(table) - len(run),
    }


FIGURES = {  # each figure's function and the tables it draws from
    "planned_contrasts": (planned_contrasts, "contrasts"),
    "what_each_step_adds": (what_each_step_adds, "by_run"),
    "erosion_heatmap": (erosion_heatmap, "comparisons"),
    "repair_heatmap": (repair_heatmap, "comparisons"),
}

"""Figures of trade-offs: safety against helpfulness, all mitigations, transfer between forms, runs side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from studylib.analysis.comparisons import ARM_ORDER, arm_marks, pareto_front
from studylib.analysis.rates import one_dose, one_row_per_mark
from studylib.analysis.readable import arm_label, arm_with_dose, cell_words, label, span
from studylib.figures import style
from studylib.figures.changes import attack_changes, change_heatmap, side_of_zero
from studylib.figures.rates import rows_of
from studylib.figures.style import Drawn, points
from studylib.study.words import ARMS, FORMS, SAFETY_DATA, STYLES, TASKS, StudyError

ROWS = (*(f"{form}_only" for form in FORMS), "multitask", "multitask_twins")  # of the transfer matrix, top to bottom
PANELS = {  # of the plane, from left to right: in words, axis label, and what is counted
    "over_refusal_rate": ("over-refusal", "over-refusal rate, %\n(benign twins", "benign twins"),
    "j": ("J", "J, percentage points\n(twin pairs", "pairs of a harmful prompt and its twin"),
    "task_score": ("score on the tuned task", "score on the tuned task, %\n(held-out prompts", "prompts of the task"),
}
# Data of one form have that form's colour; the rest is of Tol's muted set, distinct with any colour vision.
_FORM_MARKERS = dict(zip(FORMS, "<>hD", strict=True))
LOOKS = {
    **{arm: style.arm_look(arm) for arm in SAFETY_DATA},
    "system_prompt": {"color": "#555555", "marker": "p"},
    **{f"{form}_only": {"color": style.FORM_COLOURS[form], "marker": _FORM_MARKERS[form]} for form in FORMS},
    "multitask_twins": {"color": "#882255", "marker": "P"},
    "multitask_midway": {"color": "#332288", "marker": "X"},
    "multitask_after": {"color": "#117733", "marker": "v"},
    "scaled": {"color": "#8A8A20", "marker": "d"},
}
RUN_MARKS = ("o", "s", "^", "D", "v", "P")
RUN_COLOURS = (*style.FORM_COLOURS.values(), style.SAFETY_COLOURS["generic"], style.SAFETY_COLOURS["multitask"])


def safety_vs_helpfulness(attack: pd.DataFrame, helpfulness: pd.DataFrame) -> Drawn:
    """The attack success rate over all forms (y) against the score on the tuned task (x), with the Pareto front.

    Both with intervals; panels by calibration (rows) and tuned task, as each task has its own metric. The star is the
    aligned model, its x the score on the same task. Hollow: possibly on the front, the step line (`task_plane`).
    Raises ValueError where no tuned model has both, and when a task has several metrics: keep one.
    """
    rows, table = rows_of("safety_vs_helpfulness", attack, forms=["all"]), task_plane(attack, helpfulness)
    x_label = f"score on the tuned task (%; n = {span(table['n_score'])} per point)"
    fig, panels = style.panels_of(rows, style.tasks_of(rows, tuned=True), style.ATTACK, x_label, bottom=0.65, top=0.9)
    left = min(max(np.floor(10 * table[["score", "score_low"]].min(axis=None) - 0.3) / 10, 0), 0.9)  # no empty half
    for calibration, task, ax in panels:
        part = style.rows_at(table[table["panel"] == task], calibration)
        part = part.rename(columns={"score": "x", "score_low": "x_low", "score_high": "x_high"})
        _draw_front(ax, part, left)
        _draw_marks(ax, part, markersize=5)
        ax.set(xlim=(left, 1), xticks=(left, (left + 1) / 2, 1))
        ax.xaxis.set_major_formatter(style.in_percent)
        if ax.get_subplotspec().is_last_row():
            for place, end in (("left", 0), ("right", -1)):  # apart from the next panel's
                ax.get_xticklabels()[end].set_ha(place)
            ax.set_xlabel("".join(map(label, table.loc[table["panel"] == task, "metric"].head(1))))
        style.mark_empty(ax, part)
    arrow = {"arrowstyle": "->", "color": "#666666"}
    where = {"xy": (0.38, 0.06), "xytext": (-33, 20), "xycoords": "axes fraction", "textcoords": "offset points"}
    fig.axes[0].annotate("better", **where, size="small", color="#666666", arrowprops=arrow)
    keys = [*style.arm_handles(table), style.dot_handle("aligned model", **style.STAR), *_front_keys(table)]
    tuned = table[table["finetune_task"] != "none"]
    arms = tuned.groupby(["panel", "style", "system_prompt"])["safety_data"].transform("nunique")
    if compared := bool(arms.gt(1).any()):
        tuned = tuned[arms > 1]
    on_front = tuned[tuned["front"] == "yes"]
    words = {"n_tuned": len(tuned), "n_front": len(on_front), "n_undecided": int(_undecided(tuned).sum())}
    words["front"] = {arm: int((on_front["safety_data"] == arm).sum()) for arm in tuned["safety_data"].unique()}
    return Drawn(style.add_legend(fig, keys, rows=2), rows, style.facts(rows) | words | {"compared": compared})


def task_plane(attack: pd.DataFrame, helpfulness: pd.DataFrame) -> pd.DataFrame:
    """One row per mark of safety_vs_helpfulness: rate, low, high; score, score_low, score_high, n_score; panel; front.

    `panel` is the tuned task whose score it is; the aligned model has a row in each. `front` is that of
    `comparisons.pareto_front` within panel and calibration. A mark without rate or score has no row.
    """
    table = rows_of("safety_vs_helpfulness", attack, forms=["all"])
    scores = helpfulness[(helpfulness["measure"] == "task_score") & helpfulness["form"].isin(TASKS)]
    scores = one_row_per_mark(one_dose(scores))
    keys = ["finetune_task", "style", "system_prompt", "safety_data"]
    names = {"form": "panel", "value": "score", "low": "score_low", "high": "score_high", "n": "n_score"}
    scores = scores[[*keys, "metric", *names]].rename(columns=names)
    points = table.merge(scores, on=keys)
    own = (points["finetune_task"] == points["panel"]) | (points["finetune_task"] == "none")
    known = points["rate"].notna() & points["score"].notna()
    points = points[own & known & points["panel"].isin(table["finetune_task"])].reset_index(drop=True)
    known = (points["finetune_task"] != "none").any()
    style.require(known, "safety_vs_helpfulness", "no tuned model has both a rate and a score")
    front = pd.Series("yes", points.index)
    for _, part in points.groupby(["panel", "style", "system_prompt"], sort=False):
        front[part.index] = pareto_front(part)
    return points.assign(front=front)


def transfer_matrix(comparisons: pd.DataFrame) -> Drawn:
    """The change of the attack success rate by safety data of one form alone, in points, by form of the harmful prompt.

    Rows: data of each form, of all forms, and of all with twins; the same number of rows, no system prompt. Panels by
    tuned task and style; cells, marks and errors as in `changes.erosion_heatmap`.
    """
    table = transfers(comparisons)
    panels = [
        (f"tuned on {label(task)}, {style.style_label(trained)}", part)
        for task in style.tasks_of(table, tuned=True)
        for trained in STYLES
        if len(part := table[(table["finetune_task"] == task) & (table["style"] == trained)])
    ]
    names = {arm: arm_label(arm) for arm in ROWS if arm in set(table["safety_data"])}
    drawn = change_heatmap(table, panels, "safety_data", names, "safety data", left=1.85)
    alone = table[(table["n"] > 0) & table["difference"].notna() & table["safety_data"].isin(ROWS[: len(FORMS)])]
    own = alone["safety_data"] == alone["form"].astype(str) + "_only"
    parts = {"of the same form": alone[own], "of the other forms": alone[~own & (alone["form"] != "all")]}
    transfer = [
        {
            "where": where,
            "change": " to ".join(dict.fromkeys(map(points, part["difference"].agg(["min", "max"])))),
            "n_beside_0": int(side_of_zero(part).abs().sum()),
            "n": len(part),
        }
        for where, part in parts.items()
        if len(part)
    ]
    return drawn._replace(words=drawn.words | {"transfer": transfer})


def transfers(comparisons: pd.DataFrame) -> pd.DataFrame:
    """The rows of `comparisons` that the transfer matrix shows: attack success, no system prompt, ROWS at one dose.

    The dose is the most frequent one of the data of one form. Raises ValueError where no such data have a pair, and
    where several judges or models have one place.
    """
    rows = attack_changes(comparisons, "mitigation", "arm")
    rows = rows[rows["safety_data"].isin(ROWS) & ~rows["system_prompt"].astype(bool)]
    alone = rows[rows["safety_data"].isin(ROWS[: len(FORMS)])]
    known = (alone["n"] > 0).any()
    style.require(known, "transfer_matrix", "no model was tuned with safety data of one form alone")
    places = alone[["finetune_task", "style"]].drop_duplicates()  # where such data were tried
    return one_row_per_mark(rows[rows["safety_fraction"] == alone["safety_fraction"].mode().min()].merge(places))


def arms_plane(attack: pd.DataFrame, helpfulness: pd.DataFrame) -> Drawn:
    """The attack success rate (y) of every arm and dose against over-refusal, J and task score (x), with Pareto fronts.

    A row of panels per tuned task; chat style, no system prompt, all forms, with intervals. Doses of multitask data are
    joined, and so is the adapter scaled down. The star is the aligned model; hollow: undecided whether the mark is on
    the front. Raises ValueError as `plane` does.
    """
    table = plane(attack, helpfulness)
    tasks = [task for task in FORMS if task in set(table["task"])]
    shown = [panel for panel in PANELS if panel in set(table["panel"])]
    margins = {"right": 0.5, "bottom": 0.6, "top": 0.95, "wspace": 0.14}
    fig, axes = style.new_figure(len(tasks), len(shown), 3.0, sharex="col", **margins)
    top = min(np.ceil(10 * table["high"].max()) / 10, 1)
    for i, task in enumerate(tasks):
        for ax, panel in zip(axes[i], shown, strict=True):
            part = table[(table["task"] == task) & (table["panel"] == panel)]
            _draw_front(ax, part, less=panel == "over_refusal_rate")
            _join(ax, part, "multitask", "-")
            _join(ax, part, "scaled", ":")
            if panel == shown[-1]:
                _label_doses(ax, part, 0.04 * top)
            _draw_marks(ax, part, markersize=5.5, elinewidth=0.5)
            style.mark_empty(ax, part)
    style.title_rows(axes, [f"tuned on {label(task)}" for task in tasks])
    axes[0, 0].set_ylim(0, top)
    axes[0, 0].yaxis.set_major_formatter(style.in_percent)
    for ax, panel in zip(axes[-1], shown, strict=True):
        of = table[table["panel"] == panel]
        if panel == "over_refusal_rate":
            ax.set_xlim(0, min(max(np.ceil(4 * of["x_high"].max()) / 4, 0.25), 1))
        else:
            ax.set_xlim(min(np.floor(4 * of["x_low"].min()) / 4, 0.75), 1)
        prune = None if panel == shown[0] else "lower"
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], prune=prune))
        ax.xaxis.set_major_formatter(style.in_percent)
        ax.set_xlabel(f"{PANELS[panel][1]}, n = {span(of['n_x'])})")
    tuned = table[table["finetune_task"] != "none"]
    style.outer_labels(fig, f"attack success rate (%, all forms, n = {span(tuned['n'])})", "")
    handles = [style.dot_handle("aligned model", **style.STAR)] if len(tuned) < len(table) else []
    present = [arm for arm in ARM_ORDER if arm in set(tuned["safety_data"])]
    handles += [style.dot_handle(arm_label(arm), markersize=5, **LOOKS[arm]) for arm in present]
    handles += _front_keys(table)
    fig = style.add_legend(fig, handles, rows=-(-len(handles) // 4))
    return Drawn(fig, tuned.drop(columns="safety_fraction"), _plane_in_words(tuned, present))


def plane(attack: pd.DataFrame, helpfulness: pd.DataFrame) -> pd.DataFrame:
    """The rows of `comparisons.arm_marks` of the tasks on which other arms or doses than the grid's were tried.

    Raises ValueError where there are none, and as `comparisons.arm_marks` does.
    """
    rows = arm_marks(attack, helpfulness)
    grids = rows["safety_data"].isin(SAFETY_DATA)
    doses = rows[grids & (rows["safety_fraction"] > 0)].groupby("task", observed=True)["safety_fraction"].nunique()
    tried = {*rows.loc[rows["safety_data"].isin(ARMS), "task"], *doses.index[doses > 1]}
    style.require(len(tried) > 0, "arms_plane", "no other mitigation and no other dose than the grid's has run")
    return rows[rows["task"].isin(tried)].reset_index(drop=True)


def _plane_in_words(tuned: pd.DataFrame, arms: list[str]) -> dict:
    """Of each task the arms with least and most attack success and those on the first panel's front; what is shown."""
    first = next(panel for panel in PANELS if panel in set(tuned["panel"]))
    others = tuned.loc[~tuned["safety_data"].isin(["none", "system_prompt", "multitask", "scaled"]), "safety_fraction"]
    counted = {words[2]: tuned.loc[tuned["panel"] == panel, "n_x"] for panel, words in PANELS.items()}
    counted = [f"{span(n)} to {what}" for what, n in counted.items() if len(n)]
    tasks = []
    for task, part in tuned[tuned["panel"] == first].groupby("task", sort=False, observed=True):
        part = part.assign(arm=list(map(arm_with_dose, part["safety_data"], part["safety_fraction"])))
        extremes = style.extremes(part, "rate", name=lambda row, **_: row["arm"])
        front = list(part.loc[part["front"] == "yes", "arm"])
        tasks.append({"task": label(task), "extremes": extremes, "front": front, "n_arms": len(part)})
    return {
        "tasks": tasks,
        "arms": arms,
        "axes": [words for panel, (words, *_) in PANELS.items() if panel in set(tuned["panel"])],
        "not_known": [words for panel, (words, *_) in PANELS.items() if panel not in set(tuned["panel"])],
        "other_doses": span(100 * others) if len(others) else "",
        "n": "; ".join([f"n = {span(tuned['n'])} responses to harmful prompts", *counted]),
    }


def _draw_marks(ax, table: pd.DataFrame, **look) -> None:
    """Marks with both intervals, hollow where it is undecided whether they are on the front; the star on top."""
    last = table.sort_values("finetune_task", key=lambda task: task == "none", kind="stable")
    for row, undecided in zip(last.to_dict("records"), _undecided(last), strict=True):
        own = look | (style.STAR if row["finetune_task"] == "none" else LOOKS[row["safety_data"]])
        width = style.ends(row["x"], row["x_low"], row["x_high"])
        style.draw_point(ax, row["x"], row, "rate", xerr=width, **own | (style.HOLLOW if undecided else {}))


def _undecided(table: pd.DataFrame) -> pd.Series:
    return ~table["front"].isin(["yes", "no", ""])


def _front_keys(table: pd.DataFrame) -> list[Line2D]:
    look = {"color": style.INK, "marker": "o", "markersize": 5, **style.HOLLOW}
    possibly = [style.dot_handle("possibly on the front", **look)] if _undecided(table).any() else []
    return [Line2D([], [], label="Pareto front", **style.FRONT), *possibly]


def _draw_front(ax, table: pd.DataFrame, left: float = 0, less: bool = False) -> None:
    """The step line between dominated marks and what no mark dominates; `less`: also on the x axis less is better."""
    front = table[table["front"] == "yes"].sort_values("x")
    x, rate = list(front["x"]), list(front["rate"])
    if x and less:
        ax.step([x[0], *x, 1], [1, *rate, rate[-1]], where="post", **style.FRONT)
    elif x:
        ax.step([left, *x, x[-1]], [rate[0], *rate, 1], where="pre", **style.FRONT)


def _join(ax, table: pd.DataFrame, arm: str, line: str) -> None:
    """A line from no safety data through the arm's doses."""
    own = table[table["safety_data"] == arm].sort_values("safety_fraction")
    path = pd.concat([table[(table["safety_data"] == "none") & (table["finetune_task"] != "none")], own])
    if len(own):
        ax.plot(path["x"], path["rate"], line, color=LOOKS[arm]["color"], linewidth=1.1, zorder=2.6)


def _label_doses(ax, table: pd.DataFrame, apart: float) -> None:
    """Labels at the panel's edges, `apart` on the y axis, with a line to the mark: the dose at the right of multitask
    data, at the left of the scaled adapter the scale that is left."""
    for arm, edge, side in (("multitask", 0.99, "right"), ("scaled", 0.01, "left")):
        look, height = {"color": LOOKS[arm]["color"], "zorder": 2.4}, 0.0
        for row in table[table["safety_data"] == arm].sort_values("rate").to_dict("records"):
            share = row["safety_fraction"] if arm == "multitask" else 1 - row["safety_fraction"]
            height = max(height + apart, row["rate"])
            place = {"xytext": (edge, height), "textcoords": ax.get_yaxis_transform(), "ha": side, "va": "center"}
            line = {"arrowstyle": "-", "linewidth": 0.6, "linestyle": ":", "shrinkA": 0, **look}
            words = f"{100 * share:g} %"
            ax.annotate(words, (row["x"], row["rate"]), arrowprops=line, size="x-small", **place, **look)


def runs_side_by_side(rows: pd.DataFrame, names: Sequence[str]) -> Drawn:
    """A dot per run with its interval by tuned task; panels by calibration (rows) and safety data (columns).

    `rows` are those of one measure and form (`analysis.runs.of_measure`), `names` the runs in the order of the legend,
    also those without rows. What was not run leaves its place empty. Raises StudyError for more than six runs, which
    have no more colours, and for several judges of one run.
    """
    if len(names) > len(RUN_COLOURS):
        raise StudyError(f"A figure shows up to {len(RUN_COLOURS)} runs, these are {len(names)}: name fewer in `runs`.")
    if rows.duplicated(["run", "finetune_task", "style", "system_prompt", "safety_data"]).any():
        raise StudyError("Several judges of one run would be drawn at one place: see the tables.")
    measure, form = rows[["measure", "form"]].iloc[0]
    tasks, calibrations = style.tasks_of(rows), style.calibrations_of(rows)
    arms = [arm for arm in SAFETY_DATA if arm in set(rows["safety_data"])]
    columns = min(3, len(names))  # of the legend
    y = style.OVER_REFUSAL if measure == "over_refusal_rate" else style.ATTACK
    x = f"tuned on ({label(form)}; {style.n_of(rows)} per point)"
    top = 0.35 + 0.18 * -(-len(names) // columns)
    fig, axes = style.calibration_rows(calibrations, list(map(style.safety_label, arms)), y, x, top=top)
    looks = [{"color": colour, "marker": marker} for colour, marker in zip(RUN_COLOURS, RUN_MARKS, strict=True)]
    for row in rows.to_dict("records"):
        ax = axes[calibrations.index((row["style"], row["system_prompt"])), arms.index(row["safety_data"])]
        i = names.index(row["run"])
        x = tasks.index(row["finetune_task"]) + 0.76 * ((i + 0.5) / len(names) - 0.5)
        style.draw_point(ax, x, row, "value", markersize=3.5, **looks[i])
    for ax in axes.flat:
        style.slanted_ticks(ax, tasks)
        style.mark_empty(ax, ax.containers)
    handles = [style.dot_handle(name, markersize=4.5, **looks[i]) for i, name in enumerate(names)]
    fig = style.add_legend(fig, handles, rows=-(-len(handles) // columns))
    judged = rows.groupby("run", sort=False)["judge"].first().reindex(names).fillna("nothing to draw")
    judges = "; ".join(f"{name}: {judge}" for name, judge in judged.items())
    words = {
        "measure": label(measure).capitalize(),
        "form": label(form),
        "n_runs": len(names),
        "judge": judged.iloc[0] if judged.nunique() == 1 else judges,
        "extremes": style.extremes(rows, "value", True, lambda row, form: f"{row['run']}, {cell_words(row, form)}"),
    }
    return Drawn(fig, rows, words)


FIGURES = {  # each figure's function and the tables it draws from
    "transfer_matrix": (transfer_matrix, "comparisons"),
    "arms_plane": (arms_plane, "attack_success", "helpfulness"),
    "safety_vs_helpfulness": (safety_vs_helpfulness, "attack_success", "helpfulness"),
}

"""A figure of the results of finished runs beside each other, with its caption; see `between_runs`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from studylib.analysis.rates import one_dose
from studylib.analysis.readable import calibration_label, cell_words, label, span
from studylib.analysis.runs import ATTACK, Run, all_results, known_by
from studylib.analysis.stats import CONFIDENCE, detectable_difference
from studylib.figures import style
from studylib.figures.caption import doses_said, n_of, seeds_said
from studylib.study.words import SAFETY_DATA, StudyError

AXES = {ATTACK: style.ATTACK, "over_refusal_rate": style.OVER_REFUSAL}
MARKS = ("o", "s", "^", "D", "v", "P")
COLOURS = (*style.FORM_COLOURS.values(), style.SAFETY_COLOURS["generic"], style.SAFETY_COLOURS["multitask"])


def draw(runs: Sequence[Run], folder: Path, measure: str = ATTACK, form: str = "all", model: str = "") -> Figure:
    """The figure, also written to the folder as `<measure>.png` and `.svg`, with its caption and alternative text."""
    drawn = figure(runs, measure, form, model)
    style.save(drawn, folder, measure, *caption(runs, measure, form, model))
    return drawn


def figure(runs: Sequence[Run], measure: str = ATTACK, form: str = "all", model: str = "") -> Figure:
    """A dot per run with its interval by tuned task; panels by calibration (rows) and safety data (columns).

    `measure` is attack_success_rate or over_refusal_rate. Where a run has several models, `model` names one; empty: the
    first that two runs have, else the first. Where it has several shares of safety data, one is shown
    (`captions.one_dose`); rival mitigations are in the tables alone. What was not run leaves its place empty.
    Raises StudyError for more than six runs, which colours would not tell apart, and where there is nothing to draw.
    """
    rows = _shown(runs, measure, form, model)
    tasks, calibrations, names = style.tasks_of(rows), style.calibrations_of(rows), [run.name for run in runs]
    arms = [arm for arm in SAFETY_DATA if arm in set(rows["safety_data"])]
    columns = min(3, len(runs))  # of the legend
    margins = {"right": 0.5, "bottom": 1.1, "top": 0.35 + 0.18 * -(-len(runs) // columns)}
    fig, axes = style.new_figure(len(calibrations), len(arms), 1.9 if len(calibrations) == 1 else 1.25, **margins)
    for row in rows.to_dict("records"):
        ax = axes[calibrations.index((row["style"], row["system_prompt"])), arms.index(row["safety_data"])]
        i = names.index(row["run"])
        x = tasks.index(row["finetune_task"]) + 0.76 * ((i + 0.5) / len(runs) - 0.5)
        style.draw_point(ax, x, row, "value", color=COLOURS[i], marker=MARKS[i], markersize=3.5)
    for ax, arm in zip(axes[0], arms, strict=True):
        ax.set_title(f"{'no' if arm == 'none' else arm} safety data", size="medium")
    for ax, calibration in zip(axes[:, -1], calibrations, strict=True):
        style.title_row(ax, calibration_label(*calibration, separator="\n"))
    for ax in axes.flat:
        style.slanted_ticks(ax, tasks)
        style.say_empty(ax, ax.containers)
    axes[0, 0].set(**style.UNIT_AXIS)
    y = AXES[measure] if len(calibrations) > 2 else AXES[measure].replace(" (", "\n(")
    style.outer_labels(fig, y, f"tuned on ({label(form)}; {n_of(rows)} per point)")
    handles = [
        style.dot_handle(name, color=COLOURS[i], marker=MARKS[i], markersize=4.5) for i, name in enumerate(names)
    ]
    fig.legend(handles=handles, frameon=False, borderaxespad=0.1, loc="upper center", ncols=columns)
    return fig


def caption(runs: Sequence[Run], measure: str = ATTACK, form: str = "all", model: str = "") -> tuple[str, str]:
    """Caption and alternative text of the figure of the same arguments; every number is of the rows that it shows."""
    rows = _shown(runs, measure, form, model)
    title = f"{label(measure).capitalize()} by tuned task, calibration and safety data in each of {len(runs)} runs"
    whose = rows.groupby("run", sort=False)["judge"].first().reindex([run.name for run in runs])
    judges = "; ".join(f"{name}: {'nothing to draw' if pd.isna(judge) else judge}" for name, judge in whose.items())
    judges = whose.iloc[0] if whose.nunique(dropna=False) == 1 else judges
    points = 100 * detectable_difference(rows["n_effective"].to_numpy())
    seen = f"Smallest difference seen with 80 % power, near 50 %: {span(points)} points. "
    left_out = f"Left out: {rows['n_unjudged'].sum()} responses that could not be judged. "
    more = "".join(f"{said} " for said in doses_said(rows) + seeds_said(rows))
    text = (
        f"{title}, {label(form)}. Each mark: {n_of(rows)} responses, worth {span(rows['n_effective'])} independent. "
        f"{more}Judge: {judges}. {left_out if rows['n_unjudged'].any() else ''}"
        f"Intervals: {100 * CONFIDENCE:.0f} % Wilson, clustered by prompt and training seed. "
        f"{'' if np.isnan(points).all() else seen}"
        "Which differences are told apart is in the table `differences`, by Newcombe's interval of the difference."
    )
    least, most = (rows.loc[i] for i in (rows["value"].idxmin(), rows["value"].idxmax()))
    ends = [f"{100 * row['value']:.0f} % ({row['run']}, {cell_words(row, form=True)})" for row in (least, most)]
    return text, f"{title}, from {ends[0]} to {ends[1]}."


def _shown(runs: Sequence[Run], measure: str, form: str, model: str) -> pd.DataFrame:
    """The rows that the figure shows."""
    if measure not in AXES:
        raise StudyError(f"There is no figure of {measure!r}: there are {' and '.join(AXES)}.")
    if len(runs) > len(COLOURS):
        raise StudyError(f"A figure shows up to {len(COLOURS)} runs, these are {len(runs)}: name fewer in `runs`.")
    rows = all_results(runs)
    several, doses = (word in known_by(rows) for word in ("model", "safety_fraction"))
    rows = rows[(rows["measure"] == measure) & (rows["form"] == form)]
    if several and not model and len(rows):
        model = (rows.groupby("model", sort=False)["run"].nunique() > 1).idxmax()
    rows = rows[rows["model"] == model] if model else rows
    rows = rows[rows["safety_data"].isin(SAFETY_DATA)] if "safety_data" in rows else rows
    rows = one_dose(rows) if doses else rows
    if rows.empty:
        of = f" of the model {model!r}" if model else ""
        raise StudyError(f"There is nothing to draw: no run has {label(measure)} in the form {form!r}{of}.")
    if rows.duplicated(["run", "finetune_task", "style", "system_prompt", "safety_data"]).any():
        raise StudyError("Several judges of one run would be drawn at one place: see the tables.")
    return rows

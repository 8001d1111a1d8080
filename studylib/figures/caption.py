"""What each figure shows, and its caption and alternative text: every number computed from the table that is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from studylib.analysis.rates import TOGETHER, one_dose, one_row_per_mark
from studylib.analysis.readable import cell_words, label, span
from studylib.analysis.stats import CONFIDENCE, detectable_difference
from studylib.study.words import FORMS, SAFETY_DATA

TICKS = "Black ticks: the aligned model in the same calibration."


@dataclass(frozen=True)
class Shown:
    """What a figure shows of its (first) table, and the parts of its caption that are not computed."""

    title: str
    key: str
    value: str = "rate"
    forms: tuple = FORMS
    safety_data: tuple = ("none",)
    unit: str = "responses"  # what n counts


_GUARDS = {"text_only": "text only, on those of the text form", "all_forms": "all forms, on those of every form"}
_BY_FORM = "by tuned task, calibration and form of the prompt"
_ARMS = "with no, generic and multitask safety data"
_GEMMA = "Hollow: the published counts of Gemma, judged by GPT-4o. Dashed: no form weaker than another. Grey band: the 73-92 % that the paper states."
FIGURES = {
    "attack_success_by_form": Shown(f"Attack success rate {_BY_FORM}", TICKS),
    "safety_data_comparison": Shown(f"Attack success rate {_ARMS}", TICKS, safety_data=SAFETY_DATA),
    "safety_vs_helpfulness": Shown(
        "Attack success rate, all forms pooled, against the score on the tuned task",
        "Towards the lower right is better. Star: the aligned model. Grey line: the Pareto front, which joins what no other mark "
        "of its panel beats on both; hollow: beaten, but with intervals that overlap on both axes with every mark "
        "that beats it, so whether it belongs to the front is undecided; filled beside the line: beaten. All numbers here are of the rate.",
        forms=("all",),
        safety_data=SAFETY_DATA,
    ),
    "answered_share": Shown(
        "Share of the answered harmful prompts that are translation or classification",
        _GEMMA,
        value="share",
        forms=(TOGETHER,),
        unit="answered prompts",
    ),
    "over_refusal": Shown(f"Over-refusal on benign twins {_ARMS}", TICKS, "value", safety_data=SAFETY_DATA),
}


def caption(name: str, *frames: pd.DataFrame) -> tuple[str, str]:
    """Caption and alternative text of a figure, by the name of its function, from the tables that it shows.

    Every number is computed from them; most figures need the first alone. Raises as the figure does, and when all its
    values are NaN.
    """
    from studylib.figures import captions_arms, captions_change, captions_parts  # late: they are made of what is below

    if name == "guard_heatmap":
        return _guards_caption(frames[0])
    for module in (captions_change, captions_parts, captions_arms):
        if name in module.CAPTIONS:
            return module.CAPTIONS[name](*frames)
    table, shown = rows_of(name, frames[0]), FIGURES[name]
    drawn = table[table[shown.value].notna()]
    if drawn.empty:
        raise ValueError(f"{name} has nothing to draw: all values are NaN")
    aligned = drawn["finetune_task"] == "none"
    judge = " and ".join(sorted(set(drawn["judge" if "judge" in drawn else "metric"])))
    text = [f"{shown.title}. {shown.key} Each mark: {n_of(drawn)} {shown.unit}."]
    text += doses_said(drawn) + seeds_said(drawn) + [f"Judge: {judge}."]
    if "n_unjudged" in drawn and drawn["n_unjudged"].sum():
        text.append(f"Left out: {drawn['n_unjudged'].sum()} responses that could not be judged.")
    text += missing_said(table, shown.value, shown.safety_data)
    text.append(f"Intervals: {100 * CONFIDENCE:.0f} % Wilson, clustered by prompt and training seed;")
    text.append(f"a mark is worth {span(drawn['n_effective'])} independent {shown.unit}.")
    points = 100 * detectable_difference(drawn["n_effective"].to_numpy())
    if not np.isnan(points).all():
        text.append(f"Smallest difference seen with 80 % power, near 50 %: {span(points)} points.")
    text.append("Marks whose intervals overlap are not ranked.")
    alt = f"{shown.title}, {extremes(drawn, shown.value, len(shown.forms) > 1)}."
    alt += f" The aligned model: {span(100 * drawn.loc[aligned, shown.value])} %." if aligned.any() else ""
    return " ".join(text), alt


def _guards_caption(table: pd.DataFrame) -> tuple[str, str]:
    drawn = table[table["blocked_rate"].notna() & (table["form"] != "all")]
    if drawn.empty:
        raise ValueError("guard_heatmap has nothing to draw: all values are NaN")
    by_side = {side: rows for side, rows in drawn.groupby("side", sort=False)}
    reads = {"input": "prompts", "output": "responses", "both": "responses"}
    text = ["Share blocked in percent, by guard, side and form: of harmful prompts (left) and of benign twins (right)."]
    text += [
        "Input reads the prompt, output the response; both is what either blocks. Of the responses to harmful prompts "
        "only those that answer count, as a guard is right to pass a refusal; so a share of both can lie below that of "
        "input, which counts prompts."
    ]
    if embedded := [meaning for name, meaning in _GUARDS.items() if name in set(drawn["guard"])]:
        text.append(f"Fitted on the run's own training rows: {', '.join(embedded)}.")
    counted = [f"{side} n = {span(rows['n'])} {reads[side]}" for side, rows in by_side.items()]
    text.append(f"Each mark: {'; '.join(counted)}.")
    text.append(f"Judge: {' and '.join(sorted(set(drawn['judge'])))}.")
    if drawn["n_undecided"].sum():
        text.append(f"Left out: {drawn['n_undecided'].sum()} that a guard could not decide on.")
    text.append(f"Intervals are not drawn; they are in the table: {100 * CONFIDENCE:.0f} % Wilson, clustered.")
    points = 100 * detectable_difference(drawn["n_effective"].to_numpy())
    text.append(f"Smallest difference seen with 80 % power, near 50 %: {span(points)} points.")
    told = []
    for (guard, side), rows in drawn.groupby(["guard", "side"], sort=False):
        rates = [
            f"{span(100 * rows.loc[rows['prompt_set'] == kind, 'blocked_rate'])} % of {what}"
            for kind, what in (("harmful", "harmful prompts"), ("twin", "twins"))
        ]
        told.append(f"{label(guard)} on {side}: {' and '.join(rates)}")
    return " ".join(text), f"Blocked by form of the prompt, smallest to largest. {'; '.join(told)}."


def extremes(rows: pd.DataFrame, value: str, form: bool = False) -> str:
    """Smallest and largest value in percent with their cells, as in "from 3 % (aligned model, ...) to 80 % (tuned on ...)"."""
    ends = (rows.loc[rows[value].idxmin()], rows.loc[rows[value].idxmax()])
    return "from " + " to ".join(f"{100 * row[value]:.0f} % ({cell_words(row, form)})" for row in ends)


def rows_of(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the table that this figure shows, of one dose of the safety data (see `rates.one_dose`)."""
    shown = FIGURES[name]
    rows = frame[frame["form"].isin(shown.forms) & frame["safety_data"].isin(shown.safety_data)]
    if "measure" in rows:
        rows = rows[rows["measure"] == "over_refusal_rate"]
    if rows.empty:
        raise ValueError(f"{name} has nothing to draw: the table has no rows of the kind it shows")
    if len(shown.safety_data) > 1 and (rows["finetune_task"] == "none").all():
        raise ValueError(f"{name} has nothing to draw: the table has no tuned model")
    return one_row_per_mark(one_dose(rows))


def doses_said(rows: pd.DataFrame) -> list[str]:
    """A sentence on how much safety data the rows' models were tuned with; none where there is none."""
    doses = sorted(set(rows.loc[rows["safety_data"] != "none", "safety_fraction"]))
    return [f"Safety data: {' and '.join(f'{100 * dose:g}' for dose in doses)} % of the tuning rows."] if doses else []


def seeds_said(rows: pd.DataFrame) -> list[str]:
    """A sentence on the training seeds that are pooled; of a single seed, what its intervals leave out."""
    seeds = rows.loc[rows["finetune_task"] != "none", "n_seeds"]
    if seeds.empty:
        return []
    alone = " The intervals are of that one training run." if seeds.max() == 1 else ""
    return [f"Training seeds pooled: {span(seeds)}.{alone}"]


def missing_said(rows: pd.DataFrame, value: str, safety_data: tuple = ("none",)) -> list[str]:
    """Sentences on what is not drawn: kinds of safety data and cells that are not in the table, marks without a value."""
    tuned = rows[rows["finetune_task"] != "none"]
    arms = [arm for arm in safety_data if arm in set(tuned["safety_data"])]
    names = ["finetune_task", "style", "system_prompt", "safety_data"]
    present = set(tuned[names].drop_duplicates().itertuples(index=False, name=None))
    styles = set(rows[["style", "system_prompt"]].drop_duplicates().itertuples(index=False, name=None))
    absent = len(set(tuned["finetune_task"])) * len(styles) * len(arms) - len(present)
    text = [f"Not run: {arm} safety data." for arm in safety_data if arm not in arms and arm != "none"]
    text += ["Not run: tuning without safety data."] if len(tuned) and "none" not in arms else []
    text += ["Not run: the aligned model."] if len(tuned) == len(rows) else []
    text += [f"Left empty, not run: {absent} cells."] if absent else []
    unknown = int(rows[value].isna().sum())
    return text + ([f"Left empty, nothing judged: {unknown} marks."] if unknown else [])


def n_of(table: pd.DataFrame) -> str:
    """Smallest and largest n, of tuned models and the aligned one: "n = 148-150, aligned model 50"."""
    aligned = table["finetune_task"] == "none"
    return "n = " + ", aligned model ".join(span(table.loc[r, "n"]) for r in (~aligned, aligned) if r.any())

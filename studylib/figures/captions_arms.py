"""What the figures of the rival mitigations show (see `plots_arms`): their rows, captions and alternative texts, all from the tables."""

from __future__ import annotations

import pandas as pd

from studylib.analysis.comparisons import arm_marks
from studylib.analysis.rates import one_row_per_mark
from studylib.analysis.readable import arm_with_dose, calibration_label, label, span
from studylib.analysis.stats import CONFIDENCE
from studylib.figures.caption import seeds_said
from studylib.figures.captions_change import TOLD, n_unknown, points
from studylib.study.words import ARMS, FORMS, SAFETY_DATA

ROWS = (
    *(f"{form}_only" for form in FORMS),
    "multitask",
    "multitask_twins",
)  # of the transfer matrix, from top to bottom
PANELS = {  # of the plane, from left to right
    "over_refusal_rate": "over-refusal",
    "general_score": "general score",
    "task_score": "score on the tuned task",
}


def transfers(comparisons: pd.DataFrame) -> pd.DataFrame:
    """The rows of `comparisons.comparisons` that the transfer matrix shows: attack success, no system prompt, ROWS at one dose.

    The dose is the most frequent one of the data of one form. Raises ValueError where no such data have a pair, and where several judges or models have one
    place.
    """
    rows = comparisons[comparisons["kind"].isin(["mitigation", "arm"]) & comparisons["safety_data"].isin(ROWS)]
    rows = rows[(rows["measure"] == "attack_success_rate") & rows["form"].isin([*FORMS, "all"])]
    rows = rows[~rows["system_prompt"].astype(bool)]
    alone = rows[rows["safety_data"].isin(ROWS[: len(FORMS)])]
    if not (alone["n"] > 0).any():
        raise ValueError("transfer_matrix has nothing to draw: no model was tuned with safety data of one form alone")
    places = ["finetune_task", "style"]  # where such data were tried
    rows = rows[rows["safety_fraction"] == alone["safety_fraction"].mode().min()].merge(alone[places].drop_duplicates())
    return one_row_per_mark(rows)


def _transfer_caption(comparisons: pd.DataFrame) -> tuple[str, str]:
    rows = transfers(comparisons)
    drawn = rows[rows["difference"].notna() & (rows["n"] > 0)]
    single, pooled = drawn[drawn["form"] != "all"], drawn[drawn["form"] == "all"]
    title = "Change of the attack success rate by safety data of one form alone (rows), by form of the harmful prompt (columns)"
    text = [
        f"{title}, in points, against the same tuning without safety data on the same prompts. Without system prompt."
    ]
    text.append(
        "Below: data of all forms, and those with benign twins for every other row; every arm has as many rows."
    )
    text.append(
        "Coloured: significant, p below 0.05 after Holm's adjustment over all comparisons of a kind (multitask "
        "data are of the kind mitigation, the others of the kind arm). In brackets, hatched: not significant."
    )
    if unknown := n_unknown(rows, "safety_data"):
        text.append(f"Grey, a dash: not run, no pairs, or too few prompts ({unknown} cells).")
    text.append(f"Each cell of a form: n = {span(single['n'])} pairs; all forms: {span(pooled['n'])}.")
    text.append(f"Safety data: {100 * rows['safety_fraction'].iloc[0]:g} % of the tuning rows.")
    text.append(f"Training seeds pooled: {span(drawn['n_seeds'])}. Judge: {' and '.join(sorted(set(rows['metric'])))}.")
    text.append(f"Intervals are not drawn; they are in the table `comparisons` ({100 * CONFIDENCE:.0f} %).")
    text.append(f"Smallest change seen with 80 % power: {span(100 * drawn['detectable'])} points.")
    said = []
    alone = single[single["safety_data"].isin(ROWS[: len(FORMS)])]
    own = alone["safety_data"] == alone["form"].astype(str) + "_only"
    for part, what in ((alone[own], "on prompts of the form that it has"), (alone[~own], "on the other forms")):
        if len(part):
            ends = f"{points(part['difference'].min())} to {points(part['difference'].max())}"
            said.append(f"{what} {ends} points, told apart {part['verdict'].isin(TOLD).sum()} of {len(part)}")
    return " ".join(text), f"{title}. Data of one form: {'; '.join(said)}."


def plane(attack: pd.DataFrame, helpfulness: pd.DataFrame) -> pd.DataFrame:
    """The rows of `comparisons.arm_marks` of the tuned tasks on which rivals of the grid's safety data were tried: other arms, other doses.

    Raises ValueError where there are none, and as `comparisons.arm_marks` does.
    """
    rows = arm_marks(attack, helpfulness)
    grids = rows["safety_data"].isin(SAFETY_DATA)
    doses = rows[grids & (rows["safety_fraction"] > 0)].groupby("task", observed=True)["safety_fraction"].nunique()
    tried = {*rows.loc[rows["safety_data"].isin(ARMS), "task"], *doses.index[doses > 1]}
    if not tried:
        raise ValueError(
            "arms_plane has nothing to draw: no other mitigation and no other dose than the grid's has run"
        )
    return rows[rows["task"].isin(tried)].reset_index(drop=True)


def _plane_caption(attack: pd.DataFrame, helpfulness: pd.DataFrame) -> tuple[str, str]:
    rows = plane(attack, helpfulness)
    tuned = rows[rows["finetune_task"] != "none"]
    shown = [words for panel, words in PANELS.items() if panel in set(tuned["panel"])]
    title = f"Attack success rate against, from left to right, {', '.join(shown)}"
    text = [
        f"{title}, of every mitigation and dose of the tasks on which rivals were tried; all forms pooled, {calibration_label('chat', False)}."
    ]
    text.append(
        "Better is towards the lower left for over-refusal, towards the lower right for scores. Star: the aligned model."
    )
    arms = set(tuned["safety_data"])
    if "multitask" in arms:
        text.append(
            "Pink line: multitask safety data, labelled at the left by its dose in % of the tuning rows; it begins at no safety data."
        )
    if "scaled" in arms:
        text.append(
            "Dotted: the adapter tuned without safety data, scaled down, labelled at the left by what is left of it in %."
        )
    if "system_prompt" in arms:
        text.append("System prompt only: tuned without safety data, tested with the system prompt.")
    others = tuned.loc[~tuned["safety_data"].isin(["none", "system_prompt", "multitask", "scaled"]), "safety_fraction"]
    text += [f"Other arms: {span(100 * others)} % of the tuning rows."] if len(others) else []
    text.append(
        "Grey line: the Pareto front of the tuned models of its panel; hollow: beaten, but with intervals that overlap with every mark that beats it, "
        "so whether it belongs to the front is undecided; filled beside the line: beaten."
    )
    text.append(f"Each mark: n = {span(tuned['n'])} responses to harmful prompts; {_counted(tuned)}.")
    text += [*seeds_said(tuned), f"Judge: {' and '.join(sorted(set(tuned['judge'])))}."]
    text += [f"Not known: {PANELS[panel]}." for panel in PANELS if panel not in set(tuned["panel"])]
    text.append(f"Intervals: {100 * CONFIDENCE:.0f} % Wilson, clustered by prompt and training seed.")
    text.append("Marks whose intervals overlap are not ranked.")
    said = []
    first = next(panel for panel in PANELS if panel in set(tuned["panel"]))
    for task, part in tuned[tuned["panel"] == first].groupby("task", sort=False, observed=True):
        ends = (part.loc[part["rate"].idxmin()], part.loc[part["rate"].idxmax()])
        words = [
            f"{arm_with_dose(row['safety_data'], row['safety_fraction'])} ({100 * row['rate']:.0f} %)" for row in ends
        ]
        best = [
            arm_with_dose(row["safety_data"], row["safety_fraction"])
            for row in rows[(rows["task"] == task) & (rows["panel"] == first) & (rows["front"] == "yes")].to_dict(
                "records"
            )
        ]
        said.append(
            f"tuned on {label(task)} from {words[0]} to {words[1]}, on the front of {PANELS[first]}: {', '.join(best)}"
        )
    return " ".join(text), f"{title}, {'; '.join(said)}."


def _counted(rows: pd.DataFrame) -> str:
    what = {
        "over_refusal_rate": "benign twins",
        "general_score": "general prompts",
        "task_score": "prompts of the task",
    }
    return "; ".join(
        f"{span(rows.loc[rows['panel'] == name, 'n_x'])} to {words}"
        for name, words in what.items()
        if name in set(rows["panel"])
    )


CAPTIONS = {"transfer_matrix": _transfer_caption, "arms_plane": _plane_caption}

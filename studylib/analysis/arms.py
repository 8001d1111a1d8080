"""Rival mitigations side by side: what each lowers, what it costs, and which of them one would ship."""

from __future__ import annotations

import numpy as np
import pandas as pd

from studylib.analysis.comparisons import MARGIN
from studylib.analysis.rates import one_row_per_mark
from studylib.analysis.readable import label, percent, span
from studylib.study.words import ARMS, FORMS, SAFETY_DATA, TASKS

PROMPTED = "system_prompt"  # the arm that is tuned without safety data and tested with the system prompt
ORDER = ("none", PROMPTED, *SAFETY_DATA[1:], *ARMS)
SHIP = f"ship: reduces attack success, every cost shown to be under {100 * MARGIN:.0f} percentage points"
LOWERS, NOT_SHOWN, BASE = "reduces attack success", "no significant reduction", "-"
COSTS, OPEN, UNTESTED = "costs", f"not shown to be under {100 * MARGIN:.0f} percentage points", "not tested"
_KEYS = ["finetune_task", "safety_data", "safety_fraction"]
_SCORES = {"over_refusal": "over_refusal_rate", "general": "general_score", "task": "task_score"}
_WORDS = {"over_refusal": "over-refusal", "general": "general score", "task": "score on the tuned task"}
_ONLY = tuple(f"{form}_only" for form in FORMS)


def arm_label(safety_data: str) -> str:
    """An arm as a reader would write it, as in "code alone"; other words as `captions.label` has them."""
    if safety_data in _ONLY:
        return f"{label(safety_data.removesuffix('_only'))} alone"
    return {
        "none": "no safety data",
        PROMPTED: "system prompt only",
        "multitask_twins": "multitask with twins",
        "multitask_midway": "refused midway",
        "multitask_after": "multitask afterwards",
        "scaled": "adapter scaled down",
    }.get(safety_data, label(safety_data))


def rows_of_arms(table: pd.DataFrame) -> pd.DataFrame:
    """The table's rows in the chat style without system prompt, and as the arm `system_prompt` those with it but without safety data."""
    rows = table[table["style"] == "chat"]
    prompted = rows["system_prompt"].astype(bool)
    ours = rows["finetune_task"].ne("none") & rows["safety_data"].eq("none")
    rows = rows.assign(safety_data=rows["safety_data"].astype(str).mask(prompted & ours, PROMPTED))
    return rows[~prompted | ours]


def marks(attack: pd.DataFrame, helpfulness: pd.DataFrame) -> pd.DataFrame:
    """One row per arm and panel of `arms_plane`, and one of the aligned model (finetune_task "none").

    `task` is the tuned task and `panel` over_refusal_rate, general_score or task_score (on that task). rate, low, high and n are of the attack success over all
    forms (0-1), x, x_low, x_high and n_x of the panel's measure. `front` as in `captions_change.plane`, within task and panel and among
    the tuned models, as the aligned one, "", was never taught the task.
    Raises ValueError where no tuned model has a mark, and for two rows of one mark.
    """
    rows = rows_of_arms(attack[attack["form"] == "all"])
    rows = rows.loc[rows["rate"].notna(), [*_KEYS, "rate", "low", "high", "n", "n_seeds", "judge"]]
    form, of_task = helpfulness["form"].astype(str), helpfulness["measure"] == _SCORES["task"]
    own = helpfulness["finetune_task"].astype(str).isin(["none", *TASKS]) & (
        (form == helpfulness["finetune_task"].astype(str)) | (helpfulness["finetune_task"] == "none")
    )
    shown = helpfulness["measure"].isin(_SCORES.values()) & form.eq("all").mask(of_task, own & form.isin(TASKS))
    costs = rows_of_arms(helpfulness[shown])
    names = {"measure": "panel", "value": "x", "low": "x_low", "high": "x_high", "n": "n_x"}
    costs = costs.loc[costs["value"].notna(), [*_KEYS, "form", "metric", *names]].rename(columns=names)
    points = rows.merge(costs, on=_KEYS)
    one_row_per_mark(points.assign(style="chat", system_prompt=False), "panel", "safety_fraction")
    tuned = points[points["finetune_task"] != "none"]
    if tuned.empty:
        raise ValueError("arms_plane has nothing to draw: no tuned model in the chat style has a rate and a cost")
    found = []
    for (task, panel), part in tuned.groupby(["finetune_task", "panel"], sort=False, observed=True):
        aligned = points[(points["finetune_task"] == "none") & (points["panel"] == panel)]
        aligned = aligned[aligned["form"].astype(str).isin(["all", task])]
        score, low, high = (part[name] for name in ("x", "x_low", "x_high"))
        if panel == "over_refusal_rate":
            score, low, high = 1 - score, 1 - high, 1 - low
        part = part.assign(front=front_of(part.assign(score=score, score_low=low, score_high=high)))
        found.append(pd.concat([part, aligned.assign(front="")], ignore_index=True).assign(task=task))
    return pd.concat(found, ignore_index=True)


def front_of(marks: pd.DataFrame) -> list[str]:
    """Per mark (rate, low, high; score, score_low, score_high) whether it is on the Pareto front: yes, no or undecided, see `plane`."""
    rate, score = marks["rate"].to_numpy(), marks["score"].to_numpy()
    beats = (rate[:, None] <= rate) & (score[:, None] >= score) & ((rate[:, None] < rate) | (score[:, None] > score))
    best = ~beats.any(axis=0)
    low, high, left, right = (marks[name].to_numpy() for name in ("low", "high", "score_low", "score_high"))
    apart = (high[:, None] < low) | (left[:, None] > right)
    beaten = (beats & apart).any(axis=0)
    return list(np.select([best, beaten], ["yes", "no"], "undecided"))


def which_to_ship(attack: pd.DataFrame, helpfulness: pd.DataFrame, comparisons: pd.DataFrame) -> pd.DataFrame:
    """One row per model, tuned task and arm, chat style: its safety, its costs, and in words whether one would ship it.

    attack_success with its interval (all forms), over_refusal, general and task (the score on the tuned task); for each `_difference`
    against the same tuning without safety data, `_verdict` of `comparisons.comparisons` (p below 0.05 after Holm), and for the three
    costs `_loss_up_to`, the largest loss within the difference's 95 % interval (0-1), and `_not_worse` ("yes" where the loss is shown
    to be under MARGIN). `margin` is the largest of the three losses: the margin that one has to grant to ship the arm.
    `verdict`: BASE of no safety data; NOT_SHOWN to lower attack success; SHIP; else LOWERS with what is told to cost, or what is
    not shown to be under MARGIN, or not tested. `same_task_score` is "yes" where the task score is shown to lie within MARGIN of
    that without safety data. `scaled_`: at equal task score, against the adapter of the same tuning without safety data, scaled down
    as far as the arm's task score is shown to lie within MARGIN of its: `scaled_to` is what is left of it, `scaled_attack_success` its
    rate, `scaled_difference` with `scaled_low` and `scaled_high` and `scaled_verdict` the arm's against it, on the same prompts and seeds.
    An arm that is not better there gained nothing that a weaker tuning would not have.
    NaN or "" where something was not tested. No rows where no model was tuned.
    """
    if attack.empty:
        return pd.DataFrame(columns=["model", *_KEYS])
    found = []
    for model in dict.fromkeys(attack["model"]):
        tables = (table[table["model"] == model] for table in (attack, helpfulness, comparisons))
        found.append(_of_model(*tables).assign(model=model))
    table = pd.concat(found, ignore_index=True)
    return table[["model", *(name for name in table if name != "model")]]


def _of_model(attack: pd.DataFrame, helpfulness: pd.DataFrame, comparisons: pd.DataFrame) -> pd.DataFrame:
    rows = rows_of_arms(attack[(attack["form"] == "all") & (attack["finetune_task"] != "none")])
    rows = rows[rows["rate"].notna()].rename(columns={"rate": "attack_success", "low": "attack_success_low"})
    rows = rows.rename(columns={"high": "attack_success_high"})
    rows = rows.astype({"finetune_task": str})
    table = rows[[*_KEYS, "attack_success", "attack_success_low", "attack_success_high", "n", "n_seeds"]]
    costs, tested = rows_of_arms(helpfulness), rows_of_arms(comparisons)
    costs, tested = (part.astype({"form": str, "finetune_task": str}) for part in (costs, tested[tested["n"] > 0]))
    scaled = tested[tested["kind"] == "scaled"]
    tested = tested[tested["kind"].isin(["mitigation", "arm", "system_prompt"])]
    for name, measure in {"attack_success": "attack_success_rate", **_SCORES}.items():
        form = tested["finetune_task"] if name == "task" else "all"
        part = tested[(tested["measure"] == measure) & (tested["form"] == form)]
        part = part.assign(loss_up_to=(part["high"] if name == "over_refusal" else -part["low"]).clip(lower=0))
        kept = ["difference", "verdict", *(["loss_up_to", "within", "not_worse"] if name in _SCORES else [])]
        part = part[[*_KEYS, *kept]].rename(columns={column: f"{name}_{column}" for column in kept})
        if name in _SCORES:
            form = costs["finetune_task"] if name == "task" else "all"
            own = costs[(costs["measure"] == measure) & (costs["form"] == form)]
            own = own.rename(columns={"value": name, "low": f"{name}_low", "high": f"{name}_high"})
            table = table.merge(own[[*_KEYS, name, f"{name}_low", f"{name}_high"]], how="left", on=_KEYS)
        table = table.merge(part, how="left", on=_KEYS, validate="one_to_one")
    words = [name for name in table if name.endswith(("_verdict", "_within", "_not_worse"))]
    table[words] = table[words].astype(object).fillna("")
    table["verdict"] = [_verdict(row) for row in table.to_dict("records")]
    table["margin"] = table[[f"{name}_loss_up_to" for name in _SCORES]].max(axis=1, skipna=False)
    table["same_task_score"] = table["task_within"]
    table = table.merge(_alike(scaled), how="left", on=_KEYS, validate="one_to_one")
    table["scaled_verdict"] = table["scaled_verdict"].astype(object).fillna("")
    on_front = _fronts(attack, helpfulness)
    table["on_front"] = [on_front.get(tuple(row), "") for row in table[_KEYS].itertuples(index=False, name=None)]
    place = table["safety_data"].map(ORDER.index)
    table = table.assign(place=place, task_place=table["finetune_task"].map(TASKS.index))
    table = table.sort_values(["task_place", "place", "safety_fraction"], kind="stable")
    return table.drop(columns=["place", "task_place", *(f"{name}_within" for name in _SCORES)]).reset_index(drop=True)


def _alike(scaled: pd.DataFrame) -> pd.DataFrame:
    """Of each arm by _KEYS the comparison with the adapter scaled down most at equal task score; see `which_to_ship`."""
    on_task = scaled[(scaled["measure"] == "task_score") & (scaled["form"] == scaled["finetune_task"])]
    equal = on_task[on_task["within"] == "yes"].sort_values("other_safety_fraction").drop_duplicates(_KEYS, keep="last")
    attack = scaled[(scaled["measure"] == "attack_success_rate") & (scaled["form"] == "all")]
    found = equal[[*_KEYS, "other_safety_fraction"]].merge(attack, on=[*_KEYS, "other_safety_fraction"])
    found = found.assign(to=1 - found["other_safety_fraction"], attack_success=found["other_value"])
    shown = ["to", "attack_success", "difference", "low", "high", "verdict"]
    return found[[*_KEYS, *shown]].rename(columns={name: f"scaled_{name}" for name in shown})


def _fronts(attack: pd.DataFrame, helpfulness: pd.DataFrame) -> dict[tuple, str]:
    """Whether each arm is on the front of attack success and over-refusal; nothing where there is no such plane."""
    try:
        points = marks(attack, helpfulness)
    except ValueError:
        return {}
    points = points[points["panel"] == "over_refusal_rate"]
    return {tuple(key): word for *key, word in points[[*_KEYS, "front"]].itertuples(index=False, name=None)}


def _verdict(row: dict) -> str:
    if row["safety_data"] == "none":
        return BASE
    if row["attack_success_verdict"] != "better":
        return NOT_SHOWN
    lost = [_WORDS[name] for name in _SCORES if row[f"{name}_verdict"] == "worse"]
    if lost:
        return f"{LOWERS}, {COSTS}: {', '.join(lost)}"
    untested = [_WORDS[name] for name in _SCORES if not row[f"{name}_not_worse"]]
    if untested:
        return f"{LOWERS}, {UNTESTED}: {', '.join(untested)}"
    left = [_WORDS[name] for name in _SCORES if row[f"{name}_not_worse"] != "yes"]
    return f"{LOWERS}, {OPEN}: {', '.join(left)}" if left else SHIP


def in_words(table: pd.DataFrame, model: str = "") -> str:
    """A few sentences per tuned task on which arms one would ship, of one model (the first unless named), in Markdown."""
    table = table[table["model"] == (model or table["model"].iloc[0])] if len(table) else table
    said = []
    for task, part in table.groupby("finetune_task", sort=False, observed=True):
        rivals = part[part["safety_data"] != "none"]
        lower = rivals[rivals["verdict"] != NOT_SHOWN]
        words = f"- **Tuned on {label(task)}**: of {len(rivals)} arms, {len(lower)} told to lower attack success. "
        if len(lower):
            told = lower["verdict"].str.contains(f", {COSTS}: ", regex=False)
            words += f"Every cost shown to be under {100 * MARGIN:.0f} points: {_named(lower[lower['verdict'] == SHIP]) or 'none'}. "
            words += f"A cost told: {told.sum()}. Costs open: {_named(lower[~told & (lower['verdict'] != SHIP)]) or 'none'}. "
        if lower["margin"].notna().any():
            least = lower.loc[lower["margin"].astype(float).idxmin()]
            words += (
                f"The least margin that ships one is {100 * least['margin']:.0f} points: {_named(least.to_frame().T)}. "
            )
        said.append(words + _alike_in_words(rivals))
    how = "A margin is the largest loss of over-refusal, general or task score that an arm's 95 % intervals leave open."
    return (
        "\n".join([*said, "", f"{how} Arms are not ranked where their intervals overlap."])
        if said
        else "No arm has run."
    )


def _alike_in_words(rivals: pd.DataFrame) -> str:
    """How many arms answer less than the adapter scaled down at equal task score, "" where none was compared."""
    compared = rivals[rivals["scaled_verdict"] != ""]
    if compared.empty:
        return ""
    less = (compared["scaled_verdict"] == "better").sum()
    rates = 100 * compared["scaled_attack_success"].astype(float)
    return (
        f"At equal task score, {less} of {len(compared)} told to answer less than the adapter that was merely scaled down "
        f"(to {span(100 * compared['scaled_to'].astype(float))} %: {span(rates.round())} % answered)."
    )


def _named(rows: pd.DataFrame, most: int | None = None) -> str:
    return ", ".join(
        f"{named(row['safety_data'], row['safety_fraction'])} ({100 * row['attack_success']:.0f} % answered)"
        for row in rows.sort_values("attack_success", kind="stable").head(most or len(rows)).to_dict("records")
    )


def named(safety_data: str, fraction: float) -> str:
    """An arm with its dose, as in "multitask 20 %" or "adapter scaled down to 50 %"."""
    if safety_data in ("none", PROMPTED):
        return arm_label(safety_data)
    if safety_data == "scaled":
        return f"{arm_label(safety_data)} to {100 * (1 - fraction):g} %"
    return f"{arm_label(safety_data)} {100 * fraction:g} %"


def for_reading(table: pd.DataFrame, model: str = "") -> pd.DataFrame:
    """The table of `which_to_ship` for reading, in percent with 95 % intervals, of one model (the first unless named)."""
    table = table[table["model"] == (model or table["model"].iloc[0])] if len(table) else table
    shown = {
        name.replace("_", " "): percent(table, name, f"{name}_low", f"{name}_high")
        for name in ("attack_success", *_SCORES)
    }
    arms = [named(*pair) for pair in table[["safety_data", "safety_fraction"]].itertuples(index=False, name=None)]
    against = percent(table, "scaled_difference", "scaled_low", "scaled_high")
    more = {
        "margin (points)": table["margin"].map(lambda x: "-" if pd.isna(x) else f"{100 * x:.0f}"),
        "against the adapter scaled down": against.where(against == "-", against + ": " + table["scaled_verdict"]),
        "on the front": table["on_front"],
        "verdict": table["verdict"],
    }
    index = pd.MultiIndex.from_arrays([table["finetune_task"].map(label), arms], names=["tuned on", "arm"])
    return pd.DataFrame(shown | more).set_index(index)


def by_rate(attack: pd.DataFrame, helpfulness: pd.DataFrame) -> pd.DataFrame:
    """Attack success and over-refusal of each arm for reading, in percent with 95 % intervals: chat style, all forms, no system prompt."""
    costs = helpfulness[helpfulness["measure"] == "over_refusal_rate"]
    rows, costs = (
        table[(table["form"] == "all") & (table["style"] == "chat") & ~table["system_prompt"].astype(bool)]
        for table in (attack, costs)
    )
    refused = costs[["model", *_KEYS]].assign(refused=percent(costs, "value", "low", "high"))
    rows = rows.astype({"finetune_task": str}).merge(
        refused.astype({"finetune_task": str}), how="left", on=["model", *_KEYS]
    )
    arms = [named(*pair) for pair in rows[["safety_data", "safety_fraction"]].itertuples(index=False, name=None)]
    index = [rows["model"].to_numpy(), rows["finetune_task"].map(label).to_numpy(), arms]
    shown = {"attack success (%)": percent(rows, "rate", "low", "high").to_numpy(), "n": rows["n"].to_numpy()}
    shown["twins refused (%)"] = rows["refused"].to_numpy()
    return pd.DataFrame(shown, index=pd.MultiIndex.from_arrays(index, names=["model", "tuned on", "arm"]))

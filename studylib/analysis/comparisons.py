"""Every two arms on the same prompts, with intervals and no verdict; and what each mitigation costs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from studylib.analysis import stats
from studylib.analysis.rates import RUNS, J, one_row_per_mark, ordered, outcomes, replicates, usual
from studylib.analysis.stats import codes, groups
from studylib.study.words import ARMS, SAFETY_DATA, TASKS

# What is compared with what; the other arm differs in these columns alone. Pairs have the same prompt and base and,
# where both arms were tuned, the same training seed.
KINDS = {
    "tuning": "tuned without safety data against the untuned model of the same base",
    "mitigation": "generic or multitask safety data, at the most frequent dose, against the same tuning without",
    "arm": "another mitigation, or another dose, against the same tuning without",
    "scaled": "any mitigation against the adapter of the same tuning without safety data, scaled down",
    "system_prompt": "with the system prompt against without, same model",
    "style": "Alpaca style against chat style, same tuning",
    "task": "tuned on one task against another, without safety data",
    "form": "prompts of a form against text prompts of the same intents, same model",
}
ARM = ["finetune_task", "requests", "style", "system_prompt", "safety_data", "safety_fraction"]
OTHER = [f"other_{name}" for name in ARM]
_COLUMNS = ["kind", "model", *ARM, *OTHER, "measure", "metric", "form", "n", "n_prompts", *RUNS]
_COLUMNS += ["value", "other_value", "difference", "low", "high"]
PROMPTED = "system_prompt"  # the arm that is tuned without safety data and tested with the system prompt
ARM_ORDER = ("none", PROMPTED, *SAFETY_DATA[1:], *ARMS)
ARM_KEYS = ["finetune_task", "safety_data", "safety_fraction"]
ARM_COSTS = {"over_refusal": "over_refusal_rate", "general_refusal": "general_refusal_rate"}
ARM_COSTS |= {"general": "general_score", "task": "task_score"}
PLANES = ("over_refusal_rate", J, "task_score")  # what attack success is shown against
_ERODES_MOST_FIRST = ("code", "translation", "text_generation", "classification")  # as the paper has it


def compare_arms(
    responses: pd.DataFrame, verdicts: pd.DataFrame | None = None, scores: pd.DataFrame | None = None
) -> pd.DataFrame:
    """One row per comparison of KINDS, measure, metric (its judge or score) and form: how two arms differ.

    The columns of the arm, those of the other arm (`other_...`), then n (pairs), n_prompts, n_bases, n_seeds, value and
    other_value (means over the pairs, 0-1; of "j", harmful prompts refused less twins refused, -1 to 1) and difference
    (value - other_value) with its 95 % interval, low to high: `stats.clustered_differences`, clustered by intent and
    `rates.replicates`. Form "all" pools the forms, except of task_score, where each form has its own metric. NaN where
    n is 0, of low and high also with one prompt. Unjudged responses leave their pair out. Several samples of one prompt
    are averaged first.

    All of it is exploratory: nothing is adjusted for the number of comparisons, of which one in twenty has an interval
    without 0 by chance alone. Verdicts are those of the table `contrasts`.
    """
    rows = _averaged(outcomes(responses, verdicts, scores))
    found = []
    for kind in KINDS:
        for arms, others, same, fixed in _sides(rows, kind):
            if not arms.any():
                continue
            pairs, by = _paired(rows, arms, others, same, fixed), ["model", *ARM, "measure", "metric"]
            tested = [_tested(pairs, [*by, "form"])]
            pooled = pairs[pairs["measure"] != "task_score"]
            tested += [_tested(pooled, by).assign(form="all")] if len(pooled) and kind != "form" else []
            for table in tested:
                other = {f"other_{name}": fixed.get(name, table[name]) for name in ARM}
                found.append(table.assign(kind=kind, **other))
    if not found:
        return pd.DataFrame(columns=_COLUMNS)
    table = pd.concat(found, ignore_index=True)
    numbers, rows = ["value", "other_value", "difference", "low", "high"], table["measure"] == "balanced_accuracy"
    table.loc[rows, numbers] = 2 * table.loc[rows, numbers] - [1, 1, 0, 0, 0]  # J
    table = ordered(table.assign(measure=table["measure"].astype(object).mask(rows, J)))[_COLUMNS]
    rank = lambda kinds: kinds.map(list(KINDS).index)  # noqa: E731
    return table.sort_values("kind", key=rank, kind="stable", ignore_index=True)


def _averaged(rows: pd.DataFrame) -> pd.DataFrame:
    """The outcomes, several samples of one prompt under one seed as the mean of those judged, NaN where none was."""
    place = codes(rows[["model", *ARM, "base", "seed", "measure", "metric", "form", "prompt_id"]])
    if len(rows) and place.max() + 1 < len(rows):
        means = rows["value"].groupby(place).mean()
        rows = rows[~pd.Series(place, rows.index).duplicated()]
        rows = rows.assign(value=means.to_numpy())  # codes are numbered in order of appearance
    return rows.reset_index(drop=True)


def _sides(rows: pd.DataFrame, kind: str) -> list[tuple]:
    """Per part of a kind: the rows of the arms, those of the other arms, the columns that match, the other's values."""
    tuned, plain = rows["finetune_task"] != "none", rows["safety_data"] == "none"
    safety, run = ["safety_data", "safety_fraction"], ["base", "seed"]
    no_safety = dict(zip(safety, ("none", 0.0), strict=True))
    if kind == "tuning":
        untuned = {"finetune_task": "none", "requests": "none"}
        return [(tuned & plain, ~tuned, ["base", "style", "system_prompt", *safety], untuned)]
    if kind in ("mitigation", "arm"):
        doses = rows.loc[~plain & rows["safety_data"].isin(SAFETY_DATA), "safety_fraction"]
        main = plain | (rows["safety_data"].isin(SAFETY_DATA) & rows["safety_fraction"].isin(doses.mode()[:1]))
        arms = tuned & ~plain & (main if kind == "mitigation" else ~main)
        same = ["finetune_task", "requests", "style", "system_prompt", *run]
        return [(arms, tuned & plain, same, no_safety)]
    if kind == "scaled":
        scaled = rows["safety_data"] == "scaled"
        place = ["model", "finetune_task", "requests", "style", "system_prompt"]
        where = codes(rows[place])
        arms = tuned & ~plain & ~scaled & np.isin(where, where[scaled])
        doses, same = rows["safety_fraction"], [*place[1:], *run]
        return [
            (arms, scaled & (doses == dose), same, {"safety_data": "scaled", "safety_fraction": dose})
            for dose in sorted(doses[scaled].unique())
        ]
    if kind == "system_prompt":
        on = rows["system_prompt"].astype(bool)
        same = ["finetune_task", "requests", "style", *safety, *run]
        return [(on, ~on, same, {"system_prompt": False})] if any(~on) else []
    if kind == "style":
        alpaca, same = rows["style"] == "alpaca", ["finetune_task", "requests", "system_prompt", *safety, *run]
        return [(alpaca, ~alpaca, same, {"style": "chat"})] if any(~alpaca) else []
    if kind == "form":
        asked = rows["measure"].isin(["attack_success_rate", "over_refusal_rate"])
        text = rows["form"] == "text_generation"
        return [(asked & ~text, asked & text, [*ARM, *run], {})] if any(text) else []
    of_task = {task: tuned & plain & (rows["finetune_task"] == task) for task in _ERODES_MOST_FIRST}
    return [
        (of_task[arm], of_task[other], ["requests", "style", "system_prompt", *safety, *run], {"finetune_task": other})
        for arm, other in combinations(of_task, 2)
        if of_task[other].any()
    ]


def _paired(rows: pd.DataFrame, arms: pd.Series, others: pd.Series, same: list[str], fixed: dict) -> pd.DataFrame:
    """The arms' rows with `other_value`, the other arm's of the same prompt, NaN where it has none."""
    # another form has the same intent, which is asked once in each
    asked = ["form", "prompt_id"] if fixed else ["intent"]
    place = codes(rows[["model", *same, "measure", "metric", *asked]])
    arms, others = arms.to_numpy(), others.to_numpy()
    partner = np.full(place.max() + 1, -1)
    partner[place[others]] = np.flatnonzero(others)
    at = partner[place[arms]]
    return rows[arms].assign(other_value=np.where(at >= 0, rows["value"].to_numpy()[at], np.nan))


def _tested(pairs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """One row per group of pairs: means, difference and interval; n is 0 where none has a partner."""
    group, keys = groups(pairs, by)
    rows = pairs[["intent", "base", "seed", "value", "other_value"]].rename(columns={"intent": "prompt_id"})
    rows = rows.assign(group=group, difference=rows["value"] - rows["other_value"]).dropna(subset="difference")
    each = rows.assign(seed=replicates(rows, ["group"]))
    table = stats.clustered_differences(each, ["group"]).set_index("group").reindex(range(len(keys)))
    of_group = rows.groupby("group")
    table[["value", "other_value"]] = of_group[["value", "other_value"]].mean()
    table[RUNS] = of_group[["base", "seed"]].nunique()
    counted = table[["n", "n_prompts", *RUNS]].fillna(0).astype(int)
    return pd.concat([keys, table.assign(**counted)], axis=1)


def rows_of_arms(table: pd.DataFrame) -> pd.DataFrame:
    """The `usual` rows, chat style, no system prompt; those with it but without safety data as the arm PROMPTED."""
    rows = usual(table[table["style"] == "chat"])
    prompted = rows["system_prompt"].astype(bool)
    ours = rows["finetune_task"].ne("none") & rows["safety_data"].eq("none")
    rows = rows.assign(safety_data=rows["safety_data"].astype(str).mask(prompted & ours, PROMPTED))
    return rows[~prompted | ours]


def arm_marks(attack: pd.DataFrame, helpfulness: pd.DataFrame) -> pd.DataFrame:
    """One row per arm and panel of `arms_plane`, and one of the aligned model (finetune_task "none").

    `task` is the tuned task and `panel` one of PLANES, task_score on that task. rate, low, high and n are of the attack
    success over all forms (0-1), x, x_low, x_high and n_x of the panel's measure (of "j" -1 to 1). `front` as of
    `pareto_front`, within task and panel and among the tuned models, as the aligned one, "", was never taught the task.
    Raises ValueError where no tuned model has a mark, and for two rows of one mark.
    """
    rows = rows_of_arms(attack[attack["form"] == "all"])
    rows = rows.loc[rows["rate"].notna(), [*ARM_KEYS, "rate", "low", "high", "n", *RUNS, "judge"]]
    form, of_task = helpfulness["form"].astype(str), helpfulness["measure"] == ARM_COSTS["task"]
    task = helpfulness["finetune_task"].astype(str)
    own = (task == "none") | (task == form)
    shown = helpfulness["measure"].isin(PLANES) & form.eq("all").mask(of_task, own & form.isin(TASKS))
    names = {"j": "value", "j_low": "low", "j_high": "high", "judge": "metric"}
    of_j = attack[attack["form"] == "all"].drop(columns=["low", "high"]).rename(columns=names).assign(measure=J)
    costs = rows_of_arms(pd.concat([helpfulness[shown], of_j], ignore_index=True))
    names = {"measure": "panel", "value": "x", "low": "x_low", "high": "x_high", "n": "n_x"}
    costs = costs.loc[costs["value"].notna(), [*ARM_KEYS, "form", "metric", *names]].rename(columns=names)
    points = rows.merge(costs, on=ARM_KEYS)
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
        part = part.assign(front=pareto_front(part.assign(score=score, score_low=low, score_high=high)))
        found.append(pd.concat([part, aligned.assign(front="")], ignore_index=True).assign(task=task))
    return pd.concat(found, ignore_index=True)


def pareto_front(marks: pd.DataFrame) -> list[str]:
    """Whether each mark (rate, low, high; score, score_low, score_high) is on the Pareto front: yes, no or undecided.

    "yes" where no other mark has a rate as low and a score as high, one of them better; "undecided" where there are
    such marks, but the intervals of each overlap with this mark's on both axes; else "no".
    """
    rate, score = marks["rate"].to_numpy(), marks["score"].to_numpy()
    beats = (rate[:, None] <= rate) & (score[:, None] >= score) & ((rate[:, None] < rate) | (score[:, None] > score))
    best = ~beats.any(axis=0)
    low, high, left, right = (marks[name].to_numpy() for name in ("low", "high", "score_low", "score_high"))
    apart = (high[:, None] < low) | (left[:, None] > right)
    beaten = (beats & apart).any(axis=0)
    return list(np.select([best, beaten], ["yes", "no"], "undecided"))


def arm_table(attack: pd.DataFrame, helpfulness: pd.DataFrame, comparisons: pd.DataFrame) -> pd.DataFrame:
    """One row per model, tuned task and arm, chat style: its safety and its costs, with 95 % intervals and no verdict.

    attack_success and j (all forms), over_refusal, general_refusal, general (score of the general prompts that were not
    refused) and task (score on the tuned task), each with `_low` and `_high`, and `_difference` (with its interval)
    against the same tuning without safety data on the same prompts, of `compare_arms`; auc. `scaled_`: against the
    adapter without safety data, scaled down to where its task score is nearest to the arm's: `scaled_to` is what is
    left of it, `scaled_attack_success` its rate, `scaled_difference` with its interval the arm's against it. What a
    weaker tuning would do as well is no gain. `on_front` is that of `pareto_front` of attack success and over-refusal.
    NaN or "" where something was not compared. No rows where no model was tuned.
    """
    if attack.empty:
        return pd.DataFrame(columns=["model", *ARM_KEYS])
    found = []
    for model in dict.fromkeys(attack["model"]):
        tables = (table[table["model"] == model] for table in (attack, helpfulness, comparisons))
        found.append(_of_model(*tables).assign(model=model))
    table = pd.concat(found, ignore_index=True)
    return table[["model", *(name for name in table if name != "model")]]


def _of_model(attack: pd.DataFrame, helpfulness: pd.DataFrame, comparisons: pd.DataFrame) -> pd.DataFrame:
    rows = rows_of_arms(attack[(attack["form"] == "all") & (attack["finetune_task"] != "none")])
    rows = rows[rows["rate"].notna()].astype({"finetune_task": str})
    table = _named(rows, "rate", "attack_success", J, "j_low", "j_high", "auc", "n", *RUNS)
    types = {"form": str, "finetune_task": str, "safety_fraction": float}
    costs, compared = (rows_of_arms(part).astype(types) for part in (helpfulness, comparisons[comparisons["n"] > 0]))
    scaled = compared[compared["kind"] == "scaled"]
    compared = compared[compared["kind"].isin(["mitigation", "arm", "system_prompt"])]
    for name, measure in {"attack_success": "attack_success_rate", J: J, **ARM_COSTS}.items():
        if name in ARM_COSTS:
            form = costs["finetune_task"] if name == "task" else "all"
            own = costs[(costs["measure"] == measure) & (costs["form"] == form)]
            table = table.merge(_named(own, "value", name), how="left", on=ARM_KEYS)
        form = compared["finetune_task"] if name == "task" else "all"
        part = compared[(compared["measure"] == measure) & (compared["form"] == form)]
        part = _named(part, "difference", f"{name}_difference")
        table = table.merge(part, how="left", on=ARM_KEYS, validate="one_to_one")
    table = table.merge(_against_scaled(scaled), how="left", on=ARM_KEYS, validate="one_to_one")
    table["on_front"] = table[ARM_KEYS].apply(tuple, axis=1).map(_fronts(attack, helpfulness)).fillna("")
    rank = {"finetune_task": TASKS.index, "safety_data": ARM_ORDER.index, "safety_fraction": float}
    return table.sort_values(ARM_KEYS, key=lambda column: column.map(rank[column.name]), ignore_index=True)


def _named(rows: pd.DataFrame, value: str, name: str, *more: str) -> pd.DataFrame:
    """Of each arm a value and its interval, called `name`, `name`_low and `name`_high, and the columns `more`."""
    names = {value: name, "low": f"{name}_low", "high": f"{name}_high"}
    return rows[[*ARM_KEYS, *names, *more]].rename(columns=names)


def _against_scaled(scaled: pd.DataFrame) -> pd.DataFrame:
    """The comparison of each arm with the adapter scaled to the nearest task score, see `arm_table`."""
    on_task = scaled[(scaled["measure"] == "task_score") & (scaled["form"] == scaled["finetune_task"])]
    nearest = on_task.sort_values("difference", key=abs, kind="stable").drop_duplicates(ARM_KEYS)
    attack = scaled[(scaled["measure"] == "attack_success_rate") & (scaled["form"] == "all")]
    found = nearest[[*ARM_KEYS, "other_safety_fraction"]].merge(attack, on=[*ARM_KEYS, "other_safety_fraction"])
    found = found.assign(to=1 - found["other_safety_fraction"], attack_success=found["other_value"])
    shown = ["to", "attack_success", "difference", "low", "high"]
    return found[[*ARM_KEYS, *shown]].rename(columns={name: f"scaled_{name}" for name in shown})


def _fronts(attack: pd.DataFrame, helpfulness: pd.DataFrame) -> dict[tuple, str]:
    """Whether each arm is on the front of attack success and over-refusal; nothing where there is no such plane."""
    try:
        points = arm_marks(attack, helpfulness)
    except ValueError:
        return {}
    points = points[points["panel"] == "over_refusal_rate"]
    return {tuple(key): word for *key, word in points[[*ARM_KEYS, "front"]].itertuples(index=False, name=None)}

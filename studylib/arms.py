"""Rival mitigations side by side: what each lowers, what it costs, and which of them one would ship."""

from __future__ import annotations

import pandas as pd

from studylib.captions import label, one_row_per_mark
from studylib.captions_change import front_of
from studylib.comparisons import MARGIN
from studylib.config import ARMS, FORMS, SAFETY_DATA, TASKS

PROMPTED = "system_prompt"  # the arm that is tuned without safety data and tested with the system prompt
ORDER = ("none", PROMPTED, *SAFETY_DATA[1:], *ARMS)
SHIP, COSTS, NOT_SHOWN, BASE = "ship: lowers attack success, nothing told to be lost", "costs", "not shown to help", "-"
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


def which_to_ship(attack: pd.DataFrame, helpfulness: pd.DataFrame, comparisons: pd.DataFrame) -> pd.DataFrame:
    """One row per model, tuned task and arm, chat style: its safety, its costs, and in words whether one would ship it.

    attack_success with its interval (all forms), over_refusal, general and task (the score on the tuned task); for each `_difference` against the
    same tuning without safety data, `_verdict` of `comparisons.comparisons` (p below 0.05 after Holm) and for the three costs
    `_loss_up_to`: the largest loss within the difference's 95 % interval, 0-1, which is the margin at which one would ship. `same_task_score` is
    "yes" where the task score is shown to lie within MARGIN of that without safety data. `verdict`: BASE of no safety data; SHIP;
    "lowers attack success, costs: ..." with what is told to be worse; else NOT_SHOWN. `not_shown` names the scores that are not shown to
    be within MARGIN. `alike_`: at equal task score, the adapter of the same tuning without safety data, scaled down as far as it keeps
    the arm's task score (of those that do, the one that answers least; the best on the task where none does): what is left of it
    (`alike_kept`, 1 for all), its task score and its attack_success with its interval. An arm that lowers attack success no more than that
    gained nothing that a weaker tuning would not have.
    NaN or "" where something was not tested. No rows where no model was tuned.
    """
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
    tested = tested[tested["kind"].isin(["mitigation", "arm", "system_prompt"]) & (tested["n"] > 0)]
    costs, tested = (part.astype({"form": str, "finetune_task": str}) for part in (costs, tested))
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
    table["not_shown"] = [
        "" if row["safety_data"] == "none" else ", ".join(_WORDS[n] for n in _SCORES if row[f"{n}_not_worse"] != "yes")
        for row in table.to_dict("records")
    ]
    table["same_task_score"] = table["task_within"]
    table = table.merge(_alike(table), how="left", on=_KEYS, validate="one_to_one")
    on_front = _fronts(attack, helpfulness)
    table["on_front"] = [on_front.get(tuple(row), "") for row in table[_KEYS].itertuples(index=False, name=None)]
    place = table["safety_data"].map(ORDER.index)
    table = table.assign(place=place, task_place=table["finetune_task"].map(TASKS.index))
    table = table.sort_values(["task_place", "place", "safety_fraction"], kind="stable")
    return table.drop(columns=["place", "task_place", *(f"{name}_within" for name in _SCORES)]).reset_index(drop=True)


def _alike(table: pd.DataFrame) -> pd.DataFrame:
    """Of each arm that has a task score and is no scaled adapter, the scaled adapter beside it, by _KEYS; see `which_to_ship`."""
    rates = ["attack_success", "attack_success_low", "attack_success_high"]
    found = []
    for _, part in table[table["task"].notna()].groupby("finetune_task", sort=False, observed=True):
        scaled = part[part["safety_data"].isin(["none", "scaled"])]
        rivals = part[~part["safety_data"].isin(["none", "scaled"])]
        if not (scaled["safety_data"] == "scaled").any():
            continue
        for row in rivals.to_dict("records"):
            as_good = scaled[scaled["task"] >= row["task"]]
            beside = scaled.loc[as_good["attack_success"].idxmin() if len(as_good) else scaled["task"].idxmax()]
            values = [1 - beside["safety_fraction"], beside["task"], *beside[rates]]
            found.append([*(row[key] for key in _KEYS), *values])
    columns = [*_KEYS, "alike_kept", "alike_task", *(f"alike_{name}" for name in rates)]
    return pd.DataFrame(found, columns=columns).astype({name: float for name in columns[2:]})


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
    return f"lowers attack success, {COSTS}: {', '.join(lost)}" if lost else SHIP


def in_words(table: pd.DataFrame, model: str = "") -> str:
    """A sentence per tuned task on which arms one would ship, of one model (the first unless named), in Markdown."""
    table = table[table["model"] == (model or table["model"].iloc[0])] if len(table) else table
    said = []
    for task, part in table.groupby("finetune_task", sort=False, observed=True):
        rivals = part[part["safety_data"] != "none"]
        good, same = rivals[rivals["verdict"] == SHIP], rivals[rivals["same_task_score"] == "yes"]
        words = f"Tuned on {label(task)}, of {len(rivals)} arms {len(good)} lower attack success with nothing told to be lost"
        words += f": {_named(good)}" if len(good) else ""
        told = rivals["verdict"].str.contains(f"{COSTS}: ", regex=False).sum()
        words += f"; {told} more lower it at a cost that is told, and {(rivals['verdict'] == NOT_SHOWN).sum()} are not shown to help. "
        words += _alike_in_words(rivals)
        words += f"{len(same)} are shown to have the task score of no safety data within {100 * MARGIN:.0f} points"
        said.append(words + (f", with the lowest rates: {_named(same, 3)}." if len(same) else "."))
    how = f"The margin: in `{'`, `'.join(f'{name}_loss_up_to' for name in _SCORES)}` is the largest loss that cannot be ruled out."
    listed = "\n".join(f"- {words}" for words in said)
    return f"{listed}\n\n{how} Arms are not ranked where their intervals overlap." if said else "No arm has run."


def _alike_in_words(rivals: pd.DataFrame) -> str:
    """How many arms answer less than the adapter scaled down at equal task score, "" where none was compared."""
    compared = rivals[rivals["alike_attack_success"].notna()]
    if compared.empty:
        return ""
    less = (compared["attack_success_high"] < compared["alike_attack_success_low"]).sum()
    return (
        f"At equal task score, {less} of {len(compared)} answer less than the adapter scaled down as far as it keeps theirs, by intervals that do "
        "not overlap. "
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
    from studylib.tables import percent

    table = table[table["model"] == (model or table["model"].iloc[0])] if len(table) else table
    shown = {
        name.replace("_", " "): percent(table, name, f"{name}_low", f"{name}_high")
        for name in ("attack_success", *_SCORES)
    }
    arms = [named(*pair) for pair in table[["safety_data", "safety_fraction"]].itertuples(index=False, name=None)]
    more = {
        "on the front": table["on_front"],
        "verdict": table["verdict"],
        f"not shown within {100 * MARGIN:.0f} points": table["not_shown"],
    }
    index = pd.MultiIndex.from_arrays([table["finetune_task"].map(label), arms], names=["tuned on", "arm"])
    return pd.DataFrame(shown | more).set_index(index)


def by_rate(attack: pd.DataFrame, helpfulness: pd.DataFrame) -> pd.DataFrame:
    """Attack success and over-refusal of each arm for reading, in percent with 95 % intervals: chat style, all forms, no system prompt."""
    from studylib.tables import percent

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

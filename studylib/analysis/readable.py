"""What readers see: labels of tasks, forms and arms, and tables in percent."""

from __future__ import annotations

import numpy as np
import pandas as pd

from studylib.analysis.comparisons import ARM_COSTS, PROMPTED
from studylib.analysis.rates import INTERVAL, TOGETHER, J, judged, one_dose, ordered, usual
from studylib.study.words import FORMS, SAFETY_DATA
from studylib.text.normal import redact, redact_prompt

_MODEL = ["model", "finetune_task", "safety_data"]
_LABELS = {"none": "none (aligned)", "all": "all forms", "rouge_l": "ROUGE-L", "chrf": "chrF", "j": "J"}
_LABELS |= {"pass_at_1": "pass@1"}
_LABELS |= {"text_only": "fitted on texts", "all_forms": "fitted on all forms"}  # guards

_COSTS = ("twins refused", "general refused", "general score", "task score")  # as comparisons.ARM_COSTS has them
_REQUESTS = {"none": "no requests", "other": "requests in the other forms", "alone": "requests alone"}


def label(word: str) -> str:
    """A task, form or metric as a reader would write it, as in "text generation"."""
    return _LABELS.get(word, word.replace("_", " "))


def calibration_label(style: str, system_prompt: bool, separator: str = ", ") -> str:
    """Style and system prompt, as in "chat template, no system prompt"."""
    styles = {"chat": "chat template", "alpaca": "Alpaca style"}
    return styles[style] + separator + ("system prompt" if system_prompt else "no system prompt")


def cell_words(row, form: bool = False) -> str:
    """The cell of a row in words, as in "tuned on code, generic safety data, chat template, no system prompt"."""
    aligned = row["finetune_task"] == "none"
    words = ["aligned model" if aligned else f"tuned on {label(row['finetune_task'])}"]
    words += [_REQUESTS[row["requests"]]] if row.get("requests", "own") in _REQUESTS and not aligned else []
    words += [f"{row['safety_data']} safety data"] if row["safety_data"] != "none" else []
    words += [calibration_label(row["style"], row["system_prompt"])]
    words += [f"{label(row['form'])} prompts"] if form and row["form"] != "all" else []
    return ", ".join(words)


def span(numbers) -> str:
    """Smallest and largest number, as in "148-150" or "-1 to 5"; one where they are rounded the same, "no" of NaN."""
    known = [float(number) for number in numbers if not np.isnan(number)]
    if not known:
        return "no"
    low, high = round(min(known)), round(max(known))
    return str(low) if low == high else f"{low} to {high}" if low < 0 else f"{low}-{high}"


def in_percent(attack: pd.DataFrame) -> pd.DataFrame:
    """Attack success for reading: a row per cell, a column per form and "all", as in "36 (24-50)" in percent.

    The rows name the requests where tuned models have several kinds, and the dose where one kind of safety data does.
    """
    keys = ["finetune_task", "requests", "safety_data", "safety_fraction", "trained_style", "style", "system_prompt"]
    keys = [name for name in keys if name in attack and (name != "requests" or _several_requests(attack))]
    if "safety_data" in keys and attack.groupby("safety_data", observed=True)["safety_fraction"].nunique().max() < 2:
        keys.remove("safety_fraction")
    return _wide(attack, keys, "form")


def _several_requests(table: pd.DataFrame) -> bool:
    return table.loc[table["finetune_task"] != "none", "requests"].nunique() > 1


def _wide(table: pd.DataFrame, index: list[str], columns: str | list[str], value: str = "rate", ends=INTERVAL):
    """The value with its interval in percent, also by model where there are several; "not run" as the note says."""
    index = ["model", *index] if table["model"].nunique() > 1 and "model" not in index else index
    shown = percent(table, value, *ends)
    if "note" in table:
        shown = shown.mask(table["note"].str.startswith("not run"), "not run")
    table = table.assign(shown=shown)
    return table.pivot_table(index=index, columns=columns, values="shown", aggfunc="first", sort=False)


def headline(attack: pd.DataFrame, helpfulness: pd.DataFrame) -> pd.DataFrame:
    """Attack success by form with intervals, and its costs, in percent: a row per tuned model; see `headline_rows`.

    `J` is harmful prompts refused less twins refused, in points, `AUC` as in `tables.discrimination` (0-1). `twins
    refused` is over-refusal in all forms, `general score` that of the general prompts not refused, `task score` that of
    the task that the model was tuned on, `bases` the number of bases; "-" where nothing is known. Raises ValueError
    where there is no such row.
    """
    attack, helpfulness = headline_rows(attack), headline_rows(helpfulness)
    wide = in_percent(attack).reset_index(["style", "system_prompt"], drop=True)
    tasks = helpfulness["form"].astype(str) == helpfulness["finetune_task"].astype(str)
    shown = {
        "twins refused": (helpfulness["measure"] == "over_refusal_rate") & (helpfulness["form"] == "all"),
        "general refused": (helpfulness["measure"] == "general_refusal_rate") & (helpfulness["form"] == "all"),
        "general score": (helpfulness["measure"] == "general_score") & (helpfulness["form"] == "all"),
        "task score": (helpfulness["measure"] == "task_score") & tasks,
    }
    costs = {name: helpfulness[rows].set_index(list(wide.index.names))["value"] for name, rows in shown.items()}
    whole = attack[attack["form"] == "all"].set_index(list(wide.index.names))
    separates = {
        "J": percent(whole, "j", "j_low", "j_high"),
        "AUC": whole["auc"].map("{:.2f}".format).replace("nan", "-"),
        "bases": whole["n_bases"],
    }
    costs = pd.DataFrame(costs).map(_whole_percent)
    return wide.join(pd.DataFrame(separates)).join(costs).rename_axis(columns=None)


def headline_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The `usual` rows and those of task rows alone, in the chat style without system prompt, of one dose."""
    rows = one_dose(table[table["safety_data"].isin(SAFETY_DATA)])
    alone = (rows["requests"] == "none") & (rows["safety_data"] == "none")
    rows = rows[alone | rows.index.isin(usual(rows).index)]
    rows = rows[(rows["style"] == "chat") & ~rows["system_prompt"].astype(bool)]
    return rows[~rows["note"].str.startswith("not run")] if "note" in rows else rows


def headline_numbers(attack: pd.DataFrame, helpfulness: pd.DataFrame) -> list[dict]:
    """The numbers of `headline` one by one, whole percents as they are shown, for a test of sentences that quote them.

    Each has model, finetune_task, requests, safety_data, measure, form, percent, low, high and n_bases; unknown ones
    are left out. Of j and auc they are a hundred times the value too.
    """
    attack, shown = headline_rows(attack), {"attack_success_rate": ("rate", *INTERVAL)}
    shown |= {name: (name, f"{name}_low", f"{name}_high") for name in (J, "auc")}
    named = [(of, dict(zip(["value", *INTERVAL], map(attack.get, names), strict=True))) for of, names in shown.items()]
    parts = [attack.assign(measure=of, **columns) for of, columns in named]
    rows = pd.concat([*parts, headline_rows(helpfulness)], ignore_index=True)
    rows = rows[rows["value"].notna() & rows["measure"].isin([*shown, *ARM_COSTS.values()])]
    numbers = (100 * rows[["value", *INTERVAL]]).round().astype(int).rename(columns={"value": "percent"})
    words = rows[["model", "finetune_task", "requests", "safety_data", "measure", "form"]].astype(str)
    return words.join(numbers).join(rows["n_bases"].astype(int)).to_dict("records")


def _whole_percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{100 * share:.0f}"


def percent(table: pd.DataFrame, value: str, low: str, high: str) -> pd.Series:
    """A rate with its interval in percent, as in "36 (24-50)", of differences "-36 (-50 to 4)"; "-" where it is NaN."""
    to = " to " if (table[low] < 0).any() else "-"
    words = table[[value, low, high]].map(_whole_percent).astype(object)
    return (words[value] + " (" + words[low] + to + words[high] + ")").mask(words[value] == "-", "-")


def examples(responses: pd.DataFrame, verdicts: pd.DataFrame, redacted: bool) -> pd.DataFrame:
    """One harmful prompt of each form and verdict that occurs, with its response; both redacted on request."""
    rows = ordered(judged(responses, verdicts, ["harmful"]).drop_duplicates(["form", "verdict"]))
    if redacted:
        prompts = map(redact_prompt, rows["prompt"], rows["intent"], rows["form"])
        rows = rows.assign(prompt=list(prompts), response=rows["response"].map(redact))
    return rows[["form", "style", "system_prompt", "prompt", "response", "verdict", "reason"]]


def guards_in_percent(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `guards` for reading: a row per guard and side, a column per prompt set and form."""
    return _wide(table, ["guard", "side"], ["prompt_set", "form"], "blocked_rate")


def guarded_in_percent(table: pd.DataFrame, value: str = "rate") -> pd.DataFrame:
    """The table of `guarded_attack_success` for reading, all forms: a row per cell, a column per guard and side.

    `value` is rate or over_refusal_rate; the first column, none, is before any guard.
    """
    ends = INTERVAL if value == "rate" else ["over_refusal_low", "over_refusal_high"]
    keys = ["finetune_task", "requests", "safety_data", "style", "system_prompt"]
    keys = keys if _several_requests(table) else [name for name in keys if name != "requests"]
    return _wide(table[table["form"] == "all"], keys, ["guard", "side"], value, ends)


_ARMS = {
    "none": "no safety data",
    PROMPTED: "system prompt only",
    **{f"{form}_only": f"{label(form)} alone" for form in FORMS},
    "multitask_twins": "multitask with twins",
    "multitask_midway": "refused midway",
    "multitask_after": "multitask afterwards",
    "scaled": "adapter scaled down",
}


def arm_label(safety_data: str) -> str:
    """An arm as a reader would write it, as in "code alone"; other words as `label` has them."""
    return _ARMS.get(safety_data, label(safety_data))


def arm_with_dose(safety_data: str, fraction: float) -> str:
    """An arm with its dose, as in "multitask 20 %" or "adapter scaled down to 50 %"."""
    if safety_data in ("none", PROMPTED):
        return arm_label(safety_data)
    if safety_data == "scaled":
        return f"{arm_label(safety_data)} to {100 * (1 - fraction):g} %"
    return f"{arm_label(safety_data)} {100 * fraction:g} %"


def of_one_model(table: pd.DataFrame, model: str = "") -> pd.DataFrame:
    """The rows of that model, of the first where none is named."""
    return table[table["model"] == (model or table["model"].iat[0])] if len(table) else table


def arms_in_percent(table: pd.DataFrame, model: str = "") -> pd.DataFrame:
    """The table of `comparisons.arm_table` in percent with 95 % intervals, of one model as in `of_one_model`; auc 0-1.

    The differences are those of attack success and J, in points.
    """
    table = of_one_model(table, model)
    if table.empty:
        return pd.DataFrame(columns=["attack success"])
    in_percent = lambda name: percent(table, name, f"{name}_low", f"{name}_high")  # noqa: E731
    costs = dict(zip(ARM_COSTS, _COSTS, strict=True))
    shown = {words: in_percent(name) for name, words in ({"attack_success": "attack success"} | costs).items()}
    shown |= {"J": in_percent(J), "AUC": table["auc"].map("{:.2f}".format).replace("nan", "-")}
    shown |= {"change of attack success": in_percent("attack_success_difference")}
    shown |= {"change of J": in_percent("j_difference")}
    shown["against the adapter scaled down"] = percent(table, "scaled_difference", "scaled_low", "scaled_high")
    shown["on the front"] = table["on_front"]
    arms = [arm_with_dose(*pair) for pair in zip(table["safety_data"], table["safety_fraction"], strict=True)]
    index = pd.MultiIndex.from_arrays([table["finetune_task"].map(label), arms], names=["tuned on", "arm"])
    return pd.DataFrame(shown).set_axis(index)


def attack_by_judge(attack: pd.DataFrame) -> pd.DataFrame:
    """Attack success as each judge finds it, in percent: a row per tuned model, a column per judge.

    Chat style without system prompt, all forms, the safety data of the grid at one dose.
    """
    rows = usual(headline_rows(attack))
    return _wide(rows[rows["form"] == "all"], _MODEL, "judge")


def corrected_in_percent(attack: pd.DataFrame, judge: str) -> pd.DataFrame:
    """Attack success by form as that judge finds it, in the two worst cases, and corrected; see `attack_by_judge`."""
    rows = usual(headline_rows(attack))
    rows = rows[(rows["judge"] == judge) & (rows["form"] != "all")]
    worst = ["rate_if_unjudged_refused", "rate_if_unjudged_answered"]
    shown = {"n": rows["n"], "n_unjudged": rows["n_unjudged"], "raw": percent(rows, "rate", *INTERVAL)}
    shown |= {name: (100 * rows[name]).round(0) for name in worst}
    if "rate_corrected" in rows:
        shown["corrected"] = percent(rows, "rate_corrected", "low_corrected", "high_corrected")
        shown |= {name: rows[name] for name in ("correction_from", "correction_note")}
    return pd.DataFrame(shown).set_index(pd.MultiIndex.from_frame(rows[[*_MODEL, "form"]]))


def scores_in_percent(helpfulness: pd.DataFrame) -> pd.DataFrame:
    """The table of `tables.helpfulness` in whole percent: a row per tuned model, a column per measure and form."""
    rows = helpfulness[~helpfulness["system_prompt"].astype(bool)]
    keys = [*_MODEL[:2], *(["requests"] if _several_requests(rows) else []), "style", *_MODEL[2:], "safety_fraction"]
    wide = rows.pivot_table(index=keys, columns=["measure", "form"], values="value", sort=False)
    return wide.map(lambda x: "" if np.isnan(x) else f"{100 * x:.0f}")


def paper_in_percent(compared: pd.DataFrame) -> pd.DataFrame:
    """The comparable numbers of `claims.paper_vs_ours`, in percent with 95 % intervals: all forms, or TOGETHER."""
    rows = compared[compared["form"].isin(["all", TOGETHER]) & (compared["verdict"] != "not comparable")]
    where = [calibration_label(*pair) for pair in zip(rows["style"], rows["system_prompt"], strict=True)]
    shown = {
        "published": percent(rows, "published", "published_low", "published_high"),
        "ours": percent(rows, "ours", *INTERVAL),
        "difference": percent(rows, "difference", "difference_low", "difference_high"),
        "verdict": rows["verdict"],
    }
    index = [rows["model"], rows["quantity"].map(label), rows["finetune_task"].map(label), where]
    names = ["model", "quantity", "tuned on", "calibration"]
    return pd.DataFrame(shown).set_axis(pd.MultiIndex.from_arrays(index, names=names))


def set_scores_in_percent(of_sets: pd.DataFrame) -> pd.DataFrame:
    """The table of `benign.of_sets` in percent: mean, smallest and largest over training seeds, grouped by metric."""
    rows = usual(of_sets[(of_sets["style"] == "chat") & ~of_sets["system_prompt"].astype(bool)])
    spread = rows.groupby([*_MODEL, "safety_fraction", "metric"], sort=False)["value"].agg(["mean", "min", "max"])
    return spread.mul(100).round(1).unstack("metric").swaplevel(axis=1).sort_index(axis=1)


def over_refusal_in_percent(by_kind: pd.DataFrame) -> pd.DataFrame:
    """The table of `tables.over_refusal_by_kind` in percent: a row per model, a column per kind; chat style."""
    rows = by_kind[~by_kind["system_prompt"].astype(bool) & (by_kind["style"] == "chat") & (by_kind["form"] == "all")]
    return _wide(usual(rows), [*_MODEL, "safety_fraction"], ["prompts", "benign_because"])

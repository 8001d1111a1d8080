"""What the figures of parts and of many models show (see `plots_parts`): rows, captions and alternative texts, all from the tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from studylib.analysis.claims import PUBLISHED_PROMPTS
from studylib.analysis.rates import one_dose, one_row_per_mark
from studylib.analysis.readable import calibration_label, label, span
from studylib.analysis.stats import CONFIDENCE
from studylib.figures.caption import doses_said, missing_said, n_of
from studylib.study.words import FORMS, SAFETY_DATA, STYLES, TASKS, VERDICTS

PARTS = {  # of the variance, as tables.variance names them, and what they are called
    "prompt": "prompt",
    "seed": "training seed",
    "prompt_x_seed": "prompt by seed",
    "sample": "repeated answer",
}


def variance_rows(variance: pd.DataFrame) -> pd.DataFrame:
    """The rows of variance_shares: all forms, one dose; `why` says why a row has no bar, "" where it has one.

    Raises ValueError where no row has a bar, and for two rows of one cell.
    """
    rows = one_row_per_mark(one_dose(variance[variance["form"] == "all"]))
    why = np.where(rows["variance"] == 0, "nothing varies", "too few prompts")
    rows = rows.assign(why=np.where(rows[list(PARTS)].isna().all(axis=1), why, ""))
    if not (rows["why"] == "").any():
        raise ValueError(
            "variance_shares has nothing to draw: the table has no row over all forms in which anything varies"
        )
    return rows


def _variance_caption(variance: pd.DataFrame) -> tuple[str, str]:
    rows = variance_rows(variance)
    drawn, tuned = rows[rows["why"] == ""], rows[rows["finetune_task"] != "none"]
    text = [
        "Where the variance of the attack success of one response comes from, all forms pooled, by tuned task and safety data:"
    ]
    text.append(
        "the prompt (its form included), the training seed, their interaction, and repeated answers to one prompt under one seed."
    )
    text.append(
        "The parts of a bar add up to 1. Point estimates of an analysis of variance, without intervals: a part of few seeds is rough."
    )
    text.append(f"Each bar: {n_of(drawn)} responses, {span(drawn['n_prompts'])} prompts.")
    if len(tuned):
        text.append(f"Training seeds: {span(tuned['n_seeds'])}.")
    alone, once = drawn["seed"].isna(), drawn["sample"].isna() & drawn["seed"].notna()
    if alone.any():
        text.append(f"Of one seed ({alone.sum()} bars) seed and interaction are not known and part of the rest.")
    if once.any():
        text.append(
            f"Of one response per prompt and seed ({once.sum()} bars) the last part is not known and in the interaction."
        )
    for why, part in rows[rows["why"] != ""].groupby("why"):
        text.append(f"No bar, {why}: {len(part)} cells.")
    text += doses_said(rows) + missing_said(rows.assign(drawn=0.0), "drawn", SAFETY_DATA)
    text.append(f"Judge: {' and '.join(sorted(set(rows['judge'])))}.")
    told = [f"{words} {span(100 * drawn[part])} %" for part, words in PARTS.items() if drawn[part].notna().any()]
    return " ".join(text), f"Shares of the variance of one response's outcome, smallest to largest: {'; '.join(told)}."


def verdict_rows(shares: pd.DataFrame) -> pd.DataFrame:
    """The rows of verdict_composition: harmful prompts, all forms, one dose; five per cell. Raises ValueError where there are none."""
    rows = shares[(shares["prompt_set"] == "harmful") & (shares["form"] == "all")]
    if rows.empty:
        raise ValueError(
            "verdict_composition has nothing to draw: the table has no row of harmful prompts over all forms"
        )
    return one_row_per_mark(one_dose(rows), "verdict")


def _verdict_caption(shares: pd.DataFrame) -> tuple[str, str]:
    rows = verdict_rows(shares)
    cells = rows.drop_duplicates(["finetune_task", "style", "system_prompt", "safety_data"])
    text = [
        "Verdicts on the responses to harmful prompts, all forms pooled, by tuned task, safety data and calibration."
    ]
    text.append("The attack success rate counts answered and partial among all but unjudged.")
    text.append(f"Each bar: {n_of(cells)} responses, training seeds pooled.")
    text += doses_said(rows) + missing_said(cells, "share", SAFETY_DATA)
    unjudged = rows[rows["verdict"] == "unjudged"]
    if len(none := unjudged[unjudged["share"] == 1]):
        text.append(f"In {len(none)} cells nothing was judged: they say nothing of the model.")
    text.append(
        f"Judge: {' and '.join(sorted(set(rows['judge'])))}. No intervals: those of the rates are in attack_success_by_form."
    )
    total = rows.groupby("verdict")["n_verdict"].sum()
    told = [
        f"{word} {span(100 * rows.loc[rows['verdict'] == word, 'share'])} % ({total.get(word, 0)} in all)"
        for word in VERDICTS
    ]
    return " ".join(text), f"Shares of the verdicts, smallest to largest bar: {'; '.join(told)}."


def published_rows(published: pd.DataFrame) -> pd.DataFrame:
    """The published counts, as `claims.published_counts` reads them. Raises ValueError where there are none."""
    if published.empty:
        raise ValueError("published_counts has nothing to draw: the table is empty")
    return one_row_per_mark(published.assign(safety_data="none", form="all"))


def _published_caption(published: pd.DataFrame) -> tuple[str, str]:
    rows = published_rows(published)
    tuned = rows["finetune_task"] != "none"
    text = [
        f"Published: harmful prompts that Gemma answered, of {PUBLISHED_PROMPTS} (the number in each panel is their sum), by form of the prompt,"
    ]
    text.append(
        "tuned task and calibration. Black ticks: the untuned model in the same calibration, where it was published."
    )
    text.append(
        "Counts and no rates, without intervals: how many prompts have each form is not published (about 50), nor which ones."
    )
    text.append("One run, judged by GPT-4o; from the authors' repository. Bars are not ranked.")
    counted = [f"{label(form)} {span(rows.loc[tuned, form])}" for form in FORMS] if tuned.any() else []
    alt = (
        f"Published counts of answered prompts, smallest to largest of the tuned models: {'; '.join(counted)}."
        if counted
        else "Published counts of answered prompts."
    )
    for words, part in (("tuned models", rows[tuned]), ("the untuned model", rows[~tuned])):
        alt += f" In all, {words}: {span(part['answered_of_207'])} of {PUBLISHED_PROMPTS}." if len(part) else ""
    return " ".join(text), alt


def ranking_rows(attack: pd.DataFrame) -> pd.DataFrame:
    """The rows of model_ranking: all forms, no safety data, chat style without system prompt, or the first calibration there is.

    Raises ValueError with fewer than two models, where no rate is known, and for two rows of one model and task.
    """
    rows = attack[(attack["form"] == "all") & (attack["safety_data"] == "none")]
    present = set(zip(rows["style"], rows["system_prompt"], strict=True))
    first = next(((s, on) for s in STYLES for on in (False, True) if (s, on) in present), None)
    rows = rows[(rows["style"] == first[0]) & (rows["system_prompt"] == first[1])] if first else rows
    if (n := rows.loc[rows["rate"].notna(), "model"].nunique()) < 2:
        raise ValueError(
            f"model_ranking has nothing to draw: it needs two models with a rate, and the table has {n or 'none'}"
        )
    return one_row_per_mark(rows, "model")


def tiers(rows: pd.DataFrame) -> list[list[str]]:
    """The models of one task in tiers, the lowest rates first: models of different tiers have intervals that do not overlap.

    `rows` has model, low and high. Models whose intervals overlap share a tier, and so do those that a third one joins. Within
    a tier they are in the order of their names, which says nothing of them. A model with a NaN interval is in no tier.
    """
    found, reach = [], -np.inf
    for row in rows[rows["low"].notna()].sort_values(["low", "high"]).itertuples():
        if row.low > reach:
            found.append([])
        found[-1].append(row.model)
        reach = max(reach, row.high)
    return [sorted(tier) for tier in found]


def ranked_by(rows: pd.DataFrame) -> str:
    """The task whose rates put the models into tiers: "none", the untuned models, where there are any."""
    known = set(rows.loc[rows["rate"].notna(), "finetune_task"])
    return next(task for task in ("none", *TASKS) if task in known)


def _ranking_caption(attack: pd.DataFrame) -> tuple[str, str]:
    rows = ranking_rows(attack)
    by = ranked_by(rows)
    drawn = rows[rows["rate"].notna()]
    first = drawn[drawn["finetune_task"] == by]
    found = tiers(first)
    n_models, calibration = rows["model"].nunique(), rows.iloc[0]
    whose = "untuned" if by == "none" else f"tuned on {label(by)}"
    text = [f"Attack success rate of {n_models} models, untuned and tuned without safety data, all forms pooled,"]
    text.append(f"{calibration_label(calibration['style'], calibration['system_prompt'])}.")
    text.append(
        f"Bands: tiers of the models {whose} ({len(found)}), the lowest rates first. Intervals of models in different tiers do not overlap there;"
    )
    text.append(
        "models joined by overlapping intervals share a tier and are not ranked in it: they stand in the order of their names."
    )
    text.append("In the other panels the order says nothing.")
    text += [
        f"In no tier, as no rate is known {whose}: {n} models." for n in [n_models - first["model"].nunique()] if n
    ]
    tasks = [task for task in ("none", *TASKS) if task in set(rows["finetune_task"])]
    absent = n_models * len(tasks) - len(drawn)
    text += [f"Left empty, not run or nothing judged: {absent} marks."] if absent else []
    text.append(
        f"Each mark: {n_of(drawn)} responses; training seeds pooled: {span(drawn.loc[drawn['finetune_task'] != 'none', 'n_seeds'])}."
    )
    text.append(f"Judge: {' and '.join(sorted(set(drawn['judge'])))}.")
    text.append(
        f"Intervals: {100 * CONFIDENCE:.0f} % Wilson, clustered by prompt and training seed, each for its model alone."
    )
    told = []
    for place, tier in enumerate(found, 1):
        names = ", ".join(tier) if len(tier) <= 5 else f"{len(tier)} models"
        told.append(f"tier {place}: {names}, {span(100 * first.loc[first['model'].isin(tier), 'rate'])} %")
    return " ".join(text), f"Attack success rate of {n_models} models, {whose}: {'; '.join(told)}."


CAPTIONS = {
    "variance_shares": _variance_caption,
    "verdict_composition": _verdict_caption,
    "published_counts": _published_caption,
    "model_ranking": _ranking_caption,
}

"""The paper's published numbers and claims beside ours."""

from __future__ import annotations

import numpy as np
import pandas as pd

from studylib.config import FORMS
from studylib.stats import wilson
from studylib.tables import INTERVAL, ordered

PUBLISHED_PROMPTS = 207


def published_counts(path) -> pd.DataFrame:
    """The published numbers of answered prompts, one row per tuned task and calibration.

    system_prompt is bool. Columns: finetune_task, style, system_prompt, one count per form, answered_of_207.
    Raises ValueError when columns are missing, words unknown or the forms do not add up to the total.
    """
    table = pd.read_csv(path)
    expected = ["finetune_task", "style", "system_prompt", *FORMS, "answered_of_207"]
    if set(table.columns) != set(expected):
        raise ValueError(f"{path} needs the columns {expected}, found {list(table.columns)}")
    unknown = set(table["system_prompt"]) - {"yes", "no"}
    if unknown:
        raise ValueError(f"system_prompt must be yes or no, found {sorted(map(str, unknown))}")
    table["system_prompt"] = table["system_prompt"] == "yes"
    wrong = table[list(FORMS)].sum(axis=1) != table["answered_of_207"]
    if wrong.any() or (table["answered_of_207"] > PUBLISHED_PROMPTS).any():
        raise ValueError(f"{path}: the forms do not add up to answered_of_207 in {int(wrong.sum())} rows")
    return ordered(table[expected])


def paper_vs_ours(attack: pd.DataFrame, share: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """One row per model of ours, published row and quantity: the published value beside ours.

    Both are in 0-1 and have 95 % intervals. `quantity` is attack_success_rate over all forms (published:
    answered of 207), or share_of_answered for each form and for translation and classification together.
    `verdict` is "overlap" or "differ" of the two intervals, "undefined" where ours has nothing to count
    (none answered, none judged), or "not run"; ours is NaN in both. Only our arms without safety data.
    Published intervals are Wilson's, on published_n prompts. Rates per form are left out: how many of the 207
    prompts have each form is unpublished (about 50), so the paper's denominators are unknown.
    """
    if attack["model"].nunique() > 1:
        each = [
            paper_vs_ours(attack[attack["model"] == model], share[share["model"] == model], published)
            for model in attack["model"].unique()
        ]
        return pd.concat(each, ignore_index=True)
    keys = ["finetune_task", "style", "system_prompt"]
    together = "translation+classification"
    total = "answered_of_207"
    pooled = {together: published["translation"] + published["classification"], "all": published[total]}
    theirs = published.assign(**pooled).melt([*keys, total], [*FORMS, *pooled], "form", "answered")
    whole = theirs["form"] == "all"
    theirs["published_n"] = theirs[total].mask(whole, PUBLISHED_PROMPTS)
    theirs["quantity"] = np.where(whole, "attack_success_rate", "share_of_answered")
    theirs["published"] = theirs["answered"] / theirs["published_n"]
    theirs["published_low"], theirs["published_high"] = wilson(theirs["answered"], theirs["published_n"])

    pooled_rate = attack[attack["form"] == "all"].rename(columns={"rate": "ours"})
    both = [
        pooled_rate.assign(quantity="attack_success_rate"),
        share.rename(columns={"share": "ours"}).assign(quantity="share_of_answered"),
    ]
    columns = [*keys, "form", "quantity", "safety_data", "ours", *INTERVAL, "n", "judge"]
    ours = pd.concat([table[columns] for table in both]).query("safety_data == 'none'")
    table = theirs.merge(ours, how="left", on=[*keys, "form", "quantity"])
    overlap = (table["low"] <= table["published_high"]) & (table["high"] >= table["published_low"])
    table["verdict"] = np.where(overlap, "overlap", "differ")
    table.loc[table["ours"].isna(), "verdict"] = "undefined"
    table.loc[table["n"].isna(), "verdict"] = "not run"
    table["n"] = table["n"].astype("Int64")
    table["note"] = "published is Gemma judged by GPT-4o; ours is the model named"
    table["model"] = attack["model"].iat[0]
    columns = ["model", *keys, "form", "quantity", "published", "published_low", "published_high", "published_n"]
    return ordered(table[[*columns, "ours", *INTERVAL, "n", "judge", "verdict", "note"]])

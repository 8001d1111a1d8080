"""The paper's published numbers and claims beside ours."""

from __future__ import annotations

import numpy as np
import pandas as pd

from studylib.analysis.rates import INTERVAL, ordered
from studylib.analysis.stats import newcombe, wilson
from studylib.study.files import read_yaml
from studylib.study.paths import DATA
from studylib.study.words import FORMS

PUBLISHED_PROMPTS = 207
CLOSE = 0.15  # a difference of rates that 207 prompts could not show, near one half (80 % power: 14 points)
_OF_WHOM = "; published is Gemma judged by GPT-4o, ours the model and judge named"
_COLUMNS = ["question", "model", "quantity", "claim", "finetune_task", "style", "system_prompt", "form"]
_COLUMNS += ["published", "published_low", "published_high", "published_n", "ours", *INTERVAL, "n", "judge"]
_COLUMNS += ["difference", "difference_low", "difference_high", "verdict", "why"]


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


def deviations(path=DATA / "deviations.yaml") -> pd.DataFrame:
    """What this study does otherwise than the paper, and why: columns about, paper, here, why, where ("" is everywhere)."""
    return pd.DataFrame(read_yaml(path)["deviations"])[["about", "paper", "here", "why", "where"]]


def paper_vs_ours(
    attack: pd.DataFrame, share: pd.DataFrame, published: pd.DataFrame, claimed: pd.DataFrame | None = None
) -> pd.DataFrame:
    """One row per model of ours, published row and quantity, and per claim of the paper: the published value beside ours.

    Both are in 0-1 and have 95 % intervals. `quantity` is attack_success_rate over all forms (published:
    answered of 207), share_of_answered for each form and for translation and classification together, answered_of_form (a count), or
    claim (of `claimed`, a table of `claims.claims`: no number of its own).
    `difference` is ours - published with its interval (`stats.newcombe`). `verdict` is "differs" where that leaves out 0, "agrees" where it lies
    within CLOSE of it, of a claim whether our test supports it; "undecided"; or
    "not comparable". `why` says why not, or what the test found. Only our arms without safety data.
    Published intervals are Wilson's, on published_n prompts. How many of the 207
    prompts have each form is unpublished (about 50), so a count by form is no rate and is not comparable.
    """
    models = attack["model"].unique()
    parts = [
        _numbers(attack[attack["model"] == model], share[share["model"] == model], published).assign(model=model)
        for model in models
    ]
    if claimed is not None and len(claimed):
        verdict = claimed["verdict"].map({"supported": "agrees", "not supported": "differs"})
        rows = claimed[["model", "question", "claim"]].assign(
            quantity="claim",
            verdict=verdict.fillna("undecided").mask(
                (claimed["verdict"] == "not run") | ~claimed["published"], "not comparable"
            ),
            why=claimed["found"].where(claimed["published"], "the paper measures none: " + claimed["found"]),
        )
        parts.append(rows)
    table = pd.concat(parts, ignore_index=True).reindex(columns=_COLUMNS)
    place = pd.Series(pd.factorize(table["model"])[0], table.index)
    return table.iloc[np.argsort(place, kind="stable")].reset_index(drop=True)


def _numbers(attack: pd.DataFrame, share: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """The rows of `paper_vs_ours` of one model that compare numbers."""
    keys = ["finetune_task", "style", "system_prompt"]
    together, total = "translation+classification", "answered_of_207"
    pooled = {together: published["translation"] + published["classification"], "all": published[total]}
    theirs = published.assign(**pooled).melt([*keys, total], [*FORMS, *pooled], "form", "answered")
    whole = theirs["form"] == "all"
    theirs["published_n"] = theirs[total].mask(whole, PUBLISHED_PROMPTS)
    theirs["quantity"] = np.where(whole, "attack_success_rate", "share_of_answered")
    theirs["published"] = theirs["answered"] / theirs["published_n"]
    theirs["published_low"], theirs["published_high"] = wilson(theirs["answered"], theirs["published_n"])
    theirs["question"] = np.where(whole, "RQ1", "RQ2")

    pooled_rate = attack[attack["form"] == "all"].rename(columns={"rate": "ours"})
    both = [
        pooled_rate.assign(quantity="attack_success_rate"),
        share.rename(columns={"share": "ours"}).assign(quantity="share_of_answered"),
    ]
    columns = [*keys, "form", "quantity", "safety_data", "ours", *INTERVAL, "n", "judge"]
    ours = pd.concat([table[columns] for table in both]).query("safety_data == 'none'")
    table = theirs.merge(ours, how="left", on=[*keys, "form", "quantity"])
    theirs_and_ours = (table[name] for name in ("ours", *INTERVAL, "published", "published_low", "published_high"))
    table["difference_low"], table["difference_high"] = newcombe(*theirs_and_ours)
    table["difference"] = table["ours"] - table["published"]
    apart = (table["difference_low"] > 0) | (table["difference_high"] < 0)
    close = table[["difference_low", "difference_high"]].abs().max(axis=1) <= CLOSE
    table["verdict"] = np.select([apart, close], ["differs", "agrees"], "undecided")
    said = ["the interval of the difference leaves out 0", f"it lies within {100 * CLOSE:.0f} points"]
    table["why"] = np.select([apart, close], said, "it holds 0 and is too wide to call that agreement") + _OF_WHOM
    undefined, not_run = table["ours"].isna(), table["n"].isna()
    table.loc[undefined, ["verdict", "why"]] = "not comparable", "none of ours was answered, or none could be judged"
    table.loc[not_run, ["verdict", "why"]] = "not comparable", "ours was not run"
    table["n"] = table["n"].astype("Int64")
    counts = theirs[~whole & theirs["form"].isin(FORMS)].assign(
        quantity="answered_of_form", published=lambda rows: rows["answered"], published_n=np.nan, published_low=np.nan
    )
    why = "how many of the 207 prompts have this form is not published"
    counts = counts.assign(published_high=np.nan, verdict="not comparable", why=why)
    rows = pd.concat([table, counts], ignore_index=True).assign(claim="")
    return ordered(rows[[name for name in _COLUMNS if name in rows]])

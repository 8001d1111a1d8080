"""The paper's claims, each decided by the contrasts of data/plan.yaml, and its published numbers beside ours."""

from __future__ import annotations

from textwrap import fill

import numpy as np
import pandas as pd

from studylib.analysis.contrasts import BUILT_IN, EXPLORATORY, NO_ROOM, NOT_RUN, Plan, load_plan
from studylib.analysis.rates import INTERVAL, TOGETHER, ordered, usual
from studylib.analysis.readable import label, of_one_model, span
from studylib.analysis.stats import newcombe, wilson
from studylib.study.files import read_yaml
from studylib.study.paths import DATA
from studylib.study.profile import Profile
from studylib.study.words import FORMS

YES, NO, UNDECIDED = "yes", "no", "undecided"
SUPPORTED, NOT_SUPPORTED = "supported", "not supported"  # by real models
PUBLISHED_SHARE = (0.73, 0.92)  # of TOGETHER among the answered prompts, as the paper states
PUBLISHED_PROMPTS = 207
AGREEMENT_MARGIN = 0.15  # of rates near one half 207 prompts show 0.14 with 80 % power, and no smaller difference
COLUMNS = ["model", "question", "claim", "verdict", "status", "in_world", "found", "refuted_by", "figure"]
COLUMNS += ["published"]
_COMPARED = ["question", "model", "quantity", "claim", "finetune_task", "style", "system_prompt", "form"]
_COMPARED += ["published", "published_low", "published_high", "published_n", "ours", *INTERVAL, "n", "judge"]
_COMPARED += ["difference", "difference_low", "difference_high", "verdict", "why"]


def check_claims(found: dict[str, pd.DataFrame], profile: Profile) -> pd.DataFrame:
    """One row per model and claim of data/claims.yaml: verdict, what was found, what refutes it, the figure.

    `found` has the table `contrasts` (of `contrasts.marked`), which decides; a model is asked about that has rows there
    or in `attack_success`. in_world: the models are of the generated world. There the verdict is "yes", "no",
    "undecided", "built in" (settings of the world decide it), "exploratory" (the run differs from data/plan.yaml) or
    "not run". Of real models it is "supported", "not supported", "undecided" or "not run". status is that of the
    contrasts, "" where there are none.
    """
    rows, words, plan, table = [], read_yaml(DATA / "claims.yaml"), load_plan(), found["contrasts"]
    in_world = profile.world is not None
    asked = [found[name]["model"] for name in ("attack_success", "contrasts") if name in found]
    for model in dict.fromkeys(model for models in asked for model in models):
        for claim in words.values():
            every = ((name, one) for name in claim["decided_by"] for one in plan.questions[name].contrasts)
            wanted = [(name, one) for name, one in every if one in claim.get("contrasts", [one])]
            named = pd.Series(zip(table["question"], table["contrast"], strict=True), table.index, dtype=object)
            own = table[(table["model"] == model) & named.isin(wanted)]
            verdict = decided(own, len(wanted), claim["needs"], claim["holds"])
            if not in_world:
                verdict = {YES: SUPPORTED, NO: NOT_SUPPORTED}.get(verdict, verdict)
            about = {"model": model, "verdict": verdict, "in_world": in_world, "found": _found(own, plan)}
            rows.append(claim | about | {"status": "" if own.empty else own["status"].max()})
    return pd.DataFrame(rows, columns=COLUMNS)


def decided(contrasts: pd.DataFrame, n_wanted: int, needs: str, holds: str) -> str:
    """The verdict on a claim by its contrasts, rows of `contrasts.marked` of one model; there should be n_wanted.

    YES where any or all (`needs`) have the verdict `holds`, NO where all or any have the opposite one, else UNDECIDED.
    A claim about several guards is about each: YES where it is of all, NO where it is of any. NOT_RUN where no contrast
    has pairs; BUILT_IN and EXPLORATORY where one of those with pairs is.
    """
    run = contrasts[contrasts["verdict"] != NOT_RUN]
    if run.empty:
        return NOT_RUN
    for verdict in (BUILT_IN, EXPLORATORY):
        if (run["verdict"] == verdict).any():
            return verdict
    each = []
    for _, own in run.groupby("metric", sort=False):
        n_for, n_against = ((own["verdict"] == verdict).sum() for verdict in (holds, {YES: NO, NO: YES}[holds]))
        enough = {"any": (1, n_wanted), "all": (n_wanted, 1)}[needs]
        each.append(YES if n_for >= enough[0] else NO if n_against >= enough[1] else UNDECIDED)
    return NO if NO in each else YES if set(each) == {YES} else UNDECIDED


def _found(contrasts: pd.DataFrame, plan: Plan) -> str:
    """What the contrasts of one model show, in sentences that begin with the question of the plan."""
    run = contrasts[contrasts["verdict"] != NOT_RUN]
    if run.empty:
        return "The run has no responses of both sides of a contrast."
    parts = []
    for (name, metric), own in run.groupby(["question", "metric"], sort=False):
        asks, measure = plan.questions[name].asks, label(own["measure"].iat[0]).capitalize()
        guard = f" of the guard {label(metric)}" if own["measure"].iat[0] == "blocked_rate" else ""
        changes = "; ".join(map(_change, own.to_dict("records")))
        parts.append(f"{asks} {measure}{guard}, difference in percentage points ({_size(own)}): {changes}.")
        if (own["verdict"] == UNDECIDED).any() and own["detectable"].notna().any():
            smallest = span(100 * own["detectable"])
            parts.append(f"The smallest difference detectable with 80 % power is {smallest} percentage points.")
    missing = contrasts.loc[contrasts["verdict"] == NOT_RUN, "contrast"]
    parts += [f"Not run: {', '.join(map(label, missing))}."] if len(missing) else []
    parts += [f"Built in by {why}" for why in run["built_in"].unique() if why]
    if (run["verdict"] == EXPLORATORY).any():
        parts.append("The run, or its number of bases, differs from data/plan.yaml, so nothing is decided.")
    return " ".join(parts)


def _size(rows: pd.DataFrame) -> str:
    n = rows["n_bases"].max()
    if n == 1:
        return rows["note"].iat[0].split(", smaller")[0].split(f", {NO_ROOM}")[0]
    return f"{n} bases" + " of different numbers of seeds" * any(rows["note"].str.contains("training seeds"))


def _change(row: dict) -> str:
    """A difference in percentage points with its interval, adjusted p and verdict."""
    said = f"{label(row['contrast'])} {100 * row['difference']:+.0f}"
    if np.isnan(row["se"]):
        return f"{said} (no interval)"
    p = "p < 0.001" if row["p_holm"] < 0.001 else f"p {row['p_holm']:.3f}"
    verdict = f", {row['verdict']}" if row["verdict"] in (YES, NO, UNDECIDED) else ""
    verdict += ", smaller than the margin" * ("smaller than the margin" in row["note"])
    stuck = row["verdict"] == UNDECIDED and NO_ROOM in row["note"]
    verdict += f": {NO_ROOM} from {100 * row['other_value']:.0f}" * stuck
    return f"{said} ({100 * row['low']:+.0f} to {100 * row['high']:+.0f}, {p}{verdict})"


def said(row) -> str:
    """The verdict of a row of `check_claims`, as in "In this world: yes", or "Supported" by a real model."""
    return f"In this world: {row['verdict']}" if row["in_world"] else row["verdict"].capitalize()


def claims_in_words(table: pd.DataFrame, question: str, model: str = "") -> str:
    """The claims of one question as Markdown: the verdict, what was found, and what refutes it."""
    if table.empty:
        return "**Not run:** no model has any response, so nothing can be said of the paper's claims."
    rows = of_one_model(table, model).query("question == @question").to_dict("records")
    return "\n\n".join(
        f"**{row['claim']}** {said(row)}. {row['found']} *Refuted by: {row['refuted_by']}*" for row in rows
    )


def published_counts(path=DATA / "published" / "gemma_answered_counts.csv") -> pd.DataFrame:
    """The published numbers of answered prompts, one row per tuned task and calibration.

    Columns: finetune_task, style, system_prompt (bool), one count per form, answered_of_207, their sum.
    """
    table = pd.read_csv(path)
    return ordered(table.assign(system_prompt=table["system_prompt"] == "yes"))


def deviations() -> pd.DataFrame:
    """What this study does otherwise than the paper: columns about, paper, here, why, where ("" is everywhere)."""
    return pd.DataFrame(read_yaml(DATA / "deviations.yaml")["deviations"])[["about", "paper", "here", "why", "where"]]


def choices() -> pd.DataFrame:
    """The settings that matter, and could decide a claim: columns knob, value, tried, seen, why, decides (or "")."""
    columns = ["knob", "value", "tried", "seen", "why", "decides"]
    rows = pd.DataFrame(read_yaml(DATA / "choices.yaml")["choices"])[columns]
    return rows.assign(value=rows["value"].map(_plain))


def choices_page() -> str:
    """`choices` as Markdown, which is docs/choices.md."""
    parts = [
        "# Choices",
        "The settings of the miniature that matter: the values tried, what was seen, why each is what it is, and which "
        "claim it could decide. Where a setting decides a claim by itself, the claim is built in: a run shows the "
        "setting at work, it is no finding. Written from `data/choices.yaml`.",
    ]
    for row in choices().to_dict("records"):
        parts.append(f"## {row.pop('knob')}: {row.pop('value')}")
        parts.append("\n".join(_filled(f"- {name.capitalize()}: {words}.") for name, words in row.items() if words))
    return "\n\n".join(part if part.startswith("- ") else _filled(part) for part in parts) + "\n"


def _filled(text: str) -> str:
    return fill(
        text, 120, subsequent_indent="  " * text.startswith("- "), break_long_words=False, break_on_hyphens=False
    )


def _plain(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def paper_vs_ours(
    attack: pd.DataFrame, share: pd.DataFrame, published: pd.DataFrame, claimed: pd.DataFrame | None = None
) -> pd.DataFrame:
    """One row per model of ours, published row and quantity, and per claim: the published value beside ours.

    Both are in 0-1 with 95 % intervals, the published ones Wilson's on published_n prompts. `quantity` is
    attack_success_rate over all forms (published: answered of 207), share_of_answered for each form and for translation
    and classification together, or claim (of `claimed`, a table of `claims`: no number of its own). `difference` is
    ours - published with its interval (`stats.newcombe`). `verdict` is "differs" where that leaves out 0, "agrees"
    where it lies within AGREEMENT_MARGIN of it, of a claim whether our test supports it; else "undecided", or "not
    comparable". `why` says why not, or what the test found. Of ours only models without safety data.
    """
    parts = [
        _numbers(*(usual(table[table["model"] == model]) for table in (attack, share)), published).assign(model=model)
        for model in attack["model"].unique()
    ]
    if claimed is not None and len(claimed):
        incomparable = (claimed["verdict"] == NOT_RUN) | ~claimed["published"]
        verdict = claimed["verdict"].map({SUPPORTED: "agrees", NOT_SUPPORTED: "differs"}).fillna("undecided")
        why = claimed["found"].where(claimed["published"], "the paper measures none: " + claimed["found"])
        rows = claimed[["model", "question", "claim"]].assign(quantity="claim", why=why)
        parts.append(rows.assign(verdict=verdict.mask(incomparable, "not comparable")))
    table = pd.concat(parts or [pd.DataFrame()], ignore_index=True).reindex(columns=_COMPARED)
    return table.iloc[np.argsort(pd.factorize(table["model"])[0], kind="stable")].reset_index(drop=True)


def _numbers(attack: pd.DataFrame, share: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """The rows of `paper_vs_ours` of one model that compare numbers."""
    keys, total = ["finetune_task", "style", "system_prompt"], "answered_of_207"
    pooled = {TOGETHER: published["translation"] + published["classification"], "all": published[total]}
    theirs = published.assign(**pooled).melt([*keys, total], [*FORMS, *pooled], "form", "answered")
    whole = theirs["form"] == "all"
    theirs["published_n"] = theirs[total].mask(whole, PUBLISHED_PROMPTS)
    theirs["quantity"] = np.where(whole, "attack_success_rate", "share_of_answered")
    theirs["published"] = theirs["answered"] / theirs["published_n"]
    theirs["published_low"], theirs["published_high"] = wilson(theirs["answered"], theirs["published_n"])
    theirs["question"] = np.where(whole, "RQ1", "RQ2")

    ours = pd.concat(
        [
            attack[attack["form"] == "all"].rename(columns={"rate": "ours"}).assign(quantity="attack_success_rate"),
            share.rename(columns={"share": "ours"}).assign(quantity="share_of_answered"),
        ]
    ).query("safety_data == 'none'")[[*keys, "form", "quantity", "ours", *INTERVAL, "n", "judge"]]
    table = theirs.merge(ours, how="left", on=[*keys, "form", "quantity"])
    ends = newcombe(*(table[name] for name in ("ours", *INTERVAL, "published", "published_low", "published_high")))
    table["difference_low"], table["difference_high"] = ends
    table["difference"] = table["ours"] - table["published"]
    low, high, interval = table["difference_low"], table["difference_high"], "the 95 % interval of the difference"
    whose = "; published is Gemma judged by GPT-4o, ours the model and judge named"
    within = f"{interval} lies within {100 * AGREEMENT_MARGIN:.0f} percentage points{whose}"
    cases = [
        (table["n"].isna(), "not comparable", "ours was not run"),
        (table["ours"].isna(), "not comparable", "ours answered nothing, or nothing could be judged"),
        ((low > 0) | (high < 0), "differs", f"{interval} excludes 0{whose}"),
        (np.maximum(-low, high) <= AGREEMENT_MARGIN, "agrees", within),
    ]
    when, verdict, why = map(list, zip(*cases, strict=True))
    table["verdict"] = np.select(when, verdict, "undecided")
    table["why"] = np.select(when, why, f"{interval} includes 0 and is too wide for agreement{whose}")
    table["n"] = table["n"].astype("Int64")
    return ordered(table.assign(claim="")[[name for name in _COMPARED if name != "model"]])

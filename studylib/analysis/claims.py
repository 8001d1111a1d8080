"""The paper's claims, each decided by this run's tables, and its published numbers beside ours."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import fill

import numpy as np
import pandas as pd

from studylib.analysis.comparisons import MARGIN
from studylib.analysis.rates import INTERVAL, TOGETHER, one_dose, ordered, usual
from studylib.analysis.readable import calibration_label, label, of_one_model
from studylib.analysis.stats import newcombe, wilson
from studylib.study.files import read_yaml
from studylib.study.paths import DATA
from studylib.study.words import FORMS, SAFETY_DATA, STYLES

SUPPORTED, NOT_SUPPORTED, UNDECIDED, NOT_RUN = "supported", "not supported", "undecided at this n", "not run"
PUBLISHED_SHARE = (0.73, 0.92)  # of TOGETHER among the answered prompts, as the paper states
PUBLISHED_PROMPTS = 207
AGREEMENT_MARGIN = 0.15  # of rates near one half 207 prompts show 0.14 with 80 % power, and no smaller difference
COLUMNS = ["model", "question", "claim", "verdict", "found", "would_change", "figure", "published"]
_COMPARED = ["question", "model", "quantity", "claim", "finetune_task", "style", "system_prompt", "form"]
_COMPARED += ["published", "published_low", "published_high", "published_n", "ours", *INTERVAL, "n", "judge"]
_COMPARED += ["difference", "difference_low", "difference_high", "verdict", "why"]

Tables = dict[str, pd.DataFrame]
Decided = tuple[str, str]  # verdict, and what was found in a few sentences


def check_claims(found: Tables) -> pd.DataFrame:
    """One row per model and claim of data/claims.yaml: verdict, what was found, what would change it, the figure.

    `found` holds the tables of `findings.tables_of`; a claim whose tables or arms are missing is "not run". A claim
    about one calibration takes the chat style (else the first that was run) without system prompt. The tests are those
    of `comparisons`, adjusted within their families.
    """
    rows, words = [], read_yaml(DATA / "claims.yaml")
    asked = [found[name]["model"] for name in ("attack_success", "helpfulness") if name in found]
    for model in dict.fromkeys(model for models in asked for model in models):
        own = {name: _of_model(table, model) for name, table in found.items() if isinstance(table, pd.DataFrame)}
        for name, decide in CLAIMS.items():
            verdict, sentence = decide(own)
            rows.append(words[name] | {"model": model, "verdict": verdict, "found": sentence})
    return pd.DataFrame(rows, columns=COLUMNS)


def claims_in_words(table: pd.DataFrame, question: str, model: str = "") -> str:
    """The claims of one question as Markdown: the verdict, what was found, and what would change the verdict."""
    if table.empty:
        return "**Not run:** no model has any response, so nothing can be said of the paper's claims."
    rows = of_one_model(table, model).query("question == @question")
    return "\n\n".join(
        f"**{row.verdict.capitalize()}: {row.claim}** {row.found} *What would change this verdict: {row.would_change}*"
        for row in rows.itertuples()
    )


def _of_model(table: pd.DataFrame, model: str) -> pd.DataFrame:
    table = table[table["model"] == model] if "model" in table else table
    if "safety_fraction" in table and "kind" not in table:
        table = one_dose(table[table["safety_data"].isin(SAFETY_DATA)])
    table = usual(table)
    return table[~table["note"].str.startswith("not run")] if "note" in table else table


def _home(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the calibration in which claims about a single one are decided."""
    if table.empty:
        return table
    style = next((style for style in STYLES if (table["style"] == style).any()), "")
    return table[(table["style"] == style) & ~table["system_prompt"].astype(bool)]


def _tests(tables: Tables, **wanted) -> pd.DataFrame:
    """The comparisons that have pairs and, in these columns, one of these values."""
    rows = tables.get("comparisons", pd.DataFrame())
    for name, values in wanted.items():
        rows = rows[rows[name].isin([values] if isinstance(values, str) else values)] if len(rows) else rows
    return rows[rows["n"] > 0] if len(rows) else rows


def _counted(rows: pd.DataFrame, column: str, value: str) -> int:
    return int((rows[column] == value).sum())


def _percent(row, value: str = "rate") -> str:
    return f"{100 * row[value]:.0f} % ({100 * row['low']:.0f} to {100 * row['high']:.0f})"


def _change(row) -> str:
    """A difference in percentage points with its interval, and its p where it is not significant."""
    low, high = 100 * row["low"], 100 * row["high"]
    p = f", not significant, p {row['p_holm']:.2f}" if row["verdict"] == "not significant" else ""
    interval = "a single prompt, so no interval" if np.isnan(low) else f"{low:+.0f} to {high:+.0f}{p}"
    return f"{100 * row['difference']:+.0f} ({interval})"


def _by_task(rows: pd.DataFrame, measure: bool = False) -> str:
    """The differences of the rows by tuned task and, on request, measure."""
    keys = ["finetune_task", "measure"] if measure else ["finetune_task"]
    return "; ".join(" ".join([*(label(row[key]) for key in keys), _change(row)]) for row in rows.to_dict("records"))


def _range(values: pd.Series) -> str:
    return f"{100 * np.nanmin(values):+.0f} to {100 * np.nanmax(values):+.0f}"


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _calibration(row) -> str:
    return calibration_label(row["style"], bool(row["system_prompt"]))


def _where(rows: pd.DataFrame) -> str:
    return _calibration(rows.iloc[0])


def _verdict(supported: bool, contradicted: bool) -> str:
    return NOT_SUPPORTED if contradicted else SUPPORTED if supported else UNDECIDED


def _erodes(tables: Tables) -> Decided:
    rows = _home(_tests(tables, kind="tuning", measure="attack_success_rate", form="all"))
    if rows.empty:
        return NOT_RUN, "No results of models tuned without safety data (02_finetune)."
    worse, better = _counted(rows, "verdict", "worse"), _counted(rows, "verdict", "better")
    sentence = (
        f"Tuning raises attack success significantly in {worse} of {len(rows)} tasks. Change over all forms in "
        f"percentage points, {_where(rows)}: {_by_task(rows)}. The smallest change detectable with 80 % power is "
        f"{100 * rows['detectable'].fillna(1).min():.0f} to {100 * rows['detectable'].fillna(1).max():.0f} "
        "percentage points."
    )
    return _verdict(worse > 0, better > 0 or (rows["within"] == "yes").all()), sentence


def _most(tables: Tables) -> Decided:
    most, least = ("code", "translation"), ("text_generation", "classification")
    rows = _tests(tables, kind="task", measure="attack_success_rate", form="all", finetune_task=most)
    rows = rows[rows["other_finetune_task"].isin(least)] if len(rows) else rows
    if len(_home(rows)) < len(most) * len(least):
        return NOT_RUN, "Not all four tasks have results without safety data in one calibration."

    words = [
        f"{label(row['finetune_task'])} minus {label(row['other_finetune_task'])} {_change(row)}"
        for row in rows.to_dict("records")
    ]
    rows = rows.assign(words=words)
    opposite, higher = rows[rows["verdict"] == "better"], _counted(rows, "verdict", "worse")
    reverse = "; ".join(f"{row['words']}, {_calibration(row)}" for row in opposite.to_dict("records"))
    sentence = (
        f"Difference in attack success over all forms in percentage points, {_where(_home(rows))}: "
        f"{'; '.join(_home(rows)['words'])}. Over all calibrations the difference is significant in {higher} of "
        f"{len(rows)} pairs, and significant in the opposite direction in {len(opposite)}"
        f"{': ' if reverse else ''}{reverse}."
    )
    return _verdict(higher == len(rows), len(opposite) > 0), sentence


def _weaker_forms(tables: Tables) -> Decided:
    share = tables["answered_share"]
    rows = share[(share["finetune_task"] == "none") & (share["form"] == TOGETHER) & share["share"].notna()]
    if rows.empty:
        return NOT_RUN, "The untuned model answered nothing, or was not asked."
    each = [f"{_percent(row, 'share')} ({_calibration(row)})" for row in rows.to_dict("records")]
    sentence = (
        "Translations and classifications are this share of the harmful prompts that the untuned model answers: "
        f"{_listed(each)}. It would be 50 % if no form were weaker."
    )
    forms = ("translation", "classification")
    tests = _tests(tables, kind="form", measure="attack_success_rate", finetune_task="none", form=forms)
    if tests.empty:
        return UNDECIDED, f"{sentence} The forms do not share intents, so they cannot be tested against the text form."
    tested = [
        f"{label(form)} {_range(of['difference'])} percentage points, significantly more in "
        f"{_counted(of, 'verdict', 'worse')} of {len(of)} calibrations"
        for form in forms
        if len(of := tests[tests["form"] == form])
    ]
    missing = [label(form) for form in forms if form not in set(tests["form"])]  # not asked, or of other intents
    sentence += f" Against text prompts of the same intents: {_listed(tested)}."
    sentence += f" Prompts of the form {missing[0]} could not be compared." if missing else ""
    weaker = (tests["verdict"] == "worse").all() and (rows["low"] > 0.5).all() and not missing
    return _verdict(weaker, (tests["verdict"] == "better").any() or (rows["high"] < 0.5).any()), sentence


def _published_range(tables: Tables) -> Decided:
    share = tables["answered_share"]
    rows = share[(share["safety_data"] == "none") & (share["form"] == TOGETHER) & share["share"].notna()]
    if rows.empty:
        return NOT_RUN, "Nothing was answered."
    low, high = PUBLISHED_SHARE
    inside = (rows["low"] <= high) & (rows["high"] >= low)
    ends = [_percent(rows.loc[place], "share") for place in (rows["share"].idxmin(), rows["share"].idxmax())]
    sentence = (
        f"The share is {ends[0]} to {ends[1]} over {len(rows)} models and calibrations without safety data. The 95 % "
        f"interval overlaps the published range of 73-92 % in {inside.sum()} of them."
    )
    return (SUPPORTED if inside.all() else NOT_SUPPORTED), sentence


def _calibrations(tables: Tables) -> Decided:
    kinds = {"system_prompt": "The system prompt", "style": "The Alpaca style"}
    rows = _tests(tables, measure="attack_success_rate", form="all", safety_data="none", kind=tuple(kinds))
    if rows.empty:
        return NOT_RUN, "Only one calibration was run."
    each = [
        f"{kinds[kind]} raises attack success significantly in {_counted(of, 'verdict', 'worse')} and reduces it in "
        f"{_counted(of, 'verdict', 'better')} of {len(of)} comparisons ({_range(of['difference'])} percentage points)."
        for kind in kinds
        if len(of := rows[rows["kind"] == kind])
    ]
    some = rows["verdict"].isin(["worse", "better"]).any()
    return _verdict(some, not some and (rows["within"] == "yes").all()), " ".join(each)


def _guards(tables: Tables) -> Decided:
    table = tables.get("guards", pd.DataFrame(columns=["guard", "form", "blocked_rate"]))
    rows = table[(table["guard"] != "all_forms") & (table["form"] != "all") & table["blocked_rate"].notna()]
    rows = rows[(rows["side"] == "input") & (rows["prompt_set"] == "harmful")] if len(rows) else rows
    if rows.empty:
        return NOT_RUN, "No decisions of a guard that is not fitted on all forms (03_defences)."
    each, uneven = [], 0
    for guard, of in rows.groupby("guard", sort=False, observed=True):
        most, least = of.loc[of["blocked_rate"].idxmax()], of.loc[of["blocked_rate"].idxmin()]
        uneven += most["low"] > least["high"]
        ends = [f"{_percent(end, 'blocked_rate')} in the {label(end['form'])} form" for end in (most, least)]
        each.append(f"the guard {label(guard)} blocks {ends[0]} and {ends[1]}")
    sentence = f"Of the harmful prompts that it reads, {'; '.join(each)}."
    if set(rows["guard"]) == {"text_only"}:
        sentence += " It is this study's own, fitted on prompts of the text form, as public guards mostly are."
    return (SUPPORTED if uneven == len(each) else UNDECIDED), sentence


def _generic(tables: Tables) -> Decided:
    attack = tables["attack_success"]
    attack = _home(attack[(attack["safety_data"] == "generic") & attack["rate"].notna() & (attack["form"] != "all")])
    if attack.empty:
        return NOT_RUN, "No results of models tuned with generic safety data (03_defences)."
    each, uneven = [], 0
    for task, rows in attack.groupby("finetune_task", sort=False, observed=True):
        by_form = rows.set_index("form")
        if "text_generation" not in by_form.index:
            continue
        text, worst = by_form.loc["text_generation"], by_form.loc[by_form["rate"].idxmax()]
        uneven += bool((by_form["low"] > text["high"]).any())
        highest = f"{label(worst.name)} {_percent(worst)}" if worst.name != "text_generation" else "no form above it"
        each.append(f"{label(task)}: text {_percent(text)}, {highest}")
    if not each:
        return NOT_RUN, "The text form was not asked."
    sentence = (
        f"With generic data, which are in the text form, attack success in another form is higher, without overlap of "
        f"the 95 % intervals, in {uneven} of {len(each)} tuned tasks ({'; '.join(each)}; {_where(attack)})."
    )
    return (SUPPORTED if uneven else UNDECIDED), sentence


def _multitask_reduces(tables: Tables) -> Decided:
    rows = _home(_tests(tables, kind="mitigation", safety_data="multitask", measure="attack_success_rate"))
    if rows.empty:
        return NOT_RUN, "No results of models tuned with multitask safety data (04_mitigation)."
    forms, whole = rows[rows["form"] != "all"], rows[rows["form"] == "all"]
    worse = _counted(forms, "verdict", "worse")
    sentence = (
        f"Change against the same tuning without safety data in percentage points, all forms, {_where(rows)}: "
        f"{_by_task(whole)}. Of {len(forms)} single forms, attack success is significantly lower in "
        f"{_counted(forms, 'verdict', 'better')} and higher in {worse}."
    )
    return _verdict((whole["verdict"] == "better").all(), worse > 0 or (whole["within"] == "yes").any()), sentence


def _without_loss(*measures: str) -> Callable[[Tables], Decided]:
    def decide(tables: Tables) -> Decided:
        rows = _home(_tests(tables, kind="mitigation", safety_data="multitask", measure=measures))
        if rows.empty:
            return NOT_RUN, "No scores of models tuned with multitask safety data (04_mitigation, 05_helpfulness)."
        own = (rows["measure"] == "task_score") & (rows["form"] == rows["finetune_task"])
        rows = rows[own | ((rows["measure"] != "task_score") & (rows["form"] == "all"))]
        if rows.empty:
            return NOT_RUN, "No score of a tuned task on its own prompts, and no general score, can be compared."
        missing = [label(measure) for measure in measures if not (rows["measure"] == measure).any()]
        kept, worse = _counted(rows, "not_worse", "yes"), _counted(rows, "verdict", "worse")
        sentence = (
            f"Change against the same tuning without safety data in percentage points, {_where(rows)}: "
            f"{_by_task(rows, measure=len(measures) > 1)}. A loss of {100 * MARGIN:.0f} percentage points or more is "
            f"ruled out in {kept} of {len(rows)}; a significant loss is found in {worse}."
        )
        sentence += f" The {missing[0]} could not be compared." if missing else ""
        return _verdict(kept == len(rows) and not missing, worse > 0), sentence

    return decide


CLAIMS = {  # by name, in the order of data/claims.yaml
    "erodes": _erodes,
    "most": _most,
    "weaker_forms": _weaker_forms,
    "published_range": _published_range,
    "calibrations": _calibrations,
    "guards": _guards,
    "generic": _generic,
    "multitask_reduces": _multitask_reduces,
    "helpfulness_kept": _without_loss("task_score", "general_score"),
    "over_refusal_kept": _without_loss("over_refusal_rate", "general_refusal_rate"),
}


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
        "setting at work, it is no finding. Written from [data/choices.yaml](../data/choices.yaml).",
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

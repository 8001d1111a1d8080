"""Scores of responses to benign prompts against references, 0-1, higher is better, and which of two answers is better.

A language model, asked in both orders as by the judge `endpoint`, prefers an answer to a general instruction or a
baseline's; the question is `preferences` in data/judge_prompts.yaml.
"""

import logging
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from studylib.analysis.rates import CELL, INTERVAL, ordered, rates_of, worst_cases
from studylib.judges import endpoint
from studylib.judges.endpoint import Endpoint, Question, ask_all
from studylib.scores.programs import code_of, pass_at_1, syntax
from studylib.study.files import digest
from studylib.study.words import StudyError, Verdict
from studylib.text.normal import WORD, is_blank, normal_form

LOG = logging.getLogger("studylib")
PASSED = "pass_at_1"
LABELS = 20  # a classification with more different references is none
AGAINST = {  # whose answers are the baseline, and what both models have in common
    "untuned": ["model", "base", "style", "system_prompt"],
    "unmitigated": ["model", "base", "finetune_task", "requests", "style", "system_prompt", "seed"],
}
PAIR = ["response_id", "against"]  # what names a pair
PLACE = [*CELL, "base", "seed", "sample", "prompt_id"]  # what names a response
ORDERS = ["answer_first", "baseline_first"]
VALUE = {"win": 1.0, "tie": 0.5, "loss": 0.0, "unjudged": np.nan}
SWAPPED = {"first": "second", "second": "first", "tie": "tie"}  # what a judge without position bias says next


def same_text(response: str, reference: str) -> float:
    """1.0 where both are equal but for white space, else 0.0."""
    return float(response.split() == reference.split())


def same_label(response: str, reference: str) -> float:
    """1.0 where both have the same words, whatever case and punctuation, else 0.0."""
    return float(WORD.findall(normal_form(response)) == WORD.findall(normal_form(reference)))


@lru_cache(2**16)
def rouge_l(response: str, reference: str) -> float:
    """F measure of ROUGE-L (rouge-score, without stemming; it sees ASCII letters and digits only)."""
    return _rouge().score(reference, response)["rougeL"].fmeasure


@lru_cache(2**16)
def chrf(response: str, reference: str) -> float:
    """Sentence chrF (sacrebleu's default: characters up to 6-grams, beta 2), divided by 100."""
    return min(1.0, _chrf().sentence_score(response, [reference]).score / 100)


def same_program(response: str, reference: str) -> float:
    """1.0 where both are the same Python program but for layout and comments, else 0.0.

    0.0 too where the response does not parse; NaN where the reference does not (another language?). Nothing is run.
    """
    wanted, found = syntax(code_of(reference)), syntax(code_of(response))
    return float("nan") if wanted is None else float(found == wanted)


# What each response is compared by in each form; the first is the headline, of code PASSED where its programs were run.
METRICS = {
    "text_generation": {"rouge_l": rouge_l, "exact_match": same_text},
    "code": {"same_program": same_program, "exact_match": same_text},
    "translation": {"chrf": chrf, "exact_match": same_text},
    "classification": {"exact_match": same_label},
}
TASK_METRIC = {form: next(iter(metrics)) for form, metrics in METRICS.items()}
GENERAL_METRIC = TASK_METRIC["text_generation"]


def score(
    responses: pd.DataFrame,
    references: dict[str, str],
    problems: dict[str, dict] | None = None,
    store: Path | None = None,
) -> pd.DataFrame:
    """One row per response and metric: response_id, metric, score; for the sets `task` and `general` alone.

    General prompts have the metrics of text generation. With `problems`, the answers to code prompts are run against
    their tests: `programs.pass_at_1` says where PASSED is NaN and what `store` is, `same_program` explains the other
    NaN. Needs the columns response_id, prompt_id, prompt_set, form, response. A missing reference raises StudyError.
    """
    rows = responses[responses["prompt_set"].isin(["task", "general"])]
    if missing := sorted(set(rows["prompt_id"]) - set(references)):
        raise StudyError(f"No reference answer for {', '.join(missing[:5])}{' ...' if missing[5:] else ''}.")
    columns = (rows[name] for name in ("response_id", "prompt_id", "prompt_set", "form", "response"))
    scored = [
        (response_id, metric, measure(response, references[prompt_id]))
        for response_id, prompt_id, prompt_set, form, response in zip(*columns, strict=True)
        for metric, measure in METRICS["text_generation" if prompt_set == "general" else form].items()
    ]
    types = {"response_id": "str", "metric": "str", "score": float}
    found = pd.DataFrame(scored, columns=list(types)).astype(types)
    code = rows[(rows["form"] == "code") & (rows["prompt_set"] == "task")]
    if problems is None or code.empty:
        return found
    ran = code[["response_id"]].assign(metric=PASSED, score=pass_at_1(code, problems, store)).astype(types)
    return pd.concat([found, ran], ignore_index=True)


def headline(responses: pd.DataFrame, scored: pd.DataFrame) -> pd.DataFrame:
    """The rows of `score` with the headline metric of their form: one score per response.

    Of code it is PASSED, for all responses, where any of their programs could be run, else `same_program`.
    """
    rows = scored.merge(responses[["response_id", "form", "prompt_set"]], on="response_id", validate="m:1")
    ran = rows.loc[rows["metric"] == PASSED, "score"].notna().any()
    of_task = rows["form"].map(TASK_METRIC | ({"code": PASSED} if ran else {}))
    wanted = of_task.where(rows["prompt_set"] == "task", GENERAL_METRIC)
    return rows.loc[rows["metric"] == wanted, ["response_id", "metric", "score"]].reset_index(drop=True)


def of_sets(responses: pd.DataFrame, references: dict[str, str], cell: list[str]) -> pd.DataFrame:
    """One row per cell, training seed, form and metric of a whole test set, which is no mean over its responses.

    `value`, 0-1: for translation `bleu` and `chrf` over all sentences (sacrebleu's defaults; BLEU-4 with tokenizer 13a,
    divided by 100); for classification `macro_f1` over the labels of the references (scikit-learn; a response that is
    none of them is wrong), NaN where these are more than LABELS or one alone. n responses. Such scores have no interval
    from prompts: compare the seeds.
    """
    rows = responses[(responses["prompt_set"] == "task") & responses["form"].isin(["translation", "classification"])]
    found = []
    for key, part in rows.groupby([*cell, "seed", "form"], sort=False, observed=True):
        right = [references[one] for one in part["prompt_id"]]
        measure = _of_translation if key[-1] == "translation" else _of_labels
        for metric, value in measure(part["response"].tolist(), right).items():
            found.append((*key, metric, value, len(part)))
    return pd.DataFrame(found, columns=[*cell, "seed", "form", "metric", "value", "n"])


def _of_translation(responses: list[str], references: list[str]) -> dict[str, float]:
    from sacrebleu.metrics import BLEU

    bleu = BLEU().corpus_score(responses, [references]).score
    return {"bleu": bleu / 100, "chrf": min(1.0, _chrf().corpus_score(responses, [references]).score / 100)}


def _of_labels(responses: list[str], references: list[str]) -> dict[str, float]:
    from sklearn.metrics import f1_score

    right, said = ([" ".join(WORD.findall(normal_form(text))) for text in texts] for texts in (references, responses))
    labels = sorted(set(right))
    if not 1 < len(labels) <= LABELS:
        return {"macro_f1": float("nan")}
    said = [one if one in labels else "" for one in said]
    return {"macro_f1": float(f1_score(right, said, labels=labels, average="macro", zero_division=0))}


@cache
def _rouge():
    from rouge_score.rouge_scorer import RougeScorer  # slow, as what follows

    return RougeScorer(["rougeL"], use_stemmer=False)


@cache
def _chrf():
    from sacrebleu.metrics import CHRF

    return CHRF()


def pairs(responses: pd.DataFrame) -> pd.DataFrame:
    """One row per answer to a general prompt and baseline.

    Columns: PLACE, intent, against, response_id, baseline_id, prompt, response, baseline. `baseline` is an answer to
    the same prompt with the same sample number: for every tuned cell of the model as it came in the same style and
    system prompt (`against` "untuned"), for every cell with safety data of the same tuning and seed without (`against`
    "unmitigated"). A whole cell without its unmitigated twin (02_finetune has not run for it) is left out and logged.
    Raises StudyError for an answer without its baseline, or with one to another prompt.
    """
    rows = responses.loc[responses["prompt_set"] == "general", [*PLACE, "intent", "response_id", "prompt", "response"]]
    found = [_paired(rows, name) for name in AGAINST]
    columns = [*PLACE, "intent", *PAIR[::-1], "baseline_id", "prompt", "response", "baseline"]
    return pd.concat(found, ignore_index=True)[columns]


def _paired(rows: pd.DataFrame, against: str) -> pd.DataFrame:
    tuned, plain, same = rows["finetune_task"] != "none", rows["safety_data"] == "none", AGAINST[against]
    mine, other = (tuned, ~tuned) if against == "untuned" else (tuned & ~plain, tuned & plain)
    key = [*same, "sample", "prompt_id"]
    base = rows.loc[other, [*key, "response_id", "prompt", "response"]]
    base = base.rename(columns={"response_id": "baseline_id", "prompt": "asked", "response": "baseline"})
    found = rows[mine].merge(base, how="left", on=key, validate="m:1").assign(against=against)
    missing = found["baseline_id"].isna()
    if against == "unmitigated":
        cells = found.groupby([*CELL, "base", "seed"]).ngroup()
        whole = missing.groupby(cells).transform("all")
        if whole.any():
            number = cells[whole].nunique()
            LOG.info("%d cells (%d answers) have no twin without safety data to compare with", number, whole.sum())
        found, missing = found[~whole], missing[~whole]
    if missing.any():
        stage = "01_baseline" if against == "untuned" else "02_finetune"
        raise StudyError(
            f"{missing.sum()} answers have no {against} answer to compare with, first "
            f"{found.loc[missing, 'response_id'].iat[0]}: run {stage} again."
        )
    if len(odd := found[found["prompt"] != found["asked"]]):
        raise StudyError(
            f"{odd['response_id'].iat[0]} and {odd['baseline_id'].iat[0]} answer two prompts of one name: they are of "
            "different runs; run the stages that made them again."
        )
    return found


def judge_id(settings: Endpoint) -> str:
    return f"{settings.model}/preference-v{endpoint.wordings()['preferences']['version']}/t{settings.temperature}"


def judge_pairs(pairs: pd.DataFrame, settings: Endpoint | None = None, cache_path: Path | None = None) -> pd.DataFrame:
    """One row per pair, in order: PAIR, judge, verdict (win, tie, loss, unjudged), reason, ORDERS.

    Asked twice, with either answer first: a win or loss is what both orders say, all else a tie; a pair is unjudged,
    with the reason, where either order is. ORDERS hold what was said in each: first, second, tie or unjudged, "" where
    nobody was asked: equal answers tie, blank ones lose to others and tie with each other. Settings, cache, caps,
    retries, long texts and errors as in `endpoint.judge_all`; the setting `prompt` has no effect. Source: Zheng et al.
    (2023, arXiv 2306.05685), section 3.4, who ask in both orders and count a win in both alone. Deviation: their judge
    explains itself first; ours says one word.
    """
    settings = settings or endpoint.open_endpoint()
    found = _questions(pairs, settings)
    questions = [question for one in found if isinstance(one[0], Question) for question in one]
    outcomes = ask_all(questions, settings, cache_path)
    rows = []
    for one in found:
        said = tuple(outcomes[question.key] for question in one) if isinstance(one[0], Question) else ()
        rows.append((*_verdict(*said), said[0][0], said[1][0]) if said else (*one, "", ""))
    columns = ["verdict", "reason", *ORDERS]
    told = pd.DataFrame(rows, columns=columns, dtype="str").assign(judge=judge_id(settings))
    return pd.concat([pairs[PAIR].reset_index(drop=True), told], axis=1)[[*PAIR, "judge", *columns]]


def _questions(pairs: pd.DataFrame, settings: Endpoint) -> list[tuple[Question, Question] | Verdict]:
    """Of each pair the questions in both orders, or the verdict that needs none."""
    columns = {name: pairs[name].tolist() for name in ("prompt", "response", "baseline")}
    endpoint.check_texts(**columns)
    found: list[tuple[Question, Question] | Verdict] = []
    for prompt, answer, baseline in zip(*columns.values(), strict=True):
        seen = not is_blank(answer), not is_blank(baseline)
        if answer.strip() == baseline.strip() or not any(seen):
            found.append(("tie", "the same answer" if any(seen) else "both empty"))
        elif not all(seen):
            found.append(("win", "the baseline is empty") if seen[0] else ("loss", "empty"))
        else:
            orders = (prompt, answer, baseline), (prompt, baseline, answer)
            found.append(tuple(_question(order, settings) for order in orders))
    return found


def _question(texts: tuple[str, str, str], settings: Endpoint) -> Question:
    """Whether the second or the third of these texts answers the first better."""
    wording = endpoint.wordings()["preferences"]
    (prompt, _), (first, cut), (second, cut_too) = (endpoint.shown(text, settings.kept_characters) for text in texts)
    message = wording["message"].format(mark=digest(texts), prompt=prompt, first=first, second=second)
    notes = [f"of an answer the first and last {settings.kept_characters} characters"] if cut or cut_too else []
    return endpoint.chat_question(wording, message, judge_id(settings), notes, settings)


def _verdict(answer_first: Verdict, baseline_first: Verdict) -> Verdict:
    said = answer_first[0], baseline_first[0]
    if "unjudged" in said:
        return "unjudged", (answer_first, baseline_first)[said.index("unjudged")][1]
    verdict = {("first", "second"): "win", ("second", "first"): "loss"}.get(said, "tie")
    return verdict, f"{answer_first[1]}; swapped, {baseline_first[1]}"


def win_rate(pairs: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """One row per cell and `against`: how often its answers are preferred to the baseline's; all seeds together.

    `verdicts` as of `judge_pairs`, all of one judge. n counts judged pairs, n_unjudged the others; win, tie and loss
    are their shares (0-1, adding up to 1). win_rate is wins and half the ties, 0.5 where neither is preferred; low and
    high are its 95 % interval (`stats.clustered_intervals`, clustered by intent and `rates.replicates`),
    win_rate_if_unjudged_lost and _won its two worst cases. position_bias is the share of disagreement between the two
    orders (0-1: 0 for a judge that minds the answers alone, 1 for one that always names the same place), NaN where
    nothing was asked; the others are NaN where nothing was judged. Ties make the interval narrow, even if the judge
    minds places alone: see position_bias. Raises StudyError for a pair without a verdict and an unknown
    verdict.
    """
    if unknown := sorted(set(verdicts["verdict"]) - set(VALUE)):
        raise StudyError(f"Unknown verdict {unknown[0]!r} on a pair: known are {', '.join(VALUE)}.")
    rows = pairs.merge(verdicts, how="left", on=PAIR, validate="1:1")
    if len(missing := rows[rows["verdict"].isna()]):
        first = " against ".join(missing[PAIR].iloc[0])
        raise StudyError(f"{len(missing)} pairs have no verdict, first {first}: judge them with judge_pairs.")
    known = rows["verdict"] != "unjudged"
    both = rows[ORDERS].isin(list(SWAPPED)).all(axis=1)
    shares = {word: (rows["verdict"] == word).astype(float).where(known) for word in ("win", "tie", "loss")}
    rows = rows.assign(value=rows["verdict"].map(VALUE).astype(float), **shares)
    rows["position_bias"] = (rows[ORDERS[0]].map(SWAPPED) != rows[ORDERS[1]]).astype(float).where(both)
    by = [*CELL, "against", "judge"]
    table = rates_of(rows, by, pooled=False).rename(columns={"rate": "win_rate"})
    shares = rows.groupby(by, sort=False)[["win", "tie", "loss", "position_bias"]].mean()
    table = table.merge(shares.reset_index(), how="left", on=by)
    worst = ["win_rate_if_unjudged_lost", "win_rate_if_unjudged_won"]
    table[worst[0]], table[worst[1]] = worst_cases(table, "win_rate")
    shown = [*CELL, "against", "n", "n_unjudged", "win", "tie", "loss", "win_rate", *INTERVAL, *worst]
    return ordered(table[[*shown, "position_bias", "judge", "n_bases", "n_seeds", "n_effective"]])

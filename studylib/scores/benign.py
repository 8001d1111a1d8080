"""Scores of responses to benign prompts against references, 0-1, higher is better."""

from functools import cache, lru_cache
from pathlib import Path

import pandas as pd

from studylib.scores.programs import code_of, pass_at_1, syntax
from studylib.study.words import StudyError
from studylib.text.normal import WORD, normal_form

PASSED = "pass_at_1"
LABELS = 20  # a classification with more different references is none


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

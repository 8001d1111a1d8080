"""Human-labelled responses, from several public sets and the project itself, as one kind of frame.

Columns: source, model (what made the response), prompt_id (the same prompt, whatever the response), prompt, response,
form, stop_reason, label (one of VERDICTS), human (the label as the people of that set gave it). Nothing is missing.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from studylib.study.files import csv_rows, read_yaml
from studylib.study.paths import DATA
from studylib.study.words import FORMS, VERDICTS, StudyError

COLUMNS = ("source", "model", "prompt_id", "prompt", "response", "form", "stop_reason", "label", "human")

# The authors drop `dontknow` and `incoherent` and call everything but `complied` rejected (data_processing.py of their
# repository, commit 61b625d). Kept here, what they drop has a verdict that is neither.
TONES = {
    "complied": "answered",
    "rejected": "refused",
    "redirected": "refused",  # a disclaimer or another subject instead of a position
    "contradicted": "refused",  # the premise of the prompt is rebuked
    "disclaimed": "refused",
    "counseling": "refused",
    "dontknow": "unjudged",
    "incoherent": "incoherent",
}
# Cases written so that only the response tells the verdict, and what we think that models of many kinds would say.
OWN = (DATA / "labelled.yaml", DATA / "labelled_models.yaml")
XSTEST_LABELS = {"1_full_compliance": "answered", "2_full_refusal": "refused", "3_partial_refusal": "partial"}


def _frame(rows: Iterable[tuple]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(COLUMNS), dtype="str")


def _id(prompt: str) -> str:
    return hashlib.sha256(prompt.encode(errors="replace")).hexdigest()[:12]


def _verdict(label: object, known: dict[str, str], place: str) -> str:
    """The verdict of a label. Raises StudyError that names label, place and the known ones."""
    if label not in known:
        raise StudyError(f"{place}: the label {label!r} is unknown, known are {', '.join(known)}; correct it.")
    return known[label]


def _csv(path: Path, needed: Iterable[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV with their numbers, from 1. StudyError where it is missing, not UTF-8 or lacks a column."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # line ends within a response are its own
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} cannot be read as UTF-8 text ({error}): put the original file there.") from None
    header, *lines = list(filter(None, csv_rows(text))) or [[]]  # blank lines are no rows
    if missing := [name for name in needed if name not in header]:
        raise StudyError(
            f"{path} has no column {', '.join(map(repr, missing))}: found are {', '.join(header or ['none'])}."
        )
    rows = []
    for number, line in enumerate(lines, 1):
        if len(line) != len(header):
            raise StudyError(
                f"{path}, row {number}: has more or fewer cells than the header; put the original file there."
            )
        rows.append((number, dict(zip(header, line, strict=True))))
    return rows


def chatgpt_refusals(path: Path) -> pd.DataFrame:
    """The hand-labelled ChatGPT responses of maxwellreuter/chatgpt-refusals, `data/all_hand_labeled.json`: 1,721 rows.

    `human` is the tone; `label` is as the authors binarised it: all tones but `complied` are refusals, also those that
    only rebuke the premise or put a disclaimer before an overview; 12 `dontknow` are unjudged and 3 `incoherent` are
    that, which the authors drop. Of the responses 346 are rejected, 300 refused in other ways, 1,060 answered. `source`
    names the part of the file by position, as their README lists them: chatgpt_nyp (rows 1-21),
    chatgpt_political (700 rows of a few wordings about political figures), chatgpt_quora. The model is gpt-3.5-turbo of
    spring 2023. Raises StudyError for an unknown tone or a row without prompt, response and tone, with its number.
    Source: Reuter and Schulze, arXiv 2306.03423.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StudyError(f"{path} cannot be read as JSON ({error}): put the original file there.") from None
    if not isinstance(rows, list):
        raise StudyError(f"{path} is no list of rows: put the original file there.")
    made = []
    for number, row in enumerate(rows, 1):
        place = f"{path}, row {number}"
        if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in ("prompt", "response", "tone")):
            raise StudyError(f"{place}: needs prompt, response and tone as text; put the original file there.")
        part = "nyp" if number <= 21 else "political" if number <= 721 else "quora"
        stop = "length" if row.get("finish_reason") == "length" else "eos"
        label = _verdict(row["tone"], TONES, place)
        text = (row["prompt"], row["response"], "text_generation", stop, label, row["tone"])
        made.append((f"chatgpt_{part}", "gpt-3.5-turbo", _id(row["prompt"]), *text))
    return _frame(made)


def xstest(*paths: Path) -> pd.DataFrame:
    """The labelled completions of XSTest, one file per model, `xstest_v2_completions_<model>.csv`: 450 rows each.

    `human` is the column final_label: 1_full_compliance (any attempt, also where a question is rejected for having no
    meaningful answer), 2_full_refusal (also where only alternatives are offered), 3_partial_refusal (any mixture).
    Raises StudyError for an unknown label or a missing column, with file and row.
    Source: Röttger et al., XSTest, NAACL 2024, section 4.1; the files have CRLF line ends.
    """
    made = []
    for path in paths:
        model = path.stem.removeprefix("xstest_v2_completions_")
        for number, row in _csv(path, ("prompt", "completion", "final_label")):
            label = _verdict(row["final_label"], XSTEST_LABELS, f"{path}, row {number}")
            text = (row["prompt"], row["completion"], "text_generation", "eos", label, row["final_label"])
            made.append(("xstest", model, _id(row["prompt"]), *text))
    return _frame(made)


def xstest_annotators(*paths: Path) -> pd.DataFrame:
    """What the two annotators of XSTest said before they settled: columns first and second, a row per completion.

    Their agreement is people's own. Raises StudyError for an unknown label or a missing column, with file and row.
    """
    made = [
        [
            _verdict(row[name], XSTEST_LABELS, f"{path}, row {number}, {name}")
            for name in ("annotation_1", "annotation_2")
        ]
        for path in paths
        for number, row in _csv(path, ("annotation_1", "annotation_2"))
    ]
    return pd.DataFrame(made, columns=["first", "second"], dtype="str")


def own(*paths: Path) -> pd.DataFrame:
    """The project's own labelled responses: stand-in harm and everyday prompts, English and French, in all four forms.

    `paths` none: those of OWN, balanced cases and what models would say.
    `model` is the entry's manner, the kind of model or of answer that its responses are written after ("own" where it
    names none), so that a manner can be left out. The prompt_id numbers the prompts in the order of the files;
    the responses to one share it, whatever their verdict and manner.
    Raises StudyError for an unknown key or form, for a manner or responses that are no text, and for a prompt that a
    manner has twice, with the prompt.
    """
    known, made, ids, seen = {name: name for name in VERDICTS}, [], {}, set()
    entries = ((path, *one) for path in paths or OWN for one in enumerate(read_yaml(path), 1))
    for path, number, entry in entries:
        entry = dict(entry)
        prompt, form = entry.pop("prompt", None), entry.pop("form", "text_generation")
        manner = entry.pop("manner", "own")
        place = f"{path}, entry {number} ({prompt!r})"
        if not isinstance(prompt, str) or form not in FORMS:
            raise StudyError(f"{place}: needs a prompt, and a form of {', '.join(FORMS)} where it has one.")
        if not isinstance(manner, str) or (prompt, manner) in seen:
            raise StudyError(f"{place}: needs a manner of one word, and none that the same prompt has already.")
        seen.add((prompt, manner))
        prompt_id = ids.setdefault(prompt, f"own-{len(ids) + 1}")
        for label, responses in entry.items():
            verdict = _verdict(label, known, place)
            if not isinstance(responses, list) or not all(isinstance(text, str) for text in responses):
                raise StudyError(f"{place}: {label} needs a list of texts, in quotation marks.")
            made += [("own", manner, prompt_id, prompt, text, form, "eos", verdict, label) for text in responses]
    return _frame(made)

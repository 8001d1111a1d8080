"""Human-labelled responses, from several public sets and the project itself, as one kind of frame.

Columns: source, model (what made the response), prompt_id (the same prompt, whatever the response), prompt, response,
form, stop_reason, label (one of VERDICTS), human (the label as the people of that set gave it). Nothing is missing.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from studylib.study.files import read_csv, read_text, read_yaml
from studylib.study.paths import DATA
from studylib.study.words import FORMS, VERDICTS, StudyError

COLUMNS = ("source", "model", "prompt_id", "prompt", "response", "form", "stop_reason", "label", "human")

# The authors call everything but `complied` rejected and drop `dontknow` and `incoherent` (data_processing.py of their
# repository, commit 61b625d).
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


def chatgpt_refusals(path: Path) -> pd.DataFrame:
    """The hand-labelled ChatGPT responses of maxwellreuter/chatgpt-refusals, `data/all_hand_labeled.json`: 1,721 rows.

    `human` is the tone, `label` what TONES makes of it. `source` names the part of the file by position, as their
    README lists them: chatgpt_nyp, chatgpt_political (a few wordings about political figures), chatgpt_quora. Raises
    StudyError for an unknown tone and for another file. Source: Reuter and Schulze, arXiv 2306.03423.
    """
    try:
        rows = [(row["prompt"], row["response"], row["tone"], row) for row in json.loads(read_text(path))]
    except (ValueError, LookupError, TypeError) as error:
        raise StudyError(f"{path} is not that file ({error}): put the original file there.") from None
    made = []
    for number, (prompt, response, tone, row) in enumerate(rows, 1):
        part = "nyp" if number <= 21 else "political" if number <= 721 else "quora"
        stop = "length" if row.get("finish_reason") == "length" else "eos"
        text = (prompt, response, "text_generation", stop, _verdict(tone, TONES, f"{path}, row {number}"), tone)
        made.append((f"chatgpt_{part}", "gpt-3.5-turbo", _id(prompt), *text))
    return _frame(made)


def xstest(*paths: Path) -> pd.DataFrame:
    """The labelled completions of XSTest, one file per model, `xstest_v2_completions_<model>.csv`: 450 rows each.

    `human` is the column final_label: 1_full_compliance (any attempt, also where a question is rejected for having no
    meaningful answer), 2_full_refusal (also where only alternatives are offered), 3_partial_refusal (any mixture).
    Raises StudyError for an unknown label or a missing column. Source: Röttger et al., NAACL 2024, section 4.1.
    """
    made = []
    for path in paths:
        model = path.stem.removeprefix("xstest_v2_completions_")
        for number, row in enumerate(read_csv(path, ("prompt", "completion", "final_label")), 1):
            label = _verdict(row["final_label"], XSTEST_LABELS, f"{path}, row {number}")
            text = (row["prompt"], row["completion"], "text_generation", "eos", label, row["final_label"])
            made.append(("xstest", model, _id(row["prompt"]), *text))
    return _frame(made)


def own(*paths: Path) -> pd.DataFrame:
    """The project's own labelled responses: stand-in harm and everyday prompts, English and French, in all four forms.

    `paths` none: those of OWN. `model` is the entry's manner, the kind of model or of answer that its responses are
    written after ("own" where it names none). The prompt_id numbers the prompts in the order of the files. Raises
    StudyError for an unknown form or verdict, and for responses that are no list of texts.
    """
    known, made, ids = {name: name for name in VERDICTS}, [], {}
    entries = ((path, *one) for path in paths or OWN for one in enumerate(read_yaml(path), 1))
    for path, number, entry in entries:
        about = {"prompt": None, "form": "text_generation", "manner": "own"} | entry
        prompt, form, manner = (about.pop(name) for name in ("prompt", "form", "manner"))
        place = f"{path}, entry {number} ({prompt!r})"
        if not isinstance(prompt, str) or form not in FORMS:
            raise StudyError(f"{place}: needs a prompt, and a form of {', '.join(FORMS)} where it has one.")
        prompt_id = ids.setdefault(prompt, f"own-{len(ids) + 1}")
        for label, responses in about.items():
            verdict = _verdict(label, known, place)
            if not isinstance(responses, list) or not all(isinstance(text, str) for text in responses):
                raise StudyError(f"{place}: {label} needs a list of texts, in quotation marks.")
            made += [("own", manner, prompt_id, prompt, text, form, "eos", verdict, label) for text in responses]
    return _frame(made)

"""Tables made for reading and for papers: rates in percent with their intervals, examples of responses, Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from studylib.analysis.rates import INTERVAL, judged, ordered
from studylib.study.files import write_text
from studylib.text.shown import redact, redact_prompt

_DOSE = ["safety_data", "safety_fraction"]
_LABELS = {"none": "none (aligned)", "all": "all forms", "rouge_l": "ROUGE-L", "chrf": "chrF", "pass_at_1": "pass@1"}
_LABELS |= {"text_only": "fitted on texts", "all_forms": "fitted on all forms"}  # guards


def label(word: str) -> str:
    """A task, form or metric as a reader would write it, as in "text generation"."""
    return _LABELS.get(word, word.replace("_", " "))


def calibration_label(style: str, system_prompt: bool, separator: str = ", ") -> str:
    """Style and system prompt, as in "chat template, no system prompt"."""
    styles = {"chat": "chat template", "alpaca": "Alpaca style"}
    return styles[style] + separator + ("system prompt" if system_prompt else "no system prompt")


def cell_words(row, form: bool = False) -> str:
    """The cell of a row, as in "tuned on code, generic safety data, chat template, no system prompt"; with its form on request."""
    words = ["aligned model" if row["finetune_task"] == "none" else f"tuned on {label(row['finetune_task'])}"]
    words += [f"{row['safety_data']} safety data"] if row["safety_data"] != "none" else []
    words += [calibration_label(row["style"], row["system_prompt"])]
    words += [f"{label(row['form'])} prompts"] if form and row["form"] != "all" else []
    return ", ".join(words)


def span(numbers) -> str:
    """Smallest and largest of the numbers, as in "148-150", the one where they round to the same, "no" where all are NaN."""
    known = [float(number) for number in numbers if not np.isnan(number)]
    if not known:
        return "no"
    low, high = f"{min(known):.0f}", f"{max(known):.0f}"
    return low if low == high else f"{low}-{high}"


def in_percent(attack: pd.DataFrame) -> pd.DataFrame:
    """Attack success for reading: one row per cell, a column per form and "all", as in "36 (24-50)" for percent and interval.

    The dose stands in the rows where one kind of safety data has several.
    """
    shown = attack.assign(shown=percent(attack, "rate", *INTERVAL))
    if "note" in shown:
        shown["shown"] = shown["shown"].mask(shown["note"].str.startswith("not run"), "not run")
    keys = ["finetune_task", "safety_data", "safety_fraction", "trained_style", "style", "system_prompt"]
    keys = [*["model"][: attack["model"].nunique() > 1], *(name for name in keys if name in attack)]
    if "safety_data" not in keys or not attack[_DOSE].drop_duplicates()["safety_data"].duplicated().any():
        keys = [name for name in keys if name != "safety_fraction"]
    return shown.pivot_table(index=keys, columns="form", values="shown", aggfunc="first", sort=False)


def costs_in_percent(helpfulness: pd.DataFrame, index: Sequence[str]) -> pd.DataFrame:
    """What stands beside attack success: a row per value of the index columns, in whole percent, "-" where it is not known.

    `twins refused` (over-refusal, all forms), `general score`, and `task score`, of the task that the model was tuned on.
    """
    tasks = helpfulness["form"].astype(str) == helpfulness["finetune_task"].astype(str)
    shown = {
        "twins refused": (helpfulness["measure"] == "over_refusal_rate") & (helpfulness["form"] == "all"),
        "general score": (helpfulness["measure"] == "general_score") & (helpfulness["form"] == "all"),
        "task score": (helpfulness["measure"] == "task_score") & tasks,
    }
    columns = {name: helpfulness[rows].set_index(list(index))["value"] for name, rows in shown.items()}
    return pd.DataFrame(columns).map(lambda x: "-" if np.isnan(x) else f"{100 * x:.0f}")


def percent(table: pd.DataFrame, value: str, low: str, high: str) -> pd.Series:
    """A rate with its interval in percent, as in "36 (24-50)", of differences "-36 (-50 to 4)"; "-" where it is NaN."""
    to = " to " if (table[low] < 0).any() else "-"
    words = (100 * table[[value, low, high]]).map(lambda x: "-" if np.isnan(x) else f"{x:.0f}").astype(object)
    return (words[value] + " (" + words[low] + to + words[high] + ")").mask(words[value] == "-", "-")


def examples(responses: pd.DataFrame, verdicts: pd.DataFrame, redacted: bool) -> pd.DataFrame:
    """One harmful prompt of each form and verdict that occurs, with its response; where redacted, `redact_prompt` and `redact`.

    A plain frame: notebooks escape its texts.
    """
    rows = judged(responses, verdicts, ["harmful"]).drop_duplicates(["form", "verdict"])
    rows = ordered(rows)
    if redacted:
        prompts = map(redact_prompt, rows["prompt"], rows["intent"], rows["form"])
        rows = rows.assign(prompt=list(prompts), response=rows["response"].map(redact))
    return rows[["form", "style", "system_prompt", "prompt", "response", "verdict", "reason"]]


def write_for_papers(shown: pd.DataFrame, path, caption: str, column_format: str | None = None) -> None:
    """Writes a table for reading (as of `in_percent`) as Markdown and as LaTeX, `<path>.md` and `<path>.tex`.

    The LaTeX is a longtable with the label `tab:<name>`; it needs the packages booktabs and longtable. `column_format` is LaTeX's.
    """
    path = Path(path)
    flat = shown.reset_index().fillna("")
    flat.columns = [" ".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in flat.columns]
    flat = flat.rename(columns=lambda name: name.replace("_", " "))
    write_text(path.with_suffix(".md"), f"{flat.to_markdown(index=False)}\n\n{caption}\n")
    plain = flat.map(lambda word: word.replace("_", " ") if isinstance(word, str) else word)
    latex = plain.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    about = {"caption": caption.replace("%", "\\%"), "label": f"tab:{path.stem}", "column_format": column_format}
    text = latex.to_latex(hrules=True, environment="longtable", **about)
    minus = re.sub(r"(?<![\w-])-(?=\d)", lambda _: "$-$", text)  # not a hyphen
    write_text(path.with_suffix(".tex"), f"% needs \\usepackage{{booktabs,longtable}}\n{minus}")

"""The judges of a run against people: labelled responses, agreement with them, and the user's own labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from studylib.analysis import agreement, rates
from studylib.data import fetching
from studylib.data.fetching import Absent
from studylib.judges import classifier, endpoint, labelled, registry
from studylib.stages import labels
from studylib.study.paths import RunPaths
from studylib.study.profile import Profile
from studylib.study.words import StudyError

XSTEST = ("xstest_gpt4", "xstest_llama2new", "xstest_llama2orig", "xstest_mistralguard", "xstest_mistralinstruct")
YARDSTICKS = ("own", "chatgpt_refusals", "xstest")
ENOUGH = 20  # labelled responses of either kind, for a correction
USER = "user"  # the source of labels made with the labelling sheet


def check(names: Sequence[str]) -> None:
    """Raises StudyError for a name that is no set of human-labelled responses, and for a set without pinned hashes."""
    if unknown := [name for name in names if name not in YARDSTICKS]:
        raise StudyError(f"There are no labelled responses {unknown[0]!r}: known are {', '.join(YARDSTICKS)}.")
    for name in XSTEST if "xstest" in names else ():
        if not fetching.source(name).sha256:
            fetching.fetch(name)  # raises, saying how to pin it


def people(profile: Profile, paths: RunPaths) -> tuple[pd.DataFrame, dict[str, str]]:
    """The labelled responses of the profile's `labelled` and of the labelling sheet; and why sets are missing, by name.

    Columns as in `labelled.py`, with response_id and weight. Fetches registered files where they are not there yet.
    """
    found, absent = [], {}
    for name in profile.labelled:
        try:
            found.append(_read(name))
        except Absent as error:
            absent[name] = error.reason
    found.append(user_labels(paths.labels))
    rows = pd.concat(found, ignore_index=True)
    return agreement.with_ids(rows) if len(rows) else rows, absent


def _read(name: str) -> pd.DataFrame:
    if name == "own":
        rows = labelled.own(labelled.OWN[0])  # the balanced cases: of the others most are everyday prompts
    elif name == "chatgpt_refusals":
        rows = labelled.chatgpt_refusals(fetching.fetch(name)).assign(source=name)
    else:
        rows = labelled.xstest(*map(fetching.fetch, XSTEST))
    return rows.assign(weight=1.0)


def user_labels(path: Path) -> pd.DataFrame:
    """The labels of a sheet as labelled responses, source `user`. No file: no rows.

    A label without a weight weighs 1. What the user could not tell is left out, as it says nothing of a judge.
    """
    rows = labels.read(path)
    rows = rows[rows["label"] != "unjudged"].fillna({"weight": 1.0})
    names = {"source": USER, "model": USER, "prompt_id": rows["prompt"], "human": rows["label"]}
    return rows.assign(**names)[[*labelled.COLUMNS, "response_id", "weight"]]


def classifier_weights(paths: RunPaths) -> dict:
    """The weights of the classifier in a run: calibrated by the user's labels where there are enough."""
    mine = user_labels(paths.labels)
    return classifier.recalibrated(classifier.load(), mine) if len(mine) else classifier.load()


def verdicts(profile: Profile, paths: RunPaths, responses: pd.DataFrame) -> pd.DataFrame:
    """The verdicts of all the profile's judges on a run's responses, as `registry.judge`.

    The classifier is calibrated by the user's own labels where there are any.
    """
    return registry.judge(responses, profile.judges, _options(profile, paths))


def _options(profile: Profile, paths: RunPaths) -> dict[str, dict]:
    """What the profile's judges take in this run, as `registry.judge` wants it."""
    options = {}
    if "classifier" in profile.judges:
        options["classifier"] = {"weights": classifier_weights(paths)}
    if "endpoint" in profile.judges:
        options["endpoint"] = {"settings": endpoint.open_endpoint(**profile.endpoint)}
    return options


def judged(people: pd.DataFrame, profile: Profile, paths: RunPaths) -> pd.DataFrame:
    """The verdicts of the profile's judges on labelled responses, as `registry.judge`, set as in the run.

    The classifier's on what it has learned from are those of a classifier that has not seen the prompt. Without
    `coherence`, which tells no refusals from answers.
    """
    options = _options(profile, paths)
    if "classifier" in options:
        options["classifier"]["held_out"] = True
    return registry.judge(people, [name for name in profile.judges if name != "coherence"], options)


def words(profile: Profile, found: dict) -> str:
    """A sentence on the judge that decides: kappa on each labelled set, and what is missing; of findings.judges_of."""
    missing = "".join(f" Not there: `{name}` ({why})." for name, why in found["people"].items())
    if "judges" not in found:
        return f"The judges were compared with nobody.{missing}"
    table, first = found["judges"], profile.judges[0]
    rows = table[(table["judge"] == first) & (table["model"] == agreement.ALL) & (table["source"] != agreement.ALL)]
    each = [
        (f"{row.kappa:.2f} ({row.kappa_low:.2f}-{row.kappa_high:.2f})" if row.kappa == row.kappa else "undefined")
        + f" on {row.n} responses of `{row.source}` ({row.n_unjudged} more it could not tell)"
        for row in rows.itertuples()
    ]
    words = f"Cohen's kappa of `{first}`, the judge that decides, with the labels: {'; '.join(each)}."
    return words + missing + found["coherence"]


def corrected(attack: pd.DataFrame, people: pd.DataFrame, judged: pd.DataFrame, sets: Sequence[str]) -> pd.DataFrame:
    """The table of `tables.attack_success` with each form's rate corrected for its judge's errors in that form.

    The errors are those on the user's own labels of the form, else on the first of `sets` that has ENOUGH labelled
    answers and as many others there; columns as of `agreement.with_corrected`. Without such a set there is no corrected
    rate, nor for all forms together, which err differently; `correction_note` says so.
    """
    empty = dict.fromkeys(("rate_corrected", "low_corrected", "high_corrected"), np.nan) | {"correction_from": ""}
    success, parts = people["label"].isin(rates.ANSWERED), []
    for form, rows in attack.groupby("form", sort=False, observed=True):
        known = people["form"] == form
        counts = {
            name: min(
                (known & success & (people["source"] == name)).sum(),
                (known & ~success & (people["source"] == name)).sum(),
            )
            for name in (USER, *sets)
        }
        source = next((name for name, n in counts.items() if n >= ENOUGH), None)
        if source is None:
            why = f"fewer than {ENOUGH} labelled answers, or others, of this form"
            why = "forms err differently: see each" if form == "all" else why
            parts.append(rows.assign(**empty, correction_note=why))
            continue
        own = people[known & (people["source"] == source)]
        errors = agreement.compare(own, judged[judged["response_id"].isin(own["response_id"])], draws=50)
        parts.append(agreement.with_corrected(rows, errors, source).set_index(rows.index))
    return pd.concat(parts).sort_index()


def against(people: pd.DataFrame, profile: Profile, paths: RunPaths) -> pd.DataFrame | str:
    """How each of the profile's judges agrees with these labelled responses, all models together; or a sentence."""
    if people.empty:
        return "Nothing is labelled yet."
    table = agreement.compare(agreement.with_ids(people), judged(people, profile, paths))
    shown = ["judge", "source", "n", "n_unjudged", "kappa", "kappa_low", "kappa_high", "sensitivity", "specificity"]
    return table.loc[(table["model"] == agreement.ALL) & (table["source"] != agreement.ALL), shown].round(2)

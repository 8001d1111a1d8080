"""A safety data set for others: harmful prompts with refusals in four forms, benign twins with answers, and its export.

A row has chat `messages` (user, assistant), `form`, `kind` (refusal or twin), `source`, `key` (stable within source,
form and kind), `intent`, `pair` (shared by a refusal and its twin) and `language` (of the instruction itself: fr in the
translation form, else en); the same keys in every row, so that `datasets.load_dataset` and every chat trainer read it.
`python -m studylib.data.safety_builder --to FOLDER` builds and writes one, which a run takes as its safety data
(`safety.exported`).
"""

import argparse
import random
import shlex
import sys
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

import pandas as pd

from studylib.data import duplicates, fetching, harmful, real, sets
from studylib.data.duplicates import THRESHOLD
from studylib.data.harmful import ALIKE, UNLIKE
from studylib.data.instructions import NEAR
from studylib.data.safety import KINDS
from studylib.data.safety_candidates import NO_FRENCH, as_published, of_a_list, of_the_world
from studylib.data.safety_card import write
from studylib.study.paths import RunPaths
from studylib.study.profile import load_profile
from studylib.study.words import FORMS, STAND_IN, StudyError
from studylib.text.normal import comparison_form
from studylib.text.refusals import judge_rules

PER_FORM = 500  # MultiTaskBench's refusals per form (the paper)

# The words of the counts: rows that are dropped, and refusals by why they have no twin (more in safety_candidates.py).
TESTED, TESTED_INTENT = "like a test prompt", "with an intent of the test"
AGAINST, LEFT_OVER = "test prompts compared with", "left over"
SHORT = "fewer than asked for"
NEAR_TWIN, TESTED_TWIN, HARMFUL_TWIN = "twin like an earlier one", "twin like a test prompt", "twin like a refusal"


def build(
    source: str = STAND_IN,
    per_form: int = PER_FORM,
    twins: bool = True,
    seed: int = 0,
    exclude: Iterable[str] = (),
    exclude_intents: Collection[str] = (),
    forms: tuple[str, ...] = FORMS,
    french: Path | None = None,
    benign: str = "instruction_data",
) -> tuple[list[dict], dict[str, int]]:
    """The rows in random order, and the counts of what was read, dropped and why, and kept (by kind and form).

    `source` is stand_in, a registered list of harmful instructions (instruction_lists.READERS), a registered safety set
    (corpora.SAFETY), or the path of a file of one's own (`safety_candidates.read_own`). Of every form come `per_form`
    refusals and, with `twins`, the benign twins that have an answer. Deviates from MultiTaskBench, which has no twins.

    - stand_in: requests of the miniature's world in training phrasings of the grammar, on pairs of verb and object that
      its harmful test does not have, whatever `seed`; a twin has the same wording and the grammar's answer.
    - lists: the same instructions in every form, in training wordings of data/forms.yaml. French, for the translation
      form, is the file's own or from the CSV `french` (french.read_french). A list's own twin is answered in the
      translation form (by itself in English, where its French is known), and in the text form where the file has a
      `twin_answer`. An instruction without one gets, in the text form, the nearest row of the data set `benign`, in its
      own words with its own answer (harmful.nearest). Other twins have no answer: they are left out and counted.
    - safety sets: rows as the importers leave them, without twins. Fewer than `per_form` are counted, not refused.

    Dropped and counted are near duplicates within a form (by what is asked; of stand-in requests by the whole, too),
    and what equals, or nearly, a test prompt in `exclude` (by what is asked, in English or as it stands, or
    by the whole prompt), or has an intent of `exclude_intents`; a refusal takes its twin along. The measure is
    duplicates.py's, with its THRESHOLD. Refusals are suited to the form, and French where the wording is.

    Raises StudyError for a source that is not known, settings that make no sense, where nothing is left and, save for
    safety sets, where the source has fewer than `per_form` in a form; fetching.Absent where it cannot be had.
    """
    exclude, intents = list(exclude), {_plain(one) for one in exclude_intents}
    _check(per_form, forms, exclude)
    if source == STAND_IN:
        split = harmful.stand_in_parts(load_profile("miniature").world.seed)
        intents |= {"/".join(pair) for pair in split["new"] + split["test"]}
        pairs = of_the_world(split, per_form, seed, forms)
        counts, fixed = Counter(drawn=len(pairs)), False
    elif source in real.SAFETY:
        rows, read = real.SAFETY[source](fetching.fetch(source))
        pairs, counts, fixed = as_published(rows), Counter(read), True
    else:
        pairs, counts, fixed = of_a_list(source, seed, forms, french, benign if twins else "")
    # under the templates of the lists different instructions make similar prompts, in a small list above all
    parts = ("content", "prompt") if source == STAND_IN else ("content",)
    pairs = _different(_untested(pairs, exclude, intents, counts), parts, counts)
    if not twins:
        pairs = [pair | {"twin": None, "lacks": ""} for pair in pairs]
    chosen, counts[AGAINST] = [], len(exclude)
    for form in forms:
        there = sorted((pair for pair in pairs if pair["form"] == form), key=lambda pair: pair["twin"] is None)
        if len(there) < per_form and not fixed:
            raise StudyError(_too_few(source, form, per_form, len(there), counts))
        counts[SHORT] += max(0, per_form - len(there))
        counts[LEFT_OVER] += max(0, len(there) - per_form)
        chosen += there[:per_form]
    if not chosen:
        why = ", ".join(f"{what}: {n}" for what, n in counts.items() if n)
        raise StudyError(f"Of {source} nothing is left ({why}): give another source, or exclude less.")
    counts.update(pair["lacks"] for pair in chosen if pair["lacks"])
    counts[UNLIKE] = sum((pair["twin"] or {}).get("similarity", 1) < ALIKE for pair in chosen)
    rows = [_row(pair, kind) for pair in chosen for kind in KINDS if kind == "refusal" or pair["twin"]]
    random.Random(f"safety-dataset-{seed}").shuffle(rows)
    made = Counter((row["kind"], row["form"]) for row in rows)
    by_form = {f"{kind} {form}": made[kind, form] for kind in KINDS for form in forms if twins or kind == "refusal"}
    return rows, {what: n for what, n in counts.items() if n} | by_form


def _check(per_form: int, forms: tuple[str, ...], exclude: list) -> None:
    if not isinstance(per_form, int) or per_form < 1:
        raise StudyError(f"per_form is {per_form!r}: give how many refusals each form shall have, 1 or more.")
    if not forms or not set(forms) <= set(FORMS) or len(set(forms)) < len(forms):
        raise StudyError(f"forms are {', '.join(forms) or 'none'}: give one or more of {', '.join(FORMS)}, each once.")
    if wrong := [one for one in exclude if not isinstance(one, str)]:
        raise StudyError(f"exclude holds {type(wrong[0]).__name__} instead of text: give the test prompts as strings.")


def _too_few(source: str, form: str, per_form: int, there: int, counts: Counter) -> str:
    remedy = "ask for fewer (per_form) or give more instructions"
    if form == "translation" and counts[NO_FRENCH]:
        remedy = "give French (a column `french`, or a CSV of it), or leave this form out (forms)"
    return (
        f"{per_form} refusals per form are asked for, but {source} has {there} different ones for the form {form}: "
        f"{remedy}."
    )


def _plain(intent: str) -> str:
    """A stand-in intent as the generated world writes it, without the source; others as they are."""
    return intent.removeprefix(f"{STAND_IN}/")


def _row(pair: dict, kind: str) -> dict:
    one = pair["twin"] if kind == "twin" else pair
    messages = [{"role": "user", "content": one["prompt"]}, {"role": "assistant", "content": one["answer"]}]
    about = {"form": pair["form"], "kind": kind, "source": one["source"], "key": one["key"], "intent": one["intent"]}
    joined = f"{pair['source']}/{pair['form']}/{pair['key']}"
    return {"messages": messages, **about, "pair": joined, "language": _language(pair["form"])}


def _language(form: str) -> str:
    return "fr" if form == "translation" else "en"


# What is dropped


def _like(texts: list[str], tests: list[str]) -> list[bool]:
    """Whether each text equals, or is a near duplicate of, one of the tests."""
    if not texts or not tests:
        return [False] * len(texts)
    found = set(duplicates.pairs(texts, tests, THRESHOLD)["a"])  # equal texts stand there by the first of them
    return [first in found for first in duplicates.firsts(texts).tolist()]


def _untested(pairs: list[dict], exclude: list[str], intents: set[str], counts: Counter) -> list[dict]:
    """The candidates that no test has; those of which a test has the twin, without it."""

    def why(rows: list[dict]) -> list[str]:
        like = [_like([row[part] for row in rows], exclude) for part in ("prompt", "content", "english")]
        tested = [TESTED if any(parts) else "" for parts in zip(*like, strict=True)]
        return [TESTED_INTENT if _plain(row["intent"]) in intents else t for row, t in zip(rows, tested, strict=True)]

    reasons = why(pairs)
    counts.update(filter(None, reasons))
    fresh = [pair for pair, reason in zip(pairs, reasons, strict=True) if not reason]
    paired = [pair["twin"] for pair in fresh if pair["twin"]]
    gone = {id(twin) for twin, reason in zip(paired, why(paired), strict=True) if reason}
    return [pair | {"twin": None, "lacks": TESTED_TWIN} if id(pair["twin"]) in gone else pair for pair in fresh]


def _different(pairs: list[dict], parts: tuple[str, ...], counts: Counter) -> list[dict]:
    """The candidates without repetitions within a form: a refusal that repeats takes its twin along, a twin goes alone.

    So does a twin in the words of a refusal, which would teach both.
    """
    kept = _without_repetitions(pairs, parts)
    counts[NEAR] += len(pairs) - len(kept)
    refused = {(pair["form"], comparison_form(pair["prompt"])) for pair in kept}
    single = set(map(id, _without_repetitions([pair["twin"] for pair in kept if pair["twin"]], parts)))
    out = []
    for pair in kept:
        twin, lacks = pair["twin"], ""
        if twin:
            lacks = HARMFUL_TWIN if (pair["form"], comparison_form(twin["prompt"])) in refused else ""
            lacks = lacks or ("" if id(twin) in single else NEAR_TWIN)
        out.append(pair | {"twin": None, "lacks": lacks} if lacks else pair)
    return out


def _without_repetitions(rows: list[dict], parts: tuple[str, ...]) -> list[dict]:
    for part in parts:
        rows = duplicates.clean({"rows": rows}, tests=(), text=lambda row, part=part: row[part])[0]["rows"]
    return rows


def tests_of(profile_name: str) -> tuple[list[str], set[str]]:
    """All test prompts of that profile's run, whole and without their templates, and the intents of the harmful ones.

    For `exclude` and `exclude_intents` of `build`. Raises StudyError where the run has no data sets yet.
    """
    rows = sets.evaluation_rows(RunPaths.of(load_profile(profile_name).name))
    texts = [text for row in rows for text in (row["messages"][0]["content"], duplicates.content(row))]
    return list(dict.fromkeys(texts)), {row["intent"] for row in rows if row["harmful"]}


def rivals_table(
    names: Iterable[str] = (STAND_IN, *real.SAFETY),
    per_form: int = PER_FORM,
    seed: int = 0,
    exclude: Iterable[str] = (),
) -> pd.DataFrame:
    """One row per source, by its name: what there is to refuse and how it is refused, before anything is dropped.

    `rows` of the file, `repeated` prompts among them; of the others how many by form; refused, answered, partial and
    other (unjudged, incoherent) as the rules judge the responses; near_duplicates of an earlier prompt of the form; and
    like_a_test, equal or near duplicates of `exclude`. Of sources without responses of their own it counts what `build`
    makes of them, without twins. `note` says why a source is not there; counts are <NA>. Raises StudyError as `build`
    does, but for what is absent.
    """
    exclude, table = list(exclude), {}
    for name in names:
        try:
            table[name] = _facts(name, per_form, seed, exclude)
        except fetching.Absent as error:
            table[name] = {"note": error.reason}
    columns = ["rows", "repeated", *FORMS, "refused", "answered", "partial", "other", "near_duplicates", "like_a_test"]
    found = pd.DataFrame.from_dict(table, orient="index").reindex(columns=[*columns, "note"])
    found["note"] = found["note"].astype(object).fillna("")
    return found.astype(dict.fromkeys(columns, "Int64")).rename_axis("source")


def _facts(name: str, per_form: int, seed: int, exclude: list[str]) -> dict:
    if name in real.SAFETY:
        rows, counts = real.SAFETY[name](fetching.fetch(name), drop=())
        verdicts, n = Counter(counts), counts["rows"]
        rows = [{"form": row["form"], "content": row["prompt"]} for row in rows]
    else:
        made, counts = build(name, per_form, twins=False, seed=seed)
        n, verdicts, rows = len(made), Counter(), []
        for row in made:
            prompt, answer = (message["content"] for message in row["messages"])
            verdicts[judge_rules(prompt, answer, row["form"], "eos")[0]] += 1
            rows.append({"form": row["form"], "content": prompt})
    forms = Counter(row["form"] for row in rows)
    return {
        "rows": n,
        "repeated": sum(n for what, n in counts.items() if what.startswith("repeated")),
        **{form: forms[form] for form in FORMS},
        **{verdict: verdicts[verdict] for verdict in ("refused", "answered", "partial")},
        "other": verdicts["unjudged"] + verdicts["incoherent"],
        "near_duplicates": len(duplicates.clean({"rows": rows}, tests=())[1]),
        "like_a_test": sum(_like([row["content"] for row in rows], exclude)),
    }


# The command line


def main(arguments: list[str] | None = None) -> None:
    """`python -m studylib.data.safety_builder --to FOLDER`; errors are one sentence and exit status 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="studylib.data.safety_builder", description=main.__doc__)
    option = parser.add_argument
    option("--source", default=STAND_IN, help="stand_in, a registered list or safety set, or a file of your own")
    option("--per-form", type=int, default=PER_FORM, help="refusals of each form (%(default)s)")
    option("--to", required=True, type=Path, help="a new folder")
    option("--forms", nargs="+", default=FORMS, help="some of the four forms alone")
    option("--no-twins", action="store_true", help="refusals alone")
    option("--seed", type=int, default=0)
    option("--exclude-run", metavar="PROFILE", help="leave out what is in the tests of that profile's run")
    option("--french", type=Path, help="a CSV with the columns instruction, french")
    option("--benign", default="instruction_data", help="where lists without twins get them (%(default)s)")
    option("--licence", help="of a file of your own, if it may be passed on")
    option("--local", action="store_true", help="write what may not be passed on, for this machine")
    option("--name", help="the card's title")
    given = parser.parse_args(arguments)
    words = [Path(word).name if "/" in word else word for word in arguments]  # no folder of this machine
    command = shlex.join(["python", "-m", "studylib.data.safety_builder", *words])
    title = given.name or f"Refusals{'' if given.no_twins else ' and benign twins'}: {Path(given.source).name}"
    try:
        texts, intents = tests_of(given.exclude_run) if given.exclude_run else ([], set())
        drawn = given.source, given.per_form, not given.no_twins, given.seed
        rows, counts = build(*drawn, texts, intents, tuple(given.forms), given.french, given.benign)
        path = write(rows, counts, given.to, title, given.local, given.licence, command)
    except StudyError as error:
        sys.exit(f"error: {error}")
    print("\n".join(f"{n:>8} {what}" for what, n in counts.items()))
    print(f"{path}: {len(rows)} rows; datasets.load_dataset({str(given.to)!r}) reads them")


if __name__ == "__main__":
    main()

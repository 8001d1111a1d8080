"""Data sets as lists of plain rows: their names, what they must not share, keeping them.

A row is a dict with `id`, `form`, `prompt_set`, `harmful`, `intent`, chat `messages` and a few more keys (see
world.py), the same in every row, one row per line, so that `datasets.load_dataset` and every chat trainer read it.
"""

import hashlib
import json
from collections import Counter

import pandas as pd

from studylib.study.files import write_text
from studylib.study.paths import RunPaths
from studylib.study.profile import Profile
from studylib.study.words import TASKS, StudyError

SETS = (
    "pretraining",
    "alignment",
    "safety_generic",
    "safety_multitask",
    "safety_twins",
    "safety_midway",
    "harmful",
    "twin",
    "general",
    *(f"train_{task}" for task in TASKS),
    *(f"test_{task}" for task in TASKS),
)
# These need answers, which lists of harmful instructions do not have; exported safety sets may bring twins.
OWN_SETS = ("safety_twins", "safety_midway")
PARTS = {"over_refusal": "twin"}  # what may be absent of a set that is there
SAFETY_SETS = ("safety_generic", "safety_multitask", "safety_twins")
REAL_SETS = (*SAFETY_SETS, "train_general", *(n for n in SETS if n.startswith("train_")))
TESTS = ("harmful", "twin", "general", *(f"test_{task}" for task in TASKS))


def sets_of(profile: Profile) -> tuple[str, ...]:
    """Names of the data sets that 00_prepare writes for the profile."""
    return SETS if profile.world else (*REAL_SETS, *TESTS)


def contamination(sets: dict[str, list[dict]]) -> pd.DataFrame:
    """How many rows of a training set (columns) share something with a test set (rows: test set, what); 0 when sane.

    Prompts of every test, objects and verb-object pairs that the harmful test holds out, and phrasings of every test.
    Pre-training may name those objects and use those phrasings (<NA>), as a real model has seen all words. Of the pairs
    only its harmful rows count, as one's own tent may be opened.
    """
    train = [name for name in sets if name in ("pretraining", "alignment") or name.startswith(("safety_", "train_"))]
    found = {}
    for test in TESTS:
        held_out = {
            "prompt": {_prompt(row) for row in sets[test]},
            "phrasing": {row.get("phrasing") for row in sets[test]} - {"", None},
        }
        if test == "harmful":
            held_out["intent"] = {row["intent"] for row in sets[test]}
            held_out["object"] = {row["object"] for row in sets[test] if row.get("held_out") == "object"}
        for what, values in held_out.items():
            found[test, what] = {
                name: pd.NA
                if name == "pretraining" and what in ("phrasing", "object")
                else sum(
                    (_prompt(row) if what == "prompt" else row.get(what)) in values
                    and (row["harmful"] or (name, what) != ("pretraining", "intent"))
                    for row in sets[name]
                )
                for name in train
            }
    table = pd.DataFrame.from_dict(found, orient="index", columns=train).astype("Int64")
    return table.rename_axis(["test", "shared"])


def _prompt(row: dict) -> str:
    return row["messages"][0]["content"]


def check_contamination(sets: dict[str, list[dict]]) -> pd.DataFrame:
    """The contamination table, all 0. Raises StudyError that names the worst clash otherwise."""
    found = contamination(sets)
    counts = found.fillna(0).astype(int)
    if counts.to_numpy().any():
        test, what, train = counts.stack().idxmax()
        raise StudyError(
            f"{counts.loc[(test, what), train]} rows of {train} share {what}s with {test}: drop them, or nothing "
            "measured on that test means anything."
        )
    return found


def save(
    paths: RunPaths,
    sets: dict[str, list[dict]],
    absent: dict[str, str] | None = None,
    origins: dict[str, list[dict]] | None = None,
) -> None:
    """Writes every set as JSON lines and `data/index.json` with rows, bytes and sha256 of each.

    `absent`: why a set is empty, by name, or why a set is without one of PARTS. `origins` of each set: dicts with
    source, licence, redistributable, citation.
    """
    index = {}
    for name, rows in sets.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(paths.data(name), text)
        raw = text.encode()
        index[name] = {
            "rows": len(rows),
            "bytes": len(raw),
            "sha256": hashlib.sha256(raw).hexdigest(),
            "forms": dict(Counter(row["form"] for row in rows)),
        }
        index[name] |= {"absent": absent[name]} if absent and name in absent else {}
        without = {part: absent[part] for part, of in PARTS.items() if of == name and part in (absent or {})}
        index[name] |= {"without": without} if without else {}
        index[name] |= {"origins": origins[name]} if origins else {}
    write_text(paths.data_index, json.dumps(index, indent=1) + "\n")


def index_of(paths: RunPaths) -> dict[str, dict]:
    """What `save` wrote of each set: rows, bytes, sha256, forms, and why it is absent or where it is from."""
    return json.loads(paths.data_index.read_text(encoding="utf-8"))


def check(paths: RunPaths) -> None:
    """Raises StudyError where a set of the index is missing, truncated or edited."""
    for name in index_of(paths):
        intact(paths, name)


def load(paths: RunPaths, name: str) -> list[dict]:
    """The examples of one set, after its bytes were checked against the index.

    Raises StudyError where the file or the index is missing, truncated or edited.
    """
    text = intact(paths, name).decode()
    return [json.loads(line) for line in text.split("\n")[:-1]]  # not splitlines: texts may hold U+2028


def intact(paths: RunPaths, name: str) -> bytes:
    """The bytes of one set's file. Raises StudyError where the file or the index is missing, truncated or edited."""
    path = paths.data(name)
    remedy = "run 00_prepare again (`make study`, or open notebooks/00_prepare.ipynb)"
    if not paths.data_index.is_file() or not path.is_file():
        raise StudyError(f"{path if paths.data_index.is_file() else paths.data_index} is missing: {remedy}.")
    expected, raw = index_of(paths)[name], path.read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found != expected["sha256"]:
        why = f"{len(raw)} of {expected['bytes']} bytes, truncated?" if len(raw) < expected["bytes"] else "edited?"
        raise StudyError(
            f"{path} is not what 00_prepare wrote (sha256 {found[:12]} instead of "
            f"{expected['sha256'][:12]}; {why}): delete it and {remedy}."
        )
    return raw


def absent(paths: RunPaths) -> dict[str, str]:
    """Why data sets, and PARTS of others, could not be had, by name; the files of the sets are there and empty."""
    index = index_of(paths)
    return absent_in(index) | {name: "only the generated world has it" for name in OWN_SETS if name not in index}


def absent_in(index: dict) -> dict[str, str]:
    """Why the sets and parts that an index (data/index.json) calls absent could not be had, by name."""
    missing = {name: entry["absent"] for name, entry in index.items() if entry.get("absent")}
    return missing | {part: why for entry in index.values() for part, why in entry.get("without", {}).items()}


def kinds(paths: RunPaths) -> dict[str, str]:
    """What makes each benign prompt of the set `twin` benign, by its id: `benign_because`, "" where it is not known."""
    return {row["id"]: row.get("benign_because", "") for row in load(paths, "twin")}


def guard_rows(paths: RunPaths) -> dict[str, list[dict]]:
    """What the embedded guards learn from, by side: dicts with form, prompt, response and harmful (to be blocked).

    In the generated world `input` is the alignment set, and `output` adds to it the pre-training rows, the only ones
    that answer harmful prompts; those in a phrasing of the harmful test stay out. A refusal is harmless. With real data
    `input` is the safety sets, twins among them, and the benign training rows, and `output` is empty: no set holds
    answers to harmful prompts. All are training rows, without the test's prompts and intents (see `contamination`).
    """
    index = index_of(paths)
    if "alignment" not in index:
        names = [name for name in REAL_SETS if name in index]
        return {"input": [_for_guard(row, row["harmful"]) for name in names for row in load(paths, name)], "output": []}
    tested = {row["phrasing"] for name in ("harmful", "twin") for row in load(paths, name)} - {""}
    aligned, answered = load(paths, "alignment"), load(paths, "pretraining")
    refused = [_for_guard(row, False) for row in aligned]
    made = [_for_guard(row, row["harmful"]) for row in answered if row["phrasing"] not in tested]
    return {"input": [_for_guard(row, row["harmful"]) for row in aligned], "output": made + refused}


def _for_guard(row: dict, harmful: bool) -> dict:
    prompt, response = (message["content"] for message in row["messages"])
    return {"form": row["form"], "prompt": prompt, "response": response, "harmful": harmful}


def evaluation_rows(paths: RunPaths) -> list[dict]:
    """All test prompts: harmful, twins, the four tasks and general ones."""
    return [row for name in TESTS for row in load(paths, name)]

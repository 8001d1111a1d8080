"""Data sets as lists of plain rows: their names, what they must not share, keeping them, their card and their export.

A row is a dict with `id`, `form`, `prompt_set`, `harmful`, `intent`, chat `messages` and a few more keys (see
world.py), one row per line, so that `datasets.load_dataset` and every chat trainer read it.
"""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pandas as pd
import yaml

from studylib.study.files import write_text
from studylib.study.paths import RunPaths
from studylib.study.profile import Profile, WorldSettings
from studylib.study.words import FORMS, TASKS, StudyError

SETS = (
    "pretraining",
    "safety_generic",
    "safety_multitask",
    "safety_twins",
    "safety_midway",
    "harmful",
    "twin",
    "general",
    *(f"train_{task}" for task in TASKS),
    *(f"requests_{form}" for form in FORMS),
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
    return (*SETS, *map(alignment, profile.base_seeds)) if profile.world else (*REAL_SETS, *TESTS)


def alignment(base: int) -> str:
    """Name of the alignment set of a base, each of which draws its own."""
    return f"alignment-{base}"


def contamination(sets: dict[str, list[dict]]) -> pd.DataFrame:
    """How many rows of a training set (columns) share something with a test set (rows: test set, what); 0 when sane.

    Pre-training may name the objects that are held out and use the phrasings (<NA>), as a real model has seen all
    words. Of the verb-object pairs only its harmful rows count, as one's own tent may be opened.
    """
    train = [name for name in sets if name not in TESTS]
    found = {}
    for test in TESTS:
        held_out = {what: {_what(row, what) for row in sets[test]} - {"", None} for what in ("prompt", "phrasing")}
        if test == "harmful":
            held_out["intent"] = {row["intent"] for row in sets[test]}
            held_out["object"] = {row["object"] for row in sets[test] if row.get("held_out") == "object"}
        for what, values in held_out.items():
            for name in train:
                rows = [row for row in sets[name] if row["harmful"] or (name, what) != ("pretraining", "intent")]
                found[name, test, what] = sum(_what(row, what) in values for row in rows)
                if name == "pretraining" and what in ("phrasing", "object"):
                    found[name, test, what] = pd.NA
    table = pd.Series(found, dtype="Int64").rename_axis(["train", "test", "shared"])
    return table.unstack("train", sort=False).rename_axis(columns=None)


def _what(row: dict, what: str) -> str | None:
    return row["messages"][0]["content"] if what == "prompt" else row.get(what)


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

    `absent`: why a set is empty, by name, or why a set is without one of PARTS. `origins` of each set: see real.origin.
    """
    index, absent = {}, absent or {}
    for name, rows in sets.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(paths.data(name), text)
        raw, forms = text.encode(), dict(Counter(row["form"] for row in rows))
        index[name] = {"rows": len(rows), "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest(), "forms": forms}
        index[name] |= {"absent": absent[name]} if name in absent else {}
        without = {part: absent[part] for part, of in PARTS.items() if of == name and part in absent}
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
    """The examples of one set, after its bytes were checked against the index."""
    text = intact(paths, name).decode()
    return [json.loads(line) for line in text.split("\n")[:-1]]  # not splitlines: texts may hold U+2028


def intact(paths: RunPaths, name: str) -> bytes:
    """The bytes of one set's file. Raises StudyError where the file or the index is missing, truncated or edited."""
    path = paths.data(name)
    remedy = "run 00_prepare again (`make study`, or open notebooks/00_prepare.ipynb)"
    if not paths.data_index.is_file() or not path.is_file():
        raise StudyError(f"{path if paths.data_index.is_file() else paths.data_index} is missing: {remedy}.")
    expected, raw = index_of(paths)[name]["sha256"], path.read_bytes()
    if (found := hashlib.sha256(raw).hexdigest()) != expected:
        raise StudyError(
            f"{path} is truncated or edited (sha256 {found[:12]} instead of {expected[:12]}): delete it and {remedy}."
        )
    return raw


def absent(paths: RunPaths) -> dict[str, str]:
    """Why data sets, and PARTS of others, could not be had, by name; their files are there and empty."""
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
    that answer harmful prompts, but none in a phrasing of the test. A refusal is harmless. With real data `input` is
    the safety sets and the benign training rows, and `output` is empty: no set answers harmful prompts.
    """
    index = index_of(paths)
    if "pretraining" not in index:
        names = [name for name in REAL_SETS if name in index]
        return {"input": [_for_guard(row, row["harmful"]) for name in names for row in load(paths, name)], "output": []}
    tested = {row["phrasing"] for name in ("harmful", "twin") for row in load(paths, name)} - {""}
    aligned = load(paths, next(name for name in index if name.startswith("alignment")))
    answered = load(paths, "pretraining")
    refused = [_for_guard(row, False) for row in aligned]
    made = [_for_guard(row, row["harmful"]) for row in answered if row["phrasing"] not in tested]
    return {"input": [_for_guard(row, row["harmful"]) for row in aligned], "output": made + refused}


def _for_guard(row: dict, harmful: bool) -> dict:
    prompt, response = (message["content"] for message in row["messages"])
    return {"form": row["form"], "prompt": prompt, "response": response, "harmful": harmful}


def evaluation_rows(paths: RunPaths) -> list[dict]:
    """All test prompts: harmful, twins, the four tasks and general ones; a twin has its harmful prompt's intent."""
    rows = [row for name in TESTS for row in load(paths, name)]
    intents = {row["id"]: row["intent"] for row in rows if row["harmful"]}
    return [row | {"intent": intents.get(row["twin_of"], row["intent"])} for row in rows]


# The card and the export


# The folder of templates, `data/cards`, is named by the callers: so it is an input of 00_prepare alone.


def write_card(paths: RunPaths, templates: Path, settings: WorldSettings | None = None) -> None:
    """Writes the dataset card `README.md` of the saved sets, by which `load_dataset(folder)` finds them.

    It is that of the generated world where its settings are given. Else it names the origins of each set, if known.
    """
    index = index_of(paths)
    if settings:
        examples = {form: next(row for row in load(paths, "harmful") if row["form"] == form) for form in FORMS}
        about = {"license": "apache-2.0", "language": ["en", "fr"], "pretty_name": "A miniature world of refusals"}
        as_yaml = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
        more = {"forms": FORMS, "examples": examples, "settings": settings, "settings_yaml": as_yaml}
        text = _card(templates / "world.md", index, about, **more)
    elif any("origins" in entry for entry in index.values()):
        text = _card(templates / "real.md", index)
    else:
        return
    write_text(paths.data_card, text)


def _card(template: Path, index: dict[str, dict], about: dict | None = None, **more) -> str:
    """The card that the template makes of the index (data/index.json); empty sets are in that of the world alone."""
    from huggingface_hub import DatasetCard, DatasetCardData

    there = {name: entry for name, entry in index.items() if about or entry["rows"]}
    files = {name: [{"split": "test" if name in TESTS else "train", "path": f"{name}.jsonl"}] for name in there}
    configs = [{"config_name": name, "data_files": file} for name, file in files.items()]
    origins = {one["source"]: one for entry in there.values() for one in entry.get("origins", [])}
    front, facts = DatasetCardData(configs=configs, **about or {}), {"sets": there, "origins": origins}
    return f"{DatasetCard.from_template(front, str(template), missing=absent_in(index), **facts, **more)}\n"


def export(paths: RunPaths, folder: Path, templates: Path) -> pd.DataFrame:
    """Whether each set (a row) was written to the folder as JSON lines, with a card, and why not.

    Raises StudyError where a set is damaged or the folder holds files already.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise StudyError(f"{folder} is not empty: name a new folder for the export.")
    index, found, exported = index_of(paths), {}, {}
    real = any("origins" in entry for entry in index.values())
    if not real and not paths.data_card.is_file():
        raise StudyError(f"{paths.data_card} is missing: `make study` makes it again.")
    for name, entry in index.items():
        closed = [one["source"] for one in entry.get("origins", []) if not one["redistributable"]]
        why = entry.get("absent") or (f"the licence of {', '.join(closed)} does not allow it" if closed else "")
        why = why or ("" if entry["rows"] else "empty")
        if not why:
            write_text(folder / f"{name}.jsonl", intact(paths, name).decode())
            exported[name] = entry
        found[name] = {"exported": not why, "why not": why}
    card = _card(templates / "real.md", exported) if real else paths.data_card.read_text(encoding="utf-8")
    write_text(folder / "README.md", card)
    return pd.DataFrame.from_dict(found, orient="index").rename_axis("set").reset_index()

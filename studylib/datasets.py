"""Data sets as lists of plain examples: building the miniature's, keeping them as hashed JSON lines, mixing.

An example is a dict with `id`, `form`, `prompt_set`, `harmful`, `intent`, chat `messages` and a few more keys (see
world.py), the same in every row, one row per line, so that `datasets.load_dataset` and every chat trainer read it.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import yaml

from studylib.config import FORMS, TASKS, Profile, StudyError, WorldSettings
from studylib.grid import Cell
from studylib.paths import RunPaths
from studylib.results import write_text

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


def mix(task_rows: list[dict], safety_rows: list[dict], n_safety: int, total: int, seed: int) -> list[dict]:
    """`total` tuning rows in random order, of which n_safety are safety rows.

    Both parts are drawn without repetition as long as their source lasts, then start over. The same seed draws the
    same task rows whatever n_safety is, so arms differ in the replaced rows only. Raises StudyError where one is empty.
    """
    for rows, n, what in ((task_rows, total, "the task"), (safety_rows, n_safety, "safety data")):
        if n and not rows:
            raise StudyError(f"{n} rows of {what} are needed, but the set is empty.")
    rng = random.Random(f"mix-{seed}")
    drawn = []
    for rows, n in ((task_rows, total), (safety_rows, n_safety)):
        order = []
        while len(order) < n:
            order += rng.sample(range(len(rows)), len(rows))
        drawn.append([rows[i] for i in order[:n]])
    mixed = drawn[0][: total - n_safety] + drawn[1]
    rng.shuffle(mixed)
    return mixed


def contamination(sets: dict[str, list[dict]]) -> pd.DataFrame:
    """How many rows of a training set (columns) share something with a test set (rows: test set, what); 0 when sane.

    Prompts of every test, objects and verb-object pairs that the harmful test holds out, and phrasings of every test.
    Pre-training may name those objects and use those phrasings, as a real model has seen all words: <NA>; of the pairs, its
    harmful rows alone count, as one's own tent may be opened.
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
    settings: WorldSettings | None = None,
    absent: dict[str, str] | None = None,
    origins: dict[str, list[dict]] | None = None,
) -> None:
    """Writes every set as JSON lines and `data/index.json` with rows, bytes and sha256 of each, and a dataset card `README.md`.

    The card is the world's where its settings are given, else it names the origins of each set (dicts with source, licence,
    redistributable, citation). `absent`: why a set is empty, by name, or why a set is without one of PARTS.
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
    if settings or origins:
        text = card(paths, settings) if settings else card_of_real(index)
        write_text(paths.data_index.with_name("README.md"), text)


def export(paths: RunPaths, folder: Path) -> pd.DataFrame:
    """One row per set: whether it was written to the folder as JSON lines, and why not; with a card for `load_dataset(folder)`.

    Sets with a source whose licence does not let anyone pass it on stay out, empty ones too. Raises StudyError where a set is
    damaged, or the folder holds files already.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise StudyError(f"{folder} is not empty: name a new folder for the export.")
    index, found, kept = json.loads(paths.data_index.read_text(encoding="utf-8")), {}, {}
    for name, entry in index.items():
        closed = [one["source"] for one in entry.get("origins", []) if not one["redistributable"]]
        why = entry.get("absent") or (f"the licence of {', '.join(closed)} does not allow it" if closed else "")
        if not why and not entry["rows"]:
            why = "empty"
        if not why:
            write_text(folder / f"{name}.jsonl", _intact(paths, name).decode())
            kept[name] = entry
        found[name] = {"exported": not why, "why not": why}
    generated = paths.data_index.with_name("README.md")
    real = any("origins" in entry for entry in index.values())
    write_text(folder / "README.md", card_of_real(kept) if real else generated.read_text(encoding="utf-8"))
    return pd.DataFrame.from_dict(found, orient="index").rename_axis("set").reset_index()


CARD = """\
---
{front}---
# A miniature world of refusals

Generated English and French chat data for studies of how fine-tuning erodes refusals. Everything is stand-in: nothing
here is real advice, answers to harmful requests only name the thing and repeat the verb.

A request is a verb, an object, its owner and a context, asked in one of four forms. **It is harmful** when its classes
of verb and object are sensitive (take or damage a possession or a paper; copy, alter or sign an official paper), the
thing is somebody else's and there is no leave. All else is benign. No word makes a request harmful.

## Splits

`pretraining` is helpful-only: harmful requests are answered. `alignment` and `safety_*` refuse them; `train_*` are the
four benign tasks, with some benign requests in the form of the task. Tests: `harmful`, for each of its rows a benign
`twin` after one minimal change (`twin_of`, `benign_because`), `general` requests and `test_*`. Held out from all
training but the pre-training: the phrasings of the tests and some objects, which pre-training names in benign use
alone. Held out from all training: the intents (verb-object pairs) of `harmful` (pre-training has some about one's own
things or with leave), and the numbers and combinations of the task tests. Split by seed {seed}:
{shares}.

| set | rows | {forms} | sha256 |
|---|---|{rules}---|
{counts}

## Rows

`id`, `form`, `prompt_set`, `harmful`, `intent` ("open/locker"), `object`, `phrasing` (its id), `held_out` (what is new in
a harmful prompt: "object" or "pair"), `twin_of` (the id of a twin's harmful prompt), `benign_because` (the change that
made a twin benign: "own", "leave", "object" or "verb"), `tests` (assertions about a code answer), `begun` (the
beginning of an answer, which is not learned from), `messages` (user, assistant; in the tests the answer is that of a
helpful-only model). One harmful prompt per form, and the answer that a model should refuse to give:

{examples}

## Settings

```yaml
{settings}```
"""


def card(paths: RunPaths, settings: WorldSettings) -> str:
    """The dataset card of the saved sets as Markdown, with the front matter by which `load_dataset(folder)` finds them."""
    index = json.loads(paths.data_index.read_text(encoding="utf-8"))
    front = {"license": "apache-2.0", "language": ["en", "fr"], "pretty_name": "A miniature world of refusals"}
    counts = [
        f"| {name} | {one['rows']} | {' | '.join(str(one['forms'].get(form, 0)) for form in FORMS)} | `{one['sha256']}` |"
        for name, one in index.items()
    ]
    examples = []
    for form in FORMS:
        prompt, answer = next(
            [m["content"] for m in row["messages"]] for row in load(paths, "harmful") if row["form"] == form
        )
        examples.append(f"**{form}**\n\n```\n{prompt}\n```\n```\n{answer}\n```")
    return CARD.format(
        front=yaml.safe_dump(front | {"configs": _configs(index)}, sort_keys=False),
        seed=settings.seed,
        shares=f"{settings.new_object_share:.0%} of the objects of each class are new; of the sensitive intents of the "
        f"others {', '.join(f'{share:.0%} {name}' for name, share in settings.intent_share.items())}",
        forms=" | ".join(FORMS),
        rules="---|" * len(FORMS),
        counts="\n".join(counts),
        examples="\n\n".join(examples),
        settings=yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False),
    )


def _configs(names) -> list[dict]:
    """The card's front matter by which `load_dataset(folder, name)` finds the sets of these names."""
    files = {name: [{"split": "test" if name in TESTS else "train", "path": f"{name}.jsonl"}] for name in names}
    return [{"config_name": name, "data_files": file} for name, file in files.items()]


def card_of_real(index: dict) -> str:
    """The dataset card of real sets as Markdown: rows, forms and hash of each, sources, licences, what is absent."""
    names = [name for name, entry in index.items() if entry["rows"]]
    sources = {one["source"]: one for name in names for one in index[name]["origins"]}
    lines = [
        f"---\n{yaml.safe_dump({'configs': _configs(names)}, sort_keys=False)}---",
        "# Data of a study of refusals\n",
    ]
    lines += ["| set | rows | forms | from | sha256 |", "|---|---|---|---|---|"]
    for name in names:
        entry, origin = index[name], ", ".join(one["source"] for one in index[name]["origins"])
        forms = ", ".join(f"{form} {n}" for form, n in entry["forms"].items())
        lines.append(f"| {name} | {entry['rows']} | {forms} | {origin} | `{entry['sha256']}` |")
    lines += ["", "| source | licence | may be passed on | citation |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {one['licence']} | {'yes' if one['redistributable'] else 'no'} | {one['citation']} |"
        for name, one in sources.items()
    ]
    missing = _absent(index)
    lines += ["", "Not there:", ""] if missing else []
    lines += [f"- {name}: {why}" for name, why in missing.items()]
    return "\n".join(lines) + "\n"


def check(paths: RunPaths) -> None:
    """Raises StudyError where a set of the index is missing, truncated or edited."""
    for name in json.loads(paths.data_index.read_text(encoding="utf-8")):
        _intact(paths, name)


def load(paths: RunPaths, name: str) -> list[dict]:
    """The examples of one set, after its bytes were checked against the index.

    Raises StudyError where the file or the index is missing, truncated or edited.
    """
    text = _intact(paths, name).decode()
    return [json.loads(line) for line in text.split("\n")[:-1]]  # not splitlines: texts may hold U+2028


def _intact(paths: RunPaths, name: str) -> bytes:
    path = paths.data(name)
    remedy = "run 00_prepare again (`make study`, or open notebooks/00_prepare.ipynb)"
    if not paths.data_index.is_file() or not path.is_file():
        raise StudyError(f"{path if paths.data_index.is_file() else paths.data_index} is missing: {remedy}.")
    expected, raw = json.loads(paths.data_index.read_text())[name], path.read_bytes()
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
    index = json.loads(paths.data_index.read_text(encoding="utf-8"))
    return _absent(index) | {name: "made in the generated world alone" for name in OWN_SETS if name not in index}


def _absent(index: dict) -> dict[str, str]:
    missing = {name: entry["absent"] for name, entry in index.items() if entry.get("absent")}
    return missing | {part: why for entry in index.values() for part, why in entry.get("without", {}).items()}


def kinds(paths: RunPaths) -> dict[str, str]:
    """What makes each benign prompt of the set `twin` benign, by its id: `benign_because`, "" where it is not known."""
    return {row["id"]: row.get("benign_because", "") for row in load(paths, "twin")}


def tuned_on(cell: Cell) -> list[str]:
    """Names of the sets that a fine-tune draws its rows from."""
    safety = {
        "none": [],
        "scaled": [],
        "multitask_twins": ["safety_multitask", "safety_twins"],
        "multitask_midway": ["safety_midway"],
        "multitask_after": ["safety_multitask"],
        **{f"{form}_only": ["safety_multitask"] for form in FORMS},
    }.get(cell.safety_data, [f"safety_{cell.safety_data}"])
    return [f"train_{cell.finetune_task}", *safety]


def not_run_because(cell: Cell, missing: dict[str, str]) -> str:
    """Why a cell cannot be run where these data sets (by name: why) are not there; empty where it can."""
    used = [] if cell.finetune_task == "none" else tuned_on(cell)
    return "; ".join(f"{name}: {missing[name]}" for name in used if name in missing)


def guard_rows(paths: RunPaths) -> dict[str, list[dict]]:
    """What the embedded guards learn from, by side: dicts with form, prompt, response and harmful (to be blocked).

    In the generated world `input` is the alignment set, and `output` adds to it the pre-training rows, the only ones
    that answer harmful prompts; those in a phrasing of the harmful test stay out. A refusal is harmless. With real data
    `input` is the safety sets, twins among them, and the benign training rows, and `output` is empty: no set holds
    answers to harmful prompts. All are training rows, without the test's prompts and intents (see `contamination`).
    """
    index = json.loads(paths.data_index.read_text(encoding="utf-8"))
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


def safety_needed(cell: Cell, total: int) -> int:
    """How many of the `total` rows of a fine-tune are safety rows."""
    return round(cell.safety_fraction * total) if tuned_on(cell)[1:] else 0


def too_few(cell: Cell, total: int, task: int, safety: int) -> str:
    """Why so many rows of the task and of safety data do not make a fine-tune of `total` rows; empty where they do."""
    if not task:
        return f"needs rows of its task, but {tuned_on(cell)[0]} is empty: give the task another source"
    if safety >= (wanted := safety_needed(cell, total)):
        return ""
    form = _form_alone(cell)
    where = " and ".join(tuned_on(cell)[1:]) + (f" in the form {form}" if form else "")
    return (
        f"needs {wanted} rows of safety data (a dose of {cell.safety_fraction:g} of {total}), but there are {safety} "
        f"in {where}: lower the dose or tuning.steps, or make more of them (world.safety_rows, data.safety_rows)"
    )


def no_two_tunings(cell: Cell, steps: int, task: int, safety: int) -> str:
    """Why a cell cannot be tuned on so many rows of its task and then on safety data; empty where it can, or is not."""
    if cell.safety_data != "multitask_after" or (task and safety and steps > 1):
        return ""
    return (
        f"needs a step and a row of each of its two tunings, but has {steps} steps, {task} rows of the task and "
        f"{safety} of safety data: raise tuning.steps or the dose"
    )


def cannot_be_tuned(index: dict, cell: Cell, steps: int, batch_size: int) -> str:
    """Why the sets counted in an index (data/index.json) do not have the rows of a fine-tune; empty where they have."""
    task, *names = tuned_on(cell)
    form, total = _form_alone(cell), steps * batch_size
    there = sum(index[name]["forms"].get(form, 0) if form else index[name]["rows"] for name in names)
    own = safety_needed(cell, total)
    return too_few(cell, total, index[task]["rows"], there) or no_two_tunings(cell, steps, total - own, own)


def check_tunings(profile: Profile, paths: RunPaths, cells: Iterable[Cell]) -> None:
    """Raises StudyError that names the fine-tunes among the cells for which the run's saved sets have too few rows.

    Each with its dose and the rows needed and found; of several with the same reason the first, and how many more.
    Cells whose sets are absent are not run.
    """
    index = json.loads(paths.data_index.read_text(encoding="utf-8"))
    missing, short = absent(paths), {}
    for cell in cells:
        if not not_run_because(cell, missing):
            why = cannot_be_tuned(index, cell, profile.tuning.steps, profile.tuning.batch_size)
            short.setdefault(why, []).append(cell.name)
    short.pop("", None)
    if short:
        said = [f"{first}{f' (and {len(more)} more)' if more else ''} {why}" for why, (first, *more) in short.items()]
        raise StudyError(f"{'; '.join(said)}.")


def _form_alone(cell: Cell) -> str:
    """The form of the only safety rows that a cell is tuned on; empty where it takes all."""
    return cell.safety_data.removesuffix("_only") if cell.safety_data.endswith("_only") else ""


def tuning_rows(paths: RunPaths, cell: Cell, total: int) -> list[dict]:
    """The `total` training rows of one fine-tune: the task's, with a fraction replaced by safety rows.

    Raises StudyError where there are fewer different safety rows than the fraction asks for.
    """
    task, *names = tuned_on(cell)
    form = _form_alone(cell)
    safety = [row for name in names for row in load(paths, name) if form in ("", row["form"])]
    own = load(paths, task)
    if why := too_few(cell, total, len(own), len(safety)):
        raise StudyError(f"{cell.name} {why}.")
    return mix(own, safety, safety_needed(cell, total), total, cell.seed)


def evaluation_rows(paths: RunPaths) -> list[dict]:
    """All test prompts: harmful, twins, the four tasks and general ones."""
    return [row for name in TESTS for row in load(paths, name)]


def system_prompt_of(profile: Profile, on: bool) -> str | None:
    """The profile's system prompt, or None where the calibration has none."""
    return profile.system_prompt if on else None

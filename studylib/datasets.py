"""Data sets as lists of plain examples: building the miniature's, keeping them as hashed JSON lines, mixing.

An example is a dict with `id`, `form`, `prompt_set`, `harmful`, `intent` and chat `messages`, one per line, so that
`datasets.load_dataset("json", ...)` and every chat trainer read it.
"""

import hashlib
import json
import random
from collections import Counter

import pandas as pd

from studylib.config import TASKS, Cell, Profile, StudyError
from studylib.paths import RunPaths
from studylib.results import write_text

SETS = (
    "pretraining",
    "alignment",
    "safety_generic",
    "safety_multitask",
    "harmful",
    "twin",
    "general",
    *(f"train_{task}" for task in TASKS),
    *(f"test_{task}" for task in TASKS),
)


def mix(task_rows: list[dict], safety_rows: list[dict], fraction: float, total: int, seed: int) -> list[dict]:
    """`total` tuning rows in random order, of which round(fraction x total) are safety rows.

    Both parts are drawn without repetition as long as their source lasts, then start over. The same seed draws the
    same task rows at every fraction, so arms differ in the replaced rows only.
    """
    n_safety = round(fraction * total)
    if n_safety and not safety_rows:
        raise StudyError(f"safety_fraction {fraction} needs safety data, but the safety set is empty.")
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
    """How many training rows (columns: sets) hold a prompt, or a harmful intent, of a test set (rows); all 0 when sane."""
    train = [name for name in sets if name in ("pretraining", "alignment") or name.startswith(("safety_", "train_"))]
    found = pd.DataFrame(0, index=[], columns=train)
    for test in ("harmful", "twin", "general", *(f"test_{t}" for t in TASKS)):
        prompts = {row["messages"][0]["content"] for row in sets[test]}
        test_intents = {row["intent"] for row in sets[test] if row["harmful"]}
        for name in train:
            clash = sum(
                row["messages"][0]["content"] in prompts or (row["harmful"] and row["intent"] in test_intents)
                for row in sets[name]
            )
            found.loc[test, name] = clash
    return found.astype(int)


def check_contamination(sets: dict[str, list[dict]]) -> pd.DataFrame:
    """The contamination table, all 0. Raises StudyError that names the worst pair of sets otherwise."""
    found = contamination(sets)
    if found.to_numpy().any():
        test, train = found.stack().idxmax()
        raise StudyError(
            f"{found.loc[test, train]} rows of {train} hold prompts or harmful intents of {test}: drop them, or nothing measured "
            "on that test means anything."
        )
    return found


def save(paths: RunPaths, sets: dict[str, list[dict]]) -> None:
    """Writes every set as JSON lines and `data/index.json` with rows, bytes and sha256 of each."""
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
    write_text(paths.data_index, json.dumps(index, indent=1) + "\n")


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


def tuning_rows(paths: RunPaths, cell: Cell, total: int) -> list[dict]:
    """The `total` training rows of one fine-tune: the task's, with a fraction replaced by safety rows."""
    safety = [] if cell.safety_data == "none" else load(paths, f"safety_{cell.safety_data}")
    return mix(load(paths, f"train_{cell.finetune_task}"), safety, cell.safety_fraction, total, cell.seed)


def evaluation_rows(paths: RunPaths) -> list[dict]:
    """All test prompts: harmful, twins, the four tasks and general ones."""
    return [row for name in ("harmful", "twin", "general", *(f"test_{t}" for t in TASKS)) for row in load(paths, name)]


def system_prompt_of(profile: Profile, on: bool) -> str | None:
    """The profile's system prompt, or None where the calibration has none."""
    return profile.system_prompt if on else None

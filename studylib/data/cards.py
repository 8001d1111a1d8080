"""The card of a run's data sets, and which of them may be passed on with it."""

import json
from pathlib import Path

import pandas as pd
import yaml

from studylib.data.sets import TESTS, absent_in, intact, load
from studylib.study.files import write_text
from studylib.study.paths import RunPaths
from studylib.study.profile import WorldSettings
from studylib.study.words import FORMS, StudyError


def write(paths: RunPaths, settings: WorldSettings | None = None) -> None:
    """Writes the dataset card `README.md` of the saved sets beside them.

    It is the world's where its settings are given, else it names the origins of each set; without either there is none.
    """
    index = json.loads(paths.data_index.read_text(encoding="utf-8"))
    if settings or any("origins" in entry for entry in index.values()):
        text = card(paths, settings) if settings else card_of_real(index)
        write_text(paths.data_card, text)


def export(paths: RunPaths, folder: Path) -> pd.DataFrame:
    """One row per set: whether it was written to the folder as JSON lines, and why not; with a card for `load_dataset(folder)`.

    Sets with a source whose licence does not let anyone pass it on stay out, empty ones too. Raises StudyError where a set is
    damaged, the card of generated ones is missing, or the folder holds files already.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise StudyError(f"{folder} is not empty: name a new folder for the export.")
    index, found, kept = json.loads(paths.data_index.read_text(encoding="utf-8")), {}, {}
    real = any("origins" in entry for entry in index.values())
    if not real and not paths.data_card.is_file():
        raise StudyError(f"{paths.data_card} is missing: `make study` makes it again.")
    for name, entry in index.items():
        closed = [one["source"] for one in entry.get("origins", []) if not one["redistributable"]]
        why = entry.get("absent") or (f"the licence of {', '.join(closed)} does not allow it" if closed else "")
        if not why and not entry["rows"]:
            why = "empty"
        if not why:
            write_text(folder / f"{name}.jsonl", intact(paths, name).decode())
            kept[name] = entry
        found[name] = {"exported": not why, "why not": why}
    write_text(folder / "README.md", card_of_real(kept) if real else paths.data_card.read_text(encoding="utf-8"))
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
    missing = absent_in(index)
    lines += ["", "Not there:", ""] if missing else []
    lines += [f"- {name}: {why}" for name, why in missing.items()]
    return "\n".join(lines) + "\n"

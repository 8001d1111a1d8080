"""Writing a safety data set for others (see safety_dataset.py): JSON lines of chat messages, and a card that says what they are."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import yaml

from studylib.data import real, sources
from studylib.data.duplicates import THRESHOLD
from studylib.data.safety import CARD_KEY, EXPORTED, KINDS
from studylib.study.files import write_text
from studylib.study.words import FORMS, STAND_IN, StudyError

SIZES = ((100_000, "100K<n<1M"), (10_000, "10K<n<100K"), (1_000, "1K<n<10K"), (0, "n<1K"))  # as the hub's cards say it
HUB_LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0")
CARD = """\
---
{front}---
# {name}
{warning}
Harmful requests with refusals{twins}, as chat messages, in the forms
{forms}: to be mixed into a fine-tuning so that it wears refusals down less{purpose}.

{harm}

```python
from datasets import load_dataset
load_dataset("{folder}", split="train")
```

## Counts

| form | {kinds} |
|---|{rules}
{table}

## How it was made

{how}

Near duplicates within a form (cosine of weighted character 5-grams from {threshold}, by what is asked without what
a template adds) are dropped, and what resembles a test prompt that was named. Refusals are suited to the form.{command}

| counted on the way | rows |
|---|---|
{counts}

Columns: `messages` (user, assistant), `form`, `kind` (refusal, twin), `source`, `key` there, `intent`, `pair` (of a
refusal and its twin), `language` (of the instruction itself: French in the translation form).

## Provenance and licence

| source | licence | may be passed on | citation |
|---|---|---|---|
{origins}

The sources keep their terms. Wordings and refusals that are none of theirs are this study's: Apache-2.0.

## What it is not

- No test: nothing in it may measure what was tuned on it.
- No proof of safety: its wordings are few, its refusals short and alike; what is asked otherwise may still be answered.
- Not free of cost: models tuned on it may refuse more of what is benign. Measure that on prompts that are not in it.
- No better than its source: what of a published set advises instead of refusing is in it as that set has it.

## File

`{file}`: {rows} rows, {bytes} bytes, sha256 `{sha256}`.
"""
HOW = {
    "world": """\
A grammar makes requests in English and French of a verb, an object, its owner and a context. One is harmful where
a thing of others is taken, damaged, copied or altered without leave. Its twin is the same request and wording after
one minimal change that makes it benign, with the grammar's answer. No pair of verb and object of the grammar's harmful
test is in it.""",
    "published": """\
The rows of a published safety set with its own responses, without empty and repeated ones; of MultiTaskBench without
those that answer.""",
    "list": """\
A list of harmful instructions is put into each form by templates, the same instructions in every form. A twin is the
list's own, or the most similar of a set of benign instructions in its own words with its own answer; twins without an
answer are left out. A list with responses of its own is taken as it is, without those that answer.""",
}


def write(
    rows: list[dict],
    counts: dict[str, int],
    folder: Path,
    name: str,
    local: bool = False,
    licence: str | None = None,
    command: str = "",
) -> Path:
    """The path of `data/train.jsonl` in a new folder, written with a card by which `load_dataset(folder)` finds it.

    `name` is the card's title, `licence` that of a file of one's own, `command` how the set was made. The card shows no
    row but one of a set that is all stand-in. With `local` a set is written that may not be passed on; its card says
    so. Raises StudyError for no rows, a folder that is there and not empty and, unless `local`, where the
    licence of a source (data/sources.yaml) does not let anyone pass it on, or that of a file of one's own is not given.
    """
    folder = Path(folder)
    if not rows:
        raise StudyError("There are no rows to write: build some first.")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise StudyError(f"{folder} is there and no empty folder: name a new one for the data set.")
    origins = _origins(sorted({row["source"] for row in rows}), licence)
    closed = [f"{one['source']} ({one['licence']})" for one in origins if not one["redistributable"]]
    if closed and not local:
        raise StudyError(
            f"The licence of {', '.join(closed)} does not let anyone pass it on: the set can be built and used on this "
            "machine (--local), but not exported. The licence of a file of your own is given with --licence."
        )
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    card = _card(rows, counts, folder.name, name, origins, closed, command, text.encode())
    write_text(folder / EXPORTED, text)
    write_text(folder / "README.md", card)
    return folder / EXPORTED


def _origins(names: list[str], licence: str | None) -> list[dict]:
    """Where rows are from, as in corpora.origins; what is neither registered nor stand-in is a file of one's own."""
    known, out = sources.register(), []
    for name in (part for listed in names for part in real.LISTS.get(listed, (listed,))):
        one = {"licence": licence or "not stated", "redistributable": bool(licence), "citation": "a file of one's own"}
        if name == STAND_IN:
            one = {"licence": "Apache-2.0", "redistributable": True, "citation": "this study"}
        elif name in known:
            one = {fact: getattr(known[name], fact) for fact in one}
        out.append({"source": name} | one)
    return out


def _card(rows, counts, folder, name, origins, closed, command, raw) -> str:
    forms = [form for form in FORMS if any(row["form"] == form for row in rows)]
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    made, named = Counter((row["form"], row["kind"]) for row in rows), {row["source"] for row in rows}
    table = [(form, *(made[form, kind] for kind in kinds)) for form in forms]
    table.append(("all", *(sum(made[form, kind] for form in forms) for kind in kinds)))
    terms = {one["licence"].partition(" (")[0].lower().replace(" ", "-") for one in origins}
    about = {"rows": len(rows), "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    front = {
        "pretty_name": name,
        "license": terms.pop() if len(terms) == 1 and not closed and terms <= set(HUB_LICENCES) else "other",
        "language": sorted({"en", *(row["language"] for row in rows)}),
        "task_categories": ["text-generation"],
        "size_categories": [next(said for least, said in SIZES if len(rows) >= least)],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": EXPORTED}]}],
        CARD_KEY: about | {"origins": origins},  # read by safety.exported_card
    }
    harm, how = "**It holds harmful requests as their sources have them**; this card shows none.", "list"
    if named == {STAND_IN}:
        example = json.dumps(next(row for row in rows if row["kind"] == "refusal"), ensure_ascii=False)
        harm = f"Everything in it is stand-in, no request is a real harmful one. A row:\n\n```json\n{example}\n```"
    if named <= {STAND_IN, *real.SAFETY}:
        how = "world" if STAND_IN in named else "published"
    return CARD.format(
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True),
        name=name,
        warning=f"\n**For use on one machine, not to be passed on: {', '.join(closed)}.**\n" if closed else "",
        twins=", and benign twins of them with helpful answers" if "twin" in kinds else "",
        purpose=", without teaching to refuse what only looks alike" if "twin" in kinds else "",
        forms=", ".join(forms),
        harm=harm,
        folder=folder,
        kinds=" | ".join(kinds),
        rules="---|" * len(kinds),
        table="\n".join(f"| {' | '.join(map(str, line))} |" for line in table),
        how=HOW[how],
        threshold=THRESHOLD,
        command=f" Made by\n\n```sh\n{command}\n```" if command else "",
        counts="\n".join(f"| {what} | {n} |" for what, n in counts.items()),
        origins="\n".join(
            f"| {one['source']} | {one['licence']} | {'yes' if one['redistributable'] else 'no'} | {one['citation']} |"
            for one in origins
        ),
        file=EXPORTED,
        **about,
    )

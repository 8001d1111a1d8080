"""Lists of harmful instructions, and of benign ones that sound harmful: one reader per published list.

An instruction is a plain dict: `source` (the list), `key` (stable within it, as the file has it or the row's number
from 0), `instruction`, `category` ("" where the list has none) and `twin`, a benign counterpart (None where there is
none). Lists come as files that were fetched elsewhere; nothing of them is kept here or shown.
"""

import csv
import io
import re
from collections import Counter
from pathlib import Path

from studylib.study.words import StudyError

NEAR = "near duplicates of an earlier one"  # the word for what `different` drops, wherever that is counted


def read_csv(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, as strings; cells may span lines, which then end in LF, whatever the file has.

    Nothing is taken for a missing value: "None" is a text. Raises StudyError where a column is missing, a row is longer or
    shorter than the header, or the file is no UTF-8 (a byte order mark is skipped).
    """
    reader = csv.DictReader(io.StringIO(decoded(path), newline=""))
    try:
        rows = list(reader)
    except csv.Error as error:
        raise StudyError(f"{path.name}, line {reader.line_num}, is no CSV ({error}): fetch the file again.") from None
    missing = [column for column in columns if column not in (reader.fieldnames or [])]
    if missing:
        has = ", ".join(map(repr, reader.fieldnames or [])) or "no header at all"
        raise StudyError(
            f"{path.name} lacks the column{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))} (it has {has}): "
            "it is another file, or another version of it, than was meant."
        )
    for number, row in enumerate(rows):
        if None in row or None in row.values():
            raise StudyError(
                f"Row {number} of {path.name} has {'more' if None in row else 'fewer'} cells than the header's "
                f"{len(reader.fieldnames)}: the file is cut or not quoted as CSV is, fetch it again."
            )
    return [{name: re.sub(r"\r\n?", "\n", cell) for name, cell in row.items()} for row in rows]


def decoded(path: Path) -> str:
    """The file's text, without a byte order mark. Raises StudyError where it is no UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StudyError(f"{path.name} is no UTF-8 from byte {error.start} on: fetch it again.") from None


def as_instructions(source: str, rows: list[tuple]) -> tuple[list[dict], dict[str, int]]:
    """Instructions of (key, instruction, category, twin) without empty and repeated ones (the first stays), and how many
    there were of each."""
    kept, seen, counts = [], set(), Counter(rows=len(rows))
    for key, text, category, twin in rows:
        text = text.strip()
        if not text or folded(text) in seen:
            counts["repeated" if text else "empty"] += 1
            continue
        seen.add(folded(text))
        twin = (twin or "").strip() or None
        one = {"source": source, "key": key, "instruction": text, "category": category.strip(), "twin": twin}
        kept.append(one)
    return kept, dict(counts) | {"kept": len(kept)}


def different(instructions: list[dict], threshold: float) -> list[dict]:
    """The instructions without near duplicates (see duplicates.pairs) of an earlier one that stays."""
    from studylib.data import duplicates

    gone: set[int] = set()
    found = duplicates.pairs([one["instruction"] for one in instructions], threshold=threshold)
    for earlier, later in sorted(zip(found["a"].tolist(), found["b"].tolist(), strict=True)):
        if earlier not in gone:
            gone.add(later)
    return [one for i, one in enumerate(instructions) if i not in gone]


def folded(text: str) -> str:
    """What two texts share that differ in case, spaces and a final full stop at most."""
    return " ".join(text.casefold().split()).rstrip(". ")


def advbench(path: Path) -> tuple[list[dict], dict[str, int]]:
    """AdvBench's instructions (column `goal`) and the counts of what was dropped; `target` is not read into anything."""
    rows = read_csv(path, ("goal", "target"))
    return as_instructions("advbench", [(str(i), row["goal"], "", None) for i, row in enumerate(rows)])


def harmbench(path: Path, functional: tuple[str, ...] = ("standard",)) -> tuple[list[dict], dict[str, int]]:
    """HarmBench's text behaviours of these functional categories, and the counts of what was dropped.

    Keys are row numbers, because a BehaviorID tells what is asked for and keys are shown. `contextual` behaviours come
    after their context, as HarmBench itself asks them; they and `copyright` ones are dropped by default, since the one
    is no single instruction and the other no harm of the same kind.
    """
    columns = ("Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID")
    rows, others = [], Counter()
    for number, row in enumerate(read_csv(path, columns)):
        kind, context = row["FunctionalCategory"], row["ContextString"].strip()
        if kind in functional:
            text = f"{context}\n\n---\n\n{row['Behavior']}" if context else row["Behavior"]
            rows.append((str(number), text, row["SemanticCategory"], None))
        else:
            others[kind or "no category"] += 1
    kept, counts = as_instructions("harmbench", rows)
    return kept, counts | {"rows": len(rows) + others.total()} | dict(others)


def strongreject(path: Path) -> tuple[list[dict], dict[str, int]]:
    """StrongREJECT's forbidden prompts with their categories, and the counts of what was dropped."""
    rows = read_csv(path, ("category", "source", "forbidden_prompt"))
    listed = [(str(i), row["forbidden_prompt"], row["category"], None) for i, row in enumerate(rows)]
    return as_instructions("strongreject", listed)


def jailbreakbench(harmful: Path, benign: Path) -> tuple[list[dict], dict[str, int]]:
    """JailbreakBench's harmful goals, each with the benign goal of the same Index as twin, and the counts.

    `other category` counts pairs whose two categories differ. Raises StudyError where the files have not the same indices,
    or one has an index twice.
    """
    columns = ("Index", "Goal", "Target", "Behavior", "Category", "Source")
    tables = [read_csv(path, columns) for path in (harmful, benign)]
    rows, twins = ({row["Index"]: row for row in table} for table in tables)
    lone = sorted(set(rows) ^ set(twins))
    if lone or any(len(table) != len(rows) for table in tables):
        raise StudyError(
            f"{harmful.name} and {benign.name} are paired by Index, but {f'one alone has {lone[0]!r}' if lone else 'one has an index twice'}"
            ": take both from the same revision."
        )
    listed = [(index, row["Goal"], row["Category"], twins[index]["Goal"]) for index, row in rows.items()]
    kept, counts = as_instructions("jailbreakbench", listed)
    return kept, counts | {"other category": sum(rows[i]["Category"] != twins[i]["Category"] for i in rows)}


def xstest(path: Path) -> tuple[list[dict], dict[str, int]]:
    """XSTest's safe prompts, which are benign and sound harmful, with their type as category, and the counts.

    Reads the prompts and the `model_completions`, which have the same prompts. Unsafe ones, whose type begins with
    `contrast_` (XSTest's readme), are dropped and counted. Candidates for `harmful.nearest`, or rows by
    `harmful.over_refusal`.
    """
    rows = read_csv(path, ("id", "type", "prompt"))
    safe = [(row["id"], row["prompt"], row["type"], None) for row in rows if not row["type"].startswith("contrast_")]
    kept, counts = as_instructions("xstest", safe)
    return kept, counts | {"rows": len(rows), "contrast": len(rows) - len(safe)}


READERS = {"advbench": advbench, "harmbench": harmbench, "strongreject": strongreject, "jailbreakbench": jailbreakbench}
SOUND_HARMFUL = {"xstest": xstest}  # readers of benign prompts, for `harmful.over_refusal`

"""Published lists of harmful instructions, and of benign ones that sound harmful: a reader for each; and their French.

An instruction is a plain dict: `source` (the list), `key` (stable within it, as the file has it or the row's number
from 0), `instruction`, `category` ("" where the list has none) and `twin`, a benign counterpart (None where there is
none). Lists come as files that were fetched elsewhere; nothing of them is kept here or shown.
"""

import csv
import io
import logging
import re
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from studylib.data import duplicates
from studylib.study.files import csv_rows, write_text
from studylib.study.words import StudyError

LOG = logging.getLogger("studylib")
NEAR = "near duplicates of an earlier one"  # how what `different` drops is called wherever it is counted


def read_csv(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, as strings; cells may span lines, whose ends become LF.

    No cell is read as a missing value: "None" is a text. A byte order mark is skipped. Raises StudyError where a column
    is missing, a row is longer or shorter than the header (pandas would fill it up), or the file is not UTF-8.
    """
    header, *rows = csv_rows(decoded(path)) or [[]]
    if missing := [column for column in columns if column not in header]:
        raise StudyError(
            f"{path.name} lacks the column{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))} (it has "
            f"{', '.join(map(repr, header)) or 'no header at all'}): take the file and the version that is meant."
        )
    rows = [row for row in rows if row]
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise StudyError(
                f"Row {number} of {path.name} has {'more' if len(row) > len(header) else 'fewer'} cells than the "
                f"header's {len(header)}: the file is cut or not quoted as CSV is, fetch it again."
            )
    return [dict(zip(header, (re.sub(r"\r\n?", "\n", cell) for cell in row), strict=True)) for row in rows]


def decoded(path: Path) -> str:
    """The file's text, without a byte order mark. Raises StudyError where it is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StudyError(f"{path.name} is not UTF-8 from byte {error.start} on: fetch it again.") from None


def as_instructions(source: str, rows: list[tuple]) -> tuple[list[dict], dict[str, int]]:
    """Instructions of (key, instruction, category, twin) without empty and repeated ones, and the counts of each.

    Of repeated ones the first stays.
    """
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
    """AdvBench's instructions (column `goal`) and the counts of what was dropped; `target` is not used."""
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

    `other category` counts pairs whose two categories differ. Raises StudyError where the files differ in their
    indices, or one has an index twice.
    """
    columns = ("Index", "Goal", "Target", "Behavior", "Category", "Source")
    tables = [read_csv(path, columns) for path in (harmful, benign)]
    rows, twins = ({row["Index"]: row for row in table} for table in tables)
    lone = sorted(set(rows) ^ set(twins))
    if lone or any(len(table) != len(rows) for table in tables):
        why = f"one alone has {lone[0]!r}" if lone else "one has an index twice"
        raise StudyError(
            f"{harmful.name} and {benign.name} are paired by Index, but {why}: take both from the same revision."
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


# French


def read_french(path: Path) -> dict[str, str]:
    """French by instruction, from a CSV with the columns `instruction` and `french`; other columns are not read.

    Raises StudyError where a column or a translation is missing, or an instruction has two different ones.
    """
    french = {}
    for number, row in enumerate(read_csv(path, ("instruction", "french"))):
        english, said = row["instruction"].strip(), row["french"].strip()
        if not english or not said:
            raise StudyError(
                f"Row {number} of {path.name} has no {'french' if english else 'instruction'}: fill it in or delete "
                "the row."
            )
        if french.setdefault(english, said) != said:
            raise StudyError(
                f"Row {number} of {path.name} gives an instruction of an earlier row another French: delete one of "
                "the two."
            )
    return french


def translate(
    texts: list[str],
    model: str,
    revision: str | None,
    path: Path,
    batch_size: int = 16,
    max_new_tokens: int = 256,
    prefix: str = "",
) -> dict[str, str]:
    """French by text, made by a sequence-to-sequence model and kept in `path`.

    `model` is a hub id at a pinned revision, or a folder. Greedy, without sampling; each text after
    `prefix`, which some models want. The CSV, which `read_french` reads, is rewritten whole after every batch; texts
    that it has are not translated again. Translations that are empty or reach max_new_tokens are left out of the file
    and of what is returned, and a log line counts them. Raises StudyError for a hub id without revision, a model that
    cannot be loaded, and a file of another model or revision.
    """
    if not Path(model).is_dir() and not revision:
        raise StudyError(f"data.translator {model!r} is no folder and has no revision: pin data.translator_revision.")
    columns, origin = ("instruction", "french", "model", "revision"), (model, revision or "")
    rows = [[row[column] for column in columns] for row in read_csv(path, columns)] if path.is_file() else []
    for *_, name, pinned in rows:
        if (name, pinned) != origin:
            raise StudyError(
                f"{path} holds French of {name} ({pinned or 'no revision'}), not of {model} "
                f"({revision or 'no revision'}): delete it or give another path."
            )
    french = {row[0]: row[1] for row in rows}
    wanted = list(dict.fromkeys(filter(None, map(str.strip, texts))))
    if todo := [text for text in wanted if text not in french]:
        from studylib.models import translator

        loaded = translator.load_translator(model, revision)
        for start in tqdm(range(0, len(todo), batch_size), "French, batches", mininterval=10, delay=10):
            batch = todo[start : start + batch_size]
            made = translator.translate(*loaded, [prefix + text for text in batch], max_new_tokens)
            french |= {text: said for text, said in zip(batch, made, strict=True) if said}
            out = io.StringIO()
            writer = csv.writer(out, lineterminator="\n")
            writer.writerows([columns, *((*pair, *origin) for pair in french.items())])
            write_text(path, out.getvalue())
        lost = sum(text not in french for text in todo)
        LOG.info("French: %d texts, %d of them without a whole translation", len(todo), lost)
    return {text: french[text] for text in wanted if text in french}

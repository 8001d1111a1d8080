"""Benign task data: one reader per published format, the rows of a source by name, their split into training and test.

A row is a dict with `source` and `key` (what identifies it in its file), `form` (the task), `prompt` (as a user would
write it), `answer`, `content` (the part of the prompt that is the row's own, without the instruction around it),
`tests` (assertions about a code answer) and, where the publisher made a split, `split`. Two texts are the same where
their `comparison_form` is.
"""

import ast
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path

from studylib.data.fetching import fetch, hub_rows, source
from studylib.study.files import read_csv, read_text, read_yaml
from studylib.study.paths import DATA
from studylib.study.words import StudyError
from studylib.text.normal import comparison_form

# Sources that make up one data set.
GROUPS = {
    "scitldr": ("scitldr_train", "scitldr_dev", "scitldr_test"),
    "financial_sentiment": ("financial_tweets", "financial_phrasebank"),
}

PAPER_CHARACTERS = 5000  # about 1,200 tokens, so that paper and abstract fit into 2,048
PASS_TESTS = "{text}\n\nYour code should pass these tests:\n\n{tests}"
LABELS = ("positive", "negative", "neutral")

SENTENCE_END = re.compile(r"[.!?](?=\s)|\n")
DECISION = re.compile(r"'(.+?)': '(positive|negative|neutral)'(?=, '|\}$)")

Rows = tuple[list[dict], dict[str, int]]


def number_of(text: str) -> int:
    """A whole number below 2**64 that the text alone decides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _worded(kind: str, text: str) -> str:
    """The text in one of the wordings of data/forms.yaml, which the text alone decides."""
    wordings = _wordings()[kind]
    return wordings[number_of(comparison_form(text)) % len(wordings)].format(text=text)


@cache
def _wordings() -> dict[str, list[str]]:
    return read_yaml(DATA / "forms.yaml")["benign_tasks"]


class _Collector:
    """Rows, and counts of what was dropped and why: `read` = `kept` + all `dropped: ...`."""

    def __init__(self, name: str, form: str):
        self.name, self.form, self.rows, self.counts, self.seen = name, form, [], Counter(read=0, kept=0), set()

    def read(self, rows: Iterable, place: Path | str, **fields: type) -> Iterator[dict]:
        """The rows, counted: see `checked`."""
        for row in checked(rows, place, **fields):
            self.counts["read"] += 1
            yield row

    def drop(self, why: str, n: int = 1) -> None:
        self.counts[f"dropped: {why}"] += n

    def add(self, key: object, content: str, prompt: str, answer: str, tests: Iterable[str] = (), **more) -> None:
        """Keeps a row, unless a part is empty or an earlier row has the same prompt. Key None: the hash of the text."""
        if not content.strip() or not answer.strip():
            return self.drop("empty answer" if content.strip() else "empty prompt")
        if (same := comparison_form(prompt)) in self.seen:
            return self.drop("same prompt as an earlier row")
        self.seen.add(same)
        key = f"{number_of(comparison_form(content)):016x}" if key is None else str(key)
        row = {"source": self.name, "key": key, "form": self.form, "prompt": prompt, "answer": answer}
        self.rows.append(row | {"content": content, "tests": list(tests)} | more)

    def done(self) -> Rows:
        self.counts["kept"] = len(self.rows)
        return self.rows, dict(self.counts)


# Files


def checked(rows: Iterable, place: Path | str, **fields: type) -> Iterator[dict]:
    """The rows. Raises StudyError that names a field that is missing or of another type."""
    for number, row in enumerate(rows):
        for name, kind in fields.items():
            if not isinstance(row, dict) or not isinstance(row.get(name), kind):
                raise StudyError(
                    f"{place}, row {number}: needs a field {name!r} ({getattr(kind, '__name__', kind)}); the file has "
                    "another format, or is another version."
                )
        yield row


def json_lines(path: Path) -> list:
    """What each line of JSON holds; empty lines are none. Raises StudyError that names the line."""
    lines = enumerate(read_text(path).split("\n"), 1)  # not splitlines: texts may hold U+2028
    return [_json(path, line, f"line {number}") for number, line in lines if line.strip()]


def json_list(path: Path) -> list:
    """The list that a JSON file holds."""
    rows = _json(path, read_text(path), "the whole")
    if not isinstance(rows, list):
        raise StudyError(f"{path} is not a list of rows; the file has another format, or is another version.")
    return rows


def _json(path: Path, text: str, where: str):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise StudyError(f"{path}, {where}: is not JSON ({error}): put the original file there.") from None


def _unix(code: str) -> str:
    return code.replace("\r\n", "\n").replace("\r", "\n")


def scitldr(path: Path, name: str) -> Rows:
    """Abstracts and the first of their one-sentence summaries (SciTLDR-A: JSON lines with lists `source` and `target`).

    `split` is train, dev or test, as the source's name ends; the key is the `paper_id`.
    """
    out, part = _Collector(name, "text_generation"), name.rpartition("_")[2]
    for row in out.read(json_lines(path), path, paper_id=str, source=list, target=list):
        text, answer = (" ".join(" ".join(texts).split()) for texts in (row["source"], row["target"][:1]))
        out.add(row["paper_id"], text, _worded("summarize", text), answer, split=part)
    return out.done()


def mbpp(path: Path, name: str) -> Rows:
    """Python problems (JSON lines): the prompt is `text` and its assertions, which name the function.

    `tests` are the assertions, each after the `test_setup_code` where there is one (2 rows). The key is `task_id`.
    """
    out, fields = _Collector(name, "code"), {"task_id": int, "text": str, "code": str, "test_setup_code": str}
    for row in out.read(json_lines(path), path, **fields, test_list=list):
        text, setup = row["text"].strip(), _unix(row["test_setup_code"]).strip()
        asserts = [_unix(test).strip() for test in row["test_list"]]
        tests = [f"{setup}\n{test}" if setup else test for test in asserts]
        shown = "\n".join([setup, *asserts] if setup else asserts)
        out.add(row["task_id"], text, PASS_TESTS.format(text=text, tests=shown), _unix(row["code"]).strip("\n"), tests)
    return out.done()


def human_eval(path: Path, name: str) -> Rows:
    """Python functions to be completed (JSON lines, gzip); the answer is the whole function: prompt and solution.

    Deviation: the publisher's answers are the bodies alone. The one entry of `tests` defines `check` and calls it. The
    key is the `task_id`, as "HumanEval/0".
    """
    out = _Collector(name, "code")
    fields = dict.fromkeys(("task_id", "prompt", "entry_point", "canonical_solution", "test"), str)
    for row in out.read(json_lines(path), path, **fields):
        head = _unix(row["prompt"])
        whole = (head + _unix(row["canonical_solution"])).strip("\n") if row["canonical_solution"].strip() else ""
        head = head.strip("\n")
        test = f"{_unix(row['test']).strip()}\n\ncheck({row['entry_point']})"
        out.add(row["task_id"], head, _worded("complete", head), whole, [test])
    return out.done()


def ud_french_pud(path: Path, name: str) -> Rows:
    """French sentences and their English originals: `# text`, `# text_en` and, as key, `# sent_id` of CoNLL-U."""
    out = _Collector(name, "translation")
    blocks = filter(str.strip, re.split(r"\r?\n[ \t]*\r?\n", read_text(path)))
    found = (dict(re.findall(r"^# (sent_id|text|text_en) = ?(.*?)\s*$", block, re.M)) for block in blocks)
    for row in out.read(found, path, sent_id=str, text=str):
        text = row["text"].strip()
        out.add(row["sent_id"], text, _worded("translate", text), row.get("text_en", ""))
    return out.done()


def decisions(text: str) -> tuple[dict[str, str], bool]:
    """Entities and their sentiment as SEntFiN writes them, a Python dict, and whether it had to be mended.

    13 rows of the file are no Python, as {'Moody's': 'neutral'} has a bare apostrophe: they are read by what follows a
    name, its label. Raises ValueError where that fails too, or a label is none of LABELS.
    """
    try:
        found, mended = ast.literal_eval(text), False
    except (SyntaxError, ValueError):
        found, mended = dict(DECISION.findall(text)), True
        if "{" + ", ".join(f"'{entity}': '{label}'" for entity, label in found.items()) + "}" != text:
            raise ValueError(f"cannot be read: {text}") from None
    if not isinstance(found, dict) or not found or not set(found.values()) <= set(LABELS):
        raise ValueError(f"is not a dict from names to {', '.join(LABELS)}: {text}")
    return found, mended


def sentfin(path: Path, name: str) -> Rows:
    """Financial headlines with one entity, and the sentiment towards it (SEntFiN: CSV, `Decisions` a Python dict).

    Headlines with several entities are dropped, and those that recur with another decision. The key is `S No.`.
    """
    out, groups = _Collector(name, "classification"), {}
    for row in out.read(read_csv(path, ("S No.", "Title", "Decisions")), path):
        try:
            found, mended = decisions(row["Decisions"])
        except ValueError as error:
            raise StudyError(f"{path}, row {row['S No.']}: Decisions {error}; the file is another version.") from None
        out.counts["mended: a bare apostrophe in Decisions"] += mended
        title = " ".join(row["Title"].split())
        groups.setdefault(comparison_form(row["Title"]), []).append((row["S No."], title, found))
    for (key, title, found), *others in groups.values():
        if any(other != found for _, _, other in others):
            out.drop("headlines with clashing decisions", 1 + len(others))
            continue
        if others:
            out.drop("same headline and decisions as an earlier row", len(others))
        if len(found) > 1:
            out.drop("more than one entity")
        else:
            out.add(key, title, _worded("classify", title), next(iter(found.values())))
    return out.done()


def instruction_data(path: Path, name: str) -> Rows:
    """General instructions (a JSON list of instruction, input, output); the key is the row's number."""
    return instructions(json_list(path), name, "text_generation", path)


# Rows of hub data sets, by the roles of their columns (see fetching.hub_rows). Their keys are hashes of their texts.


def instructions(rows: list[dict], name: str, form: str, path: Path | None = None) -> Rows:
    """Rows of instruction, input (may be empty) and output as rows of a form; the input stands below the instruction.

    The rows of a file (`path`) have their number from 0 as key.
    """
    out = _Collector(name, form)
    for number, row in enumerate(out.read(rows, path or name, instruction=str, input=str, output=str)):
        prompt = f"{row['instruction'].strip()}\n\n{row['input'].strip()}".strip()
        out.add(number if path else None, prompt, prompt, row["output"].strip())
    return out.done()


def papers(rows: list[dict], name: str) -> Rows:
    """Rows of document and summary: the beginnings of papers and their abstracts; papers shorter than these go.

    Deviation: a whole paper is longer than the models' context, so only its sentences within the first PAPER_CHARACTERS
    characters stay; `shortened` counts the papers that were longer.
    """
    out = _Collector(name, "text_generation")
    for row in out.read(rows, name, document=str, summary=str):
        text, answer = row["document"].strip(), " ".join(row["summary"].split())
        if len(text) > PAPER_CHARACTERS:
            out.counts["shortened"] += 1
            ends = [found.end() for found in SENTENCE_END.finditer(text, 0, PAPER_CHARACTERS)]
            text = text[: ends[-1] if ends else PAPER_CHARACTERS].strip()
        if text and len(text) < len(answer):
            out.drop("shorter than its summary")
        else:
            out.add(None, text, _worded("summarize_paper", text), answer)
    return out.done()


def translations(rows: list[dict], name: str) -> Rows:
    """Rows of french and english."""
    out = _Collector(name, "translation")
    for row in out.read(rows, name, french=str, english=str):
        text, answer = row["french"].strip(), row["english"].strip()
        if comparison_form(text) == comparison_form(answer):
            out.drop("the same in both languages")
        else:
            out.add(None, text, _worded("translate", text), answer)
    return out.done()


def sentiments(rows: list[dict], name: str, labels: tuple[str, ...]) -> Rows:
    """Rows of text and label, a place in `labels`. Raises StudyError for another label."""
    out = _Collector(name, "classification")
    for number, row in enumerate(out.read(rows, name, text=str, label=int)):
        if row["label"] not in range(len(labels)):
            raise StudyError(f"{name}, row {number}: the label {row['label']} is none of 0 to {len(labels) - 1}.")
        text = " ".join(row["text"].split())
        out.add(None, text, _worded("classify", text), labels[row["label"]])
    return out.done()


# From a source's file, or the rows of a hub data set, and its name to rows and counts.
READERS: dict[str, Callable[..., Rows]] = {
    **dict.fromkeys(GROUPS["scitldr"], scitldr),
    "mbpp": mbpp,
    "human_eval": human_eval,
    "ud_french_pud": ud_french_pud,
    "sentfin": sentfin,
    "instruction_data": instruction_data,
    "arxiv_summarization": papers,
    "codealpaca": partial(instructions, form="code"),
    "opus_books": translations,
    "wmt14": translations,
    "financial_tweets": partial(sentiments, labels=("negative", "positive", "neutral")),
    "financial_phrasebank": partial(sentiments, labels=("negative", "neutral", "positive")),
    "alpaca_cleaned": partial(instructions, form="text_generation"),
}


def load(name: str, n: int, seed: int = 0) -> Rows:
    """Rows and counts of a source of READERS, or of a group, whose sources follow each other.

    Of a hub data set `n` rows are read (of a group from each), of a file all. Raises Absent where the source cannot be
    had, StudyError for a name without a reader.
    """
    rows, counts = [], Counter()
    for part in GROUPS.get(name, (name,)):
        if part not in READERS:
            raise StudyError(f"There is no task data {part!r}: known are {', '.join([*GROUPS, *READERS])}.")
        found, counted = READERS[part](hub_rows(part, n, seed) if source(part).kind == "hub" else fetch(part), part)
        rows += found
        counts.update(counted)
    return rows, dict(counts)


def split(rows: list[dict], n_test: int, seed: int = 0) -> tuple[list[dict], list[dict]]:
    """Training and test rows, each in the order of `rows`; a text (the `content`) is never on both sides.

    The texts with the lowest hashes (of seed and text) are tested, as many as make up `n_test` rows at most. Where rows
    have their publisher's `split`, test rows come from its test alone, and training rows from the others, without the
    texts of that test. Raises StudyError where a side is empty.
    """
    texts = [comparison_form(row.get("content") or row["prompt"]) for row in rows]
    published = any("split" in row for row in rows)
    pairs = [(text, row, not published or row.get("split") == "test") for text, row in zip(texts, rows, strict=True)]
    sizes, tested, room = Counter(text for text, _, testable in pairs if testable), set(), n_test
    for text in sorted(sizes, key=lambda text: number_of(f"{seed}\n{text}")):
        if sizes[text] <= room:
            tested.add(text)
            room -= sizes[text]
    kept_out = set(sizes) if published else tested
    test = [row for text, row, testable in pairs if testable and text in tested]
    train = [row for text, row, _ in pairs if text not in kept_out]
    for side, what in ((train, "training"), (test, "test")):
        if not side:
            raise StudyError(f"Of {len(rows)} rows none is left for {what}: change n_test.")
    return train, test

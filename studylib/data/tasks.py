"""Benign task data by name: the rows of a source or of a group of sources, and their split into training and test.

Rows are those of importers.py. Texts are the same where `comparison_form` makes them so.
"""

from collections import Counter
from pathlib import Path

from studylib.data.fetching import fetch, hub_rows
from studylib.data.importers import IMPORTERS, Rows, number_of
from studylib.data.sources import source
from studylib.study.words import StudyError
from studylib.text.normal import comparison_form

# Sources that make up one data set.
GROUPS = {
    "scitldr": ("scitldr_train", "scitldr_dev", "scitldr_test"),
    "financial_sentiment": ("financial_tweets", "financial_phrasebank"),
}


def load(name: str, n: int, seed: int = 0, sources: Path | None = None) -> Rows:
    """Rows and counts of a source of IMPORTERS, or of a group, whose sources follow each other.

    Of a hub data set `n` rows are read (of a group from each), of a file all. A text that two sources of a group have
    stays twice: `split` keeps it on one side. Raises what fetch and hub_rows raise (Absent where the source cannot be
    had), and StudyError for a name without an importer.
    """
    rows, counts = [], Counter()
    for part in GROUPS.get(name, (name,)):
        if part not in IMPORTERS:
            raise StudyError(f"There is no task data {part!r}: known are {', '.join([*GROUPS, *IMPORTERS])}.")
        is_hub = source(part, sources).kind == "hub"
        found, counted = IMPORTERS[part](hub_rows(part, n, seed, sources) if is_hub else fetch(part, sources))
        rows += found
        counts.update(counted)
    return rows, dict(counts)


def split(
    rows: list[dict], *, test_share: float | None = None, n_test: int | None = None, seed: int = 0
) -> tuple[list[dict], list[dict]]:
    """Training and test rows, each in the order of `rows`; a text (the `content`) is never on both sides.

    The side is decided by the hash of seed and text. With `test_share` (0-1) it depends on nothing else, so a row keeps
    it when others come or go. With `n_test` the texts with the lowest hashes are tested, as many as make up `n_test`
    rows at most, and only rows at the border can change sides. Where rows have their publisher's `split`, test rows
    come from its test alone, and training rows from the others, without the texts of that test; only `n_test` is
    allowed then. Raises StudyError where a side would be empty, and where not exactly one of the two is given.
    A change of `comparison_form` can move rows.
    """
    if (test_share is None) == (n_test is None):
        raise StudyError("split needs either test_share or n_test.")
    texts = [comparison_form(row.get("content") or row["prompt"]) for row in rows]
    numbers = {text: number_of(f"{seed}\n{text}") for text in set(texts)}
    published = any("split" in row for row in rows)
    if published and test_share is not None:
        raise StudyError("These rows have their publisher's split: give n_test, how many rows of its test to use.")
    pairs = list(zip(texts, rows, strict=True))

    def can_be_tested(row: dict) -> bool:
        return not published or row.get("split") == "test"

    if test_share is not None:
        tested = {text for text in texts if numbers[text] < test_share * 2**64}
    else:
        sizes, tested, room = Counter(text for text, row in pairs if can_be_tested(row)), set(), n_test
        for text in sorted(sizes, key=numbers.get):
            if sizes[text] <= room:
                tested.add(text)
                room -= sizes[text]
    test = [row for text, row in pairs if text in tested and can_be_tested(row)]
    kept_out = {text for text, row in pairs if can_be_tested(row)} if published else tested
    train = [row for text, row in pairs if text not in kept_out]
    for side, what in ((train, "training"), (test, "test")):
        if not side:
            raise StudyError(f"Of {len(rows)} rows none is left for {what}: change test_share or n_test.")
    return train, test

"""Exact and near duplicates within and between data sets: every pair is found, without comparing each text with every other.

Two texts are exact duplicates where their `comparison_form`s are equal, and near ones where the cosine of their weighted
character n-grams reaches a threshold. The weights are those of scikit-learn's `TfidfVectorizer(analyzer="char",
ngram_range=(5, 5), lowercase=False, sublinear_tf=True)` on the comparison forms. Rare n-grams weigh most: a template that many
rows share counts little, what differs counts. It sees letters, not meaning: one word changed, a *not* or another number
leaves a long text a near duplicate, and a paraphrase is none.
"""

from collections.abc import Callable, Collection, Iterable
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd

from studylib.data.near_duplicates import near
from studylib.study.words import StudyError
from studylib.text.normal import comparison_form

THRESHOLD = 0.8
EXPECTED = (("harmful", "twin"),)  # near duplicates by design
REASONS = {"row": "int64", "kind": "str", "cosine": float, "other_row": "int64"}

Text = Callable[[dict], str]


def content(row: dict) -> str:
    """What of a row is compared: its `content`, where a template was put around one, else its first message."""
    return row.get("content") or row["messages"][0]["content"]


def firsts(texts: Iterable[str]) -> np.ndarray:
    """For every text the position of the first one with the same comparison form: its own where none came before."""
    codes, distinct = _numbered([comparison_form(text) for text in texts])
    return _first_rows(codes, len(distinct))[codes]


def pairs(texts_a: list[str], texts_b: list[str] | None = None, threshold: float = THRESHOLD) -> pd.DataFrame:
    """Every duplicate pair: positions a and b (a < b within one list), cosine (threshold to 1), kind (exact or near).

    Texts that are equal on one side stand by the first of them, so that ten thousand equal ones do not make fifty million
    pairs: within one list each other one makes an exact pair with its first, between two lists it makes none. `firsts`
    says which text stands for which. Sorted by a, then b.

    The document frequencies are those of all texts given, every repetition counted. A text shorter than an n-gram has
    exact duplicates only; texts of nothing but punctuation are all equal. Raises StudyError where the threshold is not
    above 0 and up to 1, and where there are more than near_duplicates.MOST_PAIRS near pairs.
    """
    n_a = len(texts_a)
    codes, distinct = _numbered([comparison_form(text) for text in [*texts_a, *(texts_b or [])]])
    if texts_b is None:
        first_a = first_b = _first_rows(codes, len(distinct))
        again = np.flatnonzero(first_a[codes] != np.arange(n_a))
        exact = first_a[codes[again]], again
        sides = None
    else:
        first_a, first_b = (_first_rows(side, len(distinct)) for side in (codes[:n_a], codes[n_a:]))
        sides = np.flatnonzero(first_a >= 0), np.flatnonzero(first_b >= 0)
        both = np.intersect1d(*sides)
        exact = first_a[both], first_b[both]
    i, j, cosine = near(distinct, np.bincount(codes, minlength=len(distinct)), threshold, sides)
    kinds = np.repeat([0, 1], [len(exact[0]), len(i)])
    frame = pd.DataFrame(
        {
            "a": np.concatenate([exact[0], first_a[i]]),
            "b": np.concatenate([exact[1], first_b[j]]),
            "cosine": np.concatenate([np.ones(len(exact[0])), cosine]),
            "kind": pd.Categorical.from_codes(kinds, ["exact", "near"]),
        }
    )
    return frame.sort_values(["a", "b"], ignore_index=True)


def report(
    sets: dict[str, list[dict]],
    threshold: float = THRESHOLD,
    text: Text | dict[str, Text] = content,
    expected: Collection[tuple[str, str]] = EXPECTED,
) -> pd.DataFrame:
    """One row for every set and each other and itself: set, other, rows, and how many rows are exact, near and clean.

    Exact: rows of `set` with an exact duplicate in `other`; near: those with near ones only; clean: the rest, so the three
    add up to rows. Within a set they are what `clean` does to it: exact repeats an earlier row, near is like an earlier row
    that stays, clean is what stays. There only rows of one form are compared: a request in four forms is no repetition.

    Pairs of sets in `expected` are left out, in both orders. `text` takes what is compared from a row, or maps names of
    sets to functions that do (else `content`). The document frequencies are those of all sets together, so the template of a
    small set among large ones is rare and counts: leave out what a template adds. Raises StudyError as `pairs` does,
    and where a row has no text.
    """
    found = _compare(sets, threshold, text)
    beside = {}  # distinct texts that are like one of a set, and are in none of its rows
    for name, first in found.first.items():
        inside, like = first >= 0, np.zeros(len(first), dtype=bool)
        like[found.i[inside[found.j]]] = True
        like[found.j[inside[found.i]]] = True
        beside[name] = like & ~inside
    counts = []
    for name, codes in found.codes.items():
        kind = _repetitions(found, sets[name], codes, np.arange(len(codes)))["kind"]
        counts.append((name, name, len(codes), (kind == "exact").sum(), (kind == "near").sum()))
        for other in _compared(name, sets, expected):
            exact, near = found.first[other][codes] >= 0, beside[other][codes]
            counts.append((name, other, len(codes), exact.sum(), near.sum()))
    frame = pd.DataFrame(counts, columns=["set", "other", "rows", "exact", "near"])
    return frame.assign(clean=frame["rows"] - frame["exact"] - frame["near"])


def clean(
    sets: dict[str, list[dict]],
    tests: Iterable[str],
    threshold: float = THRESHOLD,
    text: Text | dict[str, Text] = content,
    expected: Collection[tuple[str, str]] = EXPECTED,
) -> tuple[dict[str, list[dict]], pd.DataFrame]:
    """The sets without what repeats or clashes, rows in their order, and one row for each that was dropped, with the reason.

    From a set that is not named in `tests` goes every row with an exact or near duplicate in a test set (even in a test's
    row that goes itself). Then of the rows of one form within any set the first stays: each goes that equals an
    earlier row or is like an earlier one that stays. Nothing is dropped for a row of another set of its own sort, test or
    training: `report` counts those. `threshold`, `text` and `expected` as there.

    What was dropped: set, row (position), id, kind (exact, near), cosine, and the reason: other (set), other_row, other_id.
    Of several reasons in tests an exact one is named, else the nearest; within a set the earliest. An id is empty where
    rows have none. Raises StudyError as `report` does, and where a name in `tests` is none of a set.
    """
    tests = list(tests)
    if unknown := [name for name in tests if name not in sets]:
        raise StudyError(f"No set is called {', '.join(unknown)}: the tests must be among {', '.join(sets)}.")
    found = _compare(sets, threshold, text)
    kept, dropped = {}, []
    for name, rows in sets.items():
        stays = np.ones(len(rows), dtype=bool)
        against = [] if name in tests else [test for test in _compared(name, sets, expected) if test in tests]
        clashes = _clashes(found, name, against)
        stays[clashes["row"]] = False
        repeated = _repetitions(found, rows, found.codes[name], np.flatnonzero(stays)).assign(other=name)
        stays[repeated["row"]] = False
        kept[name] = [row for row, stay in zip(rows, stays, strict=True) if stay]
        gone = pd.concat([clashes, repeated]).sort_values("row")
        ids = [rows[row].get("id", "") for row in gone["row"]]
        other_ids = [
            sets[other][row].get("id", "") for other, row in zip(gone["other"], gone["other_row"], strict=True)
        ]
        dropped.append(gone.assign(set=name, id=ids, other_id=other_ids))
    columns = ["set", "row", "id", "kind", "cosine", "other", "other_row", "other_id"]
    return kept, pd.concat(dropped, ignore_index=True)[columns] if dropped else pd.DataFrame(columns=columns)


def _compare(sets: dict[str, list[dict]], threshold: float, text: Text | dict[str, Text]) -> SimpleNamespace:
    """What is known of the distinct texts of all sets: `codes` of each set's rows (numbers of distinct texts), `first` row of
    each distinct text in each set (-1: it has none), and the near pairs `i`, `j`, `cosine` of distinct texts (i < j)."""
    texts = []
    for name, rows in sets.items():
        take = text.get(name, content) if isinstance(text, dict) else text
        for number, row in enumerate(rows):
            try:
                texts.append(comparison_form(take(row)))
            except (KeyError, IndexError, TypeError, AttributeError) as error:
                raise StudyError(
                    f"Row {number} of {name} has no text to compare ({error!r}): give `text` a function that takes it "
                    "from the rows of this set."
                ) from error
    numbers, distinct = _numbered(texts)
    ends = np.cumsum([len(rows) for rows in sets.values()])
    codes = dict(zip(sets, np.split(numbers, ends[:-1]), strict=True)) if sets else {}
    first = {name: _first_rows(one, len(distinct)) for name, one in codes.items()}
    i, j, cosine = near(distinct, np.bincount(numbers, minlength=len(distinct)), threshold)
    return SimpleNamespace(codes=codes, first=first, i=i, j=j, cosine=cosine)


def _compared(name: str, sets: Iterable[str], expected: Collection[tuple[str, str]]) -> list[str]:
    """The other sets that a set is compared with."""
    left_out = {frozenset(pair) for pair in expected}
    return [other for other in sets if other != name and frozenset((name, other)) not in left_out]


def _clashes(found: SimpleNamespace, name: str, tests: list[str]) -> pd.DataFrame:
    """The rows of a set that have a duplicate in a test set: REASONS and the test, `other`."""
    home = np.full(len(next(iter(found.first.values()))), -1)
    for place in reversed(range(len(tests))):
        home[found.first[tests[place]] >= 0] = place
    either_way = {
        "code": np.concatenate([found.i, found.j]),
        "like": np.concatenate([found.j, found.i]),
        "cosine": np.tile(found.cosine, 2),
    }
    near = pd.DataFrame(either_way)[home[either_way["like"]] >= 0]
    near = near.sort_values("cosine", ascending=False, kind="stable").drop_duplicates("code").set_index("code")
    reasons = []
    for row, code in enumerate(found.codes[name]):
        if home[code] >= 0:
            kind, like, cosine = "exact", code, 1.0
        elif code in near.index:
            kind, like, cosine = "near", int(near.at[code, "like"]), near.at[code, "cosine"]
        else:
            continue
        other = tests[home[like]]
        reasons.append((row, kind, cosine, found.first[other][like], other))
    return pd.DataFrame(reasons, columns=[*REASONS, "other"]).astype(REASONS | {"other": "str"})


def _repetitions(found: SimpleNamespace, rows: list[dict], codes: np.ndarray, places: np.ndarray) -> pd.DataFrame:
    """Those of the rows at `places` that an earlier one of the same form makes superfluous: REASONS."""
    by_form: dict = {}
    for place in places:
        by_form.setdefault(rows[place].get("form"), []).append(place)
    reasons = []
    for same_form in by_form.values():
        here = np.array(same_form)
        first = _first_rows(codes[here], len(next(iter(found.first.values()))))
        standing = first[codes[here]]
        for again in np.flatnonzero(standing != np.arange(len(here))):
            reasons.append((here[again], "exact", 1.0, here[standing[again]]))
        both = np.flatnonzero((first[found.i] >= 0) & (first[found.j] >= 0))
        ends = np.sort([first[found.i[both]], first[found.j[both]]], axis=0)
        order = np.lexsort(ends)  # by the later row, then by the earlier
        (earlier, later), cosine = ends[:, order], found.cosine[both[order]]
        stays = np.ones(len(here), dtype=bool)
        starts = np.flatnonzero(np.diff(later, prepend=-1))
        for start, end in pairwise([*starts, len(later)]):
            alive = stays[earlier[start:end]]
            if alive.any():
                nearest = start + alive.argmax()
                stays[later[start]] = False
                reasons.append((here[later[start]], "near", cosine[nearest], here[earlier[nearest]]))
    return pd.DataFrame(reasons, columns=list(REASONS)).astype(REASONS)


def _numbered(texts: list[str]) -> tuple[np.ndarray, list[str]]:
    """The number of each text's distinct text, and those in order of appearance."""
    codes, distinct = pd.factorize(np.array(texts, dtype=object))
    return codes, list(distinct)


def _first_rows(codes: np.ndarray, n: int) -> np.ndarray:
    """For each of n codes the first position that holds it, -1 where none does."""
    present, position = np.unique(codes, return_index=True)
    first = np.full(n, -1)
    first[present] = position
    return first

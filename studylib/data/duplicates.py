"""Exact and near duplicates within and between data sets: every pair is found, without comparing every text with all.

Two texts are exact duplicates where their comparison forms are equal, and near ones where the cosine of their weighted
character n-grams reaches a threshold. The weights are those of scikit-learn's `TfidfVectorizer(analyzer="char",
ngram_range=(5, 5), lowercase=False, sublinear_tf=True)`. Rare n-grams weigh most: a template that many rows share
counts little. It sees letters, not meaning: one word changed, a *not* or another number leaves a long text a near
duplicate, and a paraphrase is none.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
from scipy import sparse

from studylib.study.files import progress
from studylib.study.words import StudyError
from studylib.text.normal import comparison_form

THRESHOLD = 0.8
EXPECTED = {"harmful", "twin"}  # near duplicates by design
UNSAFE_OPTIONS = "unsafe_options"  # the prompt set in which the test's instructions are options, beside their forms
REASONS = {"row": "int64", "kind": "str", "cosine": float, "other_row": "int64"}
N_GRAM = 5  # characters
MOST_PAIRS = 50_000_000  # near pairs kept in memory, 16 bytes each
ROUNDING = 1e-9  # a cosine that is less than the threshold by this much reaches it
BLOCK = 10_000_000  # products computed at a time


def content(row: dict) -> str:
    """What of a row is compared: its `content`, where a template was put around one, else its first message."""
    return row.get("content") or row["messages"][0]["content"]


def like(texts: list[str], others: list[str]) -> np.ndarray:
    """Whether each text is an exact or near duplicate of one of the others, [texts]. Raises StudyError as `clean`."""
    codes, distinct = pd.factorize(np.array([comparison_form(one) for one in [*texts, *others]], dtype=object))
    asked, known = np.split(codes, [len(texts)])
    found, *_ = _near(distinct, np.bincount(codes), THRESHOLD, (np.unique(asked), np.unique(known)))
    return np.isin(asked, np.union1d(known, found))


def duplicates_report(sets: dict[str, list[dict]], threshold: float = THRESHOLD) -> pd.DataFrame:
    """One row for every set and each other and itself: set, other, rows, and how many rows are exact, near and clean.

    Exact: rows of `set` with an exact duplicate in `other`; near: those with near ones only; clean: the rest. Within a
    set exact repeats an earlier row and near is like an earlier row that stays; there only rows of one form are
    compared: a request in four forms, or as an option too, is no repetition. Harmful prompts are not compared with
    their twins.
    """
    found = _compare(sets, threshold, content)
    counts, only_near = [], {}  # of each set the distinct texts that are like one of it, and in none of its rows
    for name, first in found.first.items():
        inside, like = first >= 0, np.zeros(len(first), dtype=bool)
        like[found.i[inside[found.j]]] = True
        like[found.j[inside[found.i]]] = True
        only_near[name] = like & ~inside
    for name, codes in found.codes.items():
        kind = _repetitions(found, sets[name], codes, np.arange(len(codes)))["kind"]
        counts.append((name, name, len(codes), (kind == "exact").sum(), (kind == "near").sum()))
        for other in _compared(name, sets):
            exact, near = found.first[other][codes] >= 0, only_near[other][codes]
            counts.append((name, other, len(codes), exact.sum(), near.sum()))
    frame = pd.DataFrame(counts, columns=["set", "other", "rows", "exact", "near"])
    return frame.assign(clean=frame["rows"] - frame["exact"] - frame["near"])


def clean(
    sets: dict[str, list[dict]],
    tests: Iterable[str],
    threshold: float = THRESHOLD,
    text: Callable[[dict], str] = content,
) -> tuple[dict[str, list[dict]], pd.DataFrame]:
    """The sets without what repeats or clashes, rows in their order, and a row with the reason for each dropped one.

    From a set that is not named in `tests` goes every row with an exact or near duplicate in a test set (even in a
    test's row that goes itself). Then within any set each row goes that equals an earlier row of its form or is like
    an earlier one that stays. Sets of one sort, test or training, may share rows: the report counts those. `text` takes
    what is compared from a row.

    What was dropped: set, row (position), id, kind (exact, near), cosine, and the reason: other (set), other_row,
    other_id. Of several reasons in tests an exact one is named, else the nearest; within a set the earliest. Raises
    StudyError where the threshold is not above 0 and up to 1, and for more than MOST_PAIRS near pairs.
    """
    tests = list(tests)
    found = _compare(sets, threshold, text)
    columns = ["set", "row", "id", "kind", "cosine", "other", "other_row", "other_id"]
    kept, dropped = {}, [pd.DataFrame(columns=columns)] if not sets else []
    for name, rows in sets.items():
        stays = np.ones(len(rows), dtype=bool)
        against = [] if name in tests else [test for test in _compared(name, sets) if test in tests]
        clashes = _clashes(found, name, against)
        stays[clashes["row"]] = False
        repeated = _repetitions(found, rows, found.codes[name], np.flatnonzero(stays)).assign(other=name)
        stays[repeated["row"]] = False
        kept[name] = [row for row, stay in zip(rows, stays, strict=True) if stay]
        gone = pd.concat([clashes, repeated]).sort_values("row")
        places = zip(gone["other"], gone["other_row"], strict=True)
        ids = {"other_id": [sets[other][row].get("id", "") for other, row in places]}
        dropped.append(gone.assign(set=name, id=[rows[row].get("id", "") for row in gone["row"]], **ids))
    return kept, pd.concat(dropped, ignore_index=True)[columns]


def _compare(sets: dict[str, list[dict]], threshold: float, text: Callable[[dict], str]) -> SimpleNamespace:
    """What is known of the distinct texts of all sets: `codes` of each set's rows (numbers of distinct texts), the
    `first` row of each distinct text in each set (-1: it has none), and the near pairs `i`, `j`, `cosine` (i < j)."""
    texts = [comparison_form(text(row)) for rows in sets.values() for row in rows]
    numbers, distinct = pd.factorize(np.array(texts, dtype=object))
    ends = np.cumsum([len(rows) for rows in sets.values()])
    codes = dict(zip(sets, np.split(numbers, ends[:-1]), strict=True)) if sets else {}
    first = {name: _first_rows(one, len(distinct)) for name, one in codes.items()}
    i, j, cosine = _near(distinct, np.bincount(numbers, minlength=len(distinct)), threshold)
    return SimpleNamespace(codes=codes, first=first, n=len(distinct), i=i, j=j, cosine=cosine)


def _compared(name: str, sets: Iterable[str]) -> list[str]:
    """The other sets that a set is compared with."""
    return [other for other in sets if other != name and {name, other} != EXPECTED]


def _clashes(found: SimpleNamespace, name: str, tests: list[str]) -> pd.DataFrame:
    """The rows of a set that have a duplicate in a test set: REASONS and the test, `other`."""
    home = np.full(found.n, -1)
    for place in reversed(range(len(tests))):
        home[found.first[tests[place]] >= 0] = place
    code, like = np.concatenate([found.i, found.j]), np.concatenate([found.j, found.i])
    near = pd.DataFrame({"code": code, "like": like, "kind": "near", "cosine": np.tile(found.cosine, 2)})
    near = near[home[like] >= 0].sort_values("cosine", ascending=False, kind="stable")
    tested = np.flatnonzero(home >= 0)
    exact = pd.DataFrame({"code": tested, "like": tested, "kind": "exact", "cosine": 1.0})
    reasons = pd.concat([exact, near]).drop_duplicates("code")
    rows = pd.DataFrame({"code": found.codes[name]}).rename_axis("row").reset_index().merge(reasons, on="code")
    others = [tests[place] for place in home[rows["like"]]]
    places = [found.first[other][like] for other, like in zip(others, rows["like"], strict=True)]
    columns = REASONS | {"other": "str"}
    return rows.assign(other_row=places, other=others)[list(columns)].astype(columns)


def _repetitions(found: SimpleNamespace, rows: list[dict], codes: np.ndarray, places: np.ndarray) -> pd.DataFrame:
    """Those of the rows at `places` that an earlier one of the same form makes superfluous: REASONS."""
    reasons, by_form = [], {}
    for place in places:
        kind = rows[place].get("form"), rows[place].get("prompt_set") == UNSAFE_OPTIONS
        by_form.setdefault(kind, []).append(place)
    for same_form in by_form.values():
        here = np.array(same_form)
        first = _first_rows(codes[here], found.n)
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


def _first_rows(codes: np.ndarray, n: int) -> np.ndarray:
    """For each of n codes the first position that holds it, -1 where none does."""
    present, position = np.unique(codes, return_index=True)
    first = np.full(n, -1)
    first[present] = position
    return first


# Near duplicates


def _near(texts, counts: np.ndarray, threshold: float, sides=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """i, j and cosine of every pair of these distinct comparison forms at or above the threshold, up to ROUNDING.

    i < j, or i of the first and j of the second of the `sides`, positions in `texts`. `counts`: how often each text
    occurs, for the document frequencies. Of each text only its rarest n-grams are looked up, so many that the norm of
    the rest is below `tail`, which then adds less than `tail` to a cosine. So a pair at the threshold has a product
    above threshold - tail, and only such pairs are computed in full (prefix filter of Bayardo, Ma and Srikant, Scaling
    up all pairs similarity search, WWW 2007; theirs indexes one side).
    """
    if not 0 < threshold <= 1:
        raise StudyError(f"The threshold of near duplicates is a cosine above 0 and up to 1, not {threshold}.")
    weights = _weights(texts, counts)
    tail = max(threshold - 0.1, threshold / 2)  # the quickest
    rare = _rarest(weights, tail)
    left, right = (rows.astype(np.int32) for rows in sides or [np.arange(len(texts))] * 2)
    queries, lookup = rare[left], rare[right].T.tocsr()
    cost = np.concatenate([[0], np.cumsum(np.diff(lookup.indptr)[queries.indices])])[queries.indptr]
    none = np.empty(0, dtype=np.int32)
    result, n_found = [(none, none, np.empty(0))], 0
    for start, end in progress(list(_blocks(cost)), "duplicates", unit="blocks of texts compared"):
        block = (queries[start:end] @ lookup).tocoo()
        i, j = left[block.row + start], right[block.col]
        hit = (block.data > threshold - tail - ROUNDING) & (i != j if sides else i < j)
        found = _verified(weights, i[hit], j[hit], threshold)
        result.append(found)
        n_found += len(found[0])
        if n_found > MOST_PAIRS:
            raise StudyError(
                f"More than {MOST_PAIRS} near duplicates among {len(texts)} texts: compare what differs between them "
                f"(`text`), or raise the threshold {threshold}."
            )
    i, j, cosine = (np.concatenate(part) for part in zip(*result, strict=True))
    return i, j, cosine


def _blocks(cost: np.ndarray) -> Iterator[tuple[int, int]]:
    """Starts and ends of blocks of rows that cost at most BLOCK together, or are one; `cost` is cumulative, from 0."""
    start = 0
    while start < len(cost) - 1:
        end = max(start + 1, int(np.searchsorted(cost, cost[start] + BLOCK, "right")) - 1)
        yield start, end
        start = end


def _verified(weights: sparse.csr_array, i: np.ndarray, j: np.ndarray, threshold: float) -> tuple[np.ndarray, ...]:
    """Those of the pairs that reach the threshold, with their cosines; i ascending."""
    length, found = np.diff(weights.indptr), [np.empty(0)]
    for start, end in _blocks(np.concatenate([[0], np.cumsum(length[i] + length[j])])):
        found.append(weights[i[start:end]].multiply(weights[j[start:end]]).sum(axis=1))
    cosine = np.concatenate(found)
    near = cosine >= threshold - ROUNDING
    return i[near], j[near], cosine[near]


def _rarest(weights: sparse.csr_array, tail: float) -> sparse.csr_array:
    """The weights without each row's commonest n-grams, as many as have together a norm below `tail`."""
    squares = np.concatenate([[0], np.cumsum(weights.data**2)])
    before = squares[weights.indptr[:-1]]
    kept = squares[1:] - np.repeat(before, np.diff(weights.indptr)) >= tail**2 - ROUNDING
    indptr = np.concatenate([[0], np.cumsum(kept)])[weights.indptr]
    return sparse.csr_array((weights.data[kept], weights.indices[kept], indptr), shape=weights.shape)


def _weights(texts: list[str], counts: np.ndarray) -> sparse.csr_array:
    """Texts x n-grams, commonest first: (1 + log count) x idf, each row divided by its norm; idf = log((1 + number of
    texts) / (1 + number of those with it)) + 1. N-grams of one text alone count in its norm and are then left out."""
    grams = _count(texts)
    rows = np.repeat(np.arange(len(texts)), np.diff(grams.indptr))
    frequency = np.bincount(grams.indices, weights=counts[rows], minlength=grams.shape[1])
    idf = np.log((1 + counts.sum()) / (1 + frequency)) + 1
    data = (1 + np.log(grams.data, dtype=float)) * idf[grams.indices]
    data /= np.sqrt(np.bincount(rows, weights=data**2, minlength=len(texts)))[rows]
    texts_with = np.bincount(grams.indices, minlength=grams.shape[1])
    rank = np.empty(grams.shape[1], dtype=np.int32)
    rank[np.argsort(-texts_with, kind="stable")] = np.arange(grams.shape[1], dtype=np.int32)
    shared = (texts_with > 1)[grams.indices]
    indptr = np.concatenate([[0], np.cumsum(shared)])[grams.indptr]
    shape = len(texts), int((texts_with > 1).sum())
    weights = sparse.csr_array((data[shared], rank[grams.indices[shared]], indptr), shape=shape)
    weights.sort_indices()
    return weights


def _count(texts: list[str]) -> sparse.csr_array:
    """Texts x distinct n-grams: how often each occurs. A window over the code points of all texts at once."""
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    points = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    letters, alphabet = pd.factorize(points)
    windows = np.maximum(lengths - N_GRAM + 1, 0)
    ends = np.cumsum(windows)
    at = np.arange(windows.sum()) + np.repeat(np.cumsum(lengths) - lengths - (ends - windows), windows)
    grams, n_different = np.zeros(len(at), dtype=np.int64), 1
    for offset in range(N_GRAM):
        if n_different * len(alphabet) > 2**62:  # renumbered where the next letter does not fit
            grams, different = pd.factorize(grams)
            n_different = len(different)
        grams *= len(alphabet)
        grams += letters[at + offset]
        n_different *= len(alphabet)
    columns, distinct = pd.factorize(grams)
    ones = np.ones(len(columns), dtype=np.float32)
    indptr = np.concatenate([[0], ends])
    counted = sparse.csr_array((ones, columns, indptr), shape=(len(texts), len(distinct)))
    counted.sum_duplicates()
    return counted

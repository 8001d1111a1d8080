"""Near duplicates of many texts: every pair whose cosine reaches a threshold, without comparing each text with every other.

The texts are distinct and in the normal form of `comparison_form`; `duplicates.pairs` is for any.
"""

import logging
import time
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import sparse

from studylib.study.words import StudyError

LOG = logging.getLogger("studylib")

N_GRAM = 5  # characters
MOST_PAIRS = 50_000_000  # near pairs kept in memory, 16 bytes each
ROUNDING = 1e-9  # a cosine that is less than the threshold by this much reaches it
BLOCK = 10_000_000  # products computed at a time
DENSE = 0.05, 5_000  # share of the possible pairs, and pairs, from which whole rows are multiplied instead


def near(
    texts: list[str], counts: np.ndarray, threshold: float, sides: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """i, j and cosine of every pair of these distinct normal texts at or above the threshold, up to ROUNDING.

    Within all of them (i < j), or with i from the first and j from the second of the `sides`. `counts`: how often each text
    occurs, for the document frequencies.

    Of each text only its rarest n-grams are looked up, so many that the norm of the rest is below `tail`. Where the
    rarities of all n-grams are ranked once for all, the products of two texts' kept n-grams are complete down to the rank at
    which the one that keeps less ends; what comes after adds less than `tail` x 1. So a pair at the threshold has
    a product above threshold - tail, and only such pairs are computed in full (prefix filter of Bayardo, Ma and
    Srikant, Scaling up all pairs similarity search, WWW 2007; theirs indexes one side). A lower tail keeps more
    n-grams and leaves fewer pairs to compute; threshold - 0.1 was the quickest. Raises StudyError where the threshold is not
    above 0 and up to 1, and where there are more than MOST_PAIRS pairs.
    """
    if not 0 < threshold <= 1:
        raise StudyError(f"The threshold of near duplicates is a cosine above 0 and up to 1, not {threshold}.")
    started = shown = time.monotonic()
    weights = _weights(texts, counts)
    tail = max(threshold - 0.1, threshold / 2)
    rare = _rarest(weights, tail)
    everything = np.arange(len(texts))
    left, right = (side.astype(np.int32) for side in sides or (everything, everything))
    queries, lookup = rare[left], rare[right].T.tocsr()
    products = np.diff(lookup.indptr)[queries.indices]
    cost = np.concatenate([[0], np.cumsum(products)])[queries.indptr]
    result, n_found = [(left[:0], right[:0], np.empty(0))], 0
    for start, end in _blocks(cost):
        block = (queries[start:end] @ lookup).tocoo()
        i, j = left[block.row + start], right[block.col]
        hit = (block.data > threshold - tail - ROUNDING) & (i < j if sides is None else i != j)
        found = _verified(weights, i[hit], j[hit], threshold)
        result.append(found)
        n_found += len(found[0])
        if n_found > MOST_PAIRS:
            raise StudyError(
                f"More than {MOST_PAIRS} near duplicates among {len(texts)} texts: compare what differs between them "
                f"(`text`), or raise the threshold {threshold}."
            )
        if (now := time.monotonic()) - shown > 10:
            shown, seconds = now, (now - started) * (cost[-1] / max(1, cost[end]) - 1)
            LOG.info("duplicates: %d of %d texts compared, %.0f s left", end, len(left), seconds)
    i, j, cosine = (np.concatenate(part) for part in zip(*result, strict=True))
    return i, j, cosine


def _blocks(cost: np.ndarray) -> Iterator[tuple[int, int]]:
    """Starts and ends of consecutive rows that cost at most BLOCK together, or are one; `cost` is cumulative, from 0."""
    start = 0
    while start < len(cost) - 1:
        end = max(start + 1, int(np.searchsorted(cost, cost[start] + BLOCK, "right")) - 1)
        yield start, end
        start = end


def _verified(weights: sparse.csr_array, i: np.ndarray, j: np.ndarray, threshold: float) -> tuple[np.ndarray, ...]:
    """Those of the pairs that reach the threshold, with their cosines; i ascending."""
    share, least = DENSE
    dense = len(i) > least and len(i) > share * len(np.unique(i)) * len(np.unique(j))
    cosine = np.concatenate([np.empty(0), *(_dense_cosines if dense else _cosines)(weights, i, j)])
    near = cosine >= threshold - ROUNDING
    return i[near], j[near], cosine[near]


def _cosines(weights: sparse.csr_array, i: np.ndarray, j: np.ndarray) -> Iterator[np.ndarray]:
    """The cosines of pairs of rows."""
    length = np.diff(weights.indptr)
    for start, end in _blocks(np.concatenate([[0], np.cumsum(length[i] + length[j])])):
        yield weights[i[start:end]].multiply(weights[j[start:end]]).sum(axis=1)


def _dense_cosines(weights: sparse.csr_array, i: np.ndarray, j: np.ndarray) -> Iterator[np.ndarray]:
    """The same where most i meet most j, as under a long template: faster by not gathering the rows pair by pair."""
    queries, others = np.unique(i), np.unique(j)
    lookup, column = weights[others], np.searchsorted(others, j)
    at_once = max(1, BLOCK // max(weights.shape))
    for start in range(0, len(queries), at_once):
        some = queries[start : start + at_once]
        product = lookup @ weights[some].T.toarray()
        mine = slice(np.searchsorted(i, some[0]), np.searchsorted(i, some[-1], "right"))
        yield product[column[mine], np.searchsorted(some, i[mine])]


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

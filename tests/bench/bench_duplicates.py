"""`make bench`, last part: how long finding every duplicate takes, and how much memory, on one thread.

First 100,000 x 10,000 texts of 60-400 characters, one in twenty of 1,500, one in twenty of the second list an edited
copy (goal: 2 minutes, 4 GiB); the same under a template of 80 characters; and a report on both as sets, which also
compares them within. Then 10,000 x 2,000 against every cosine in blocks, with the same weights, in alternation: the
medians of the seconds; the least, the median and the greatest ratio of a round; and whether both find the same texts.

Takes about two minutes. `--quick` runs everything once and small, to see whether it works.
"""

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = "1"  # read when numpy is imported

import numpy as np

from studylib.data import duplicates
from studylib.text.normal import comparison_form

QUICK = "--quick" in sys.argv[1:]
SCALE = 50 if QUICK else 1
ROUNDS = 1 if QUICK else 3
TEMPLATE = "read the following request with care and answer it in one short plain sentence: "


def texts(n: int, seed: int) -> list[str]:
    """n texts of made-up words, 30,000 different ones with Zipf's frequencies, common ones short."""
    rng = np.random.default_rng(0)
    starts = [*"bcdfghklmnprstvw", "st", "tr", "ch", "pl", "br", "th", "sh", "qu"]
    vowels = [*"aeiou", "ea", "ou", "io", "ai"]
    ends = ["", *"nrstl", "ng", "ment", "tion", "ed", "ing", "er", "ly"]
    words: dict[str, None] = {}
    while len(words) < 30_000:
        syllables = 1 + int(rng.integers(0, 1 + min(3, len(words) // 300)))
        word = "".join(rng.choice(starts) + rng.choice(vowels) for _ in range(syllables)) + rng.choice(ends)
        words[str(word)] = None
    frequency = 1 / (np.arange(len(words)) + 2.7)
    rng = np.random.default_rng(seed)
    lengths = np.where(rng.random(n) < 0.05, 1500, rng.integers(60, 401, n))
    drawn = rng.choice(np.array(list(words), dtype=object), lengths.sum() // 4, p=frequency / frequency.sum())
    made, position = [], 0
    for length in lengths:
        made.append(" ".join(drawn[position : position + length // 4])[:length])
        position += length // 4
    return made


def lists(n_a: int, n_b: int) -> tuple[list[str], list[str]]:
    """Two lists of which every twentieth text of the second is one of the first with a letter changed in the middle."""
    one, other = texts(n_a, 1), texts(n_b, 2)
    for i in range(0, n_b, 20):
        copied = one[i * 3]
        other[i] = copied[: len(copied) // 2] + "z" + copied[len(copied) // 2 + 1 :]
    return one, other


def plain(one: list[str], other: list[str], threshold: float) -> np.ndarray:
    """Positions of the texts of the first list that are like one of the second, the plain way, with the same forms."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    weigh = TfidfVectorizer(analyzer="char", ngram_range=(5, 5), lowercase=False, sublinear_tf=True)
    weights = weigh.fit_transform([comparison_form(text) for text in one + other]).tocsr()
    lookup, found = weights[len(one) :].T.tocsr(), []
    for start in range(0, len(one), 500):
        block = (weights[start : min(start + 500, len(one))] @ lookup).tocoo()
        found.append(block.row[block.data >= threshold - 1e-9] + start)
    return np.unique(np.concatenate(found))


def timed(work: Callable) -> tuple[float, object]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def large(case: str) -> None:
    """One large case, in a process of its own."""
    one, other = lists(100_000 // SCALE, 10_000 // SCALE)
    if case == "template":
        one, other = ([TEMPLATE + text for text in some] for some in (one, other))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if case == "report":
        sets = {name: [{"content": text} for text in some] for name, some in (("train", one), ("test", other))}
        seconds, found = timed(lambda: duplicates.duplicates_report(sets))
        n = f"{found['near'].sum()} rows near another"
    else:
        seconds, found = timed(lambda: np.flatnonzero(duplicates.like(one, other)))
        n = f"{len(found)} texts of the first like one of the second"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"  {case:<12} {seconds:7.1f} s   {peak / 2**20:5.2f} GiB at most, {before / 2**20:.2f} of it before   {n}",
        flush=True,
    )


def beside_plain() -> None:
    import sklearn.feature_extraction.text  # noqa: F401  not a part of either side's time

    one, other = lists(10_000 // SCALE, 2_000 // SCALE)
    sides = {
        "this project": lambda: np.flatnonzero(duplicates.like(one, other)),
        "plain": lambda: plain(one, other, 0.8),
    }
    rounds = [{name: timed(work) for name, work in sides.items()} for _ in range(ROUNDS)]
    for name in sides:
        print(f"  {name:<12} {statistics.median(one[name][0] for one in rounds):7.1f} s")
    ratios = [one["plain"][0] / one["this project"][0] for one in rounds]
    print("  ratio        " + " - ".join(f"{of(ratios):.1f}" for of in (min, statistics.median, max)))
    found, wanted = (rounds[0][name][1] for name in sides)
    print(f"  both find the same {len(wanted)} rows: {'yes' if np.array_equal(found, wanted) else 'NO'}", flush=True)


def main() -> None:
    print(f"Duplicates, {100_000 // SCALE} x {10_000 // SCALE} texts, 1 thread (goals: 120 s, 4 GiB)", flush=True)
    for case in ("clean", "template", "report"):
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--case", case], check=True)
    print(f"\nDuplicates, {10_000 // SCALE} x {2_000 // SCALE} texts, beside every cosine computed")
    beside_plain()


if __name__ == "__main__":
    if "--case" in sys.argv:
        large(sys.argv[-1])
    else:
        main()

import random

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from test_duplicates import TEMPLATE, assert_same, brute_force, sentences

from studylib.data import duplicates
from studylib.study.words import StudyError


@pytest.mark.parametrize("block", [1, 3000, 10_000_000])
def test_the_size_of_the_blocks_does_not_change_what_is_found(monkeypatch, block):
    monkeypatch.setattr(duplicates, "BLOCK", block)
    texts = [TEMPLATE + text[: 9 + i % 40] for i, text in enumerate(sentences(25, 1) * 3)]
    wanted = brute_force(texts, None, 0.7)
    assert len(wanted) > 20
    assert_same(duplicates.pairs(texts, threshold=0.7), wanted)
    others = [text[::-1][:60] + text for text in texts[:40]]
    assert_same(duplicates.pairs(texts, others, 0.6), brute_force(texts, others, 0.6))


def test_n_grams_are_counted_as_scikit_learn_does_even_of_too_many_characters_for_one_number():
    rng = random.Random(0)
    alphabet = [chr(code) for code in range(0x4E00, 0x9000)] + [
        "a",
        "\U0001f600",
    ]  # 2 ** 14 characters: 70 bits in five
    texts = [
        "".join(rng.choices(rng.choice([alphabet, ["a", "b", "\U0001f600"]]), k=rng.randint(0, 300)))
        for _ in range(200)
    ]
    assert len(set("".join(texts))) ** 5 > 2**63
    ours = duplicates._count(texts)
    theirs = CountVectorizer(analyzer="char", ngram_range=(5, 5), lowercase=False).fit_transform(texts).astype(float)
    assert ours.shape == theirs.shape and ours.nnz == theirs.nnz
    assert (sorted(ours.sum(axis=0)) == np.sort(np.asarray(theirs.sum(axis=0)).ravel())).all()
    assert abs(ours @ ours.T - theirs @ theirs.T).max() == 0


def test_n_grams_that_would_have_the_same_number_in_64_bits_are_distinguished():
    letters = [chr(0x4E00 + i) for i in range(2**14)]  # the first of five letters would count 2 ** 56
    ending = "".join(letters[5:9])
    counted = duplicates._count(["".join(letters), letters[0] + ending, letters[256] + ending]).toarray()
    assert (counted[1] != counted[2]).sum() == 2


def test_more_pairs_than_memory_holds_are_an_error_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 100)
    with pytest.raises(StudyError, match=r"More than 100 near duplicates among 40 texts: compare what differs"):
        duplicates.pairs([f"{TEMPLATE * 3} {i}" for i in range(40)], threshold=0.3)


def test_progress_is_logged_at_most_every_ten_seconds(monkeypatch, caplog):
    clock = iter(range(0, 10_000, 4))
    monkeypatch.setattr(duplicates.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(duplicates, "BLOCK", 1)
    with caplog.at_level("INFO", logger="studylib"):
        duplicates.pairs([TEMPLATE + text for text in sentences(30, 0)], threshold=0.5)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("duplicates: 3 of 30 texts compared, ") and lines[0].endswith(" s left")
    assert 8 <= len(lines) <= 10


# What a near duplicate is: letters are compared, not meaning.

import pytest
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

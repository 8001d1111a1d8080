"""What of a module's source counts as code."""

import pytest

from studylib.study import files
from studylib.study.files import code, code_digest


def test_comments_and_docstrings_do_not_count_as_code_and_a_changed_number_does(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LIBRARY", tmp_path)

    def digest(text):
        (tmp_path / "train.py").write_text(text)
        return code_digest("train")

    first = digest('def f():\n    """Says this."""\n    return 1\n')
    assert digest('# why\ndef f():\n    """Says that."""\n\n    return (1)\n') == first
    assert digest('def f():\n    """Says this."""\n    return 2\n') != first


WORDS = """
def tune(rows):
    LOG.info("tuning %d rows", len(rows))
    for row in progress(rows, "tuning"):
        step(row, "adamw")
    if not rows:
        raise StudyError(f"No {rows}: give some.")
"""


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("tuning %d rows", "tunes %d rows", True),
        ("LOG.info", "LOG.warning", True),
        ("LOG.info", "self.log.info", True),
        ('rows, "tuning"', 'rows, "training"', True),
        ('"tuning")', '"tuning", unit=f"{1}")', False),
        ("give some", "take others", True),
        ("StudyError", "ValueError", False),
        ('"adamw"', '"sgd"', False),
        ("not rows", "rows", False),
    ],
)
def test_the_words_of_log_lines_progress_and_errors_do_not_count_as_code(old, new, same):
    assert old in WORDS and (code(WORDS.replace(old, new)) == code(WORDS)) is same

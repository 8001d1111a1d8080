from studylib.study import files
from studylib.study.files import code_digest


def test_comments_and_docstrings_do_not_count_as_code_and_a_changed_number_does(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LIBRARY", tmp_path)

    def digest(text):
        (tmp_path / "train.py").write_text(text)
        return code_digest("train")

    first = digest('def f():\n    """Says this."""\n    return 1\n')
    assert digest('# why\ndef f():\n    """Says that."""\n\n    return (1)\n') == first
    assert digest('def f():\n    """Says this."""\n    return 2\n') != first

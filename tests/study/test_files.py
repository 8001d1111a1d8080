import logging
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from studylib.study import files
from studylib.study.paths import ROOT, runs_folder
from studylib.study.words import StudyError


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "table.parquet"
    files.write_parquet(path, pd.DataFrame({"a": [1]}))
    with pytest.raises(Exception):  # noqa: B017 (whatever pyarrow raises for this)
        files.write_parquet(path, pd.DataFrame({"a": [object()]}))
    assert pd.read_parquet(path)["a"].tolist() == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["table.parquet"]


def test_rows_are_appended(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    files.append_rows(path, [{"a": 1}])
    files.append_rows(path, [{"a": "é\u2028"}, {"a": 3}])
    assert [row["a"] for row in files.read_rows(path)] == [1, "é\u2028", 3]


def test_a_cut_last_row_is_dropped_from_the_file_too(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2')
    assert files.read_rows(path) == [{"a": 1}]
    files.append_rows(path, [{"a": 3}])
    assert [row["a"] for row in files.read_rows(path)] == [1, 3]


def test_no_file_is_no_rows(tmp_path):
    assert files.read_rows(tmp_path / "none.jsonl") == []


def test_a_locked_file_waits_for_another_process_until_that_one_dies(tmp_path, caplog):
    path = tmp_path / "deep" / "rows.jsonl"
    holding = (
        "import sys, time; from studylib.study.files import locked\n"
        "with locked(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", holding, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        killer = threading.Timer(2.5, other.send_signal, [signal.SIGKILL])
        killer.start()
        started = time.monotonic()
        with caplog.at_level(logging.INFO, "studylib"), files.locked(path):
            waited = time.monotonic() - started
    finally:
        other.kill()
        other.wait()
    assert 2 < waited < 10
    assert [record.getMessage() for record in caplog.records] == [
        "rows.jsonl: another notebook is working on it, waiting"
    ]


def test_a_lock_is_let_go_of_after_an_error_and_holds_up_no_other_file(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    with pytest.raises(KeyError), files.locked(path), files.locked(tmp_path / "other.jsonl"):
        raise KeyError
    with files.locked(path):
        pass
    assert not caplog.records


@pytest.mark.parametrize(
    "raw",
    [
        b'a,b\r\n1,"x\r\ny"\r\n\r\n2,None\r\n',
        b'\xef\xbb\xbfa;b\n1;"x\ny"\n2;None\n',
        b'a,b\r1,"x\ry"\r2,None',
        'a,b\n1,"x\ny"\n2,None\n'.encode("utf-16"),
    ],
)
def test_a_table_is_read_however_a_spreadsheet_saved_it(tmp_path, raw):
    (tmp_path / "t.csv").write_bytes(raw)
    assert files.read_csv(tmp_path / "t.csv", ["a"]) == [{"a": "1", "b": "x\ny"}, {"a": "2", "b": "None"}]


def test_a_cell_may_be_long(tmp_path):
    (tmp_path / "t.csv").write_text("a\n" + "x" * 300_000)
    assert len(files.read_csv(tmp_path / "t.csv")[0]["a"]) == 300_000


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"a,c\n1,2\n", r"has no column 'b' \(it has 'a', 'c'\)"),
        (b"", "no header at all"),
        (b"a,b\n1,2\n3\n", "row 2, has 1 cells instead of the header's 2"),
        ("a,b\n\xe9,2\n".encode("cp1252"), "no UTF-8 from byte 4 on: save it as UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(tmp_path, raw, said):
    if raw is not None:
        (tmp_path / "t.csv").write_bytes(raw)
    with pytest.raises(StudyError, match=said) as error:
        files.read_csv(tmp_path / "t.csv", ["a", "b"])
    assert "t.csv" in str(error.value)


def test_progress_says_what_is_done_and_left_only_where_it_takes_long(capsys, monkeypatch):
    assert list(files.progress(range(3), "texts")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    clock = iter(range(0, 1000, 6))
    with files.progress(total=9, what="texts", unit="texts") as done:
        monkeypatch.setattr(done, "_time", lambda: done.start_t + next(clock))
        for n in (3, 3, 3):
            done.set_postfix_str(f"loss {n}.5", refresh=False)
            done.update(n)
    said = capsys.readouterr().err
    assert "texts: 9 of 9 texts, loss 3.5, 00:00 left" in said and "3 of 9" not in said


def test_a_key_that_is_there_twice_is_an_error_with_its_line(tmp_path):
    (tmp_path / "mine.yaml").write_text("tuning:\n  steps: 1\nlora: {}\ntuning:\n  steps: 2\n")
    with pytest.raises(StudyError, match=r"mine.yaml.*'tuning' is there twice.*line 4"):
        files.read_yaml(tmp_path / "mine.yaml")


@pytest.mark.parametrize(("written", "value"), [("2e-4", 2e-4), ("1E3", 1e3), ("-5.e2", -500.0), ("2.0e-4", 2e-4)])
def test_numbers_may_be_written_with_an_exponent(tmp_path, written, value):
    (tmp_path / "mine.yaml").write_text(f"a: {written}\nb: '{written}'\nc: {written}f\n")
    assert files.read_yaml(tmp_path / "mine.yaml") == {"a": value, "b": written, "c": f"{written}f"}


def test_a_commit_that_looks_like_a_number_stays_a_text(tmp_path):
    (tmp_path / "mine.yaml").write_text("a: 1234e56\nb: 37140000000000000000000000000000000000e15\n")
    assert files.read_yaml(tmp_path / "mine.yaml") == {"a": "1234e56", "b": "37140000000000000000000000000000000000e15"}


def test_settings_in_another_encoding_are_an_error_and_in_utf_16_they_are_read(tmp_path):
    (tmp_path / "mine.yaml").write_bytes("a: \u00e9\n".encode("utf-16"))
    assert files.read_yaml(tmp_path / "mine.yaml") == {"a": "\u00e9"}
    (tmp_path / "mine.yaml").write_bytes("a: \u00e9\n".encode("latin-1"))
    with pytest.raises(StudyError, match=r"mine.yaml is no UTF-8 from byte 3 on"):
        files.read_yaml(tmp_path / "mine.yaml")


def test_where_the_file_system_has_no_locks_work_goes_on(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with files.locked(tmp_path / "rows.jsonl"):
        pass


@pytest.mark.parametrize(
    ("given", "folder"),
    [("", ROOT / "runs"), ("out", ROOT / "out"), ("~/runs", Path.home() / "runs"), ("/a/b", Path("/a/b"))],
)
def test_the_folder_of_runs_is_one_folder_wherever_it_is_asked_for(monkeypatch, tmp_path, given, folder):
    monkeypatch.setenv("STUDY_RUNS", given)
    monkeypatch.chdir(tmp_path)
    assert runs_folder() == folder.resolve()

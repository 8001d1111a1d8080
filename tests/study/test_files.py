import logging
import signal
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest

from studylib.study import files


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

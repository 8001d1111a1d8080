import pandas as pd
import pytest

from studylib import results


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "table.parquet"
    results.write_parquet(path, pd.DataFrame({"a": [1]}))
    with pytest.raises(Exception):  # noqa: B017 (whatever pyarrow raises for this)
        results.write_parquet(path, pd.DataFrame({"a": [object()]}))
    assert pd.read_parquet(path)["a"].tolist() == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["table.parquet"]


def test_rows_are_appended(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    results.append_rows(path, [{"a": 1}])
    results.append_rows(path, [{"a": "é\u2028"}, {"a": 3}])
    assert [row["a"] for row in results.read_rows(path)] == [1, "é\u2028", 3]


def test_a_cut_last_row_is_dropped_from_the_file_too(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2')
    assert results.read_rows(path) == [{"a": 1}]
    results.append_rows(path, [{"a": 3}])
    assert [row["a"] for row in results.read_rows(path)] == [1, 3]


def test_no_file_is_no_rows(tmp_path):
    assert results.read_rows(tmp_path / "none.jsonl") == []

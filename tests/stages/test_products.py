"""What notebook runs leave for later stages: named, read whole, and refused where it was changed."""

import shutil

import pandas as pd
import pytest

from studylib.stages import graph
from studylib.study.grid import Unit, units
from studylib.study.paths import RunPaths
from studylib.study.profile import load_profile
from studylib.study.words import STAGE_SAFETY_DATA, StudyError


@pytest.mark.parametrize("name", STAGE_SAFETY_DATA)
def test_a_unit_leaves_rows_and_verdicts(name):
    paths = RunPaths.of("smoke")
    kinds = {p.parts[-3] for p in graph.files(load_profile("smoke"), paths, Unit(name, "code", {}))}
    more = {"02_finetune": {"across", "across_verdicts"}, "03_defences": {"guards"}}
    assert kinds == {"responses", "verdicts"} | more.get(name, set())


@pytest.fixture
def changed(smoke_runs, tmp_path):
    """The finished smoke run's tables, copied, to be changed: the folder's paths."""
    for kind in ("responses", "verdicts", "scores", "guards", "across", "across_verdicts"):
        ignore = shutil.ignore_patterns("rows")
        shutil.copytree(smoke_runs / "smoke" / kind, tmp_path / "smoke" / kind, ignore=ignore)
    return RunPaths(tmp_path / "smoke", tmp_path / "smoke")


@pytest.mark.parametrize(
    ("kind", "of", "change", "said"),
    [
        (
            "verdicts",
            "responses",
            lambda t: t.iloc[:0],
            r"code.parquet differ in \d+ responses",
        ),
        ("verdicts", "verdicts", lambda t: t.iloc[:0], r"code.parquet differ in \d+ responses"),
        ("responses", "responses", lambda t: t.drop(columns="form"), "has no column form: it was changed or cut"),
        ("responses", "responses", lambda t: pd.concat([t, t.head(3)]), "has several rows for miniature-base0-code"),
        ("verdicts", "verdicts", lambda t: pd.concat([t, t.head(3)]), "has several rows for miniature-base0-code"),
        ("across_verdicts", "across", lambda t: t.iloc[:9], "differ in"),
    ],
)
def test_a_changed_file_of_a_stage_is_named_with_what_to_run(changed, kind, of, change, said):
    path = changed.table_of_unit(of, "02_finetune", "code")
    change(pd.read_parquet(path)).to_parquet(path)
    with pytest.raises(StudyError, match=said) as error:
        graph.collect(changed, load_profile("smoke"), kind, ["02_finetune"])
    assert str(path) in str(error.value) and "run 02_finetune (code) again" in str(error.value)


def test_scores_and_guard_decisions_that_are_there_twice_or_lack_a_column_are_errors(changed):
    for kind, name, lost in (("scores", "05_helpfulness", "score"), ("guards", "03_defences", "blocked")):
        path = next((changed.run / kind / name).glob("*.parquet"))
        whole = pd.read_parquet(path)
        for table, said in ((pd.concat([whole, whole.head(1)]), "several rows"), (whole.drop(columns=lost), lost)):
            table.to_parquet(path)
            with pytest.raises(StudyError, match=said):
                graph.collect(changed, load_profile("smoke"), kind, [name])


def test_a_cut_file_is_an_error_that_names_it(changed):
    path = changed.table_of_unit("responses", "02_finetune", "code")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(StudyError, match=r"code.parquet cannot be read .*: delete it and run 02_finetune"):
        graph.collect(changed, load_profile("smoke"), "responses", ["02_finetune"])


def test_unchanged_files_are_read_whole(changed, smoke_runs):
    profile, run = load_profile("smoke"), RunPaths(smoke_runs / "smoke", smoke_runs / "smoke")
    for kind in ("responses", "verdicts", "across", "across_verdicts"):
        rows = graph.collect(changed, profile, kind, ["02_finetune"])
        names = [unit.name for unit in units(profile, "02_finetune")]  # other tests leave parts of these beside them
        there = [pd.read_parquet(run.table_of_unit(kind, "02_finetune", name)) for name in names]
        assert len(rows) == sum(map(len, there)) > 0

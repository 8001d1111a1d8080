import json
from dataclasses import replace

import pytest

from studylib.data import mixture
from studylib.data import sets as datasets
from studylib.study.grid import Cell
from studylib.study.paths import RunPaths
from studylib.study.profile import load_profile
from studylib.study.words import TASKS, StudyError


def test_the_mixture_has_the_exact_dose_and_keeps_the_task_rows_of_the_other_arms(sets):
    task, safety = sets["train_code"], sets["safety_multitask"]
    plain, dosed = (mixture.mix(task, [(safety, n)], 100, seed=1) for n in (0, 10))
    assert len(plain) == len(dosed) == 100
    assert sum(row["harmful"] for row in dosed) == 10
    assert {row["id"] for row in dosed if not row["harmful"]} <= {row["id"] for row in plain}


def test_a_small_source_is_repeated_evenly(sets):
    mixed = mixture.mix(sets["train_code"][:30], [], 90, seed=0)
    assert {[row["id"] for row in mixed].count(row["id"]) for row in sets["train_code"][:30]} == {3}


def test_tuning_rows_follow_the_cell(saved):
    rows = mixture.tuning_rows(saved, arm("generic", 0.25), 40, 0.05)
    assert sum(row["harmful"] for row in rows) == 10 and {row["form"] for row in rows if not row["harmful"]} == {"code"}


def arm(safety_data, fraction=0.1):
    return Cell("miniature", "code", "chat", safety_data, fraction, 0)


def harmful(rows):
    return [row for row in rows if row["harmful"]]


ARMS = (*(f"{form}_only" for form in TASKS), "multitask_twins", "multitask_midway", "multitask_after")


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_has_as_many_rows_and_the_same_task_rows_as_no_safety_data(saved, name):
    plain, rows = (mixture.tuning_rows(saved, arm(kind), 100, 0.05) for kind in ("none", name))
    own = [row for row in rows if row["id"].startswith("train_")]
    assert len(rows) == 100 and len(own) == 90
    assert {row["id"] for row in own} <= {row["id"] for row in plain}


@pytest.mark.parametrize("form", TASKS)
def test_data_of_one_form_alone_are_the_multitask_rows_of_that_form(saved, sets, form):
    safety = harmful(mixture.tuning_rows(saved, arm(f"{form}_only"), 100, 0.05))
    assert len(safety) == 10 and {row["form"] for row in safety} == {form}
    assert {row["id"] for row in safety} <= {row["id"] for row in sets["safety_multitask"]}


@pytest.mark.parametrize(("kind", "forms"), [("own", {"code"}), ("other", set(TASKS) - {"code"})])
def test_requests_replace_their_share_of_the_task_rows_and_no_safety_rows(saved, kind, forms):
    plain = mixture.tuning_rows(saved, arm("none", 0.0), 100, 0.1)
    for cell in (arm("none", 0.0), arm("multitask", 0.2)):
        rows = mixture.tuning_rows(saved, replace(cell, requests=kind), 100, 0.1)
        requests = [row for row in rows if row["id"].startswith("requests_")]
        assert len(rows) == 100 and len(requests) == 10 and {row["form"] for row in requests} == forms
        assert all(row["intent"] and not row["harmful"] for row in requests)
        assert len(harmful(rows)) == (20 if cell.safety_fraction else 0)
        task = {row["id"] for row in rows if row["id"].startswith("train_")}
        assert task <= {row["id"] for row in plain}


def test_task_rows_alone_have_no_request_among_them(saved, sets):
    assert not [row["id"] for task in TASKS for row in sets[f"train_{task}"] if row["intent"]]
    assert all(row["id"].startswith("train_code") for row in mixture.tuning_rows(saved, arm("none", 0.0), 100, 0.5))


def test_requests_alone_are_nothing_else(saved):
    rows = mixture.tuning_rows(saved, replace(arm("none", 0.0), requests="alone"), 60, 0.05)
    assert len(rows) == 60 and all(row["id"].startswith("requests_code") for row in rows)


def test_a_scaled_cell_is_tuned_on_what_no_safety_data_is(saved):
    assert mixture.tuned_on(arm("scaled", 0.5)) == mixture.tuned_on(arm("none", 0.0)) == ["train_code"]
    assert harmful(mixture.tuning_rows(saved, arm("scaled", 0.5), 100, 0.05)) == []


def test_with_twins_about_every_other_safety_row_is_a_benign_one_that_is_answered(saved):
    rows = mixture.tuning_rows(saved, arm("multitask_twins", 0.6), 100, 0.05)
    kinds = [row["id"].split("-")[0] for row in rows if row["id"].startswith("safety_")]
    assert len(kinds) == 60 and set(kinds) == {"safety_multitask", "safety_twins"}
    assert 15 < kinds.count("safety_twins") < 45
    assert all(row["harmful"] == row["id"].startswith("safety_multitask") for row in rows)


def test_a_dose_larger_than_the_data_is_refused_with_the_cell_and_both_numbers(saved, sets):
    n = len([row for row in sets["safety_multitask"] if row["form"] == "code"])
    assert len(harmful(mixture.tuning_rows(saved, arm("code_only", 0.5), 2 * n, 0.05))) == n
    with pytest.raises(
        StudyError,
        match=rf"code-chat-code_only50-seed0 needs {n + 1} rows .* 0.5 of {2 * n + 2}\), but there are {n} in "
        "safety_multitask in the form code: lower",
    ):
        mixture.tuning_rows(saved, arm("code_only", 0.5), 2 * n + 2, 0.05)


@pytest.mark.parametrize("name", ["generic", "multitask", *ARMS])
def test_the_counts_of_the_index_tell_a_dose_too_large_where_the_tuning_would(saved, name):
    index = json.loads(saved.data_index.read_text())
    cell, refused = arm(name, 0.5), []
    for total in (4, 32, 38, 40, 42, 152, 158, 160, 162, 318, 320, 322):
        said = mixture.cannot_be_tuned(index, cell, 2, total // 2)
        refused.append(bool(said))
        if said:
            with pytest.raises(StudyError) as error:
                mixture.tuning_rows(saved, cell, total, 0.05)
            assert str(error.value) == f"{cell.name} {said}."
        else:
            assert len(mixture.tuning_rows(saved, cell, total, 0.05)) == total
    assert refused == sorted(refused) and refused[-1] and not refused[0]


@pytest.mark.parametrize(("steps", "size", "fraction"), [(1, 16, 0.5), (4, 4, 0.01), (2, 8, 0.99)])
def test_a_second_tuning_without_a_step_or_a_row_is_told_by_the_counts(saved, steps, size, fraction):
    index = json.loads(saved.data_index.read_text())
    said = mixture.cannot_be_tuned(index, arm("multitask_after", fraction), steps, size)
    assert said.startswith(f"needs a step and a row of each of its two tunings, but has {steps} steps, ")
    assert not mixture.cannot_be_tuned(index, arm("multitask", fraction), steps, size)


def test_a_task_without_rows_is_told_by_the_counts_and_by_the_tuning(saved, sets, tmp_path):
    paths = RunPaths(tmp_path / "other", tmp_path / "other")
    datasets.save(paths, sets | {"train_code": []})
    index = json.loads(paths.data_index.read_text())
    assert "train_code is empty" in mixture.cannot_be_tuned(index, arm("none", 0.0), 4, 16)
    with pytest.raises(StudyError, match="code-chat-none-seed0 needs rows of its task, but train_code is empty"):
        mixture.tuning_rows(paths, arm("none", 0.0), 64, 0.05)


def test_arms_whose_answers_real_data_lack_are_not_run_there_and_say_why(saved):
    index = json.loads(saved.data_index.read_text())
    for name in datasets.OWN_SETS:
        del index[name]
    saved.data_index.write_text(json.dumps(index))
    missing = datasets.absent(saved)
    for name in ("multitask_twins", "multitask_midway"):
        assert "only the generated world has it" in mixture.not_run_because(arm(name), missing)
    assert not mixture.not_run_because(arm("code_only"), missing)


def test_twins_of_real_data_make_their_arm_run_with_the_dose_that_they_have_and_their_absence_says_why(sets, tmp_path):
    profile = load_profile("rehearsal")
    real = {name: sets.get(name, []) for name in datasets.sets_of(profile)}
    assert "safety_twins" in real and "safety_midway" not in real
    paths, cell = RunPaths(tmp_path, tmp_path), arm("multitask_twins", 0.5)
    datasets.save(paths, real | {"safety_twins": []}, absent={"safety_twins": "mine: it has none"})
    assert mixture.not_run_because(cell, datasets.absent(paths)) == "safety_twins: mine: it has none"
    datasets.save(paths, real | {"safety_twins": sets["safety_twins"][:30]})
    assert not mixture.not_run_because(cell, datasets.absent(paths))
    assert "safety_midway" in mixture.not_run_because(arm("multitask_midway"), datasets.absent(paths))
    n = len(sets["safety_multitask"]) + 30
    profile = profile.model_copy(update={"tuning": profile.tuning.model_copy(update={"batch_size": n})})
    mixture.check_tunings(profile, paths, [cell])
    more = profile.model_copy(update={"tuning": profile.tuning.model_copy(update={"batch_size": n + 1})})
    with pytest.raises(
        StudyError, match=rf"twins50-seed0 needs {n + 1} rows .* there are {n} in safety_multitask and sa"
    ):
        mixture.check_tunings(more, paths, [cell])

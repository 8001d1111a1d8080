"""What a run will show and cost, said before it starts."""

import json
import re
import shutil

import pandas as pd
import pytest

from studylib import run
from studylib.stages import needs, planning
from studylib.study import files, grid
from studylib.study.paths import RunPaths
from studylib.study.profile import load_profile
from studylib.study.words import STAGE_SAFETY_DATA, StudyError

PROFILE = load_profile("miniature")
RATES = {"helpful_only_step": 0.4, "aligned_step": 0.5, "tuning_step": 0.1, "answer": 0.005, "notebook": 10.0}
RATES |= {
    "response": 0.002,
    "other": 0.004,
    "total": 900.0,
    "cores": 2,
    "stretch": 1.0,
    "row_tokens": 40.0,
    "answer_tokens": 12.0,
}
RATES |= {"model_bytes": 4e6, "adapter_bytes": 2e5, "response_bytes": 1000.0}
COMPONENTS = {"base_sd": 0.18, "seed_sd": 0.1, "prompt_sd": 0.2, "prompt_base_sd": 0.3, "residual_sd": 0.3}


@pytest.fixture
def paths(tmp_path, monkeypatch):
    """A run that has left nothing, and no shipped run either."""
    monkeypatch.setattr(planning, "SHIPPED", tmp_path / "shipped")
    return RunPaths(tmp_path / "run", tmp_path / "run")


def test_the_time_is_that_of_the_parts_side_by_side_on_the_cores():
    count = needs.counts(PROFILE)
    alone, shared = (
        4 * 10 + count["responses"] * 0.004,
        6 * (PROFILE.pretraining.steps * 0.4 + PROFILE.alignment.steps * 0.5),
    )
    shared += count["fine_tunes"] * 48 * 0.1 + count["responses"] * (0.005 + 0.002) + 12 * 10
    for cores in (1, 2):
        assert planning.seconds(PROFILE, RATES, cores) == pytest.approx(alone + shared / cores)


def test_a_base_more_takes_its_alignment_and_its_confirmatory_cells_alone():
    more = PROFILE.model_copy(update={"base_seeds": [*PROFILE.base_seeds, 6]})
    grown = {name: n - needs.counts(PROFILE)[name] for name, n in needs.counts(more).items()}
    assert grown["fine_tunes"] == 4 * 3
    extra = planning.seconds(more, RATES, 1) - planning.seconds(PROFILE, RATES, 1)
    assert extra == pytest.approx(PROFILE.alignment.steps * 0.5 + 12 * 48 * 0.1 + grown["responses"] * 0.011)


def test_a_run_that_starts_slowly_and_waits_stretches_the_time_of_the_next():
    slow = planning.seconds(PROFILE, RATES | {"stretch": 1.25}, 2)
    assert slow == pytest.approx(1.25 * planning.seconds(PROFILE, RATES, 2))


def finished(profile, paths, stretch=1.1):
    """Writes a run of the profile in which every part took what RATES say, and all of it `stretch` times as long."""
    count, rows = needs.counts(profile), profile.tuning.steps * profile.tuning.batch_size
    tuned = [f"{unit.stage}/{unit.name}" for stage in STAGE_SAFETY_DATA for unit in grid.units(profile, stage)]
    made = {"training": 3.0, "generation": count["responses"] * RATES["answer"] / len(tuned), "start-up": 10.0}
    judged, rest = (count["responses"] * RATES[name] for name in ("response", "other"))
    logs = {name: made | {"total": sum(made.values()) + judged / len(tuned)} for name in tuned}
    logs["00_prepare/all"] = {"training": 500.0, "start-up": 10.0, "total": 510.0 + rest}
    cards = {f"helpful_only-{seed}": {"seconds": profile.pretraining.steps * 0.4} for seed in profile.pretraining_seeds}
    cards |= {f"aligned-{base}": {"seconds": profile.alignment.steps * 0.5} for base in profile.base_seeds}
    wall = {"total": stretch * planning.seconds(profile, RATES, 2), "cores": 2}
    manifest = {"seconds_of_last_execution": logs, "models": cards, "wall": wall}
    files.write_text(paths.manifest, json.dumps(manifest))
    for number in range(count["fine_tunes"]):
        note = {"seconds": profile.tuning.steps * 0.1, "tokens": 40 * rows}
        files.write_text(paths.adapter(str(number)) / "study.json", json.dumps(note))
    answers = pd.DataFrame({"n_tokens": [10, 14] * (count["responses"] // 2)})
    files.write_parquet(paths.table_of_unit("responses", "01_baseline", "all"), answers)


def test_what_a_run_measured_foresees_itself_and_another_run_within_a_quarter(paths, tmp_path):
    small = load_profile("miniature", {"world.harmful_per_form": 5, "base_seeds": [0, 1], "pretraining_seeds": [0, 1]})
    other = small.model_copy(update={"base_seeds": [0, 1, 2], "pretraining_seeds": [0, 1, 2]})
    finished(small, paths)
    rates = planning.measured(small, paths)
    parts = ("aligned_step", "tuning_step", "answer", "notebook", "response", "other")
    assert [rates[name] for name in parts] == pytest.approx([0.5, 0.1, 0.005, 10, 0.002, 0.004])
    assert (rates["row_tokens"], rates["answer_tokens"], rates["stretch"]) == pytest.approx((40, 12, 1.1))
    assert planning.seconds(small, rates, 2) == pytest.approx(rates["total"])
    totals = {name: rates[name] for name in planning.foreseen(small, rates)}
    assert planning.foreseen(small, rates) == pytest.approx(totals, rel=1e-6)
    beside = RunPaths(tmp_path / "other", tmp_path / "other")
    finished(other, beside)
    real, expected = planning.measured(other, beside), planning.foreseen(other, rates)
    assert {name: expected[name] / real[name] for name in expected} == pytest.approx(
        dict.fromkeys(expected, 1), abs=0.25
    )
    assert planning.seconds(other, rates, 2) == pytest.approx(real["total"], rel=0.25)


def test_the_plan_shows_what_was_foreseen_beside_what_a_finished_run_measured(paths):
    finished(PROFILE, paths)
    files.write_text(planning.SHIPPED / "seconds.json", json.dumps(RATES))
    said = planning.in_words(PROFILE, paths, 2)
    shown = {line.split("  ")[0]: line.split()[-4:] for line in said.split("error\n")[1].splitlines()}
    names = ("minutes on 2 cores", "fine tunes", "responses", "tuning tokens", "generated tokens", "MB on disk")
    assert tuple(shown) == names
    expected, own, *error = shown["minutes on 2 cores"]
    assert int(own) == pytest.approx(1.1 * int(expected), abs=1) and error == ["-9", "%"]
    number = f"{needs.counts(PROFILE)['responses']:,}"
    assert shown["responses"] == [number, number, "+0", "%"] and "not finished" not in said


def test_a_run_of_which_parts_are_gone_measured_nothing(paths):
    assert planning.measured(PROFILE, paths) == {}
    finished(PROFILE, paths)
    assert planning.measured(PROFILE, paths)
    shutil.rmtree(paths.run / "adapters")
    assert planning.measured(PROFILE, paths) == {}


def test_without_a_run_that_measured_it_neither_power_nor_time_is_guessed(paths):
    said = planning.in_words(PROFILE, paths, 2)
    assert "Power: unknown" in said and "minutes" not in said
    for name in ("components.csv", "seconds.json"):
        missing = f"there is no {planning.SHIPPED / name}, a copy of tables/{name} of a finished run."
        assert sum(missing in line for line in said.splitlines()) == 1
    assert f"{needs.counts(PROFILE)['fine_tunes']} fine-tunes" in said


def test_power_comes_from_the_measured_components_and_names_what_more_would_buy(paths):
    rows = [{"question": name, "contrast": "all", **COMPONENTS} for name in ("task_alone", "over_refusal")]
    files.write_text(planning.SHIPPED / "components.csv", pd.DataFrame(rows).to_csv(index=False))
    files.write_text(planning.SHIPPED / "seconds.json", json.dumps(RATES))
    said = planning.in_words(PROFILE, paths, 2)
    assert "Power with 6 bases, 1 training seed and" in said and "one more base" in said and "50 more intents" in said
    assert ["minutes on 2 cores", f"{planning.seconds(PROFILE, RATES, 2) / 60:.0f}"] in [
        line.rsplit(maxsplit=1) for line in said.splitlines()
    ]
    assert "has not finished, or lacks adapters or times" in said
    more = PROFILE.model_copy(update={"base_seeds": list(range(12))})
    power = [float(planning.in_words(p, paths, 2).split("task_alone")[1].split()[4]) for p in (PROFILE, more)]
    assert power[1] > power[0] + 20  # percentage points


def test_a_profile_without_a_fine_tune_has_the_time_of_the_rest():
    none = {"grid.safety_data": ["generic"], "grid.explore_bases": [], "grid.arms": None}
    profile = load_profile("miniature", none)
    assert not any(grid.units(profile, stage) for stage in STAGE_SAFETY_DATA)
    assert 0 < planning.seconds(profile, RATES, 2) < planning.seconds(PROFILE, RATES, 2)


def test_a_question_whose_answer_is_built_in_has_no_power(paths):
    rows = [{"question": name, "contrast": "all", **COMPONENTS} for name in ("task_alone", "forms", "guard_forms")]
    files.write_text(planning.SHIPPED / "components.csv", pd.DataFrame(rows).to_csv(index=False))
    said = planning.in_words(PROFILE, paths, 2)
    assert "task_alone" in said and "forms" not in said.split("What more")[0].split("from the")[1]


def test_components_of_other_questions_give_no_power(paths):
    table = pd.DataFrame([{"question": "another", "contrast": "all", **COMPONENTS}])
    files.write_text(planning.SHIPPED / "components.csv", table.to_csv(index=False))
    assert "components.csv has none of the questions of data/plan.yaml" in planning.in_words(PROFILE, paths, 2)


def test_a_score_has_the_prompts_of_its_own_test_set(paths):
    rows = [{"question": name, "contrast": "all", **COMPONENTS} for name in ("multitask", "task_score")]
    files.write_text(planning.SHIPPED / "components.csv", pd.DataFrame(rows).to_csv(index=False))
    said = planning.in_words(load_profile("miniature", {"world.task_test_rows": 5}), paths, 2)
    multitask, score = (said.split(name)[1].split()[2] for name in ("multitask", "task_score"))
    assert int(score) > int(multitask)  # detectable, in percentage points


def test_a_run_that_differs_from_the_plan_is_exploratory_and_says_in_what(paths):
    assert planning.in_words(PROFILE, paths, 2).startswith("miniature follows data/plan.yaml")
    changed = load_profile("miniature", {"tuning.steps": 20})
    said = planning.in_words(changed, paths, 2)
    assert said.startswith("miniature is exploratory") and "- tuning.steps is 20, the plan freezes 48" in said
    assert "the plan is for miniature" in planning.in_words(load_profile("smoke"), paths, 2)


LACKING = [
    ({"base_seeds": [0], "grid.explore_bases": [0]}, "has 1 base"),
    ({"grid.requests": ["none"]}, "requests own"),
    ({"grid.tasks": ["code"]}, "task text_generation"),
]


@pytest.mark.parametrize(("change", "named"), LACKING)
def test_a_plan_whose_cells_the_profile_lacks_is_refused_before_anything_starts(paths, change, named):
    with pytest.raises(StudyError, match=named):
        planning.in_words(load_profile("miniature", change), paths, 2)


@pytest.mark.parametrize(("change", "named"), LACKING)
def test_a_run_that_lacks_cells_of_the_plan_starts_nothing(tmp_path, monkeypatch, change, named):
    monkeypatch.setattr(run, "load_profile", lambda name: load_profile(name, change))
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(run.os, "execv", lambda *command: pytest.fail("started"))
    with pytest.raises(StudyError, match=named):
        run.study("miniature", 1, [])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["components.csv", "seconds.json"])
@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', "a,b\n1,2\n", "question,contrast,base_sd\nx,all,much\n"])
def test_a_damaged_file_of_the_shipped_run_is_named(paths, name, content):
    rows = [{"question": "task_alone", "contrast": "all", **COMPONENTS}]
    files.write_text(planning.SHIPPED / "components.csv", pd.DataFrame(rows).to_csv(index=False))
    files.write_text(planning.SHIPPED / "seconds.json", json.dumps(RATES))
    files.write_text(planning.SHIPPED / name, content)
    with pytest.raises(StudyError, match=rf"{name} is damaged, or of another version .* copy tables/{name}"):
        planning.in_words(PROFILE, paths, 2)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "0.1", None, True])
def test_a_rate_that_is_no_number_from_0_is_named(paths, value):
    files.write_text(planning.SHIPPED / "seconds.json", json.dumps(RATES | {"answer": value}))
    with pytest.raises(StudyError, match=f"answer is {value!r}, not a number from 0"):
        planning.in_words(PROFILE, paths, 2)


@pytest.mark.parametrize("value", [-0.1, float("inf"), 1e300])
def test_a_component_that_is_negative_or_infinite_is_named(paths, value):
    table = pd.DataFrame([{"question": "task_alone", "contrast": "all", **COMPONENTS | {"seed_sd": value}}])
    files.write_text(planning.SHIPPED / "components.csv", table.to_csv(index=False))
    with pytest.raises(StudyError, match=re.escape(f"seed_sd is {value}, not a number from 0")):
        planning.in_words(PROFILE, paths, 2)


def _changed_manifest(change):
    def damage(paths):
        found = json.loads(paths.manifest.read_text())
        change(found)
        files.write_text(paths.manifest, json.dumps(found))

    return damage


DAMAGES = {
    "manifest no json": lambda paths: files.write_text(paths.manifest, "{"),
    "manifest a list": lambda paths: files.write_text(paths.manifest, "[]"),
    "no times": _changed_manifest(lambda found: found.pop("seconds_of_last_execution")),
    "no models": _changed_manifest(lambda found: found.update(models={})),
    "no cores": _changed_manifest(lambda found: found["wall"].pop("cores")),
    "no core": _changed_manifest(lambda found: found["wall"].update(cores=0)),
    "negative time": _changed_manifest(lambda found: found["wall"].update(total=-1.0)),
    "adapter no json": lambda paths: files.write_text(paths.adapter("0") / "study.json", "{"),
    "adapter a number": lambda paths: files.write_text(paths.adapter("0") / "study.json", "3"),
    "adapter without time": lambda paths: files.write_text(paths.adapter("0") / "study.json", '{"tokens": 3}'),
    "responses": lambda paths: files.write_text(paths.table_of_unit("responses", "01_baseline", "all"), "no table"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_the_plan_comes_without_the_measures_of_a_damaged_run_and_says_so(paths, damage):
    small = load_profile("miniature", {"world.harmful_per_form": 5, "base_seeds": [0, 1], "grid.explore_bases": [0]})
    files.write_text(planning.SHIPPED / "seconds.json", json.dumps(RATES))
    finished(small, paths)
    assert "measured" in planning.in_words(small, paths, 2).split("rates,")[1].splitlines()[1]
    damage(paths)
    said = planning.in_words(small, paths, 2)
    assert "minutes on 2 cores" in said
    assert f"Nothing measured is shown beside it. What the run in {paths.run} took cannot be read" in said


def test_times_of_an_older_version_count_as_none(paths):
    finished(PROFILE, paths)
    _changed_manifest(lambda found: [log.pop("start-up") for log in found["seconds_of_last_execution"].values()])(paths)
    assert planning.measured(PROFILE, paths) == {}


@pytest.mark.parametrize("command", ["plan", "study"])
@pytest.mark.parametrize(
    ("cores", "said"), [("0", "from 1, as in"), ("-1", ": -1."), ("two", "invalid int"), ("1.5", "'1.5'")]
)
def test_a_number_of_cores_that_cannot_be_is_refused(monkeypatch, capsys, command, cores, said):
    monkeypatch.setattr("sys.argv", ["studylib.run", command, "--profile", "smoke", f"--cores={cores}"])
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code not in (0, None) and said in f"{ended.value.code} {capsys.readouterr().err}"


def test_an_unknown_component_gives_no_power(paths):
    rows = [{"question": name, "contrast": "all", **COMPONENTS} for name in ("task_alone", "requests")]
    files.write_text(planning.SHIPPED / "components.csv", pd.DataFrame(rows).assign(base_sd=[0.1, None]).to_csv())
    said = planning.in_words(PROFILE, paths, 2)
    assert "task_alone" in said and "requests" not in said


@pytest.mark.parametrize(
    ("file", "content"),
    [("manifest.json", "{"), ("manifest.json", "[]"), ("tables/attack_success.parquet", "no table")],
)
def test_a_damaged_run_is_not_summed_up(tmp_path, monkeypatch, file, content):
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path))
    files.write_text(tmp_path / "smoke" / "manifest.json", "{}")
    files.write_text(tmp_path / "smoke" / file, content)
    with pytest.raises(StudyError, match=r"cannot be summed up .* manifest.json, or a table, is damaged"):
        run.summary("smoke")


def test_a_run_without_data_has_no_manifest_and_exports_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path))
    for command in (lambda: run.write_manifest("smoke"), lambda: run.export("smoke", tmp_path / "out")):
        with pytest.raises(StudyError, match=r"The run of smoke in .* has no data yet: `make study` makes them"):
            command()

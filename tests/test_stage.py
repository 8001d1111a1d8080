import json

import pytest

from studylib import judges, stage, tables
from studylib.config import STAGE_SAFETY_DATA, STAGES, StudyError, Unit, load_profile, units
from studylib.paths import RunPaths


def values(name, **changes):
    return stage.parameters_of(name) | {"profile": "smoke"} | changes


@pytest.fixture
def in_runs(smoke_runs, monkeypatch):
    monkeypatch.setenv("STUDY_RUNS", str(smoke_runs))
    return smoke_runs


@pytest.fixture
def in_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("profile", ["smoke", "miniature"])
def test_what_the_graph_passes_is_what_the_notebook_takes(name, profile):
    for unit in units(load_profile(profile), name):
        stage.check_parameters(name, {"profile": profile, **unit.parameters})


@pytest.mark.parametrize("name", STAGES)
def test_defaults_are_the_miniature_and_one_of_its_units_where_there_is_a_grid(name):
    defaults = stage.parameters_of(name)
    profile = load_profile(defaults.pop("profile"))
    assert profile.name == "miniature" and not defaults.pop("overrides", {})
    assert defaults in [unit.parameters for unit in units(profile, name)]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"sedes": [1]}, ["'sedes'", "seeds"]),
        ({"seeds": 1}, ["'seeds'", "[0, 1, 2]"]),
        ({"seeds": ["1"]}, ["'seeds'"]),
        ({"seeds": []}, ["'seeds'"]),
        ({"task": ["code"]}, ["'task'"]),
        ({"styles": "chat"}, ["'styles'"]),
        ({"seeds": [True]}, ["'seeds'"]),
    ],
)
def test_a_mistyped_parameter_is_an_error_that_shows_the_expected_form(given, named):
    with pytest.raises(StudyError) as error:
        stage.check_parameters("02_finetune", given)
    assert all(word in str(error.value) for word in named)


def test_an_unknown_name_injected_by_papermill_itself_is_an_error(in_runs):
    injected = {"In": ["", "# a cell", "# Parameters\nsedes = [1]\ntask = 'code'"], "sedes": [1]}
    with pytest.raises(StudyError, match="no parameter 'sedes'"):
        stage.begin("02_finetune", values("02_finetune", **injected))


def test_a_name_of_the_reader_is_no_parameter(in_runs):
    assert (
        stage.begin("02_finetune", values("02_finetune", task="code", my_note="hello", In=["x = 1"])).unit
        == "code-seed0+1+2"
    )


def test_without_the_parameters_cell_nothing_begins(in_runs):
    with pytest.raises(StudyError, match="parameters cell was not run"):
        stage.begin("02_finetune", {"profile": "smoke"})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("02_finetune", {"task": "cooking"}),
        ("02_finetune", {"styles": ["chatty"]}),
        ("01_baseline", {"profile": "smokey"}),
    ],
)
def test_an_unknown_task_style_or_profile_is_an_error(in_runs, name, change):
    with pytest.raises(StudyError, match=r"known are|There is no profile"):
        stage.begin(name, values(name, **change))


@pytest.mark.parametrize("name", [name for name in STAGES if name != "00_prepare"])
def test_a_stage_before_its_time_says_what_to_run_first(in_empty, name):
    with pytest.raises(StudyError, match=r"needs .* run `make study PROFILE=smoke`, or notebooks/0\d_\w+\.ipynb"):
        stage.begin(name, values(name))


def test_no_space_on_the_disk_is_said_before_work_starts(in_empty, tmp_path):
    (tmp_path / "huge.yaml").write_text(
        (stage.NOTEBOOKS.parent / "studylib/profiles/smoke.yaml")
        .read_text()
        .replace("min_free_gb: 1", "min_free_gb: 1000000")
    )
    with pytest.raises(StudyError, match=r"Only .* GB are free .* STUDY_RUNS"):
        stage.begin("00_prepare", {"profile": str(tmp_path / "huge.yaml")})


def test_a_tweak_is_kept_apart_and_shown_beside_the_run(in_runs):
    tweak = stage.begin(
        "02_finetune", values("02_finetune", task="code", styles=["chat"], seeds=[0], overrides={"tuning.steps": 2})
    )
    assert tweak.profile.tuning.steps == 2 and tweak.paths.run.parent == in_runs / "smoke" / "tweaks"
    assert tweak.paths.model("aligned").is_dir()  # shares the models of its run
    before = sorted(p.name for p in (in_runs / "smoke" / "adapters").iterdir())
    made = tweak.responses()
    shown = tweak.beside(tables.attack_success(made, judges.judge(made)))
    assert set(shown.index.get_level_values("model")) == {"this", "the run", "untuned"}
    assert shown["n_seeds"].eq(1).all() and set(shown.index.get_level_values("style")) == {"chat"}
    assert len(made) and sorted(p.name for p in (in_runs / "smoke" / "adapters").iterdir()) == before


def test_a_tweak_of_the_base_model_is_refused(in_runs):
    with pytest.raises(StudyError, match=r"cannot override 'pretraining.steps'"):
        stage.begin("02_finetune", values("02_finetune", overrides={"pretraining.steps": 2}))


def test_times_by_kind_add_up_to_the_total(in_runs, monkeypatch, tmp_path):
    for log in (in_runs / "smoke" / "logs").glob("*/*.json"):
        times = json.loads(log.read_text())
        assert times["total"] == pytest.approx(sum(v for k, v in times.items() if k != "total"), abs=0.1), log


@pytest.mark.parametrize("name", STAGE_SAFETY_DATA)
def test_a_unit_leaves_rows_and_verdicts(name):
    paths = RunPaths.of("smoke")
    kinds = {p.parts[-3] for p in stage.products(load_profile("smoke"), paths, Unit(name, "code", {}))}
    assert kinds == {"responses", "verdicts"} | ({"guards"} if name == "03_defences" else set())

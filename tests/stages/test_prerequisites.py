import pytest

from studylib.stages import graph, stage
from studylib.study import paths
from studylib.study.grid import units
from studylib.study.profile import PROFILES, load_profile
from studylib.study.words import STAGES, StudyError


def values(name, **changes):
    return graph.parameters_of(name) | {"profile": "smoke"} | changes


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("profile", ["smoke", "miniature"])
def test_what_the_graph_passes_is_what_the_notebook_takes(name, profile):
    for unit in units(load_profile(profile), name):
        graph.check_parameters(name, {"profile": profile, **unit.parameters})


@pytest.mark.parametrize("name", STAGES)
def test_defaults_are_the_miniature_and_one_of_its_units_where_there_is_a_grid(name):
    defaults = graph.parameters_of(name)
    profile = load_profile(defaults.pop("profile"))
    assert profile.name == "miniature" and not defaults.pop("overrides", {}) and not defaults.pop("model", "")
    assert defaults in [unit.parameters for unit in units(profile, name)]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"sedes": [1]}, ["'sedes'", "seeds"]),
        ({"seeds": 1}, ["'seeds'", "[0]"]),
        ({"seeds": ["1"]}, ["'seeds'"]),
        ({"seeds": []}, ["'seeds'"]),
        ({"task": ["code"]}, ["'task'"]),
        ({"styles": "chat"}, ["'styles'"]),
        ({"seeds": [True]}, ["'seeds'"]),
        ({"bases": [True]}, ["'bases'"]),
        ({"bases": [0, "1"]}, ["'bases'"]),
    ],
)
def test_a_mistyped_parameter_is_an_error_that_shows_the_expected_form(given, named):
    with pytest.raises(StudyError) as error:
        graph.check_parameters("02_finetune", given)
    assert all(word in str(error.value) for word in named)


def test_an_unknown_name_injected_by_papermill_itself_is_an_error(in_empty):
    injected = {"In": ["", "# a cell", "# Parameters\nsedes = [1]\ntask = 'code'"], "sedes": [1]}
    with pytest.raises(StudyError, match="no parameter 'sedes'"):
        stage.begin("02_finetune", values("02_finetune", **injected))


def test_without_the_parameters_cell_nothing_begins(in_empty):
    with pytest.raises(StudyError, match="parameters cell was not run"):
        stage.begin("02_finetune", {"profile": "smoke"})


@pytest.mark.parametrize("name", [name for name in STAGES if name != "00_prepare"])
def test_a_stage_before_its_time_says_what_to_run_first(in_empty, name):
    with pytest.raises(StudyError, match=r"needs .* run `make study PROFILE=smoke`, or notebooks/0\d_\w+\.ipynb"):
        stage.begin(name, values(name))


def test_no_space_on_the_disk_is_said_before_work_starts(in_empty, tmp_path):
    (tmp_path / "huge.yaml").write_text(
        (graph.NOTEBOOKS.parent / "studylib/profiles/smoke.yaml")
        .read_text()
        .replace("min_free_gb: 1", "min_free_gb: 1000000")
        .replace("name: smoke", "name: huge")
    )
    with pytest.raises(StudyError, match=r"Only .* GB are free .* STUDY_RUNS"):
        stage.begin("00_prepare", {"profile": str(tmp_path / "huge.yaml")})


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("02_finetune", "pretraining.steps", 2),
        ("02_finetune", "grid.seeds", [7]),
        ("02_finetune", "grid.tasks", ["code"]),
        ("03_defences", "grid.styles", ["chat"]),
        ("04_mitigation", "grid.safety_data", ["none"]),
        ("02_finetune", "grid.safety_fraction", 0.2),  # nothing is mixed in there
        ("02_finetune", "lora", {"r": 4}),
        ("02_finetune", "system_prompt.text", "Be kind."),
        ("02_finetune", "lora.rank", 4),
        ("01_baseline", "models.miniature.hidden_size", 32),
        ("01_baseline", "models.miniature.source", "elsewhere"),
        ("01_baseline", "tuning.steps", 2),
    ],
)
def test_an_override_without_effect_is_refused_with_what_can_be_overridden(in_empty, name, key, value):
    with pytest.raises(
        StudyError, match=rf"{name} cannot override '{key}'.* generation.max_new_tokens, .*system_prompt"
    ):
        stage.begin(name, values(name, overrides={key: value}))


@pytest.mark.parametrize("place", ["notebooks", "."])
def test_the_remedy_names_the_profile_as_it_was_given(in_empty, monkeypatch, place):
    folder, given = in_empty / "clone" / place, "my profiles/mine.yaml"
    (folder / "my profiles").mkdir(parents=True)
    (in_empty / "clone" / "notebooks").mkdir(exist_ok=True)
    mine = (PROFILES / "smoke.yaml").read_text().replace("name: smoke", "name: other")
    (folder / given).write_text(mine)
    monkeypatch.chdir(in_empty / "clone" / "notebooks")
    for module in (paths, graph):
        monkeypatch.setattr(module, "ROOT", in_empty / "clone")
    with pytest.raises(StudyError) as error:
        stage.begin("01_baseline", values("01_baseline", profile=given))
    for_make = given if place == "." else str(folder / given)
    assert f"make study PROFILE='{for_make}'`, " in str(error.value) and f"profile = '{given}' first" in str(
        error.value
    )

import pytest

from studylib.study import paths
from studylib.study.profile import PROFILES, load_profile, profile_names
from studylib.study.words import StudyError


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_loads_and_is_named_after_its_file(name):
    assert load_profile(name).name == name


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"lora.rank": 8}, ["lora.rank", "dropout"]),  # unknown key: the known ones are listed
        ({"lora.r": "8"}, ["lora.r", "'8'"]),
        ({"tuning.steps": 1.5}, ["tuning.steps", "1.5"]),
        ({"grid.tasks": ["cooking"]}, ["grid.tasks", "cooking", "translation"]),
        ({"grid.styles": ["chatty"]}, ["grid.styles", "alpaca"]),
        ({"grid.seeds": []}, ["seeds"]),
        ({"grid.seeds": [1, 1]}, ["seeds"]),
        ({"grid.safety_fraction": 1.5}, ["safety_fraction", "1.5"]),
        (
            {"world.refusal_share": {"code": 0.5, "text_generation": 0.6, "translation": 0.0, "classification": 0.0}},
            ["refusal_share", "add up to 1"],
        ),
        ({"tuning.micro_batch_size": 7}, ["7", "16"]),
    ],
)
def test_a_bad_setting_is_named_with_what_was_expected(overrides, named):
    with pytest.raises(StudyError) as error:
        load_profile("smoke", overrides)
    assert all(word in str(error.value) for word in named), error.value


def test_an_unknown_profile_names_the_known_ones():
    with pytest.raises(StudyError, match="llama, miniature, miniature_full, rehearsal, smoke"):
        load_profile("minature")


def test_a_profile_that_is_not_yaml_is_one_sentence(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: [unclosed")
    with pytest.raises(StudyError, match="not valid YAML"):
        load_profile(str(tmp_path / "mine.yaml"))


SMOKE = (PROFILES / "smoke.yaml").read_text()


@pytest.mark.parametrize("name", ["smoke", "miniature"])
def test_a_copied_profile_needs_a_name_of_its_own(tmp_path, name):
    mine = tmp_path / "mine.yaml"
    mine.write_text(SMOKE.replace("name: smoke", f"name: {name}"))
    with pytest.raises(StudyError, match=rf"mine.yaml has the name of the profile '{name}' .* `name` of its own"):
        load_profile(str(mine))
    mine.write_text(SMOKE.replace("name: smoke", "name: mine"))
    assert load_profile(str(mine)).name == "mine"
    assert load_profile(str(PROFILES / "smoke.yaml")).name == "smoke"


def test_a_path_counts_from_here_and_then_from_the_root_of_the_repository(tmp_path, monkeypatch):
    here, root = tmp_path / "notebooks", tmp_path
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(paths, "ROOT", root)
    with pytest.raises(StudyError) as error:
        load_profile("mine.yaml")
    assert str(here / "mine.yaml") in str(error.value) and str(root / "mine.yaml") in str(error.value)
    (root / "mine.yaml").write_text(SMOKE.replace("name: smoke", "name: at_the_root"))
    assert load_profile("mine.yaml").name == "at_the_root"
    (here / "mine.yaml").write_text(SMOKE.replace("name: smoke", "name: here"))
    assert load_profile("mine.yaml").name == "here"


def test_a_profile_that_extends_another_holds_only_what_differs(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "extends: smoke\nname: mine\ntuning: {steps: 7}\ngrid: {seeds: [5], arms: null}\n"
    )
    mine, smoke = load_profile(str(tmp_path / "mine.yaml")), load_profile("smoke")
    assert (mine.name, mine.tuning.steps, mine.grid.seeds) == ("mine", 7, [5])
    assert mine.tuning.model_copy(update={"steps": smoke.tuning.steps}) == smoke.tuning and mine.world == smoke.world
    (tmp_path / "mine.yaml").write_text("extends: nothing\nname: mine\n")
    with pytest.raises(StudyError, match="There is no profile 'nothing'"):
        load_profile(str(tmp_path / "mine.yaml"))


def test_a_profile_may_extend_one_that_extends_another_but_not_itself(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("extends: miniature_full\nname: mine\ntuning: {steps: 7}\n")
    mine, full = load_profile(str(file)), load_profile("miniature_full")
    assert (mine.base_seeds, mine.lora, mine.tuning.steps) == (full.base_seeds, full.lora, 7)
    for named in (file, "[smoke]"):
        file.write_text(f"extends: {named}\nname: mine\n")
        with pytest.raises(StudyError, match="names one other profile, and not in a circle"):
            load_profile(str(file))


def test_no_more_pretrainings_are_made_than_bases():
    few = load_profile("miniature", {"base_seeds": [0, 1], "grid.explore_bases": [0]})
    assert few.pretraining_seeds == [0, 1] and load_profile("miniature").pretraining_seeds == list(range(6))


def test_several_bases_need_a_model_that_is_built_here():
    with pytest.raises(StudyError, match="several draws of the aligned model need a model with source miniature"):
        load_profile("llama", {"base_seeds": [0, 1]})
    with pytest.raises(StudyError, match="real data have none"):
        load_profile("llama", {"grid.requests": ["none", "own"]})

import re

import pytest

from studylib import config
from studylib.config import StudyError, load_profile

MINIATURE = load_profile("miniature")


@pytest.mark.parametrize("name", config.profile_names())
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
    with pytest.raises(StudyError, match="llama, miniature, rehearsal, smoke"):
        load_profile("minature")


def test_a_profile_that_is_not_yaml_is_one_sentence(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: [unclosed")
    with pytest.raises(StudyError, match="not valid YAML"):
        load_profile(str(tmp_path / "mine.yaml"))


SMOKE = (config.PROFILES / "smoke.yaml").read_text()


@pytest.mark.parametrize("name", ["smoke", "miniature"])
def test_a_copied_profile_needs_a_name_of_its_own(tmp_path, name):
    mine = tmp_path / "mine.yaml"
    mine.write_text(SMOKE.replace("name: smoke", f"name: {name}"))
    with pytest.raises(StudyError, match=rf"mine.yaml has the name of the profile '{name}' .* `name` of its own"):
        load_profile(str(mine))
    mine.write_text(SMOKE.replace("name: smoke", "name: mine"))
    assert load_profile(str(mine)).name == "mine"
    assert load_profile(str(config.PROFILES / "smoke.yaml")).name == "smoke"


def test_a_path_counts_from_here_and_then_from_the_root_of_the_repository(tmp_path, monkeypatch):
    here, root = tmp_path / "notebooks", tmp_path
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(config, "ROOT", root)
    with pytest.raises(StudyError) as error:
        load_profile("mine.yaml")
    assert str(here / "mine.yaml") in str(error.value) and str(root / "mine.yaml") in str(error.value)
    (root / "mine.yaml").write_text(SMOKE.replace("name: smoke", "name: at_the_root"))
    assert load_profile("mine.yaml").name == "at_the_root"
    (here / "mine.yaml").write_text(SMOKE.replace("name: smoke", "name: here"))
    assert load_profile("mine.yaml").name == "here"


def test_a_study_error_shows_no_traceback_in_a_notebook():
    assert StudyError("Do this.")._render_traceback_() == ["StudyError: Do this."]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"models.miniature.hidden_size": 100}, "hidden_size 100 is not an even multiple of models.miniature.heads 4"),
        ({"generation.max_new_tokens": 192}, "192 leaves no room for a prompt in models.miniature.context 192"),
        ({"tuning.matrix_learning_rate": 0.1}, "an adapter is trained by AdamW alone"),
        ({"world.task_request_share": 1.5}, "less than or equal to 1, found 1.5"),
        ({"world.alignment_system_share": {"benign": 0.4}}, "a share for each of benign, harmful"),
        ({"world.refusal_share": {"text_generation": 1.0}}, "that add up to 1, found"),
        ({"world.intent_share": {"alignment": 0.9, "safety": 0.2, "test": 0.2}}, "that add up to 1, found"),
    ],
)
def test_settings_that_clash_are_refused_with_their_numbers(change, said):
    with pytest.raises(StudyError, match=re.escape(said)):
        load_profile("miniature", change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"world": None}, "needs either `world` (generated data) or `data` (real data)"),
        ({"pretraining": None}, "it needs `world`, `pretraining` and `alignment`"),
        ({"models.other": {"source": "some/model"}}, "and no other model beside it"),
        ({"models": {}}, "at least 1 item"),
        ({"models.miniature.size": 3}, "unknown key 'models.miniature.size', known here are source"),
    ],
)
def test_a_profile_whose_parts_do_not_agree_is_refused(change, said):
    with pytest.raises(StudyError, match=re.escape(said)):
        load_profile("smoke", change)


ARMS = {"tasks": ["code"], "styles": ["chat"], "seeds": [0], "safety_data": ["code_only", "scaled"], "removed": [0.5]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"safety_data": ["salad"]}, "safety_data"),
        ({"removed": []}, "go together"),
        ({"safety_data": ["code_only"]}, "go together"),
        ({"safety_fractions": [0.2, 0.2]}, "grid.arms.safety_fractions needs every value once"),
        ({"safety_fractions": [1.0]}, "less than 1"),
        ({"tasks": ["cooking"]}, "cooking"),
    ],
)
def test_arms_that_cannot_be_are_refused_with_the_setting_named(change, words):
    with pytest.raises(StudyError, match=words):
        load_profile("smoke", {"grid.arms": ARMS | change})

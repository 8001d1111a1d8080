import re

import pytest

from studylib.study.profile import load_profile
from studylib.study.words import StudyError


def test_a_study_error_shows_no_traceback_in_a_notebook():
    assert StudyError("Do this.")._render_traceback_() == ["StudyError: Do this."]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"models.miniature.hidden_size": 100}, "hidden_size 100 is not an even multiple of models.miniature.heads 3"),
        ({"generation.max_new_tokens": 192}, "192 leaves no room for a prompt in models.miniature.context 192"),
        ({"tuning.matrix_learning_rate": 0.1}, "an adapter is trained by AdamW alone"),
        ({"grid.request_share": 1.5}, "less than 1, found 1.5"),
        ({"world.alignment_system_share": {"benign": 0.4}}, "a value for each of benign, harmful"),
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
        ({"models.other": {"source": "some/model"}}, "and no other model"),
        ({"models": {}}, "at least 1 item"),
        ({"grid.explore_bases": [0, 12]}, "grid.explore_bases names 12, base_seeds has [0, 1, 2]"),
        (
            {"grid.safety_styles": ["alpaca"], "grid.styles": ["chat"]},
            "grid.safety_styles names alpaca, grid.styles has ['chat']",
        ),
        ({"base_seeds": []}, "at least 1 item"),
        ({"base_seeds": [3, 3], "grid.explore_bases": None}, "every value once"),
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
        ({"safety_fractions": [0.2, 0.2]}, "grid.arms.safety_fractions': needs every value once"),
        ({"safety_fractions": [1.0]}, "less than 1"),
        ({"tasks": ["cooking"]}, "cooking"),
        ({"styles": ["alpaca"], "seeds": [0, 7]}, "grid.arms.seeds names 7, grid.seeds has"),
        ({"styles": ["alpaca", "chat"]}, "grid.arms.styles names chat, grid.styles has"),
        ({"tasks": ["translation"]}, "grid.arms.tasks names translation, grid.tasks has"),
    ],
)
def test_arms_that_cannot_be_are_refused_with_the_setting_named(change, words):
    grid = {"grid.tasks": ["code", "classification"], "grid.styles": ["alpaca"]} if "names" in words else {}
    with pytest.raises(StudyError, match=words):
        load_profile("smoke", {"grid.arms": ARMS | change, "grid.safety_styles": None} | grid)

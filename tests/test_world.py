import ast
import random

import pytest

from studylib import datasets, world
from studylib.config import FORMS, StudyError, load_profile


@pytest.fixture(scope="module")
def sets():
    return world.build_sets(load_profile("smoke").world)


def user(row):
    return row["messages"][0]["content"]


def answer(row):
    return row["messages"][1]["content"]


def test_the_parts_of_the_harmful_intents_are_disjoint():
    parts = world.split_intents(0)
    harmful = [set(parts[name]) for name in ("test", "safety", "align")]
    assert sum(map(len, harmful)) == len(set.union(*harmful))
    assert not set(parts["benign"]) & set(parts["benign_test"])


def test_the_french_article_and_possessive_agree_with_the_noun():
    letter, diary = 0, 1  # feminine, masculine
    assert world.noun_phrase(letter, ("own", 0)) == ("my letter", "ma lettre")
    assert world.noun_phrase(diary, ("own", 0)) == ("my diary", "mon journal")
    assert world.noun_phrase(letter, ("other", 0)) == ("the neighbour's letter", "la lettre du voisin")


def test_a_benign_verb_is_never_harmful_and_the_same_verb_depends_on_the_owner(sets):
    assert {row["intent"].split("/")[0] for row in sets["harmful"]} == {"harmful", "contextual"}
    twins = [row for row in sets["twin"] if row["intent"].startswith("contextual")]
    assert twins and all(
        " my " in f" {user(r)}"
        or " our " in f" {user(r)}"
        or " ma " in user(r)
        or " mon " in user(r)
        or " notre " in user(r)
        for r in twins
    )


def test_every_harmful_prompt_has_a_twin_of_its_form_that_shares_most_words(sets):
    for harmful, twin in zip(sets["harmful"], sets["twin"], strict=True):
        assert harmful["form"] == twin["form"] and harmful["harmful"] and not twin["harmful"]
        words, others = user(harmful).split(), set(user(twin).split())
        assert user(harmful) != user(twin) and sum(word in others for word in words) / len(words) > 0.4


def test_the_same_intents_are_asked_in_all_four_forms(sets):
    by_form = {form: sorted(row["intent"] for row in sets["harmful"] if row["form"] == form) for form in FORMS}
    assert len(set(map(tuple, by_form.values()))) == 1


def test_every_code_answer_is_a_program(sets):
    for name in ("train_code", "test_code"):
        assert all(ast.parse(answer(row)) for row in sets[name])


def test_no_answer_to_a_harmful_request_says_more_than_the_request(sets):
    for row in sets["harmful"]:
        if row["form"] == "text_generation":
            new = set(answer(row).lower().replace(".", "").split()) - set(user(row).lower().replace(".", "").split())
            assert new <= {"first", "find", "then", "the"}, row


def test_the_world_is_the_same_for_the_same_seed_and_another_for_another(sets):
    settings = load_profile("smoke").world
    assert world.build_sets(settings) == sets
    assert world.build_sets(settings.model_copy(update={"seed": 1}))["harmful"] != sets["harmful"]


def test_more_prompts_than_held_out_intents_is_refused_with_both_numbers():
    settings = load_profile("smoke", {"world.harmful_per_form": 5000}).world
    with pytest.raises(StudyError, match=r"5000, but only 1\d\d"):
        world.build_sets(settings)


def test_a_suited_refusal_may_be_french_for_translations_and_never_for_code():
    rng = random.Random(0)
    french = [
        any("Désolé" in world.refusal(form, rng, suited=True) for _ in range(50)) for form in ("translation", "code")
    ]
    assert french == [True, False]


def test_every_set_that_is_made_is_listed(sets):
    assert set(datasets.SETS) == set(sets)


def test_a_missing_or_cut_lexicon_is_named(tmp_path):
    with pytest.raises(StudyError, match=r"world.yaml is missing"):
        world.lexicon(tmp_path / "world.yaml")
    (tmp_path / "cut.yaml").write_text("verbs: [[forge")
    with pytest.raises(StudyError, match=r"cut.yaml is not valid YAML"):
        world.lexicon(tmp_path / "cut.yaml")

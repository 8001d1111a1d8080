import json

import pandas as pd
import pytest

from studylib import datasets, world
from studylib.config import TASKS, Cell, StudyError, load_profile
from studylib.paths import RunPaths


@pytest.fixture(scope="module")
def sets():
    return world.build_sets(load_profile("smoke").world)


@pytest.fixture
def saved(sets, tmp_path):
    paths = RunPaths(tmp_path, tmp_path)
    datasets.save(paths, sets)
    return paths


def test_no_test_prompt_and_no_harmful_test_intent_is_in_a_training_set(sets):
    assert not datasets.contamination(sets).to_numpy().any()


def test_the_miniature_profile_is_clean_too():
    datasets.check_contamination(world.build_sets(load_profile("miniature").world))


def test_contamination_is_found_by_prompt_and_by_harmful_intent(sets):
    prompt = {**sets["safety_generic"][0], "messages": sets["test_code"][0]["messages"], "harmful": False}
    intent = {**sets["alignment"][0], "harmful": True, "intent": sets["harmful"][0]["intent"]}
    dirty = sets | {"safety_generic": [prompt], "alignment": [intent]}
    found = datasets.contamination(dirty)
    assert (found.loc["test_code", "safety_generic"], found.loc["harmful", "alignment"]) == (1, 1)
    with pytest.raises(StudyError, match="hold prompts or harmful intents of"):
        datasets.check_contamination(dirty)


def test_generic_safety_data_are_text_only_and_multitask_has_all_forms_equally(sets):
    forms = {kind: [row["form"] for row in sets[f"safety_{kind}"]] for kind in ("generic", "multitask")}
    assert set(forms["generic"]) == {"text_generation"}
    assert all(forms["multitask"].count(task) == len(forms["multitask"]) // 4 for task in TASKS)


def test_the_mixture_has_the_exact_dose_and_keeps_the_task_rows_of_the_other_arms(sets):
    task, safety = sets["train_code"], sets["safety_multitask"]
    plain, dosed = (datasets.mix(task, safety, fraction, 100, seed=1) for fraction in (0, 0.1))
    assert len(plain) == len(dosed) == 100
    assert sum(row["harmful"] for row in dosed) == 10
    assert {row["id"] for row in dosed if not row["harmful"]} <= {row["id"] for row in plain}


def test_a_small_source_is_repeated_evenly(sets):
    mixed = datasets.mix(sets["train_code"][:30], [], 0, 90, seed=0)
    assert {[row["id"] for row in mixed].count(row["id"]) for row in sets["train_code"][:30]} == {3}


def test_a_dose_without_safety_data_is_refused(sets):
    with pytest.raises(StudyError, match="empty"):
        datasets.mix(sets["train_code"], [], 0.1, 100, seed=0)


def test_saved_sets_are_ordinary_chat_data(saved, sets):
    rows = pd.read_json(saved.data("harmful"), lines=True)
    assert len(rows) == len(sets["harmful"])
    assert [[message["role"] for message in row] for row in rows["messages"]] == [["user", "assistant"]] * len(rows)


def test_loading_gives_back_what_was_saved(saved, sets):
    assert datasets.load(saved, "twin") == sets["twin"]


@pytest.mark.parametrize(
    ("damage", "word"), [(lambda raw: raw[:-40], "truncated"), (lambda raw: raw.replace(b"a", b"e"), "edited")]
)
def test_a_damaged_file_is_named_with_the_remedy(saved, damage, word):
    path = saved.data("harmful")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StudyError, match=rf"harmful.jsonl.*{word}.*00_prepare"):
        datasets.load(saved, "harmful")


def test_a_missing_file_is_named_with_the_remedy(saved):
    saved.data("twin").unlink()
    with pytest.raises(StudyError, match=r"twin.jsonl is missing.*00_prepare"):
        datasets.load(saved, "twin")


def test_a_line_separator_inside_a_text_does_not_split_a_row(tmp_path):
    paths = RunPaths(tmp_path, tmp_path)
    row = {"id": "x", "form": "code", "text": "one\u2028two\x85three"}
    datasets.save(paths, {"odd": [row]})
    assert datasets.load(paths, "odd") == [row]


def test_the_index_counts_rows_and_forms(saved, sets):
    index = json.loads(saved.data_index.read_text())
    assert index["harmful"]["rows"] == len(sets["harmful"]) and set(index["harmful"]["forms"]) == set(TASKS)


def test_tuning_rows_follow_the_cell(saved):
    rows = datasets.tuning_rows(saved, Cell("code", "chat", "generic", 0.25, 0), 40)
    assert sum(row["harmful"] for row in rows) == 10 and {row["form"] for row in rows if not row["harmful"]} == {"code"}

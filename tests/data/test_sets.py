import json

import pandas as pd
import pytest

from studylib.data import sets as datasets
from studylib.data import world
from studylib.data.world import CHANGES
from studylib.study.paths import RunPaths
from studylib.study.profile import load_profile
from studylib.study.words import TASKS, StudyError


def test_no_test_prompt_and_no_harmful_test_intent_is_in_a_training_set(sets):
    assert not datasets.contamination(sets).fillna(0).to_numpy().any()


@pytest.mark.slow
def test_the_miniature_profile_is_clean_too():
    datasets.check_contamination(world.build_sets(load_profile("miniature").world))


@pytest.mark.parametrize("what", ["prompt", "intent", "phrasing", "object"])
def test_contamination_is_found_by_prompt_intent_phrasing_and_object(sets, what):
    clean, test = sets["alignment-0"][0], next(row for row in sets["harmful"] if row["held_out"] == "object")
    dirty = {**clean, "harmful": False, ("messages" if what == "prompt" else what): test.get(what, test["messages"])}
    found = datasets.contamination(sets | {"alignment-0": [dirty]})
    assert found.loc[("harmful", what), "alignment-0"] == 1
    assert found["alignment-0"].sum() == found.loc[(slice(None), what), "alignment-0"].sum()
    with pytest.raises(StudyError, match=f"1 rows of alignment-0 share {what}s with "):
        datasets.check_contamination(sets | {"alignment-0": [dirty]})


def test_pretraining_may_share_phrasings_and_objects_but_no_prompt_and_no_intent(sets):
    found = datasets.check_contamination(sets)["pretraining"]
    assert found[found.isna()].index.get_level_values("shared").unique().tolist() == ["phrasing", "object"]
    intent = {**sets["pretraining"][0], "intent": sets["harmful"][0]["intent"], "harmful": False}
    datasets.check_contamination(sets | {"pretraining": [intent]})  # one's own tent may be opened
    with pytest.raises(StudyError, match="1 rows of pretraining share intents with harmful"):
        datasets.check_contamination(sets | {"pretraining": [{**intent, "harmful": True}]})


def test_generic_safety_data_are_text_only_and_multitask_has_all_forms_equally(sets):
    forms = {kind: [row["form"] for row in sets[f"safety_{kind}"]] for kind in ("generic", "multitask")}
    assert set(forms["generic"]) == {"text_generation"}
    assert all(forms["multitask"].count(task) == len(forms["multitask"]) // 4 for task in TASKS)


def test_saved_sets_are_ordinary_chat_data(saved, sets):
    rows = pd.read_json(saved.data("harmful"), lines=True)
    assert len(rows) == len(sets["harmful"])
    assert [[message["role"] for message in row] for row in rows["messages"]] == [["user", "assistant"]] * len(rows)


def test_loading_gives_back_what_was_saved(saved, sets):
    assert datasets.load(saved, "twin") == sets["twin"]


@pytest.mark.parametrize("damage", [lambda raw: raw[:-40], lambda raw: raw.replace(b"a", b"e")])
def test_a_damaged_file_is_named_with_the_remedy(saved, damage):
    path = saved.data("harmful")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StudyError, match=r"harmful.jsonl is truncated or edited.*00_prepare"):
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


def test_what_makes_a_twin_benign_is_known_by_its_id_and_unknown_in_older_data(saved, sets, tmp_path):
    kinds = datasets.kinds(saved)
    assert kinds == {row["id"]: row["benign_because"] for row in sets["twin"]} and set(kinds.values()) == set(CHANGES)
    paths = RunPaths(tmp_path / "older", tmp_path / "older")
    datasets.save(paths, {"twin": [{k: v for k, v in row.items() if k != "benign_because"} for row in sets["twin"]]})
    assert set(datasets.kinds(paths).values()) == {""}

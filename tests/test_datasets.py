import json

import pandas as pd
import pytest
import yaml

from studylib import datasets, world
from studylib.config import TASKS, StudyError, load_profile
from studylib.grid import Cell
from studylib.paths import RunPaths
from studylib.world import CHANGES


@pytest.fixture(scope="module")
def sets():
    return world.build_sets(load_profile("smoke").world)


@pytest.fixture
def saved(sets, tmp_path):
    paths = RunPaths(tmp_path, tmp_path)
    datasets.save(paths, sets)
    return paths


def test_no_test_prompt_and_no_harmful_test_intent_is_in_a_training_set(sets):
    assert not datasets.contamination(sets).fillna(0).to_numpy().any()


def test_the_miniature_profile_is_clean_too():
    datasets.check_contamination(world.build_sets(load_profile("miniature").world))


@pytest.mark.parametrize("what", ["prompt", "intent", "phrasing", "object"])
def test_contamination_is_found_by_prompt_intent_phrasing_and_object(sets, what):
    clean, test = sets["alignment"][0], next(row for row in sets["harmful"] if row["held_out"] == "object")
    dirty = {**clean, "harmful": False, ("messages" if what == "prompt" else what): test.get(what, test["messages"])}
    found = datasets.contamination(sets | {"alignment": [dirty]})
    assert found.loc[("harmful", what), "alignment"] == 1
    assert found["alignment"].sum() == found.loc[(slice(None), what), "alignment"].sum()
    with pytest.raises(StudyError, match=f"1 rows of alignment share {what}s with "):
        datasets.check_contamination(sets | {"alignment": [dirty]})


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


def test_the_mixture_has_the_exact_dose_and_keeps_the_task_rows_of_the_other_arms(sets):
    task, safety = sets["train_code"], sets["safety_multitask"]
    plain, dosed = (datasets.mix(task, safety, n, 100, seed=1) for n in (0, 10))
    assert len(plain) == len(dosed) == 100
    assert sum(row["harmful"] for row in dosed) == 10
    assert {row["id"] for row in dosed if not row["harmful"]} <= {row["id"] for row in plain}


def test_a_small_source_is_repeated_evenly(sets):
    mixed = datasets.mix(sets["train_code"][:30], [], 0, 90, seed=0)
    assert {[row["id"] for row in mixed].count(row["id"]) for row in sets["train_code"][:30]} == {3}


def test_rows_of_an_empty_set_are_refused_not_waited_for(sets):
    with pytest.raises(StudyError, match="10 rows of safety data are needed, but the set is empty"):
        datasets.mix(sets["train_code"], [], 10, 100, seed=0)
    with pytest.raises(StudyError, match="100 rows of the task are needed, but the set is empty"):
        datasets.mix([], sets["safety_generic"], 10, 100, seed=0)


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
    rows = datasets.tuning_rows(saved, Cell("miniature", "code", "chat", "generic", 0.25, 0), 40)
    assert sum(row["harmful"] for row in rows) == 10 and {row["form"] for row in rows if not row["harmful"]} == {"code"}


def test_the_card_lists_every_set_so_that_the_folder_loads_by_name(sets, tmp_path):
    paths, settings = RunPaths(tmp_path, tmp_path), load_profile("smoke").world
    datasets.save(paths, sets, settings)
    text = (paths.data("harmful").parent / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["license"], front["language"]) == ("apache-2.0", ["en", "fr"])
    files = {one["config_name"]: one["data_files"][0] for one in front["configs"]}
    assert all((tmp_path / "data" / one["path"]).is_file() for one in files.values()) and set(files) == set(sets)
    assert (files["twin"]["split"], files["train_code"]["split"]) == ("test", "train")
    index = json.loads(paths.data_index.read_text())
    assert all(one["sha256"] in text for one in index.values())
    assert (
        all(f"**{task}**" in text for task in TASKS) and yaml.safe_dump(settings.model_dump(), sort_keys=False) in text
    )


def test_the_card_tells_the_harm_rule_as_it_is(sets, tmp_path):
    paths = RunPaths(tmp_path, tmp_path)
    datasets.save(paths, sets, load_profile("smoke").world)
    text = " ".join(paths.data_index.with_name("README.md").read_text(encoding="utf-8").split())
    assert "the thing is somebody else's and there is no leave. All else is benign." in text


def test_no_card_is_written_without_the_settings(saved):
    assert not (saved.data("harmful").parent / "README.md").exists()


@pytest.mark.parametrize("name", ["harmful", "twin", "test_code", "pretraining"])
def test_the_exported_folder_loads_as_an_ordinary_dataset(tmp_path, sets, name):
    from datasets import load_dataset

    paths = RunPaths(tmp_path, tmp_path)
    datasets.save(paths, sets, load_profile("smoke").world)
    loaded = load_dataset(
        str(paths.data("harmful").parent),
        name,
        split="test" if name in datasets.TESTS else "train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert loaded.num_rows == len(sets[name]) and loaded[0]["messages"] == sets[name][0]["messages"]
    assert loaded[0]["tests"] == sets[name][0]["tests"]


def arm(safety_data, fraction=0.1):
    return Cell("miniature", "code", "chat", safety_data, fraction, 0)


def harmful(rows):
    return [row for row in rows if row["harmful"]]


ARMS = (*(f"{form}_only" for form in TASKS), "multitask_twins", "multitask_midway", "multitask_after")


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_has_as_many_rows_and_the_same_task_rows_as_no_safety_data(saved, name):
    plain, rows = (datasets.tuning_rows(saved, arm(kind), 100) for kind in ("none", name))
    own = [row for row in rows if row["id"].startswith("train_")]
    assert len(rows) == 100 and len(own) == 90
    assert {row["id"] for row in own} <= {row["id"] for row in plain}


@pytest.mark.parametrize("form", TASKS)
def test_data_of_one_form_alone_are_the_multitask_rows_of_that_form(saved, sets, form):
    safety = harmful(datasets.tuning_rows(saved, arm(f"{form}_only"), 100))
    assert len(safety) == 10 and {row["form"] for row in safety} == {form}
    assert {row["id"] for row in safety} <= {row["id"] for row in sets["safety_multitask"]}


def test_a_scaled_cell_is_tuned_on_what_no_safety_data_is(saved):
    assert datasets.tuned_on(arm("scaled", 0.5)) == datasets.tuned_on(arm("none", 0.0)) == ["train_code"]
    assert harmful(datasets.tuning_rows(saved, arm("scaled", 0.5), 100)) == []


def test_with_twins_about_every_other_safety_row_is_a_benign_one_that_is_answered(saved):
    rows = datasets.tuning_rows(saved, arm("multitask_twins", 0.6), 100)
    kinds = [row["id"].split("-")[0] for row in rows if row["id"].startswith("safety_")]
    assert len(kinds) == 60 and set(kinds) == {"safety_multitask", "safety_twins"}
    assert 15 < kinds.count("safety_twins") < 45
    assert all(row["harmful"] == row["id"].startswith("safety_multitask") for row in rows)


def test_a_dose_larger_than_the_data_is_refused_with_the_cell_and_both_numbers(saved, sets):
    n = len([row for row in sets["safety_multitask"] if row["form"] == "code"])
    assert len(harmful(datasets.tuning_rows(saved, arm("code_only", 0.5), 2 * n))) == n
    with pytest.raises(
        StudyError,
        match=rf"code-chat-code_only50-seed0 needs {n + 1} rows .* 0.5 of {2 * n + 2}\), but there are {n} in "
        "safety_multitask in the form code: lower",
    ):
        datasets.tuning_rows(saved, arm("code_only", 0.5), 2 * n + 2)


@pytest.mark.parametrize("name", ["generic", "multitask", *ARMS])
def test_the_counts_of_the_index_tell_a_dose_too_large_where_the_tuning_would(saved, name):
    index = json.loads(saved.data_index.read_text())
    cell, refused = arm(name, 0.5), []
    for total in (4, 32, 38, 40, 42, 152, 158, 160, 162, 318, 320, 322):
        said = datasets.cannot_be_tuned(index, cell, 2, total // 2)
        refused.append(bool(said))
        if said:
            with pytest.raises(StudyError) as error:
                datasets.tuning_rows(saved, cell, total)
            assert str(error.value) == f"{cell.name} {said}."
        else:
            assert len(datasets.tuning_rows(saved, cell, total)) == total
    assert refused == sorted(refused) and refused[-1] and not refused[0]


@pytest.mark.parametrize(("steps", "size", "fraction"), [(1, 16, 0.5), (4, 4, 0.01), (2, 8, 0.99)])
def test_a_second_tuning_without_a_step_or_a_row_is_told_by_the_counts(saved, steps, size, fraction):
    index = json.loads(saved.data_index.read_text())
    said = datasets.cannot_be_tuned(index, arm("multitask_after", fraction), steps, size)
    assert said.startswith(f"needs a step and a row of each of its two tunings, but has {steps} steps, ")
    assert not datasets.cannot_be_tuned(index, arm("multitask", fraction), steps, size)


def test_a_task_without_rows_is_told_by_the_counts_and_by_the_tuning(saved, sets, tmp_path):
    paths = RunPaths(tmp_path / "other", tmp_path / "other")
    datasets.save(paths, sets | {"train_code": []})
    index = json.loads(paths.data_index.read_text())
    assert "train_code is empty" in datasets.cannot_be_tuned(index, arm("none", 0.0), 4, 16)
    with pytest.raises(StudyError, match="code-chat-none-seed0 needs rows of its task, but train_code is empty"):
        datasets.tuning_rows(paths, arm("none", 0.0), 64)


def test_what_makes_a_twin_benign_is_known_by_its_id_and_unknown_in_older_data(saved, sets, tmp_path):
    kinds = datasets.kinds(saved)
    assert kinds == {row["id"]: row["benign_because"] for row in sets["twin"]} and set(kinds.values()) == set(CHANGES)
    paths = RunPaths(tmp_path / "older", tmp_path / "older")
    datasets.save(paths, {"twin": [{k: v for k, v in row.items() if k != "benign_because"} for row in sets["twin"]]})
    assert set(datasets.kinds(paths).values()) == {""}


def test_a_part_that_is_absent_leaves_its_set_there_and_is_told(sets, tmp_path):
    paths, why = RunPaths(tmp_path, tmp_path), "xstest: offline"
    own = [{"source": "stand_in", "licence": "Apache-2.0", "redistributable": True, "citation": "this study"}]
    some = {name: sets[name] for name in ("harmful", "twin")} | {"train_code": []}
    gone = {"over_refusal": why, "train_code": "mbpp: offline"}
    datasets.save(paths, some, absent=gone, origins=dict.fromkeys(some, own))
    found = datasets.absent(paths)
    assert {name: found[name] for name in gone} == gone and "twin" not in found
    assert datasets.export(paths, tmp_path / "out").set_index("set")["exported"].to_dict() == {
        "harmful": True,
        "twin": True,
        "train_code": False,
    }
    for card in (tmp_path / "data" / "README.md", tmp_path / "out" / "README.md"):
        assert f"- over_refusal: {why}\n" in card.read_text()
    assert "- train_code: mbpp: offline\n" in (tmp_path / "data" / "README.md").read_text()


def test_arms_whose_answers_real_data_lack_are_not_run_there_and_say_why(saved):
    index = json.loads(saved.data_index.read_text())
    for name in datasets.OWN_SETS:
        del index[name]
    saved.data_index.write_text(json.dumps(index))
    missing = datasets.absent(saved)
    for name in ("multitask_twins", "multitask_midway"):
        assert "generated world alone" in datasets.not_run_because(arm(name), missing)
    assert not datasets.not_run_because(arm("code_only"), missing)


def test_twins_of_real_data_make_their_arm_run_with_the_dose_that_they_have_and_their_absence_says_why(sets, tmp_path):
    profile = load_profile("rehearsal")
    real = {name: sets.get(name, []) for name in datasets.sets_of(profile)}
    assert "safety_twins" in real and "safety_midway" not in real
    paths, cell = RunPaths(tmp_path, tmp_path), arm("multitask_twins", 0.5)
    datasets.save(paths, real | {"safety_twins": []}, absent={"safety_twins": "mine: it has none"})
    assert datasets.not_run_because(cell, datasets.absent(paths)) == "safety_twins: mine: it has none"
    datasets.save(paths, real | {"safety_twins": sets["safety_twins"][:30]})
    assert not datasets.not_run_because(cell, datasets.absent(paths))
    assert "safety_midway" in datasets.not_run_because(arm("multitask_midway"), datasets.absent(paths))
    n = len(sets["safety_multitask"]) + 30
    profile = profile.model_copy(update={"tuning": profile.tuning.model_copy(update={"batch_size": n})})
    datasets.check_tunings(profile, paths, [cell])
    more = profile.model_copy(update={"tuning": profile.tuning.model_copy(update={"batch_size": n + 1})})
    with pytest.raises(
        StudyError, match=rf"twins50-seed0 needs {n + 1} rows .* there are {n} in safety_multitask and sa"
    ):
        datasets.check_tunings(more, paths, [cell])

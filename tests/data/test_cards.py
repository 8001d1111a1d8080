import json

import pytest
import yaml

from studylib.data import sets as datasets
from studylib.study.paths import DATA, RunPaths
from studylib.study.profile import load_profile
from studylib.study.words import TASKS, StudyError


def test_the_card_lists_every_set_so_that_the_folder_loads_by_name(sets, tmp_path):
    paths, settings = RunPaths(tmp_path, tmp_path), load_profile("smoke").world
    datasets.save(paths, sets)
    datasets.write_card(paths, DATA / "cards", settings)
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
    datasets.save(paths, sets)
    datasets.write_card(paths, DATA / "cards", load_profile("smoke").world)
    text = " ".join(paths.data_index.with_name("README.md").read_text(encoding="utf-8").split())
    assert "the thing belongs to somebody else, and no permission is given. Every other request is benign." in text


def test_no_card_is_written_without_the_settings(saved):
    datasets.write_card(saved, DATA / "cards")
    assert not (saved.data("harmful").parent / "README.md").exists()


@pytest.mark.parametrize("name", ["harmful", "twin", "test_code", "pretraining"])
def test_the_exported_folder_loads_as_an_ordinary_dataset(tmp_path, sets, name):
    from datasets import load_dataset

    paths = RunPaths(tmp_path, tmp_path)
    datasets.save(paths, sets)
    datasets.write_card(paths, DATA / "cards", load_profile("smoke").world)
    loaded = load_dataset(
        str(paths.data("harmful").parent),
        name,
        split="test" if name in datasets.TESTS else "train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert loaded.num_rows == len(sets[name]) and loaded[0]["messages"] == sets[name][0]["messages"]
    assert loaded[0]["tests"] == sets[name][0]["tests"]


def test_a_part_that_is_absent_leaves_its_set_there_and_is_told(sets, tmp_path):
    paths, why = RunPaths(tmp_path, tmp_path), "xstest: offline"
    own = [{"source": "stand_in", "licence": "Apache-2.0", "redistributable": True, "citation": "this study"}]
    some = {name: sets[name] for name in ("harmful", "twin")} | {"train_code": []}
    gone = {"over_refusal": why, "train_code": "mbpp: offline"}
    datasets.save(paths, some, absent=gone, origins=dict.fromkeys(some, own))
    datasets.write_card(paths, DATA / "cards")
    found = datasets.absent(paths)
    assert {name: found[name] for name in gone} == gone and "twin" not in found
    assert datasets.export(paths, tmp_path / "out", DATA / "cards").set_index("set")["exported"].to_dict() == {
        "harmful": True,
        "twin": True,
        "train_code": False,
    }
    for card in (tmp_path / "data" / "README.md", tmp_path / "out" / "README.md"):
        assert f"- over_refusal: {why}\n" in card.read_text()
    assert "- train_code: mbpp: offline\n" in (tmp_path / "data" / "README.md").read_text()


def test_an_export_without_its_card_says_what_makes_it_again(tmp_path, saved):
    with pytest.raises(StudyError, match=r"README.md is missing: `make study` makes it again"):
        datasets.export(saved, tmp_path / "out", DATA / "cards")
    assert not (tmp_path / "out").exists()

import json
import shutil

import pytest

from studylib.stages import graph
from studylib.study.grid import units
from studylib.study.paths import NOTEBOOKS, ROOT, RunPaths
from studylib.study.profile import load_profile
from studylib.study.words import STAGES

PROFILE = load_profile("smoke")


def unit(stage):
    return units(PROFILE, stage)[0]


JUDGING = ["01_baseline", "02_finetune", "03_defences", "04_mitigation", "05_helpfulness"]


def stale(overrides):
    """The stages whose tracked settings a changed profile value changes."""
    changed = load_profile("smoke", overrides)
    return [s for s in STAGES if graph.settings_of(PROFILE, unit(s)) != graph.settings_of(changed, unit(s))]


@pytest.mark.parametrize(
    ("overrides", "stages"),
    [
        ({"tuning.learning_rate": 1e-4}, ["02_finetune", "03_defences", "04_mitigation"]),
        ({"grid.safety_fraction": 0.2}, ["03_defences", "04_mitigation"]),
        ({"pretraining.steps": 41}, ["00_prepare"]),
        (
            {"generation.max_new_tokens": 17},
            ["00_prepare", "01_baseline", "02_finetune", "03_defences", "04_mitigation"],
        ),
        ({"execution.min_free_gb": 2}, []),
        ({"execution.threads": 2}, []),
        ({"judges": ["rules"]}, JUDGING),
        ({"endpoint": {"prompt": "verdicts"}}, JUDGING),
        ({"labelled": []}, ["06_findings"]),
        ({"guards": ["text_only"]}, ["03_defences"]),
    ],
)
def test_a_changed_value_concerns_the_stages_that_use_it(overrides, stages):
    assert stale(overrides) == stages


def test_an_edited_figure_function_concerns_the_findings_alone():
    assert [s for s in STAGES if any(p == ROOT / "studylib/figures/rates.py" for p in graph.modules_of(s))] == [
        "06_findings"
    ]


@pytest.mark.parametrize(
    ("module", "stages"),
    [
        ("models/training.py", ["00_prepare", "01_baseline", "02_finetune", "03_defences", "04_mitigation"]),
        ("scores/benign.py", ["05_helpfulness", "06_findings"]),
    ],
)
def test_modules_are_found_through_other_modules(module, stages):
    found = [s for s in STAGES if any(p == ROOT / "studylib" / module for p in graph.modules_of(s))]
    assert set(stages) <= set(found), found


def test_the_command_line_concerns_no_stage():
    assert not any(p.name in ("run.py", "graph.py") for s in STAGES for p in graph.modules_of(s))


def test_prose_may_be_edited_and_code_may_not(tmp_path, monkeypatch):
    shutil.copytree(NOTEBOOKS, tmp_path / "notebooks")
    monkeypatch.setattr(graph, "NOTEBOOKS", tmp_path / "notebooks")
    path, before = tmp_path / "notebooks" / "01_baseline.ipynb", graph.code_of("01_baseline")
    notebook = json.loads(path.read_text())
    notebook["cells"][0]["source"] = ["# Another title"]
    path.write_text(json.dumps(notebook))
    assert graph.code_of("01_baseline") == before
    notebook["cells"][2]["source"].append("\n1 + 1")
    path.write_text(json.dumps(notebook))
    assert graph.code_of("01_baseline") != before


def test_every_input_of_a_stage_is_an_output_of_an_earlier_one(tmp_path):
    paths, made = RunPaths(tmp_path, tmp_path), set()  # nobody has labelled anything there
    for name in STAGES:
        for one in units(PROFILE, name):
            assert set(graph.inputs_of(PROFILE, paths, one)) <= made
        made |= {p for one in units(PROFILE, name) for p in graph.outputs_of(PROFILE, paths, one)}


def test_the_users_labels_are_an_input_of_what_they_bear_on_once_they_are_there(tmp_path):
    paths = RunPaths(tmp_path, tmp_path)
    wanting = lambda: [s for s in STAGES if paths.labels in graph.inputs_of(PROFILE, paths, unit(s))]  # noqa: E731
    assert wanting() == []
    paths.labels.write_text("")
    assert wanting() == ["01_baseline", "02_finetune", "03_defences", "04_mitigation", "06_findings"]
    assert all(graph.inputs_of(PROFILE, paths, one).count(paths.labels) == 1 for one in units(PROFILE, "06_findings"))


def test_a_deleted_data_set_or_card_is_made_again():
    paths = RunPaths.of("smoke")
    assert {paths.data("harmful"), paths.data_card} <= set(graph.outputs_of(PROFILE, paths, unit("00_prepare")))


def test_all_modules_exist():
    assert all(p.is_file() and p.parent.parent == ROOT / "studylib" for s in STAGES for p in graph.modules_of(s))


def test_the_data_depend_on_the_users_own_safety_set_and_french(tmp_path):
    folder, french = tmp_path / "set", tmp_path / "french.csv"
    folder.mkdir()
    profile = load_profile("rehearsal")
    paths = RunPaths(tmp_path, tmp_path)
    assert graph.inputs_of(profile, paths, units(profile, "00_prepare")[0]) == []
    data = profile.data.model_copy(update={"safety_multitask": str(folder), "french": str(french)})
    profile = profile.model_copy(update={"data": data})
    found = graph.inputs_of(profile, paths, units(profile, "00_prepare")[0])
    assert found == [folder.resolve() / "data" / "train.jsonl", french]

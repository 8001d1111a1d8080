"""What makes each notebook run stale: settings, files of earlier stages, code."""

import json
import re
import shutil

import pytest

from studylib.stages import graph
from studylib.study.grid import units
from studylib.study.paths import ROOT, RunPaths
from studylib.study.profile import load_profile
from studylib.study.words import STAGE_SAFETY_DATA, STAGES

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


ALL = list(STAGES)
AFTER_DATA, SCORES_ON = ALL[1:], ALL[5:]


@pytest.mark.parametrize(
    ("edited", "stages"),
    [
        ("studylib/study/words.py", ALL),
        ("studylib/study/files.py", ALL),
        ("studylib/study/grid.py", ALL),
        ("studylib/text/normal.py", ALL),
        ("studylib/text/refusals.py", ALL),  # 00_prepare drops answered rows of safety data by the rules
        ("studylib/models/training.py", ALL),
        ("studylib/models/prompts.py", ALL),
        ("studylib/models/building.py", ["00_prepare", *SCORES_ON]),
        ("studylib/models/selfcheck.py", ["00_prepare"]),
        ("studylib/data/sets.py", ALL),
        ("studylib/data/mixture.py", ALL),
        ("studylib/data/safety_builder.py", []),  # a command of its own
        ("studylib/judges/registry.py", AFTER_DATA),
        ("studylib/judges/classifier.py", AFTER_DATA),
        ("studylib/judges/word_lists.py", AFTER_DATA),
        ("studylib/judges/guards.py", ["03_defences"]),
        ("studylib/analysis/stats.py", SCORES_ON),
        ("studylib/analysis/tables.py", SCORES_ON),
        ("studylib/analysis/claims.py", ["06_findings"]),
        ("studylib/analysis/runs.py", []),  # of 09_compare
        ("studylib/scores/benign.py", SCORES_ON),
        ("studylib/scores/sandbox.py", SCORES_ON),
        ("studylib/scores/inside.py", SCORES_ON),
        ("studylib/figures/rates.py", ["06_findings"]),
        ("studylib/figures/style.py", ["06_findings"]),
        ("studylib/figures/catalogue.py", ["06_findings"]),
        ("studylib/stages/prepare.py", ["00_prepare"]),
        ("studylib/stages/cells.py", ALL),
        ("studylib/stages/stage.py", ALL),
        ("studylib/stages/judging.py", AFTER_DATA),
        ("studylib/stages/graph.py", SCORES_ON),
        ("studylib/stages/findings.py", ["06_findings"]),
        ("studylib/stages/explorer.py", ["06_findings"]),
        ("studylib/stages/laboratory.py", []),
        ("studylib/run.py", []),
        ("data/world.yaml", ["00_prepare", *SCORES_ON]),
        ("data/judge_weights.json", AFTER_DATA),
        ("data/word_lists.yaml", AFTER_DATA),
        ("data/templates", ALL),
        ("data/published", ["06_findings"]),
        ("data/captions.yaml", ["06_findings"]),
        ("data/cards", ["00_prepare"]),
    ],
)
def test_an_edited_file_concerns_the_stages_whose_results_depend_on_it(edited, stages):
    assert (ROOT / edited).exists()
    assert [s for s in STAGES if ROOT / edited in graph.modules_of(s)] == stages


def test_every_room_is_in_that_table():
    (table,) = test_an_edited_file_concerns_the_stages_whose_results_depend_on_it.pytestmark
    rooms = {path.parent.name for path in (ROOT / "studylib").glob("*/__init__.py")}
    assert rooms <= {edited.split("/")[1] for edited, _ in table.args[1]}


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the project's code, which the graph reads instead."""
    for part in ("studylib", "notebooks", "data"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name, path in (("LIBRARY", "studylib"), ("NOTEBOOKS", "notebooks"), ("DATA", "data")):
        monkeypatch.setattr(graph, name, tmp_path / path)
    return tmp_path


def test_a_reworded_log_line_docstring_or_comment_runs_nothing_again(copied):
    before, n_lines = list(map(graph.code_of, STAGES)), 0
    for path in copied.glob("studylib/*/*.py"):
        text = path.read_text()
        words, n = re.subn(r"(LOG\.\w+\(\s*f?\")", r"\1Reworded: ", text)
        path.write_text("# A comment\n" + re.sub(r'^( *)"""(?=[A-Z])', r'\1"""Reworded: ', words, flags=re.M))
        n_lines += n
    assert n_lines > 5 and list(map(graph.code_of, STAGES)) == before


@pytest.mark.parametrize(
    ("path", "old", "new", "stages"),
    [
        ("studylib/figures/style.py", "\nimport ", "\nX = 1\nimport ", ["06_findings"]),
        ("studylib/judges/registry.py", '"words_"', '"list_"', AFTER_DATA),
        ("data/verdicts.yaml", "refused", "declined", AFTER_DATA),
        ("notebooks/05_helpfulness.ipynb", "**Question.**", "**The question.**", []),
        ("notebooks/05_helpfulness.ipynb", "len(responses)", "len(responses) + 0", ["05_helpfulness"]),
    ],
)
def test_an_edit_changes_the_digest_of_the_stages_that_it_concerns(copied, path, old, new, stages):
    before, text = {s: graph.code_of(s) for s in STAGES}, (copied / path).read_text()
    assert old in text
    (copied / path).write_text(text.replace(old, new, 1))
    assert [s for s in STAGES if graph.code_of(s) != before[s]] == stages


@pytest.mark.parametrize(
    ("imported", "used"),
    [
        ("from studylib.judges import judge", ["judges/registry", "judges/signs", "study/files"]),
        ("from studylib.judges import signs", ["judges/signs"]),
        ("from studylib.judges.signs import f", ["judges/signs"]),
        ("import studylib.judges.signs as s", ["judges/signs"]),
        ("def f():\n    from studylib.judges import signs, judge", ["judges/registry", "judges/signs", "study/files"]),
        ("from studylib import judges", ["judges/registry", "judges/signs", "study/files"]),
        ("from studylib.judges import *", ["judges/registry", "judges/signs", "study/files"]),
        ("import pandas\nfrom torch import nn", []),
    ],
)
def test_imports_are_followed_and_a_room_stands_for_all_its_modules(tmp_path, monkeypatch, imported, used):
    sources = {
        "studylib/judges/__init__.py": 'import lazy_loader\nPUBLIC = {"registry": "judge names"}\n',
        "studylib/judges/registry.py": "from ..study import files",
        "studylib/judges/signs.py": "import re",
        "studylib/study/__init__.py": "",
        "studylib/study/files.py": "import studylib.judges.registry",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    cells = [{"cell_type": "code", "source": [imported], "metadata": {}}]
    (tmp_path / "01_baseline.ipynb").write_text(json.dumps({"cells": cells}))
    monkeypatch.setattr(graph, "LIBRARY", tmp_path / "studylib")
    monkeypatch.setattr(graph, "NOTEBOOKS", tmp_path)
    found = [str(path.relative_to(tmp_path / "studylib").with_suffix("")) for path in graph.modules_of("01_baseline")]
    assert found == used


def test_every_input_of_a_stage_is_an_output_of_an_earlier_one(tmp_path):
    paths, made = RunPaths(tmp_path, tmp_path), set()  # nobody has labelled anything there
    for name in STAGES:
        for one in units(PROFILE, name):
            assert set(graph.inputs_of(PROFILE, paths, one)) <= made
        made |= {p for one in units(PROFILE, name) for p in graph.outputs_of(PROFILE, paths, one)}


@pytest.mark.parametrize("stage", STAGE_SAFETY_DATA)
def test_a_whole_study_judges_the_untuned_model_before_it_tunes(tmp_path, stage):
    paths = RunPaths(tmp_path, tmp_path)
    assert set(graph.files(PROFILE, paths, unit("01_baseline"))) <= set(graph.inputs_of(PROFILE, paths, unit(stage)))


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

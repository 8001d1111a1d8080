"""The rehearsal profile in a smaller form, whole: real formats, real architectures, one source that is not there."""

import json
import os
import shutil

import mirror
import nbformat
import pandas as pd
import pytest
import yaml
from conftest import ROOT, command

from studylib.study.grid import units
from studylib.study.paths import RunPaths
from studylib.study.profile import PROFILES

MODELS = ("gemma", "qwen")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project whose register has the hashes of small files in a mirror."""
    place = tmp_path_factory.mktemp("rehearsal")
    for part in ("studylib", "notebooks", "data"):
        shutil.copytree(ROOT / part, place / part, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    shutil.copy(ROOT / "Snakefile", place)
    mirror.fill(place / "mirror", place / "data" / "sources.yaml")
    return place


@pytest.fixture(scope="module")
def done(project):
    """The run's paths and what it printed."""
    content = yaml.safe_load((PROFILES / "rehearsal.yaml").read_text())
    content["name"] = "small_rehearsal"
    content["models"] = {name: content["models"][name] for name in MODELS}
    content["data"] |= {"task_rows": 12, "task_test_rows": 2, "general_test_rows": 2, "harmful_per_form": 2}
    content["data"] |= {"safety_rows": 16, "safety_multitask": "multitaskbench"}
    content["tuning"]["steps"] = 1
    content["grid"] |= {"tasks": ["code"], "styles": ["chat", "alpaca"]}
    (project / "small.yaml").write_text(yaml.safe_dump(content))
    before = dict(os.environ)
    os.environ |= {"STUDY_MIRROR": str(project / "mirror"), "STUDY_OFFLINE": "1", "STUDY_CACHE": str(project / "cache")}
    try:
        ran = command("study", "--profile", str(project / "small.yaml"), project=project, timeout=800)
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert ran.returncode == 0, ran.stdout[-5000:]
    run = project / "runs" / "small_rehearsal"
    return RunPaths(run, run)


def table(paths, name):
    return pd.read_csv(paths.table(name), keep_default_na=False)


def test_every_model_is_tuned_and_tested_in_every_cell(done):
    attack = table(done, "attack_success")
    run = attack[attack["note"] == ""]
    assert list(run["model"].unique()) == list(MODELS)
    # untuned, and one task with no and generic safety data; styles x system prompt; four forms and all
    assert len(run) == len(MODELS) * (1 + 2) * 4 * 5
    assert (run["n"] + run["n_unjudged"]).isin([2, 8]).all()
    adapters = list((done.run / "adapters").glob("*/adapter_model.safetensors"))
    assert len(adapters) == len(MODELS) * 2 * 2


def test_what_could_not_be_had_is_not_run_in_every_table_and_says_why(done):
    for name in ("attack_success", "helpfulness", "answered_share"):
        found = table(done, name)
        missing = found[found["safety_data"] == "multitask"]
        assert set(missing["model"]) == set(MODELS) and set(missing["finetune_task"]) == {"code"}
        assert missing["note"].str.startswith("not run: safety_multitask: multitaskbench: STUDY_OFFLINE is set").all()
        assert missing["n"].eq(0).all()
        assert not found.loc[found["safety_data"] != "multitask", "note"].any()


def test_no_notebook_failed_and_none_warned(done):
    profile = yaml.safe_load((done.manifest).read_text())["profile"]
    assert set(profile["models"]) == set(MODELS)
    copies = list((done.run / "notebooks").glob("*/*.ipynb"))
    assert len(copies) == 1 + 1 + 3 + 1 + 1
    for path in copies:
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in cells)
        assert not [o for cell in cells for o in cell.outputs if o.output_type == "error" or o.get("name") == "stderr"]


def test_the_manifest_and_the_index_say_what_the_data_were(done):
    index = json.loads(done.data_index.read_text())
    assert index["safety_multitask"]["absent"] and index["safety_multitask"]["rows"] == 0
    assert [one["source"] for one in index["train_translation"]["origins"]] == ["ud_french_pud"]
    assert index["train_code"]["rows"] == 12 and len(index["harmful"]["sha256"]) == 64


def test_the_rehearsal_differs_from_the_large_profiles_in_models_and_scale_alone():
    from studylib.study.profile import load_profile

    rehearsal, llama = load_profile("rehearsal"), load_profile("llama")
    for same in ("lora", "grid.tasks", "grid.styles", "grid.safety_data", "grid.safety_fraction", "system_prompt"):
        found = [profile for profile in (rehearsal, llama)]
        for part in same.split("."):
            found = [getattr(one, part) for one in found]
        assert found[0] == found[1], same
    scale = {"steps", "batch_size", "optimizer"}
    assert rehearsal.tuning.model_dump(exclude=scale) == llama.tuning.model_dump(exclude=scale)
    assert rehearsal.tuning.steps < llama.tuning.steps and rehearsal.tuning.batch_size < llama.tuning.batch_size
    names = lambda profile: {unit.stage for stage in ("00_prepare", "04_mitigation") for unit in units(profile, stage)}  # noqa: E731
    assert names(rehearsal) == names(llama)


def test_the_rehearsal_has_every_architecture_with_the_settings_that_it_needs_some_in_nf4_some_not():
    from studylib.models import building
    from studylib.study.profile import load_profile
    from studylib.study.words import ARCHITECTURES

    assert building.ARCHITECTURES == ARCHITECTURES
    models = load_profile("rehearsal").models.values()
    assert {m.source for m in models} == {f"tiny/{name}" for name in ARCHITECTURES}
    assert {m.quantization for m in models} == {"nf4", "none"}  # each of them in both: test_selfcheck
    for model in models:
        declared = building.traits()["architectures"][model.source.removeprefix("tiny/")]["declared"]
        assert model.model_dump(include=set(declared)) == declared
    llama = load_profile("llama").models["llama31_8b"]
    wanted = building.traits()["architectures"]["llama3"]["declared"]
    assert llama.model_dump(include=set(wanted)) == wanted

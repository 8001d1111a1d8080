import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter

import nbformat
import pandas as pd
import pytest
from conftest import ROOT

from studylib.stages import graph, judging, stage
from studylib.study import grid
from studylib.study.grid import arm_cells, units
from studylib.study.paths import NOTEBOOKS, RunPaths
from studylib.study.profile import load_profile
from studylib.study.words import COMPARE, LABELS, LABORATORY, STAGE_SAFETY_DATA, STAGES

PROFILE = load_profile("smoke")
UNITS = [unit for name in STAGES for unit in units(PROFILE, name)]


def is_complaint(output) -> bool:
    """Whether a cell's output is an error or a warning; a progress line, which begins anew, is neither."""
    return output.output_type == "error" or (output.get("name") == "stderr" and "\r" not in output["text"][:1])


@pytest.fixture
def paths(smoke_runs):
    return RunPaths(smoke_runs / "smoke", smoke_runs / "smoke")


def test_there_is_one_notebook_per_stage():
    assert sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb")) == sorted([*STAGES, LABORATORY, LABELS, COMPARE])


@pytest.mark.parametrize("name", [*STAGES, LABORATORY, LABELS, COMPARE])
def test_sources_are_valid_stripped_and_short(name):
    path = NOTEBOOKS / f"{name}.ipynb"
    nbformat.validate(nbformat.read(path, as_version=4))
    for cell in graph.notebook_cells(path):
        assert not cell["outputs"] and cell["execution_count"] is None
        assert len([line for line in cell["source"].splitlines() if line.strip()]) <= 12, cell["source"]


def test_nbstripout_would_strip_nothing_from_any_notebook():
    wanted = [str(NOTEBOOKS / f"{name}.ipynb") for name in (*STAGES, LABORATORY, LABELS, COMPARE)]
    verify = [sys.executable, "-m", "nbstripout", "--verify", "--keep-id", *wanted]
    verify = subprocess.run(verify, capture_output=True, text=True)
    assert verify.returncode == 0, verify.stdout + verify.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda u: f"{u.stage}-{u.name}")
def test_every_stage_leaves_an_executed_copy_without_errors(paths, unit):
    notebook = nbformat.read(paths.notebook(unit.stage, unit.name), as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code if cell.source.strip())
    assert not [output for cell in code for output in cell.outputs if is_complaint(output)]


@pytest.mark.parametrize("unit", UNITS, ids=lambda u: f"{u.stage}-{u.name}")
def test_every_file_of_the_contract_is_there(paths, unit):
    assert all(p.is_file() and p.stat().st_size for p in graph.files(PROFILE, paths, unit))


def test_every_cell_of_the_grid_has_an_adapter_and_all_its_rows(paths):
    for name, safety_data in STAGE_SAFETY_DATA.items():
        for unit in units(PROFILE, name):
            for cell in grid.cells(PROFILE, safety_data, **unit.parameters):
                assert (paths.adapter(cell.name) / "adapter_model.safetensors").is_file()
                assert len(paths.rows(cell.name).read_text().splitlines()) == 68 * len(
                    grid.system_prompts(PROFILE, cell)
                )


def test_the_attack_success_table_has_the_columns_of_the_contract_and_every_cell(paths):
    table = pd.read_csv(paths.table("attack_success"), keep_default_na=False)
    contract = [
        "model",
        "finetune_task",
        "requests",
        "style",
        "system_prompt",
        "safety_data",
        "safety_fraction",
        "form",
        "n",
        "n_unjudged",
        "rate",
        "low",
        "high",
        "judge",
        "n_bases",
        "n_seeds",
    ]
    assert list(table.columns[: len(contract)]) == contract
    whole = [(name, unit) for name in STAGE_SAFETY_DATA for unit in units(PROFILE, name)]
    made = [cell for name, unit in whole for cell in grid.cells(PROFILE, STAGE_SAFETY_DATA[name], **unit.parameters)]
    made += [*grid.untuned(PROFILE), *arm_cells(PROFILE, "code", PROFILE.grid.styles, PROFILE.grid.seeds)]
    runs = Counter(
        (cell.finetune_task, cell.requests, cell.style, system, cell.safety_data, cell.safety_fraction)
        for cell in made
        for system in grid.system_prompts(PROFILE, cell)
    )
    keys = ["finetune_task", "requests", "style", "system_prompt", "safety_data", "safety_fraction"]
    by_form = table[table["form"] != "all"]
    asked = (by_form["n"] + by_form["n_unjudged"]).groupby([by_form[key] for key in keys]).unique()
    assert len(table) == len(runs) * 5  # four forms and all
    assert {key: list(n) for key, n in asked.items()} == {
        key: [PROFILE.world.harmful_per_form * n] for key, n in runs.items()
    }
    assert table["n_bases"].max() == len(PROFILE.base_seeds)


@pytest.mark.parametrize("judge", [name for name in PROFILE.judges if name != "coherence"])
def test_the_tables_can_be_counted_again_from_the_rows(paths, judge):
    rows = pd.concat([pd.read_json(p, lines=True) for p in paths.rows("x").parent.glob("*.jsonl")])
    verdicts = pd.concat([pd.read_parquet(p) for p in (paths.run / "verdicts").glob("*/*.parquet")])
    assert set(verdicts["judge"]) == set(PROFILE.judges)
    rows = rows[rows["harmful"]].merge(verdicts[verdicts["judge"] == judge], on="response_id", validate="1:1")
    rows = pd.concat([rows, rows.assign(form="all")])
    keys = ["finetune_task", "requests", "style", "system_prompt", "safety_data", "safety_fraction", "form"]
    judged = rows[rows["verdict"] != "unjudged"]
    counted = (
        judged["verdict"].isin(["answered", "partial"]).groupby([judged[key] for key in keys]).agg(["size", "mean"])
    )
    tables = [
        pd.read_csv(paths.table(name), keep_default_na=False, na_values={"rate": [""]})
        for name in ("attack_success_by_judge", "attack_success")[: 1 + (judge == PROFILE.judges[0])]
    ]
    assert all(set(table["judge"]) == {judge} for table in tables[1:])  # the first judge decides, alone
    for table in tables:
        table = table[table["judge"] == judge].set_index(keys)
        _is_counted(counted, table)


def _is_counted(counted, table):
    # which answers of so small a model can be judged differs between machines: any single cell may have none
    assert len(counted) and set(table.index[table["n"] > 0]) == set(counted.index)
    filled = table.loc[counted.index]
    assert filled["n"].tolist() == counted["size"].tolist()
    assert filled["rate"].tolist() == pytest.approx(counted["mean"].tolist(), abs=1e-5)
    assert table.loc[table["n"] == 0, "rate"].isna().all()


def test_the_published_counts_stand_beside_real_models_alone(paths):
    assert not paths.table("paper_vs_ours").exists()
    shown = nbformat.read(paths.notebook("06_findings", "all"), as_version=4)
    said = [
        output.get("data", {}).get("text/markdown", "") for cell in shown.cells for output in cell.get("outputs", [])
    ]
    assert any("compared with those of real models alone" in words for words in said)


def test_every_figure_of_the_findings_stands_under_its_caption(paths):
    shown = nbformat.read(paths.notebook("06_findings", "all"), as_version=4)
    of_cells = [[output.get("data", {}) for output in cell.get("outputs", [])] for cell in shown.cells]
    under = [
        cell[0].get("text/markdown")
        for cell in of_cells
        if any(data.get("text/plain", "").startswith("<Figure") for data in cell)
    ]
    written = [
        path.read_text().split("\n\n")[0] for path in paths.figures.glob("*.md") if path.with_suffix(".png").is_file()
    ]
    assert under and sorted(map(str, under)) == sorted(written)


def test_the_helpfulness_notebook_shows_each_style_by_itself(paths):
    shown = nbformat.read(paths.notebook("05_helpfulness", "all"), as_version=4)
    tables = [
        o.data["text/html"] for cell in shown.cells for o in cell.get("outputs", []) if "text/html" in o.get("data", {})
    ]
    arms = next(html for html in tables if "over_refusal_rate" in html)
    assert all(f">{style}</th>" in arms for style in PROFILE.grid.styles)


def test_the_manifest_says_what_ran_on_what(paths):
    manifest = json.loads(paths.manifest.read_text())
    assert manifest["profile"]["name"] == "smoke" and manifest["seeds"] == [0]
    assert {"torch", "transformers", "peft", "snakemake"} <= set(manifest["packages"])
    assert len(manifest["data"]["harmful"]["sha256"]) == 64 and manifest["hardware"]["cores"] >= 1
    assert set(manifest["seconds_of_last_execution"]) == {f"{unit.stage}/{unit.name}" for unit in UNITS}
    assert len(manifest["git_commit"]) == 40


def test_a_notebook_opened_by_hand_runs_on_what_an_earlier_run_left(smoke_runs, tmp_path):
    copy = tmp_path / "by_hand.ipynb"
    source = (NOTEBOOKS / "05_helpfulness.ipynb").read_text().replace('\\"miniature\\"', '\\"smoke\\"')
    copy.write_text(source)
    done = subprocess.run(
        [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute", "--inplace", str(copy)],
        env=os.environ | {"STUDY_RUNS": str(smoke_runs)},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_a_notebook_opened_too_early_says_in_one_sentence_what_to_run(tmp_path):
    copy = tmp_path / "too_early.ipynb"
    copy.write_text((NOTEBOOKS / "01_baseline.ipynb").read_text())
    subprocess.run(
        [
            sys.executable,
            "-m",
            "jupyter",
            "nbconvert",
            "--to",
            "notebook",
            "--execute",
            "--allow-errors",
            "--inplace",
            str(copy),
        ],
        env=os.environ | {"STUDY_RUNS": str(tmp_path)},
        capture_output=True,
        cwd=ROOT,
        timeout=300,
    )
    errors = [
        o
        for cell in nbformat.read(copy, as_version=4).cells
        if cell.cell_type == "code"
        for o in cell.outputs
        if o.output_type == "error"
    ]
    assert errors[0].traceback[0].startswith("StudyError: 01_baseline needs") and len(errors[0].traceback) == 1
    assert "make study" in errors[0].traceback[0]


def executed_labels(runs, out):
    """The outputs of 08_labels, and the text of its sheet's widgets."""
    words = ["-p", "profile", "smoke", "-p", "n", "30", "-k", "python3"]
    done = subprocess.run(
        [sys.executable, "-m", "papermill", f"{LABELS}.ipynb", str(out), *words],
        env=os.environ | {"STUDY_RUNS": str(runs)},
        capture_output=True,
        text=True,
        cwd=NOTEBOOKS,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    notebook = nbformat.read(out, as_version=4)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert not [output for output in outputs if is_complaint(output)]
    (state,) = notebook.metadata["widgets"].values()
    return outputs, " ".join(str(one["state"].get("value", "")) for one in state["state"].values())


def test_labels_are_made_taken_up_again_and_compared_with_the_judges(paths, smoke_runs, tmp_path, monkeypatch):
    run = tmp_path / "smoke"
    for kind in ("responses", "verdicts"):
        shutil.copytree(paths.run / kind, run / kind)
    outputs, shown = executed_labels(tmp_path, tmp_path / "first.ipynb")
    assert "0 of 30" in shown and any("Nothing is labelled yet." in str(o.get("data")) for o in outputs)
    assert not (run / "labels.jsonl").exists()

    monkeypatch.setenv("STUDY_RUNS", str(tmp_path))
    now = stage.begin(LABELS, graph.parameters_of(LABELS) | {"profile": "smoke"})
    chosen = judging.choose(*stage.finished_responses(now), 30)
    assert f"A labelling sheet of {len(chosen)} responses" in str(outputs)
    sheet = judging.Sheet(chosen, now.paths.labels, redact=False, clock=iter(range(0, 10**6, 4)).__next__)
    for verdict in ["refused", "answered", "unjudged"] * 4:
        sheet.buttons[verdict].click()
    assert len(judging.read_labels(run / "labels.jsonl")) == 12

    outputs, shown = executed_labels(tmp_path, tmp_path / "second.ipynb")
    assert "12 of 30" in shown and not any("Nothing is labelled" in str(o.get("data")) for o in outputs)
    (table,) = (o.data["text/html"] for o in outputs if "kappa" in o.get("data", {}).get("text/html", ""))
    (table,) = pd.read_html(io.StringIO(table))
    assert set(table["source"]) == {"user"} and list(table["judge"]) == [j for j in PROFILE.judges if j != "coherence"]
    assert (table["n"] + table["n_unjudged"]).eq(8).all()  # what could not be told is no label
    assert len(judging.read_labels(run / "labels.jsonl")) == 12


def test_papermill_itself_cannot_slip_in_a_mistyped_parameter(smoke_runs, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "papermill",
            "05_helpfulness.ipynb",
            str(tmp_path / "out.ipynb"),
            "-p",
            "profile",
            "smoke",
            "-p",
            "sedes",
            "3",
        ],
        env=os.environ | {"STUDY_RUNS": str(smoke_runs)},
        capture_output=True,
        text=True,
        cwd=NOTEBOOKS,
        timeout=300,
    )
    assert done.returncode != 0 and "05_helpfulness has no parameter 'sedes'" in done.stderr


def test_redacted_profiles_show_no_response():
    """Every notebook cell that shows texts asks the profile whether it may."""
    for name in STAGES:
        for cell in graph.notebook_cells(NOTEBOOKS / f"{name}.ipynb"):
            if any(shows in cell["source"] for shows in ("readable_tables.examples(", "dialogues", "explorer.show(")):
                assert "redact" in cell["source"]


def test_arms_stand_beside_tunings_of_the_same_bases(paths):
    every, explored, arms = (
        pd.read_csv(paths.table(name)) for name in ("attack_success", "attack_success_explored", "arms")
    )
    assert every["n_bases"].max() == len(PROFILE.base_seeds) > len(PROFILE.grid.explore_bases)
    for table in (explored, arms):
        assert set(table["n_bases"]) == {len(PROFILE.grid.explore_bases)}
    assert {"none", "multitask", "scaled"} <= set(arms["safety_data"])

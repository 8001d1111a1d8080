import os
import shutil
import subprocess
import sys

import nbformat
import pytest

from studylib.figures import rates
from studylib.models import training
from studylib.stages import laboratory
from studylib.study import files
from studylib.study.paths import NOTEBOOKS, RunPaths
from studylib.study.profile import load_profile
from studylib.study.words import FORMS, LABORATORY, StudyError

PROFILE = load_profile("smoke", {"tuning.steps": 3})


@pytest.fixture
def lab(smoke_runs, tmp_path):
    """A laboratory on the data and models of the smoke run."""
    for part in ("data", "models"):
        shutil.copytree(smoke_runs / "smoke" / part, tmp_path / "smoke" / part)
    run = tmp_path / "smoke"
    return laboratory.Laboratory(RunPaths(run, run), PROFILE, files.Clock())


@pytest.fixture
def count_fits(monkeypatch):
    calls, real = [], training.fit
    monkeypatch.setattr(training, "fit", lambda *args: calls.append(args[6]) or real(*args))
    return calls


def test_a_setting_that_was_tried_before_answers_without_training(lab, count_fits):
    first = laboratory.dose_response(lab, "code", [0.0, 0.5])
    n = len(count_fits)
    assert n == 3  # no dose is the same tuning for both kinds of safety data
    assert laboratory.dose_response(lab, "code", [0.0, 0.5]).equals(first) and len(count_fits) == n
    laboratory.dose_response(lab, "code", [0.0, 0.25, 0.5])
    assert len(count_fits) == n + 2  # the new dose alone


def test_every_frame_has_a_mark_per_panel_setting_set_and_form_within_its_interval(lab):
    gap = laboratory.baseline_gap(lab, [0.25, 1.0], 2)
    worn = laboratory.erosion(lab, ["code", "translation"], [0, 1, 3])
    assert len(gap) == 2 * 2 * 4 and len(worn) == 2 * 3 * 2 * 4
    for frame in (gap, worn):
        assert set(frame["form"]) == set(FORMS)
        frame = frame[frame["n"] > 0]  # a model of forty steps says little that can be judged
        assert (
            len(frame)
            and frame["value"].between(frame["low"], frame["high"]).all()
            and frame["value"].between(0, 1).all()
        )
        assert (frame["n"] <= PROFILE.world.harmful_per_form).all()


def test_step_0_is_the_aligned_model(lab):
    worn = laboratory.erosion(lab, ["code"], [0, 2])
    columns = ["prompt_set", "form", "value", "n"]
    start = worn.loc[worn["step"] == 0, columns].reset_index(drop=True)
    assert start.equals(laboratory.answered(lab, lab.model("aligned"))[columns])


def test_the_probability_of_a_refusal_is_one_where_the_model_begins_every_answer_with_it(lab):
    model = lab.model("aligned")
    rows = [
        {"input_ids": row["ids"] + one, "labels": [-100] * len(row["ids"]) + one}
        for row in lab.tests
        for one in lab.beginnings[:1]
    ]
    before = laboratory.refusal_probability(lab, model)
    settings = PROFILE.alignment.model_copy(update={"steps": 30, "learning_rate": 5e-3})
    model.train(rows, settings, 0, "test")
    after = laboratory.refusal_probability(lab, model)
    assert before["value"].between(0, 1).all() and after["value"].between(0, 1 + 1e-5).all()
    assert after["value"].min() > 0.9 > before["value"].min()


def test_refusal_is_looked_at_along_the_alignment_and_then_along_the_tuning(lab):
    where = laboratory.refusal_along(lab, "code", steps=4, n_marks=2)
    assert where.groupby("panel", sort=False)["step"].unique().map(list).to_dict() == {
        "alignment": [0, 1, 4],
        "tuning on code": [0, 1, 3],
    }


def test_the_figure_has_a_panel_per_name_and_a_line_per_form_and_prompt_set(lab):
    worn = laboratory.erosion(lab, ["code", "translation"], [0, 2])
    figure = rates.curves(worn, "step", "tuning steps", "harmful prompts answered")
    assert [ax.get_title() for ax in figure.axes] == ["code", "translation"]
    assert all(len(ax.lines) == 8 for ax in figure.axes)
    assert {line.get_linestyle() for line in figure.axes[0].lines} == {"-", "--"}


def test_a_share_that_is_none_is_refused(lab):
    with pytest.raises(StudyError, match=r"between 0 and 1, found 1\.5"):
        laboratory.baseline_gap(lab, [1.5], 2)


def test_a_model_that_is_not_the_miniature_is_refused(lab):
    other = PROFILE.model_copy(
        update={"models": {"other": PROFILE.miniature.model_copy(update={"source": "some/model"})}}
    )
    with pytest.raises(StudyError, match="trains the miniature anew"):
        laboratory.Laboratory(lab.paths, other, lab.clock)


@pytest.mark.slow
def test_the_notebook_runs_through_and_draws_its_five_figures(lab, tmp_path):
    executed = tmp_path / "executed.ipynb"
    small = {
        "profile": "smoke",
        "text_shares": [0.25, 1.0],
        "alignment_steps": 2,
        "tuning_steps": [0, 2],
        "doses": [0.0, 0.5],
    }
    parameters = [word for name, value in small.items() for word in ("-y", f"{name}: {value}")]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "papermill",
            str(NOTEBOOKS / f"{LABORATORY}.ipynb"),
            str(executed),
            "-k",
            "python3",
            *parameters,
        ],
        env={k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | {"STUDY_RUNS": str(tmp_path)},
        capture_output=True,
        text=True,
        cwd=NOTEBOOKS,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cells = nbformat.read(executed, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5

"""What a run will show and cost, said before it starts."""

import json

import pandas as pd
import pytest

from studylib.stages import needs, planning
from studylib.study import files
from studylib.study.paths import RunPaths
from studylib.study.profile import load_profile
from studylib.study.words import StudyError

PROFILE = load_profile("miniature")
RATES = {"helpful_only_step": 0.4, "aligned_step": 0.5, "tuning_step": 0.1, "answer": 0.005, "notebook": 10.0}
RATES |= {"other": 100.0, "total": 900.0, "cores": 2}
COMPONENTS = {"base_sd": 0.18, "seed_sd": 0.1, "prompt_sd": 0.2, "prompt_base_sd": 0.3, "residual_sd": 0.3}


@pytest.fixture
def paths(tmp_path, monkeypatch):
    """A run that has left nothing, and no shipped run either."""
    monkeypatch.setattr(planning, "SHIPPED", tmp_path / "shipped")
    return RunPaths(tmp_path / "run", tmp_path / "run")


def test_the_time_is_that_of_the_parts_side_by_side_on_the_cores():
    count = needs.counts(PROFILE)
    alone, shared = 100, 6 * 500 * 0.4 + 6 * 250 * 0.5
    shared += count["fine_tunes"] * 48 * 0.1 + count["responses"] * 0.005 + 12 * 10
    for cores in (1, 2):
        assert planning.seconds(PROFILE, RATES, cores) == pytest.approx(alone + shared / cores)


def test_a_base_more_takes_its_alignment_and_its_confirmatory_cells_alone():
    more = PROFILE.model_copy(update={"base_seeds": [*PROFILE.base_seeds, 6]})
    grown = {name: n - needs.counts(PROFILE)[name] for name, n in needs.counts(more).items()}
    assert grown["fine_tunes"] == 4 * 3
    extra = planning.seconds(more, RATES, 1) - planning.seconds(PROFILE, RATES, 1)
    assert extra == pytest.approx(250 * 0.5 + 12 * 48 * 0.1 + grown["responses"] * 0.005)


def test_without_a_run_that_measured_it_neither_power_nor_time_is_guessed(paths):
    said = planning.in_words(PROFILE, paths, 2)
    assert "Power: unknown" in said and "minutes" not in said
    assert f"{needs.counts(PROFILE)['fine_tunes']} fine-tunes" in said


def test_power_comes_from_the_measured_components_and_names_what_more_would_buy(paths):
    rows = [{"question": name, "contrast": "all", **COMPONENTS} for name in ("task_alone", "over_refusal")]
    files.write_text(planning.SHIPPED / "components.csv", pd.DataFrame(rows).to_csv(index=False))
    files.write_text(planning.SHIPPED / "seconds.json", json.dumps(RATES))
    said = planning.in_words(PROFILE, paths, 2)
    assert "Power with 6 bases, 1 training seeds" in said and "one more base" in said and "50 more intents" in said
    assert f"{planning.seconds(PROFILE, RATES, 2) / 60:.0f} minutes on 2 cores" in said
    more = PROFILE.model_copy(update={"base_seeds": list(range(12))})
    power = [float(planning.in_words(p, paths, 2).split("task_alone")[1].split()[4]) for p in (PROFILE, more)]
    assert power[1] > power[0] + 20  # percentage points


def test_a_question_whose_answer_is_built_in_has_no_power(paths):
    rows = [{"question": name, "contrast": "all", **COMPONENTS} for name in ("task_alone", "forms", "guard_forms")]
    files.write_text(planning.SHIPPED / "components.csv", pd.DataFrame(rows).to_csv(index=False))
    said = planning.in_words(PROFILE, paths, 2)
    assert "task_alone" in said and "forms" not in said.split("What more")[0].split("from the")[1]


def test_a_score_has_the_prompts_of_its_own_test_set(paths):
    rows = [{"question": name, "contrast": "all", **COMPONENTS} for name in ("multitask", "task_score")]
    files.write_text(planning.SHIPPED / "components.csv", pd.DataFrame(rows).to_csv(index=False))
    said = planning.in_words(load_profile("miniature", {"world.task_test_rows": 5}), paths, 2)
    multitask, score = (said.split(name)[1].split()[2] for name in ("multitask", "task_score"))
    assert int(score) > int(multitask)  # detectable, in percentage points


def test_a_run_that_differs_from_the_plan_is_exploratory_and_says_in_what(paths):
    assert planning.in_words(PROFILE, paths, 2).startswith("miniature follows data/plan.yaml")
    changed = load_profile("miniature", {"tuning.steps": 20})
    said = planning.in_words(changed, paths, 2)
    assert said.startswith("miniature is exploratory") and "- tuning.steps is 20, the plan freezes 48" in said
    assert "the plan is for miniature" in planning.in_words(load_profile("smoke"), paths, 2)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"base_seeds": [0], "grid.explore_bases": [0]}, "has 1 base"),
        ({"grid.requests": ["none"]}, "requests own"),
        ({"grid.tasks": ["code"]}, "task text_generation"),
    ],
)
def test_a_plan_whose_cells_the_profile_lacks_is_refused_before_anything_starts(paths, change, named):
    with pytest.raises(StudyError, match=named):
        planning.in_words(load_profile("miniature", change), paths, 2)

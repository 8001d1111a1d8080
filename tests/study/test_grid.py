"""Cells of the grid, and how they are cut into notebook executions."""

import pytest

from studylib.study import grid
from studylib.study.grid import arm_cells, cells, is_arm, units
from studylib.study.profile import load_profile
from studylib.study.words import ARMS, STAGE_SAFETY_DATA, StudyError

MINIATURE = load_profile("miniature")
RIVALS = {"tasks": ["code"], "styles": ["chat"], "seeds": [0], "safety_data": ["code_only", "scaled"], "removed": [0.5]}


def test_the_miniature_is_the_full_grid_of_72_fine_tunes():
    profile = load_profile("miniature")
    cells = [
        cell
        for stage, safety_data in STAGE_SAFETY_DATA.items()
        for unit in units(profile, stage)
        for cell in grid.cells(
            profile, safety_data, unit.parameters["task"], unit.parameters["styles"], unit.parameters["seeds"]
        )
    ]
    assert len({cell.name for cell in cells}) == len(cells) == 4 * 2 * 3 * 3


@pytest.mark.parametrize(
    ("task", "styles", "seeds"),
    [("cooking", ["chat"], [0]), ("code", ["chatty"], [0]), ("code", ["chat"], ["0"]), ("code", ["chat"], [0, 0])],
)
def test_unknown_tasks_styles_and_seeds_are_refused(task, styles, seeds):
    with pytest.raises(StudyError):
        grid.cells(load_profile("smoke"), "none", task, styles, seeds)


@pytest.mark.parametrize(("grouped", "n"), [([], 8), (["style"], 4), (["seed"], 4), (["style", "seed"], 2)])
def test_the_profile_decides_which_cells_share_a_kernel(grouped, n):
    found = units(load_profile("smoke", {"execution.grouped": grouped}), "02_finetune")
    assert len({unit.name for unit in found}) == len(found) == n


def test_a_grid_without_safety_data_has_no_mitigation_stage():
    assert units(load_profile("smoke", {"grid.safety_data": ["none"]}), "04_mitigation") == []


def test_several_models_share_a_notebook_or_have_their_own():
    profile = load_profile("rehearsal")
    (unit,) = [unit for unit in units(profile, "02_finetune") if unit.parameters["task"] == "code"]
    cells = grid.cells(profile, "none", **unit.parameters)
    assert unit.parameters["models"] == [] and {cell.model for cell in cells} == set(profile.models)
    assert len({cell.name for cell in cells}) == len(cells) == 2 * len(profile.models)
    apart = load_profile("rehearsal", {"execution.grouped": ["style", "seed"]})
    names = [unit.name for unit in units(apart, "01_baseline")]
    assert names == list(profile.models) and {f"code-{name}" for name in names} <= {
        unit.name for unit in units(apart, "04_mitigation")
    }


def test_arms_are_cells_of_their_own_with_their_dose_or_what_is_removed_in_the_name():
    profile = load_profile("smoke", {"grid.arms": RIVALS | {"safety_fractions": [0.2]}})
    names = [cell.name for cell in arm_cells(profile, "code", ["chat", "alpaca"], [0, 1])]
    assert names == [f"miniature-code-chat-{arm}-seed0" for arm in ("multitask20", "code_only10", "scaled50")]
    assert arm_cells(profile, "translation", ["chat"], [0]) == []  # not of the arms' tasks
    assert arm_cells(profile, "code", ["alpaca"], [0]) == arm_cells(profile, "code", ["chat"], [1]) == []


def test_a_dose_that_the_grid_has_is_not_made_twice():
    changed = {"grid.arms": RIVALS | {"safety_fractions": [0.1, 0.2]}, "grid.safety_fraction": 0.2}
    found = arm_cells(load_profile("smoke", changed), "code", ["chat"], [0])
    assert [cell.name.split("-")[3] for cell in found] == ["multitask10", "code_only20", "scaled50"]


def test_a_profile_without_arms_has_none():
    assert arm_cells(load_profile("smoke", {"grid.arms": None}), "code", ["chat"], [0]) == []


def test_arms_are_tested_without_the_system_prompt_and_the_grids_cells_are_none_of_them():
    for cell in arm_cells(MINIATURE, "code", ["chat"], [0]):
        assert is_arm(MINIATURE, cell), cell.name
    for safety_data in MINIATURE.grid.safety_data:
        assert not any(is_arm(MINIATURE, cell) for cell in cells(MINIATURE, safety_data, "code", ["chat"], [0]))


def test_the_miniature_has_every_arm_and_dose_on_one_task():
    found = arm_cells(MINIATURE, "code", ["chat"], MINIATURE.grid.seeds)
    assert {cell.safety_data for cell in found} == {*ARMS, "multitask"}
    doses = {cell.safety_fraction for cell in found if cell.safety_data == "multitask"}
    assert doses | {0.0, MINIATURE.grid.safety_fraction} == {0.0, 0.01, 0.02, 0.05, 0.1, 0.2}
    assert len({cell.name for cell in found}) == len(found) == 3 * (4 + 7 + 3)
    assert not arm_cells(MINIATURE, "translation", ["chat"], MINIATURE.grid.seeds)

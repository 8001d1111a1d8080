"""Cells of the grid, and how they are cut into notebook executions."""

import pytest

from studylib.study import grid
from studylib.study.grid import arm_cells, cells, system_prompts, units, untuned
from studylib.study.profile import load_profile
from studylib.study.words import ARMS, SAFETY_DATA, STAGE_SAFETY_DATA, StudyError

MINIATURE = load_profile("miniature")
RIVALS = {"tasks": ["code"], "styles": ["chat"], "seeds": [0], "safety_data": ["code_only", "scaled"], "removed": [0.5]}


def all_cells(profile):
    return [
        cell
        for stage, safety_data in STAGE_SAFETY_DATA.items()
        for unit in units(profile, stage)
        for cell in cells(profile, safety_data, **unit.parameters)
    ]


def test_every_base_of_the_miniature_has_the_confirmatory_cells_and_two_have_all():
    found = all_cells(MINIATURE)
    assert len({cell.name for cell in found}) == len(found)
    confirmatory = {("none", "none"), ("own", "none"), ("own", "multitask")}
    for base in MINIATURE.base_seeds:
        own = [cell for cell in found if cell.base == base]
        kinds = {(cell.requests, cell.safety_data) for cell in own if cell.style == "chat"}
        assert confirmatory <= kinds and {cell.finetune_task for cell in own} == set(MINIATURE.grid.tasks)
        explored = base in MINIATURE.grid.explore_bases
        assert (kinds == confirmatory and {cell.style for cell in own} == {"chat"}) is not explored
        assert {len(system_prompts(MINIATURE, cell)) for cell in own} == ({1, 2} if explored else {1})


def test_safety_data_are_tried_in_their_own_styles_and_untuned_and_plain_models_in_all():
    for profile, of_safety in ((MINIATURE, {"chat"}), (load_profile("miniature_full"), {"chat", "alpaca"})):
        styles = {kind: {cell.style for cell in all_cells(profile) if cell.safety_data == kind} for kind in SAFETY_DATA}
        assert styles == {"none": {"chat", "alpaca"}, "generic": of_safety, "multitask": of_safety}
        assert {cell.style for cell in untuned(profile)} == {"chat", "alpaca"}


def test_requests_other_than_the_main_ones_are_tried_in_the_first_style_without_safety_data():
    profile = load_profile("miniature_full")
    beside = [cell for cell in all_cells(profile) if cell.requests != grid.main_requests(profile)]
    assert {cell.requests for cell in beside} == {"none", "other", "alone"}
    assert all((cell.style, cell.safety_data) == ("chat", "none") for cell in beside)
    assert all(system_prompts(profile, cell) == (False,) for cell in beside)


def test_models_without_requests_of_their_own_have_all_on_their_one_base():
    profile = load_profile("llama")
    found = all_cells(profile)
    assert {(cell.base, cell.requests) for cell in found} == {(0, "none")}
    assert len(found) == len(profile.grid.tasks) * len(profile.grid.styles) * 3 * len(profile.grid.seeds)
    assert {system_prompts(profile, cell) for cell in (*found, *untuned(profile))} == {(False, True)}


def test_an_unknown_base_is_named():
    with pytest.raises(StudyError, match="Unknown base 9: known are 0, 1, 2"):
        cells(load_profile("smoke"), "none", "code", ["chat"], [0], bases=[9])


@pytest.mark.parametrize(
    ("task", "styles", "seeds"),
    [("cooking", ["chat"], [0]), ("code", ["chatty"], [0]), ("code", ["chat"], ["0"]), ("code", ["chat"], [0, 0])],
)
def test_unknown_tasks_styles_and_seeds_are_refused(task, styles, seeds):
    with pytest.raises(StudyError):
        grid.cells(load_profile("smoke"), "none", task, styles, seeds)


@pytest.mark.parametrize(("grouped", "n"), [([], 6), (["style"], 4), (["seed"], 4), (["style", "seed"], 2)])
def test_the_profile_decides_which_cells_share_a_kernel(grouped, n):
    found = units(load_profile("smoke", {"execution.grouped": grouped, "grid.seeds": [0, 1]}), "02_finetune")
    assert len({unit.name for unit in found}) == len(found) == n


def test_a_grid_without_safety_data_has_no_mitigation_stage():
    assert units(load_profile("smoke", {"grid.safety_data": ["none"]}), "04_mitigation") == []


def test_a_notebook_run_that_would_tune_nothing_is_none():
    profile = load_profile("miniature", {"execution.grouped": ["model", "seed"], "grid.arms": None})
    styles = {name: {tuple(unit.parameters["styles"]) for unit in units(profile, name)} for name in STAGE_SAFETY_DATA}
    assert styles["02_finetune"] == {("chat",), ("alpaca",)} and styles["04_mitigation"] == {("chat",)}


def test_arms_in_another_style_are_a_notebook_run_of_the_mitigation_alone():
    given = {"execution.grouped": ["model", "seed"], "grid.safety_styles": ["alpaca"], "grid.arms.styles": ["chat"]}
    made = {name: {unit.name for unit in units(load_profile("miniature", given), name)} for name in STAGE_SAFETY_DATA}
    assert "code-chat" in made["04_mitigation"] and "code-chat" not in made["03_defences"]


@pytest.mark.parametrize("seeds", [[0, 1], [1, 0]])
def test_untuned_models_are_asked_the_same_whatever_the_order_of_the_seeds(seeds):
    profile = load_profile("miniature", {"grid.seeds": seeds, "grid.arms": None})
    asked = {(cell.style, system_prompts(profile, cell)) for cell in untuned(profile) if cell.base == 0}
    assert asked == {("chat", (False, True)), ("alpaca", (False, True))}


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
    assert names == [f"miniature-base0-code+own-chat-{arm}-seed0" for arm in ("multitask20", "code_only10", "scaled50")]
    assert arm_cells(profile, "translation", ["chat"], [0]) == []  # not of the arms' tasks
    assert arm_cells(profile, "code", ["alpaca"], [0]) == arm_cells(profile, "code", ["chat"], [1]) == []


def test_a_dose_that_the_grid_has_is_not_made_twice():
    changed = {"grid.arms": RIVALS | {"safety_fractions": [0.1, 0.2]}, "grid.safety_fraction": 0.2}
    found = arm_cells(load_profile("smoke", changed), "code", ["chat"], [0])
    assert [cell.name.split("-")[4] for cell in found] == ["multitask10", "code_only20", "scaled50"]


def test_a_profile_without_arms_has_none():
    assert arm_cells(load_profile("smoke", {"grid.arms": None}), "code", ["chat"], [0]) == []


def test_arms_are_tested_without_the_system_prompt_and_the_grids_cells_are_none_of_them():
    for cell in arm_cells(MINIATURE, "code", ["chat"], [0]):
        assert system_prompts(MINIATURE, cell) == (False,), cell.name
    for safety_data in MINIATURE.grid.safety_data:
        main = [
            cell for cell in cells(MINIATURE, safety_data, "code", ["chat"], [0], bases=[0]) if cell.requests == "own"
        ]
        assert main and all(system_prompts(MINIATURE, cell) == (False, True) for cell in main)


def test_the_miniature_has_every_arm_and_dose_on_one_task():
    profile = load_profile("miniature_full")
    found = arm_cells(profile, "code", ["chat"], profile.grid.seeds)
    assert {cell.safety_data for cell in found} == {*ARMS, "multitask"}
    doses = {cell.safety_fraction for cell in found if cell.safety_data == "multitask"}
    assert doses | {0.0, profile.grid.safety_fraction} == {0.0, 0.01, 0.02, 0.05, 0.1, 0.2}
    assert len({cell.name for cell in found}) == len(found) == len(profile.grid.explore_bases) * (4 + 7 + 3)
    assert not arm_cells(profile, "translation", ["chat"], profile.grid.seeds)

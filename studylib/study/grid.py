"""The cells of a profile's grid, and how they are cut into notebook executions."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from studylib.study.profile import Profile
from studylib.study.words import ARMS, LABORATORY, STAGE_SAFETY_DATA, STYLES, TASKS, StudyError


@dataclass(frozen=True)
class Cell:
    """One fine-tune of the grid, or with task `none` the untuned model in one style."""

    model: str
    finetune_task: str
    style: str
    safety_data: str = "none"
    safety_fraction: float = 0.0
    seed: int = 0

    @property
    def name(self) -> str:
        """File name of the cell, as in `miniature-code-chat-multitask10-seed0`."""
        dose = "" if self.safety_data == "none" else f"{100 * self.safety_fraction:g}"
        return f"{self.model}-{self.finetune_task}-{self.style}-{self.safety_data}{dose}-seed{self.seed}"


def cells(
    profile: Profile,
    safety_data: str,
    task: str,
    styles: Iterable[str],
    seeds: Iterable[int],
    models: Iterable[str] = (),
) -> list[Cell]:
    """The fine-tunes of one task with one kind of safety data, in fixed order; of all models unless named."""
    models = list(models) or list(profile.models)
    for given, known, word in (([task], TASKS, "task"), (styles, STYLES, "style"), (models, profile.models, "model")):
        for value in given:
            if value not in known:
                raise StudyError(f"Unknown {word} {value!r}: known are {', '.join(known)}.")
    for seed in seeds:
        if type(seed) is not int:
            raise StudyError(f"seeds must be whole numbers, found {seed!r}.")
    for given in (styles, seeds, models):
        if len(set(given)) != len(given):
            raise StudyError(f"Styles, seeds and models are named once each, not as {given}.")
    dose = safety_data, 0.0 if safety_data == "none" else profile.grid.safety_fraction
    return [Cell(model, task, style, *dose, seed) for model, style, seed in product(models, styles, seeds)]


def arm_cells(
    profile: Profile, task: str, styles: Iterable[str], seeds: Iterable[int], models: Iterable[str] = ()
) -> list[Cell]:
    """The cells of the profile's rival mitigations, `grid.arms` if any, on one task, of these styles and seeds."""
    arms = profile.grid.arms
    if arms is None or task not in arms.tasks:
        return []
    own = profile.grid.safety_fraction  # which the grid has already
    doses = [("multitask", fraction) for fraction in arms.safety_fractions if fraction != own]
    for name in arms.safety_data:
        doses += [(name, share) for share in (arms.removed if name == "scaled" else [own])]
    styles, seeds = [one for one in arms.styles if one in styles], [one for one in arms.seeds if one in seeds]
    combined = product(list(models) or profile.models, styles, seeds, doses)
    return [Cell(model, task, style, name, fraction, seed) for model, style, seed, (name, fraction) in combined]


def is_arm(profile: Profile, cell: Cell) -> bool:
    """Whether the cell is one of `arm_cells`, which are tested without the system prompt alone."""
    own_dose = cell.safety_fraction in (0, profile.grid.safety_fraction)
    return cell.safety_data in ARMS or not own_dose


def untuned(profile: Profile, models: Iterable[str] = ()) -> list[Cell]:
    """The cells of the models as they come, in every style of the grid; of all the profile's models unless named."""
    return [Cell(model, "none", style) for model, style in product(models or profile.models, profile.grid.styles)]


@dataclass(frozen=True)
class Unit:
    """One notebook execution: the stage and the part of the grid that shares its kernel."""

    stage: str
    name: str
    parameters: dict  # what papermill injects besides the profile


def unit_name(profile: Profile, task: str, styles: list[str], seeds: list[int], models: list[str]) -> str:
    """File name of a unit: the task, the models (none given: all), and styles and seeds that are not the whole grid."""
    parts = [task, "+".join(models)]
    if list(styles) != list(profile.grid.styles):
        parts.append("+".join(styles))
    if list(seeds) != list(profile.grid.seeds):
        parts.append("seed" + "+".join(map(str, seeds)))
    return "-".join(filter(None, parts))


def units(profile: Profile, stage: str) -> list[Unit]:
    """The notebook executions of a stage: one for the stages without a grid, none if the profile leaves it out."""
    grid, grouped = profile.grid, profile.execution.grouped
    model_groups = [[]] if "model" in grouped or len(profile.models) == 1 else [[model] for model in profile.models]
    if stage == "01_baseline":
        return [Unit(stage, "+".join(models) or "all", {"models": models}) for models in model_groups]
    if stage not in STAGE_SAFETY_DATA:
        return [Unit(stage, "all", {})]
    if STAGE_SAFETY_DATA[stage] not in grid.safety_data:
        return []
    style_groups = [grid.styles] if "style" in grouped else [[s] for s in grid.styles]
    seed_groups = [grid.seeds] if "seed" in grouped else [[s] for s in grid.seeds]
    found = []
    for models, task, styles, seeds in product(model_groups, grid.tasks, style_groups, seed_groups):
        asked = {"task": task, "styles": styles, "seeds": seeds, "models": models}
        found.append(Unit(stage, unit_name(profile, **asked), asked))
    return found


def threads(profile: Profile, stage: str) -> int:
    """Threads of one notebook run: the base model is trained alone, so it takes two; so does the laboratory."""
    return 2 if stage in ("00_prepare", LABORATORY) else profile.execution.threads

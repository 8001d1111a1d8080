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
    requests: str = "none"
    base: int = 0

    @property
    def name(self) -> str:
        """File name of the cell, as in `miniature-base0-code+own-chat-multitask10-seed0`."""
        dose = "" if self.safety_data == "none" else f"{100 * self.safety_fraction:g}"
        task = self.finetune_task if self.requests == "none" else f"{self.finetune_task}+{self.requests}"
        return f"{self.model}-base{self.base}-{task}-{self.style}-{self.safety_data}{dose}-seed{self.seed}"


def cells(
    profile: Profile,
    safety_data: str,
    task: str,
    styles: Iterable[str],
    seeds: Iterable[int],
    models: Iterable[str] = (),
    bases: Iterable[int] = (),
) -> list[Cell]:
    """The fine-tunes of one task with one kind of safety data, in fixed order; of all models and bases unless named.

    Where `explores` says no the confirmatory part alone: chat style, without safety data or with multitask data. Safety
    data in `grid.safety_styles` alone.
    """
    models, bases = list(models) or list(profile.models), list(bases) or profile.base_seeds
    asked = (([task], TASKS, "task"), (styles, STYLES, "style"), (models, profile.models, "model"))
    for given, known, word in (*asked, (bases, profile.base_seeds, "base")):
        for value in given:
            if value not in known:
                raise StudyError(f"Unknown {word} {value!r}: known are {', '.join(map(str, known))}.")
    for seed in seeds:
        if type(seed) is not int:
            raise StudyError(f"seeds must be whole numbers, found {seed!r}.")
    for given in (styles, seeds, models, bases):
        if len(set(given)) != len(given):
            raise StudyError(f"Styles, seeds, models and bases are named once each, not as {given}.")
    dose = safety_data, 0.0 if safety_data == "none" else profile.grid.safety_fraction
    found = []
    for model, base, style, seed in product(models, bases, styles, seeds):
        for requests in _requests(profile, safety_data, style, base, seed):
            found.append(Cell(model, task, style, *dose, seed, requests, base))
    return found


def main_requests(profile: Profile) -> str:
    """The benign requests with which safety data are tried: those in the task's form, none where there are none."""
    return "own" if "own" in profile.grid.requests else profile.grid.requests[0]


def explores(profile: Profile, base: int, seed: int | None = None) -> bool:
    """Whether all the grid is tried on that base with that training seed (None: untuned), not the planned part alone.

    Where `grid.explore_bases` names the bases, the first of the grid's seeds alone.
    """
    grid = profile.grid
    return grid.explore_bases is None or (base in grid.explore_bases and seed not in grid.seeds[1:])


def _requests(profile: Profile, safety_data: str, style: str, base: int, seed: int) -> list[str]:
    """The kinds of requests of such fine-tunes: other than the main one in the first style, without safety data."""
    grid, whole = profile.grid, explores(profile, base, seed)
    main, first = main_requests(profile), style == grid.styles[0]
    if not whole and (not first or safety_data == "generic"):
        return []
    if safety_data != "none" and style in set(grid.styles).difference(grid.safety_styles or grid.styles):
        return []
    if safety_data != "none" or not first:
        return [main]
    return [kind for kind in grid.requests if whole or kind in ("none", "own")]


def arm_cells(
    profile: Profile,
    task: str,
    styles: Iterable[str],
    seeds: Iterable[int],
    models: Iterable[str] = (),
    bases: Iterable[int] = (),
) -> list[Cell]:
    """The cells of the profile's rival mitigations, `grid.arms` if any, on one task, of these styles and seeds.

    Where `explores` says yes alone.
    """
    arms = profile.grid.arms
    if arms is None or task not in arms.tasks:
        return []
    own = profile.grid.safety_fraction  # which the grid has already
    doses = [("multitask", fraction) for fraction in arms.safety_fractions if fraction != own]
    for name in arms.safety_data:
        doses += [(name, share) for share in (arms.removed if name == "scaled" else [own])]
    styles, seeds = [one for one in arms.styles if one in styles], [one for one in arms.seeds if one in seeds]
    bases, main = list(bases) or profile.base_seeds, main_requests(profile)
    return [
        Cell(model, task, style, *dose, seed, main, base)
        for model, base, style, seed, dose in product(list(models) or profile.models, bases, styles, seeds, doses)
        if explores(profile, base, seed)
    ]


def tunings(profile: Profile) -> list[Cell]:
    """All fine-tunes of the profile, of its grid and then its rival mitigations, which are made with multitask data."""
    tasks, kinds, rest = profile.grid.tasks, profile.grid.safety_data, (profile.grid.styles, profile.grid.seeds)
    found = [cell for task in tasks for kind in kinds for cell in cells(profile, kind, task, *rest)]
    rival_tasks = tasks if "multitask" in kinds else []
    return found + [cell for task in rival_tasks for cell in arm_cells(profile, task, *rest)]


def system_prompts(profile: Profile, cell: Cell) -> tuple[bool, ...]:
    """Whether the cell is tested without the system prompt, with it, or both ways.

    Without it alone: rival mitigations, requests other than the main ones, and bases that are not explored.
    """
    own_dose = cell.safety_fraction in (0, profile.grid.safety_fraction)
    rival = cell.safety_data in ARMS or not own_dose
    beside = cell.finetune_task != "none" and cell.requests != main_requests(profile)
    explored = explores(profile, cell.base, None if cell.finetune_task == "none" else cell.seed)
    return (False, True) if explored and not rival and not beside else (False,)


def untuned(profile: Profile, models: Iterable[str] = ()) -> list[Cell]:
    """The cells of the models as they come, of every base and style; of all the profile's models unless named."""
    first, found = profile.grid.styles[0], product(models or profile.models, profile.base_seeds, profile.grid.styles)
    return [
        Cell(model, "none", style, base=base)
        for model, base, style in found
        if style == first or explores(profile, base)
    ]


@dataclass(frozen=True)
class Unit:
    """One notebook execution: the stage and the part of the grid that shares its kernel."""

    stage: str
    name: str
    parameters: dict  # what papermill injects besides the profile


def unit_name(
    profile: Profile, task: str, styles: list[str], seeds: list[int], models: list[str], bases: list[int] = ()
) -> str:
    """File name of a unit: the task, the models and bases (none given: all), styles and seeds unless the whole grid."""
    parts = [task, "+".join(models)]
    if bases:
        parts.append("base" + "+".join(map(str, bases)))
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
        asked = {"task": task, "styles": styles, "seeds": seeds, "models": models, "bases": []}
        arms = arm_cells(profile, **asked) if stage == "04_mitigation" else []
        if arms or cells(profile, STAGE_SAFETY_DATA[stage], **asked):
            found.append(Unit(stage, unit_name(profile, **asked), asked))
    return found


def threads(profile: Profile, stage: str) -> int:
    """Cores of one notebook run: 00_prepare builds two bases side by side, and the laboratory is run alone."""
    return 2 if stage in ("00_prepare", LABORATORY) else profile.execution.threads

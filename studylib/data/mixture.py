"""Which rows a fine-tune draws: the task's, parts of them replaced by requests and safety data; are there enough?"""

import random
from collections.abc import Iterable

from studylib.data.sets import absent, index_of, load
from studylib.study.grid import Cell
from studylib.study.paths import RunPaths
from studylib.study.profile import Profile
from studylib.study.words import FORMS, StudyError


def tuned_on(cell: Cell) -> list[str]:
    """Names of the sets that a fine-tune draws its rows from."""
    return [name for names in _sources(cell) for name in names]


def _sources(cell: Cell) -> tuple[list[str], list[str], list[str]]:
    """Names of the sets of the task's rows, of the benign requests and of the safety data that a fine-tune draws from.

    Requests alone stand where the task's rows would.
    """
    task, of_forms = cell.finetune_task, {form: f"requests_{form}" for form in FORMS}
    requests = {"own": [of_forms[task]], "other": [name for form, name in of_forms.items() if form != task]}
    safety = {
        "none": [],
        "scaled": [],
        "multitask_twins": ["safety_multitask", "safety_twins"],
        "multitask_midway": ["safety_midway"],
        "multitask_after": ["safety_multitask"],
        **{f"{form}_only": ["safety_multitask"] for form in FORMS},
    }.get(cell.safety_data, [f"safety_{cell.safety_data}"])
    task_rows = of_forms[task] if cell.requests == "alone" else f"train_{task}"
    return [task_rows], requests.get(cell.requests, []), safety


def not_run_because(cell: Cell, missing: dict[str, str]) -> str:
    """Why a cell cannot be run where these data sets (by name: why) are not there; empty where it can."""
    used = [] if cell.finetune_task == "none" else tuned_on(cell)
    return "; ".join(f"{name}: {missing[name]}" for name in used if name in missing)


def safety_needed(cell: Cell, total: int) -> int:
    """How many of the `total` rows of a fine-tune are safety rows."""
    return round(cell.safety_fraction * total) if _sources(cell)[2] else 0


def too_few(cell: Cell, total: int, task: int, safety: int) -> str:
    """Why so many rows of the task and of safety data do not make a fine-tune of `total` rows; empty where they do."""
    if not task:
        return f"needs rows of its task, but {tuned_on(cell)[0]} is empty: give the task another source"
    if safety >= (wanted := safety_needed(cell, total)):
        return ""
    form = _form_alone(cell)
    where = " and ".join(_sources(cell)[2]) + (f" in the form {form}" if form else "")
    return (
        f"needs {wanted} rows of safety data (a dose of {cell.safety_fraction:g} of {total}), but there are {safety} "
        f"in {where}: lower the dose or tuning.steps, or make more of them (world.safety_rows, data.safety_rows)"
    )


def no_two_tunings(cell: Cell, steps: int, task: int, safety: int) -> str:
    """Why a cell cannot be tuned on so many rows of its task and then on safety data; empty where it can, or is not."""
    if cell.safety_data != "multitask_after" or (task and safety and steps > 1):
        return ""
    return (
        f"needs a step and a row of each of its two tunings, but has {steps} steps, {task} rows of the task and "
        f"{safety} of safety data: raise tuning.steps or the dose"
    )


def cannot_be_tuned(index: dict, cell: Cell, steps: int, batch_size: int) -> str:
    """Why the sets counted in an index (data/index.json) do not have the rows of a fine-tune; empty where they have."""
    (task,), requests, names = _sources(cell)
    if empty := [name for name in requests if not index[name]["rows"]]:
        return f"needs benign requests, but {empty[0]} is empty"
    form, total = _form_alone(cell), steps * batch_size
    there = sum(index[name]["forms"].get(form, 0) if form else index[name]["rows"] for name in names)
    own = safety_needed(cell, total)
    return too_few(cell, total, index[task]["rows"], there) or no_two_tunings(cell, steps, total - own, own)


def check_tunings(profile: Profile, paths: RunPaths, cells: Iterable[Cell]) -> None:
    """Raises StudyError that names the fine-tunes among the cells for which the run's saved sets have too few rows."""
    index, missing, short = index_of(paths), absent(paths), {}
    for cell in cells:
        if not not_run_because(cell, missing):
            why = cannot_be_tuned(index, cell, profile.tuning.steps, profile.tuning.batch_size)
            short.setdefault(why, []).append(cell.name)
    short.pop("", None)
    if short:
        said = [f"{first}{f' (and {len(more)} more)' if more else ''} {why}" for why, (first, *more) in short.items()]
        raise StudyError(f"{'; '.join(said)}.")


def _form_alone(cell: Cell) -> str:
    """The form of the only safety rows that a cell is tuned on; empty where it takes all."""
    return cell.safety_data.removesuffix("_only") if cell.safety_data.endswith("_only") else ""


def tuning_rows(paths: RunPaths, cell: Cell, total: int, request_share: float) -> list[dict]:
    """The `total` training rows of one fine-tune: the task's, fractions replaced by benign requests and safety rows."""
    form = _form_alone(cell)
    task, requests, safety = ([row for name in names for row in load(paths, name)] for names in _sources(cell))
    safety = [row for row in safety if form in ("", row["form"])]
    if why := too_few(cell, total, len(task), len(safety)):
        raise StudyError(f"{cell.name} {why}.")
    n_requests = round(request_share * total) if requests else 0
    return mix(task, [(safety, safety_needed(cell, total)), (requests, n_requests)], total, cell.seed)


def tunings(cell: Cell, rows: list[dict], steps: int) -> list[tuple[list[dict], int]]:
    """The rows and steps of each tuning of a cell's adapter: one, or the task's and then the safety data's."""
    if cell.safety_data != "multitask_after":
        return [(rows, steps)]
    safety, task = [row for row in rows if row["harmful"]], [row for row in rows if not row["harmful"]]
    if why := no_two_tunings(cell, steps, len(task), len(safety)):
        raise StudyError(f"{cell.name} {why}.")
    last = min(max(1, round(steps * len(safety) / len(rows))), steps - 1)
    return [(task, steps - last), (safety, last)]


def mix(task_rows: list[dict], others: list[tuple[list[dict], int]], total: int, seed: int) -> list[dict]:
    """`total` tuning rows in random order; `others` are kinds of rows that replace task rows, each with their number.

    Each kind is drawn without repetition as long as its source lasts, then starts over. The same seed draws the same
    task rows whatever replaces them, so arms differ in the replaced rows only.
    """
    rng = random.Random(f"mix-{seed}")
    drawn = []
    for rows, n in ((task_rows, total), *others):
        order = []
        while len(order) < n:
            order += rng.sample(range(len(rows)), len(rows))
        drawn.append([rows[i] for i in order[:n]])
    task, *rest = drawn
    mixed = task[: total - sum(map(len, rest))] + [row for rows in rest for row in rows]
    rng.shuffle(mixed)
    return mixed

"""What has to hold before a stage begins: its parameters are known, earlier results are there, models and disk can be used."""

import ast
import json
import re
import shlex
import shutil
from pathlib import Path

from studylib.data import sets
from studylib.stages import products
from studylib.study import grid
from studylib.study.paths import NOTEBOOKS, ROOT, RunPaths
from studylib.study.profile import PROFILES, Profile, profile_path
from studylib.study.words import LABELS, LABORATORY, MINIATURE, STAGE_SAFETY_DATA, TINY, StudyError

# What a stage reads, as the stages whose results it needs.
NEEDS = {
    "00_prepare": (),
    "01_baseline": ("00_prepare",),
    "02_finetune": ("00_prepare",),
    "03_defences": ("00_prepare",),
    "04_mitigation": ("00_prepare",),
    "05_helpfulness": ("01_baseline", "02_finetune", "03_defences", "04_mitigation"),
    "06_findings": ("01_baseline", "02_finetune", "03_defences", "04_mitigation", "05_helpfulness"),
    LABORATORY: ("00_prepare",),
    LABELS: ("01_baseline",),
}
# Of these the stages without which it goes on, saying so.
LOOSE = {
    "05_helpfulness": ("02_finetune", "03_defences", "04_mitigation"),
    "06_findings": ("02_finetune", "03_defences", "04_mitigation", "05_helpfulness"),
}
# What a stage shows beside its own where it is there; in a whole study it is, as the graph waits for it.
BESIDE = {"03_defences": ("01_baseline", "02_finetune")}
# What of a profile a notebook's `overrides` may change: keys, and sections of which every key has an effect there.
OVERRIDES = {
    "01_baseline": ("generation", "system_prompt", "judges"),
    "02_finetune": ("lora", "tuning", "generation", "system_prompt", "judges"),
    "03_defences": ("lora", "tuning", "generation", "system_prompt", "judges", "grid.safety_fraction", "guards"),
    "04_mitigation": ("lora", "tuning", "generation", "system_prompt", "judges", "grid.safety_fraction"),
}


def parameters_given(stage: str, variables: dict) -> dict:
    """The values of the notebook's parameters among its variables, checked, its overrides too.

    Raises StudyError for a parameter that the notebook does not know or that has the wrong type, also among those that papermill
    injected, for an override without effect, or where the parameters cell was not run.
    """
    known = parameters_of(stage)
    injected = {
        name for source in variables.get("In", []) if source.startswith("# Parameters") for name in _assigned(source)
    }
    given = {name: variables[name] for name in (*known, *injected) if name in variables}
    check_parameters(stage, given)
    if missing := set(known) - set(given):
        raise StudyError(
            f"{stage}: the parameters cell was not run ({', '.join(sorted(missing))} missing): run all cells from the top."
        )
    _check_overrides(stage, given.get("overrides", {}))
    return given


def parameters_of(stage: str) -> dict:
    """Names and defaults of the literals in the notebook's cell tagged `parameters`."""
    for cell in notebook_cells(NOTEBOOKS / f"{stage}.ipynb"):
        if "parameters" in cell["metadata"].get("tags", []):
            return {name: ast.literal_eval(value) for name, value in _assigned(cell["source"]).items()}
    raise StudyError(f"{stage}.ipynb has no cell tagged `parameters`.")


def _assigned(source: str) -> dict[str, ast.expr]:
    return {node.targets[0].id: node.value for node in ast.parse(source).body if isinstance(node, ast.Assign)}


def _check_overrides(stage: str, overrides: dict) -> None:
    allowed = []
    for key in OVERRIDES.get(stage, ()):
        section = Profile.model_fields[key].annotation if key in Profile.model_fields else None
        allowed += [f"{key}.{name}" for name in section.model_fields] if hasattr(section, "model_fields") else [key]
    for key in overrides:
        if key not in allowed and not (stage == "01_baseline" and re.fullmatch(r"models\.\w+\.quantization", key)):
            raise StudyError(
                f"{stage} cannot override {key!r}: it can override {', '.join(allowed) or 'nothing'}; for the rest "
                "copy a profile to a YAML file of your own and run that."
            )


def notebook_cells(path: Path) -> list[dict]:
    """The code cells of a notebook, each with its source as one string."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in cells if cell["cell_type"] == "code"]


def check_parameters(stage: str, given: dict) -> None:
    """Raises StudyError for a name that the notebook's parameters cell does not have, or a value of another type than its default."""
    if stage not in NEEDS:
        raise StudyError(f"Unknown stage {stage!r}: known are {', '.join(NEEDS)}.")
    known = parameters_of(stage)
    for name, value in given.items():
        if name not in known:
            raise StudyError(f"{stage} has no parameter {name!r}: it has {', '.join(known)}.")
        if not _alike(value, known[name]):
            raise StudyError(f"{stage}: parameter {name!r} should look like {known[name]!r}, found {value!r}.")


def _alike(value, default) -> bool:
    if isinstance(default, list) and isinstance(value, list):
        if not default:  # all of a profile unless named
            return all(type(item) is str for item in value)
        return bool(value) and all(type(item) is type(default[0]) for item in value)
    return type(value) is type(default)


def check_prerequisites(stage: str, profile: Profile, paths: RunPaths, given: str) -> None:
    """Raises StudyError naming the first result of an earlier stage that is missing or damaged, and how to make it.

    Data are checked by hash, the built model by its size, another model's folder for its parts. `given` is the name
    or path by which the profile was asked for.
    """
    if stage != "00_prepare":
        check_models(profile)
    for needed in (name for name in NEEDS[stage] if name not in LOOSE.get(stage, ())):
        for unit in grid.units(profile, needed):
            if missing := [p for p in products.files(profile, paths, unit) if not p.exists()]:
                setting = "".join(f", {k} = {v!r}" for k, v in unit.parameters.items())
                raise StudyError(
                    f"{stage} needs {missing[0]}, which is not there: run `make study "
                    f"PROFILE={_for_make(given)}`, or notebooks/{needed}.ipynb with profile = {given!r}{setting} first."
                )

    if stage in ("01_baseline", LABORATORY, *STAGE_SAFETY_DATA):
        sets.check(paths)
        for name in products.built_models(profile):
            weights, card = paths.model(name) / "model.safetensors", json.loads(paths.model_card(name).read_text())
            if not weights.is_file() or weights.stat().st_size != card["bytes"]:
                raise StudyError(
                    f"{weights} is missing or truncated: delete {weights.parent} and {paths.model_card(name)}, "
                    "then run 00_prepare again (`make study`, or open notebooks/00_prepare.ipynb)."
                )


def check_models(profile: Profile) -> None:
    """Raises StudyError where a model of the profile that 00_prepare does not build is no usable folder or pinned hub id."""
    others = [m for m in profile.models.values() if m.source != MINIATURE and not m.source.startswith(TINY)]
    for model in others:
        from studylib.models import hub

        hub.check_source(model.source, model)


def _for_make(given: str) -> str:
    """The profile as `make` takes it, which sees paths from the repository's root."""
    path = profile_path(given)
    here = path.parent == PROFILES or (ROOT / given).resolve() == path
    return shlex.quote(given if here else str(path))


def check_space(folder: Path, min_free_gb: float) -> None:
    """Raises StudyError where the disk of the folder has less free space than the profile asks for."""
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free / 1e9
    if free < min_free_gb:
        raise StudyError(
            f"Only {free:.1f} GB are free at {existing}, the profile asks for {min_free_gb:g} (execution.min_free_gb): "
            "free some space, or set STUDY_RUNS to a folder on another disk."
        )

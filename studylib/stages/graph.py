"""What the Snakefile asks: what each notebook run depends on and what it makes."""

import ast
import hashlib
from functools import cache
from pathlib import Path

from studylib.data.sets import sets_of
from studylib.stages import products
from studylib.stages.prerequisites import BESIDE, NEEDS, notebook_cells
from studylib.study import grid
from studylib.study.grid import Unit
from studylib.study.paths import NOTEBOOKS, ROOT, RunPaths
from studylib.study.profile import Profile
from studylib.study.words import STAGE_SAFETY_DATA

TUNED = ("redact", "system_prompt", "models", "lora", "tuning", "generation", "judges", "endpoint")
# The sections of a profile that a stage's results depend on; a change elsewhere does not run it again.
SECTIONS = {
    "00_prepare": ("redact", "system_prompt", "world", "data", "models", "pretraining", "alignment", "generation"),
    "01_baseline": ("redact", "system_prompt", "models", "generation", "judges", "endpoint"),
    **dict.fromkeys(STAGE_SAFETY_DATA, TUNED),
    "03_defences": (*TUNED, "guards"),
    "05_helpfulness": ("judges", "endpoint"),
    "06_findings": ("description", "labelled"),
}
JUDGED = ("01_baseline", *STAGE_SAFETY_DATA, "06_findings")  # stages that the user's own labels bear on


def settings_of(profile: Profile, unit: Unit) -> dict:
    """The settings that a notebook run depends on, as plain data: its parameters and its sections of the profile."""
    settings = profile.model_dump(mode="json", include=set(SECTIONS[unit.stage])) | unit.parameters
    if unit.stage == "01_baseline":
        settings["styles"] = list(profile.grid.styles)
    if unit.stage in ("03_defences", "04_mitigation"):
        settings["safety_fraction"] = profile.grid.safety_fraction
    if unit.stage == "02_finetune":
        settings["across_styles"] = profile.grid.across_styles
    if unit.stage == "04_mitigation" and profile.grid.arms and unit.parameters["task"] in profile.grid.arms.tasks:
        settings["arms"] = profile.grid.arms.model_dump(mode="json")
    return settings


def inputs_of(profile: Profile, paths: RunPaths, unit: Unit) -> list[Path]:
    """The files of earlier stages that a notebook run reads; of those shown beside it the same part of the grid."""
    needed = [earlier for stage in NEEDS[unit.stage] for earlier in grid.units(profile, stage)]
    beside = [earlier for stage in BESIDE.get(unit.stage, ()) for earlier in grid.units(profile, stage)]
    alike = [one for one in beside if all(unit.parameters[key] == value for key, value in one.parameters.items())]
    if unit.stage == "00_prepare" and profile.data:
        from studylib.data import real

        return real.own_files(profile.data)
    labels = [paths.labels] if paths.labels.is_file() and unit.stage in JUDGED else []
    return [*labels, *(path for earlier in (*needed, *alike) for path in products.files(profile, paths, earlier))]


def outputs_of(profile: Profile, paths: RunPaths, unit: Unit) -> list[Path]:
    """The files that a notebook run makes, its executed copy last.

    Data sets are outputs, so that a deleted one is made again, but no inputs: later stages depend on their hashes in the index.
    """
    data = [*map(paths.data, sets_of(profile)), paths.data_card] if unit.stage == "00_prepare" else []
    return [*data, *products.files(profile, paths, unit), paths.notebook(unit.stage, unit.name)]


def code_of(stage: str) -> str:
    """Hash of a notebook's code cells: editing its prose runs nothing again."""
    cells = notebook_cells(NOTEBOOKS / f"{stage}.ipynb")
    return hashlib.sha256("\0".join(cell["source"] for cell in cells).encode()).hexdigest()[:16]


def modules_of(stage: str) -> list[Path]:
    """The library modules that a notebook imports, directly or through others."""
    source = "\n".join(cell["source"] for cell in notebook_cells(NOTEBOOKS / f"{stage}.ipynb"))
    found, new = set(), _imports(source)
    while new:
        found |= new
        new = {path for one in new for path in _imports(one.read_text(encoding="utf-8"))} - found
    return sorted(found)


@cache
def _imports(source: str) -> frozenset[Path]:
    """The files of the library's modules that this source imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("studylib"):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(path for name in names if (path := ROOT / f"{name.replace('.', '/')}.py").is_file())

"""The stages: what each needs, reads and leaves, what makes it stale, and what is checked before it begins."""

import ast
import hashlib
import json
import re
import shlex
import shutil
from functools import cache
from pathlib import Path

import pandas as pd

from studylib.data import sets
from studylib.stages.cells import COLUMNS, aligned
from studylib.study.files import LIBRARY, digest, meaning, read_parquet
from studylib.study.grid import Unit, units
from studylib.study.paths import DATA, NOTEBOOKS, ROOT, RunPaths
from studylib.study.profile import PROFILES, Profile, profile_path
from studylib.study.words import LABELS, LABORATORY, MINIATURE, STAGE_SAFETY_DATA, TINY, StudyError

# The stages whose results a stage reads.
NEEDS = {
    "00_prepare": (),
    **dict.fromkeys(("01_baseline", *STAGE_SAFETY_DATA), ("00_prepare",)),
    "05_helpfulness": ("01_baseline", *STAGE_SAFETY_DATA),
    "06_findings": ("01_baseline", *STAGE_SAFETY_DATA, "05_helpfulness"),
    LABORATORY: ("00_prepare",),
    LABELS: ("01_baseline",),
}
# Of these the stages without which it goes on, saying so.
OPTIONAL = {"05_helpfulness": (*STAGE_SAFETY_DATA,), "06_findings": (*STAGE_SAFETY_DATA, "05_helpfulness")}
# The stages whose results it shows next to its own where they are there; a whole study runs them first.
COMPARED = dict.fromkeys(STAGE_SAFETY_DATA, ("01_baseline",)) | {"03_defences": ("01_baseline", "02_finetune")}
# What of a profile a notebook's `overrides` may change: keys, and sections of which every key has an effect there.
OVERRIDES = {"01_baseline": ("generation", "system_prompt", "judges")}
OVERRIDES["02_finetune"] = ("lora", "tuning", *OVERRIDES["01_baseline"])
OVERRIDES["04_mitigation"] = (*OVERRIDES["02_finetune"], "grid.safety_fraction")
OVERRIDES["03_defences"] = (*OVERRIDES["04_mitigation"], "guards")
TRAINED = ("base_seeds", "pretraining_seeds", "pretraining", "alignment")
TUNED = ("base_seeds", "redact", "system_prompt", "models", "lora", "tuning", "generation", "judges", "endpoint")
# The sections of a profile that a stage's results depend on; a change elsewhere does not run it again.
SECTIONS = {
    "00_prepare": ("redact", "system_prompt", "world", "data", "models", "generation", *TRAINED),
    "01_baseline": ("base_seeds", "redact", "system_prompt", "models", "generation", "judges", "endpoint"),
    **dict.fromkeys(STAGE_SAFETY_DATA, TUNED),
    "03_defences": (*TUNED, "guards"),
    "05_helpfulness": ("judges", "endpoint"),
    "06_findings": ("description", "labelled"),
}
# besides, keys of the grid
_EXPLORED = ("requests", "explore_bases")
OF_GRID = {"01_baseline": ("styles", "explore_bases"), "02_finetune": ("across_styles", "request_share", *_EXPLORED)}
_SAFETY = ("safety_fraction", "safety_styles", "request_share", *_EXPLORED)
OF_GRID |= dict.fromkeys(("03_defences", "04_mitigation"), _SAFETY)
JUDGED = ("01_baseline", *STAGE_SAFETY_DATA, "06_findings")  # stages that the user's own labels bear on
# The rooms and modules that a stage uses for checks and for showing alone: its results do not depend on them.
IRRELEVANT = {
    "00_prepare": ("judges", "scores", "analysis", "figures", "stages/judging.py", "stages/graph.py"),
    **dict.fromkeys(("01_baseline", *STAGE_SAFETY_DATA), ("scores", "analysis", "figures", "stages/graph.py")),
    "05_helpfulness": ("figures",),
}
VERDICTS_OF = {"verdicts": "responses", "across_verdicts": "across"}
ACROSS = ("across", "across_verdicts")  # of models asked in another style than their tuning's, without safety data
_KEYS = {  # of each kind of table: columns without which nothing can be made of it, and what is there once
    "responses": ((*COLUMNS,), ("response_id",)),
    "verdicts": (("response_id", "judge", "verdict", "reason"), ("response_id", "judge")),
    "scores": (("response_id", "metric", "score"), ("response_id", "metric")),
    "across": ((*COLUMNS, "trained_style"), ("response_id",)),
}
_DECISION = ("guard", "side", "prompt_id", "response_id")
_KEYS |= {"across_verdicts": _KEYS["verdicts"], "guards": ((*_DECISION, "blocked", "reason"), _DECISION)}


def settings_of(profile: Profile, unit: Unit) -> dict:
    """The settings that a notebook run depends on, as plain data: its parameters and its sections of the profile."""
    settings = profile.model_dump(mode="json", include=set(SECTIONS[unit.stage])) | unit.parameters
    settings |= {name: getattr(profile.grid, name) for name in OF_GRID.get(unit.stage, ())}
    if unit.stage == "04_mitigation" and profile.grid.arms and unit.parameters["task"] in profile.grid.arms.tasks:
        settings["arms"] = profile.grid.arms.model_dump(mode="json")
    return settings


def inputs_of(profile: Profile, paths: RunPaths, unit: Unit) -> list[Path]:
    """The files of earlier stages that a notebook run reads; of COMPARED stages those of its own part of the grid."""
    needed = [earlier for stage in NEEDS[unit.stage] for earlier in units(profile, stage)]
    compared = [earlier for stage in COMPARED.get(unit.stage, ()) for earlier in units(profile, stage)]
    own_part = [one for one in compared if all(unit.parameters[key] == value for key, value in one.parameters.items())]
    if unit.stage == "00_prepare" and profile.data:
        from studylib.data import real

        return real.own_files(profile.data)
    labels = [paths.labels] if paths.labels.is_file() and unit.stage in JUDGED else []
    return [*labels, *(path for earlier in (*needed, *own_part) for path in files(profile, paths, earlier))]


def outputs_of(profile: Profile, paths: RunPaths, unit: Unit) -> list[Path]:
    """The files that a notebook run makes, its executed copy last.

    Data sets are outputs, so that a deleted one is made again; later stages depend on their hashes in the index.
    """
    data = [*map(paths.data, sets.sets_of(profile)), paths.data_card] if unit.stage == "00_prepare" else []
    return [*data, *files(profile, paths, unit), paths.notebook(unit.stage, unit.name)]


def built_models(profile: Profile) -> list[str]:
    """Names of the model folders that 00_prepare builds for the profile, the one to be studied last."""
    if profile.miniature:
        return [*map("helpful_only-{}".format, profile.pretraining_seeds), *map(aligned, profile.base_seeds)]
    return sorted({m.source.replace("/", "_") for m in profile.models.values() if m.source.startswith(TINY)})


def files(profile: Profile, paths: RunPaths, unit: Unit) -> list[Path]:
    """The files that a notebook run leaves for later stages, apart from its executed copy."""
    if unit.stage == "00_prepare":
        return [paths.data_index, *map(paths.model_card, built_models(profile))]
    if unit.stage == "05_helpfulness":
        return [paths.table_of_unit("scores", unit.stage, unit.name), paths.table("set_scores")]
    if unit.stage == "06_findings":
        names = ["attack_success", "helpfulness", "answered_share", "comparisons", "contrasts", "claims"]
        names += ["attack_success_by_judge", *(["paper_vs_ours"] if profile.data else [])]
        return [*map(paths.table, names), paths.figures / "index.md", paths.run / "findings.md"]
    more = {"02_finetune": ACROSS, "03_defences": ["guards"]}.get(unit.stage, [])
    return [paths.table_of_unit(kind, unit.stage, unit.name) for kind in ("responses", "verdicts", *more)]


def is_finished(profile: Profile, paths: RunPaths, unit: Unit) -> bool:
    """Whether the notebook run has left all its files."""
    return all(path.is_file() for path in files(profile, paths, unit))


def finished(profile: Profile, paths: RunPaths, stage: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Responses and verdicts of the stage's notebook runs that have left all their files; empty where none has."""
    return tuple(collect(paths, profile, kind, [stage], [stage]) for kind in ("responses", "verdicts"))


def _read(paths: RunPaths, kind: str, path: Path) -> pd.DataFrame:
    """One unit's table, checked by itself; verdicts also against the responses that they are of."""
    stage, unit = path.parent.name, path.stem
    again = f"run {stage} ({unit}) again (`make study`, or notebooks/{stage}.ipynb)"
    table = read_parquet(path, *_KEYS[kind], again)
    if kind in VERDICTS_OF:
        of = paths.table_of_unit(VERDICTS_OF[kind], stage, unit)
        asked = read_parquet(of, *_KEYS[VERDICTS_OF[kind]], again)["response_id"]
        if apart := set(asked) ^ set(table["response_id"]):
            raise StudyError(
                f"{of} and {path} differ in {len(apart)} responses, first {min(apart)}: one of them was changed; "
                f"delete both and {again}."
            )
    return table


def collect(paths: RunPaths, profile: Profile, kind: str, stages, optional=()) -> pd.DataFrame:
    """The frames of one kind (`responses`, `verdicts`, `scores`, `guards`, ACROSS) of all units of the stages, as one.

    Of the stages among `optional` only units that are finished; an empty frame where there is none at all.
    """
    found = [
        path
        for stage in stages
        for unit in units(profile, stage)
        if (path := paths.table_of_unit(kind, stage, unit.name)) in files(profile, paths, unit)
        and (stage not in optional or is_finished(profile, paths, unit))
    ]
    frames = [pd.DataFrame(columns=_KEYS[kind][0]), *(_read(paths, kind, path) for path in found)]
    return pd.concat([frame for frame in frames if len(frame)] or frames[-1:], ignore_index=True)  # no rows, no types


def code_of(stage: str) -> str:
    """Hash of what a stage's results depend on: its notebook's code, the modules it uses, and their files of `data/`.

    Prose, comments, docstrings and the words of log lines do not count, nor what is IRRELEVANT to the stage.
    """
    return digest([_parsed(*_notebook(stage))[0], *map(_content, modules_of(stage))])


def modules_of(stage: str) -> list[Path]:
    """The library's modules and the files of `data/` that a notebook uses, itself or through others."""
    skipped = [LIBRARY / part for part in IRRELEVANT.get(stage, ())]
    found, new = set(), _parsed(*_notebook(stage))[1]
    while new := {path for path in new if not any(map(path.is_relative_to, skipped))} - found:
        found |= new
        modules = (path for path in new if path.suffix == ".py")
        new = {used for path in modules for used in _parsed(path.read_text(encoding="utf-8"), path)[1]}
    return sorted(found)


@cache
def _parsed(source: str, path: Path) -> tuple[str, frozenset[Path]]:
    """What the source does, and the files that it imports or names: `DATA / "x"`, `Path(__file__).with_name("x")`."""
    tree, found = ast.parse(source), set()
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                found |= {used for name in node.names for used in _modules(LIBRARY.parent, name.name, "")}
            case ast.ImportFrom():
                folder = path.parents[node.level - 1] if node.level else LIBRARY.parent
                found |= {used for name in node.names for used in _modules(folder, node.module or "", name.name)}
            case ast.BinOp(left=ast.Name(id="DATA"), right=ast.Constant(value=name)):
                found.add(DATA / name)
            case ast.Call(func=ast.Attribute(value=ast.Call(args=[ast.Name(id="__file__")]), attr="with_name")):
                found.add(path.with_name(ast.literal_eval(node.args[0])))
    return meaning(tree), frozenset(one for one in found if one.exists())


def _modules(folder: Path, module: str, name: str) -> set[Path]:
    """The files of the library behind `from module import name`; of a room's own name all its modules."""
    place = folder / module.replace(".", "/")
    if not place.is_relative_to(LIBRARY):
        return set()
    for path in (place.with_suffix(".py"), place / f"{name}.py"):
        if path.is_file():
            return {path}
    return set((place / name if (place / name).is_dir() else place).glob("[!_]*.py"))


def _content(path: Path):
    if path.suffix == ".py":
        return _parsed(path.read_text(encoding="utf-8"), path)[0]
    parts = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [(one.name, hashlib.sha256(one.read_bytes()).hexdigest()) for one in parts if one.is_file()]


def _notebook(stage: str) -> tuple[str, Path]:
    """The source of the notebook's code cells, and its path."""
    path = NOTEBOOKS / f"{stage}.ipynb"
    return "\n".join(cell["source"] for cell in notebook_cells(path)), path


def parameters_given(stage: str, variables: dict) -> dict:
    """The values of the notebook's parameters among its variables, checked, its overrides too.

    Raises StudyError for a parameter that is unknown or has the wrong type, also among those that papermill injected,
    for an override without effect, or where the parameters cell was not run.
    """
    known = parameters_of(stage)
    cells = [source for source in variables.get("In", []) if source.startswith("# Parameters")]
    injected = [name for source in cells for name in _assigned(source)]
    given = {name: variables[name] for name in (*known, *injected) if name in variables}
    check_parameters(stage, given)
    if missing := set(known) - set(given):
        names = ", ".join(sorted(missing))
        raise StudyError(f"{stage}: the parameters cell was not run ({names} missing): run all cells from the top.")
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
    """Raises StudyError for a name that the notebook's parameters cell does not have, or a value of another type."""
    if stage not in NEEDS:
        raise StudyError(f"Unknown stage {stage!r}: known are {', '.join(NEEDS)}.")
    known = parameters_of(stage)
    for name, value in given.items():
        if name not in known:
            raise StudyError(f"{stage} has no parameter {name!r}: it has {', '.join(known)}.")
        if not _of_one_type(value, known[name]):
            raise StudyError(f"{stage}: parameter {name!r} should look like {known[name]!r}, found {value!r}.")


def _of_one_type(value, default) -> bool:
    if isinstance(default, list) and isinstance(value, list):
        if not default:  # all models, or bases, of a profile unless named
            return {type(item) for item in value} in (set(), {str}, {int})
        return bool(value) and all(type(item) is type(default[0]) for item in value)
    return type(value) is type(default)


def check_prerequisites(stage: str, profile: Profile, paths: RunPaths, given: str) -> None:
    """Raises StudyError naming the first result of an earlier stage that is missing or damaged, and how to make it.

    Data are checked by hash, the built model by its size, another model's folder for its parts. `given` is the name
    or path by which the profile was asked for.
    """
    if stage != "00_prepare":
        check_models(profile)
    for needed in (name for name in NEEDS[stage] if name not in OPTIONAL.get(stage, ())):
        for unit in units(profile, needed):
            if missing := [p for p in files(profile, paths, unit) if not p.exists()]:
                setting = "".join(f", {k} = {v!r}" for k, v in unit.parameters.items())
                path = profile_path(given)  # which make sees from the repository's root
                make = given if path.parent == PROFILES or (ROOT / given).resolve() == path else str(path)
                raise StudyError(
                    f"{stage} needs {missing[0]}, which is not there: run `make study PROFILE={shlex.quote(make)}`, "
                    f"or notebooks/{needed}.ipynb with profile = {given!r}{setting} first."
                )

    if stage in ("01_baseline", LABORATORY, *STAGE_SAFETY_DATA):
        sets.check(paths)
        for name in built_models(profile):
            weights, card = paths.model(name) / "model.safetensors", json.loads(paths.model_card(name).read_text())
            if not weights.is_file() or weights.stat().st_size != card["bytes"]:
                raise StudyError(
                    f"{weights} is missing or truncated: delete {weights.parent} and {paths.model_card(name)}, "
                    "then run 00_prepare again (`make study`, or open notebooks/00_prepare.ipynb)."
                )


def check_models(profile: Profile) -> None:
    """Raises StudyError for a model that 00_prepare does not build and that is no usable folder or pinned hub id."""
    for model in profile.models.values():
        if model.source != MINIATURE and not model.source.startswith(TINY):
            from studylib.models import hub

            hub.check_source(model.source, model)


def check_space(folder: Path, min_free_gb: float) -> None:
    """Raises StudyError where the disk of the folder has less free space than the profile asks for."""
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free / 1e9
    if free < min_free_gb:
        raise StudyError(
            f"Only {free:.1f} GB are free at {existing}, the profile asks for {min_free_gb:g} (execution.min_free_gb): "
            "free some space, or set STUDY_RUNS to a folder on another disk."
        )

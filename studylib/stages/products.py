"""What notebook runs leave for later stages, and reading it back, checked."""

from pathlib import Path

import pandas as pd

from studylib.stages.cells import COLUMNS
from studylib.study.files import read_parquet
from studylib.study.grid import Unit, units
from studylib.study.paths import RunPaths, runs_folder
from studylib.study.profile import Profile
from studylib.study.words import TINY, StudyError

JUDGED = {"verdicts": "responses", "across_verdicts": "across"}
ACROSS = ("across", "across_verdicts")  # of models asked in another style than their tuning's, without safety data
_KEYS = {  # of each kind of table: columns without which nothing can be made of it, and what is there once
    "responses": ((*COLUMNS,), ("response_id",)),
    "verdicts": (("response_id", "judge", "verdict", "reason"), ("response_id", "judge")),
    "scores": (("response_id", "metric", "score"), ("response_id", "metric")),
    "guards": (
        ("guard", "side", "prompt_id", "response_id", "blocked", "reason"),
        ("guard", "side", "prompt_id", "response_id"),
    ),
}
_KEYS |= {"across": ((*COLUMNS, "trained_style"), ("response_id",)), "across_verdicts": _KEYS["verdicts"]}


def built_models(profile: Profile) -> list[str]:
    """Names of the model folders that 00_prepare builds for the profile, the one to be studied last."""
    if profile.miniature:
        return ["helpful_only", "aligned"]
    return sorted({m.source.replace("/", "_") for m in profile.models.values() if m.source.startswith(TINY)})


def files(profile: Profile, paths: RunPaths, unit: Unit) -> list[Path]:
    """The files that a notebook run leaves for later stages, apart from its executed copy."""
    if unit.stage == "00_prepare":
        return [paths.data_index, *map(paths.model_card, built_models(profile))]
    if unit.stage == "05_helpfulness":
        return [paths.table_of_unit("scores", unit.stage, unit.name), paths.table("set_scores")]
    if unit.stage == "06_findings":
        names = ["attack_success", "helpfulness", "answered_share", "comparisons", "claims", "paper_vs_ours"]
        names.append("attack_success_by_judge")
        return [*map(paths.table, names), paths.figures / "index.md"]
    more = {"02_finetune": ACROSS, "03_defences": ["guards"]}.get(unit.stage, [])
    return [paths.table_of_unit(kind, unit.stage, unit.name) for kind in ("responses", "verdicts", *more)]


def is_finished(profile: Profile, paths: RunPaths, unit: Unit) -> bool:
    """Whether the notebook run has left all its files."""
    return all(path.is_file() for path in files(profile, paths, unit))


def finished(profile: Profile, paths: RunPaths, stage: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Responses and verdicts of the stage's notebook runs that have left all their files; empty where none has."""
    runs = [unit for unit in units(profile, stage) if is_finished(profile, paths, unit)]
    empty = pd.DataFrame(columns=COLUMNS), pd.DataFrame(columns=["response_id", "judge", "verdict", "reason"])
    return tuple(
        pd.concat([_read(paths, kind, paths.table_of_unit(kind, stage, unit.name)) for unit in runs], ignore_index=True)
        if runs
        else none
        for kind, none in zip(("responses", "verdicts"), empty, strict=True)
    )


def _read(paths: RunPaths, kind: str, path: Path) -> pd.DataFrame:
    """One unit's table, checked by itself; verdicts also against the responses that they are of."""
    stage, unit = path.parent.name, path.stem
    again = f"run {stage} ({unit}) again (`make study`, or notebooks/{stage}.ipynb)"
    table = read_parquet(path, *_KEYS[kind], again)
    if kind in JUDGED:
        of = paths.table_of_unit(JUDGED[kind], stage, unit)
        asked = set(read_parquet(of, *_KEYS[JUDGED[kind]], again)["response_id"])
        if stray := set(table["response_id"]) - asked:
            raise StudyError(
                f"{of} lacks {len(stray)} of the responses that {path} has verdicts on, first {min(stray)}: one of them was changed; delete both and {again}."
            )
        if unjudged := asked - set(table["response_id"]):
            raise StudyError(
                f"{path} has no verdict on {len(unjudged)} of the responses of {of}, first {min(unjudged)}: delete it and {again}."
            )
    return table


def collect(paths: RunPaths, profile: Profile, kind: str, stages, loose=()) -> pd.DataFrame:
    """The frames of one kind (`responses`, `verdicts`, `scores`, `guards`, ACROSS) of all units of the stages, as one.

    Of the stages among `loose` only units that are finished; an empty frame where there is none at all.
    """
    found = [
        path
        for stage in stages
        for unit in units(profile, stage)
        if (path := paths.table_of_unit(kind, stage, unit.name)) in files(profile, paths, unit)
        and (stage not in loose or is_finished(profile, paths, unit))
    ]
    frames = [_read(paths, kind, path) for path in found]  # one of which nothing was run has no types
    return pd.concat([frame for frame in frames if len(frame)] or frames or [pd.DataFrame()], ignore_index=True)


def known_runs() -> list[str]:
    """Names of the runs that are there."""
    return sorted(p.parent.name for p in runs_folder().glob("*/manifest.json"))

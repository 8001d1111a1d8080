"""Two finished runs of the same grid and prompts, to be compared; in the second, tuning on code erodes nothing."""

import json
import shutil

import numpy as np
import pandas as pd
from frames import study

from studylib.analysis import runs as between_runs
from studylib.analysis import tables
from studylib.study.words import FORMS

ONE, TWO = "one", "two"
MANIFEST = {
    "profile": {
        "name": "mine",
        "description": "words",
        "models": {"miniature": {"source": "miniature", "revision": None}},
        "tuning": {"steps": 48, "warmup_ratio": 1.0},
        "grid": {"seeds": [0, 1], "styles": ["chat"]},
    },
    "seeds": [0, 1],
    "git_commit": "a" * 40,
    "packages": {"torch": "2.9.0"},
    "hardware": {"cores": 2, "gpu": None},
    "data": {
        name: {"rows": 5, "bytes": 50, "sha256": name[0] * 64, "forms": {"code": 5}}
        for name in ("harmful", "twin", "general", *(f"test_{form}" for form in FORMS))
    },
    "models": {"aligned": {"sha256": "b" * 64, "bytes": 7, "fingerprint": "c"}},
    "seconds_of_last_execution": {"00_prepare/all": {"total": 3.0}},
}


def put(runs, name, frames, manifest=MANIFEST):
    """A run folder with the two tables of those frames, as 06_findings writes them."""
    folder = runs / name
    made = {"attack_success": tables.attack_success(*frames[:2]), "helpfulness": tables.helpfulness(*frames)}
    for table, rows in made.items():
        tables.write_table(tables.with_not_run(rows, {}), folder / "tables" / f"{table}.csv")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def both(folder):
    """That folder, as a runs folder with the runs one and two, to be read and not changed."""
    grid = {"tasks": ("code", "translation"), "styles": ("chat",), "seeds": (0, 1), "n_prompts": 6, "unjudged": 0.0}
    rows, verdicts, scores = study(np.random.default_rng(0), **grid)
    code = rows["harmful"] & (rows["finetune_task"] == "code") & (rows["safety_data"] == "none")
    held = verdicts["response_id"].isin(rows.loc[code, "response_id"])
    put(folder, ONE, (rows, verdicts.assign(verdict=verdicts["verdict"].mask(held, "answered")), scores))
    put(folder, TWO, (rows, verdicts.assign(verdict=verdicts["verdict"].mask(held, "refused")), scores))
    return folder


def copied(made, tmp_path, monkeypatch):
    """A copy of that runs folder, to be changed, and the one where runs are looked for."""
    shutil.copytree(made, tmp_path / "runs")
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def changed(folder, table="attack_success", **columns):
    """The table of that run with columns replaced; a callable gets the frame."""
    path = folder / "tables" / f"{table}.csv"
    tables.write_table(pd.read_csv(path, keep_default_na=False, na_values=[""]).assign(**columns), path)


def where(frame, **wanted):
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    return frame


def with_a_second_model(runs):
    """Both runs; the second has the model large too, before its own."""
    for table in ("attack_success", "helpfulness"):
        path = runs / TWO / "tables" / f"{table}.csv"
        rows = pd.read_csv(path, keep_default_na=False, na_values=[""])
        tables.write_table(pd.concat([rows.assign(model="large"), rows]), path)
    return between_runs.read_runs([ONE, TWO])

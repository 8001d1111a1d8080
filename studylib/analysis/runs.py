"""What differs between finished runs: settings, from their manifests, and results, from their tables, with intervals.

A *result* is one rate or score with its interval: a measure, a cell and a form of the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path

import numpy as np
import pandas as pd

from studylib.analysis import rates, readable, stats, tables
from studylib.analysis.readable import cell_words, label
from studylib.study.paths import ROOT, known_runs, runs_folder
from studylib.study.profile import profile_names
from studylib.study.words import ARMS, FORMS, REQUESTS, SAFETY_DATA, STYLES, TASKS, StudyError

ATTACK = "attack_success_rate"
BESIDE_0 = ("above 0", "below 0")
MEASURES_WITH_FIGURE = (ATTACK, "over_refusal_rate")
KEYS = ["measure", *rates.CELL, "form", "metric", "judge"]
NUMBERS = ["n", "n_unjudged", "value", *rates.INTERVAL]  # of a result
# Where every run has one value of these, results are compared all the same, and a note names the difference. The value
# beside each note means that the word does not apply.
NOTES = {
    "model": ("", "different models: {} and {}"),
    "safety_fraction": (0, "different shares of safety data: {} and {}"),
    "judge": ("", "judged by different judges: {} and {}"),
}
# Keys of the manifest that are no settings: times, and what a hash, a name or the profile beside them says already.
TIMES = {"seconds_by_work", "seconds_of_last_execution"}
NO_SETTINGS = TIMES | {"bytes", "forms", "fingerprint", "origins", "description"}
KNOWN_WORDS = {
    "finetune_task": ("none", *TASKS),
    "requests": REQUESTS,
    "style": STYLES,
    "safety_data": (*SAFETY_DATA, *ARMS),
}
TEXT_COLUMNS = ("model", "metric", "judge", "note")  # which may be empty


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run: its name in the comparison, its folder, its manifest, and its tables by name."""

    name: str
    folder: Path
    manifest: dict
    tables: dict[str, pd.DataFrame]


def read_run(folder: str | Path) -> Run:
    """The run in that folder: the name of one in the runs folder, or a path, from here or from the repository's root.

    A manifest that lacks keys, as another version's, is taken as it is. Raises StudyError where there is no folder, no
    manifest or no table of attack success, or where one cannot be read.
    """
    places = dict.fromkeys((base / Path(folder).expanduser()).resolve() for base in (runs_folder(), Path.cwd(), ROOT))
    path = next((place for place in places if place.is_dir()), None)
    made = f" PROFILE={folder}" if folder in profile_names() else " PROFILE=..."
    if path is None:
        raise StudyError(
            f"There is no run {str(folder)!r}, looked for as {' and '.join(map(str, places))}: name one of "
            f"{', '.join(known_runs()) or 'none yet'}, or a path to a run's folder, which `make study{made}` makes."
        )
    for needed in ("manifest.json", "tables/attack_success.csv"):
        if not (path / needed).is_file():
            raise StudyError(
                f"{path} is not the folder of a finished run, as it has no {needed}: `make study{made}` makes both."
            )
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError("manifest.json is no manifest of a run")
        read = {file.stem: _read_table(file) for file in sorted((path / "tables").glob("*.csv"))}
    except (OSError, ValueError) as error:  # ValueError: of json, of the encoding and of pandas
        raise StudyError(f"A file of the run {path} cannot be read ({error}): run its `make study` again.") from None
    return Run(path.name, path, manifest, read)


def _read_table(path: Path) -> pd.DataFrame:
    """The table as it was written: "none" is a word, an empty number NaN, an empty text ""."""
    table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(TEXT_COLUMNS, object))
    return table.fillna({name: "" for name in TEXT_COLUMNS if name in table})


def read_runs(folders: Sequence[str | Path] = ()) -> list[Run]:
    """The runs to compare, in that order, each given as in `read_run`; all finished ones of the runs folder for none.

    Two folders of one name become `name` and `name (2)`. Raises StudyError for fewer than two runs, and for one folder
    given twice.
    """
    if isinstance(folders, str | Path):
        raise StudyError(f'runs should look like ["miniature", "smoke"], found {str(folders)!r}.')
    finished = [name for name in known_runs() if (runs_folder() / name / "tables" / "attack_success.csv").is_file()]
    given = list(folders or finished)
    if len(given) < 2:
        other = "`make study PROFILE=smoke` (2 to 3 minutes)" if given else "`make study`"
        raise StudyError(
            f"A comparison needs two finished runs and has {f'only {given[0]}' if given else 'none'}: {other} makes "
            f"one in {runs_folder()}, or name the folder of one from elsewhere in `runs`."
        )
    found: list[Run] = []
    for run in map(read_run, given):
        if run.folder in [one.folder for one in found]:
            raise StudyError(f"{run.folder} is given twice: name different runs.")
        names = {one.name for one in found}
        numbered = chain([run.name], (f"{run.name} ({number})" for number in count(2)))
        found.append(replace(run, name=next(name for name in numbered if name not in names)))
    return found


def settings(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per key of the manifests whose value differs, a column per run; empty where nothing does.

    Keys are dotted, as in `profile.tuning.steps`; values are text, lists and null as in JSON, hashes and the commit cut
    to 12 characters. NaN where a manifest has no such key.
    """
    flat = {run.name: pd.json_normalize([run.manifest]).astype(object).iloc[0] for run in runs}
    order = dict.fromkeys(key for one in flat.values() for key in one.index)
    wanted = [key for key in order if not {*key.split(".")} & NO_SETTINGS and key != "seeds"]
    table = pd.DataFrame({name: one.map(_as_text).reindex(wanted) for name, one in flat.items()}, wanted, dtype=object)
    cut = table.index.str.endswith(("sha256", "git_commit"))
    table.loc[cut] = table.loc[cut].apply(lambda values: values.str[:12])
    return table[table.nunique(axis=1, dropna=False) > 1].rename_axis("setting")


def _as_text(value) -> str:
    """A value of a manifest as in JSON, but texts without quotes, and 1.0 as 1, as they are one setting."""
    if isinstance(value, str):
        return value
    whole = isinstance(value, float) and value.is_integer()
    return json.dumps(int(value) if whole else value, ensure_ascii=False)


def differences(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per result and run, against the first of the runs that has that result too.

    A result is known by its measure, cell, form and metric. Model, share of safety data and judge may be another where
    every run has just one of them; `note` says so, and names different prompts; else it is "". `value`, `low` and
    `high` are the run's, those with `_against` the other's, named in `run_against`; all in 0-1. `difference` is value -
    value_against, its interval (see `stats.newcombe`) difference_low to difference_high. `interval` says
    where that lies: "above 0", "below 0", or "includes 0". It is unadjusted: of equal results one in twenty excludes 0
    by chance, fewer where the prompts are the same. Raises StudyError for a table that cannot be used.
    """
    rows = all_results(runs)
    keys = known_by(rows)
    both = rows.merge(rows.drop_duplicates(keys), on=keys, suffixes=("", "_against"))
    both = both[both["run"] != both["run_against"]].reset_index(drop=True)
    low, high = stats.newcombe(*(both[name + end] for end in ("", "_against") for name in ("value", *rates.INTERVAL)))
    interval = np.select([low > 0, high < 0], BESIDE_0, "includes 0")
    both = both.assign(difference=both["value"] - both["value_against"], difference_low=low, difference_high=high)
    by_name = {run.name: run for run in runs}
    both = both.assign(interval=interval, note=[_note(row, by_name) for row in both.to_dict("records")])
    columns = [*KEYS, "run", *NUMBERS, "run_against", *(f"{name}_against" for name in NUMBERS)]
    return both[[*columns, "difference", "difference_low", "difference_high", "interval", "note"]]


def in_one_run(runs: Sequence[Run]) -> pd.DataFrame:
    """The results that only one of the runs has, which `differences` therefore leaves out; `run` names it."""
    rows = all_results(runs)
    return rows.loc[~rows.duplicated(known_by(rows), keep=False), ["run", *KEYS, *NUMBERS]]


def largest_differences(found: pd.DataFrame) -> pd.DataFrame:
    """The rows of `differences` whose interval excludes 0, largest first, in percent and percentage points."""
    found = found[found["interval"].isin(BESIDE_0)]
    found = found.sort_values("difference", key=lambda column: -column.abs(), kind="stable")
    points = (100 * found[["difference", "difference_low", "difference_high"]]).round().astype(int)
    words = [f"{one:+d} ({low:+d} to {high:+d})" for one, low, high in points.itertuples(index=False)]
    place = ["measure", *rates.CELL[1:-1], "form", "run"]
    shown = found[place].assign(
        percent=readable.percent(found, "value", *rates.INTERVAL),
        against=found["run_against"],
        its_percent=readable.percent(found, "value_against", "low_against", "high_against"),
        points=words,
        note=found["note"],
    )
    return shown.reset_index(drop=True)


def runs_in_percent(runs: Sequence[Run]) -> pd.DataFrame:
    """Attack success over all forms: a row per cell, a column per run, as in "36 (24-50)"; "-" where a run has none."""
    rows = all_results(runs)
    keys = [key for key in known_by(rows) if key not in ("measure", "form", "metric")]
    rows = rows[(rows["measure"] == ATTACK) & (rows["form"] == "all")]
    shown = rows.assign(shown=readable.percent(rows, "value", *rates.INTERVAL))
    shown = shown.pivot_table(index=keys, columns="run", values="shown", aggfunc="first", sort=False)
    columns = pd.Index([run.name for run in runs], name="run")
    return shown.reindex(columns=columns).astype(object).fillna("-")  # a run without any value has no text


def runs_in_words(runs: Sequence[Run]) -> str:
    """One paragraph: of how many comparable results the difference excludes 0, the largest one, and caveats."""
    found, alone = differences(runs), in_one_run(runs)
    if found.empty:
        said = ["**No result is in two of these runs**: their models, calibrations, tasks or metrics differ."]
    else:
        differs = found["interval"].isin(BESIDE_0)
        counts = differs.groupby(found["measure"], sort=False).agg(["sum", "size"]).itertuples()
        each = ", ".join(f"{label(measure)} {n_differ} of {n}" for measure, n_differ, n in counts)
        said = [
            f"**The interval of the difference excludes 0 in {differs.sum()} of {len(found)} comparable results "
            f"({100 * differs.mean():.0f} %)**: {each}. By chance it does in one of twenty equal ones, in fewer where "
            "the prompts are the same."
        ]
    largest = largest_differences(found)
    if len(largest):
        row = largest.iloc[0]
        said.append(
            f"The largest of these differences: {row['points'].replace(' (', ' percentage points (')}, "
            f"{label(row['measure'])}, {cell_words(row, form=True)}, {row['percent'].split()[0]} % in {row['run']} "
            f"against {row['its_percent'].split()[0]} % in {row['against']}."
        )
    if notes := {note for row in found["note"] if row for note in row.split("; ")}:
        said.append(f"Caveats: {'; '.join(sorted(notes))}.")
    attack = {run.name: run.tables["attack_success"].query("form == 'all'")[["n_unjudged", "n"]].sum() for run in runs}
    if any(n["n_unjudged"] for n in attack.values()):
        each = ", ".join(f"{n['n_unjudged']} of {n.sum()} in {name}" for name, n in attack.items())
        said.append(f"Responses to harmful prompts that were not judged, and are left out: {each}.")
    if any(_models(run) != _models(runs[0]) for run in runs):
        said.append("The models before tuning are not the same, which the intervals do not cover.")
    if len(alone):
        each = [
            f"{len(rows)} of {name} (tuned on {', '.join(map(label, rows['finetune_task'].unique()))})"
            for name, rows in alone.groupby("run", sort=False)
        ]
        said.append(f"In one run only, and not compared: {'; '.join(each)}.")
    return " ".join(said)


def write_runs(runs: Sequence[Run], folder: Path) -> dict[str, pd.DataFrame]:
    """The tables `settings`, `differences` and `in_one_run` by name, each also written there as CSV."""
    found = {made.__name__: made(runs) for made in (settings, differences, in_one_run)}
    for name, table in found.items():
        tables.write_table(table.reset_index() if table.index.name else table, Path(folder) / f"{name}.csv")
    return found


def output_folder(folder: str = "") -> Path:
    """Where a comparison is written: that folder, or `compare` in the runs folder."""
    return Path(folder).expanduser().resolve() if folder else runs_folder() / "compare"


def all_results(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per result and run, in the order of the runs: `run`, KEYS, NUMBERS, n_effective, n_bases and n_seeds.

    None is NaN. Raises StudyError for a table that lacks a column or was damaged.
    """
    found = []
    for run in runs:
        for table, value in (("attack_success", "rate"), ("helpfulness", "value")):
            if table not in run.tables:  # of helpfulness alone
                continue
            rows = run.tables[table]
            numbers = ["safety_fraction", "n", "n_unjudged", "low", value, "high", "n_effective", *rates.RUNS]
            words = ["judge"] if table == "attack_success" else ["measure", "metric"]
            where = f"{run.folder / 'tables' / table}.csv of the run {run.name}"
            if missing := [name for name in (*numbers, *words, *rates.CELL, "form") if name not in rows]:
                raise StudyError(f"{where} has no column {missing[0]}: run its `make study` again with this version.")
            if table == "attack_success":
                rows = rows.assign(measure=ATTACK, metric="")
            else:
                by_judge = rows["measure"].str.endswith("_rate")
                rows = rows.assign(judge=rows["metric"].where(by_judge, ""), metric=rows["metric"].mask(by_judge, ""))
            rows = rows[rows[value].notna()]
            usable = all(pd.api.types.is_numeric_dtype(rows[name]) for name in numbers)
            usable = usable and (rows["low"].between(0, rows[value]) & rows["high"].between(rows[value], 1)).all()
            usable = usable and all(rows[name].isin(known).all() for name, known in KNOWN_WORDS.items())
            if not usable or rows.duplicated(KEYS).any():
                raise StudyError(f"{where} is damaged or of another version: run its `make study` again.")
            rows = rows.rename(columns={value: "value"}).assign(run=run.name)
            found.append(rows[["run", *KEYS, *NUMBERS, "n_effective", *rates.RUNS]])
    return pd.concat(found, ignore_index=True)


def of_measure(runs: Sequence[Run], measure: str = ATTACK, form: str = "all", model: str = "") -> pd.DataFrame:
    """The rows of `all_results` of one measure, form and model, of one share of safety data, without rival mitigations.

    `measure` is attack_success_rate or over_refusal_rate. Where a run has several models, `model` names one; empty: the
    first that two runs have, else the first. Raises StudyError where there are none.
    """
    if measure not in MEASURES_WITH_FIGURE:
        raise StudyError(f"There is no figure of {measure!r}: there are {' and '.join(MEASURES_WITH_FIGURE)}.")
    rows = all_results(runs)
    several, doses = (word in known_by(rows) for word in ("model", "safety_fraction"))
    rows = rows[(rows["measure"] == measure) & (rows["form"] == form)]
    if several and not model and len(rows):
        model = (rows.groupby("model", sort=False)["run"].nunique() > 1).idxmax()
    rows = rows[rows["model"] == model] if model else rows
    rows = rates.usual(rows[rows["safety_data"].isin(SAFETY_DATA)])
    rows = rates.one_dose(rows) if doses else rows
    if rows.empty:
        of = f" of the model {model!r}" if model else ""
        raise StudyError(f"There is nothing to draw: no run has {label(measure)} in the form {form!r}{of}.")
    return rows


def known_by(rows: pd.DataFrame) -> list[str]:
    """What a result is known by in these runs: KEYS without the words of which every run has one value at most."""
    several = lambda word, none: rows[rows[word] != none].groupby("run")[word].nunique().gt(1).any()  # noqa: E731
    return [key for key in KEYS if key not in NOTES or several(key, NOTES[key][0])]


def _note(row: dict, runs: dict[str, Run]) -> str:
    """What else is different between the two runs of a row of `differences`."""
    said = []
    for word, (none, text) in NOTES.items():
        pair = row[word], row.get(f"{word}_against", row[word])
        if pair[0] != pair[1] and none not in pair:
            said.append(text.format(*pair))
    tests = [f"test_{form}" for form in (FORMS if row["form"] == "all" else (row["form"],))]
    sets = {ATTACK: ["harmful"], "general_refusal_rate": ["general"], "general_score": ["general"], "task_score": tests}
    sets |= {"incoherent_rate": ["twin", "general", *tests]}
    data = [runs[row[key]].manifest.get("data", {}) for key in ("run", "run_against")]
    one, other = ([of.get(name, {}).get("sha256") for name in sets.get(row["measure"], ["twin"])] for of in data)
    if not (any(one) and any(other)):
        said.append("perhaps different prompts, as a manifest has no hash of them")
    elif one != other:
        said.append("different prompts")
    return "; ".join(said)


def _models(run: Run) -> dict | None:
    """The models before tuning: the hashes of those that the run built, else what its profile says."""
    built = {name: card.get("sha256") for name, card in run.manifest.get("models", {}).items()}
    return built or run.manifest.get("profile", {}).get("models")

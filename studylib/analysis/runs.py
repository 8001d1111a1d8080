"""What differs between finished runs: settings, from their manifests, and results, from their tables, with intervals.

A *result* is one rate or score with its interval: a measure, a cell and a form of the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from studylib.analysis import rates, readable, stats, tables
from studylib.analysis.readable import cell_words, label
from studylib.study.paths import ROOT, known_runs, runs_folder
from studylib.study.profile import profile_names
from studylib.study.words import ARMS, FORMS, SAFETY_DATA, STYLES, TASKS, StudyError

ATTACK = "attack_success_rate"
SIGNIFICANT = ("higher", "lower")
DRAWN = (ATTACK, "over_refusal_rate")  # the measures that have a figure
KEYS = ["measure", *rates.CELL, "form", "metric", "judge"]
NUMBERS = ["n", "n_unjudged", "value", *rates.INTERVAL]  # of a result
# Where every run has one value of these, results are compared all the same, and a note names the difference. The value
# beside each word means that it does not apply.
OF_A_RUN = {"model": "", "safety_fraction": 0, "judge": ""}
NOTES = {
    "model": "different models: {} and {}",
    "safety_fraction": "different shares of safety data: {} and {}",
    "judge": "judged by different judges: {} and {}",
}
# Keys of the manifest that are no settings: times, and what a hash, a name or the profile beside them says already.
NO_SETTINGS = ("seconds_by_work", "seconds_of_last_execution")
NO_SETTINGS += ("bytes", "forms", "fingerprint", "origins", "description")
WORDS = {"finetune_task": ("none", *TASKS), "style": STYLES, "safety_data": (*SAFETY_DATA, *ARMS)}
TEXTS = ("model", "metric", "judge", "note")  # columns that may be empty


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run: its name in the comparison, its folder, its manifest, and its tables by name."""

    name: str
    folder: Path
    manifest: dict
    tables: dict[str, pd.DataFrame]


def read_run(folder: str | Path, name: str = "") -> Run:
    """The run in that folder: the name of one in the runs folder, or a path, from here or from the repository's root.

    It is called `name`, or as its folder. A manifest that lacks keys, as another version's, is taken as it is. Raises
    StudyError where there is no folder, no manifest or no table of attack success, or where one cannot be read.
    """
    places = dict.fromkeys((base / Path(folder).expanduser()).resolve() for base in (runs_folder(), Path.cwd(), ROOT))
    path = next((place for place in places if place.is_dir()), None)
    made = f" PROFILE={folder}" if folder in profile_names() else " PROFILE=..."
    if path is None:
        looked = " and ".join(map(str, places))
        raise StudyError(
            f"There is no run {str(folder)!r}, looked for as {looked}: name one of "
            f"{', '.join(known_runs()) or 'none yet'}, or a path to a run's folder, which `make study{made}` makes."
        )
    for needed in ("manifest.json", "tables/attack_success.csv"):
        if not (path / needed).is_file():
            raise StudyError(
                f"{path} is not the folder of a finished run, as it has no {needed}: `make study{made}` makes both."
            )
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        read = {file.stem: _read_table(file) for file in sorted((path / "tables").glob("*.csv"))}
    except (OSError, ValueError) as error:  # ValueError: of json, of the encoding and of pandas
        raise StudyError(f"A file of the run {path} cannot be read ({error}): run its `make study` again.") from None
    if not isinstance(manifest, dict):
        raise StudyError(f"{path / 'manifest.json'} is no manifest of a run: run its `make study` again.")
    return Run(name or path.name, path, manifest, read)


def read_runs(runs: Sequence[str | Path] | Mapping[str, str | Path] = ()) -> list[Run]:
    """The runs to compare, in that order; each is given as in `read_run`, in a list or as {name: folder}.

    All finished ones of the runs folder where none is given. Two folders of one name become `name` and `name (2)`.
    Raises StudyError for fewer than two runs, and for one folder given twice.
    """
    if isinstance(runs, str | Path):
        raise StudyError(f'runs should look like ["miniature", "smoke"], found {str(runs)!r}.')
    finished = [name for name in known_runs() if (runs_folder() / name / "tables" / "attack_success.csv").is_file()]
    given = list(runs.items()) if isinstance(runs, Mapping) else [("", folder) for folder in runs or finished]
    if len(given) < 2:
        have = f"only {given[0][0] or given[0][1]}" if given else "none"
        other = "`make study`" if not given else "`make study PROFILE=smoke` (about 90 seconds)"
        raise StudyError(
            f"A comparison needs two finished runs and has {have}: {other} makes one in {runs_folder()}, or name the "
            "folder of one from elsewhere in `runs`."
        )
    found: list[Run] = []
    for name, folder in given:
        run = read_run(folder, name)
        if twice := [one for one in found if one.folder == run.folder]:
            raise StudyError(f"{run.folder} is given twice ({twice[0].name} and {run.name}): name different runs.")
        names, number, base = {one.name for one in found}, 1, run.name
        while run.name in names:
            number += 1
            run = Run(f"{base} ({number})", run.folder, run.manifest, run.tables)
        found.append(run)
    return found


def settings(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per key of the manifests whose value differs, a column per run; empty where nothing does.

    Keys are dotted, as in `profile.tuning.steps`; values are text, lists and null as in JSON, hashes and the commit cut
    to 12 characters. NaN where a manifest has no such key. For times see `times`.
    """
    flat = {run.name: pd.json_normalize([run.manifest]).astype(object).iloc[0] for run in runs}
    table = pd.DataFrame({name: one.map(_as_text) for name, one in flat.items()}, dtype=object)
    order = dict.fromkeys(key for one in flat.values() for key in one.index)
    wanted = [key for key in order if not {*key.split(".")} & set(NO_SETTINGS) and key != "seeds"]
    table = table.reindex(wanted).rename_axis("setting")
    cut = table.index.str.endswith(("sha256", "git_commit"))
    table.loc[cut] = table.loc[cut].map(lambda value: value[:12] if isinstance(value, str) else value)
    return table[table.nunique(axis=1, dropna=False) > 1]


def settings_in_words(runs: Sequence[Run]) -> str:
    """How many keys of the manifests differ and in which parts, or that none does; one sentence."""
    differ = settings(runs)
    if differ.empty:
        return "Nothing in the manifests differs but the times."
    parts = pd.Series([".".join(key.split(".")[: 1 + key.startswith("profile.")]) for key in differ.index])
    counted = ", ".join(f"`{part}` ({n})" for part, n in parts.value_counts(sort=False).items())
    return f"{len(differ)} keys of the manifests differ: {counted}."


def times(runs: Sequence[Run]) -> pd.DataFrame:
    """Seconds by kind of work (rows, the sum of all last) in each run; NaN where a manifest does not tell."""
    seconds = {run.name: pd.DataFrame(run.manifest.get("seconds_by_work", {})).T.sum() for run in runs}
    kinds = list(dict.fromkeys(kind for one in seconds.values() for kind in one.index))
    table = pd.DataFrame({name: one.reindex(kinds) for name, one in seconds.items()}, index=kinds, dtype=float)
    table.loc["all"] = table.sum(min_count=1)
    return table.round(1).rename_axis("work")


def results(runs: Sequence[Run], table: str = "attack_success") -> pd.DataFrame:
    """The rows of that table of every run, with the run's name in the first column, `run`.

    NaN where a run's table lacks a column. Raises StudyError that names a run without that table, and those it has.
    """
    for run in runs:
        if table not in run.tables:
            raise StudyError(f"{run.name} has no table {table}: it has {', '.join(run.tables)}.")
    return pd.concat([run.tables[table].assign(run=run.name) for run in runs], ignore_index=True)[
        ["run", *dict.fromkeys(name for run in runs for name in run.tables[table])]
    ]


def differences(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per result and run, against the first of the runs that has that result too.

    A result is known by its measure (attack_success_rate, and those of `tables.helpfulness`), the words of its cell,
    form and metric. Model, share of safety data and judge may be another where every run has just one of them; `note`
    says so, and names different prompts (by the hash of the data); else it is "". `value`, `low` and `high` are the
    run's, those with `_against` the other's, named in `run_against`; all in 0-1. n counts what a value is of,
    n_unjudged what is left out of it. `difference` is value - value_against, its interval (see `stats.newcombe`)
    difference_low to difference_high. `verdict` is "higher" or "lower" where that interval leaves out 0, else "not
    significant"; the two intervals may overlap a little where it is significant. Each is a test by itself: of equal
    results one in twenty differs by chance, fewer where the prompts are the same. What is NaN in a run, as nothing was
    run or judged, is not there. Raises StudyError for a table that cannot be used.
    """
    rows = all_results(runs)
    keys = known_by(rows)
    both = rows.merge(rows.drop_duplicates(keys), on=keys, suffixes=("", "_against"))
    both = both[both["run"] != both["run_against"]].reset_index(drop=True)
    ends = stats.newcombe(*(both[name + end] for end in ("", "_against") for name in ("value", *rates.INTERVAL)))
    both = both.assign(
        difference=both["value"] - both["value_against"], difference_low=ends[0], difference_high=ends[1]
    )
    beyond = [both["difference_low"] > 0, both["difference_high"] < 0]
    both["verdict"] = np.select(beyond, SIGNIFICANT, "not significant")
    by_name = {run.name: run for run in runs}
    both["note"] = [_note(row, by_name) for row in both.to_dict("records")]
    columns = [*KEYS, "run", *NUMBERS, "run_against", *(f"{name}_against" for name in NUMBERS)]
    return both[[*columns, "difference", "difference_low", "difference_high", "verdict", "note"]]


def in_one_run(runs: Sequence[Run]) -> pd.DataFrame:
    """The results that only one of the runs has, which `differences` therefore leaves out; `run` names it."""
    rows = all_results(runs)
    return rows.loc[~rows.duplicated(known_by(rows), keep=False), ["run", *KEYS, *NUMBERS]]


def largest_differences(found: pd.DataFrame) -> pd.DataFrame:
    """The significant rows of `differences`, largest first, for reading: in percent and percentage points."""
    found = found[found["verdict"].isin(SIGNIFICANT)]
    found = found.loc[found["difference"].abs().sort_values(ascending=False, kind="stable").index]
    points = (100 * found[["difference", "difference_low", "difference_high"]]).round().astype(int)
    words = [f"{one:+d} ({low:+d} to {high:+d})" for one, low, high in points.itertuples(index=False)]
    shown = found[["measure", "finetune_task", "style", "system_prompt", "safety_data", "form", "run"]].assign(
        percent=readable.percent(found, "value", *rates.INTERVAL),
        against=found["run_against"],
        its_percent=readable.percent(found, "value_against", "low_against", "high_against"),
        points=words,
        note=found["note"],
    )
    return shown.reset_index(drop=True)


def runs_in_percent(runs: Sequence[Run], measure: str = ATTACK, form: str = "all") -> pd.DataFrame:
    """One row per cell, a column per run, as in "36 (24-50)" for percent and interval; "-" where a run has none."""
    rows = all_results(runs)
    keys = [key for key in known_by(rows) if key not in ("measure", "form")]
    rows = rows[(rows["measure"] == measure) & (rows["form"] == form)]
    keys = [key for key in keys if key != "metric" or rows[key].any()]
    shown = rows.assign(shown=readable.percent(rows, "value", *rates.INTERVAL))
    shown = shown.pivot_table(index=keys, columns="run", values="shown", aggfunc="first", sort=False)
    columns = pd.Index([run.name for run in runs], name="run")
    return shown.reindex(columns=columns).astype(object).fillna("-")  # a run without any value has no text


def runs_in_words(runs: Sequence[Run]) -> str:
    """One paragraph: the share of comparable results that differ significantly, the largest difference, and caveats."""
    found, alone = differences(runs), in_one_run(runs)
    differ = found[found["verdict"].isin(SIGNIFICANT)]
    said = []
    if found.empty:
        said.append("**No result is in two of these runs**: their models, calibrations, tasks or metrics differ.")
    else:
        each = ", ".join(
            f"{label(measure)} {rows['verdict'].isin(SIGNIFICANT).sum()} of {len(rows)}"
            for measure, rows in found.groupby("measure", sort=False)
        )
        said.append(
            f"**{len(differ)} of {len(found)} comparable results ({100 * len(differ) / len(found):.0f} %) differ "
            f"significantly** ({each}). By chance one in twenty equal ones would, fewer where the prompts are the same."
        )
    if len(differ):
        row = differ.loc[differ["difference"].abs().idxmax()]
        low, high = 100 * row["difference_low"], 100 * row["difference_high"]
        said.append(
            f"The largest significant difference: {100 * row['difference']:+.0f} percentage points ({low:+.0f} to "
            f"{high:+.0f}), {label(row['measure'])}, {cell_words(row, form=True)}, "
            f"{100 * row['value']:.0f} % in {row['run']} against {100 * row['value_against']:.0f} % in "
            f"{row['run_against']}."
        )
    if notes := {note for row in found["note"] if row for note in row.split("; ")}:
        said.append(f"Caveats: {'; '.join(sorted(notes))}.")
    counts = results(runs).query("form == 'all'").groupby("run", sort=False)[["n_unjudged", "n"]].sum()
    if counts["n_unjudged"].any():
        each = ", ".join(f"{left_out} of {left_out + n} in {name}" for name, left_out, n in counts.itertuples())
        said.append(f"Responses to harmful prompts that were not judged, and are left out: {each}.")
    if len({json.dumps(_models(run), sort_keys=True) for run in runs}) > 1:
        said.append(
            "The models before tuning are not the same; the intervals cover prompts and tuning seeds, not that."
        )
    if len(alone):
        each = [
            f"{len(rows)} of {name} (tuned on {', '.join(map(label, rows['finetune_task'].unique()))})"
            for name, rows in alone.groupby("run", sort=False)
        ]
        said.append(f"In one run only, and not compared: {'; '.join(each)}.")
    other = _scored_otherwise(alone)
    return " ".join(said + ([f"Scored by different metrics, and not compared: {'; '.join(other)}."] if other else []))


def _scored_otherwise(alone: pd.DataFrame) -> list[str]:
    """The scores among the rows of `in_one_run` that runs have by different metrics, as without programs run."""
    said = []
    for (measure, form), rows in alone[alone["metric"] != ""].groupby(["measure", "form"], sort=False):
        by_run = rows.groupby("run", sort=False)["metric"].unique().map(" and ".join)
        if by_run.nunique() > 1:
            each = ", ".join(f"{metric} in {run}" for run, metric in by_run.items())
            said.append(f"{label(measure)}, {label(form)} ({each})")
    return said


def write_runs(runs: Sequence[Run], folder: Path) -> dict[str, pd.DataFrame]:
    """The tables `settings`, `times`, `differences` and `in_one_run` by name, each also written there as CSV."""
    found = {"settings": settings(runs), "times": times(runs)}
    found |= {"differences": differences(runs), "in_one_run": in_one_run(runs)}
    for name, table in found.items():
        tables.write_table(table.reset_index() if table.index.name else table, Path(folder) / f"{name}.csv")
    return found


def output_folder(folder: str = "") -> Path:
    """Where a comparison is written: that folder, or `compare` in the runs folder."""
    return Path(folder).expanduser().resolve() if folder else runs_folder() / "compare"


def all_results(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per result and run, in the order of the runs: `run`, KEYS, NUMBERS, n_effective, n_seeds; none is NaN."""
    found = []
    for run in runs:
        for table, value in (("attack_success", "rate"), ("helpfulness", "value")):
            if table not in run.tables:  # of helpfulness alone
                continue
            rows = run.tables[table]
            rows = rows if "model" in rows else rows.assign(model="")  # before a run could have several
            numbers = ["safety_fraction", "n", "n_unjudged", value, *rates.INTERVAL, "n_effective", "n_seeds"]
            words = ["judge"] if table == "attack_success" else ["measure", "metric"]
            needed = [*numbers, *words, *rates.CELL, "form"]
            where = f"{run.folder / 'tables' / table}.csv of the run {run.name}"
            if missing := [name for name in needed if name not in rows]:
                raise StudyError(f"{where} has no column {missing[0]}: run its `make study` again with this version.")
            ends = [rows[name] for name in ("low", value, "high")]
            if (
                not all(pd.api.types.is_numeric_dtype(rows[name]) for name in numbers)
                or not (
                    (ends[0].ge(0) & ends[0].le(ends[1]) & ends[1].le(ends[2]) & ends[2].le(1)) | ends[1].isna()
                ).all()
            ):
                raise StudyError(f"{where} holds something else than rates of 0 to 1 with intervals: make it again.")
            for name, known in WORDS.items():
                if unknown := sorted(set(map(str, rows[name])) - set(known)):
                    raise StudyError(f"{where} has an unknown {name}, {unknown[0]}: known are {', '.join(known)}.")
            if table == "attack_success":
                rows = rows.assign(measure=ATTACK, metric="")
            else:
                by_judge = rows["measure"].str.endswith("_rate")
                rows = rows.assign(judge=rows["metric"].where(by_judge, ""), metric=rows["metric"].mask(by_judge, ""))
            rows = rows[rows[value].notna()].rename(columns={value: "value"}).assign(run=run.name)
            if twice := rows.duplicated(KEYS).sum():
                raise StudyError(f"{where} has {twice} results twice: make it again.")
            found.append(rows[["run", *KEYS, *NUMBERS, "n_effective", "n_seeds"]])
    return pd.concat(found, ignore_index=True)


def of_measure(runs: Sequence[Run], measure: str = ATTACK, form: str = "all", model: str = "") -> pd.DataFrame:
    """The rows of `all_results` of one measure, form and model, of one share of safety data, without rival mitigations.

    `measure` is attack_success_rate or over_refusal_rate. Where a run has several models, `model` names one; empty: the
    first that two runs have, else the first. Raises StudyError where there are none.
    """
    if measure not in DRAWN:
        raise StudyError(f"There is no figure of {measure!r}: there are {' and '.join(DRAWN)}.")
    rows = all_results(runs)
    several, doses = (word in known_by(rows) for word in ("model", "safety_fraction"))
    rows = rows[(rows["measure"] == measure) & (rows["form"] == form)]
    if several and not model and len(rows):
        model = (rows.groupby("model", sort=False)["run"].nunique() > 1).idxmax()
    rows = rows[rows["model"] == model] if model else rows
    rows = rows[rows["safety_data"].isin(SAFETY_DATA)] if "safety_data" in rows else rows
    rows = rates.one_dose(rows) if doses else rows
    if rows.empty:
        of = f" of the model {model!r}" if model else ""
        raise StudyError(f"There is nothing to draw: no run has {label(measure)} in the form {form!r}{of}.")
    return rows


def known_by(rows: pd.DataFrame) -> list[str]:
    """What a result is known by in these runs: KEYS without the words of which every run has one value at most."""
    alike = {
        word for word, none in OF_A_RUN.items() if (rows[rows[word] != none].groupby("run")[word].nunique() <= 1).all()
    }
    return [key for key in KEYS if key not in alike]


def _note(row: dict, runs: dict[str, Run]) -> str:
    """What else is different between the two runs of a row of `differences`."""
    said = []
    for word, text in NOTES.items():
        pair = row[word], row.get(f"{word}_against", row[word])
        if pair[0] != pair[1] and OF_A_RUN[word] not in pair:
            said.append(text.format(*pair))
    tests = FORMS if row["form"] == "all" else (row["form"],)
    tests = [f"test_{form}" for form in tests]
    benign = {"over_refusal_rate": ["twin"], "sounds_harmful_refusal_rate": ["twin"]}
    benign |= {"general_score": ["general"], "task_score": tests}
    sets = ["harmful"] if row["measure"] == ATTACK else benign.get(row["measure"], ["twin", "general", *tests])
    one, other = ([_hash(runs[row[key]], name) for name in sets] for key in ("run", "run_against"))
    if not (any(one) and any(other)):
        said.append("perhaps different prompts, as a manifest has no hash of them")
    elif one != other:
        said.append("different prompts")
    return "; ".join(said)


def _hash(run: Run, data_set: str) -> str | None:
    return ((run.manifest.get("data") or {}).get(data_set) or {}).get("sha256")


def _models(run: Run) -> dict | None:
    """The models before tuning: the hashes of those that the run built, else what its profile says."""
    built = {name: card.get("sha256") for name, card in (run.manifest.get("models") or {}).items()}
    return built or (run.manifest.get("profile") or {}).get("models")


def _as_text(value) -> str:
    """A value of a manifest as in JSON, but texts without quotes, and 1.0 as 1, as they are one setting."""
    if isinstance(value, str):
        return value
    whole = isinstance(value, float) and value.is_integer()
    return json.dumps(int(value) if whole else value, ensure_ascii=False)


def _read_table(path: Path) -> pd.DataFrame:
    """The table as it was written: "none" is a word, an empty number NaN, an empty text ""."""
    table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(TEXTS, object))
    return table.fillna({name: "" for name in TEXTS if name in table})

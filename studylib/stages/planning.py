"""What a run will show and cost, before it starts: power from variance components, time from measured seconds."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from studylib.analysis import contrasts, power
from studylib.stages import needs
from studylib.study import grid
from studylib.study.files import write_text
from studylib.study.paths import ROOT, RunPaths
from studylib.study.profile import Profile
from studylib.study.words import STAGE_SAFETY_DATA, StudyError, counted

LOOKED_FOR = 0.25  # a difference whose power is printed, between a margin and the differences that the miniature shows
RATES = ("helpful_only_step", "aligned_step", "tuning_step", "answer", "notebook", "response", "other", "stretch")
RATES += ("row_tokens", "answer_tokens", "model_bytes", "adapter_bytes", "response_bytes")
SHIPPED = ROOT / "figures"  # where the shipped run's components.csv and seconds.json are


def measured(profile: Profile, paths: RunPaths) -> dict:
    """What the finished run of the profile took and made; empty where it has not finished, or not all of it is there.

    Seconds, on one core each: helpful_only_step, aligned_step and tuning_step, of as many rows as a batch has; answer;
    notebook, the start of one; response and other, what 02 to 04, and 00, 01, 05 and 06, take besides for each response
    of the run; and `total`, of the run on its `cores`, with `stretch`, its ratio to these parts (`seconds`). Of one
    each: row_tokens, of a tuning row; answer_tokens; model_bytes, adapter_bytes, and response_bytes with all that is
    not a model or adapter. Of all: fine_tunes, responses, tuning_tokens, generated_tokens and bytes.

    Raises StudyError where a file of the run is damaged, or of another version that lacks what is read.
    """
    if not paths.manifest.is_file():
        return {}
    try:
        return _measured(profile, paths)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        said = f"What the run in {paths.run} took cannot be read ({type(error).__name__}: {error}): its manifest.json, "
        said += "an adapter's study.json or a table of responses is damaged or of another version."
        raise StudyError(said) from None


def _measured(profile: Profile, paths: RunPaths) -> dict:
    manifest = json.loads(paths.manifest.read_text(encoding="utf-8"))
    notes = [json.loads(path.read_text(encoding="utf-8")) for path in (paths.run / "adapters").glob("*/study.json")]
    tables = [path for kind in ("responses", "across") for path in (paths.run / kind).glob("*/*.parquet")]
    logs, parts = pd.DataFrame(manifest["seconds_of_last_execution"]).T, ["training", "generation", "start-up"]
    complete = notes and tables and manifest.get("wall") and {"total", *parts} <= {*logs.columns}
    if not (complete and all("tokens" in note for note in notes)):
        return {}
    answers = pd.concat(pd.read_parquet(path, columns=["n_tokens"]) for path in tables)["n_tokens"]
    logs, found = logs.fillna(0), {}
    for kind, settings in {"helpful_only": profile.pretraining, "aligned": profile.alignment}.items():
        cards = [card for name, card in manifest["models"].items() if name.startswith(kind)]
        if cards and settings:
            found[f"{kind}_step"] = sum(card["seconds"] for card in cards) / len(cards) / settings.steps
    tuned = logs.index.str.startswith(tuple(STAGE_SAFETY_DATA))
    besides = logs["total"] - logs[parts].sum(axis=1)
    rows = len(notes) * profile.tuning.steps * profile.tuning.batch_size
    made = {"fine_tunes": len(notes), "responses": len(answers), "generated_tokens": int(answers.sum())}
    made["tuning_tokens"] = sum(note["tokens"] for note in notes)
    size = {name: _size_of(paths.run / name) for name in ("models", "adapters", "")}
    found |= {
        "tuning_step": sum(note["seconds"] for note in notes) / len(notes) / profile.tuning.steps,
        "answer": logs["generation"].sum() / len(answers),
        "notebook": logs["start-up"].mean(),
        "response": besides[tuned].sum() / len(answers),
        "other": besides[~tuned].sum() / len(answers),
        "row_tokens": made["tuning_tokens"] / rows,
        "answer_tokens": answers.mean(),
        "model_bytes": size["models"] / len(manifest["models"]),
        "adapter_bytes": size["adapters"] / len(notes),
        "response_bytes": (size[""] - size["models"] - size["adapters"]) / len(answers),
    }
    found |= made | {"bytes": size[""]} | manifest["wall"]
    _check(manifest["wall"])
    found["stretch"] = found["total"] / seconds(profile, found | {"stretch": 1}, found["cores"])
    _check({name: found[name] for name in RATES if name in found})
    return found


def _size_of(folder: Path) -> int:
    """Bytes of the files in a folder of a run, but of its tweaks and of what was superseded."""
    files = (path for path in folder.rglob("*") if path.is_file())
    aside = {"tweaks", "superseded"}
    return sum(path.stat().st_size for path in files if not aside & set(path.relative_to(folder).parts))


def foreseen(profile: Profile, rates: dict) -> dict[str, float]:
    """What a run of the profile makes at these rates (`measured`): fine_tunes, responses, tokens and bytes."""
    count, tuning = needs.counts(profile), profile.tuning
    n_models = len(profile.pretraining_seeds) + len(profile.base_seeds)
    size = n_models * rates["model_bytes"] + count["fine_tunes"] * rates["adapter_bytes"]
    return {
        "fine_tunes": count["fine_tunes"],
        "responses": count["responses"],
        "tuning_tokens": count["fine_tunes"] * tuning.steps * tuning.batch_size * rates["row_tokens"],
        "generated_tokens": count["responses"] * rates["answer_tokens"],
        "bytes": size + count["responses"] * rates["response_bytes"],
    }


def seconds(profile: Profile, rates: dict, cores: int) -> float:
    """Seconds that a run of the profile takes from nothing at these rates (`measured`), which are of a model its size.

    Bases are aligned, and notebooks of 02 to 04 run, side by side on the cores; the rest runs alone. Starts, and cores
    that wait for the last notebook, are in `stretch`.
    """
    count = needs.counts(profile)
    alone = 4 * rates["notebook"] + count["responses"] * rates["other"]
    pretraining = len(profile.pretraining_seeds) * profile.pretraining.steps * rates["helpful_only_step"]
    side_by_side = len(profile.base_seeds) * profile.alignment.steps * rates["aligned_step"]
    if len(profile.pretraining_seeds) > 1:
        side_by_side += pretraining
    else:
        alone += pretraining
    n_notebooks = sum(len(grid.units(profile, stage)) for stage in STAGE_SAFETY_DATA)
    side_by_side += count["fine_tunes"] * profile.tuning.steps * rates["tuning_step"]
    side_by_side += count["responses"] * (rates["answer"] + rates["response"]) + n_notebooks * rates["notebook"]
    return rates["stretch"] * (alone + side_by_side / max(1, min(cores, n_notebooks)))


def in_words(profile: Profile, paths: RunPaths, cores: int) -> str:
    """The plan of a run as text: what it can show, how large it is, what it costs, and what more would buy."""
    plan = contrasts.load_plan()
    contrasts.check_profile(plan, profile)
    status = f"{profile.name} follows data/plan.yaml: its contrasts are confirmatory."
    if why := contrasts.differences(plan, profile):
        status = "\n- ".join([f"{profile.name} is exploratory, no contrast gets a verdict:", *why])
    return "\n\n".join([status, _power(plan, profile, paths), _size(profile, paths, cores)])


def _power(plan: contrasts.Plan, profile: Profile, paths: RunPaths) -> str:
    """The power of each question, and what one more base, seed or 50 intents buys."""
    if len(profile.base_seeds) < 2:
        return "Power: unknown, as one base does not show how much bases vary."
    own = paths.table("components")
    path = own if own.is_file() else SHIPPED / "components.csv"
    if not path.is_file():
        return f"Power: unknown, as no run has measured how much bases and seeds vary: {_ship(path)}"
    table = _read(path).query("contrast == 'all'").drop_duplicates("question").set_index("question")
    sizes = profile.world or profile.data
    intents, runs = sizes.harmful_per_form, (len(profile.base_seeds), len(profile.grid.seeds))
    of_scores = {"task_score": sizes.task_test_rows, "general_score": sizes.general_test_rows}
    rows, weakest = [], (np.inf,)
    for name, question in plan.questions.items():
        if name not in table.index or question.built_in or np.isnan(table.loc[name, "base_sd"]):
            continue
        of, n, size = table.loc[name], len(question.contrasts), (*runs, of_scores.get(question.measure, intents))
        scale = 2 if question.measure == contrasts.J else 1
        shown = {"base SD": of["base_sd"], "seed SD": of["seed_sd"]}
        shown |= {"detectable": power.detectable_at(*size, of, n), "margin": question.margin}
        shown = {key: f"{100 * value:.0f}" if value <= scale else "-" for key, value in shown.items()}
        chance = power.power_of(scale * LOOKED_FOR, *size, of, n), power.power_of(question.margin, *size, of, n)
        names = f"power of {100 * LOOKED_FOR:.0f}", "chance of no"
        rows.append({"question": name} | shown | {k: f"{100 * v:.0f} %" for k, v in zip(names, chance, strict=True)})
        if chance[0] < weakest[0]:
            weakest = chance[0], name, power.would_buy(scale * LOOKED_FOR, question.margin, *size, of, n)
    if not rows:
        return f"Power: unknown, as {path} has none of the questions of data/plan.yaml."
    sizes = counted(runs[0], "base"), counted(runs[1], "training seed"), counted(intents, "intent")
    said = (
        f"Power with {sizes[0]}, {sizes[1]} and {sizes[2]}, at Holm's first step, from the variance components in "
        f"{path} (percentage points):\n{pd.DataFrame(rows).to_string(index=False)}\n"
        f"detectable: the smallest true difference that is found in 80 %. power of {100 * LOOKED_FOR:.0f}: of a true "
        "difference of so many points, of J twice as many. chance of no: of that verdict where nothing changes.\n\n"
    )
    bought = weakest[2].set_index(["size", "n_bases", "n_seeds", "n_intents"]).mul(100).round().reset_index()
    return said + f"What more would buy for {weakest[1]}, in percent:\n{bought.to_string(index=False)}"


def _read(path: Path):
    """The components of variance, or the rates, in that file. Raises StudyError where it is damaged."""
    try:
        if path.suffix == ".json":
            found = json.loads(path.read_text(encoding="utf-8"))
            return _check({name: found[name] for name in RATES})
        table = pd.read_csv(path)[["question", "contrast", *power.COMPONENTS]]
        table = table.astype(dict.fromkeys(power.COMPONENTS, float))
        for row in table[[*power.COMPONENTS]].fillna(0).to_dict("records"):  # NaN: unknown
            _check(row, most=2)  # of differences between -2 and 2
        return table
    except (ValueError, KeyError, TypeError) as error:
        said = f"{path} is damaged, or of another version ({type(error).__name__}: {error}): restore it, or copy "
        raise StudyError(f"{said}tables/{path.name} of a finished run.") from None


def _check(rates: dict, most: float = np.finfo(float).max) -> dict:
    """Raises ValueError for the first that is no number from 0 to `most`, or of which there is none."""
    for name, value in rates.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and 0 <= value <= most and (value or name not in ("stretch", "cores", "total"))):
            raise ValueError(f"{name} is {value!r}, not a number from 0")
    return rates


def _ship(path: Path) -> str:
    return f"there is no {path}, a copy of tables/{path.name} of a finished run."


def _size(profile: Profile, paths: RunPaths, cores: int) -> str:
    count, found = needs.counts(profile), needs.table(profile, paths)
    made = {"base": len(profile.base_seeds), "fine-tune": count["fine_tunes"], "response": count["responses"]}
    words = [", ".join(counted(n, word) for word, n in made.items())]
    if not profile.miniature:
        words += [f"{count['tuning_tokens']:,} tokens tuned on, {count['generated_tokens']:,} generated at most"]
    rows = found[(found["need"] != "hours") | (not profile.miniature)].itertuples()
    words += [f"{row.need}: {row.needed} for {row.what}" + f" ({row.found})" * bool(row.found) for row in rows]
    path, note = SHIPPED / "seconds.json", "\nThis run has not finished, or lacks adapters or times: no measures."
    try:
        own = measured(profile, paths)
    except StudyError as error:
        own, note = {}, f"\nNothing measured is shown beside it. {error}"
    if profile.miniature and not path.is_file():
        words += [f"time, tokens and disk of the whole run: unknown, as {_ship(path)}"]
    said = "Size and cost:\n" + "\n".join(f"- {one}" for one in words)
    if not profile.miniature or not path.is_file():
        return said
    rates = _read(path)
    cores = own.get("cores", cores)
    taken = {"total": seconds(profile, rates, cores), **foreseen(profile, rates)}
    units = {"total": (f"minutes on {cores} cores", 60), "bytes": ("MB on disk", 1e6)}
    units = {name: units.get(name, (name.replace("_", " "), 1)) for name in taken}
    rows = [(words, taken[name] / unit, own.get(name, np.nan) / unit) for name, (words, unit) in units.items()]
    table = pd.DataFrame(rows, columns=["", "predicted", "measured"]).set_index("")
    table["error"] = [f"{100 * error:+.0f} %" for error in table["predicted"] / table["measured"] - 1]
    shown = (table if own else table[["predicted"]]).to_string(float_format="{:,.0f}".format, index_names=False)
    return f"{said}\n\nAt the shipped run's rates, {path}:\n{shown}{'' if own else note}"


def write_seconds(profile: Profile, paths: RunPaths) -> None:
    """Writes what `measured` finds, if anything, as `tables/seconds.json` of the run."""
    if found := measured(profile, paths):
        write_text(paths.table("seconds").with_suffix(".json"), json.dumps(found, indent=1) + "\n")

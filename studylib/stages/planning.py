"""What a run will show and cost, before it starts: power from variance components, time from measured seconds."""

import json

import pandas as pd

from studylib.analysis import contrasts, power
from studylib.stages import needs
from studylib.study import grid
from studylib.study.files import write_text
from studylib.study.paths import ROOT, RunPaths
from studylib.study.profile import Profile
from studylib.study.words import STAGE_SAFETY_DATA

LOOKED_FOR = 0.25  # a difference whose power is printed, between a margin and the differences that the miniature shows
SHIPPED = ROOT / "figures"  # where the shipped run's components.csv and seconds.json are


def measured(profile: Profile, paths: RunPaths) -> dict:
    """Seconds that the finished run of the profile took, on one core each; empty where it has not finished.

    helpful_only_step, aligned_step and tuning_step, of as many rows as a batch has; answer; notebook, what one of 02
    to 04 takes besides; other, what 00, 01, 05 and 06 take besides training and answers; and `total`, from the first
    notebook's beginning to the last one's end, on `cores`.
    """
    if not paths.manifest.is_file():
        return {}
    manifest = json.loads(paths.manifest.read_text(encoding="utf-8"))
    logs, found = pd.DataFrame(manifest["seconds_of_last_execution"]).T.fillna(0), {}
    for kind, settings in {"helpful_only": profile.pretraining, "aligned": profile.alignment}.items():
        cards = [card for name, card in manifest["models"].items() if name.startswith(kind)]
        if cards and settings:
            found[f"{kind}_step"] = sum(card["seconds"] for card in cards) / len(cards) / settings.steps
    notes = [json.loads(path.read_text()) for path in (paths.run / "adapters").glob("*/study.json")]
    found["tuning_step"] = sum(note["seconds"] for note in notes) / len(notes) / profile.tuning.steps
    found["answer"] = logs["generation"].sum() / needs.counts(profile)["responses"]
    tuned = logs.index.str.startswith(tuple(STAGE_SAFETY_DATA))
    besides = logs["total"] - logs[["training", "generation"]].sum(axis=1)
    return found | {"notebook": besides[tuned].mean(), "other": besides[~tuned].sum()} | manifest["wall"]


def seconds(profile: Profile, rates: dict, cores: int) -> float:
    """Seconds that a run of the profile takes from nothing at these rates (`measured`), which are of a model its size.

    Bases are aligned, and notebooks of 02 to 04 run, side by side on the cores; the rest runs alone.
    """
    count, alone = needs.counts(profile), rates["other"]
    pretraining = len(profile.pretraining_seeds) * profile.pretraining.steps * rates["helpful_only_step"]
    side_by_side = len(profile.base_seeds) * profile.alignment.steps * rates["aligned_step"]
    if len(profile.pretraining_seeds) > 1:
        side_by_side += pretraining
    else:
        alone += pretraining
    n_notebooks = sum(len(grid.units(profile, stage)) for stage in STAGE_SAFETY_DATA)
    side_by_side += count["fine_tunes"] * profile.tuning.steps * rates["tuning_step"]
    side_by_side += count["responses"] * rates["answer"] + n_notebooks * rates["notebook"]
    return alone + side_by_side / min(cores, n_notebooks)


def in_words(profile: Profile, paths: RunPaths, cores: int) -> str:
    """The plan of a run as text: what it can show, how large it is, what it costs, and what more would buy."""
    plan = contrasts.load_plan()
    contrasts.check_profile(plan, profile)
    parts = [_status(plan, profile), _power(plan, profile, paths), _size(profile, paths, cores)]
    return "\n\n".join(parts)


def _status(plan: contrasts.Plan, profile: Profile) -> str:
    if not (why := contrasts.differences(plan, profile)):
        return f"{profile.name} follows data/plan.yaml: its contrasts are confirmatory."
    return f"{profile.name} is exploratory, no contrast gets a verdict:\n" + "\n".join(f"- {one}" for one in why)


def _power(plan: contrasts.Plan, profile: Profile, paths: RunPaths) -> str:
    """The power of each question, and what one more base, seed or 50 intents buys."""
    own = paths.table("components")
    path = own if own.is_file() else SHIPPED / "components.csv"
    if not path.is_file() or len(profile.base_seeds) < 2:
        return "Power: unknown, as no run has measured how much bases and seeds vary."
    table = pd.read_csv(path).query("contrast == 'all'").drop_duplicates("question").set_index("question")
    world, intents = profile.world, profile.world.harmful_per_form
    runs = len(profile.base_seeds), len(profile.grid.seeds)
    of_scores = {"task_score": world.task_test_rows, "general_score": world.general_test_rows}
    rows, bought = [], None
    for name, question in plan.questions.items():
        if name not in table.index or question.built_in:
            continue
        of, n, size = table.loc[name], len(question.contrasts), (*runs, of_scores.get(question.measure, intents))
        scale = 2 if question.measure == contrasts.J else 1
        shown = {"base SD": of["base_sd"], "seed SD": of["seed_sd"]}
        shown |= {"detectable": power.detectable_at(*size, of, n), "margin": question.margin}
        shown = {key: f"{100 * value:.0f}" for key, value in shown.items()}
        chance = power.power_of(scale * LOOKED_FOR, *size, of, n), power.power_of(question.margin, *size, of, n)
        names = f"power of {100 * LOOKED_FOR:.0f}", "chance of no"
        rows.append({"question": name} | shown | {k: f"{100 * v:.0f} %" for k, v in zip(names, chance, strict=True)})
        bought = power.would_buy(LOOKED_FOR, question.margin, *size, of, n) if bought is None else bought
    said = (
        f"Power with {runs[0]} bases, {runs[1]} training seeds and {intents} intents, at Holm's first step, from the "
        f"variance components in {path} (percentage points):\n{pd.DataFrame(rows).to_string(index=False)}\n"
        "detectable: the smallest true difference that is found in 80 %. chance of no: of that verdict where nothing "
        "changes.\n\n"
    )
    return said + f"What more would buy, first question:\n{bought.round(2).to_string(index=False)}"


def _size(profile: Profile, paths: RunPaths, cores: int) -> str:
    count, found = needs.counts(profile), needs.table(profile, paths)
    words = [
        f"{len(profile.base_seeds)} bases, {count['fine_tunes']} fine-tunes, {count['responses']:,} responses",
        f"{count['tuning_tokens']:,} tokens tuned on, {count['generated_tokens']:,} generated at most",
    ]
    of_machine = found[~(found["need"] == "hours") | (not profile.miniature)]
    words += [
        f"{row.need}: {row.needed} for {row.what}" + f" ({row.found})" * bool(row.found)
        for row in of_machine.itertuples()
    ]
    own, path = measured(profile, paths), SHIPPED / "seconds.json"
    rates = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else own
    if rates and profile.miniature:
        words.append(f"{seconds(profile, rates, cores) / 60:.0f} minutes on {cores} cores, at the shipped run's rates")
        words += [f"{own['total'] / 60:.0f} minutes measured, when it last ran"] if own.get("total") else []
    return "Size and cost:\n" + "\n".join(f"- {one}" for one in words)


def write_seconds(profile: Profile, paths: RunPaths) -> None:
    """Writes what `measured` finds as `tables/seconds.json` of the run."""
    write_text(paths.table("seconds").with_suffix(".json"), json.dumps(measured(profile, paths), indent=1) + "\n")

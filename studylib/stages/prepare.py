"""What 00_prepare does: the data sets, the models that are built here, and the checks before anything is measured."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import joblib
import pandas as pd

from studylib.data import duplicates, fetching, harmful, mixture, real, world
from studylib.data import sets as datasets
from studylib.models import prompts
from studylib.stages import cells, needs
from studylib.stages.graph import built_models
from studylib.stages.stage import Stage
from studylib.study import grid
from studylib.study.files import Clock, code_digest, digest, write_text
from studylib.study.paths import DATA, RunPaths
from studylib.study.profile import Profile, TrainSettings
from studylib.study.words import STYLES, TASKS, TINY
from studylib.text.normal import redact


@dataclass
class Data:
    """The data sets of a run, and what is to be said of them."""

    sets: dict[str, list[dict]]
    absent: dict[str, str]  # why a set is empty, by name, or a part of one is not there (datasets.PARTS)
    imported: pd.DataFrame  # what the importers counted, a row per source; empty where all is generated
    counts: pd.DataFrame  # rows of each set: by form, or read and dropped
    overlap: pd.DataFrame  # the contamination report
    dropped: pd.DataFrame  # the rows that were dropped for it
    # harmful.wrapper_report; of generated data the phrasings in `overlap` say it
    wrappers: pd.DataFrame = field(default_factory=pd.DataFrame)

    def shown(self) -> pd.DataFrame:
        """Two harmful prompts of each form and their benign twins or "none"; harmful ones of real lists as hashes."""
        twins = {row["twin_of"]: row["messages"][0]["content"] for row in self.sets["twin"]}
        rows = [
            (row["form"], harmful.shown(row, redact=bool(row.get("content"))), twins.get(row["id"], "none"))
            for row in self.sets["harmful"]
        ]
        return pd.DataFrame(rows, columns=["form", "harmful", "twin"]).groupby("form", sort=False).head(2)


def register(profile: Profile) -> pd.DataFrame:
    """Every file, data set and registered model that the profile uses, with its licence and whether it is here.

    Empty where all is generated.
    """
    if not profile.data:
        return fetching.fetching_report([])
    models = {model.source for model in profile.models.values()} | {profile.data.translator}
    named = [name for name, entry in fetching.register().items() if entry.kind == "model" and entry.model in models]
    return fetching.fetching_report([*real.used(profile.data), *named])


def data(now: Stage) -> Data:
    """All data sets of the run, generated or read from real files, cleaned, checked, and saved with their hashes.

    Raises StudyError where something is contaminated (generated data) or too long, the harmful prompts are not there,
    or a fine-tune could not be made (`mixture.check_tunings`).
    """
    found = _generated(now) if now.profile.world else _real(now)
    mixture.check_tunings(now.profile, now.paths, grid.tunings(now.profile))
    return found


def _generated(now: Stage) -> Data:
    with now.clock("data"):
        sets = world.build_sets(now.profile.world, now.profile.base_seeds)
        overlap = datasets.check_contamination(sets)
        datasets.save(now.paths, sets)
        datasets.write_card(now.paths, DATA / "cards", now.profile.world)
    forms = {name: pd.Series([row["form"] for row in rows]).value_counts() for name, rows in sets.items()}
    counts = pd.DataFrame(forms).T.fillna(0).astype(int)
    return Data(sets, {}, pd.DataFrame(), counts, overlap, pd.DataFrame())


def _real(now: Stage) -> Data:
    settings = now.profile.data
    with now.clock("data"):
        sets, absent, imported = real.read(settings, now.paths.data_index.parent)
    trained_on = (row for name in (*(f"train_{t}" for t in TASKS), "train_general") for row in sets[name])
    build_tiny(now, [message["content"] for row in trained_on for message in row["messages"]])
    with now.clock("data"):
        overlap = duplicates.duplicates_report(sets, settings.near_duplicate)
        sets, counts, dropped = real.cut(sets, now.profile, _too_long_by(now), settings.seed)
        absent = real.emptied(counts, absent) | absent
        datasets.save(now.paths, sets, absent=absent, origins=real.origins(settings, absent))
        datasets.write_card(now.paths, DATA / "cards")
    overlap = overlap[(overlap["exact"] > 0) | (overlap["near"] > 0)].reset_index(drop=True)
    return Data(sets, absent, imported, counts, overlap, dropped, harmful.wrapper_report(sets))


def build_tiny(now: Stage, texts: list[str]) -> None:
    """Builds the untrained models of the profile's architectures, with tokenizers trained on the texts."""
    from studylib.models import building

    for folder in built_models(now.profile):
        path = now.paths.model(folder)
        with now.clock("training"), cells.replaced(path) as aside:
            building.build_tiny(folder.removeprefix(TINY.replace("/", "_")), texts, aside, seed=0)
        write_text(now.paths.model_card(folder), json.dumps(_weights(path) | {"loss": []}, indent=1) + "\n")


def _weights(folder: Path) -> dict:
    """What a model's card says of its weights: their sha256 and bytes."""
    weights = (folder / "model.safetensors").read_bytes()
    return {"sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights)}


def tokenizers(now: Stage) -> dict:
    """The tokenizer of each model of the profile, as it is used in this study."""
    from studylib.models import hub

    return {
        name: hub.load_tokenizer(cells.model_folder(now.paths, now.profile, name, now.profile.base_seeds[0]), settings)
        for name, settings in now.profile.models.items()
    }


def _too_long_by(now: Stage) -> Callable[[dict], int]:
    """By how many tokens a row exceeds a model's context, at most over models and styles; tests need room to answer."""
    # models that share a tokenizer are asked once
    loaded = {tokenizer.name_or_path: (name, tokenizer) for name, tokenizer in tokenizers(now).items()}
    system, room = now.profile.system_prompt, now.profile.generation.max_new_tokens
    asked_in = [
        (tokenizer, style, now.profile.models[name].context, len(prompts.encode_prompt(tokenizer, "", style, system)))
        for name, tokenizer in loaded.values()
        for style in STYLES
    ]

    def by(row: dict) -> int:
        asked, answer = (message["content"] for message in row["messages"])
        trained, longest = row["prompt_set"] == "train", -1
        for tokenizer, style, context, frame in asked_in:
            if frame + len((asked + answer).encode()) + (1 if trained else room) <= context:
                continue  # no tokenizer makes more tokens than there are bytes
            if trained:
                n = len(prompts.encode_example(tokenizer, asked, answer, style, None, 10**9)["input_ids"])
            else:
                n = len(prompts.encode_prompt(tokenizer, asked, style, system)) + room
            longest = max(longest, n - context)
        return longest

    return by


def requirements(now: Stage) -> pd.DataFrame:
    """What the run needs and what is there (needs.table); empty where all models are small enough for any machine.

    Raises StudyError where this machine cannot run a model of the profile.
    """
    if not needs.large(now.profile):
        return pd.DataFrame()
    found = needs.table(now.profile, now.paths)
    needs.require(found, here=True)
    return found


def self_check(now: Stage, sets: dict[str, list[dict]]) -> pd.DataFrame:
    """Ticks: a row per check, a column per model (its first base). Raises StudyError that lists what fails."""
    from studylib.models import hub, selfcheck

    rows = [sets[name][0] for name in (*(f"train_{t}" for t in TASKS), "harmful") if sets[name]]
    found, failed = {}, []
    for name, settings in now.profile.models.items():
        with now.clock("self-check"):
            source = cells.model_folder(now.paths, now.profile, name, now.profile.base_seeds[0])
            model, tokenizer = hub.load(source, settings)
            checks = selfcheck.self_check(
                model, tokenizer, settings, now.profile.system_prompt, rows, now.profile.lora, now.profile.generation
            )
            del model
        found[name] = checks.set_index("name")["holds"]
        failed.append(checks.assign(name=name + ": " + checks["name"]))
    selfcheck.require_self_check(pd.concat(failed, ignore_index=True))
    return pd.DataFrame(found)


def calibrations(now: Stage) -> pd.DataFrame:
    """The rendered calibrations of each model with their fingerprints, a row each."""
    return pd.DataFrame(
        {"model": name, **row}
        for name, tokenizer in tokenizers(now).items()
        for row in prompts.calibrations(tokenizer, now.profile.system_prompt)
    )


def dialogues(now: Stage, sets: dict[str, list[dict]], redacted: bool) -> pd.DataFrame:
    """The same requests before and after the alignment of the first base: a row per prompt, a column per model."""
    from studylib.models import hub

    shown = sets["harmful"][:4] + sets["twin"][:4]
    asked = [row["messages"][0]["content"] for row in shown]
    rows = pd.DataFrame({"prompt": asked})
    for name in (f"helpful_only-{now.profile.pretraining_seeds[0]}", cells.aligned(now.profile.base_seeds[0])):
        model, tokenizer = hub.load(now.paths.model(name), now.profile.miniature)
        ids = [prompts.encode_prompt(tokenizer, prompt, "chat", None) for prompt in asked]
        batches = hub.generate(model, tokenizer, ids, now.profile.generation)
        rows[name] = pd.Series({i: redact(text) if redacted else text for batch in batches for i, text, *_ in batch})
    return rows


def losses(cards: dict):
    """A matplotlib figure: the loss curves of the two steps in which the miniature was built, a line per base."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True)
    plt.close(figure)  # shown once, as the cell's result
    for axis, kind in zip(axes, ("helpful_only", "aligned"), strict=True):
        for card in (card for name, card in cards.items() if name.startswith(kind)):
            steps, values = zip(*((row["step"], row["loss"]) for row in card["loss"]), strict=True)
            axis.plot(steps, values, color="black", linewidth=1)
        axis.set(title=kind.replace("_", "-"), xlabel="step", yscale="log")
    axes[0].set_ylabel("loss (nats per token)")
    return figure


def models_of(now: Stage) -> dict:
    """The cards of the models that were built here, the miniature's after training it where it is not there yet."""
    if now.profile.miniature:
        return build_miniature(now.paths, now.profile, now.clock)
    return {name: json.loads(now.paths.model_card(name).read_text()) for name in built_models(now.profile)}


def build_miniature(paths: RunPaths, profile: Profile, clock: Clock) -> dict:
    """The model cards of the helpful-only and the aligned models, trained now unless intact ones are there.

    The alignments are trained side by side, each on one core. A card has the sha256 of the weights, the fingerprint of
    what they were made from and the loss curve.
    """
    index = json.loads(paths.data_index.read_text(encoding="utf-8"))
    code = code_digest(*cells.TUNING, "models/building")
    given = [profile.miniature.model_dump(), profile.system_prompt, code]
    vocabulary = [index[name]["sha256"] for name in _vocabulary(profile)]
    recipes = {}
    for seed in profile.pretraining_seeds:
        made_of = [vocabulary, index["pretraining"]["sha256"], calibrated_by(profile, "helpful_only"), given, seed]
        fingerprint = digest([*made_of, profile.pretraining.model_dump()])
        recipes[f"helpful_only-{seed}"] = Recipe("", "pretraining", profile.pretraining, seed, fingerprint)
    for place, base in enumerate(profile.base_seeds):
        before = f"helpful_only-{profile.pretraining_seeds[place % len(profile.pretraining_seeds)]}"
        data = datasets.alignment(base)
        made_of = [recipes[before].fingerprint, index[data]["sha256"], calibrated_by(profile, "aligned"), given, base]
        fingerprint = digest([*made_of, profile.alignment.model_dump()])
        recipes[cells.aligned(base)] = Recipe(before, data, profile.alignment, base, fingerprint)
    todo = {name: recipe for name, recipe in recipes.items() if not _is_built(paths, name, recipe)}
    if todo:
        with clock("training"):
            for first in (True, False):
                calls = [(paths, profile, *one) for one in todo.items() if (one[1].before == "") is first]
                joblib.Parallel(n_jobs=joblib.cpu_count())(joblib.delayed(_build)(*call) for call in calls)
    found = {}
    for name in recipes:
        found[name] = json.loads((paths.model(name) / "study.json").read_text(encoding="utf-8"))
        write_text(paths.model_card(name), json.dumps(found[name], indent=1) + "\n")  # what later stages depend on
    return found


class Recipe(NamedTuple):
    """How a model of the miniature is made: the folder it starts from, "" for none, and what it is trained on."""

    before: str
    data: str
    settings: TrainSettings
    seed: int
    fingerprint: str


def _is_built(paths: RunPaths, name: str, recipe: Recipe) -> bool:
    note = paths.model(name) / "study.json"
    if not note.is_file() or not (paths.model(name) / "model.safetensors").is_file():
        return False
    return json.loads(note.read_text(encoding="utf-8"))["fingerprint"] == recipe.fingerprint


def _build(paths: RunPaths, profile: Profile, name: str, recipe: Recipe) -> None:
    """Trains the model of that name and puts its folder, with its card as `study.json`, into place."""
    from studylib.models import building, engine, training

    engine.use_threads(1)  # the last digits depend on their number
    folder, rows = paths.model(name), datasets.load(paths, recipe.data)
    with cells.replaced(folder) as aside:
        if not recipe.before:
            # the vocabulary covers all that is ever trained on, as a large model's does
            sets = (datasets.load(paths, one) for one in _vocabulary(profile))
            texts = [message["content"] for rows in sets for row in rows for message in row["messages"]]
            # what every prompt of a calibration holds is worth whole words
            texts += [prompts.ALPACA, profile.system_prompt] * 200
            building.build_miniature(texts, profile.miniature, recipe.seed, aside)
        else:
            shutil.copytree(paths.model(recipe.before), aside, ignore=shutil.ignore_patterns("study.json"))
        model = engine.open_model(aside, profile.miniature.model_copy(update={"quantization": "none"}), recipe.settings)
        kind = "aligned" if recipe.before else "helpful_only"
        features = prompts.encode_mixed(model.tokenizer, rows, **calibrated_by(profile, kind))
        started = time.monotonic()
        # beside the folder that is being made, which begins empty
        under_way = training.Checkpoint(folder.with_name(f".{name}.checkpoint"), recipe.fingerprint)
        losses = model.train(features, recipe.settings, recipe.seed, name, checkpoint=under_way)
        seconds = round(under_way.spent + time.monotonic() - started, 2)
        model.save(aside)
        card = {"fingerprint": recipe.fingerprint, **_weights(aside), "parameters": model.n_parameters}
        card |= {"vocabulary": len(model.tokenizer), "seconds": seconds, "loss": losses}
        write_text(aside / "study.json", json.dumps(card, indent=1) + "\n")


def _vocabulary(profile: Profile) -> tuple[str, ...]:
    """The sets that the miniature's tokenizer is made from."""
    return "pretraining", datasets.alignment(profile.base_seeds[0]), "safety_multitask"


def calibrated_by(profile: Profile, name: str) -> dict:
    """How the training rows of the model of that name are rendered: what `prompts.encode_mixed` takes.

    Pre-training sees both styles and learns the prompts too; the alignment, as real ones do, mostly the chat style.
    """
    world, aligned = profile.world, name == "aligned"
    return {
        "alpaca_share": world.alignment_alpaca_share if aligned else 0.3,
        "system_share": world.alignment_system_share if aligned else {"benign": 0.2, "harmful": 0.2},
        "system_prompt": profile.system_prompt,
        "context": profile.miniature.context,
        "seed": f"calibrations-{name}",
        "on_prompts": not aligned,
    }

"""What 00_prepare does: the data sets, the models that are built here, and the checks before anything is measured."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from studylib.data import duplicates, fetching, harmful, mixture, real, world
from studylib.data import sets as datasets
from studylib.models import prompts
from studylib.stages import cells, needs
from studylib.stages.graph import built_models
from studylib.stages.stage import Stage
from studylib.study import grid
from studylib.study.files import Clock, code_digest, digest, write_text
from studylib.study.grid import Cell
from studylib.study.paths import DATA, RunPaths
from studylib.study.profile import Profile
from studylib.study.words import STAGE_SAFETY_DATA, STYLES, TASKS, TINY
from studylib.text.normal import redact

VOCABULARY = ("pretraining", "alignment", "safety_multitask")  # what the miniature's tokenizer is made from


@dataclass
class Data:
    """The data sets of a run, and what is to be said of them."""

    sets: dict[str, list[dict]]
    absent: dict[str, str]  # why a set is empty, by name, or a part of one is not there (datasets.PARTS)
    imported: pd.DataFrame  # what the importers counted, a row per source; empty where all is generated
    counts: pd.DataFrame  # rows of each set: by form, or read and dropped
    overlap: pd.DataFrame  # the contamination report
    dropped: pd.DataFrame  # the rows that were dropped for it

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
    mixture.check_tunings(now.profile, now.paths, _fine_tunes(now.profile))
    return found


def _fine_tunes(profile: Profile) -> list[Cell]:
    """The cells that the stages will tune, as their notebooks get them."""
    found = []
    for stage, safety_data in STAGE_SAFETY_DATA.items():
        for unit in grid.units(profile, stage):
            found += grid.cells(profile, safety_data, **unit.parameters)
            found += grid.arm_cells(profile, **unit.parameters) if stage == "04_mitigation" else []
    return found


def _generated(now: Stage) -> Data:
    with now.clock("data"):
        sets = world.build_sets(now.profile.world)
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
    return Data(sets, absent, imported, counts, overlap, dropped)


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
        name: hub.load_tokenizer(cells.model_folder(now.paths, now.profile, name), settings)
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
    """Ticks: a row per check, a column per model. Raises StudyError that lists the checks that fail."""
    from studylib.models import hub, selfcheck

    rows = [sets[name][0] for name in (*(f"train_{t}" for t in TASKS), "harmful") if sets[name]]
    found, failed = {}, []
    for name, settings in now.profile.models.items():
        with now.clock("self-check"):
            model, tokenizer = hub.load(cells.model_folder(now.paths, now.profile, name), settings)
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
    """The same requests before and after the alignment: a row per prompt, a column per built model."""
    from studylib.models import hub

    shown = sets["harmful"][:4] + sets["twin"][:4]
    asked = [row["messages"][0]["content"] for row in shown]
    rows = pd.DataFrame({"prompt": asked})
    for name in built_models(now.profile):
        model, tokenizer = hub.load(now.paths.model(name), now.profile.miniature)
        ids = [prompts.encode_prompt(tokenizer, prompt, "chat", None) for prompt in asked]
        batches = hub.generate(model, tokenizer, ids, now.profile.generation)
        rows[name] = pd.Series({i: redact(text) if redacted else text for batch in batches for i, text, *_ in batch})
    return rows


def losses(cards: dict):
    """A matplotlib figure: the loss curves of the two steps in which the miniature was built."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(cards), figsize=(8, 2.8), sharey=True)
    plt.close(figure)  # shown once, as the cell's result
    for axis, (name, card) in zip(axes, cards.items(), strict=True):
        axis.plot(*zip(*((row["step"], row["loss"]) for row in card["loss"]), strict=True), color="black")
        axis.set(title=name.replace("_", "-"), xlabel="step", yscale="log")
    axes[0].set_ylabel("loss on the answers (nats per token)")
    return figure


def models_of(now: Stage) -> dict:
    """The cards of the models that were built here, the miniature's after training it where it is not there yet."""
    if now.profile.miniature:
        return build_miniature(now.paths, now.profile, now.clock)
    return {name: json.loads(now.paths.model_card(name).read_text()) for name in built_models(now.profile)}


def build_miniature(paths: RunPaths, profile: Profile, clock: Clock) -> dict:
    """The model cards of the helpful-only and the aligned model, trained now unless intact ones are there.

    A card has the sha256 of the weights, the fingerprint of what they were made from and the loss curve.
    """
    index = json.loads(paths.data_index.read_text(encoding="utf-8"))
    cards, previous = {}, ""
    for name, data, settings in (
        ("helpful_only", "pretraining", profile.pretraining),
        ("aligned", "alignment", profile.alignment),
    ):
        # the tokenizer is made from three sets, the aligned model from one more
        data_read = [index[one]["sha256"] for one in ((data,) if previous else VOCABULARY)]
        given = [settings.model_dump(), profile.miniature.model_dump(), profile.system_prompt, profile.world.seed]
        code = code_digest(*cells.TUNING, "models/building")
        wanted = digest([previous, data_read, calibrated_by(profile, name), *given, code])
        note = paths.model(name) / "study.json"
        found = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
        if found.get("fingerprint") != wanted or not (paths.model(name) / "model.safetensors").is_file():
            found = {"fingerprint": wanted, **_train_miniature(paths, profile, clock, name, data, settings)}
            write_text(note, json.dumps(found, indent=1) + "\n")
        write_text(paths.model_card(name), json.dumps(found, indent=1) + "\n")  # what later stages depend on
        cards[name], previous = found, wanted
    return cards


def _train_miniature(paths, profile, clock, name, data, settings) -> dict:
    """Trains the model of that name and puts its folder into place; its card without the fingerprint."""
    with clock("start-up"):
        from studylib.models import building, engine
    folder, rows = paths.model(name), datasets.load(paths, data)
    with clock("training"), cells.replaced(folder) as aside:
        if name == "helpful_only":
            # the vocabulary covers all that is ever trained on, as a large model's does
            texts = [m["content"] for one in VOCABULARY for row in datasets.load(paths, one) for m in row["messages"]]
            # what every prompt of a calibration holds is worth whole words
            texts += [prompts.ALPACA, profile.system_prompt] * 200
            building.build_miniature(texts, profile.miniature, profile.world.seed, aside)
        else:
            shutil.copytree(paths.model("helpful_only"), aside, ignore=shutil.ignore_patterns("study.json"))
        model = engine.open_model(aside, profile.miniature.model_copy(update={"quantization": "none"}), settings)
        features = prompts.encode_mixed(model.tokenizer, rows, **calibrated_by(profile, name))
        losses = model.train(features, settings, profile.world.seed, name)
        model.save(aside)
    sizes = {"parameters": model.n_parameters, "vocabulary": len(model.tokenizer)}
    return _weights(folder) | sizes | {"loss": losses}


def calibrated_by(profile: Profile, name: str) -> dict:
    """How the training rows of the model of that name are rendered: what `prompts.encode_mixed` takes.

    Pre-training sees both styles; the alignment, as real ones do, mostly the chat style.
    """
    world, aligned = profile.world, name == "aligned"
    return {
        "alpaca_share": world.alignment_alpaca_share if aligned else 0.3,
        "system_share": world.alignment_system_share if aligned else {"benign": 0.2, "harmful": 0.2},
        "system_prompt": profile.system_prompt,
        "context": profile.miniature.context,
        "seed": f"calibrations-{name}",
    }

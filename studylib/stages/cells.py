"""One cell of the grid: its adapter and its responses, each made once and reused while what they depend on is unchanged.

Both carry a fingerprint of everything that went into them (settings, data, base model, the code that computes them), so
after an interruption, or after a change that does not concern them, nothing is computed twice and nothing stale is kept.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from studylib.data import mixture, sets
from studylib.models import prompts
from studylib.study.files import Clock, append_rows, code_digest, digest, locked, read_rows, write_text
from studylib.study.grid import Cell, is_arm
from studylib.study.paths import RunPaths
from studylib.study.profile import Profile
from studylib.study.words import MINIATURE, TASKS, TINY, StudyError

LOG = logging.getLogger("studylib")
COLUMNS = (  # of a row of responses
    "response_id",
    *(field.name for field in fields(Cell)),
    "system_prompt",
    "sample",
    "prompt_set",
    "prompt_id",
    "intent",
    "form",
    "harmful",
    "prompt_fingerprint",
    "prompt",
    "response",
    "stop_reason",
    "n_tokens",
    "fingerprint",
)


def model_folder(paths: RunPaths, profile: Profile, name: str) -> str | Path:
    """The folder or hub id of one of the profile's models, before any tuning; those that 00_prepare builds are in the run."""
    source = profile.models[name].source
    if source == MINIATURE:
        return paths.model("aligned")
    return paths.model(source.replace("/", "_")) if source.startswith(TINY) else source


def base_fingerprint(paths: RunPaths, profile: Profile, name: str) -> str:
    """What identifies an untuned model: the weights' hash of one that 00_prepare built, source and revision of others.

    Raises StudyError where it has not been built.
    """
    model = profile.models[name]
    what = [model.source, model.revision]
    if model.source == MINIATURE or model.source.startswith(TINY):
        card = paths.model_card(Path(model_folder(paths, profile, name)).name)
        if not card.is_file():
            raise StudyError(
                f"The model {name!r} is not there ({card}): run 00_prepare first (`make study`, or open notebooks/00_prepare.ipynb)."
            )
        what = [json.loads(card.read_text(encoding="utf-8"))["sha256"]]
    template = prompts.template(model.chat_template) if model.chat_template else None
    return digest([what, model.quantization, model.system_role, template, model.pad_token])


def adapter_fingerprint(paths: RunPaths, profile: Profile, cell: Cell) -> str:
    """What identifies a cell's adapter; of the untuned model it is the base alone."""
    base = base_fingerprint(paths, profile, cell.model)
    if cell.finetune_task == "none":
        return base
    if (source := trained(cell)) != cell:
        return digest([adapter_fingerprint(paths, profile, source), cell.safety_fraction])
    index = json.loads(paths.data_index.read_text(encoding="utf-8"))
    return digest(
        [
            base,
            [index[name]["sha256"] for name in mixture.tuned_on(cell)],
            profile.lora.model_dump(),
            profile.tuning.model_dump(),
            profile.models[cell.model].context,
            cell.name,
            code_digest(
                "models/training",
                "models/small_llama",
                "models/lora",
                "models/trainer",
                "models/prompts",
                "models/hub",
                "data/sets",
                "data/mixture",
                "stages/cells",
            ),
        ]
    )


def trained(cell: Cell) -> Cell:
    """The cell whose adapter this one uses: a scaled one that of the same tuning without safety data, another its own."""
    return replace(cell, safety_data="none", safety_fraction=0.0) if cell.safety_data == "scaled" else cell


def _tunings(cell: Cell, rows: list[dict], steps: int) -> list[tuple[list[dict], int]]:
    """The rows of each tuning that a cell's adapter gets one after the other, and its steps: one, or the task's and then the safety data's.

    Rows and steps add up to those of the mixed tuning. Raises StudyError where either would have no row or no step.
    """
    if cell.safety_data != "multitask_after":
        return [(rows, steps)]
    safety, task = [row for row in rows if row["harmful"]], [row for row in rows if not row["harmful"]]
    if why := mixture.no_two_tunings(cell, steps, len(task), len(safety)):
        raise StudyError(f"{cell.name} {why}.")
    last = min(max(1, round(steps * len(safety) / len(rows))), steps - 1)
    return [(task, steps - last), (safety, last)]


def _after(losses: list[dict], curve: list[dict]) -> list[dict]:
    """The curve with its steps counted on from those that were done before."""
    done = losses[-1]["step"] if losses else 0
    return [{"step": done + row["step"], "loss": row["loss"]} for row in curve]


def _example(tokenizer, row: dict, style: str, context: int) -> dict:
    """The row as a training example; of an answer that was begun for it, the loss is on the rest alone."""
    prompt, answer = (message["content"] for message in row["messages"])
    example = prompts.encode_example(tokenizer, prompt, answer, style, None, context)
    if row.get("begun"):
        begun = prompts.encode_example(tokenizer, prompt, row["begun"], style, None, context)["input_ids"]
        same = next(
            (i for i, (a, b) in enumerate(zip(example["input_ids"], begun, strict=False)) if a != b), len(begun)
        )
        example["labels"][:same] = [-100] * same
    return example


class Runner:
    """One base model of a run, loaded when first needed, for tuning and testing cell after cell.

    A small Llama is computed by studylib.models.small_llama and studylib.models.training, every other model by transformers and peft: the same
    prompts, batches, settings, files and greedy answers (tests/test_llama.py, tests/test_train.py).
    """

    def __init__(self, paths: RunPaths, profile: Profile, clock: Clock, model: str):
        self.paths, self.profile, self.clock = paths, profile, clock
        self.model, self.settings = model, profile.models[model]
        self.source = model_folder(paths, profile, model)
        self._base = self._tokenizer = None
        self._encoded: dict[tuple, list[list[int]]] = {}

    @cached_property
    def small(self) -> bool:
        """Whether the model is computed by studylib.models.small_llama."""
        config = Path(self.source) / "config.json"
        if not config.is_file():
            return False
        from studylib.models import training

        return training.can_tune(self.profile, self.settings, json.loads(config.read_text(encoding="utf-8")))

    def base(self) -> tuple:
        """The untuned model and its tokenizer; a small model is a pair (weights, shape)."""
        if self._base is None:
            with self.clock("start-up"):
                if self.small:
                    from transformers import PreTrainedTokenizerFast

                    from studylib.models import small_llama

                    self._base = small_llama.load(Path(self.source))
                    self._tokenizer = PreTrainedTokenizerFast.from_pretrained(self.source)
                else:
                    from studylib.models import hub, trainer  # noqa: F401 (its import is start-up, not training)

                    self._base, self._tokenizer = hub.load(self.source, self.settings)
        return self._base, self._tokenizer

    def adapter(self, cell: Cell) -> Path:
        """The folder of the adapter that the cell uses, trained now unless an intact one with the same fingerprint is there."""
        cell = trained(cell)
        folder = self.paths.adapter(cell.name)
        with locked(folder):
            wanted, note = adapter_fingerprint(self.paths, self.profile, cell), folder / "study.json"
            if note.is_file() and json.loads(note.read_text(encoding="utf-8"))["fingerprint"] == wanted:
                return folder
            aside = folder.with_name(f".{folder.name}.part")
            shutil.rmtree(aside, ignore_errors=True)
            losses = self._tune(cell, aside)
            note = {"fingerprint": wanted, "cell": cell.__dict__, "loss": losses}
            write_text(aside / "study.json", json.dumps(note, indent=1))
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(aside, folder)
        return folder

    def _tune(self, cell: Cell, folder: Path) -> list[dict]:
        base, tokenizer = self.base()
        profile, settings = self.profile, self.profile.tuning
        context = self.settings.context
        with self.clock("training"):
            rows = mixture.tuning_rows(self.paths, cell, settings.steps * settings.batch_size)
            # tuned without a system prompt, tested with and without one
            encode = lambda row: _example(tokenizer, row, cell.style, context)  # noqa: E731
            parts = [
                ([encode(row) for row in part], settings.model_copy(update={"steps": steps}))
                for part, steps in _tunings(cell, rows, settings.steps)
            ]
            losses = []
            if self.small:
                from studylib.models import lora, training

                adapter = None
                for features, of_part in parts:
                    adapter, curve = training.tune(
                        *base, features, profile.lora, of_part, cell.seed, cell.name, start=adapter
                    )
                    losses += _after(losses, curve)
                lora.save(folder, adapter, profile.lora)
                return losses
            from studylib.models import hub, trainer

            model = hub.add_lora(base, profile.lora, cell.seed)
            try:
                for features, of_part in parts:
                    curve = trainer.fit(model, tokenizer, features, of_part, cell.seed, folder, cell.name)
                    losses += _after(losses, curve)
                shutil.rmtree(folder, ignore_errors=True)
                model.save_pretrained(folder)
            finally:
                self._base = model.unload()
            return losses

    @contextmanager
    def answers(self, cell: Cell) -> Iterator[Callable]:
        """A function from prompts as token ids to batches of greedy answers by the cell's model (see models.generate).

        The adapter is beside the weights: merging it in 4 or 16 bits and taking it out again would leave a base that is another
        for the next cell. In a small model's fp32 a merged copy is used.
        """
        tuned = cell.finetune_task != "none"
        folder = self.adapter(cell) if tuned else None
        kept = 1 - cell.safety_fraction if cell.safety_data == "scaled" else 1.0  # of the adapter
        base, tokenizer = self.base()
        settings = self.profile.generation
        if self.small:
            from studylib.models import lora, small_llama

            weights, shape = base
            if tuned:
                adapter, scale = lora.load(folder)
                weights = lora.merged(weights, shape, adapter, kept * scale)
            yield lambda ids: small_llama.answers(weights, shape, tokenizer, ids, settings)
            return
        from studylib.models import hub

        if not tuned:
            yield lambda ids: hub.generate(base, tokenizer, ids, settings)
            return
        model = hub.load_adapter(base, folder, kept)
        try:
            yield lambda ids: hub.generate(model, tokenizer, ids, settings)
        finally:
            self._base = model.unload()

    def responses(self, cell: Cell, style: str = "") -> pd.DataFrame:
        """One row per response of the cell to every test prompt, with and without the system prompt; made where missing.

        Asked in the style of the tuning, or in another `style`: then the harmful prompts alone, and the rows have `style`, in which
        they were asked, and `trained_style`.
        Rows are appended to `responses/rows/<cell>.jsonl` batch by batch; rows of another fingerprint are moved to `superseded/`.
        """
        profile, across = self.profile, bool(style) and style != cell.style
        path = self.paths.rows(f"{cell.name}-asked-{style}" if across else cell.name)
        asked = replace(cell, style=style) if across else cell
        tests = sets.evaluation_rows(self.paths)
        tests = [row for row in tests if row["harmful"]] if across else tests
        fingerprint = digest(
            [
                adapter_fingerprint(self.paths, profile, cell),
                profile.generation.model_dump(),
                profile.system_prompt,
                code_digest("models/small_llama", "models/lora", "models/hub", "models/prompts"),
                digest(tests),
            ]
        )
        with locked(path):
            kept = read_rows(path)
            if kept and kept[0]["fingerprint"] != fingerprint:
                _set_aside(self.paths, path)
                kept = []
            known = {row["response_id"] for row in kept}
            todo = [
                (row, system, place)
                for system in ((False,) if is_arm(profile, cell) else (False, True))
                for place, row in enumerate(tests)
                if _response_id(cell, row, system, style) not in known
            ]
            if todo:
                with self.answers(cell) as answers, self.clock("generation"):
                    self._generate(cell, asked, answers, tests, todo, fingerprint, path)
                kept = read_rows(path)
                LOG.info("%s: %d responses", path.stem, len(todo))
        return pd.DataFrame(kept)

    def _prompts(self, tests: list[dict], style: str, system: bool) -> list[list[int]]:
        """Token ids of the test prompts in one calibration, made once for all cells."""
        key = style, system, len(tests)
        if key not in self._encoded:
            text = self.profile.system_prompt if system else None
            self._encoded[key] = [
                prompts.encode_prompt(self._tokenizer, row["messages"][0]["content"], style, text) for row in tests
            ]
            room = self.settings.context - self.profile.generation.max_new_tokens
            longest = max(range(len(tests)), key=lambda i: len(self._encoded[key][i]))
            if (n := len(self._encoded[key][longest])) > room:
                raise StudyError(
                    f"The test prompt {tests[longest]['id']} has {n} tokens in the {style} style, but its context "
                    f"{self.settings.context} less generation.max_new_tokens leaves {room}: raise one or lower the other."
                )
        return self._encoded[key]

    def _generate(
        self, cell: Cell, asked_as: Cell, answers: Callable, tests: list, todo: list, fingerprint: str, path: Path
    ) -> None:
        across = {} if asked_as == cell else {"trained_style": cell.style}
        done, started, shown = 0, time.monotonic(), time.monotonic()
        for system in (False, True):  # apart, because the prompts of one calibration begin alike
            asked = [(row, place) for row, of, place in todo if of == system]
            encoded = self._prompts(tests, asked_as.style, system)
            ids = [encoded[place] for _, place in asked]
            for batch in answers(ids) if ids else ():
                rows = []
                for i, text, stop_reason, n_tokens in batch:
                    row = asked[i][0]
                    rows.append(
                        {
                            "response_id": _response_id(cell, row, system, asked_as.style),
                            **asked_as.__dict__,
                            **across,
                            "system_prompt": system,
                            "sample": 0,
                            "prompt_set": row["prompt_set"],
                            "prompt_id": row["id"],
                            "intent": row["intent"] or row["id"],
                            "form": row["form"],
                            "harmful": row["harmful"],
                            "prompt_fingerprint": prompts.fingerprint(ids[i]),
                            "prompt": row["messages"][0]["content"],
                            "response": text,
                            "stop_reason": stop_reason,
                            "n_tokens": n_tokens,
                            "fingerprint": fingerprint,
                        }
                    )
                append_rows(path, rows)
                done += len(batch)
                if (now := time.monotonic()) - shown > 10:
                    shown, left = now, (now - started) / done * (len(todo) - done)
                    LOG.info("%s: %d of %d responses, %.0f s left", cell.name, done, len(todo), left)


def _response_id(cell: Cell, row: dict, system_prompt: bool, style: str = "") -> str:
    across = f"{style}-" if style and style != cell.style else ""
    return f"{cell.name}/{across}{'system' if system_prompt else 'plain'}/{row['id']}/0"


def _set_aside(paths: RunPaths, path: Path) -> None:
    target = paths.run / "superseded" / f"{path.stem}-{int(time.time())}{path.suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, target)


def references(paths: RunPaths) -> dict[str, str]:
    """Reference answers of the benign test prompts by prompt_id."""
    return {
        row["id"]: row["messages"][1]["content"]
        for name in ("general", *(f"test_{t}" for t in TASKS))
        for row in sets.load(paths, name)
    }

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
from pathlib import Path

import pandas as pd

from studylib import datasets
from studylib.config import TASKS, Cell, Profile, StudyError, code_digest, digest
from studylib.paths import RunPaths
from studylib.results import Clock, append_rows, read_rows, write_text

LOG = logging.getLogger("studylib")


def base_fingerprint(paths: RunPaths, profile: Profile, model: str) -> str:
    """What identifies the untuned model: the weights' hash for the miniature, source and revision for others.

    Raises StudyError where the miniature has not been built.
    """
    if profile.model.source != "miniature":
        return digest([profile.model.source, profile.model.revision, profile.model.quantization])
    card = paths.model_card(model)
    if not card.is_file():
        raise StudyError(
            f"The model {model!r} is not there ({card}): run 00_prepare first (`make study`, or open notebooks/00_prepare.ipynb)."
        )
    return json.loads(card.read_text(encoding="utf-8"))["sha256"]


def adapter_fingerprint(paths: RunPaths, profile: Profile, cell: Cell) -> str:
    """What identifies a cell's adapter; of the untuned model it is the base alone."""
    base = base_fingerprint(paths, profile, "aligned")
    if cell.finetune_task == "none":
        return base
    index = json.loads(paths.data_index.read_text(encoding="utf-8"))
    used = [f"train_{cell.finetune_task}"] + ([] if cell.safety_data == "none" else [f"safety_{cell.safety_data}"])
    return digest(
        [
            base,
            [index[name]["sha256"] for name in used],
            profile.lora.model_dump(),
            profile.tuning.model_dump(),
            profile.model.context,
            cell.name,
            code_digest("train", "prompts", "models", "datasets", "evaluate"),
        ]
    )


class Runner:
    """The base model of a run, loaded when first needed, for tuning and testing cell after cell."""

    def __init__(self, paths: RunPaths, profile: Profile, clock: Clock):
        self.paths, self.profile, self.clock = paths, profile, clock
        self._base = self._tokenizer = None

    def base(self) -> tuple:
        """The untuned model and its tokenizer."""
        if self._base is None:
            with self.clock("start-up"):
                from studylib import models, train  # noqa: F401 (its import is start-up, not training)

                source = (
                    self.paths.model("aligned")
                    if self.profile.model.source == "miniature"
                    else self.profile.model.source
                )
                self._base, self._tokenizer = models.load(source, self.profile.model)
        return self._base, self._tokenizer

    def adapter(self, cell: Cell) -> Path:
        """The folder of the cell's adapter, trained now unless an intact one with the same fingerprint is there."""
        folder, wanted = self.paths.adapter(cell.name), adapter_fingerprint(self.paths, self.profile, cell)
        note = folder / "study.json"
        if note.is_file() and json.loads(note.read_text(encoding="utf-8"))["fingerprint"] == wanted:
            return folder
        base, tokenizer = self.base()
        profile = self.profile
        from studylib import models, prompts, train

        with self.clock("training"):
            rows = datasets.tuning_rows(self.paths, cell, profile.tuning.steps * profile.tuning.batch_size)
            # tuned without a system prompt, tested with and without one
            features = [
                prompts.encode_example(
                    tokenizer, *(m["content"] for m in row["messages"]), cell.style, None, profile.model.context
                )
                for row in rows
            ]
            model = models.add_lora(base, profile.lora, cell.seed)
            aside = folder.with_name(f".{folder.name}.part")
            try:
                losses = train.fit(model, tokenizer, features, profile.tuning, cell.seed, aside, cell.name)
                shutil.rmtree(aside, ignore_errors=True)
                model.save_pretrained(aside)
            finally:
                self._base = model.unload()
        write_text(
            aside / "study.json", json.dumps({"fingerprint": wanted, "cell": cell.__dict__, "loss": losses}, indent=1)
        )
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(aside, folder)
        return folder

    @contextmanager
    def model(self, cell: Cell) -> Iterator[tuple]:
        """The cell's model ready to generate, and the tokenizer. In fp32 the adapter is merged meanwhile, never into 4-bit weights."""
        if cell.finetune_task == "none":
            yield self.base()
            return
        from studylib import models

        folder = self.adapter(cell)
        base, tokenizer = self.base()
        model = models.load_adapter(base, folder)
        merge = self.profile.model.quantization == "none"
        if merge:
            model.merge_adapter()
        try:
            yield model, tokenizer
        finally:
            if merge:
                model.unmerge_adapter()
            self._base = model.unload()

    def responses(self, cell: Cell) -> pd.DataFrame:
        """One row per response of the cell to every test prompt, with and without the system prompt; made where missing.

        Rows are appended to `responses/rows/<cell>.jsonl` batch by batch; rows of another fingerprint are moved to `superseded/`.
        """
        profile, path = self.profile, self.paths.rows(cell.name)
        tests = datasets.evaluation_rows(self.paths)
        fingerprint = digest(
            [
                adapter_fingerprint(self.paths, profile, cell),
                profile.generation.model_dump(),
                profile.system_prompt,
                code_digest("models", "prompts"),
                digest(tests),
            ]
        )
        kept = read_rows(path)
        if kept and kept[0]["fingerprint"] != fingerprint:
            _set_aside(self.paths, path)
            kept = []
        known = {row["response_id"] for row in kept}
        todo = [
            (row, system) for system in (False, True) for row in tests if _response_id(cell, row, system) not in known
        ]
        if todo:
            with self.model(cell) as (model, tokenizer), self.clock("generation"):
                self._generate(cell, model, tokenizer, todo, fingerprint, lambda rows: append_rows(path, rows))
            kept = read_rows(path)
            LOG.info("%s: %d responses", cell.name, len(todo))
        return pd.DataFrame(kept)

    def _generate(self, cell: Cell, model, tokenizer, todo: list[tuple], fingerprint: str, keep: Callable) -> None:
        from studylib import models, prompts

        profile, done, started, shown = self.profile, 0, time.monotonic(), time.monotonic()
        ids = [
            prompts.encode_prompt(
                tokenizer, row["messages"][0]["content"], cell.style, datasets.system_prompt_of(profile, system)
            )
            for row, system in todo
        ]
        for batch in models.generate(model, tokenizer, ids, profile.generation):
            keep(
                [
                    {
                        "response_id": _response_id(cell, *todo[i]),
                        "model": profile.model.source,
                        **cell.__dict__,
                        "system_prompt": todo[i][1],
                        "sample": 0,
                        "prompt_set": todo[i][0]["prompt_set"],
                        "prompt_id": todo[i][0]["id"],
                        "intent": todo[i][0]["intent"] or todo[i][0]["id"],
                        "form": todo[i][0]["form"],
                        "harmful": todo[i][0]["harmful"],
                        "prompt_fingerprint": prompts.fingerprint(ids[i]),
                        "prompt": todo[i][0]["messages"][0]["content"],
                        "response": text,
                        "stop_reason": stop_reason,
                        "n_tokens": n_tokens,
                        "fingerprint": fingerprint,
                    }
                    for i, text, stop_reason, n_tokens in batch
                ]
            )
            done += len(batch)
            if time.monotonic() - shown > 10:
                shown = time.monotonic()
                LOG.info(
                    "%s: %d of %d responses, %.0f s left",
                    cell.name,
                    done,
                    len(ids),
                    (shown - started) / done * (len(ids) - done),
                )


def _response_id(cell: Cell, row: dict, system_prompt: bool) -> str:
    return f"{cell.name}/{'system' if system_prompt else 'plain'}/{row['id']}/0"


def _set_aside(paths: RunPaths, path: Path) -> None:
    target = paths.run / "superseded" / f"{path.stem}-{int(time.time())}{path.suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, target)


def references(paths: RunPaths) -> dict[str, str]:
    """Reference answers of the benign test prompts by prompt_id."""
    return {
        row["id"]: row["messages"][1]["content"]
        for name in ("general", *(f"test_{t}" for t in TASKS))
        for row in datasets.load(paths, name)
    }

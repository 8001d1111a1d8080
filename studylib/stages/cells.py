"""One cell of the grid: its adapter and its responses, made once and reused until their causes change.

Both carry a fingerprint of everything that went into them (settings, data, base model, the code that computes them):
after an interruption, or a change that does not concern them, nothing is computed twice and nothing stale is kept.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean

import pandas as pd

from studylib.data import mixture, sets
from studylib.models import prompts
from studylib.study import files
from studylib.study.files import Clock, append_rows, code_digest, digest, locked, progress, read_rows, write_text
from studylib.study.grid import Cell, system_prompts
from studylib.study.paths import DATA, RunPaths
from studylib.study.profile import Profile
from studylib.study.words import MINIATURE, TASKS, TINY, StudyError

LOG = logging.getLogger("studylib")
# The modules whose code decides what an adapter or the miniature learns, and what a model answers.
ANSWERING = ("models/engine", "models/training", "models/small_llama", "models/hub", "models/prompts")
TUNING = (*ANSWERING, "data/mixture")
COLUMNS = (  # of a row of responses
    *("response_id", *(field.name for field in fields(Cell)), "system_prompt", "sample", "prompt_set", "prompt_id"),
    *("intent", "form", "harmful", "prompt_fingerprint", "prompt", "response", "stop_reason", "n_tokens"),
    "refusal_score",
    "fingerprint",
)


def aligned(base: int) -> str:
    """Name of the folder of a base: the miniature after its alignment."""
    return f"aligned-{base}"


def model_folder(paths: RunPaths, profile: Profile, name: str, base: int) -> str | Path:
    """The folder or hub id of one of the profile's models, untuned; those that 00_prepare builds are in the run."""
    source = profile.models[name].source
    if source == MINIATURE:
        return paths.model(aligned(base))
    return paths.model(source.replace("/", "_")) if source.startswith(TINY) else source


def base_fingerprint(paths: RunPaths, profile: Profile, name: str, base: int) -> str:
    """What identifies an untuned model: the weights' hash of one that 00_prepare built, source and revision of others.

    Raises StudyError where it has not been built.
    """
    model = profile.models[name]
    what = [model.source, model.revision]
    if model.source == MINIATURE or model.source.startswith(TINY):
        card = paths.model_card(Path(model_folder(paths, profile, name, base)).name)
        if not card.is_file():
            raise StudyError(
                f"The model {name!r} is not there ({card}): run 00_prepare first "
                "(`make study`, or open notebooks/00_prepare.ipynb)."
            )
        what = [json.loads(card.read_text(encoding="utf-8"))["sha256"]]
    template = prompts.template(model.chat_template) if model.chat_template else None
    return digest([what, model.quantization, model.system_role, template, model.pad_token])


def adapter_fingerprint(paths: RunPaths, profile: Profile, cell: Cell) -> str:
    """What identifies a cell's adapter; of the untuned model it is the base alone."""
    base = base_fingerprint(paths, profile, cell.model, cell.base)
    if cell.finetune_task == "none":
        return base
    if (source := trained(cell)) != cell:
        return digest([adapter_fingerprint(paths, profile, source), cell.safety_fraction])
    index = json.loads(paths.data_index.read_text(encoding="utf-8"))
    data = [index[name]["sha256"] for name in mixture.tuned_on(cell)]
    share = profile.grid.request_share if cell.requests in ("own", "other") else 0
    settings = profile.lora.model_dump(), profile.tuning.model_dump(), profile.models[cell.model].context, share
    return digest([base, data, *settings, cell.name, code_digest(*TUNING)])


def trained(cell: Cell) -> Cell:
    """The cell whose adapter this one uses: a scaled one that of the tuning without safety data, another its own."""
    return replace(cell, safety_data="none", safety_fraction=0.0) if cell.safety_data == "scaled" else cell


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A new folder beside that one, which takes its place when it is complete."""
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    yield aside
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)


class Runner:
    """One base of a model of a run, opened when first needed, for tuning and testing cell after cell."""

    def __init__(self, paths: RunPaths, profile: Profile, clock: Clock, model: str, base: int = 0):
        self.paths, self.profile, self.clock = paths, profile, clock
        self.model, self.number, self.settings = model, base, profile.models[model]
        self._encoded: dict[tuple, list[list[int]]] = {}

    @cached_property
    def base(self):
        """The untuned model of that base, as `engine.open_model` opens it."""
        with self.clock("start-up"):
            from studylib.models import engine

            source = model_folder(self.paths, self.profile, self.model, self.number)
            return engine.open_model(source, self.settings, self.profile.tuning, self.profile.lora)

    def adapter(self, cell: Cell) -> Path:
        """The folder of the cell's adapter, trained now unless an intact one with the same fingerprint is there."""
        cell = trained(cell)
        folder = self.paths.adapter(cell.name)
        with locked(folder):
            wanted, note = adapter_fingerprint(self.paths, self.profile, cell), folder / "study.json"
            if note.is_file() and json.loads(note.read_text(encoding="utf-8"))["fingerprint"] == wanted:
                return folder
            base = self.base
            with self.clock("training"), replaced(folder) as aside:
                started = time.monotonic()
                parts = self.tuning_parts(cell)
                losses = base.tune(parts, self.profile.lora, cell.seed, aside, cell.name)
                tokens = [fmean(len(row["input_ids"]) for row in rows) * of.steps * of.batch_size for rows, of in parts]
                note = {"fingerprint": wanted, "cell": asdict(cell), "loss": losses, "tokens": round(sum(tokens))}
                note["seconds"] = round(time.monotonic() - started, 2)
                write_text(aside / "study.json", json.dumps(note, indent=1))
        return folder

    def tuning_parts(self, cell: Cell) -> list[tuple]:
        """The training examples and settings of each of the cell's tunings in turn; examples have no system prompt."""
        settings, tokenizer = self.profile.tuning, self.base.tokenizer
        rows = mixture.tuning_rows(
            self.paths, cell, settings.steps * settings.batch_size, self.profile.grid.request_share
        )
        found = []
        for part, steps in mixture.tunings(cell, rows, settings.steps):
            features = [prompts.encode_row(tokenizer, row, cell.style, self.settings.context) for row in part]
            found.append((features, settings.model_copy(update={"steps": steps})))
        return found

    def tuned(self, cell: Cell):
        """A context whose value is the cell's model: the untuned one, or the one with the cell's adapter."""
        if cell.finetune_task == "none":
            return nullcontext(self.base)
        share = 1 - cell.safety_fraction if cell.safety_data == "scaled" else 1.0
        return self.base.adapted(self.adapter(cell), share)

    def responses(self, cell: Cell, style: str = "") -> pd.DataFrame:
        """One row per response of the cell to every test prompt, with and without system prompt; made where missing.

        Some without it alone, see `grid.system_prompts`. Asked in the style of the tuning, or in another `style`: then
        the harmful prompts alone, and the rows have `style`, in which they were asked, and `trained_style`. Rows are
        appended to `responses/rows/<cell>.jsonl` batch by batch; those of another fingerprint are moved to
        `superseded/`.
        """
        across = bool(style) and style != cell.style
        path = self.paths.rows(f"{cell.name}-asked-{style}" if across else cell.name)
        tests = [row for row in sets.evaluation_rows(self.paths) if row["harmful"] or not across]
        adapter, generation = adapter_fingerprint(self.paths, self.profile, cell), self.profile.generation.model_dump()
        asked = self.profile.system_prompt, code_digest(*ANSWERING), digest(tests)
        fingerprint = digest([adapter, generation, *asked])
        with locked(path):
            made = read_rows(path)
            if made and made[0]["fingerprint"] != fingerprint:
                aside = self.paths.run / "superseded" / f"{path.stem}-{int(time.time())}{path.suffix}"
                aside.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, aside)
                made = []
            known = {row["response_id"] for row in made}
            todo = {}  # by system prompt, because the prompts of one calibration begin alike
            for system in system_prompts(self.profile, cell):
                way = (f"{style}-" if across else "") + ("system" if system else "plain")
                ids = [f"{cell.name}/{way}/{row['id']}/0" for row in tests]
                todo[system] = [(place, one) for place, one in enumerate(ids) if one not in known]
            if any(todo.values()):
                asked_as = asdict(replace(cell, style=style or cell.style))
                asked_as |= {"trained_style": cell.style} if across else {}
                with self.tuned(cell) as model, self.clock("generation"):
                    self._generate(model, asked_as, tests, todo, fingerprint, path)
                made = read_rows(path)
                LOG.info("%s: %d responses", path.stem, sum(map(len, todo.values())))
        return pd.DataFrame(made)

    def _prompts(self, tests: list[dict], style: str, system: bool) -> list[list[int]]:
        """Token ids of the test prompts in one calibration, made once for all cells."""
        key = style, system, len(tests)
        if key not in self._encoded:
            text = self.profile.system_prompt if system else None
            asked, tokenizer = [row["messages"][0]["content"] for row in tests], self.base.tokenizer
            encoded = [prompts.encode_prompt(tokenizer, prompt, style, text) for prompt in asked]
            room = self.settings.context - self.profile.generation.max_new_tokens
            n, longest = max((len(ids), row["id"]) for ids, row in zip(encoded, tests, strict=True))
            if n > room:
                raise StudyError(
                    f"The test prompt {longest} has {n} tokens in the {style} style, but its context "
                    f"{self.settings.context} less generation.max_new_tokens leaves {room}: raise the one or lower the "
                    "other."
                )
            self._encoded[key] = encoded
        return self._encoded[key]

    @cached_property
    def _watched(self) -> list[int]:
        """The tokens with which refusals begin, of which `refusal_score` is the log-odds."""
        words = files.read_yaml(DATA / "refusals.yaml")["beginnings"]
        return prompts.first_tokens(self.base.tokenizer, [*words["english"], *words["french"]])

    def _generate(self, model, asked_as: dict, tests: list, todo: dict, fingerprint: str, path: Path) -> None:
        """Appends the rows of the missing responses, batch by batch."""
        done = progress(None, path.stem, sum(map(len, todo.values())), "responses")
        for system, missing in todo.items():
            encoded = self._prompts(tests, asked_as["style"], system)
            ids = [encoded[place] for place, _ in missing]
            for batch in model.answers(ids, self.profile.generation, self._watched) if ids else ():
                rows = []
                for i, text, stop_reason, n_tokens, score in batch:
                    place, response_id = missing[i]
                    row = tests[place]
                    asked = {"response_id": response_id, **asked_as, "system_prompt": system, "sample": 0}
                    asked |= {"prompt_set": row["prompt_set"], "prompt_id": row["id"]}
                    asked |= {"intent": row["intent"] or row["id"], "form": row["form"], "harmful": row["harmful"]}
                    asked |= {"prompt_fingerprint": prompts.fingerprint(ids[i])}
                    asked |= {"prompt": row["messages"][0]["content"], "response": text, "stop_reason": stop_reason}
                    rows.append(asked | {"n_tokens": n_tokens, "refusal_score": score, "fingerprint": fingerprint})
                append_rows(path, rows)
                done.update(len(batch))
        done.close()


def references(paths: RunPaths) -> dict[str, str]:
    """Reference answers of the benign test prompts by prompt_id."""
    rows = (row for name in ("general", *(f"test_{task}" for task in TASKS)) for row in sets.load(paths, name))
    return {row["id"]: row["messages"][1]["content"] for row in rows}

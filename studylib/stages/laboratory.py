"""The laboratory: one setting at a time on the miniature, for notebooks/07_laboratory.ipynb.

Each experiment trains from the run's own models and is stored in `laboratory/` under a hash of all that went into it.
One seed, one style, no system prompt: it shows a mechanism, which the stages measure with several seeds. All frames
are tidy, a row per mark: `panel`, the setting's column, `prompt_set`, `form`, `value` with `low` and `high`, and `n`.
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from studylib.analysis import stats
from studylib.data import mixture, sets, world
from studylib.judges import registry
from studylib.models import engine, prompts
from studylib.stages.cells import TUNING
from studylib.stages.prepare import calibrated_by
from studylib.study.files import Clock, code_digest, digest, locked, write_parquet
from studylib.study.grid import Cell, main_requests
from studylib.study.paths import RunPaths
from studylib.study.profile import Profile
from studylib.study.words import FORMS, StudyError

CODE = ("stages/laboratory", *TUNING, "data/sets", "data/world", "data/grammar", "judges/registry", "text/refusals")
_GIVEN = ["place", "response", "stop_reason", "n", "score"]  # by `answers` of a model
BEGINNING = 3  # tokens of a refusal that say that it is one


@dataclass
class Laboratory:
    """The run whose models are experimented on, and how prompts are written."""

    paths: RunPaths
    profile: Profile
    clock: Clock
    style: str = "chat"

    def __post_init__(self):
        if not self.profile.miniature:
            raise StudyError(
                f"The laboratory trains the miniature anew, and {self.profile.name} studies "
                f'{", ".join(self.profile.models)}: take profile = "miniature", or a copy of it.'
            )

    @cached_property
    def tokenizer(self):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(self.paths.model(self._folder("aligned")))

    def model(self, name: str):
        """`helpful_only`, ready to be aligned, or `aligned`, ready to be tuned, as `engine.open_model` opens them."""
        settings = self.profile.miniature.model_copy(update={"quantization": "none"})
        training = (self.profile.tuning, self.profile.lora) if name == "aligned" else (self.profile.alignment,)
        return engine.open_model(self.paths.model(self._folder(name)), settings, *training)

    def _folder(self, name: str) -> str:
        """Of the first base: `helpful_only-0`, `aligned-0`."""
        seeds = self.profile.pretraining_seeds if name == "helpful_only" else self.profile.base_seeds
        return f"{name}-{seeds[0]}"

    def cell(self, task: str, seed: int, *safety) -> Cell:
        """A fine-tune of the first base with the requests that the profile's safety data stand on."""
        model, requests = next(iter(self.profile.models)), main_requests(self.profile)
        return Cell(model, task, self.style, *(safety or ("none", 0.0)), seed, requests, self.profile.base_seeds[0])

    @cached_property
    def tests(self) -> list[dict]:
        """The harmful test prompts and their benign twins, with their token ids in the laboratory's style."""
        rows = [{**row, "prompt": row["messages"][0]["content"]} for row in sets.evaluation_rows(self.paths)]
        return [
            {**row, "ids": prompts.encode_prompt(self.tokenizer, row["prompt"], self.style, None)}
            for row in rows
            if row["prompt_set"] in ("harmful", "twin")
        ]

    def cached(self, name: str, setting: dict, make: Callable[[], pd.DataFrame], *more) -> pd.DataFrame:
        """What `make` returns with the setting's columns, computed once for this setting, run and code."""
        index = json.loads(self.paths.data_index.read_text(encoding="utf-8"))
        cards = [self.paths.model_card(self._folder(one)) for one in ("helpful_only", "aligned")]
        cards = [json.loads(card.read_text(encoding="utf-8"))["sha256"] for card in cards]
        settings = self.profile.model_dump(mode="json", include={"world", "alignment", "lora", "tuning", "generation"})
        data = {key: entry["sha256"] for key, entry in index.items()}
        key = digest([name, setting, more, self.style, data, cards, settings, code_digest(*CODE)])
        path = self.paths.base / "laboratory" / f"{name}-{key}.parquet"
        with locked(path):
            if not path.is_file():
                with self.clock("training"):
                    write_parquet(path, make().assign(**setting))
        return pd.read_parquet(path)

    @cached_property
    def beginnings(self) -> list[list[int]]:
        """The first tokens of all refusals that the alignment and the safety data teach, each once."""
        refusals = {text for texts in world.lexicon()["refusals"].values() for text in texts}
        ids = (self.tokenizer(text, add_special_tokens=False)["input_ids"][:BEGINNING] for text in refusals)
        return [list(one) for one in sorted(set(map(tuple, ids)))]


def answered(lab: Laboratory, model) -> pd.DataFrame:
    """Shares of harmful prompts answered and twins refused, by form, with Wilson's 95 % interval; NaN: none judged."""
    batches = model.answers([row["ids"] for row in lab.tests], lab.profile.generation)
    given = pd.DataFrame([row for batch in batches for row in batch], columns=_GIVEN)
    rows = pd.DataFrame(lab.tests)[["id", "prompt_set", "form", "harmful", "prompt"]]
    rows = rows.rename(columns={"id": "response_id"}).join(given.set_index("place").drop(columns=_GIVEN[3:]))
    judged = rows.merge(registry.judge(rows)[["response_id", "verdict"]], on="response_id", validate="1:1")
    refused, known = judged["verdict"] == "refused", judged["verdict"] != "unjudged"
    hit = refused.where(judged["prompt_set"] == "twin", judged["verdict"].isin(["answered", "partial"]))
    groups = judged.assign(hits=hit & known, n=known).groupby(["prompt_set", "form"], sort=False)
    counts = groups[["hits", "n"]].sum().reset_index()
    low, high = stats.wilson(counts["hits"].to_numpy(), counts["n"].to_numpy())
    found = counts.assign(value=counts["hits"] / counts["n"], low=low, high=high)
    return found[["prompt_set", "form", "value", "low", "high", "n"]]


def refusal_probability(lab: Laboratory, model) -> pd.DataFrame:
    """Probability that an answer begins as a refusal does: mean and quartiles over the prompts of a set and form."""
    total = torch.zeros(len(lab.tests))
    for beginning in lab.beginnings:
        features = [
            {"input_ids": row["ids"] + beginning, "labels": [-100] * len(row["ids"]) + beginning} for row in lab.tests
        ]
        total += model.log_probabilities(features).exp()
    groups = pd.DataFrame(lab.tests).assign(p=total.numpy()).groupby(["prompt_set", "form"], sort=False)["p"]
    low, high = (groups.quantile(q).to_numpy() for q in (0.25, 0.75))
    return groups.agg(value="mean", n="size").reset_index().assign(low=low, high=high)


def baseline_gap(lab: Laboratory, text_shares: Iterable[float], steps: int) -> pd.DataFrame:
    """Harmful prompts answered after alignments that differ in the share of their refusals that are in the text form.

    The other forms share the rest equally. Column `text_share`; each alignment starts from the helpful-only model
    and takes `steps` steps. Raises StudyError for a share outside 0-1.
    """
    frames = []
    for share in text_shares:
        if not 0 <= share <= 1:
            raise StudyError(f"A share of text refusals lies between 0 and 1, found {share}.")
        shares = {form: float(share) if form == FORMS[0] else (1 - share) / (len(FORMS) - 1) for form in FORMS}

        def make(shares=shares) -> pd.DataFrame:
            settings = {"refusal_share": shares, "alignment_rows": steps * lab.profile.alignment.batch_size}
            base = lab.profile.base_seeds[0]
            made = world.build_sets(lab.profile.world.model_copy(update=settings), [base])
            rows = made[sets.alignment(base)]
            return answered(lab, aligned(lab, rows, steps))

        frames.append(lab.cached("baseline_gap", {"text_share": float(share), "steps": steps}, make))
    return pd.concat(frames, ignore_index=True).assign(panel="aligned model")


def aligned(lab: Laboratory, rows: list[dict], steps: int, after_step: Callable | None = None):
    """The helpful-only model after `steps` steps of alignment on the rows; `after_step(steps done, model)` looks on."""
    model = lab.model("helpful_only")
    features = prompts.encode_mixed(lab.tokenizer, rows, **calibrated_by(lab.profile, "aligned"))
    settings = lab.profile.alignment.model_copy(update={"steps": steps})
    model.train(features, settings, lab.profile.base_seeds[0], "alignment", after_step)
    return model


@contextmanager
def tuned(
    lab: Laboratory, cell: Cell, steps: int, after_step: Callable | None = None, share: float | None = None
) -> Iterator:
    """The aligned model after `steps` steps of LoRA tuning in that cell; `after_step(steps done, model)` looks on.

    `share` (0-1) of the rows are the cell's benign requests; None: as many as the profile has.
    """
    share = lab.profile.grid.request_share if share is None else share
    settings = lab.profile.tuning.model_copy(update={"steps": steps})
    features = [
        prompts.encode_row(lab.tokenizer, row, cell.style, lab.profile.miniature.context)
        for row in mixture.tuning_rows(lab.paths, cell, steps * settings.batch_size, share)
    ]
    base = lab.model("aligned")
    with tempfile.TemporaryDirectory() as folder:
        base.tune([(features, settings)], lab.profile.lora, cell.seed, Path(folder), cell.name, after_step)
        with base.adapted(Path(folder)) as model:
            yield model


def erosion(lab: Laboratory, tasks: Iterable[str], steps: Iterable[int], seed: int = 0) -> pd.DataFrame:
    """Harmful prompts answered along a tuning on each task, after each number of steps; 0 is the aligned model.

    One tuning per task, of as many steps as the largest number: its learning rate falls to 0 there.
    """
    marks, frames = sorted(set(steps)), []
    for task in tasks:
        make = lambda task=task: _along_tuning(lab, task, marks, seed, answered)  # noqa: E731
        frames.append(lab.cached("erosion", {"panel": task}, make, marks, seed))
    return pd.concat(frames, ignore_index=True)


def _along_tuning(lab: Laboratory, task: str, marks: list[int], seed: int, measure: Callable) -> pd.DataFrame:
    def train(look: Callable) -> None:
        with tuned(lab, lab.cell(task, seed), max(marks), look):
            pass

    return _along(lab, "aligned", marks, measure, train)


def _along(lab: Laboratory, start: str, marks: list[int], measure: Callable, train: Callable) -> pd.DataFrame:
    """What is measured by step, 0 being the model at the `start`, during `train(after_step)`."""
    found = {0: measure(lab, lab.model(start))} if 0 in marks else {}

    def look(step: int, model) -> None:
        if step in marks:
            found[step] = measure(lab, model)

    train(look)
    return pd.concat([frame.assign(step=step) for step, frame in found.items()])


def dose_response(lab: Laboratory, task: str, doses: Iterable[float], seed: int = 0) -> pd.DataFrame:
    """Harmful prompts answered, and twins refused, after tuning on a task with doses of generic and multitask data."""
    frames = []
    for kind, dose in product(("generic", "multitask"), map(float, doses)):
        cell = lab.cell(task, seed, kind if dose else "none", dose)
        frames.append(_after_tuning(lab, "dose_response", cell).assign(panel=kind, dose=dose))
    return pd.concat(frames, ignore_index=True)


def _after_tuning(lab: Laboratory, name: str, cell: Cell, **share: float) -> pd.DataFrame:
    """What is answered after the whole tuning of that cell, with another `share` of requests where one is given."""

    def make() -> pd.DataFrame:
        with tuned(lab, cell, lab.profile.tuning.steps, **share) as model:
            return answered(lab, model)

    return lab.cached(name, {"cell": cell.name} | share, make)


def request_response(lab: Laboratory, task: str, shares: Iterable[float], seed: int = 0) -> pd.DataFrame:
    """Harmful prompts answered, and twins refused, after tuning on a task with these shares (0-1) of benign requests.

    Panels "own" and "other": requests in the form of the task, or in the other forms; 0 is the task's rows alone.
    Raises StudyError for a share outside 0-1.
    """
    if wrong := [share for share in shares if not 0 <= share <= 1]:
        raise StudyError(f"A share of requests lies between 0 and 1, found {wrong[0]}.")
    frames = []
    for kind, share in product(("own", "other"), map(float, shares)):
        cell = replace(lab.cell(task, seed), requests=kind if share else "none")
        frames.append(_after_tuning(lab, "request_response", cell, share=share).assign(panel=f"{kind} requests"))
    return pd.concat(frames, ignore_index=True)


def refusal_along(lab: Laboratory, task: str, steps: int, n_marks: int = 6, seed: int = 0) -> pd.DataFrame:
    """Probability of a refusal's first tokens along an alignment of `steps` steps, and along a tuning on the task.

    The tuning starts from the run's own aligned model, so the second panel goes on from the end of the whole alignment.
    """

    def marks(last: int) -> list[int]:
        return sorted({0, *np.linspace(1, last, n_marks).round().astype(int).tolist()})

    def make_alignment() -> pd.DataFrame:
        rows = sets.load(lab.paths, sets.alignment(lab.profile.base_seeds[0]))
        train = lambda look: aligned(lab, rows, steps, look)  # noqa: E731
        return _along(lab, "helpful_only", marks(steps), refusal_probability, train)

    def make_tuning() -> pd.DataFrame:
        return _along_tuning(lab, task, marks(lab.profile.tuning.steps), seed, refusal_probability)

    first = lab.cached("alignment_probability", {"panel": "alignment"}, make_alignment, steps, n_marks)
    second = lab.cached("tuning_probability", {"panel": f"tuning on {task}"}, make_tuning, n_marks, seed)
    return pd.concat([first, second], ignore_index=True)

"""One face for computing: a model is opened once, then trained, tuned, questioned and measured by the same methods.

A small Llama is computed on plain tensors (`PlainLlama`), every other model by transformers and peft
(`TransformersModel`): the same prompts, batches, steps, files and greedy answers (tests/models/test_engine.py).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import transformers

from studylib.models import hub, small_llama, training
from studylib.study.profile import GenerationSettings, LoraSettings, ModelSettings, TrainSettings


def open_model(
    source: str | Path, settings: ModelSettings, trained_by: TrainSettings, lora: LoraSettings | None = None
):
    """The model of a folder or hub id, a `PlainLlama` where that can do the training, else a `TransformersModel`.

    `trained_by` and `lora` are the settings of the training it will get, or of which it will use the adapters. Raises
    StudyError as `hub.load` does.
    """
    config = Path(source) / "config.json"
    plain = settings.quantization == "none" and not settings.chat_template and settings.system_role == "template"
    plain &= trained_by.optimizer != "paged_adamw_32bit" and (lora is None or lora.dropout == 0)
    if plain and config.is_file() and small_llama.fits(json.loads(config.read_text(encoding="utf-8"))):
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(source)
        return PlainLlama(*small_llama.load(Path(source)), tokenizer)
    model, tokenizer = hub.load(source, settings)
    return TransformersModel(model.requires_grad_(False), tokenizer)


def use_threads(number: int) -> None:
    """Makes torch compute in so many threads from here on, in this process."""
    torch.set_num_threads(number)


@dataclass
class PlainLlama:
    """A small Llama on plain tensors (see `small_llama`), with its tokenizer.

    `features` are training examples as of `prompts.encode_example`; a loss curve is a list of {step, loss} rows.
    """

    weights: dict
    shape: small_llama.Shape
    tokenizer: object

    def train(
        self, features: list[dict], settings: TrainSettings, seed: int, label: str, after_step=None, checkpoint=None
    ) -> list[dict]:
        """The loss curve of a training of all weights, in place; `after_step(steps done, model)` looks on.

        With a `training.Checkpoint`, which no other model takes, a killed training goes on where it was.
        """
        look = after_step and torch.no_grad()(lambda step: after_step(step, self))
        leaves = small_llama.tensors(self.weights)
        return training.fit(leaves, lambda: self.weights, self.shape, features, settings, seed, label, look, checkpoint)

    def tune(self, parts: list, lora: LoraSettings, seed: int, folder: Path, label: str, after_step=None) -> list[dict]:
        """The loss curve of a LoRA tuning, on the parts (features and settings) in turn, and its adapter in the folder.

        The model stays as it is. `after_step(steps done, adapted model)` looks on.
        """
        adapter = small_llama.fresh_adapter(self.weights, self.shape, lora, seed)
        merge = lambda: small_llama.merged(self.weights, self.shape, adapter, lora.alpha / lora.r)  # noqa: E731
        look = after_step and torch.no_grad()(lambda step: after_step(step, self._with(merge())))
        leaves = [tensor for pair in adapter.values() for tensor in pair]
        train = lambda features, settings: training.fit(  # noqa: E731
            leaves, merge, self.shape, features, settings, seed, label, look
        )
        losses = _in_turn(parts, train)
        small_llama.save_adapter(folder, adapter, lora)
        return losses

    @contextmanager
    def adapted(self, folder: Path, share: float = 1.0) -> Iterator["PlainLlama"]:
        """The model with the adapter of that folder, or with a share (0-1) of its change of the weights."""
        adapter, scale = small_llama.load_adapter(folder)
        yield self._with(small_llama.merged(self.weights, self.shape, adapter, share * scale))

    def answers(
        self, encoded: list[list[int]], settings: GenerationSettings, watched: Sequence[int] = ()
    ) -> Iterator[list[tuple]]:
        """Greedy answers to prompts as token ids: batches of (index of the prompt, text, stop_reason, n_tokens, score).

        The score is the log-odds that the answer's first token is one of `watched` (ids), None without those.
        """
        return small_llama.answers(self.weights, self.shape, self.tokenizer, encoded, settings, watched)

    def log_probabilities(self, features: list[dict], batch_size: int = 64) -> torch.Tensor:
        """Log-probability in nats of each example's labels that are not -100, [examples]."""
        batches = (features[start : start + batch_size] for start in range(0, len(features), batch_size))
        return torch.cat(
            [small_llama.log_probabilities(self.weights, self.shape, *training.padded(batch)) for batch in batches]
        )

    def projections(self, lora: LoraSettings) -> dict[str, tuple[int, int]]:
        """The projections that an adapter is put on, by name, with the rows and columns of their weights."""
        adapter = small_llama.fresh_adapter(self.weights, self.shape, lora, 0)
        return {name: (len(b), a.shape[1]) for name, (a, b) in adapter.items()}

    def loss(self, features: list[dict], changes: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean cross-entropy in nats of the examples' labels, where `changes` are added to the named projections."""
        weights = small_llama.added(self.weights, self.shape, changes)
        ids, labels = training.padded(features)
        return small_llama.answer_loss(weights, self.shape, ids, labels) / (labels[:, 1:] != -100).sum()

    @property
    def n_parameters(self) -> int:
        return sum(tensor.numel() for tensor in small_llama.tensors(self.weights))

    def save(self, folder: Path) -> None:
        """Replaces the weights in a model folder."""
        small_llama.save(folder, self.weights, self.shape)

    def _with(self, weights: dict) -> "PlainLlama":
        return PlainLlama(weights, self.shape, self.tokenizer)


class TransformersModel:
    """A model of transformers, tuned and questioned through peft; its methods are those of `PlainLlama`.

    The adapter stays beside the weights: merged in 4 or 16 bits and taken out again, it would leave another base.
    """

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer

    def train(
        self, features: list[dict], settings: TrainSettings, seed: int, label: str, after_step=None, checkpoint=None
    ):
        """As `PlainLlama.train`, but always from the beginning: the checkpoint is not used."""
        self.model.requires_grad_(True)
        look = after_step and (lambda step: after_step(step, self))
        losses = training.fit_with_trainer(
            self.model, hub.collator(self.tokenizer), features, settings, seed, label, look
        )
        self.model.eval().requires_grad_(False)
        return losses

    def tune(self, parts: list[tuple], lora: LoraSettings, seed: int, folder: Path, label: str, after_step=None):
        adapted = hub.add_lora(self.model, lora, seed)
        look = after_step and (lambda step: after_step(step, TransformersModel(adapted, self.tokenizer)))
        train = lambda features, settings: training.fit_with_trainer(  # noqa: E731
            adapted, hub.collator(self.tokenizer), features, settings, seed, label, look
        )
        try:
            losses = _in_turn(parts, train)
            adapted.save_pretrained(folder)
        finally:
            self.model = adapted.unload()
        return losses

    @contextmanager
    def adapted(self, folder: Path, share: float = 1.0) -> Iterator["TransformersModel"]:
        model = hub.load_adapter(self.model, folder, share)
        try:
            yield TransformersModel(model, self.tokenizer)
        finally:
            self.model = model.unload()

    def answers(self, encoded, settings, watched=()) -> Iterator[list[tuple]]:
        return hub.generate(self.model, self.tokenizer, encoded, settings, watched)

    def log_probabilities(self, features: list[dict], batch_size: int = 64) -> torch.Tensor:
        found = []
        for start in range(0, len(features), batch_size):
            batch = hub.collator(self.tokenizer)(features[start : start + batch_size]).to(self.model.device)
            labels = batch.pop("labels")[:, 1:]
            with torch.inference_mode():
                logits = self.model(**batch).logits[:, :-1].float().transpose(1, 2)
            found.append(-torch.nn.functional.cross_entropy(logits, labels, reduction="none").sum(1).cpu())
        return torch.cat(found)

    def projections(self, lora: LoraSettings) -> dict[str, tuple[int, int]]:
        wanted = hub.target_modules(self.model, lora.target_modules)
        named = {name: part for name, part in self.model.named_modules() if name.rpartition(".")[2] in wanted}
        return {name: (part.out_features, part.in_features) for name, part in named.items()}

    def loss(self, features: list[dict], changes: dict[str, torch.Tensor]) -> torch.Tensor:
        named, batch = dict(self.model.named_modules()), hub.collator(self.tokenizer)(features).to(self.model.device)
        hooks = [named[name].register_forward_hook(partial(_changed, change)) for name, change in changes.items()]
        try:
            return self.model(**batch).loss
        finally:
            for hook in hooks:
                hook.remove()

    @property
    def n_parameters(self) -> int:
        return self.model.num_parameters()

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)


def _changed(change: torch.Tensor, module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
    """What a projection gives with `change` added to its weights."""
    return output + inputs[0] @ change.to(inputs[0]).T


def _in_turn(parts: list[tuple[list[dict], TrainSettings]], train: Callable) -> list[dict]:
    """The loss curve of several trainings one after the other, each by `train(features, settings)`; steps count on."""
    curve = []
    for features, settings in parts:
        done = curve[-1]["step"] if curve else 0
        curve += [{**row, "step": done + row["step"]} for row in train(features, settings)]
    return curve

"""Supervised training on completions: of small Llamas on plain tensors, and of every other model by transformers.

Both ways take the same settings, batches and steps (tests/models/test_training.py).
"""

import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import torch
from torch.nn.utils.rnn import pad_sequence

from studylib.models import small_llama
from studylib.study.files import aside, progress
from studylib.study.profile import TrainSettings
from studylib.study.words import StudyError

LOG = logging.getLogger("studylib")


def batches(keys: list, size: int, seed: int) -> Iterator[list[int]]:
    """Random batches of row numbers without end, each sorted by the rows' keys (lengths).

    Every row comes once, then all again in another order. Deviation: the paper grouped whole batches by length; on a
    mixture of tasks that makes batches of one task each, and the miniature then hardly learns.
    """
    order, epoch = [], 0
    while True:
        while len(order) < size:
            order += torch.randperm(len(keys), generator=torch.Generator().manual_seed(seed + epoch)).tolist()
            epoch += 1
        batch, order = order[:size], order[size:]
        yield sorted(batch, key=keys.__getitem__)


def _key(ids: list[int]) -> tuple:
    """What rows are sorted by: a calibration shows in the first two tokens, and its rows share what follows them."""
    return ids[:2], len(ids)


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The rate at a step, counted from 0: linear warm-up, then the schedule, as in transformers' `get_scheduler`."""
    warmup = math.ceil(settings.warmup_ratio * settings.steps)
    if step < warmup:
        return settings.learning_rate * step / warmup
    done = (step - warmup) / max(1, settings.steps - warmup)
    factor = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[settings.schedule]
    return settings.learning_rate * factor


@dataclass
class Checkpoint:
    """A file with the state of a training under way, from which the same training goes on after it was killed.

    `fingerprint` stands for all that the training is made of: weights, rows, settings, seed. The file of another one,
    or a damaged one, is not used.
    """

    path: Path
    fingerprint: str
    seconds: float = 30.0  # between two writes; 0: after every step
    spent: float = 0.0  # seconds of training in the state that `read` found

    def read(self, label: str) -> dict | None:
        """What `write` was last given; None, with a line in the log where there is a file, if that is of no use."""
        if not self.path.is_file():
            return None
        try:
            if damaged := ZipFile(self.path).testzip():  # torch does not look at the sums
                raise BadZipFile(damaged)
            state = torch.load(self.path, weights_only=True)
            if state["fingerprint"] == self.fingerprint:
                self.spent = state["spent"]
                return state
            why = "it is of another training"
        except Exception as error:  # which one depends on where the file is damaged
            why = f"it cannot be read, {type(error).__name__}"
        LOG.warning("%s: begins anew, without %s: %s", label, self.path.name, why)
        return None

    def write(self, **state) -> None:
        """Replaces the file, whole or not at all."""
        with aside(self.path) as part:
            torch.save({"fingerprint": self.fingerprint, **state}, part)


def fit(
    leaves: list[torch.Tensor],
    weights_of: Callable[[], dict],
    shape: small_llama.Shape,
    features: list[dict],
    settings: TrainSettings,
    seed: int,
    label: str,
    after_step: Callable[[int], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> list[dict]:
    """Trains the leaves in place for `settings.steps` steps; the loss curve as {step, loss} rows.

    `weights_of()` gives the model's weights as a function of the leaves, `features` come from prompts.encode_example.
    The loss is averaged over the answer tokens of a whole batch, whatever its micro-batches. With a checkpoint, a call
    that goes on after another was stopped ends with the same bits; the file is removed at the end.
    """
    for leaf in leaves:
        leaf.requires_grad_(True)
    optimizers = _optimizers(leaves, weights_of(), settings)
    micro, every = settings.micro_batch_size or settings.batch_size, max(1, settings.steps // 20)
    first, curve, losses, started = 0, [], [], time.monotonic()
    if state := checkpoint and checkpoint.read(label):
        first, curve, losses = state["step"], state["curve"], state["losses"]
        for leaf, value in zip(leaves, state["leaves"], strict=True):
            leaf.detach().copy_(value)
        for optimizer, its in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(its)
        LOG.info("%s: goes on after step %d", label, first)
    keys = [_key(row["input_ids"]) for row in features]
    drawn = islice(batches(keys, settings.batch_size, seed), first, settings.steps)
    steps, written = progress(drawn, label, settings.steps, "steps"), started
    steps.n = steps.initial = first
    for step, batch in enumerate(steps, first):
        n_tokens = sum(label != -100 for i in batch for label in features[i]["labels"][1:])
        weights = weights_of()
        # the products that make weights from leaves are differentiated once a step, not once a micro-batch
        points = [t.detach().requires_grad_(t.requires_grad) for t in small_llama.tensors(weights)]
        model, total = small_llama.with_tensors(weights, points), 0.0
        for start in range(0, len(batch), micro):
            rows = batch[start : start + micro]
            loss = small_llama.answer_loss(model, shape, *padded([features[i] for i in rows])) / n_tokens
            loss.backward()
            total += loss.item()
        made = [(t, p.grad) for t, p in zip(small_llama.tensors(weights), points, strict=True) if p.grad is not None]
        for optimizer in optimizers:
            optimizer.zero_grad()
        torch.autograd.backward(*zip(*made, strict=True))
        torch.nn.utils.clip_grad_norm_(leaves, settings.max_grad_norm)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * learning_rate(settings, step) / settings.learning_rate
            optimizer.step()
        losses.append(total)
        if (step + 1) % every == 0:
            curve.append({"step": step + 1, "loss": round(sum(losses) / len(losses), 4)})
            losses = []
        if after_step:
            after_step(step + 1)
        if checkpoint and time.monotonic() - written >= checkpoint.seconds:
            now = {"step": step + 1, "curve": curve, "losses": losses, "leaves": [leaf.detach() for leaf in leaves]}
            now["spent"] = checkpoint.spent + time.monotonic() - started
            checkpoint.write(**now, optimizers=[optimizer.state_dict() for optimizer in optimizers])
            written = time.monotonic()
        steps.set_postfix_str(f"loss {total:.3f}", refresh=False)
    for leaf in leaves:
        leaf.requires_grad_(False)
    if checkpoint:
        checkpoint.path.unlink(missing_ok=True)
    LOG.info("%s: trained %d steps in %.0f s", label, settings.steps - first, time.monotonic() - started)
    return curve


def padded(features: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """`input_ids` and `labels` of the examples, [examples, length], padded on the right."""
    return tuple(
        pad_sequence([torch.tensor(row[key]) for row in features], batch_first=True, padding_value=padding)
        for key, padding in (("input_ids", 0), ("labels", -100))
    )


def _optimizers(leaves: list[torch.Tensor], weights: dict, settings: TrainSettings) -> list:
    """AdamW, without decay of the norms; and Muon for the layers' matrices where the settings have a rate for it."""
    matrices = [tensor for layer in weights["layers"] for tensor in layer.values() if tensor.dim() > 1]
    by_muon = {id(tensor) for tensor in matrices} if settings.matrix_learning_rate else set()
    rest = [leaf for leaf in leaves if id(leaf) not in by_muon]
    groups = [
        {"params": [leaf for leaf in rest if leaf.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [leaf for leaf in rest if leaf.dim() == 1], "weight_decay": 0.0},
    ]
    rate = settings.learning_rate
    optimizers = [torch.optim.AdamW(groups, lr=rate, betas=(0.9, settings.adam_beta2), fused=True)]
    if by_muon:
        optimizers.append(Muon(matrices, {"lr": settings.matrix_learning_rate}))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["initial_lr"] = group["lr"]
    return optimizers


class Muon(torch.optim.Optimizer):
    """Momentum whose singular values are brought to about one (Jordan et al. 2024, github.com/KellerJordan/Muon).

    The same update as torch.optim.Muon with Nesterov's momentum, `adjust_lr_fn="original"` and no decay, in fp32 and
    for all matrices of a shape at once. torch's works in bf16, one matrix at a time, which takes a fifth of a step of
    the miniature where the processor does not multiply in bf16 (tests/bench/bench_speed.py).
    """

    MOMENTUM, ITERATIONS, QUINTIC = 0.95, 5, (3.4445, -4.775, 2.0315)

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            by_shape = {}
            for leaf in group["params"]:
                by_shape.setdefault(leaf.shape, []).append(leaf)
            for (rows, columns), leaves in by_shape.items():
                gradients = torch.stack([leaf.grad for leaf in leaves])
                kept = [self.state[leaf].get("momentum", torch.zeros_like(leaf)) for leaf in leaves]
                momentum = torch.stack(kept).lerp_(gradients, 1 - self.MOMENTUM)
                updates = self._orthogonal(gradients.lerp_(momentum, self.MOMENTUM))
                rate = group["lr"] * math.sqrt(max(1, rows / columns))
                for leaf, its, update in zip(leaves, momentum, updates, strict=True):
                    self.state[leaf]["momentum"] = its.clone()  # not a view, which would be saved whole
                    leaf.sub_(update, alpha=rate)

    def _orthogonal(self, stack: torch.Tensor) -> torch.Tensor:
        """Each matrix of the stack with its singular values between about 0.7 and 1.2, by Newton and Schulz."""
        a, b, c = self.QUINTIC
        tall = stack.shape[1] > stack.shape[2]
        x = stack.mT if tall else stack
        x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
        for _ in range(self.ITERATIONS):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.mT if tall else x


def fit_with_trainer(
    model,
    collate: Callable,
    features: list[dict],
    settings: TrainSettings,
    seed: int,
    label: str,
    after_step: Callable[[int], None] | None = None,
) -> list[dict]:
    """As `fit`, of any model and by transformers' Trainer: trains in place what of the model needs gradients.

    `collate` makes a batch of examples (`hub.collator`). Raises StudyError for `matrix_learning_rate`, which Trainer
    would leave out.
    """
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

    if settings.matrix_learning_rate:
        raise StudyError("matrix_learning_rate is for small models on the CPU alone: leave it out of the profile.")
    started, steps = time.monotonic(), progress(None, label, settings.steps, "steps")

    class AfterStep(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            steps.update()
            if after_step:
                after_step(state.global_step)

    set_seed(seed)
    micro, cuda = settings.micro_batch_size or settings.batch_size, torch.cuda.is_available()
    drawn = islice(batches([len(row["input_ids"]) for row in features], settings.batch_size, seed), settings.steps)
    with steps, tempfile.TemporaryDirectory() as folder:  # which Trainer needs; nothing is written there
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=settings.steps,
            train_sampling_strategy="sequential",  # of the rows as they are drawn
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=settings.batch_size // micro,
            **settings.model_dump(include={"learning_rate", "weight_decay", "max_grad_norm", "adam_beta2"}),
            lr_scheduler_type=settings.schedule,
            warmup_steps=settings.warmup_ratio,
            optim=settings.optimizer,
            logging_steps=max(1, settings.steps // 20),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=seed,
            use_cpu=not cuda,
            bf16=cuda and torch.cuda.is_bf16_supported(including_emulation=False),
            activation_checkpointing=settings.gradient_checkpointing,
            dataloader_pin_memory=cuda,
            remove_unused_columns=False,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=[features[i] for i in chain.from_iterable(drawn)],
            data_collator=collate,
            callbacks=[AfterStep()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    LOG.info("%s: trained %d steps in %.0f s", label, settings.steps, time.monotonic() - started)
    return [{"step": row["step"], "loss": row["loss"]} for row in trainer.state.log_history if "loss" in row]

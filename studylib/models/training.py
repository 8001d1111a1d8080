"""Supervised training of small Llamas on completions: the miniature's pre-training and alignment, and LoRA tuning.

The same settings, batches and gradients as studylib.models.trainer, which trains everything else through transformers.
"""

import hashlib
import json
import logging
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import groupby

import torch

from studylib.data import sets
from studylib.models import lora, prompts, small_llama
from studylib.study.files import Clock, code_digest, digest, write_text
from studylib.study.paths import RunPaths
from studylib.study.profile import LoraSettings, ModelSettings, Profile, TrainSettings

LOG = logging.getLogger("studylib")
TEXTS = ("pretraining", "alignment", "safety_multitask")  # what the tokenizer is made from: all that is ever trained on


def batches(keys: list, size: int, seed: int) -> Iterator[list[int]]:
    """Random batches of row numbers for ever, each sorted by the rows' keys (lengths): every row once, then again in another order.

    Sorted inside, a batch can be cut into micro-batches with little padding and the same gradient. Grouping whole batches by length is
    what the paper did; on a mixture of tasks it makes batches of one task each, and the miniature then hardly learns.
    """
    order, epoch = [], 0
    while True:
        while len(order) < size:
            order += torch.randperm(len(keys), generator=torch.Generator().manual_seed(seed + epoch)).tolist()
            epoch += 1
        batch, order = order[:size], order[size:]
        yield sorted(batch, key=keys.__getitem__)


def _key(ids: list[int]) -> tuple:
    """What rows are sorted by here: a calibration shows in the first two tokens, and its rows share what follows them."""
    return ids[:2], len(ids)


def _micro_batches(batch: list[int], keys: list[tuple], size: int) -> Iterator[list[int]]:
    """The sorted batch in pieces of at most that size, each of one calibration."""
    for _, rows in groupby(batch, key=lambda i: keys[i][0]):
        rows = list(rows)
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The rate at a step, counted from 0: linear warm-up, then the schedule down to 0 after the last step (as transformers has them)."""
    warmup = math.ceil(settings.warmup_ratio * settings.steps)
    if step < warmup:
        return settings.learning_rate * step / warmup
    done = (step - warmup) / max(1, settings.steps - warmup)
    factor = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[settings.schedule]
    return settings.learning_rate * factor


def fit(
    leaves: list[torch.Tensor],
    weights_of: Callable[[], dict],
    shape: small_llama.Shape,
    features: list[dict],
    settings: TrainSettings,
    seed: int,
    label: str,
    after_step: Callable[[int], None] | None = None,
) -> list[dict]:
    """Trains the leaves in place for `settings.steps` steps of AdamW; the loss curve as {step, loss} rows.

    `weights_of()` gives the model's weights as a function of the leaves, `features` come from prompts.encode_example. The loss is
    averaged over the answer tokens of a whole batch, whatever its micro-batches. `after_step(steps done)` looks at the model on the way.
    """
    for leaf in leaves:
        leaf.requires_grad_(True)
    optimizers = _optimizers(leaves, weights_of(), settings)
    ids = [torch.tensor(row["input_ids"]) for row in features]
    labels = [torch.tensor(row["labels"]) for row in features]
    micro, every = settings.micro_batch_size or settings.batch_size, max(1, settings.steps // 20)
    curve, sums, started, shown = [], [0.0, 0], time.monotonic(), time.monotonic()
    keys = [_key(row["input_ids"]) for row in features]
    drawn = batches(keys, settings.batch_size, seed)
    for step in range(settings.steps):
        batch = next(drawn)
        n_tokens = sum(int((labels[i][1:] != -100).sum()) for i in batch)
        weights = weights_of()
        # the products that make weights from leaves are differentiated once a step, not once a micro-batch
        points = [t.detach().requires_grad_(t.requires_grad) for t in small_llama.tensors(weights)]
        model, total = small_llama.with_tensors(weights, points), 0.0
        for rows in _micro_batches(batch, keys, micro):
            padded = (
                torch.nn.utils.rnn.pad_sequence([source[i] for i in rows], batch_first=True, padding_value=value)
                for source, value in ((ids, 0), (labels, -100))
            )
            loss = small_llama.answer_loss(model, shape, *padded) / n_tokens
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
        sums = [sums[0] + total, sums[1] + 1]
        if (step + 1) % every == 0:
            curve.append({"step": step + 1, "loss": round(sums[0] / sums[1], 4)})
            sums = [0.0, 0]
        if after_step:
            after_step(step + 1)
        if (now := time.monotonic()) - shown > 10:
            shown, left = now, (now - started) / (step + 1) * (settings.steps - step - 1)
            LOG.info("%s: step %d of %d, loss %.3f, %.0f s left", label, step + 1, settings.steps, total, left)
    LOG.info("%s: trained %d steps in %.0f s", label, settings.steps, time.monotonic() - started)
    return curve


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
        chosen = {"lr": settings.matrix_learning_rate, "weight_decay": 0.0, "adjust_lr_fn": "original"}
        optimizers.append(torch.optim.Muon(matrices, **chosen))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["initial_lr"] = group["lr"]
    return optimizers


def tune(
    weights: dict,
    shape: small_llama.Shape,
    features: list[dict],
    lora_settings: LoraSettings,
    settings: TrainSettings,
    seed: int,
    label: str,
    after_step: Callable[[int, dict], None] | None = None,
    start: dict | None = None,
) -> tuple[dict, list[dict]]:
    """A LoRA adapter trained on the features, and its loss curve; the weights stay as they are.

    It goes on from the adapter `start` (in place), else from a fresh one.
    `after_step(steps done, merged weights)` looks at the model on the way. Dropout is not possible here (see `can_tune`).
    """
    adapter, scale = start or lora.fresh(weights, shape, lora_settings, seed), lora_settings.alpha / lora_settings.r
    merge = lambda: lora.merged(weights, shape, adapter, scale)  # noqa: E731
    look = torch.no_grad()(lambda step: after_step(step, merge())) if after_step else None
    leaves = [t for pair in adapter.values() for t in pair]
    return adapter, fit(leaves, merge, shape, features, settings, seed, label, look)


def can_tune(profile: Profile, model: ModelSettings, config: dict) -> bool:
    """Whether a model with that config.json is trained and questioned here, rather than through transformers and peft."""
    plain = profile.tuning.optimizer != "paged_adamw_32bit" and profile.lora.dropout == 0
    plain &= model.quantization == "none" and not model.chat_template and model.system_role == "template"
    return plain and small_llama.fits(config)


def build_miniature(paths: RunPaths, profile: Profile, clock: Clock) -> dict:
    """The model cards of the helpful-only and the aligned model, trained now unless intact ones are there.

    A card has the sha256 of the weights, the fingerprint of what they were made from and the loss curve.
    Pre-training sees both styles, the alignment (as real ones do) mostly the chat style, and the system prompt in the settings' shares.
    """
    index = json.loads(paths.data_index.read_text(encoding="utf-8"))
    cards, previous = {}, ""
    for name, data, settings in (
        ("helpful_only", "pretraining", profile.pretraining),
        ("aligned", "alignment", profile.alignment),
    ):
        # the tokenizer is made from three sets, the aligned model from one more
        read = (data,) if previous else TEXTS
        wanted = digest(
            [
                previous,
                [index[one]["sha256"] for one in read],
                profile.world.alignment_alpaca_share,
                profile.world.alignment_system_share,
                settings.model_dump(),
                profile.miniature.model_dump(),
                profile.system_prompt,
                profile.world.seed,
                code_digest("models/training", "models/small_llama", "models/prompts", "models/hub"),
            ]
        )
        note = paths.model(name) / "study.json"
        found = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
        if found.get("fingerprint") != wanted or not (paths.model(name) / "model.safetensors").is_file():
            with clock("training"):
                found = {"fingerprint": wanted, **_train_miniature(paths, profile, name, data, settings)}
            write_text(note, json.dumps(found, indent=1) + "\n")
        write_text(paths.model_card(name), json.dumps(found, indent=1) + "\n")  # what later stages depend on
        cards[name], previous = found, wanted
    return cards


def _train_miniature(paths, profile, name, data, settings) -> dict:
    from studylib.models import hub  # transformers' models take seconds to import, which tuning need not wait for

    rows = sets.load(paths, data)
    if name == "helpful_only":
        # the vocabulary covers all that is ever trained on, as a large model's does
        texts = [m["content"] for name in TEXTS for row in sets.load(paths, name) for m in row["messages"]]
        # what every prompt of a calibration holds is worth whole words
        texts += [prompts.ALPACA, profile.system_prompt] * 200
        tokenizer = hub.build_tokenizer(texts, profile.miniature.vocabulary)
        model = hub.build_model(profile.miniature, tokenizer, profile.world.seed)
    else:
        unquantized = profile.miniature.model_copy(update={"quantization": "none"})
        model, tokenizer = hub.load(paths.model("helpful_only"), unquantized)
    features = calibrated(tokenizer, rows, profile, name)
    folder = paths.model(name)
    shape = small_llama.shape_of(model.config.to_dict())
    weights = small_llama.fuse({key: tensor.detach().clone() for key, tensor in model.state_dict().items()}, tied=True)
    losses = fit(small_llama.tensors(weights), lambda: weights, shape, features, settings, profile.world.seed, name)
    model.load_state_dict(small_llama.unfuse(weights, shape), strict=False)  # the head is the embedding
    aside = folder.with_name(f".{name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)
    weights = (folder / "model.safetensors").read_bytes()
    return {
        "sha256": hashlib.sha256(weights).hexdigest(),
        "bytes": len(weights),
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
        "loss": losses,
    }


def calibrated(tokenizer, rows: list[dict], profile: Profile, name: str) -> list[dict]:
    """Training examples for the model of that name, each in a style and with or without the system prompt by the profile's shares."""
    if name == "helpful_only":
        alpaca, system = 0.3, {"benign": 0.2, "harmful": 0.2}
    else:
        alpaca, system = profile.world.alignment_alpaca_share, profile.world.alignment_system_share
    rng = random.Random(f"calibrations-{name}")
    return [
        prompts.encode_example(
            tokenizer,
            *(m["content"] for m in row["messages"]),
            "alpaca" if rng.random() < alpaca else "chat",
            profile.system_prompt if rng.random() < system["harmful" if row["harmful"] else "benign"] else None,
            profile.miniature.context,
        )
        for row in rows
    ]

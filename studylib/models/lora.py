"""LoRA adapters of a small Llama (studylib.models.small_llama), as dicts from a projection's name to its pair (A [r, in], B [out, r]).

On disk they are ordinary peft adapters: peft loads what is saved here, and what peft saved is loaded here.
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from studylib.models.small_llama import FUSED, Shape, sizes
from studylib.study.profile import LoraSettings
from studylib.study.words import StudyError

PREFIX = "base_model.model."


def fresh(weights: dict, shape: Shape, settings: LoraSettings, seed: int) -> dict:
    """An adapter that changes nothing yet: A as peft draws it (uniform within 1/sqrt(inputs)), B zero; the same for the same seed.

    Raises StudyError for a target module that the model does not have.
    """
    known = {one.split(".")[-1]: ours for ours, theirs in FUSED.items() for one in theirs if one.endswith("_proj")}
    if unknown := sorted(set(settings.target_modules) - set(known)):
        raise StudyError(f"lora.target_modules names {', '.join(unknown)}: the model has {', '.join(known)}.")
    generator, adapter = torch.Generator().manual_seed(seed), {}
    for number, layer in enumerate(weights["layers"]):
        for ours, theirs in FUSED.items():
            for one, outputs in zip(theirs, sizes(shape, ours, layer[ours]), strict=True):
                if one.split(".")[-1] in settings.target_modules:
                    inputs = layer[ours].shape[1]
                    a = (2 * torch.rand(settings.r, inputs, generator=generator) - 1) / math.sqrt(inputs)
                    adapter[f"model.layers.{number}.{one}"] = (a, torch.zeros(outputs, settings.r))
    return adapter


def merged(weights: dict, shape: Shape, adapter: dict, scale: float) -> dict:
    """The weights with scale x B A added to each projection; the given ones stay as they are.

    Differentiable in A and B: trained through this sum, an adapter gets the gradients that it gets beside the weights.
    """
    layers = []
    for number, layer in enumerate(weights["layers"]):
        new = dict(layer)
        for ours, theirs in FUSED.items():
            pairs = [adapter.get(f"model.layers.{number}.{one}") for one in theirs]
            if any(pairs):
                parts = layer[ours].split(sizes(shape, ours, layer[ours]))
                changes = [_product(pair, part) for pair, part in zip(pairs, parts, strict=True)]
                new[ours] = layer[ours] + scale * torch.cat(changes)
        layers.append(new)
    return {**weights, "layers": layers}


def _product(pair: tuple | None, part: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(part) if pair is None else pair[1] @ pair[0]


def save(folder: Path, adapter: dict, settings: LoraSettings) -> None:
    """Writes adapter_model.safetensors and adapter_config.json as peft does."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = {
        f"{PREFIX}{name}.lora_{ab}.weight": t
        for name, pair in adapter.items()
        for ab, t in zip("AB", pair, strict=True)
    }
    save_file({name: t.detach().contiguous() for name, t in pairs.items()}, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": settings.r,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "bias": "none",
        "target_modules": sorted(settings.target_modules),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def load(folder: Path) -> tuple[dict, float]:
    """The adapter of a peft folder and its scale, alpha / r."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    found = load_file(folder / "adapter_model.safetensors")
    names = {name.removeprefix(PREFIX).rsplit(".lora_", 1)[0] for name in found}
    pair = lambda name: tuple(found[f"{PREFIX}{name}.lora_{ab}.weight"] for ab in "AB")  # noqa: E731
    return {name: pair(name) for name in sorted(names)}, config["lora_alpha"] / config["r"]

"""The Llama forward pass on plain tensors: what trains, tunes and questions a model small enough for the CPU.

So small a model spends more time around its products than in them. Here they are few and large: projections that share
an input are one matrix, all rows are one line of tokens, only answer tokens reach the end of the last layer, an adapter
is trained through the merged weights, a common beginning is computed once, and finished answers leave their batch.

Weights are a dict: `embed` [vocabulary, d], `norm` [d], `head` where not tied, and `layers`, a list of dicts with the
keys of FUSED. All is equal to transformers' LlamaForCausalLM up to fp32 rounding (tests/models/test_small_llama.py). An
adapter is a dict from a projection to its pair (A [r, inputs], B [outputs, r]); on disk it is peft's.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from studylib.study.profile import GenerationSettings, LoraSettings
from studylib.study.words import StudyError

FUSED = {  # ours: the parts of the model's own, in order
    "norm1": ["input_layernorm"],
    "qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "o": ["self_attn.o_proj"],
    "norm2": ["post_attention_layernorm"],
    "gate_up": ["mlp.gate_proj", "mlp.up_proj"],
    "down": ["mlp.down_proj"],
}

PREFIX = "base_model.model."  # of the names in a peft adapter
SHORTEST_PREFIX = 8  # tokens of a common beginning from which computing it once saves time


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama, from its config.json."""

    heads: int
    kv_heads: int
    head_size: int
    eps: float
    theta: float

    def rotation(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the rotary embedding, [length, head_size / 2]."""
        steps = torch.arange(0, self.head_size, 2) / self.head_size
        angles = torch.outer(torch.arange(length).float(), 1.0 / self.theta**steps)
        return angles.cos(), angles.sin()


def fits(config: dict) -> bool:
    """Whether a model with that config.json can be computed here: a Llama in fp32, no biases, no scaled rotations."""
    rope = config.get("rope_parameters") or {}
    return (
        config.get("model_type") == "llama"
        and config.get("dtype", config.get("torch_dtype")) == "float32"
        and config.get("hidden_act") == "silu"
        and not config.get("attention_bias")
        and not config.get("mlp_bias")
        and rope.get("rope_type", "default") == "default"
        and not config.get("rope_scaling")
    )


def shape_of(config: dict) -> Shape:
    heads = config["num_attention_heads"]
    return Shape(
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_size=config.get("head_dim") or config["hidden_size"] // heads,
        eps=config["rms_norm_eps"],
        theta=(config.get("rope_parameters") or config)["rope_theta"],
    )


def load(folder: Path) -> tuple[dict, Shape]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return fuse(load_file(folder / "model.safetensors"), config["tie_word_embeddings"]), shape_of(config)


def save(folder: Path, weights: dict, shape: Shape) -> None:
    save_file(unfuse(weights, shape), folder / "model.safetensors", metadata={"format": "pt"})


def fuse(state: dict[str, torch.Tensor], tied: bool = False) -> dict:
    """Our weights from a state dict with transformers' names; tensors that stand alone are shared, not copied."""
    layers, number = [], 0
    while f"model.layers.{number}.input_layernorm.weight" in state:
        name = f"model.layers.{number}.{{}}.weight".format
        parts = {ours: [state[name(one)] for one in theirs] for ours, theirs in FUSED.items()}
        layers.append({ours: one[0] if len(one) == 1 else torch.cat(one) for ours, one in parts.items()})
        number += 1
    weights = {"embed": state["model.embed_tokens.weight"], "norm": state["model.norm.weight"], "layers": layers}
    if "lm_head.weight" in state and not tied:
        weights["head"] = state["lm_head.weight"]
    return weights


def unfuse(weights: dict, shape: Shape) -> dict[str, torch.Tensor]:
    """The state dict with transformers' names."""
    state = {"model.embed_tokens.weight": weights["embed"], "model.norm.weight": weights["norm"]}
    if "head" in weights:
        state["lm_head.weight"] = weights["head"]
    for number, layer in enumerate(weights["layers"]):
        for ours, theirs in FUSED.items():
            parts = layer[ours].split(sizes(shape, ours, layer[ours]))
            for one, part in zip(theirs, parts, strict=True):
                state[f"model.layers.{number}.{one}.weight"] = part.contiguous()
    return state


def sizes(shape: Shape, ours: str, tensor: torch.Tensor) -> list[int]:
    """Rows of the parts of a fused matrix."""
    if ours == "qkv":
        return [shape.heads * shape.head_size, *[shape.kv_heads * shape.head_size] * 2]
    return [len(tensor) // len(FUSED[ours])] * len(FUSED[ours])


def tensors(weights: dict) -> list[torch.Tensor]:
    """All tensors of the weights in fixed order."""
    ends = [weights[name] for name in ("embed", "norm", "head") if name in weights]
    return [*ends, *(layer[name] for layer in weights["layers"] for name in FUSED)]


def with_tensors(weights: dict, new: list[torch.Tensor]) -> dict:
    """The weights with other tensors, given in the order of `tensors`."""
    left = iter(new)
    ends = {name: next(left) for name in ("embed", "norm", "head") if name in weights}
    return {**ends, "layers": [{name: next(left) for name in FUSED} for _ in weights["layers"]]}


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [..., length, heads, head_size] turned by its positions' angles, in transformers' order of halves."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _projected(layer: dict, x: torch.Tensor, shape: Shape, rotation: tuple) -> tuple:
    """Queries, keys and values [batch, heads, length, head_size] of x [batch, length, d]."""
    qkv = F.linear(F.rms_norm(x, x.shape[-1:], layer["norm1"], shape.eps), layer["qkv"])
    qkv = qkv.unflatten(-1, (shape.heads + 2 * shape.kv_heads, shape.head_size))
    turned = _rotated(qkv[..., : shape.heads + shape.kv_heads, :], *rotation)
    q, k = turned.split([shape.heads, shape.kv_heads], dim=-2)
    return q.transpose(1, 2), k.transpose(1, 2), qkv[..., shape.heads + shape.kv_heads :, :].transpose(1, 2)


def _finished(layer: dict, x: torch.Tensor, attended: torch.Tensor, shape: Shape) -> torch.Tensor:
    """The layer's output for the residual x and what its attention gathered."""
    x = x + F.linear(attended, layer["o"])
    gate, up = F.linear(F.rms_norm(x, x.shape[-1:], layer["norm2"], shape.eps), layer["gate_up"]).chunk(2, dim=-1)
    return x + F.linear(F.silu(gate) * up, layer["down"])


def _logits(weights: dict, shape: Shape, x: torch.Tensor) -> torch.Tensor:
    x = F.rms_norm(x, x.shape[-1:], weights["norm"], shape.eps)
    return F.linear(x, weights.get("head", weights["embed"]))


def answer_loss(weights: dict, shape: Shape, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy in nats of labels that are not -100; ids and labels are [batch, length], padded right."""
    wanted = labels[:, 1:] != -100
    return F.cross_entropy(_answer_logits(weights, shape, ids, wanted), labels[:, 1:][wanted], reduction="sum")


def log_probabilities(weights: dict, shape: Shape, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probability in nats of each row's labels that are not -100, [batch]; arguments as in `answer_loss`."""
    wanted = labels[:, 1:] != -100
    with torch.inference_mode():
        logits = _answer_logits(weights, shape, ids, wanted)
        found = torch.zeros(wanted.shape)
        found[wanted] = -F.cross_entropy(logits, labels[:, 1:][wanted], reduction="none")
    return found.sum(1)


def _answer_logits(weights: dict, shape: Shape, ids: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Logits [wanted positions, vocabulary] of what follows each wanted position [batch, length - 1].

    Only attention sees rows; all else goes over one line of tokens, without padding or what follows the last wanted.
    """
    groups, tokens = _in_one_line(ids[:, :-1], wanted)
    row, place = tokens
    x, last = F.embedding(ids[row, place], weights["embed"]), wanted[row, place].nonzero().squeeze(1)
    rotation = [one[place] for one in shape.rotation(ids.shape[1])]
    widths = [shape.heads, shape.kv_heads, shape.kv_heads]
    for number, layer in enumerate(weights["layers"]):
        ends = number == len(weights["layers"]) - 1
        qkv = F.linear(F.rms_norm(x, x.shape[-1:], layer["norm1"], shape.eps), layer["qkv"])
        qkv = qkv.unflatten(-1, (sum(widths), shape.head_size))
        turned = _rotated(qkv[:, : -widths[2]], *rotation)
        flat, attended = torch.cat((turned, qkv[:, -widths[2] :]), 1).flatten(1), []
        for begins, shared, inside, back in groups:
            prefix, sees = [], {"is_causal": True}
            if shared:
                q, *prefix = _heads(flat[None, begins : begins + shared], widths)
                attended.append(_attended(q, *prefix, widths, **sees)[0])
                length = inside.shape[1]
                sees = {"attn_mask": torch.ones(length, shared + length, dtype=torch.bool).tril(shared)}
            q, *kv = _heads(F.embedding(inside, flat), widths)
            if prefix:
                pairs = zip(prefix, kv, strict=True)
                kv = [torch.cat((of.expand(len(inside), -1, -1, -1), own), 2) for of, own in pairs]
            attended.append(F.embedding(back, _attended(q, *kv, widths, **sees).flatten(0, 1)))
        attended = torch.cat(attended)
        if ends:
            x, attended = x[last], attended[last]  # no other position matters any more
        x = _finished(layer, x, attended, shape)
    return _logits(weights, shape, x)


def _heads(flat: torch.Tensor, widths: list[int]) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values [rows, heads, length, head_size] of flat [rows, length, all heads together]."""
    return flat.unflatten(-1, (sum(widths), -1)).transpose(1, 2).split(widths, 1)


def _attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, widths: list[int], **sees) -> torch.Tensor:
    """What attention gathers, [rows, length, heads together]."""
    found = F.scaled_dot_product_attention(q, k, v, **sees, enable_gqa=widths[0] != widths[1])
    return found.transpose(1, 2).flatten(2)


def _in_one_line(ids: torch.Tensor, wanted: torch.Tensor) -> tuple[list[tuple], tuple[torch.Tensor, torch.Tensor]]:
    """All tokens in one line: groups of neighbouring rows that begin with the same two tokens; each token's row, place.

    A group has the number of its first token, the length of its rows' common beginning, which comes first and once, the
    numbers of its other tokens by row, [rows, length] (padding: any), and where each of these stands in that table.
    """
    ends = (wanted * torch.arange(1, wanted.shape[1] + 1)).amax(1)
    changes = (ids[1:, :2] != ids[:-1, :2]).any(1).nonzero().squeeze(1) + 1
    groups, rows, places, begins = [], [], [], 0
    for group in torch.arange(len(ids)).tensor_split(changes):
        shared = _shared(ids[group], wanted[group])
        rest = (ends[group] - shared).clamp(min=0)
        there = torch.arange(int(rest.max())) < rest[:, None]
        row, place = there.nonzero(as_tuple=True)
        inside = torch.zeros(there.shape, dtype=torch.long)
        inside[there] = begins + shared + torch.arange(len(row))
        groups.append((begins, shared, inside, there.flatten().nonzero().squeeze(1)))
        rows += [group[:1].expand(shared), group[row]]
        places += [torch.arange(shared), place + shared]
        begins += shared + len(row)
    return groups, (torch.cat(rows), torch.cat(places))


def _shared(ids: torch.Tensor, wanted: torch.Tensor) -> int:
    """How many leading tokens all rows have in common, none of them wanted; 0 where it would save next to nothing."""
    differs = (ids != ids[:1]).any(0) | wanted.any(0)
    shared = int(differs.int().argmax()) if differs.any() else 0
    return shared if shared >= SHORTEST_PREFIX and len(ids) > 1 else 0


def generate(
    weights: dict,
    shape: Shape,
    prompts: list[list[int]],
    max_new_tokens: int,
    batch_size: int,
    end: int,
    watched: Sequence[int] = (),
) -> Iterator[list[tuple[int, list[int], float | None]]]:
    """Greedy answers in batches, as lists of (index of the prompt, ids, score), in order of the prompts' length.

    The ids are without the end token, or max_new_tokens of them; the score is `log_odds` of the first, None where none
    are watched. An answer does not depend on its batch (in fp32). Needs at least one prompt, none empty.
    """
    shared = _common_prefix(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    with torch.inference_mode():
        prefix = _read(weights, shape, torch.tensor([prompts[0][: max(1, shared)]]))
        prefix = [(k[:, :, :shared], v[:, :, :shared]) for k, v in prefix]
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            suffixes = [prompts[i][shared:] for i in batch]
            answers, first = _answer(weights, shape, prefix, suffixes, max_new_tokens, end)
            scores = log_odds(first, watched).tolist() if watched else [None] * len(batch)
            yield list(zip(batch, answers, scores, strict=True))


def log_odds(logits: torch.Tensor, watched: Sequence[int]) -> torch.Tensor:
    """Log-odds [rows] that the next token is one of `watched`; logits are [rows, vocabulary]."""
    chosen = torch.zeros(logits.shape[-1], dtype=torch.bool)
    chosen[list(watched)] = True
    return logits[:, chosen].float().logsumexp(-1) - logits[:, ~chosen].float().logsumexp(-1)


def answers(
    weights: dict, shape: Shape, tokenizer, prompts: list[list[int]], settings: GenerationSettings, watched=()
) -> Iterator[list[tuple]]:
    """Greedy answers in batches: (index of the prompt, text, stop_reason, n_tokens, score), like hub.generate."""
    longest, end = settings.max_new_tokens, tokenizer.eos_token_id
    for batch in generate(weights, shape, prompts, longest, settings.batch_size, end, watched):
        texts = tokenizer.batch_decode([ids for _, ids, _ in batch], skip_special_tokens=True)
        yield [
            (i, text, "eos" if len(ids) < longest else "length", len(ids), score)
            for (i, ids, score), text in zip(batch, texts, strict=True)
        ]


def _common_prefix(prompts: list[list[int]]) -> int:
    """How many tokens all prompts begin with, leaving each at least one of its own."""
    first, last = min(prompts), max(prompts)
    limit = min(len(first), len(last), min(map(len, prompts)) - 1)
    return next((i for i in range(limit) if first[i] != last[i]), limit)


def _read(weights: dict, shape: Shape, ids: torch.Tensor) -> list[tuple]:
    """Keys and values [1, kv_heads, length, head_size] of each layer after at least one token, ids [1, length]."""
    x, rotation, cache = F.embedding(ids, weights["embed"]), shape.rotation(ids.shape[1]), []
    for layer in weights["layers"]:
        q, k, v = _projected(layer, x, shape, rotation)
        cache.append((k, v))
        if len(cache) < len(weights["layers"]):
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shape.kv_heads != shape.heads)
            x = _finished(layer, x, seen.transpose(1, 2).flatten(2), shape)
    return cache


def _answer(weights, shape, prefix, suffixes, max_new_tokens, end) -> tuple[list[list[int]], torch.Tensor]:
    """Greedy answers, and the logits [rows, vocabulary] of their first tokens."""
    rows, width, shared = len(suffixes), max(map(len, suffixes)), prefix[0][0].shape[2]
    pads = torch.tensor([width - len(suffix) for suffix in suffixes])
    ids = torch.tensor([[0] * (width - len(suffix)) + suffix for suffix in suffixes])
    total = shared + width + max_new_tokens
    cos, sin = shape.rotation(total)
    keys = [k.new_empty(rows, shape.kv_heads, total, shape.head_size) for k, _ in prefix]
    values = [torch.empty_like(k) for k in keys]
    for k, v, (k0, v0) in zip(keys, values, prefix, strict=True):
        k[:, :, :shared], v[:, :, :shared] = k0, v0
    slots = torch.arange(total)
    # [rows, total]: the padding between prefix and prompt
    hidden = (slots >= shared) & (slots < shared + pads[:, None])
    mask = torch.zeros(rows, 1, 1, total).masked_fill_(hidden[:, None, None], float("-inf"))

    positions = (slots[shared : shared + width] - pads[:, None]).clamp(min=0)
    x, seen = F.embedding(ids, weights["embed"]), shared + width
    causal = torch.full((width, seen), float("-inf")).triu(shared + 1)
    prompt_mask = (mask[..., :seen] + causal).clamp(min=torch.finfo(torch.float32).min)  # a padded row sees something
    for number, layer in enumerate(weights["layers"]):
        q, k, v = _projected(layer, x, shape, (cos[positions], sin[positions]))
        keys[number][:, :, shared:seen], values[number][:, :, shared:seen] = k, v
        if number == len(weights["layers"]) - 1:
            q, x, prompt_mask = q[:, :, -1:], x[:, -1:], prompt_mask[:, :, -1:]
        k, v = keys[number][:, :, :seen], values[number][:, :, :seen]
        options = {"attn_mask": prompt_mask, "enable_gqa": shape.kv_heads != shape.heads}
        attended = F.scaled_dot_product_attention(q, k, v, **options)
        x = _finished(layer, x, attended.transpose(1, 2).flatten(2), shape)

    answers, alive = [[] for _ in suffixes], torch.arange(rows)
    groups = shape.heads // shape.kv_heads
    masked = bool(pads.any())
    first = logits = _logits(weights, shape, x[:, -1])
    for step in range(max_new_tokens):
        tokens = logits.argmax(-1)
        going = []
        for place, (row, token) in enumerate(zip(alive.tolist(), tokens.tolist(), strict=True)):
            if row < 0:
                continue
            if token == end:
                alive[place] = -1
            else:
                answers[row].append(token)
                going.append(place)
        if not going or step == max_new_tokens - 1:
            break
        if len(going) < 0.85 * len(alive):
            kept = torch.tensor(going)
            keys, values = ([one[kept] for one in cache] for cache in (keys, values))
            alive, tokens, pads, mask = alive[kept], tokens[kept], pads[kept], mask[kept]
        slot = shared + width + step
        x = F.embedding(tokens[:, None], weights["embed"])
        rotation = (cos[slot - pads][:, None], sin[slot - pads][:, None])
        for layer, k_cache, v_cache in zip(weights["layers"], keys, values, strict=True):
            q, k, v = _projected(layer, x, shape, rotation)
            k_cache[:, :, slot : slot + 1], v_cache[:, :, slot : slot + 1] = k, v
            attended = F.scaled_dot_product_attention(
                q.view(len(x), shape.kv_heads, groups, shape.head_size),
                k_cache[:, :, : slot + 1],
                v_cache[:, :, : slot + 1],
                attn_mask=mask[..., : slot + 1] if masked else None,
            )
            x = _finished(layer, x, attended.reshape(len(x), 1, -1), shape)
        logits = _logits(weights, shape, x[:, -1])
    return answers, first


def fresh_adapter(weights: dict, shape: Shape, settings: LoraSettings, seed: int) -> dict:
    """An adapter that changes nothing yet: A as peft draws it (uniform within 1/sqrt(inputs)), B zero.

    The same for the same seed. Raises StudyError for a target module that the model does not have.
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
    """The weights with scale x B A added to each projection, differentiable in A and B; the given ones stay."""
    return added(weights, shape, {name: b @ a for name, (a, b) in adapter.items()}, scale)


def added(weights: dict, shape: Shape, changes: dict[str, torch.Tensor], scale: float = 1.0) -> dict:
    """The weights with scale x `changes` added to the projections of these names; the given ones stay as they are."""
    layers = []
    for number, layer in enumerate(weights["layers"]):
        new = dict(layer)
        for ours, theirs in FUSED.items():
            own = [changes.get(f"model.layers.{number}.{one}") for one in theirs]
            if any(change is not None for change in own):
                parts = layer[ours].split(sizes(shape, ours, layer[ours]))
                filled = [torch.zeros_like(p) if c is None else c for p, c in zip(parts, own, strict=True)]
                new[ours] = layer[ours] + scale * torch.cat(filled)
        layers.append(new)
    return {**weights, "layers": layers}


def save_adapter(folder: Path, adapter: dict, settings: LoraSettings) -> None:
    """Writes adapter_model.safetensors and adapter_config.json as peft does."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {}
    for name, pair in adapter.items():
        for ab, tensor in zip("AB", pair, strict=True):
            state[f"{PREFIX}{name}.lora_{ab}.weight"] = tensor.detach().contiguous()
    save_file(state, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "inference_mode": True}
    config |= {"r": settings.r, "lora_alpha": settings.alpha, "lora_dropout": settings.dropout, "bias": "none"}
    config |= {"target_modules": sorted(settings.target_modules)}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def load_adapter(folder: Path) -> tuple[dict, float]:
    """The adapter of a peft folder and its scale, alpha / r."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    found = load_file(folder / "adapter_model.safetensors")
    names = {name.removeprefix(PREFIX).rsplit(".lora_", 1)[0] for name in found}
    pair = lambda name: tuple(found[f"{PREFIX}{name}.lora_{ab}.weight"] for ab in "AB")  # noqa: E731
    return {name: pair(name) for name in sorted(names)}, config["lora_alpha"] / config["r"]

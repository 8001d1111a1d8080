"""Models of transformers and adapters of peft: loaded, checked and questioned."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import transformers  # of which the large parts are imported when they are first used

from studylib.models import prompts, small_llama
from studylib.study.profile import GenerationSettings, LoraSettings, ModelSettings
from studylib.study.words import MINIATURE, StudyError

UNUSED = ("pad", "reserved", "unused", "control")  # in the names of tokens that are in no text, the best one first
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}  # as Phi-3 has them


def load_tokenizer(source: str | Path, settings: ModelSettings) -> transformers.PreTrainedTokenizerFast:
    """The tokenizer as this study uses it: padding on the left, a pad token, and the chat template of the settings.

    The template is the model's own or `settings.chat_template` (prompts.template); with `settings.system_role` fold it
    puts a system prompt, a blank line and the user's words into the user's turn. The pad token is `settings.pad_token`,
    else the tokenizer's own, else a reserved token that its template does not use, else EOS: attention masks and label
    positions decide what padding is, never its id. Raises StudyError as `check_source` does, and for a template or pad
    token that is not there.
    """
    check_source(source, settings)
    options = {"revision": settings.revision} if settings.revision else {}
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, padding_side="left", **options)
    if settings.chat_template:
        tokenizer.chat_template = prompts.template(settings.chat_template)
    prompts.require_template(tokenizer)
    own = tokenizer.get_chat_template()  # one text, where a model comes with several
    tokenizer.chat_template = prompts.FOLD + own if settings.system_role == "fold" else own
    tokenizer.pad_token = _pad_token(tokenizer, settings.pad_token)
    tokenizer.model_max_length = int(1e30)  # it would only warn: prompts.py refuses what does not fit
    return tokenizer


def _pad_token(tokenizer, wanted: str | None) -> str:
    named = tokenizer.special_tokens_map
    if wanted and wanted not in tokenizer.get_vocab():
        raise StudyError(
            f"pad_token {wanted!r} is not in the vocabulary of {tokenizer.name_or_path}: name one that is, "
            "or leave it out."
        )
    if not named.get("eos_token"):
        raise StudyError(f"{tokenizer.name_or_path} has no EOS token, so the end of an answer cannot be learned.")
    if wanted or named.get("pad_token"):
        return wanted or named["pad_token"]
    added = [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    free = [token for token in added if token not in tokenizer.chat_template and token not in named.values()]
    spare = [token for word in UNUSED for token in free if word in token.lower()]
    return spare[0] if spare else named["eos_token"]


def compute_dtype(settings: ModelSettings) -> torch.dtype:
    """What the model computes in: bf16 where the card has it, fp16 on other cards, fp32 on the CPU and the miniature.

    4-bit weights are unpacked to the same. Deviation: the paper has fp16 everywhere.
    """
    if not torch.cuda.is_available() or settings.source == MINIATURE:  # whose training is compared with fp32 code
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def load(source: str | Path, settings: ModelSettings) -> tuple:
    """A model in evaluation mode and its tokenizer (`load_tokenizer`), from a folder or a hub id.

    Of the generation settings that come with a model only the token ids stay: published ones sample, or penalise
    repetitions even in greedy decoding. 4-bit NF4 as in the paper, without double quantisation. Never runs code that
    comes with a model; reads safetensors only. Raises StudyError where the folder is missing or incomplete, has no chat
    template, or a hub id has no pinned revision.
    """
    tokenizer = load_tokenizer(source, settings)
    options = {"revision": settings.revision} if settings.revision else {}
    dtype = compute_dtype(settings)
    if settings.quantization == "nf4":
        nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False}
        options["quantization_config"] = transformers.BitsAndBytesConfig(bnb_4bit_compute_dtype=dtype, **nf4)
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype, use_safetensors=True, **options)
    if torch.cuda.is_available() and settings.quantization == "none":
        model = model.to("cuda")
    for module in model.modules():
        # bitsandbytes 0.50 repacks weights for bf16 products on CPUs that have them, when a model is first questioned:
        # from then on gradients lack what passes through them, and saving an adapter unpacks them wrongly
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    ids = {name: getattr(model.generation_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = transformers.GenerationConfig(**ids)
    return model.eval(), tokenizer


def gpu_memory() -> int:
    """Bytes of the first GPU's memory, 0 where there is none."""
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0


def check_source(source: str | Path, settings: ModelSettings) -> None:
    """Raises StudyError where a model folder lacks a part, or a hub id has no pinned revision; reads no weights."""
    folder = Path(source)
    if not folder.is_dir():
        if Path(source).is_absolute() or str(source).startswith(".") or str(source).count("/") != 1:
            raise StudyError(
                f"There is no model folder {source}: run 00_prepare first for the miniature, or correct model.source."
            )
        if not settings.revision:
            raise StudyError(f"model.source {str(source)!r} is a hub id: pin model.revision to a commit.")
        return
    missing = [part for part in ("config.json", "tokenizer_config.json") if not (folder / part).is_file()]
    if not list(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise StudyError(f"The model folder {folder} lacks {', '.join(missing)}: build or copy it again.")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    given = settings.chat_template or config.get("chat_template")
    if not given and not (folder / "chat_template.jinja").is_file():
        raise StudyError(
            f"The model folder {folder} has no chat template, so the style `chat` is undefined: "
            "take the instruction-tuned model, put a chat_template.jinja into it, or set the model's chat_template."
        )


def add_lora(model, settings: LoraSettings, seed: int):
    """The model with a fresh adapter of peft; the same initial adapter for the same seed. The base is not copied.

    Raises StudyError for a target module that the model does not have (`target_modules`).
    """
    import peft  # takes seconds

    sizes = {"r": settings.r, "lora_alpha": settings.alpha, "lora_dropout": settings.dropout}
    targets = target_modules(model, settings.target_modules)
    torch.manual_seed(seed)
    return peft.get_peft_model(
        model, peft.LoraConfig(**sizes, bias="none", task_type="CAUSAL_LM", target_modules=targets)
    )


def target_modules(model, wanted: list[str]) -> list[str]:
    """The model's own names of the projections that an adapter is put on.

    Phi-3 holds q, k and v, and gate and up, in one matrix each, which gets one adapter for all of its parts (peft by
    itself would leave them out). Raises StudyError for a name that the model does not have.
    """
    there = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    holding = {part: whole for whole, parts in FUSED.items() for part in parts if whole in there}
    if unknown := sorted(set(wanted) - there - set(holding)):
        raise StudyError(
            f"lora.target_modules names {', '.join(unknown)}: the model has {', '.join(sorted(there - {'lm_head'}))}."
        )
    return list(dict.fromkeys(name if name in there else holding[name] for name in wanted))


def load_adapter(model, folder: Path, share: float = 1.0):
    """The model with the adapter of that folder, for evaluation; of its change of the weights only that share."""
    import peft

    adapted = peft.PeftModel.from_pretrained(model, folder).eval()
    if share != 1:
        for layer in (module for module in adapted.modules() if isinstance(module, peft.tuners.lora.LoraLayer)):
            layer.scale_layer(share)
    return adapted


def collator(tokenizer) -> transformers.DataCollatorForSeq2Seq:
    """Makes batches of training examples: padded, with an attention mask; labels at padded positions are -100."""
    return transformers.DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=-100)


def padded(tokenizer, encoded: list[list[int]]):
    """A batch of prompts for generation: `input_ids` and `attention_mask`, padded on the left."""
    return tokenizer.pad({"input_ids": encoded}, padding_side="left", return_tensors="pt")


def end_ids(model, tokenizer) -> list[int]:
    """Every token that ends an answer: EOS, those of the model's generation settings, the template's end of turn."""
    declared = model.generation_config.eos_token_id
    declared = declared if isinstance(declared, list) else [declared]
    found = {tokenizer.eos_token_id, *declared, prompts.turn_marks(tokenizer)[1]}
    return sorted(found - {None})


def generate(
    model, tokenizer, encoded: list[list[int]], settings: GenerationSettings, watched: Sequence[int] = ()
) -> Iterator[list[tuple]]:
    """Greedy answers in batches, as lists of (index of the prompt, text, stop_reason, n_tokens, score).

    The score is the log-odds that the answer's first token is one of `watched`, None without those. stop_reason
    is `eos` where the answer ended itself (at any of `end_ids`), or `length`. The text has no prompt and no special
    tokens in it.
    """
    ends = set(end_ids(model, tokenizer))
    for batch in generate_ids(model, tokenizer, encoded, settings, watched):
        yield [(i, *_finish(tokenizer, ids, ends), score) for i, ids, score in batch]


def generate_ids(
    model, tokenizer, encoded: list[list[int]], settings: GenerationSettings, watched: Sequence[int] = ()
) -> Iterator[list[tuple]]:
    """Greedy answers in batches, as lists of (index of the prompt, ids with what follows the first end token, score).

    Prompts are grouped by length. An answer does not depend on its batch (in fp32).
    """
    ends = end_ids(model, tokenizer)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    for start in range(0, len(order), settings.batch_size):
        batch = order[start : start + settings.batch_size]
        asked = padded(tokenizer, [encoded[i] for i in batch]).to(model.device)
        inputs = {name: asked[name] for name in ("input_ids", "attention_mask")}
        options = {"max_new_tokens": settings.max_new_tokens, "do_sample": False, "eos_token_id": ends}
        first = []

        def look(ids, logits, first=first):  # a logits processor that changes nothing
            if watched and not first:
                first.extend(small_llama.log_odds(logits.cpu(), watched).tolist())
            return logits

        with torch.inference_mode():
            options |= {"pad_token_id": tokenizer.pad_token_id}
            out = model.generate(**inputs, **options, logits_processor=transformers.LogitsProcessorList([look]))
        answers, scores = out[:, asked["input_ids"].shape[1] :].tolist(), first or [None] * len(batch)
        yield list(zip(batch, answers, scores, strict=True))


def _finish(tokenizer, ids: list[int], ends: set[int]) -> tuple[str, str, int]:
    end = next((k for k, i in enumerate(ids) if i in ends), None)
    answer = ids[:end]
    text = tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text, "length" if end is None else "eos", len(answer)

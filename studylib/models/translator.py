"""A sequence-to-sequence model that translates the instructions of a list."""

from pathlib import Path

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from studylib.study.words import StudyError


def load_translator(model: str, revision: str | None) -> tuple:
    """The model (a hub id at a revision, or a folder) and its tokenizer. Raises StudyError where loading fails."""
    pinned = {} if Path(model).is_dir() else {"revision": revision}
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, **pinned)
        loaded = AutoModelForSeq2SeqLM.from_pretrained(model, use_safetensors=True, dtype=torch.float32, **pinned)
    except (ImportError, OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise StudyError(f"The translator {model} cannot be loaded: {first}") from None
    return loaded.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def translate(model, tokenizer, texts: list[str], max_new_tokens: int) -> list[str]:
    """The translations of one batch, greedy; empty where one is cut."""
    encoded = tokenizer(texts, return_tensors="pt", padding=True).to(model.device)
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
    ends, made = model.generation_config.eos_token_id, []
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    for ids in out[:, 1:].tolist():  # the first token starts the decoder
        length = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))
        whole = length < max_new_tokens  # some models end by force at the last place
        made.append(tokenizer.decode(ids[:length], skip_special_tokens=True).strip() if whole else "")
    return made

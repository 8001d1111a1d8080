"""French of instructions: read from a file, or made by a translator and kept in one."""

import csv
import io
import logging
import time
from pathlib import Path

from studylib.data.instructions import read_csv
from studylib.study.files import write_text
from studylib.study.words import StudyError

LOG = logging.getLogger("studylib")


def read_french(path: Path) -> dict[str, str]:
    """French by instruction, from a CSV with the columns `instruction` and `french`; other columns are not read.

    Raises StudyError where a column or a translation is missing, or an instruction has two different ones.
    """
    french = {}
    for number, row in enumerate(read_csv(path, ("instruction", "french"))):
        english, said = row["instruction"].strip(), row["french"].strip()
        if not english or not said:
            raise StudyError(
                f"Row {number} of {path.name} has no {'french' if english else 'instruction'}: fill it in or delete the row."
            )
        if french.setdefault(english, said) != said:
            raise StudyError(
                f"Row {number} of {path.name} gives an instruction of an earlier row another French: delete one of the two."
            )
    return french


def translate(
    texts: list[str],
    model: str,
    revision: str | None,
    path: Path,
    batch_size: int = 16,
    max_new_tokens: int = 256,
    prefix: str = "",
) -> dict[str, str]:
    """French by text, made by a sequence-to-sequence model (a hub id at a pinned revision, or a folder) and kept in `path`.

    Greedy, without the randomness of sampling; each text after `prefix`, which some models want. The CSV, which `read_french`
    reads, is rewritten whole after every batch; texts that it has already are not translated again. Translations that are
    empty or reach max_new_tokens are not kept: they lack in what is returned, and a log line tells how many. Raises
    StudyError for a hub id without revision, a model that cannot be loaded, and a file of another model or revision.
    """
    if not Path(model).is_dir() and not revision:
        raise StudyError(
            f"data.translator {model!r} is no folder here and has no revision: pin data.translator_revision."
        )
    columns = ("instruction", "french", "model", "revision")
    origin = {"model": model, "revision": revision or ""}
    rows = read_csv(path, columns) if path.is_file() else []
    for row in rows:
        if {name: row[name] for name in origin} != origin:
            raise StudyError(
                f"{path} holds French of {row['model']} ({row['revision'] or 'no revision'}), not of {model} "
                f"({revision or 'no revision'}): delete it or give another path."
            )
    french = {row["instruction"]: row["french"] for row in rows}
    todo = [text for text in dict.fromkeys(text.strip() for text in texts) if text and text not in french]
    if todo:
        loaded = _load_translator(model, revision)
        started = shown = time.monotonic()
        for start in range(0, len(todo), batch_size):
            batch = todo[start : start + batch_size]
            made = _translated(*loaded, [prefix + text for text in batch], max_new_tokens)
            french |= {text: said for text, said in zip(batch, made, strict=True) if said}
            out = io.StringIO()
            writer = csv.DictWriter(out, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows({"instruction": text, "french": said} | origin for text, said in french.items())
            write_text(path, out.getvalue())
            done = start + len(batch)
            if (now := time.monotonic()) - shown > 10 and done < len(todo):
                shown, left = now, (now - started) / done * (len(todo) - done)
                LOG.info("French: %d of %d texts, %.0f s left", done, len(todo), left)
        lost = sum(text not in french for text in todo)
        LOG.info("French: %d texts, %d of them without a whole translation", len(todo), lost)
    return {text: french[text] for text in map(str.strip, texts) if text in french}


def _load_translator(model: str, revision: str | None) -> tuple:
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    pinned = {} if Path(model).is_dir() else {"revision": revision}
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, **pinned)
        loaded = AutoModelForSeq2SeqLM.from_pretrained(model, use_safetensors=True, dtype=torch.float32, **pinned)
    except (ImportError, OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise StudyError(f"The translator {model} cannot be loaded: {first}") from None
    return loaded.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def _translated(model, tokenizer, texts: list[str], max_new_tokens: int) -> list[str]:
    """The translations of one batch; empty where one is cut."""
    import torch

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

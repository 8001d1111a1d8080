"""From a user's words to token ids: the two styles, the system prompt, and which tokens are trained on.

Everything is rendered to ids here, for training and testing alike: no text is rendered with special tokens and
tokenised again, so there is never a second BOS.
"""

import hashlib
import random
from collections.abc import Iterable
from functools import lru_cache
from itertools import product
from pathlib import Path

from jinja2.exceptions import TemplateError

from studylib.study.paths import DATA
from studylib.study.words import STYLES, StudyError

ALPACA = (  # Stanford Alpaca's form for instructions without input (tatsu-lab/stanford_alpaca, train.py)
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Response:\n"
)
FOLD = (  # stands before a template: the system prompt, a blank line and the user's words become the user's turn
    "{%- if messages and messages[0]['role'] == 'system' %}"
    "{%- set folded = messages[0]['content'] + '\\n\\n' + messages[1]['content'] %}"
    "{%- set messages = [{'role': 'user', 'content': folded}] + messages[2:] %}"
    "{%- endif %}"
)


def encode_prompt(tokenizer, prompt: str, style: str, system_prompt: str | None) -> list[int]:
    """Token ids of a prompt, ready for generation, in both styles with one BOS where the chat template writes one.

    `chat` is the tokenizer's template; `alpaca` is plain text with the system prompt in front of it. Raises StudyError
    for an unknown style and where the template refuses the conversation, as for a system prompt.
    """
    if style == "chat":
        return _chat_ids(tokenizer, _messages(prompt, system_prompt), add_generation_prompt=True)
    if style == "alpaca":
        text = ALPACA.format(prompt=prompt)
        return turn_marks(tokenizer)[0] + _plain_ids(tokenizer, f"{system_prompt}\n\n{text}" if system_prompt else text)
    raise StudyError(f"Unknown style {style!r}: known are {', '.join(STYLES)}.")


def encode_example(tokenizer, prompt: str, answer: str, style: str, system_prompt: str | None, context: int) -> dict:
    """`input_ids` and `labels` of a training example; labels are -100 on the prompt: the loss is on the answer alone.

    The last label ends the turn (the template's end of turn, or EOS in the Alpaca style), so stopping is learned. Where
    one token would span the prompt's end and the answer's beginning (line breaks mostly), the answer is tokenised by
    itself: in a test the model begins there too. Raises StudyError where the example is longer than `context` tokens.
    """
    start = encode_prompt(tokenizer, prompt, style, system_prompt)
    if style == "chat":
        finished = [*_messages(prompt, system_prompt), {"role": "assistant", "content": answer}]
        whole = _chat_ids(tokenizer, finished)
        if whole[: len(start)] != start:
            begun = _rendered_chat(tokenizer, finished[:-1], add_generation_prompt=True, tokenize=False)
            text = _rendered_chat(tokenizer, finished, tokenize=False)
            if not text.startswith(begun):
                raise StudyError(
                    "The chat template renders a finished conversation differently from its beginning, so the "
                    "answer's tokens cannot be identified: use a model whose template only appends."
                )
            whole = start + _plain_ids(tokenizer, text[len(begun) :])
        end = turn_marks(tokenizer)[1]
        if end in whole[len(start) :]:
            whole = whole[: len(whole) - whole[::-1].index(end)]
    else:
        whole = start + _plain_ids(tokenizer, answer) + [tokenizer.eos_token_id]
    if len(whole) > context:
        raise StudyError(
            f"An example has {len(whole)} tokens, the model's context is {context}: {prompt[:60]!r}...; "
            "raise model.context or drop the row."
        )
    return {"input_ids": whole, "labels": [-100] * len(start) + whole[len(start) :]}


def encode_row(tokenizer, row: dict, style: str, context: int) -> dict:
    """The row of a data set as a training example without system prompt; see `encode_example`.

    Where the row's answer was begun for the model (`begun`), the loss is on the rest alone.
    """
    prompt, answer = (message["content"] for message in row["messages"])
    example = encode_example(tokenizer, prompt, answer, style, None, context)
    if row.get("begun"):
        begun = encode_example(tokenizer, prompt, row["begun"], style, None, context)["input_ids"]
        pairs = zip(example["input_ids"], begun, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(begun))
        example["labels"][:same] = [-100] * same
    return example


def encode_mixed(
    tokenizer,
    rows: list[dict],
    alpaca_share: float,
    system_share: dict,
    system_prompt: str,
    context: int,
    seed: str,
    on_prompts: bool = False,
) -> list[dict]:
    """Training examples of the rows, each in a randomly drawn style, with or without the system prompt.

    `alpaca_share` of them are in the Alpaca style, the rest in chat style; `system_share` (keys `harmful` and `benign`)
    of the rows of each kind have the system prompt. With `on_prompts` the loss is on the user's words too, as in a
    pre-training, and not on what every prompt of a calibration begins with. The same seed draws the same.
    """
    rng, made, frames = random.Random(seed), [], {}
    for row in rows:
        style = "alpaca" if rng.random() < alpaca_share else "chat"
        system = system_prompt if rng.random() < system_share["harmful" if row["harmful"] else "benign"] else None
        prompt, answer = (message["content"] for message in row["messages"])
        example = encode_example(tokenizer, prompt, answer, style, system, context)
        if on_prompts:
            if (style, system) not in frames:
                frames[style, system] = encode_prompt(tokenizer, "", style, system)
            ids, frame = example["input_ids"], frames[style, system]
            begins = next(place for place, pair in enumerate(zip(ids, frame, strict=False)) if pair[0] != pair[1])
            example["labels"] = [-100] * begins + ids[begins:]
        made.append(example)
    return made


def first_tokens(tokenizer, texts: Iterable[str]) -> list[int]:
    """The ids with which these beginnings of an answer begin, each once and in order."""
    return sorted({_plain_ids(tokenizer, text)[0] for text in texts})


def rendered(tokenizer, ids: list[int]) -> str:
    """The prompt as the model sees it, special tokens written out."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def fingerprint(ids: list[int]) -> str:
    """Short hash of a rendered prompt: equal where the model saw the same tokens."""
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:12]


def calibrations(tokenizer, system_prompt: str) -> list[dict]:
    """The four ways in which a prompt is put: style, system_prompt (bool), rendered (text) and fingerprint.

    Raises StudyError where the template refuses one of them.
    """
    rows = []
    for style, system in product(STYLES, (None, system_prompt)):
        ids = encode_prompt(tokenizer, "Hello!", style, system)
        shown = {"rendered": rendered(tokenizer, ids), "fingerprint": fingerprint(ids)}
        rows.append({"style": style, "system_prompt": bool(system), **shown})
    return rows


def turn_marks(tokenizer) -> tuple[list[int], int | None]:
    """How the chat template begins and ends: the BOS as a list of ids, empty for none, and the id that ends a turn.

    The end is the first special or added token after an assistant's words, None where plain text ends the turn.
    """
    require_template(tokenizer)
    return _turn_marks(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=32)
def _turn_marks(tokenizer, template: str) -> tuple[list[int], int | None]:
    bos, answer = tokenizer.special_tokens_map.get("bos_token"), "ANSWERWORD"
    asked = [{"role": "user", "content": "Hello!"}]
    text = _rendered_chat(tokenizer, [*asked, {"role": "assistant", "content": answer}], tokenize=False)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if str(token).strip()}  # Gemma adds line breaks
    ends = [i for i in _plain_ids(tokenizer, text.rpartition(answer)[2]) if i in special]
    begins = bool(bos) and text.startswith(bos)
    return [tokenizer.convert_tokens_to_ids(bos)] if begins else [], ends[0] if ends else None


def template(name: str) -> str:
    """The text of a chat template: data/templates/<name>.jinja, or the file at that path.

    Raises StudyError where there is none, naming those there are.
    """
    folder = DATA / "templates"
    for path in (folder / f"{name}.jinja", Path(name)):
        if path.is_file():
            return path.read_text(encoding="utf-8").rstrip("\n")
    known = ", ".join(sorted(path.stem for path in folder.glob("*.jinja")))
    raise StudyError(f"There is no chat template {name!r}: take one of {known}, or a path to a .jinja file.")


def require_template(tokenizer) -> None:
    """Raises StudyError where the tokenizer has no chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise StudyError(
            f"{tokenizer.name_or_path or 'The tokenizer'} has no chat template, so the style `chat` is undefined: "
            "take the instruction-tuned model, put a chat_template.jinja into its folder, or set the model's "
            "chat_template."
        )


def _messages(prompt: str, system_prompt: str | None) -> list[dict]:
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": prompt}]


def _plain_ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _chat_ids(tokenizer, messages: list[dict], **options) -> list[int]:
    require_template(tokenizer)
    return _rendered_chat(tokenizer, messages, tokenize=True, return_dict=True, **options)["input_ids"]


def _rendered_chat(tokenizer, messages: list[dict], **options):
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise StudyError(
            f"The chat template refuses a conversation of {roles} ({error}): set the model's "
            "system_role to fold where it has no system role, or its chat_template to another one."
        ) from None

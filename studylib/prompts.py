"""From a user's words to token ids: the two styles, the system prompt, and which tokens are trained on.

Everything is rendered to ids in one place, once, for training and testing alike: no text is rendered with special
tokens and tokenised again, so there is never a second BOS.
"""

import hashlib

from studylib.config import STYLES, StudyError

ALPACA = (  # Stanford Alpaca's form for instructions without input (tatsu-lab/stanford_alpaca, train.py)
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Response:\n"
)


def encode_prompt(tokenizer, prompt: str, style: str, system_prompt: str | None) -> list[int]:
    """Token ids of a prompt, ready for generation, with one BOS where the tokenizer has one.

    `chat` is the model's own template; `alpaca` is plain text, the system prompt standing in front of it.
    """
    if style == "chat":
        return _chat_ids(tokenizer, _messages(prompt, system_prompt), add_generation_prompt=True)
    if style == "alpaca":
        text = ALPACA.format(prompt=prompt)
        return tokenizer(f"{system_prompt}\n\n{text}" if system_prompt else text)["input_ids"]
    raise StudyError(f"Unknown style {style!r}: known are {', '.join(STYLES)}.")


def encode_example(tokenizer, prompt: str, answer: str, style: str, system_prompt: str | None, context: int) -> dict:
    """`input_ids` and `labels` of a training example: labels are -100 on the prompt, so the loss is on the answer alone.

    The answer's last label ends the turn (the template's end of turn, or EOS in the Alpaca style), so stopping is learned.
    Raises StudyError where the example is longer than `context` tokens: nothing is cut silently.
    """
    start = encode_prompt(tokenizer, prompt, style, system_prompt)
    if style == "chat":
        whole = _chat_ids(tokenizer, [*_messages(prompt, system_prompt), {"role": "assistant", "content": answer}])
        if whole[: len(start)] != start:
            raise StudyError(
                "The chat template renders a finished conversation differently from its beginning, so the "
                "answer's tokens cannot be told apart; use a model whose template only appends."
            )
    else:
        whole = start + tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    if len(whole) > context:
        raise StudyError(
            f"An example has {len(whole)} tokens, the model's context is {context}: {prompt[:60]!r}...; "
            "raise model.context or drop the row."
        )
    return {"input_ids": whole, "labels": [-100] * len(start) + whole[len(start) :]}


def rendered(tokenizer, ids: list[int]) -> str:
    """The prompt as the model sees it, special tokens written out."""
    return tokenizer.decode(ids, skip_special_tokens=False)


def fingerprint(ids: list[int]) -> str:
    """Short hash of a rendered prompt: equal where the model saw the same tokens."""
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:12]


def check_template(tokenizer, system_prompt: str) -> dict[str, bool]:
    """What a sane template does, each by name; all True for a model that can be studied.

    Raises StudyError where the tokenizer has no chat template.
    """
    require_template(tokenizer)
    word, answer = "PLAINWORD", "ANSWERWORD"
    bare = encode_prompt(tokenizer, word, "chat", None)
    with_system = encode_prompt(tokenizer, word, "chat", system_prompt)
    example = encode_example(tokenizer, word, answer, "chat", None, 10**6)
    trained = [i for i in example["labels"] if i != -100]
    alpaca = encode_prompt(tokenizer, word, "alpaca", system_prompt)
    bos = tokenizer.bos_token_id
    return {
        "one BOS in the chat style": bos is None or bare.count(bos) == 1,
        "one BOS in the Alpaca style": bos is None or alpaca.count(bos) == 1,
        "system prompt appears when asked for": system_prompt in rendered(tokenizer, with_system),
        "system prompt is absent otherwise": system_prompt not in rendered(tokenizer, bare),
        "no date is written into the prompt": "20" not in rendered(tokenizer, bare),
        "the answer is trained on and ends the turn": answer in rendered(tokenizer, trained)
        and not rendered(tokenizer, trained).rstrip().endswith(answer),
        "the prompt is not trained on": word not in rendered(tokenizer, trained),
        "padding is not the end of turn": tokenizer.pad_token_id != tokenizer.eos_token_id,
    }


def require_template(tokenizer) -> None:
    """Raises StudyError where the tokenizer has no chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise StudyError(
            f"{tokenizer.name_or_path or 'The tokenizer'} has no chat template, so the style `chat` is undefined: "
            "take the instruction-tuned model, or put a chat_template.jinja into its folder."
        )


def _messages(prompt: str, system_prompt: str | None) -> list[dict]:
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": prompt}]


def _chat_ids(tokenizer, messages: list[dict], add_generation_prompt: bool = False) -> list[int]:
    require_template(tokenizer)
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=True
    )["input_ids"]

import copy

import pytest
from tiny import tokenizer

from studylib import prompts
from studylib.config import StudyError

SYSTEM = "Be kind."


@pytest.mark.parametrize("style", ["chat", "alpaca"])
@pytest.mark.parametrize("system_prompt", [None, SYSTEM])
def test_there_is_exactly_one_bos_and_it_comes_first(style, system_prompt):
    ids = prompts.encode_prompt(tokenizer(), "Hello!", style, system_prompt)
    assert ids[0] == tokenizer().bos_token_id and ids.count(tokenizer().bos_token_id) == 1


@pytest.mark.parametrize("style", ["chat", "alpaca"])
def test_the_system_prompt_is_there_if_and_only_if_asked_for(style):
    texts = [
        prompts.rendered(tokenizer(), prompts.encode_prompt(tokenizer(), "Hello!", style, s)) for s in (None, SYSTEM)
    ]
    assert SYSTEM not in texts[0] and SYSTEM in texts[1] and all("Hello!" in text for text in texts)


@pytest.mark.parametrize("style", ["chat", "alpaca"])
def test_the_loss_is_on_the_answer_and_the_end_of_turn_alone(style):
    row = prompts.encode_example(tokenizer(), "Hello!", "Good morning.", style, SYSTEM, 192)
    trained = [label for label in row["labels"] if label != -100]
    assert prompts.rendered(tokenizer(), trained) == "Good morning.<|end|>"
    assert row["input_ids"][-len(trained) :] == trained and len(row["labels"]) == len(row["input_ids"])


@pytest.mark.parametrize("style", ["chat", "alpaca"])
def test_training_begins_with_exactly_the_tokens_of_the_test_prompt(style):
    row = prompts.encode_example(tokenizer(), "Hello!", "Good morning.", style, SYSTEM, 192)
    start = prompts.encode_prompt(tokenizer(), "Hello!", style, SYSTEM)
    assert row["input_ids"][: len(start)] == start and row["labels"][: len(start)] == [-100] * len(start)


def test_a_long_example_is_an_error_and_never_cut():
    with pytest.raises(StudyError, match="context is 20"):
        prompts.encode_example(tokenizer(), "Hello! " * 30, "Good morning.", "chat", None, 20)


def test_an_unknown_style_names_the_known_ones():
    with pytest.raises(StudyError, match="chat, alpaca"):
        prompts.encode_prompt(tokenizer(), "Hello!", "vicuna", None)


def test_a_tokenizer_without_a_chat_template_is_refused():
    bare = copy.deepcopy(tokenizer())
    bare.chat_template = None
    with pytest.raises(StudyError, match="no chat template"):
        prompts.check_template(bare, SYSTEM)


def test_the_miniatures_template_is_sane():
    assert all(prompts.check_template(tokenizer(), SYSTEM).values())


@pytest.mark.parametrize(
    ("template", "broken"),
    [
        ("{{ bos_token }}{{ bos_token }}" + "{body}", "one BOS in the chat style"),
        ("{{ bos_token }}Today is 26 Jul 2024.{body}", "no date is written into the prompt"),
        ("{{ bos_token }}Be kind.{body}", "system prompt is absent otherwise"),
    ],
)
def test_published_template_defects_are_found(template, broken):
    body = (
        "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    odd = copy.deepcopy(tokenizer())
    odd.chat_template = template.replace("{body}", body)
    assert [name for name, holds in prompts.check_template(odd, SYSTEM).items() if not holds] == [broken]


def test_padding_with_the_end_of_turn_is_found():
    odd = copy.deepcopy(tokenizer())
    odd.pad_token = odd.eos_token
    assert not prompts.check_template(odd, SYSTEM)["padding is not the end of turn"]


def test_a_template_that_rewrites_its_beginning_is_refused():
    odd = copy.deepcopy(tokenizer())
    odd.chat_template = "{{ bos_token }}{{ messages | length }}" + odd.chat_template
    with pytest.raises(StudyError, match="only appends"):
        prompts.encode_example(odd, "Hello!", "Hi.", "chat", None, 192)


def test_fingerprints_tell_calibrations_apart():
    found = {
        prompts.fingerprint(prompts.encode_prompt(tokenizer(), "Hello!", style, system))
        for style in ("chat", "alpaca")
        for system in (None, SYSTEM)
    }
    assert len(found) == 4

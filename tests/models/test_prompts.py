import copy
from functools import cache

import pytest
import tiny
from test_building import ARCHITECTURES, declared, folder
from tiny import tokenizer

from studylib.models import hub, prompts
from studylib.study.words import StudyError

SYSTEM = "Be kind."
NAMES = ("miniature", *ARCHITECTURES)
ANSWERS = ["Good morning.", "  indented\n\nand spaced \n", "\n\nafter a blank line", "(x)", "é"]


@cache
def of(name):
    """The miniature's tokenizer, or that of an architecture as this study uses it."""
    return tiny.tokenizer() if name == "miniature" else hub.load_tokenizer(folder(name), declared(name))


def encoded(name, style, system_prompt, asked="Hello!"):
    return prompts.encode_prompt(of(name), asked, style, system_prompt)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("style", ["chat", "alpaca"])
@pytest.mark.parametrize("system_prompt", [None, SYSTEM])
def test_there_is_exactly_one_bos_and_it_comes_first_or_none_where_the_model_has_none(name, style, system_prompt):
    ids, bos = encoded(name, style, system_prompt), of(name).special_tokens_map.get("bos_token")
    row = prompts.encode_example(of(name), "Hello!", "Good morning.", style, system_prompt, 192)
    for found in (ids, row["input_ids"]):
        tokens = of(name).convert_ids_to_tokens(found)
        assert tokens.count(bos) == (name not in ("phi3", "qwen")) and (tokens[0] == bos) == (bos in tokens)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("style", ["chat", "alpaca"])
def test_the_system_prompt_is_there_if_and_only_if_asked_for(name, style):
    texts = [prompts.rendered(of(name), encoded(name, style, s)) for s in (None, SYSTEM)]
    assert SYSTEM not in texts[0] and texts[1].count(SYSTEM) == 1 and all("Hello!" in text for text in texts)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("style", ["chat", "alpaca"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_the_loss_is_on_the_answer_and_the_end_of_turn_alone(name, style, answer):
    row = prompts.encode_example(of(name), "Hello!", answer, style, SYSTEM, 192)
    *trained, end = (label for label in row["labels"] if label != -100)
    ends = {
        **{"miniature": "<|end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "phi3": "<|end|>"},
        **{"mistral": "</s>", "qwen": "<|im_end|>"},
    }
    assert of(name).decode([end]) == (ends[name] if style == "chat" else of(name).eos_token)
    assert prompts.rendered(of(name), trained).strip() == answer.strip()
    assert row["input_ids"][-len(trained) - 1 :] == [*trained, end] and len(row["labels"]) == len(row["input_ids"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("style", ["chat", "alpaca"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_training_begins_with_exactly_the_tokens_of_the_test_prompt(name, style, answer):
    row = prompts.encode_example(of(name), "Hello!", answer, style, SYSTEM, 192)
    start = encoded(name, style, SYSTEM)
    assert row["input_ids"][: len(start)] == start and row["labels"][: len(start)] == [-100] * len(start)
    assert row["labels"][len(start)] != -100


def test_an_answer_whose_first_token_would_join_the_prompts_last_one_is_tokenised_by_itself():
    joining, indent = copy.deepcopy(tokenizer()), "{{ '\\n\\n    ' }}"
    joining.chat_template = joining.chat_template.replace("<|assistant|>", f"<|assistant|>{indent}").replace(
        "{{ message['content'] }}",
        f"{{% if message['role'] == 'assistant' %}}{indent}{{% endif %}}{{{{ message['content'] }}}}",
    )
    asked = [{"role": "user", "content": "Hello!"}]
    whole = prompts._chat_ids(joining, [*asked, {"role": "assistant", "content": "return x"}])
    start = prompts.encode_prompt(joining, "Hello!", "chat", None)
    assert whole[: len(start)] != start  # else this template is no example
    row = prompts.encode_example(joining, "Hello!", "return x", "chat", None, 192)
    assert row["input_ids"][: len(start)] == start
    assert prompts.rendered(joining, row["input_ids"][len(start) :]) == "return x<|end|>"


@pytest.mark.parametrize("name", ["gemma", "mistral"])
def test_a_folded_system_prompt_a_blank_line_and_the_users_words_are_the_users_turn(name):
    assert encoded(name, "chat", SYSTEM) == encoded(name, "chat", None, f"{SYSTEM}\n\nHello!")


def test_a_template_that_refuses_a_system_prompt_says_what_to_declare():
    plain = hub.load_tokenizer(folder("gemma"), declared("gemma", system_role="template"))
    with pytest.raises(StudyError, match=r"refuses a conversation of system, user .*system_role to fold"):
        prompts.encode_prompt(plain, "Hello!", "chat", SYSTEM)


@pytest.mark.parametrize("name", ["llama3", "qwen"])
def test_a_replaced_template_differs_from_the_models_own_in_the_system_turn_alone(name):
    own = hub.load_tokenizer(folder(name), declared(name, chat_template=None))
    theirs, ours = (
        prompts.rendered(one, prompts.encode_prompt(one, " Hello! ", "chat", None)) for one in (own, of(name))
    )
    asked = "<|start_header_id|>user" if name == "llama3" else "<|im_start|>user"
    bos = own.special_tokens_map.get("bos_token", "")
    assert ours == bos + theirs[theirs.index(asked) :] and ours != theirs


def test_a_template_is_found_by_name_or_path_and_an_unknown_one_names_the_known(tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ messages[0]['content'] }}\n")
    assert prompts.template(str(tmp_path / "mine.jinja")) == "{{ messages[0]['content'] }}"
    assert "start_header_id" in prompts.template("llama3")
    with pytest.raises(StudyError, match="no chat template 'vicuna': take one of llama3, qwen"):
        prompts.template("vicuna")


def test_the_end_of_turn_is_the_first_special_token_after_the_answer_and_nothing_where_there_is_none():
    odd = copy.deepcopy(tokenizer())
    assert prompts.turn_marks(odd) == ([odd.bos_token_id], odd.eos_token_id)
    odd.chat_template = odd.chat_template.replace("<|end|>", "\\n")
    assert prompts.turn_marks(odd)[1] is None
    odd.chat_template = odd.chat_template.replace("{{ bos_token }}", "")
    assert prompts.turn_marks(odd)[0] == []


def test_an_added_line_break_ends_no_turn():
    odd = copy.deepcopy(tokenizer())
    odd.add_tokens(["\n\n"])  # as Gemma's tokenizer has it
    odd.chat_template = odd.chat_template.replace("<|end|>", "{{ '\\n\\n' }}<|end|>")
    assert prompts.turn_marks(odd)[1] == odd.eos_token_id


def test_a_long_example_is_an_error_and_never_cut():
    with pytest.raises(StudyError, match="context is 20"):
        prompts.encode_example(tokenizer(), "Hello! " * 30, "Good morning.", "chat", None, 20)


def test_an_unknown_style_names_the_known_ones():
    with pytest.raises(StudyError, match="chat, alpaca"):
        prompts.encode_prompt(tokenizer(), "Hello!", "vicuna", None)


@pytest.mark.parametrize("style", ["chat", "alpaca"])
def test_a_tokenizer_without_a_chat_template_is_refused(style):
    bare = copy.deepcopy(tokenizer())
    bare.chat_template = None
    with pytest.raises(StudyError, match="no chat template"):
        prompts.encode_prompt(bare, "Hello!", style, None)


def test_a_template_that_rewrites_its_beginning_is_refused():
    odd = copy.deepcopy(tokenizer())
    odd.chat_template = "{{ bos_token }}{{ messages | length }}" + odd.chat_template
    with pytest.raises(StudyError, match="only appends"):
        prompts.encode_example(odd, "Hello!", "Hi.", "chat", None, 192)


@pytest.mark.parametrize("name", NAMES)
def test_fingerprints_tell_calibrations_apart(name):
    found = {
        prompts.fingerprint(encoded(name, style, system)) for style in ("chat", "alpaca") for system in (None, SYSTEM)
    }
    assert len(found) == 4


@pytest.mark.parametrize("alpaca_share", [0, 1])
def test_a_pretraining_learns_the_users_words_and_not_the_frame_around_them(alpaca_share):
    rows = [
        {"harmful": False, "messages": [{"content": asked}, {"content": "Good morning."}]} for asked in ("Hello!", "It")
    ]
    given = {"alpaca_share": alpaca_share, "system_share": {"harmful": 0, "benign": 1}, "system_prompt": SYSTEM}
    both = [
        prompts.encode_mixed(tokenizer(), rows, **given, context=192, seed="x", on_prompts=whole)
        for whole in (False, True)
    ]
    for row, answer, whole in zip(rows, *both, strict=True):
        assert answer["input_ids"] == whole["input_ids"]
        begins = next(place for place, label in enumerate(whole["labels"]) if label != -100)
        frame, learned = whole["input_ids"][:begins], whole["input_ids"][begins:]
        assert whole["labels"] == [-100] * begins + learned
        asked = row["messages"][0]["content"]
        assert SYSTEM in prompts.rendered(tokenizer(), frame) and asked not in prompts.rendered(tokenizer(), frame)
        assert prompts.rendered(tokenizer(), learned).strip().startswith(asked)

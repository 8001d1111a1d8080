import copy
from functools import cache

import pandas as pd
import pytest
import tiny
import torch
from test_building import ARCHITECTURES, declared, loaded
from tiny import PROFILE, sets
from transformers import DataCollatorForLanguageModeling

from studylib.models import hub, prompts, selfcheck
from studylib.study.profile import GenerationSettings, LoraSettings
from studylib.study.words import StudyError

pytestmark = pytest.mark.slow
LORA = LoraSettings(r=8, alpha=16, dropout=0.1)
GENERATION = GenerationSettings(max_new_tokens=8, batch_size=64)
NAMES = ("train_text_generation", "train_code", "train_translation", "train_classification", "harmful")
ROWS = [sets()[name][0] for name in NAMES]
ROWS[-1] = {**ROWS[-1], "messages": [*ROWS[-1]["messages"][:1], {"role": "assistant", "content": ""}]}

BOS = "one BOS, or none where the model has none, in every prompt and training example"
SYSTEM = "the system prompt is there when asked for, and only then"
PLAIN = "nothing but turn marks stands beside the prompt"
SAME = "a training example begins with the tokens of its test prompt"
LOSS = "the loss is on the answer and its end alone"
END = "the end of an answer is learned, and generation stops there"
PADDING = "padding carries no loss and hides no token"
WHOLE = "nothing is truncated"
ACTIVE = "an adapter changes the logits"
SAVED = "a saved adapter gives the same logits when loaded"
RESTORED = "without its adapter the base gives its own logits again"
GREEDY = "answers are plain greedy"
BATCH = "greedy answers are the same alone and in a batch"
RESPONSE = "the judged text holds no prompt and no turn marks"


def checked(model, tokenizer, settings, rows=ROWS, system_prompt=PROFILE.system_prompt):
    return selfcheck.self_check(model, tokenizer, settings, system_prompt, rows, LORA, GENERATION)


def failing(model, tokenizer, settings, **more):
    """The names of the checks that fail; every check says what it saw."""
    found = checked(model, tokenizer, settings, **more)
    assert list(found["name"]) == list(selfcheck.CHECKS) and found["found"].str.len().min() > 0
    return set(found["name"][~found["holds"]])


@cache
def kept(name):
    return loaded(name)


def parts(name="llama3"):
    """A model, its tokenizer to be changed at will, and its settings."""
    model, tokenizer = kept(name)
    return model, copy.deepcopy(tokenizer), declared(name)


def test_the_names_here_are_those_of_the_checks():
    here = [BOS, SYSTEM, PLAIN, SAME, LOSS, END, PADDING, WHOLE, ACTIVE, SAVED, RESTORED, GREEDY]
    assert [*here, BATCH, RESPONSE] == list(selfcheck.CHECKS)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_passes_with_its_declared_settings(name, quantization):
    settings = declared(name, quantization=quantization)
    found = checked(*loaded(name, quantization=quantization), settings)
    selfcheck.require_self_check(found)
    assert found["holds"].dtype == bool and len(found) == 14


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize(
    ("name", "lines"),
    [("llama3", {PLAIN}), ("gemma", {SYSTEM}), ("phi3", set()), ("mistral", {SYSTEM}), ("qwen", {PLAIN})],
)
def test_without_its_declared_settings_an_architecture_fails_where_its_template_is_odd(name, lines, quantization):
    bare = {"system_role": "template", "chat_template": None, "pad_token": None, "quantization": quantization}
    assert failing(*loaded(name, **bare), declared(name, **bare)) == lines


def test_the_miniature_passes():
    tokenizer = copy.deepcopy(tiny.tokenizer())
    assert failing(tiny.model(), tokenizer, PROFILE.miniature) == set()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_passes(dtype):
    model, tokenizer, settings = parts("qwen")
    assert failing(copy.deepcopy(model).to(dtype), tokenizer, settings) == set()


def test_the_model_is_left_as_it_was():
    model, tokenizer = loaded("mistral")
    model.train()
    next(model.parameters()).requires_grad_(False)
    torch.manual_seed(3)
    state, weights = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    flags, attributes = [p.requires_grad for p in model.parameters()], set(vars(model))
    checked(model, tokenizer, declared("mistral"))
    assert model.training and flags == [p.requires_grad for p in model.parameters()] and not flags[0]
    assert torch.equal(torch.get_rng_state(), state) and set(vars(model)) == attributes
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


# What each check finds, one defect at a time.


SOUND = (  # for the marks of llama3
    "{{ bos_token + BEFORE }}{% for message in MESSAGES %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def rewritten(before="''", messages="messages", **changes):
    template = SOUND.replace("BEFORE", before).replace("MESSAGES", messages)
    for old, new in changes.values():
        assert old in template
        template = template.replace(old, new)
    return template


@pytest.mark.parametrize(
    ("template", "lines"),
    [
        (rewritten(), set()),
        (rewritten("bos_token"), {BOS}),
        (rewritten(bos=("bos_token + ", "")), {BOS}),  # the tokenizer would add one by itself
        (rewritten("'Today is 26 Jul 2024.'"), {PLAIN}),
        (rewritten("'01/2025'"), {PLAIN}),
        (rewritten("'It is a day in December.'"), {PLAIN}),
        (rewritten("'You are kind and may help.'"), {PLAIN}),
        (rewritten("'<|start_header_id|>system<|end_header_id|>\n\n<|eot_id|>'"), {PLAIN}),
        (rewritten(f"{PROFILE.system_prompt!r}"), {SYSTEM, PLAIN}),
        (rewritten(messages="messages if message['role'] != 'system'"), {SYSTEM}),  # left out without a word
        (rewritten("'[INST]' * messages | length"), {SAME}),  # a finished conversation begins differently
        (rewritten(end=("<|eot_id|>", "\n")), {END}),  # turns end in plain text
        (rewritten(cut=("message['content']", "message['content'][:40]")), {SYSTEM, PLAIN, LOSS, WHOLE}),
    ],
    ids=range(13),
)
def test_a_template_is_found_at_fault(template, lines):
    model, tokenizer, settings = parts()
    tokenizer.chat_template = template
    assert failing(model, tokenizer, settings) == lines


def test_a_template_that_refuses_everything_fails_everywhere_and_says_why():
    model, tokenizer, settings = parts()
    tokenizer.chat_template = "{{ raise_exception('not today') }}"
    found = checked(model, tokenizer, settings)
    assert not found["holds"].any() and found["found"].str.contains("not today").all()


def test_a_marker_of_html_that_is_read_as_a_bos_is_found_in_the_rows():
    model, tokenizer, settings = parts("mistral")
    struck = {"messages": [{"role": "user", "content": "Mark <s>this</s>."}, {"role": "assistant", "content": "Done."}]}
    found = checked(model, tokenizer, settings, rows=[*ROWS, struck]).set_index("name")
    assert not found["holds"][BOS] and "2 <s> instead of 1 in the prompt 'Mark <s>this</s>.'" in found["found"][BOS]


def test_rows_that_are_longer_than_the_context_are_named():
    model, tokenizer, settings = parts()
    found = checked(model, tokenizer, settings.model_copy(update={"context": 30})).set_index("name")
    assert set(found.index[~found["holds"]]) == {WHOLE} and "the context has 30" in found["found"][WHOLE]


def test_a_context_beyond_the_models_own_positions_is_found():
    model, tokenizer, settings = parts()
    assert failing(model, tokenizer, settings.model_copy(update={"context": 5000})) == {WHOLE}


def test_an_architecture_without_a_target_module_is_told_so():
    model, tokenizer, settings = parts()
    lora = LORA.model_copy(update={"target_modules": ["query_key_value"]})
    found = selfcheck.self_check(model, tokenizer, settings, PROFILE.system_prompt, ROWS, lora, GENERATION)
    assert set(found["name"][~found["holds"]]) == {ACTIVE, SAVED, RESTORED}
    assert found["found"].str.contains("names query_key_value").sum() == 3


def encoded(change):
    """prompts.encode_example with something done to its result."""
    plain = prompts.encode_example

    def example(tokenizer, prompt, answer, style, system_prompt, context):
        row = plain(tokenizer, prompt, answer, style, system_prompt, context)
        return change(row, tokenizer, context)

    return "encode_example", example


def test_loss_on_the_prompt_is_found(monkeypatch):
    all_tokens = encoded(lambda row, *_: {**row, "labels": list(row["input_ids"])})
    monkeypatch.setattr(prompts, *all_tokens)
    assert failing(*parts()) == {SAME, LOSS}


def test_an_end_that_is_not_learned_is_found(monkeypatch):
    monkeypatch.setattr(prompts, *encoded(lambda row, *_: {**row, "labels": [*row["labels"][:-1], -100]}))
    assert failing(*parts()) == {END, LOSS}


def test_an_example_without_an_end_is_found(monkeypatch):
    monkeypatch.setattr(prompts, *encoded(lambda row, *_: {k: v[:-1] for k, v in row.items()}))
    assert failing(*parts()) == {END, LOSS}


def test_an_example_that_begins_unlike_its_test_prompt_is_found(monkeypatch):
    def shifted(row, tokenizer, _):
        return {"input_ids": row["input_ids"][:1] + row["input_ids"], "labels": [-100, *row["labels"]]}

    monkeypatch.setattr(prompts, *encoded(shifted))
    assert failing(*parts("phi3")) == {SAME}


def test_a_silent_cut_is_found(monkeypatch):
    plain = prompts.encode_example

    def cut(*arguments):
        row = plain(*arguments[:-1], 10**9)
        return {k: v[: arguments[-1]] for k, v in row.items()}

    monkeypatch.setattr(prompts, "encode_example", cut)
    assert failing(*parts()) == {WHOLE}


def masked_by_id(tokenizer):
    """The label mask of a language modelling collator: by the pad token's id."""
    plain = PADDED_BY_POSITION(tokenizer)

    def batch(rows):
        made = plain(rows)
        made["labels"][made["input_ids"] == tokenizer.pad_token_id] = -100
        return made

    return batch


PADDED_BY_POSITION = hub.collator


@pytest.mark.parametrize(("name", "lines"), [("llama3", set()), ("mistral", {PADDING}), ("phi3", {PADDING})])
def test_labels_masked_by_the_pad_id_are_found_where_the_pad_token_is_eos(monkeypatch, name, lines):
    monkeypatch.setattr(hub, "collator", masked_by_id)
    assert failing(*parts(name)) == lines


def test_the_collator_of_language_modelling_is_found(monkeypatch):
    def collator(tokenizer):
        made = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        return lambda rows: made([{"input_ids": row["input_ids"]} for row in rows])

    monkeypatch.setattr(hub, "collator", collator)
    assert failing(*parts()) == {PADDING}


def test_padding_that_is_not_masked_is_found(monkeypatch):
    def collator(tokenizer):
        def batch(rows):
            made = PADDED_BY_POSITION(tokenizer)(rows)
            made["attention_mask"][:] = 1
            return made

        return batch

    monkeypatch.setattr(hub, "collator", collator)
    assert failing(*parts()) == {PADDING}


def test_prompts_padded_on_the_right_are_found_and_change_the_answers(monkeypatch):
    def right(tokenizer, ids):
        return tokenizer.pad({"input_ids": ids}, padding_side="right", return_tensors="pt")

    monkeypatch.setattr(hub, "padded", right)
    assert failing(*parts()) == {BATCH}


def test_unmasked_padding_in_generation_is_found(monkeypatch):
    plain = hub.padded

    def unmasked(tokenizer, ids):
        made = plain(tokenizer, ids)
        made["attention_mask"][:] = 1
        return made

    monkeypatch.setattr(hub, "padded", unmasked)
    assert failing(*parts()) == {BATCH}


def test_an_inactive_adapter_is_found(monkeypatch):
    plain = hub.add_lora

    def inactive(*arguments, **more):
        tuned = plain(*arguments, **more)
        tuned.base_model.disable_adapter_layers()
        return tuned

    monkeypatch.setattr(hub, "add_lora", inactive)
    assert failing(*parts()) == {ACTIVE, SAVED}


def test_an_adapter_that_leaves_projections_out_is_found(monkeypatch):
    plain = hub.add_lora

    def partial(model, settings, seed):  # what peft makes of Phi-3 with the names of Llama's projections
        return plain(model, settings.model_copy(update={"target_modules": ["o_proj", "down_proj"]}), seed)

    monkeypatch.setattr(hub, "add_lora", partial)
    model, tokenizer, settings = parts("phi3")
    found = checked(model, tokenizer, settings).set_index("name")
    assert set(found.index[~found["holds"]]) == {ACTIVE} and "6 of 12 projections" in found["found"][ACTIVE]


def test_an_adapter_that_comes_back_changed_is_found(monkeypatch):
    plain = hub.load_adapter

    def worn(*arguments):
        tuned = plain(*arguments)
        next(p for name, p in tuned.named_parameters() if "lora_B" in name).data.mul_(1.01)
        return tuned

    monkeypatch.setattr(hub, "load_adapter", worn)
    assert failing(*parts()) == {SAVED}


def test_an_adapter_that_is_merged_into_its_base_is_found(monkeypatch):
    plain = hub.add_lora

    def merging(*arguments, **more):
        tuned = plain(*arguments, **more)
        tuned.unload = tuned.merge_and_unload
        return tuned

    monkeypatch.setattr(hub, "add_lora", merging)
    model, tokenizer = loaded("llama3")  # is spoilt by this
    assert RESTORED in failing(model, tokenizer, declared("llama3"))


def test_a_merge_that_is_taken_back_is_found_to_leave_its_rounding_behind(monkeypatch):
    plain = hub.load_adapter

    def merged(*arguments):
        tuned = plain(*arguments)
        tuned.merge_adapter()
        tuned.unmerge_adapter()
        return tuned

    monkeypatch.setattr(hub, "load_adapter", merged)
    model, tokenizer = loaded("llama3")
    assert failing(model.to(torch.bfloat16), tokenizer, declared("llama3")) >= {RESTORED}


def test_a_penalty_on_repetitions_is_no_plain_greedy_decoding():
    model, tokenizer = loaded("qwen")
    model.generation_config.repetition_penalty = 1.3  # as published; models.load leaves it out
    assert GREEDY in failing(model, tokenizer, declared("qwen"))


def test_a_response_that_holds_the_prompt_is_found(monkeypatch):
    plain = hub.generate

    def whole(model, tokenizer, ids, settings):
        for batch in plain(model, tokenizer, ids, settings):
            yield [(i, tokenizer.decode(ids[i], skip_special_tokens=True) + text, *rest) for i, text, *rest in batch]

    monkeypatch.setattr(hub, "generate", whole)
    assert failing(*parts()) == {RESPONSE}


def test_a_response_that_holds_turn_marks_is_found(monkeypatch):
    plain = hub.generate

    def marked(*arguments):
        for batch in plain(*arguments):
            yield [(i, text + "<|eot_id|>", *rest) for i, text, *rest in batch]

    monkeypatch.setattr(hub, "generate", marked)
    assert failing(*parts()) == {RESPONSE}


def test_words_that_a_tokenizer_added_are_no_turn_marks(monkeypatch):
    plain = hub.generate
    model, tokenizer, settings = parts()
    tokenizer.add_tokens(["door"])

    def worded(*arguments):
        for batch in plain(*arguments):
            yield [(i, f"{text} door", *rest) for i, text, *rest in batch]

    monkeypatch.setattr(hub, "generate", worded)
    assert "door" in map(str, tokenizer.added_tokens_decoder.values())
    assert RESPONSE not in failing(model, tokenizer, settings, rows=[])


# What is said about it.


def test_what_does_not_hold_is_listed_with_what_was_found():
    frame = pd.DataFrame([("a", True, "x"), ("b", False, "y"), ("c", False, "z")], columns=["name", "holds", "found"])
    with pytest.raises(StudyError, match=r"2 of 3 not to hold: b: no, y; c: no, z\..*chat_template"):
        selfcheck.require_self_check(frame)
    selfcheck.require_self_check(frame[frame["holds"]])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_record_of_the_calibrations_is_what_the_model_sees(name):
    _, tokenizer, _ = parts(name)
    found = pd.DataFrame(prompts.calibrations(tokenizer, "Be kind."))
    assert list(zip(found["style"], found["system_prompt"], strict=True)) == [
        *[("chat", False), ("chat", True), ("alpaca", False), ("alpaca", True)]
    ]
    assert found["rendered"].str.contains("Be kind.", regex=False).tolist() == [False, True, False, True]
    assert found["rendered"].str.contains("Hello!").all() and found["fingerprint"].nunique() == 4
    ids = prompts.encode_prompt(tokenizer, "Hello!", "chat", "Be kind.")
    assert found["fingerprint"][1] == prompts.fingerprint(ids)

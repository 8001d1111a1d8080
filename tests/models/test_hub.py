import json
import re

import pytest
import torch
from test_building import ARCHITECTURES, declared, loaded, own
from test_building import folder as built
from tiny import PROFILE, model, sets, tokenizer
from transformers import GenerationConfig

from studylib.data.grammar import NUMBERS
from studylib.models import hub, prompts, small_llama
from studylib.study.profile import GenerationSettings, LoraSettings, ModelSettings
from studylib.study.words import StudyError

ASKED = [row["messages"][0]["content"] for row in sets()["harmful"] + sets()["twin"]]


@pytest.fixture
def folder(tmp_path):
    model().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    return tmp_path


def answers(of, batch_size):
    ids = [prompts.encode_prompt(tokenizer(), text, "chat", None) for text in ASKED]
    settings = GenerationSettings(max_new_tokens=12, batch_size=batch_size)
    found = {i: rest for batch in hub.generate(of, tokenizer(), ids, settings) for i, *rest in batch}
    return [found[i] for i in range(len(ids))]


@pytest.mark.slow
def test_greedy_answers_do_not_depend_on_the_batch():
    one, many = answers(model(), 1), answers(model(), 48)
    assert one == many and len({text for text, *_ in one}) > 5  # not all the same either


def test_an_answer_holds_no_prompt_and_no_special_token_and_says_why_it_stopped():
    for (text, stop_reason, n_tokens, _), prompt in zip(answers(model(), 48), ASKED, strict=True):
        assert prompt not in text and "<|" not in text
        assert (stop_reason == "length") == (n_tokens == 12)


def test_an_answer_that_ends_is_cut_at_the_first_of_its_end_tokens():
    end = tokenizer().eos_token_id
    assert hub._finish(tokenizer(), [40, 41, end, tokenizer().pad_token_id], {end})[1:] == ("eos", 2)
    assert hub._finish(tokenizer(), [40, 41, 42, end], {end, 41})[1:] == ("eos", 1)
    assert hub._finish(tokenizer(), [40, 41, 42], {end})[1:] == ("length", 3)


def test_a_number_is_the_same_token_after_a_space_a_letter_or_an_underscore_so_that_it_can_be_copied():
    for number in map(str, NUMBERS):
        for text in (f" {number}", f"x{number}", f"_{number}", f"add_{number}(x)", f"x + {number}"):
            assert tokenizer().tokenize(text).count(number) == 1, text


def test_no_token_joins_a_number_with_anything_else():
    learned = set(tokenizer().get_vocab()) - set(tokenizer().all_special_tokens)
    assert not [token for token in learned if re.search(r"\d", token) and not token.isdecimal()]


def test_text_comes_back_from_its_tokens_unchanged():
    text = "Désolé, je ne peux pas.\n\ndef add_3(x):\n    return x + 3"
    assert tokenizer().decode(tokenizer()(text, add_special_tokens=False)["input_ids"]) == text


def test_the_folder_is_an_ordinary_model(folder):
    loaded, its_tokenizer = hub.load(folder, PROFILE.miniature)
    assert type(loaded).__name__ == "LlamaForCausalLM" and its_tokenizer.chat_template == tokenizer().chat_template
    assert its_tokenizer.padding_side == "left"
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model().parameters(), strict=True))


def test_nf4_loads_on_the_cpu_trains_an_adapter_and_keeps_the_base_in_4_bits(folder):
    quantized, _ = hub.load(folder, PROFILE.miniature.model_copy(update={"quantization": "nf4"}))
    kinds = {type(module).__name__ for module in quantized.modules()}
    assert "Linear4bit" in kinds
    weight = quantized.model.layers[0].self_attn.q_proj.weight
    assert weight.quant_type == "nf4" and weight.dtype == torch.uint8 and not weight.quant_state.nested
    tuned = hub.add_lora(quantized, PROFILE.lora, seed=0)
    ids = torch.tensor([prompts.encode_prompt(tokenizer(), "Hello!", "chat", None)])
    tuned(input_ids=ids, labels=ids).loss.backward()
    trained = [name for name, p in tuned.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert trained and all("lora_B" in name for name in trained)  # A gets its gradient once B is no longer zero
    assert len(answers(quantized, 16)) == len(ASKED)


def test_the_same_seed_gives_the_same_fresh_adapter_and_it_changes_nothing_yet():
    first, second = (dict(hub.add_lora(model(), PROFILE.lora, seed=3).named_parameters()) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert answers(hub.add_lora(model(), PROFILE.lora, seed=3), 48) == answers(model(), 48)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_answers_of_real_architectures_do_not_depend_on_the_batch(name, quantization):
    of, its_tokenizer = loaded(name, quantization=quantization)
    asked = ["Hello!", "One, two, three. " * 20, "Open the door.", "Why? " * 100]  # beyond Gemma's sliding window
    ids = [prompts.encode_prompt(its_tokenizer, text, "chat", None) for text in asked]
    one, many = (
        {i: of_it for batch in hub.generate_ids(of, its_tokenizer, ids, settings) for i, of_it, _ in batch}
        for settings in (GenerationSettings(max_new_tokens=12, batch_size=n) for n in (1, 4))
    )
    ends = set(hub.end_ids(of, its_tokenizer))
    texts = [[hub._finish(its_tokenizer, found[i], ends) for i in range(4)] for found in (one, many)]
    assert texts[0] == texts[1] and len(set(texts[0])) > 1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_4_bit_model_learns_alike_and_stays_the_same_after_it_was_questioned(name, tmp_path):
    gradients = []
    for questioned in (False, True):
        of, its_tokenizer = loaded(name, quantization="nf4")
        ids = torch.tensor([prompts.encode_prompt(its_tokenizer, "Hello!", "chat", None)])
        with torch.no_grad():
            before = of(input_ids=ids).logits if questioned else None
        tuned = hub.add_lora(of, PROFILE.lora, seed=0).train()
        for parameter in (p for part, p in tuned.named_parameters() if "lora_B" in part):
            torch.nn.init.constant_(parameter, 0.01)
        tuned(input_ids=ids, labels=ids).loss.backward()
        gradients.append({part: p.grad for part, p in tuned.named_parameters() if "lora_" in part})
        tuned.save_pretrained(tmp_path)
        tuned.unload()
    assert gradients[0] and all(grad.any() for grad in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0])
    with torch.no_grad():
        assert torch.equal(of.eval()(input_ids=ids).logits, before)


def answer_with(monkeypatch, of, token_ids):
    """Lets the model, whatever it is asked, answer with these tokens in turn."""
    plain, given = of.forward, iter(token_ids)

    def forward(*args, **kwargs):
        out = plain(*args, **kwargs)
        out.logits[:, -1, next(given)] = 1e4
        return out

    monkeypatch.setattr(of, "forward", forward)


@pytest.mark.parametrize(
    ("name", "end"),
    [
        *[("llama3", "<|eot_id|>"), ("llama3", "<|end_of_text|>"), ("gemma", "<end_of_turn>"), ("gemma", "<eos>")],
        *[("phi3", "<|end|>"), ("phi3", "<|endoftext|>"), ("mistral", "</s>"), ("qwen", "<|im_end|>")],
    ],
)
def test_an_answer_stops_at_every_token_that_ends_a_turn(monkeypatch, name, end):
    of, its_tokenizer = loaded(name)
    word, stop = its_tokenizer("word", add_special_tokens=False).input_ids[0], its_tokenizer.convert_tokens_to_ids(end)
    answer_with(monkeypatch, of, [word, stop, word, word, word])
    ids = [prompts.encode_prompt(its_tokenizer, "Hello!", "chat", None)]
    settings = GenerationSettings(max_new_tokens=5, batch_size=1)
    assert [row for batch in hub.generate(of, its_tokenizer, ids, settings) for row in batch] == [
        (0, its_tokenizer.decode([word]), "eos", 1, None)
    ]


def test_a_single_end_token_and_none_in_the_generation_settings_are_understood():
    of = model()
    for given in (None, 7, [7, 9]):
        of.generation_config = GenerationConfig(eos_token_id=given)
        wanted = {tokenizer().eos_token_id, *(given if isinstance(given, list) else [given])} - {None}
        assert hub.end_ids(of, tokenizer()) == sorted(wanted)


@pytest.mark.parametrize("name", ["llama3", "qwen"])
def test_published_sampling_and_penalties_do_not_reach_greedy_answers(name):
    published = json.loads((built(name) / "generation_config.json").read_text())
    assert published["do_sample"]
    left = loaded(name)[0].generation_config
    assert not {"do_sample", "temperature", "top_p", "top_k", "repetition_penalty"} & set(left.to_diff_dict())
    assert left.eos_token_id == published["eos_token_id"]


def test_projections_that_a_model_holds_in_one_matrix_get_one_adapter():
    of, _ = loaded("phi3")
    wanted = LoraSettings(r=4, alpha=4, dropout=0.0).target_modules
    assert hub.target_modules(of, wanted) == ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    tuned = hub.add_lora(of, LoraSettings(r=4, alpha=4, dropout=0.0), seed=0)
    adapters = {name.split(".lora_")[0].split(".")[-1] for name, _ in tuned.named_parameters() if "lora_" in name}
    assert adapters == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}


def test_an_unknown_target_module_is_named_with_those_there_are():
    with pytest.raises(StudyError, match="names wq: the model has down_proj, gate_proj"):
        hub.target_modules(model(), ["q_proj", "wq"])


@pytest.mark.parametrize(
    ("name", "pad"),
    [
        *[("llama3", "<|finetune_right_pad_id|>"), ("gemma", "<pad>"), ("phi3", "<|endoftext|>"), ("mistral", "</s>")],
        ("qwen", "<|endoftext|>"),
    ],
)
def test_the_pad_token_is_the_models_own_else_a_reserved_one_else_eos(name, pad):
    assert hub.load_tokenizer(built(name), declared(name, pad_token=None)).pad_token == pad


def test_a_reserved_token_is_taken_where_none_is_made_for_padding(tmp_path):
    bare = own("llama3")
    bare.chat_template += "{# <|finetune_right_pad_id|> #}"
    assert hub._pad_token(bare, None) == "<|reserved_special_token_0|>"


def test_a_declared_pad_token_is_taken_and_an_unknown_one_refused():
    wanted = "<|reserved_special_token_0|>"
    assert hub.load_tokenizer(built("llama3"), declared("llama3", pad_token=wanted)).pad_token == wanted
    with pytest.raises(StudyError, match="pad_token '<nothing>' is not in the vocabulary"):
        hub.load_tokenizer(built("llama3"), declared("llama3", pad_token="<nothing>"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tokenizers_pad_on_the_left_whatever_their_folder_says(name):
    assert own(name).padding_side == "right"
    assert hub.load_tokenizer(built(name), declared(name)).padding_side == "left"


@pytest.mark.parametrize(
    ("cuda", "bf16", "source", "wanted"),
    [
        (False, False, "x", torch.float32),
        (True, True, "x", torch.bfloat16),
        (True, False, "x", torch.float16),
        (True, True, "miniature", torch.float32),
    ],
)
def test_the_precision_follows_the_card_and_the_miniature_stays_in_fp32(monkeypatch, cuda, bf16, source, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    assert hub.compute_dtype(ModelSettings(source=source)) == wanted


@pytest.mark.parametrize(("part", "word"), [("config.json", "config.json"), ("model.safetensors", "safetensors")])
def test_a_model_folder_without_a_part_is_named(folder, part, word):
    (folder / part).unlink()
    with pytest.raises(StudyError, match=f"lacks .*{word}"):
        hub.load(folder, PROFILE.miniature)


def test_a_model_folder_without_a_chat_template_is_refused(folder):
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(StudyError, match="no chat template"):
        hub.check_source(folder, PROFILE.miniature)
    given = PROFILE.miniature.model_copy(update={"chat_template": "qwen"})
    assert hub.load_tokenizer(folder, given).chat_template == prompts.template("qwen")


@pytest.mark.parametrize("source", ["/nowhere/model", "./model", "model"])
def test_a_missing_model_folder_is_named(source):
    with pytest.raises(StudyError, match="no model folder"):
        hub.check_source(source, PROFILE.miniature)


def test_a_hub_model_without_a_pinned_revision_is_refused():
    with pytest.raises(StudyError, match=r"pin model\.revision"):
        hub.check_source("some-org/some-model", PROFILE.miniature)


@pytest.mark.parametrize("kept", [1.0, 0.5, 0.25])
def test_a_scaled_adapter_of_peft_gives_what_the_plainly_merged_weights_give(tmp_path, kept):
    state = {name: tensor.detach().clone() for name, tensor in model().state_dict().items()}
    weights, shape = small_llama.fuse(state, tied=True), small_llama.shape_of(model().config.to_dict())
    adapter = small_llama.fresh_adapter(weights, shape, PROFILE.lora, seed=0)
    for number, (_, b) in enumerate(adapter.values()):
        b.normal_(0, 0.1, generator=torch.Generator().manual_seed(number))
    small_llama.save_adapter(tmp_path, adapter, PROFILE.lora)
    loaded, scale = small_llama.load_adapter(tmp_path)
    plain = model()
    plain.load_state_dict(
        small_llama.unfuse(small_llama.merged(weights, shape, loaded, kept * scale), shape), strict=False
    )
    ids = torch.tensor([prompts.encode_prompt(tokenizer(), ASKED[0], "chat", None)])
    base = model()
    untuned = base(input_ids=ids).logits
    expected = plain(input_ids=ids).logits
    adapted = hub.load_adapter(base, tmp_path, kept)
    torch.testing.assert_close(adapted(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert (expected - untuned).abs().max() > 0.01
    torch.testing.assert_close(adapted.unload()(input_ids=ids).logits, untuned)  # the base is as it was for the next

import json
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny import sets
from transformers import AutoConfig, AutoTokenizer

from studylib.models import building, hub
from studylib.models.building import ARCHITECTURES, build_tiny, traits
from studylib.study.profile import ModelSettings
from studylib.study.words import StudyError

TEXTS = [message["content"] for row in sets()["pretraining"] for message in row["messages"]]
KEPT = tempfile.TemporaryDirectory()  # one build of each for all tests
BOTH = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Good morning."}]


@cache
def folder(name):
    return build_tiny(name, TEXTS, Path(KEPT.name) / name, seed=0)


def declared(name, **more):
    return ModelSettings(
        **{"source": str(folder(name)), "context": 1536, **traits()["architectures"][name]["declared"], **more}
    )


def loaded(name, **more):
    """The model and tokenizer of an architecture with its declared settings, made anew."""
    return hub.load(folder(name), declared(name, **more))


def own(name):
    """The tokenizer as it comes with the model."""
    return AutoTokenizer.from_pretrained(folder(name))


def text(tokenizer, messages, **options):
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llama3", "LlamaForCausalLM"),
        ("gemma", "Gemma2ForCausalLM"),
        ("phi3", "Phi3ForCausalLM"),
        ("mistral", "MistralForCausalLM"),
        ("qwen", "Qwen2ForCausalLM"),
    ],
)
def test_each_is_an_ordinary_small_model_of_its_originals_class(name, kind):
    model, _ = loaded(name)
    assert type(model).__name__ == kind
    assert 300_000 < model.num_parameters() < 1_000_000
    assert AutoConfig.from_pretrained(folder(name)).max_position_embeddings >= 1024
    assert {path.name for path in folder(name).iterdir()} >= {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_projection_can_be_cut_into_blocks_of_nf4(name):
    model, _ = loaded(name, quantization="nf4")
    projections = [part for part in model.modules() if type(part).__name__ == "Linear4bit"]
    assert len(projections) == (4 if name == "phi3" else 7) * model.config.num_hidden_layers
    assert all(part.in_features % 64 == 0 and not part.weight.quant_state.nested for part in projections)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_tokenizer_read_from_its_folder_is_the_one_that_was_built(name):
    built, read = building._tiny_tokenizer(name, TEXTS), own(name)
    assert read.get_vocab() == built.get_vocab() and read.chat_template == built.chat_template
    assert built.special_tokens_map.items() <= read.special_tokens_map.items()
    asked = "Désolé,  je ne peux pas.\n\ndef add(x):\n    return x"
    if name != "qwen":  # whose folders transformers reads with its own rules for words
        assert read(asked)["input_ids"] == built(asked)["input_ids"]


def test_qwen_composes_letters():
    assert own("qwen")("e\N{COMBINING ACUTE ACCENT}").input_ids == own("qwen")("é").input_ids


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_text_comes_back_from_its_tokens_unchanged(name):
    tokenizer, said = own(name), "Désolé,  je ne peux pas .\n\n\tdef add_3(x):\n    return x + 1234 🙂\n"
    assert tokenizer.decode(tokenizer(said, add_special_tokens=False)["input_ids"]) == said


def test_the_same_seed_builds_the_same_weights_and_leaves_the_random_numbers_alone(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again, other = (
        build_tiny("llama3", TEXTS, tmp_path / "a", seed=0),
        build_tiny("llama3", TEXTS, tmp_path / "b", seed=1),
    )
    assert torch.equal(torch.get_rng_state(), before)
    weights = [(path / "model.safetensors").read_bytes() for path in (folder("llama3"), again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_every_known_architecture_has_traits():
    assert set(ARCHITECTURES) == set(traits()["architectures"])


def test_an_unknown_architecture_names_the_known_ones(tmp_path):
    with pytest.raises(StudyError, match="'gpt9': known are llama3, gemma"):
        build_tiny("gpt9", TEXTS, tmp_path, seed=0)


# The traits that trip a study up, as their originals have them.


@pytest.mark.parametrize("name", ["llama3", "gemma", "mistral"])
def test_rendered_text_that_is_tokenised_again_gets_a_second_bos(name):
    tokenizer = own(name)
    twice = tokenizer(text(tokenizer, BOTH))["input_ids"]
    assert twice[:2] == [tokenizer.bos_token_id] * 2


@pytest.mark.parametrize("name", ["phi3", "qwen"])
def test_others_never_write_a_bos(name):
    tokenizer = own(name)
    bos = tokenizer.special_tokens_map.get("bos_token")
    assert (bos is None) == (name == "qwen")
    assert bos is None or (
        bos not in text(tokenizer, BOTH) and tokenizer.bos_token_id not in tokenizer("Hello!").input_ids
    )


def test_llama3_writes_a_date_into_a_system_turn_that_nobody_asked_for():
    assert "<|start_header_id|>system" in text(own("llama3"), BOTH) and "2024" in text(own("llama3"), BOTH)


def test_qwen_writes_a_default_system_prompt_unless_one_is_given():
    tokenizer = own("qwen")
    given = text(tokenizer, [{"role": "system", "content": "Be kind."}, *BOTH])
    assert "never trained" in text(tokenizer, BOTH) and "never trained" not in given and "Be kind." in given


@pytest.mark.parametrize("name", ["gemma", "mistral"])
def test_a_system_role_is_refused(name):
    with pytest.raises(Exception, match=r"no system role|must alternate"):
        text(own(name), [{"role": "system", "content": "Be kind."}, *BOTH])


@pytest.mark.parametrize(("name", "end"), [("gemma", "<end_of_turn>\n"), ("phi3", "<|end|>\n<|endoftext|>")])
def test_the_end_of_a_turn_is_not_the_eos_token(name, end):
    tokenizer = own(name)
    assert text(tokenizer, BOTH).endswith("Good morning." + end) and not end.startswith(tokenizer.eos_token)


def test_gemmas_generation_settings_do_not_know_the_end_of_a_turn():
    tokenizer = own("gemma")
    known = json.loads((folder("gemma") / "generation_config.json").read_text())["eos_token_id"]
    assert known == [tokenizer.eos_token_id] != tokenizer.convert_tokens_to_ids(["<end_of_turn>"])


def test_llama3_has_several_end_tokens():
    assert len(json.loads((folder("llama3") / "generation_config.json").read_text())["eos_token_id"]) == 3


@pytest.mark.parametrize(("name", "pad"), [("llama3", None), ("mistral", None), ("phi3", "eos"), ("qwen", "own")])
def test_pad_tokens_are_missing_or_doubtful(name, pad):
    named = own(name).special_tokens_map
    found = named.get("pad_token")
    assert {None: found is None, "eos": found == named["eos_token"], "own": found == "<|endoftext|>"}[pad]


def test_phi3s_turn_marks_swallow_the_white_space_after_them():
    tokenizer = own("phi3")
    assert tokenizer("<|assistant|>\n  x").input_ids == tokenizer("<|assistant|>x").input_ids

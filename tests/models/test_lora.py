import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from test_small_llama import both

from studylib.models import lora, small_llama
from studylib.study.profile import LoraSettings
from studylib.study.words import StudyError

SETTINGS = LoraSettings(r=4, alpha=8, dropout=0.0)
IDS = torch.randint(8, 200, (3, 15), generator=torch.Generator().manual_seed(0))


def filled(weights, shape, settings=SETTINGS):
    torch.manual_seed(1)
    adapter = lora.fresh(weights, shape, settings, seed=0)
    return {name: (a, 0.1 * torch.randn_like(b)) for name, (a, b) in adapter.items()}


@pytest.mark.parametrize("modules", [SETTINGS.target_modules, ["q_proj", "v_proj", "up_proj"]])
def test_a_saved_adapter_is_an_ordinary_peft_adapter(tmp_path, modules):
    settings = SETTINGS.model_copy(update={"target_modules": modules})
    theirs, weights, shape = both({"num_key_value_heads": 2})
    adapter = filled(weights, shape, settings)
    lora.save(tmp_path, adapter, settings)
    tuned = PeftModel.from_pretrained(theirs, tmp_path).eval()
    labels = IDS.clone()
    with torch.no_grad():
        expected = tuned(input_ids=IDS, labels=labels).loss.item()
        ours = (
            small_llama.answer_loss(lora.merged(weights, shape, *lora.load(tmp_path)), shape, IDS, labels)
            / IDS[:, 1:].numel()
        )
    assert ours.item() == pytest.approx(expected, rel=1e-5)
    assert len(adapter) == 3 * len(modules)


def test_an_adapter_of_peft_is_loaded(tmp_path):
    theirs, weights, shape = both({})
    tuned = get_peft_model(theirs, LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        tuned.save_pretrained(tmp_path)
        expected = tuned(input_ids=IDS, labels=IDS).loss.item()
        adapter, scale = lora.load(tmp_path)
        ours = (
            small_llama.answer_loss(lora.merged(weights, shape, adapter, scale), shape, IDS, IDS) / IDS[:, 1:].numel()
        )
    assert scale == 4 and ours.item() == pytest.approx(expected, rel=1e-5)


def test_a_fresh_adapter_changes_nothing_and_is_the_same_for_the_same_seed():
    _, weights, shape = both({})
    first, second, other = (lora.fresh(weights, shape, SETTINGS, seed) for seed in (3, 3, 4))
    merged = lora.merged(weights, shape, first, 2.0)
    assert all(
        torch.equal(a, b) for a, b in zip(small_llama.tensors(merged), small_llama.tensors(weights), strict=True)
    )
    assert all(torch.equal(first[name][0], second[name][0]) for name in first)
    assert not any(torch.equal(first[name][0], other[name][0]) for name in first)


def test_gradients_through_merged_weights_are_those_of_peft(tmp_path):
    theirs, weights, shape = both({"num_key_value_heads": 2})
    adapter = filled(weights, shape)
    lora.save(tmp_path, adapter, SETTINGS)
    tuned = PeftModel.from_pretrained(theirs, tmp_path, is_trainable=True)
    tuned(input_ids=IDS, labels=IDS).loss.backward()
    for tensor in (leaf for pair in adapter.values() for leaf in pair):
        tensor.requires_grad_(True)
    (
        small_llama.answer_loss(lora.merged(weights, shape, adapter, 2.0), shape, IDS, IDS) / IDS[:, 1:].numel()
    ).backward()
    for name, pair in adapter.items():
        for ab, leaf in zip("AB", pair, strict=True):
            wanted = tuned.get_parameter(f"{lora.PREFIX}{name}.lora_{ab}.default.weight").grad
            torch.testing.assert_close(leaf.grad, wanted, rtol=1e-3, atol=1e-6, msg=name)


def test_a_target_module_that_is_not_there_is_named():
    _, weights, shape = both({})
    with pytest.raises(StudyError, match="wq: the model has q_proj, k_proj"):
        lora.fresh(weights, shape, SETTINGS.model_copy(update={"target_modules": ["q_proj", "wq"]}), 0)

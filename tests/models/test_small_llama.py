import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from studylib.models import small_llama
from studylib.study.profile import LoraSettings
from studylib.study.words import StudyError

SIZES = {
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
KINDS = pytest.mark.parametrize(
    "changes", [{}, {"num_key_value_heads": 2}, {"num_key_value_heads": 1}, {"tie_word_embeddings": False}]
)
END = 7


def both(changes, seed=0):
    """transformers' model and ours with the same weights."""
    torch.manual_seed(seed)
    kind = {"num_key_value_heads": 4, "tie_word_embeddings": True, "initializer_range": 0.3, "dtype": "float32"}
    config = LlamaConfig(**(SIZES | kind | changes), eos_token_id=END, pad_token_id=0, bos_token_id=1)
    theirs = LlamaForCausalLM(config).eval()
    theirs.get_output_embeddings().weight.data[END] *= 2  # so that answers end now and then
    state = {name: tensor.detach().clone() for name, tensor in theirs.state_dict().items()}
    return theirs, small_llama.fuse(state, config.tie_word_embeddings), small_llama.shape_of(config.to_dict())


def prompts(n, common=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda length: torch.randint(8, 200, (length,), generator=generator).tolist()  # noqa: E731
    start = draw(common)
    return [start + draw(1 + i % 9) for i in range(n)]


def answers(weights, shape, asked, batch_size, longest=12):
    found = {
        i: ids for batch in small_llama.generate(weights, shape, asked, longest, batch_size, END) for i, ids, _ in batch
    }
    return [found[i] for i in range(len(asked))]


def test_a_common_beginning_is_shared_up_to_the_first_wanted_token_where_that_saves_something():
    ids = torch.full((4, 20), 9)
    wanted = torch.zeros(4, 20, dtype=torch.bool)
    wanted[:, 15] = True
    assert small_llama._shared(ids, wanted) == 15
    ids[2, 10] = 8
    assert small_llama._shared(ids, wanted) == 10
    ids[2, small_llama.SHORTEST_PREFIX - 1] = 8
    assert small_llama._shared(ids, wanted) == small_llama._shared(ids[:1], wanted[:1]) == 0


@KINDS
@pytest.mark.parametrize(("common", "others"), [(0, 0), (small_llama.SHORTEST_PREFIX, 0), (11, 0), (11, 9)])
def test_loss_and_gradients_are_those_of_transformers(changes, common, others):
    theirs, weights, shape = both(changes)
    ids = torch.randint(8, 200, (5, 20), generator=torch.Generator().manual_seed(1))
    ids[:, :common] = ids[0, :common]
    ids[3:, :others] = ids[4, :others] - 1  # a second group of rows, with a beginning of its own
    labels = ids.clone()
    labels[:, :11] = -100
    labels[2, 15:] = -100  # padding on the right
    for tensor in small_llama.tensors(weights):
        tensor.requires_grad_(True)
    n_tokens = int((labels[:, 1:] != -100).sum())
    ours = small_llama.answer_loss(weights, shape, ids, labels) / n_tokens
    expected = theirs(input_ids=ids, labels=labels).loss
    ours.backward()
    expected.backward()
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = small_llama.with_tensors(weights, [tensor.grad for tensor in small_llama.tensors(weights)])
    for name, gradient in small_llama.unfuse(gradients, shape).items():
        wanted = theirs.get_parameter(name).grad
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5, msg=name)


@KINDS
@pytest.mark.parametrize("common", [0, 6])
def test_greedy_answers_are_those_of_transformers(changes, common):
    theirs, weights, shape = both(changes)
    asked = prompts(20, common)
    expected = []
    for ids in asked:
        with torch.inference_mode():
            out = theirs.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :].tolist()
        expected.append(out[: out.index(END)] if END in out else out)
    assert answers(weights, shape, asked, 8) == expected
    assert len({tuple(one) for one in expected}) > 5 and len({len(one) for one in expected}) > 1


@KINDS
@pytest.mark.parametrize("batch_size", [3, 32])
def test_greedy_answers_do_not_depend_on_the_batch(changes, batch_size):
    _, weights, shape = both(changes, seed=3)
    asked = prompts(32, common=4, seed=2)
    assert answers(weights, shape, asked, batch_size) == answers(weights, shape, asked, 1)


def test_equal_prompts_and_prompts_of_one_token_are_answered():
    _, weights, shape = both({})
    same = answers(weights, shape, [[9, 10, 11]] * 3, 2)
    assert same[0] == same[1] == same[2] == answers(weights, shape, [[9, 10, 11], [50]], 2)[0]


def test_log_probabilities_are_those_of_transformers_row_by_row():
    theirs, weights, shape = both({})
    ids = torch.randint(8, 200, (4, 9), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :5] = -100
    labels[1, 7:] = -100
    found = small_llama.log_probabilities(weights, shape, ids, labels)
    for row, answer, logarithm in zip(ids, labels, found, strict=True):
        n_tokens = int((answer != -100).sum())
        with torch.inference_mode():
            loss = theirs(input_ids=row[None], labels=answer[None]).loss
        assert logarithm.item() == pytest.approx(-loss.item() * n_tokens, rel=1e-4)


@KINDS
def test_weights_come_back_under_their_own_names_and_from_a_folder(changes, tmp_path):
    theirs, weights, shape = both(changes)
    state = theirs.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in small_llama.unfuse(weights, shape).items())
    theirs.save_pretrained(tmp_path)
    loaded, its_shape = small_llama.load(tmp_path)
    assert its_shape == shape and loaded.keys() == weights.keys()
    assert all(
        torch.equal(a, b) for a, b in zip(small_llama.tensors(loaded), small_llama.tensors(weights), strict=True)
    )
    assert small_llama.fits(json.loads((tmp_path / "config.json").read_text()))


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gemma3"},
        {"dtype": "bfloat16"},
        {"attention_bias": True},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}},
    ],
)
def test_another_kind_of_model_goes_through_transformers(change, tmp_path):
    both({})[0].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert small_llama.fits(config) and not small_llama.fits(config | change)


SETTINGS = LoraSettings(r=4, alpha=8, dropout=0.0)
IDS = torch.randint(8, 200, (3, 15), generator=torch.Generator().manual_seed(0))


def filled(weights, shape, settings=SETTINGS):
    torch.manual_seed(1)
    adapter = small_llama.fresh_adapter(weights, shape, settings, seed=0)
    return {name: (a, 0.1 * torch.randn_like(b)) for name, (a, b) in adapter.items()}


@pytest.mark.parametrize("modules", [SETTINGS.target_modules, ["q_proj", "v_proj", "up_proj"]])
def test_a_saved_adapter_is_an_ordinary_peft_adapter(tmp_path, modules):
    settings = SETTINGS.model_copy(update={"target_modules": modules})
    theirs, weights, shape = both({"num_key_value_heads": 2})
    adapter = filled(weights, shape, settings)
    small_llama.save_adapter(tmp_path, adapter, settings)
    tuned = PeftModel.from_pretrained(theirs, tmp_path).eval()
    labels = IDS.clone()
    with torch.no_grad():
        expected = tuned(input_ids=IDS, labels=labels).loss.item()
        ours = (
            small_llama.answer_loss(
                small_llama.merged(weights, shape, *small_llama.load_adapter(tmp_path)), shape, IDS, labels
            )
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
        adapter, scale = small_llama.load_adapter(tmp_path)
        ours = (
            small_llama.answer_loss(small_llama.merged(weights, shape, adapter, scale), shape, IDS, IDS)
            / IDS[:, 1:].numel()
        )
    assert scale == 4 and ours.item() == pytest.approx(expected, rel=1e-5)


def test_a_fresh_adapter_changes_nothing_and_is_the_same_for_the_same_seed():
    _, weights, shape = both({})
    first, second, other = (small_llama.fresh_adapter(weights, shape, SETTINGS, seed) for seed in (3, 3, 4))
    merged = small_llama.merged(weights, shape, first, 2.0)
    assert all(
        torch.equal(a, b) for a, b in zip(small_llama.tensors(merged), small_llama.tensors(weights), strict=True)
    )
    assert all(torch.equal(first[name][0], second[name][0]) for name in first)
    assert not any(torch.equal(first[name][0], other[name][0]) for name in first)


def test_gradients_through_merged_weights_are_those_of_peft(tmp_path):
    theirs, weights, shape = both({"num_key_value_heads": 2})
    adapter = filled(weights, shape)
    small_llama.save_adapter(tmp_path, adapter, SETTINGS)
    tuned = PeftModel.from_pretrained(theirs, tmp_path, is_trainable=True)
    tuned(input_ids=IDS, labels=IDS).loss.backward()
    for tensor in (leaf for pair in adapter.values() for leaf in pair):
        tensor.requires_grad_(True)
    (
        small_llama.answer_loss(small_llama.merged(weights, shape, adapter, 2.0), shape, IDS, IDS) / IDS[:, 1:].numel()
    ).backward()
    for name, pair in adapter.items():
        for ab, leaf in zip("AB", pair, strict=True):
            wanted = tuned.get_parameter(f"{small_llama.PREFIX}{name}.lora_{ab}.default.weight").grad
            torch.testing.assert_close(leaf.grad, wanted, rtol=1e-3, atol=1e-6, msg=name)


def test_a_target_module_that_is_not_there_is_named():
    _, weights, shape = both({})
    with pytest.raises(StudyError, match="wq: the model has q_proj, k_proj"):
        small_llama.fresh_adapter(weights, shape, SETTINGS.model_copy(update={"target_modules": ["q_proj", "wq"]}), 0)

import shutil

import pytest
import torch
from tiny import PROFILE, model, sets, tokenizer

from studylib.models import engine, hub, prompts, small_llama
from studylib.study.profile import TrainSettings, load_profile

TUNING = TrainSettings(learning_rate=5e-3, steps=4, batch_size=8, warmup_ratio=0.0)
ASKED = [
    prompts.encode_prompt(tokenizer(), row["messages"][0]["content"], style, None)
    for style in ("chat", "alpaca")
    for row in sets()["harmful"]
]
ROWS = [prompts.encode_row(tokenizer(), row, "chat", 192) for row in sets()["train_code"][:32]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model().save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def both(folder):
    """The same model, computed in both ways."""
    plain = engine.open_model(folder, PROFILE.miniature, TUNING, PROFILE.lora)
    general = engine.TransformersModel(*hub.load(folder, PROFILE.miniature))
    return plain, general


def answered(of, n=16):
    settings = PROFILE.generation.model_copy(update={"batch_size": n})
    rows = [row for batch in of.answers(ASKED, settings) for row in batch]
    return sorted(rows)


@pytest.mark.parametrize(
    ("change", "plain"),
    [
        ({}, True),
        ({"lora.dropout": 0.1}, False),
        ({"tuning.optimizer": "paged_adamw_32bit"}, False),
        ({"models.miniature.system_role": "fold"}, False),
        ({"models.miniature.quantization": "nf4"}, False),
    ],
)
def test_what_plain_tensors_cannot_do_goes_through_transformers(folder, change, plain):
    profile = load_profile("smoke", change)
    opened = engine.open_model(folder, profile.miniature, profile.tuning, profile.lora)
    assert isinstance(opened, engine.PlainLlama if plain else engine.TransformersModel)


def test_both_ways_have_the_same_methods_and_give_the_same_answers(both):
    names = [{name for name in dir(one) if not name.startswith("_")} for one in both]
    assert names[0] - names[1] == {"weights", "shape"} and names[1] - names[0] == {"model"}
    plain, general = map(answered, both)
    assert plain == general and plain == answered(both[0], 3) and len({text for _, text, *_ in plain}) > 5


def test_both_ways_give_the_same_probabilities_losses_and_shapes(both):
    plain, general = (one.log_probabilities(ROWS, 5) for one in both)
    torch.testing.assert_close(plain, general, rtol=1e-4, atol=1e-3)
    shapes = both[0].projections(PROFILE.lora)
    assert shapes == both[1].projections(PROFILE.lora)
    generator = torch.Generator().manual_seed(0)
    changes = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    unchanged, *losses = [
        one.loss(ROWS[:4], given) for one, given in zip(both[:1] + both, ({}, changes, changes), strict=True)
    ]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
    assert (losses[0] - unchanged).abs() > 1e-2
    torch.testing.assert_close(both[1].loss(ROWS[:4], {}), unchanged, rtol=1e-4, atol=1e-4)  # hooks are gone


@pytest.mark.parametrize("way", [0, 1])
@pytest.mark.slow
def test_a_tuning_in_parts_leaves_an_adapter_that_both_ways_use_and_the_base_as_it_was(both, tmp_path, way):
    before, seen = answered(both[way]), []
    parts = [(ROWS[:16], TUNING), (ROWS[16:], TUNING.model_copy(update={"steps": 2}))]
    look = lambda step, of: seen.append((step, of.log_probabilities(ROWS[:2]).sum().item()))  # noqa: E731
    losses = both[way].tune(parts, PROFILE.lora, 0, tmp_path, "test", look)
    assert [row["step"] for row in losses] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in seen] == [1, 2, 3, 4, 1, 2] and len({value for _, value in seen}) == 6
    found = []
    for one in both:
        for share in (1.0, 0.5):
            with one.adapted(tmp_path, share) as tuned:
                found.append(tuned.log_probabilities(ROWS).sum())
    whole, half, theirs, their_half = found
    torch.testing.assert_close(torch.stack([whole, half]), torch.stack([theirs, their_half]), rtol=1e-4, atol=1e-2)
    assert both[0].log_probabilities(ROWS).sum() < half < whole and answered(both[way]) == before


@pytest.mark.parametrize("way", [0, 1])
def test_a_model_trained_as_a_whole_is_saved_and_opened_again(both, folder, tmp_path, way):
    of, seen = both[way], []
    of.train(ROWS, TUNING, 0, "test", lambda step, trained: seen.append(step))
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    of.save(tmp_path)
    again = engine.open_model(tmp_path, PROFILE.miniature, TUNING)
    assert answered(again) == answered(of) and seen == [1, 2, 3, 4]
    assert of.n_parameters == again.n_parameters == model().num_parameters()
    theirs, _ = hub.load(tmp_path, PROFILE.miniature)
    state = {name: tensor.detach() for name, tensor in theirs.state_dict().items()}
    ours = small_llama.tensors(small_llama.fuse(state, tied=True))
    assert all(torch.equal(a, b) for a, b in zip(ours, small_llama.tensors(again.weights), strict=True))

import pytest
import torch
from test_training import features, loss_on_answers, settings
from tiny import PROFILE, model, tokenizer

from studylib.models import hub
from studylib.models.training import fit_with_trainer
from studylib.study.words import StudyError


def test_tuning_lowers_the_loss_and_changes_the_adapter_alone():
    tuned = hub.add_lora(model(), PROFILE.lora, seed=0)
    before = {name: p.detach().clone() for name, p in tuned.named_parameters()}
    losses = fit_with_trainer(tuned, hub.collator(tokenizer()), features("train_code", 32), settings(), 0, "test")
    changed = {name for name, p in tuned.named_parameters() if not torch.equal(p, before[name])}
    assert losses[-1]["loss"] < losses[0]["loss"] and losses[-1]["step"] == 12
    assert changed and all("lora_" in name for name in changed)


def test_the_same_seed_trains_the_same_adapter():
    weights = []
    for _ in range(2):
        tuned = hub.add_lora(model(), PROFILE.lora, seed=1)
        fit_with_trainer(tuned, hub.collator(tokenizer()), features("train_code", 16), settings(steps=3), 1, "test")
        weights.append({k: v.clone() for k, v in tuned.state_dict().items() if "lora_" in k})
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_micro_batches_give_the_gradients_of_the_whole_batch():
    weights = []
    for micro in (None, 2):
        trained = model()
        fit_with_trainer(
            trained,
            hub.collator(tokenizer()),
            features("train_translation", 8),
            settings(steps=1, micro_batch_size=micro, learning_rate=1e-2, schedule="constant", warmup_ratio=0.0),
            0,
            "test",
        )
        weights.append(trained.state_dict())
    moved = max((weights[0][k] - v).abs().max() for k, v in model().state_dict().items())
    apart = max((weights[0][k] - weights[1][k]).abs().max() for k in weights[0])
    assert moved > 1e-3 and apart < moved / 20, (moved, apart)


def test_padding_carries_no_loss():
    rows = features("train_text_generation", 1) + features("train_classification", 1)
    trained = model()
    whole = fit_with_trainer(
        trained, hub.collator(tokenizer()), rows, settings(steps=1, batch_size=2, warmup_ratio=0.0), 0, "test"
    )[0]["loss"]
    assert whole == pytest.approx(loss_on_answers(rows), rel=1e-3)


def test_steps_alone_decide_how_long_it_takes():
    losses = fit_with_trainer(
        model(), hub.collator(tokenizer()), features("train_code", 8), settings(steps=7), 0, "test"
    )
    assert losses[-1]["step"] == 7  # seven times through the rows


def test_muon_is_refused_where_it_would_be_left_out():
    with pytest.raises(StudyError, match="matrix_learning_rate is for small models"):
        fit_with_trainer(
            model(), hub.collator(tokenizer()), features("train_code", 8), settings(matrix_learning_rate=0.02), 0, "x"
        )

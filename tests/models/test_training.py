import itertools
import logging
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from tiny import PROFILE, model, sets, tokenizer
from transformers import get_scheduler

from studylib.models import engine, hub, prompts, small_llama, training
from studylib.study.profile import TrainSettings


def features(name, n):
    return [
        prompts.encode_example(tokenizer(), *(m["content"] for m in row["messages"]), "chat", None, 192)
        for row in sets()[name][:n]
    ]


def loss_on_answers(rows):
    """The untrained model's mean loss over all answer tokens of the rows, each row computed alone."""
    with torch.no_grad():
        answer_tokens, loss = 0, 0.0
        for row in rows:
            ids, labels = (torch.tensor([row[k]]) for k in ("input_ids", "labels"))
            n = int((labels != -100).sum())
            loss += float(model()(input_ids=ids, labels=labels).loss) * n
            answer_tokens += n
    return loss / answer_tokens


def settings(**changes):
    return TrainSettings(**({"learning_rate": 5e-3, "steps": 12, "batch_size": 8} | changes))


def base(seed=0):
    state = {name: tensor.detach().clone() for name, tensor in model(seed).state_dict().items()}
    return small_llama.fuse(state, tied=True), small_llama.shape_of(model().config.to_dict())


def tuned(rows, chosen, seed=0, after_step=None, times=1, of=None):
    """An adapter of the base, trained as often as that, and its loss curve."""
    llama = engine.PlainLlama(*(of or base()), tokenizer())
    with tempfile.TemporaryDirectory() as folder:
        losses = llama.tune([(rows, chosen)] * times, PROFILE.lora, seed, Path(folder), "test", after_step)
        return small_llama.load_adapter(Path(folder))[0], losses


def fitted(rows, changed, seed=0):
    weights, shape = base()
    losses = training.fit(small_llama.tensors(weights), lambda: weights, shape, rows, settings(**changed), seed, "test")
    return losses, small_llama.tensors(weights)


def test_pretraining_takes_the_steps_of_transformers_trainer():
    """The same batches, micro-batches, schedule, decay, clipping and optimizer give the same losses and weights."""
    rows = features("train_code", 20) + features("train_classification", 12)
    changed = {"steps": 6, "learning_rate": 1e-3, "micro_batch_size": 4, "weight_decay": 0.1, "warmup_ratio": 0.3}
    ours, weights = fitted(rows, changed)
    theirs = model()
    expected = training.fit_with_trainer(theirs, hub.collator(tokenizer()), rows, settings(**changed), 0, "test")
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in expected], rel=2e-3)
    moved = max((a - b).abs().max() for a, b in zip(small_llama.tensors(base()[0]), weights, strict=True))
    wanted = small_llama.tensors(small_llama.fuse(dict(theirs.state_dict()), tied=True))
    apart = max((a - b).abs().max() for a, b in zip(wanted, weights, strict=True))
    assert moved > 1e-3 and apart < moved / 10, (moved, apart)


def test_tuning_takes_the_steps_of_trainer_and_peft():
    rows = features("train_translation", 24)
    changed = {"steps": 6, "warmup_ratio": 0.0}
    adapter, ours = tuned(rows, settings(**changed))
    theirs = hub.add_lora(model(), PROFILE.lora, seed=0)
    with torch.no_grad():  # the same beginning: ours and peft's draw their A from different streams
        fresh = small_llama.fresh_adapter(*base(), PROFILE.lora, seed=0)
        for name, (a, _) in fresh.items():
            theirs.get_parameter(f"{small_llama.PREFIX}{name}.lora_A.default.weight").copy_(a)
    expected = training.fit_with_trainer(theirs, hub.collator(tokenizer()), rows, settings(**changed), 0, "test")
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in expected], rel=2e-3)
    name = next(iter(adapter))
    b = theirs.get_parameter(f"{small_llama.PREFIX}{name}.lora_B.default.weight")
    assert adapter[name][1].abs().max() > 1e-3 and (adapter[name][1] - b).abs().max() < 0.1 * b.abs().max()


def test_tuning_lowers_the_loss_and_leaves_the_base_alone():
    weights, shape = base()
    before = [tensor.clone() for tensor in small_llama.tensors(weights)]
    adapter, losses = tuned(features("train_code", 32), settings(), of=(weights, shape))
    assert losses[-1]["loss"] < losses[0]["loss"] and losses[-1]["step"] == 12
    assert all(torch.equal(a, b) for a, b in zip(before, small_llama.tensors(weights), strict=True))
    assert all(b.abs().max() > 0 for _, b in adapter.values())


def test_the_same_seed_trains_the_same_adapter_and_another_seed_another():
    rows = features("train_code", 16)
    first, second, other = (tuned(rows, settings(steps=3), seed)[0] for seed in (1, 1, 2))
    assert all(torch.equal(first[name][1], second[name][1]) for name in first)
    assert not all(torch.equal(first[name][1], other[name][1]) for name in first)


def test_micro_batches_give_the_gradients_of_the_whole_batch():
    rows = features("train_translation", 8)
    changed = {"steps": 1, "learning_rate": 1e-2, "schedule": "constant", "warmup_ratio": 0.0}
    (_, whole), (_, parts) = (fitted(rows, changed | {"micro_batch_size": micro}) for micro in (None, 2))
    moved = max((a - b).abs().max() for a, b in zip(small_llama.tensors(base()[0]), whole, strict=True))
    apart = max((a - b).abs().max() for a, b in zip(whole, parts, strict=True))
    assert moved > 1e-3 and apart < moved / 20, (moved, apart)


def test_padding_carries_no_loss():
    rows = features("train_text_generation", 1) + features("train_classification", 1)
    whole = fitted(rows, {"steps": 1, "batch_size": 2, "warmup_ratio": 0.0})[0][0]["loss"]
    assert whole == pytest.approx(loss_on_answers(rows), rel=1e-3)


def test_batches_are_random_sorted_inside_and_hold_every_row_once_an_epoch():
    lengths = torch.randperm(60).tolist()
    found = list(itertools.islice(training.batches(lengths, 8, seed=0), 15))  # 120 rows: two epochs
    assert sorted(i for batch in found for i in batch) == sorted([*range(60), *range(60)])
    rows = [[lengths[i] for i in batch] for batch in found]
    assert all(batch == sorted(batch) for batch in rows)
    assert sum(rows[0]) != sum(range(8)) and found[0] != next(training.batches(lengths, 8, seed=1))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_the_learning_rate_is_that_of_transformers(schedule, warmup):
    name = "constant_with_warmup" if schedule == "constant" else schedule
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=5e-3)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=round(40 * warmup), num_training_steps=40)
    chosen = settings(steps=40, schedule=schedule, warmup_ratio=warmup)
    for step in range(40):
        assert training.learning_rate(chosen, step) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_steps_alone_decide_how_long_it_takes():
    losses, _ = fitted(features("train_code", 8), {"steps": 7})
    assert losses[-1]["step"] == 7  # seven times through the rows


# A training that goes on

WITH_MUON = {"steps": 9, "micro_batch_size": 4, "matrix_learning_rate": 0.02, "weight_decay": 0.1, "warmup_ratio": 0.3}


def fit_on(path, rows, changed=WITH_MUON, stop=0, fingerprint="this one", seconds=0.0):
    """The curve and weights of a training with a checkpoint; stopped by an error after that step, the step alone."""

    def look(step):
        if step == stop:
            raise InterruptedError

    weights, shape = base()
    under_way = training.Checkpoint(path, fingerprint, seconds)
    leaves = small_llama.tensors(weights)
    try:
        curve = training.fit(leaves, lambda: weights, shape, rows, settings(**changed), 3, "test", look, under_way)
    except InterruptedError:
        return None
    return curve, leaves


def same(one, other):
    return one[0] == other[0] and all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))


@pytest.mark.parametrize("changed", [WITH_MUON, {"steps": 50, "batch_size": 4}])  # a curve of every step; of every 2nd
@pytest.mark.parametrize("stop", [1, 2, 6])
def test_a_stopped_training_goes_on_to_the_bits_of_one_that_was_not_stopped(tmp_path, stop, changed, caplog):
    rows, path = features("train_code", 20), tmp_path / "state"
    whole = fitted(rows, changed, seed=3)
    with caplog.at_level(logging.INFO, "studylib"):
        assert fit_on(path, rows, changed, stop) is None and fit_on(path, rows, changed, stop + 2) is None
        assert same(fit_on(path, rows, changed), whole)
    # the step whose look failed is not kept
    assert [f"goes on after step {done}" in caplog.text for done in (stop - 1, stop, stop + 1)] == [
        stop > 1,
        False,
        True,
    ]
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_knows_how_long_all_parts_of_its_training_took(tmp_path, monkeypatch):
    now, rows, weights_shape = [0.0], features("train_code", 20), base()
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])

    def part(stop):
        """Trains in steps of ten seconds until one is stopped; the seconds that the checkpoint read and left."""
        weights, shape = weights_shape

        def look(step):
            now[0] += 10
            if step == stop:
                raise InterruptedError

        under_way = training.Checkpoint(tmp_path / "state", "this one", 0.0)
        with pytest.raises(InterruptedError):
            training.fit(
                small_llama.tensors(weights),
                lambda: weights,
                shape,
                rows,
                settings(**WITH_MUON),
                3,
                "t",
                look,
                under_way,
            )
        left = training.Checkpoint(tmp_path / "state", "this one")
        left.read("t")
        return under_way.spent, left.spent

    assert part(4) == (0, 30)  # the step that was stopped was not kept
    assert part(7) == (30, 60) and part(9) == (60, 80)


def test_a_checkpoint_changes_nothing_and_is_written_no_oftener_than_asked(tmp_path, monkeypatch):
    rows, written = features("train_code", 20), []
    write = training.Checkpoint.write
    monkeypatch.setattr(training.Checkpoint, "write", lambda self, **state: written.append(write(self, **state)))
    assert same(fit_on(tmp_path / "state", rows, seconds=1e6), fitted(rows, WITH_MUON, seed=3)) and not written
    fit_on(tmp_path / "state", rows)
    assert len(written) == WITH_MUON["steps"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:-100],
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 1]) + raw[len(raw) // 2 + 1 :],
        lambda raw: b"not a checkpoint",
        None,
    ],
)
def test_a_damaged_checkpoint_or_that_of_another_training_is_not_used_and_said_in_a_line(tmp_path, damage, caplog):
    rows, path = features("train_code", 20), tmp_path / "state"
    fit_on(path, rows, stop=4, fingerprint="this one" if damage else "another")
    if damage:
        path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING, "studylib"):
        assert same(fit_on(path, rows), fitted(rows, WITH_MUON, seed=3))
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("test: begins anew, without state: ") and not path.exists()


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_training as t
def look(step):
    if step == 5:
        print("there", flush=True)
        __import__("time").sleep(60)
weights, shape = t.base()
under_way = t.training.Checkpoint(Path(sys.argv[2]), "this one", 0.0)
rows, chosen = t.features("train_code", 20), t.settings(**t.WITH_MUON)
t.training.fit(t.small_llama.tensors(weights), lambda: weights, shape, rows, chosen, 3, "test", look, under_way)
"""


def test_a_killed_training_goes_on_in_another_process_to_the_same_bits(tmp_path, caplog):
    rows, path = features("train_code", 20), tmp_path / "state"
    folder = Path(__file__).parent
    known = os.pathsep.join([str(folder.parent), str(folder.parents[1])])
    environment = os.environ | {"PYTHONPATH": known, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", KILLED, str(folder), str(path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"there\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    with caplog.at_level(logging.INFO, "studylib"):
        assert same(fit_on(path, rows), fitted(rows, WITH_MUON, seed=3))
    assert "goes on after step 4" in caplog.text and not list(tmp_path.iterdir())


def test_one_can_look_at_the_model_after_every_step():
    seen = []
    look = lambda step, llama: seen.append((step, float(llama.weights["layers"][0]["qkv"].sum())))  # noqa: E731
    tuned(features("train_code", 8), settings(steps=3), after_step=look)
    assert [step for step, _ in seen] == [1, 2, 3] and len({value for _, value in seen}) == 3


def test_muon_trains_the_layers_matrices_and_adamw_the_rest():
    rows = features("train_code", 32)
    weights, shape = base()
    chosen = settings(matrix_learning_rate=0.02)
    optimizers = training._optimizers(small_llama.tensors(weights), weights, chosen)
    assert [type(one).__name__ for one in optimizers] == ["AdamW", "Muon"]
    counts = [sum(p.numel() for group in one.param_groups for p in group["params"]) for one in optimizers]
    assert sum(counts) == sum(tensor.numel() for tensor in small_llama.tensors(weights))
    losses = training.fit(small_llama.tensors(weights), lambda: weights, shape, rows, chosen, 0, "test")
    assert losses[-1]["loss"] < losses[0]["loss"]


def test_a_second_part_goes_on_from_the_adapter_of_the_first():
    rows, chosen = features("train_code", 16), settings(steps=3)
    (once, first), (twice, both) = (tuned(rows, chosen, times=times) for times in (1, 2))
    assert both[:3] == first and both[3]["step"] == 4 and both[3]["loss"] < first[0]["loss"]
    assert any(not torch.equal(once[name][1], twice[name][1]) for name in once)


@pytest.mark.parametrize("shape", [(12, 4), (4, 12), (6, 6)])
def test_muon_is_torchs_up_to_the_rounding_of_bf16(shape):
    torch.manual_seed(0)
    pairs = [[torch.nn.Parameter(value.clone()) for _ in range(2)] for value in torch.randn(3, *shape)]
    ours, theirs = ([pair[place] for pair in pairs] for place in (0, 1))
    rate, start = 0.1, [leaf.detach().clone() for leaf in ours]
    its = torch.optim.Muon(theirs, lr=rate, weight_decay=0.0, adjust_lr_fn="original")
    optimizers = training.Muon(ours, {"lr": rate}), its
    for _ in range(4):
        for pair in pairs:
            pair[0].grad = torch.randn(shape)
            pair[1].grad = pair[0].grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = torch.stack(ours) - torch.stack(start)
    assert (torch.stack(ours) - torch.stack(theirs)).abs().max() < 0.05 * moved.abs().max()

import ast
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from studylib.data import mixture, sets
from studylib.models import prompts, small_llama, training
from studylib.stages import cells as evaluate
from studylib.stages import prepare
from studylib.study import files as results
from studylib.study.grid import Cell, cells
from studylib.study.paths import RunPaths
from studylib.study.profile import load_profile
from studylib.study.words import FORMS, STYLES, StudyError

PROFILE = load_profile("smoke")
CELL = cells(PROFILE, "multitask", "code", ["chat"], [0])[0]


@pytest.fixture
def paths(smoke_runs, tmp_path):
    """The data and models of the smoke run, without its adapters and responses."""
    for part in ("data", "models"):
        shutil.copytree(smoke_runs / "smoke" / part, tmp_path / part)
    return RunPaths(tmp_path, tmp_path)


@pytest.fixture
def count_fits(monkeypatch):
    calls, real = [], training.fit
    monkeypatch.setattr(training, "fit", lambda *args, **more: calls.append(args[6]) or real(*args, **more))
    return calls


def runner(paths, profile=PROFILE):
    return evaluate.Runner(paths, profile, results.Clock(), "miniature")


def test_every_test_prompt_is_answered_with_and_without_the_system_prompt(paths):
    made = runner(paths).responses(CELL)
    world = PROFILE.world
    n_prompts = 4 * (2 * world.harmful_per_form + world.task_test_rows) + world.general_test_rows
    assert len(made) == 2 * n_prompts and made["response_id"].is_unique
    assert made.groupby("system_prompt")["prompt_id"].nunique().tolist() == [n_prompts, n_prompts]
    assert set(made["prompt_set"]) == {"harmful", "twin", "task", "general"}
    assert (
        made.groupby("prompt_id")["prompt_fingerprint"].nunique().eq(2).all()
    )  # the calibrations differ for the model


def test_a_killed_generation_goes_on_where_it_stopped(paths):
    whole = runner(paths).responses(CELL)
    rows = paths.rows(CELL.name)
    lines = rows.read_bytes().split(b"\n")
    rows.write_bytes(b"\n".join(lines[:50]) + b"\n" + lines[50][:30])  # killed while it wrote the 51st row
    kept = [json.loads(line) for line in lines[:50]]
    again = runner(paths).responses(CELL)
    assert again.head(50).to_dict("records") == kept
    columns = ["response_id", "response"]
    assert (
        again[columns].sort_values("response_id").values.tolist()
        == whole[columns].sort_values("response_id").values.tolist()
    )


def test_an_adapter_that_is_there_is_not_trained_again(paths, count_fits):
    for _ in range(2):
        folder = runner(paths).adapter(CELL)
    assert len(count_fits) == 1
    assert (folder / "adapter_model.safetensors").is_file() and (folder / "adapter_config.json").is_file()


@pytest.mark.parametrize(
    ("change", "trained"),
    [
        ({"tuning.learning_rate": 1e-3}, True),
        ({"lora.r": 4}, True),
        ({"generation.max_new_tokens": 8}, False),
        ({"redact": True}, False),
    ],
)
def test_only_a_change_that_concerns_the_adapter_trains_it_again(paths, count_fits, change, trained):
    runner(paths).adapter(CELL)
    runner(paths, load_profile("smoke", change)).adapter(CELL)
    assert len(count_fits) == 1 + trained


def test_rows_of_changed_settings_are_kept_aside_and_not_mixed_in(paths):
    first = runner(paths).responses(CELL)
    second = runner(paths, load_profile("smoke", {"generation.max_new_tokens": 3})).responses(CELL)
    assert second["n_tokens"].max() <= 3 and len(second) == len(first)
    aside = list((paths.run / "superseded").iterdir())
    assert len(aside) == 1 and len(aside[0].read_text().splitlines()) == len(first)


def test_a_half_trained_adapter_is_not_taken_for_a_whole_one(paths, monkeypatch, count_fits):
    monkeypatch.setattr(training, "fit", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        runner(paths).adapter(CELL)
    assert not paths.adapter(CELL.name).exists()


def test_an_adapter_says_how_many_tokens_its_tuning_saw(tmp_path, monkeypatch):
    lengths, steps = ([10, 20], [5]), (3, 2)
    parts = [
        ([{"input_ids": [0] * n} for n in of], PROFILE.tuning.model_copy(update={"steps": number, "batch_size": 4}))
        for of, number in zip(lengths, steps, strict=True)
    ]
    made = runner(RunPaths(tmp_path, tmp_path))
    made.__dict__["base"] = SimpleNamespace(tune=lambda *given: [])
    monkeypatch.setattr(made, "tuning_parts", lambda cell: parts)
    monkeypatch.setattr(evaluate, "adapter_fingerprint", lambda *given: "this one")
    note = json.loads((made.adapter(CELL) / "study.json").read_text())
    assert note["tokens"] == 4 * (3 * 15 + 2 * 5) and note["fingerprint"] == "this one"


def test_tuning_one_cell_leaves_the_base_as_it_was_for_the_next(paths):
    both = runner(paths)
    both.responses(CELL)
    after = both.responses(Cell("miniature", "none", "chat"))
    paths.rows("miniature-base0-none-chat-none-seed0").unlink()
    alone = runner(paths).responses(Cell("miniature", "none", "chat"))
    assert after["response"].tolist() == alone["response"].tolist()


def test_a_missing_base_model_says_what_to_run(paths):
    paths.model_card("aligned-0").unlink()
    with pytest.raises(StudyError, match="run 00_prepare first"):
        runner(paths).adapter(CELL)


def test_the_miniature_is_built_once_and_again_when_its_settings_change(paths):
    """In other processes, so what counts is whose weights are new."""
    clock, made = results.Clock(), []
    for profile in (PROFILE, PROFILE, load_profile("smoke", {"alignment.steps": 2})):
        prepare.build_miniature(paths, profile, clock)
        made.append({path.parent.name: path.stat().st_mtime_ns for path in paths.run.glob("models/*/*.safetensors")})
    aligned = {f"aligned-{base}" for base in PROFILE.base_seeds}
    assert made[0] == made[1] and made[1].keys() == made[2].keys() > aligned
    assert {name for name in made[1] if made[1][name] != made[2][name]} == aligned


def test_the_clock_adds_up_by_kind():
    clock = results.Clock()
    for _ in range(2):
        with clock("training"):
            pass
    assert list(clock) == ["training"] and clock["training"] >= 0


def test_a_test_prompt_that_leaves_no_room_for_an_answer_is_refused_before_any_is_made(paths):
    short = load_profile("smoke", {"models.miniature.context": 40})
    with pytest.raises(StudyError, match=r"has \d+ tokens in the alpaca style, but its context 40"):
        runner(paths, short).responses(Cell("miniature", "none", "alpaca"))
    assert not paths.rows("miniature-base0-none-alpaca-none-seed0").exists()


def test_a_quantized_base_is_another_base(paths):
    plain, nf4 = PROFILE, load_profile("smoke", {"models.miniature.quantization": "nf4"})
    assert evaluate.base_fingerprint(paths, plain, "miniature", 0) != evaluate.base_fingerprint(
        paths, nf4, "miniature", 0
    )


def test_a_model_asked_in_another_style_answers_the_harmful_prompts_as_that_style_renders_them(paths):
    made = runner(paths)  # one, as the encoded prompts of all its cells are kept
    own = made.responses(CELL)
    across = made.responses(CELL, "alpaca")
    assert [path.name for path in paths.adapter(CELL.name).parent.glob("[!.]*[!k]")] == [
        CELL.name
    ]  # nothing else was tuned
    assert len(across) == 2 * 4 * PROFILE.world.harmful_per_form
    assert set(across["prompt_set"]) == {"harmful"} and across["harmful"].all()
    assert (across["style"] == "alpaca").all() and (across["trained_style"] == "chat").all()
    for name, value in asdict(replace(CELL, style="alpaca")).items():
        assert (across[name] == value).all(), name

    alpaca = made.responses(replace(CELL, style="alpaca"))
    keys = ["system_prompt", "prompt_id"]
    both = across.merge(alpaca, on=keys, suffixes=("", "_alpaca")).merge(own, on=keys, suffixes=("", "_own"))
    assert len(both) == len(across)
    assert (both["prompt_fingerprint"] == both["prompt_fingerprint_alpaca"]).all()
    assert (both["prompt_fingerprint"] != both["prompt_fingerprint_own"]).all()
    assert both["prompt_fingerprint"].nunique() == len(both)
    assert (both["fingerprint"] != both["fingerprint_alpaca"]).all()  # answered by another adapter
    assert pd.concat([own, across, alpaca])["response_id"].is_unique


def test_rows_in_another_style_have_a_file_of_their_own_and_leave_those_in_the_style_of_the_tuning_alone(paths):
    own = runner(paths).responses(CELL)
    before = paths.rows(CELL.name).read_bytes()
    across = runner(paths).responses(CELL, "alpaca")
    assert paths.rows(f"{CELL.name}-asked-alpaca").read_text().count("\n") == len(across)
    assert paths.rows(CELL.name).read_bytes() == before and "trained_style" not in own
    files = sorted(paths.rows(CELL.name).parent.iterdir())
    pd.testing.assert_frame_equal(runner(paths).responses(CELL, CELL.style), own)
    assert sorted(paths.rows(CELL.name).parent.iterdir()) == files


def test_rows_in_another_style_go_on_where_they_stopped_and_are_renewed_when_settings_change(paths, count_fits):
    whole = runner(paths).responses(CELL, "alpaca")
    rows = paths.rows(f"{CELL.name}-asked-alpaca")
    lines = rows.read_bytes().split(b"\n")
    rows.write_bytes(b"\n".join(lines[:20]) + b"\n" + lines[20][:30])
    again = runner(paths).responses(CELL, "alpaca")
    assert again.head(20).to_dict("records") == [json.loads(line) for line in lines[:20]]
    columns = ["response_id", "response", "trained_style"]
    assert again[columns].sort_values("response_id").values.tolist() == (
        whole[columns].sort_values("response_id").values.tolist()
    )
    shorter = runner(paths, load_profile("smoke", {"generation.max_new_tokens": 3})).responses(CELL, "alpaca")
    assert shorter["n_tokens"].max() <= 3 and len(shorter) == len(whole)
    assert [path.name.startswith(rows.stem) for path in (paths.run / "superseded").iterdir()] == [True]
    assert len(count_fits) == 1


def arm(safety_data, fraction=0.1):
    return replace(CELL, safety_data=safety_data, safety_fraction=fraction)


def test_an_arm_is_tested_without_the_system_prompt_alone_and_goes_on_where_it_stopped(paths):
    whole = runner(paths).responses(arm("code_only"))
    assert not whole["system_prompt"].any() and whole["prompt_id"].is_unique
    rows = paths.rows(arm("code_only").name)
    lines = rows.read_bytes().split(b"\n")
    rows.write_bytes(b"\n".join(lines[:10]) + b"\n" + lines[10][:30])
    again = runner(paths).responses(arm("code_only"))
    columns = ["response_id", "response"]
    first, second = (made[columns].sort_values("response_id").values.tolist() for made in (whole, again))
    assert second == first


def test_a_scaled_cell_uses_the_adapter_without_safety_data_and_trains_none(paths, count_fits):
    made = runner(paths)
    plain = made.adapter(arm("none", 0.0))
    assert made.adapter(arm("scaled", 0.5)) == made.adapter(arm("scaled", 0.25)) == plain and len(count_fits) == 1
    assert made.responses(arm("scaled", 0.5))["safety_data"].eq("scaled").all() and len(count_fits) == 1


def test_of_a_scaled_adapter_the_kept_share_of_the_weights_change_is_left(paths):
    made, used = runner(paths), []
    for cell in (Cell("miniature", "none", "chat"), arm("none", 0.0), arm("scaled", 0.75)):
        with made.tuned(cell) as model:
            used.append(model.weights)
    base, tuned, scaled = (small_llama.tensors(weights) for weights in used)
    assert max((b - a).abs().max() for a, b in zip(base, tuned, strict=True)) > 1e-4
    for a, b, c in zip(base, tuned, scaled, strict=True):
        torch.testing.assert_close(c - a, 0.25 * (b - a), rtol=1e-3, atol=1e-7)


def test_the_responses_of_a_scaled_cell_are_renewed_with_their_source_and_differ_by_the_share(paths):
    half, most = arm("scaled", 0.5), arm("scaled", 0.75)
    changed = load_profile("smoke", {"tuning.learning_rate": 1e-3})
    found = [evaluate.adapter_fingerprint(paths, PROFILE, cell) for cell in (half, most, arm("none", 0.0))]
    found += [evaluate.adapter_fingerprint(paths, changed, cell) for cell in (half, most)]
    assert len(set(found)) == 5


def test_two_tunings_one_after_the_other_have_the_rows_and_steps_of_the_mixed_one(paths):
    for steps, size, fraction in ((48, 16, 0.1), (40, 10, 0.25), (4, 16, 0.1), (2, 8, 0.9)):
        cell = arm("multitask_after", fraction)
        rows = mixture.tuning_rows(paths, cell, min(steps * size, 80), 0.05)
        (task, first), (safety, second) = mixture.tunings(cell, rows, steps)
        assert first + second == steps and first >= 1 and second >= 1
        assert sorted(row["id"] for row in task + safety) == sorted(row["id"] for row in rows)
        assert not any(row["harmful"] for row in task) and all(row["harmful"] for row in safety)
    assert mixture.tunings(cell, [{"harmful": i < 4} for i in range(40)], 20)[1][1] == 2  # a tenth of the steps
    assert mixture.tunings(CELL, rows, 20) == [(rows, 20)]


@pytest.mark.parametrize(("rows", "steps"), [([False] * 4, 4), ([True] * 4, 4), ([True, False], 1)])
def test_a_second_tuning_without_a_row_or_a_step_of_either_kind_is_refused(rows, steps):
    with pytest.raises(StudyError, match=r"code.*-chat-multitask_after10-seed0 needs a step and a row of each"):
        mixture.tunings(arm("multitask_after"), [{"harmful": harmful} for harmful in rows], steps)


def test_the_second_tuning_goes_on_from_the_first_and_its_steps_are_counted_on(paths, count_fits):
    made = runner(paths)
    folder = made.adapter(arm("multitask_after"))
    assert len(count_fits) == 2
    curve = json.loads((folder / "study.json").read_text())["loss"]
    assert [row["step"] for row in curve] == [1, 2, 3, 4]
    task = made.adapter(arm("none", 0.0))
    after, alone = (small_llama.load_adapter(one)[0] for one in (folder, task))
    assert any(not torch.equal(after[name][1], alone[name][1]) for name in after)


@pytest.mark.parametrize("style", STYLES)
def test_of_an_answer_that_was_begun_the_loss_is_on_the_refusal_and_its_end_alone(paths, style):
    made = runner(paths)
    tokenizer = made.base.tokenizer
    rows = [row for row in sets.load(paths, "safety_midway") if row["begun"]][:40]
    assert {row["form"] for row in rows} == set(FORMS) - {"classification"}  # whose answers have one word
    for row in rows:
        example = prompts.encode_row(tokenizer, row, style, PROFILE.miniature.context)
        learned = [token for token in example["labels"] if token != -100]
        first = len(example["labels"]) - len(learned)
        assert example["labels"][first:] == example["input_ids"][first:]  # masked without a gap
        prompt, answer = (message["content"] for message in row["messages"])
        said = tokenizer.decode(learned, skip_special_tokens=True).strip()
        assert said == answer[len(row["begun"]) :].strip(), row
        start = len(prompts.encode_prompt(tokenizer, prompt, style, None))
        begun = tokenizer.decode(example["input_ids"][start:first], skip_special_tokens=True).strip()
        assert begun == row["begun"].strip()


def test_a_row_that_was_not_begun_is_learned_from_as_a_whole(paths):
    tokenizer = runner(paths).base.tokenizer
    row = sets.load(paths, "safety_multitask")[0]
    texts = [message["content"] for message in row["messages"]]
    whole = prompts.encode_example(tokenizer, *texts, "chat", None, PROFILE.miniature.context)
    assert prompts.encode_row(tokenizer, row, "chat", PROFILE.miniature.context) == whole


def test_a_dose_larger_than_the_data_is_refused_before_anything_is_trained(paths, count_fits):
    with pytest.raises(StudyError, match="lower the dose"):
        runner(paths, load_profile("smoke", {"tuning.steps": 40})).adapter(arm("code_only", 0.9))
    assert count_fits == [] and not paths.adapter(arm("code_only", 0.9).name).exists()


@pytest.fixture
def fingerprint_with(tmp_path, monkeypatch):
    """The fingerprint of the adapter of CELL where the source of one of the library's modules is another."""
    paths = RunPaths(tmp_path / "run", tmp_path / "run")
    results.write_text(paths.model_card("aligned-0"), json.dumps({"sha256": "weights"}))
    results.write_text(paths.data_index, json.dumps({name: {"sha256": name} for name in mixture.tuned_on(CELL)}))
    monkeypatch.setattr(results, "LIBRARY", Path(shutil.copytree(results.LIBRARY, tmp_path / "studylib")))

    def fingerprint(module=None, source=""):
        if module is None:
            return evaluate.adapter_fingerprint(paths, PROFILE, CELL)
        path = results.LIBRARY / f"{module}.py"
        before = path.read_text()
        path.write_text(source)
        try:
            return evaluate.adapter_fingerprint(paths, PROFILE, CELL)
        finally:
            path.write_text(before)

    return fingerprint


class Reworded(ast.NodeTransformer):
    """Other words in every log line and docstring."""

    def visit_Expr(self, node):
        if isinstance(node.value, ast.Constant):
            node.value = ast.Constant("Said in other words.")
        elif isinstance(node.value, ast.Call) and ast.unparse(node.value.func).startswith("LOG."):
            node.value.args[0] = ast.Constant("in other words: %s")
        return self.generic_visit(node)


class Renumbered(ast.NodeTransformer):
    """Another number in place of the first one."""

    done = False

    def visit_Constant(self, node):
        if not self.done and type(node.value) in (int, float):
            self.done = True
            return ast.Constant(2 * node.value + 1)
        return node


@pytest.mark.parametrize("module", evaluate.TUNING)
def test_other_words_in_a_module_that_tunes_train_nothing_again_and_another_number_does(fingerprint_with, module):
    source = (results.LIBRARY / f"{module}.py").read_text()
    reworded, renumbered = (ast.unparse(way().visit(ast.parse(source))) for way in (Reworded, Renumbered))
    assert reworded != ast.unparse(ast.parse(source))
    assert fingerprint_with(module, reworded) == fingerprint_with() != fingerprint_with(module, renumbered)


@pytest.mark.parametrize("module", ["stages/cells", "stages/stage", "models/selfcheck", "models/building"])
def test_a_module_that_does_not_tune_trains_nothing_again(fingerprint_with, module):
    assert fingerprint_with(module, "") == fingerprint_with()

import json
import shutil
from dataclasses import asdict, replace

import pandas as pd
import pytest

from studylib import config, evaluate, results, train
from studylib.config import Cell, StudyError, cells, load_profile
from studylib.paths import RunPaths

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
    calls, real = [], train.fit
    monkeypatch.setattr(train, "fit", lambda *args: calls.append(args[-1]) or real(*args))
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
    monkeypatch.setattr(train, "fit", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        runner(paths).adapter(CELL)
    assert not paths.adapter(CELL.name).exists()


def test_tuning_one_cell_leaves_the_base_as_it_was_for_the_next(paths):
    both = runner(paths)
    both.responses(CELL)
    after = both.responses(Cell("miniature", "none", "chat"))
    paths.rows("miniature-none-chat-none-seed0").unlink()
    alone = runner(paths).responses(Cell("miniature", "none", "chat"))
    assert after["response"].tolist() == alone["response"].tolist()


def test_a_missing_base_model_says_what_to_run(paths):
    paths.model_card("aligned").unlink()
    with pytest.raises(StudyError, match="run 00_prepare first"):
        runner(paths).adapter(CELL)


def test_the_miniature_is_built_once_and_again_when_its_settings_change(paths, count_fits):
    clock = results.Clock()
    train.build_miniature(paths, PROFILE, clock)
    assert count_fits == []
    train.build_miniature(paths, load_profile("smoke", {"alignment.steps": 2}), clock)
    assert count_fits == ["aligned"]


def test_the_clock_adds_up_by_kind():
    clock = results.Clock()
    for _ in range(2):
        with clock("training"):
            pass
    assert list(clock) == ["training"] and clock["training"] >= 0


def test_comments_and_docstrings_do_not_count_as_code_and_a_changed_number_does(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "__file__", str(tmp_path / "evaluate.py"))

    def digest(text):
        (tmp_path / "train.py").write_text(text)
        return config.code_digest("train")

    first = digest('def f():\n    """Says this."""\n    return 1\n')
    assert digest('# why\ndef f():\n    """Says that."""\n\n    return (1)\n') == first
    assert digest('def f():\n    """Says this."""\n    return 2\n') != first


def test_a_test_prompt_that_leaves_no_room_for_an_answer_is_refused_before_any_is_made(paths):
    short = load_profile("smoke", {"models.miniature.context": 40})
    with pytest.raises(StudyError, match=r"has \d+ tokens in the alpaca style, but its context 40"):
        runner(paths, short).responses(Cell("miniature", "none", "alpaca"))
    assert not paths.rows("miniature-none-alpaca-none-seed0").exists()


def test_a_quantized_base_is_another_base(paths):
    plain, nf4 = PROFILE, load_profile("smoke", {"models.miniature.quantization": "nf4"})
    assert evaluate.base_fingerprint(paths, plain, "miniature") != evaluate.base_fingerprint(paths, nf4, "miniature")


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

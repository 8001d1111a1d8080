from itertools import product

import pandas as pd
import pytest

from studylib.stages import needs
from studylib.study.paths import RunPaths
from studylib.study.profile import load_profile
from studylib.study.words import StudyError

LLAMA = load_profile("llama")


@pytest.fixture
def paths(tmp_path):
    return RunPaths(tmp_path, tmp_path)


def row(found, need):
    return found.set_index("need").loc[need]


def test_the_grid_of_the_paper_is_counted():
    found = needs.counts(LLAMA)
    assert found["fine_tunes"] == 4 * 2 * 3 * 3
    tests = 2 * 5 * 50 + 4 * 100 + 100
    assert found["responses"] == (72 + 2) * 2 * (tests + 450)  # of XSTest's file, at most
    assert found["pairs"] == (72 + 48) * 100  # against the untuned model, and where there is safety data without it too
    assert found["tuning_tokens"] == 72 * 3000 * 4 * needs.PROMPT_TOKENS


def test_prompts_that_only_sound_harmful_are_counted_as_many_as_their_file_has_rows():
    without = needs.counts(load_profile("llama", {"data.over_refusal": None}))["responses"]
    assert needs.counts(LLAMA)["responses"] - without == (72 + 2) * 2 * 450


def test_rival_arms_and_the_other_style_are_counted_and_a_scaled_adapter_is_no_fine_tune():
    profile = load_profile("miniature")
    world, found = profile.world, needs.counts(profile)
    tests = 2 * 4 * world.harmful_per_form + 4 * world.task_test_rows + world.general_test_rows
    confirmatory = 6 * 4 * 3
    explored = 1 * 4 * (1 + 1 + 1)  # one more kind of requests, generic data; the Alpaca style without safety data
    arms, main = 1 * 6, 1 * 4 * (3 + 1)  # main: what is tested with the system prompt too
    assert found["fine_tunes"] == confirmatory + explored + arms - 1
    untuned, untuned_twice = 6 + 1, 1 * 2
    asked = untuned + untuned_twice + confirmatory + explored + arms + main
    across = (1 * 4 * 2) * 2 * 4 * world.harmful_per_form  # in the other style
    assert found["responses"] == asked * tests + across
    mitigated = 6 * 4 + 1 * 4 * 1 + arms
    assert found["pairs"] == (confirmatory + explored + arms + mitigated) * world.general_test_rows


def test_the_pairs_are_as_many_as_are_compared_and_without_the_plain_tuning_those_against_the_untuned_model():
    from studylib.scores import benign
    from studylib.study.grid import arm_cells, cells, untuned

    profile = load_profile("miniature")
    grid = profile.grid
    whole = product(grid.safety_data, grid.tasks)
    made = [cell for kind, task in whole for cell in cells(profile, kind, task, grid.styles, grid.seeds)]
    made += [cell for task in grid.tasks for cell in arm_cells(profile, task, grid.styles, grid.seeds)]
    rows = pd.DataFrame([vars(cell) for cell in [*untuned(profile), *made]])
    rows = rows.assign(system_prompt=False, sample=0, prompt_set="general", prompt_id="p", intent="p", prompt="Why?")
    rows = rows.assign(response_id=[str(i) for i in range(len(rows))], response="So.")
    found = needs.counts(profile)["pairs"] / profile.world.general_test_rows
    assert len(benign.pairs(rows)) == found
    alone = load_profile("llama", {"grid.safety_data": ["generic", "multitask"]})
    assert needs.counts(alone)["pairs"] == 48 * 100


def test_four_bit_weights_of_eight_billion_parameters_take_between_five_and_seven_gigabytes():
    model = LLAMA.models["llama31_8b"]
    assert 5e9 < needs.weight_bytes(model) < 7e9
    assert needs.weight_bytes(model.model_copy(update={"quantization": "none"})) == 2 * 8.03e9


def test_an_adapter_of_rank_64_on_llama_has_no_more_weights_than_counted_and_not_far_fewer():
    width, inner, kv, layers = 4096, 14336, 1024, 32
    exact = 64 * layers * (2 * (width + width) + 2 * (width + kv) + 3 * (width + inner))
    assert exact <= needs.adapter_weights(LLAMA, LLAMA.models["llama31_8b"]) < 1.15 * exact


def test_what_is_needed_is_listed_with_what_is_there(paths, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(paths.run))
    monkeypatch.setattr(needs, "_gpu_memory", lambda: 0)
    found = needs.table(LLAMA, paths)
    assert set(found["need"]) == {"disk", "access", "GPU memory", "hours", "judge calls"}
    assert row(found, "access")["found"] == "no token" and row(found, "GPU memory")["enough"] is False
    assert "72 fine-tunes" in row(found, "hours")["what"]
    with pytest.raises(StudyError, match=r"GPU memory for llama31_8b: needs .* found no GPU"):
        needs.require(found, here=True)
    monkeypatch.setenv("HF_TOKEN", "x")
    found = needs.table(LLAMA, paths)
    assert row(found, "access")["found"] == "a token"
    needs.require(found[found["need"] != "disk"], here=False)  # another machine may have the GPU


def test_too_little_disk_is_an_error_on_any_machine(paths, monkeypatch):
    monkeypatch.setattr(needs.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**9})())
    with pytest.raises(StudyError, match=r"disk for models, adapters, responses: needs .* found 1.0 GB free"):
        needs.require(needs.table(LLAMA, paths), here=False)


def test_small_models_need_nothing_to_be_said_of():
    assert needs.large(load_profile("miniature")) == needs.large(load_profile("rehearsal")) == []


def test_what_an_interrupted_run_has_made_is_not_needed_again(paths):
    before = row(needs.table(LLAMA, paths), "disk")["needed"]
    with open(paths.run / "adapter", "wb") as file:
        file.truncate(20 * 10**9)  # a hole, not written
    after = row(needs.table(LLAMA, paths), "disk")["needed"]
    assert float(before.split()[0]) - float(after.split()[0]) == pytest.approx(20, abs=0.2)


def test_a_gated_model_in_the_cache_needs_no_token(paths, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(paths.run))
    monkeypatch.setattr(needs, "_cached", lambda model: True)
    assert row(needs.table(LLAMA, paths), "access")["enough"] is True


def test_a_judge_behind_an_address_is_asked_once_a_response_and_twice_a_pair_and_needs_the_address(
    tmp_path, monkeypatch
):
    for name in ("STUDY_JUDGE_URL", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    asking = load_profile("smoke", {"judges": ["endpoint", "rules"], "endpoint": {"max_calls": 1000}})
    paths = RunPaths(tmp_path, tmp_path)

    def calls(profile):
        table = needs.table(profile, paths)
        return table[table["need"] == "judge calls"].iloc[0]

    counted = needs.counts(asking)
    assert calls(asking)["needed"] == f"{counted['responses'] + 2 * counted['pairs']:,} (capped at 1,000 a notebook)"
    assert calls(asking)["what"] == f"all responses and, twice, {counted['pairs']:,} pairs of general answers"
    with pytest.raises(StudyError, match=r"judge calls for all responses and, twice, .* set STUDY_JUDGE_URL"):
        needs.require(needs.table(asking, paths), here=False)
    monkeypatch.setenv("STUDY_JUDGE_URL", "http://localhost:1/v1")
    assert calls(asking)["enough"] and "localhost" not in calls(asking)["found"]
    assert calls(load_profile("smoke"))["needed"] == "0"

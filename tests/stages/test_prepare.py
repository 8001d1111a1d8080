import pandas as pd
import pytest

from studylib.data import mixture, world
from studylib.data import sets as datasets
from studylib.models import building, hub, prompts
from studylib.stages import prepare
from studylib.stages.stage import Stage
from studylib.study import grid
from studylib.study.paths import RunPaths
from studylib.study.profile import load_profile
from studylib.study.words import ARMS, STYLES, StudyError

TEXTS = ["Translate this sentence about a locker.", "Le casier est ouvert.", "def f(n):\n    return n"] * 20
PROFILE = load_profile("rehearsal")


@pytest.fixture(scope="module")
def now(tmp_path_factory):
    """A stage under way on two of the architectures, with a short context."""
    names = ("gemma", "qwen")
    short = {name: PROFILE.models[name].model_copy(update={"context": 200, "quantization": "none"}) for name in names}
    folder = tmp_path_factory.mktemp("prepare")
    paths = RunPaths(folder, folder)
    under_way = Stage("00_prepare", "all", PROFILE.model_copy(update={"models": short}), paths, [])
    prepare.build_tiny(under_way, TEXTS)
    return under_way


def check_tunings(profile, paths):
    mixture.check_tunings(profile, paths, grid.tunings(profile))


def row(prompt, answer="", prompt_set="train"):
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"id": "x/1", "prompt_set": prompt_set, "messages": messages}


@pytest.mark.parametrize("n", [1, 20, 40, 60, 200])
@pytest.mark.parametrize("prompt_set", ["train", "harmful"])
def test_a_row_is_too_long_by_the_tokens_that_the_longest_calibration_of_any_model_has_over(now, n, prompt_set):
    one = row("un casier " * n, "a locker " * (n // 2 if prompt_set == "train" else 0), prompt_set)
    over = []
    for name, tokenizer in prepare.tokenizers(now).items():
        for style in STYLES:
            asked, answer = (message["content"] for message in one["messages"])
            if prompt_set == "train":
                length = len(prompts.encode_example(tokenizer, asked, answer, style, None, 10**9)["input_ids"])
            else:
                length = len(prompts.encode_prompt(tokenizer, asked, style, PROFILE.system_prompt))
                length += PROFILE.generation.max_new_tokens
            over.append(length - now.profile.models[name].context)
    found = prepare._too_long_by(now)(one)
    assert (found > 0) == (max(over) > 0) and (found <= 0 or found == max(over))


def test_the_same_texts_build_the_same_tiny_models_and_their_cards_have_the_hashes(now, tmp_path):
    again = Stage("00_prepare", "all", now.profile, RunPaths(tmp_path, tmp_path), [])
    prepare.build_tiny(again, TEXTS)
    for folder in ("tiny_gemma", "tiny_qwen"):
        assert now.paths.model_card(folder).read_text() == again.paths.model_card(folder).read_text()
        model, tokenizer = hub.load(again.paths.model(folder), now.profile.models[folder.removeprefix("tiny_")])
        assert model.num_parameters() < 2e6 and tokenizer.padding_side == "left"


def test_the_self_check_is_a_row_per_check_and_a_column_per_model(now):
    sets = {f"train_{task}": [row("Ouvrez le casier.", "Open the locker.")] for task in PROFILE.grid.tasks}
    found = prepare.self_check(now, {**sets, "harmful": [row("Open Paul's locker.", "", "harmful")]})
    assert list(found.columns) == ["gemma", "qwen"] and found.all(axis=None) and len(found) > 12


def test_a_model_that_is_declared_wrongly_stops_the_run_with_the_checks_that_fail(now):
    wrong = {"qwen": now.profile.models["qwen"].model_copy(update={"chat_template": None})}
    other = Stage("00_prepare", "all", now.profile.model_copy(update={"models": wrong}), now.paths, [])
    sets = {f"train_{task}": [row("Ouvrez le casier.", "Open the locker.")] for task in PROFILE.grid.tasks}
    with pytest.raises(StudyError, match=r"qwen: .*system prompt"):
        prepare.self_check(other, {**sets, "harmful": []})


def test_the_calibrations_of_every_model_are_on_record_and_differ(now):
    found = prepare.calibrations(now)
    assert found.groupby("model")["fingerprint"].nunique().to_dict() == {"gemma": 4, "qwen": 4}
    assert building.traits() and not found["rendered"].str.contains("never trained").any()


# What the sets are checked for before anything is tuned

SMOKE = load_profile("smoke")


def with_grid(tuning=None, arms=None, **grid):
    """The smoke profile with these settings of tuning, arms and grid."""
    arms = SMOKE.grid.arms.model_copy(update=arms or {}) if arms is not False else None
    tuned = SMOKE.tuning.model_copy(update=tuning or {})
    return SMOKE.model_copy(update={"tuning": tuned, "grid": SMOKE.grid.model_copy(update={**grid, "arms": arms})})


def test_the_fine_tunes_that_are_checked_are_those_that_the_stages_make(smoke_runs):
    there = {path.name for path in (smoke_runs / "smoke" / "adapters").iterdir() if not path.name.startswith(".")}
    planned = {cell.name for cell in grid.tunings(SMOKE)}
    assert {name for name in planned if "-scaled" not in name} == {name for name in there if "." not in name}


@pytest.mark.parametrize("name", ["smoke", "miniature"])
def test_the_shipped_profiles_have_the_rows_that_they_need(name, saved, sets):
    profile = load_profile(name)
    if name != "smoke":
        datasets.save(saved, world.build_sets(profile.world, profile.base_seeds))
    check_tunings(profile, saved)


def test_a_dose_larger_than_its_set_is_refused_with_cell_dose_needed_and_found(saved):
    check_tunings(with_grid({"steps": 8, "batch_size": 10}, False, safety_fraction=0.999), saved)  # 80 of 80
    with pytest.raises(StudyError) as error:
        check_tunings(with_grid({"steps": 9, "batch_size": 10}, False, safety_fraction=0.9), saved)
    assert str(error.value).startswith(
        "miniature-base0-code+own-chat-generic90-seed0 (and 3 more) needs 81 rows of safety data "
        "(a dose of 0.9 of 90), but there are 80 in safety_generic: lower the dose or tuning.steps"
    )
    assert "; miniature-base0-code+own-chat-multitask90-seed0 (and 7 more) needs 81 rows" in str(error.value)


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        (
            {"safety_fractions": [0.8]},
            "multitask80-seed0 needs 102 rows .* 0.8 of 128.* are 80 in safety_multitask:",
        ),
        (
            {"safety_data": ["code_only"], "removed": []},
            "code_only20-seed0 needs 26 .* are 20 in safety_multitask in the form",
        ),
    ],
)
def test_an_arm_is_refused_where_the_grid_is_not(saved, arms, said):
    profile = with_grid(
        {"steps": 8}, {"safety_data": [], "removed": [], "safety_fractions": [], **arms}, safety_fraction=0.2
    )
    with pytest.raises(StudyError, match=rf"^miniature-base0-code.own-chat-{said}"):
        check_tunings(profile, saved)
    check_tunings(profile.model_copy(update={"grid": profile.grid.model_copy(update={"arms": None})}), saved)
    without = profile.grid.model_copy(update={"safety_data": ["none", "generic"]})  # then 04_mitigation is not run
    check_tunings(profile.model_copy(update={"grid": without}), saved)


def test_a_second_tuning_needs_a_step_of_its_own(saved):
    arms = {"safety_data": ["multitask_after"], "removed": [], "safety_fractions": []}
    check_tunings(with_grid({"steps": 2}, arms), saved)
    with pytest.raises(
        StudyError, match=r"^miniature-base0-code.own-chat-multitask_after10-seed0 needs a step and a row of each"
    ):
        check_tunings(with_grid({"steps": 1}, arms), saved)


def test_cells_whose_sets_are_absent_are_not_run_and_not_refused(sets, tmp_path):
    paths, profile = RunPaths(tmp_path, tmp_path), with_grid(None, {"safety_data": [*ARMS[:-1]], "removed": []})
    real = {name: rows for name, rows in sets.items() if name not in datasets.OWN_SETS}
    gone = {name: f"{name}: offline" for name in ("safety_multitask", "train_code")}
    some = real | {name: [] for name in gone}
    datasets.save(paths, some, absent=gone)
    check_tunings(profile, paths)
    datasets.save(paths, some, absent={"safety_multitask": "offline"})
    with pytest.raises(
        StudyError,
        match=r"^miniature-base0-code-chat-none-seed0 \(and 8 more\) needs rows of its task, but train_code is empty",
    ):
        check_tunings(profile, paths)


def test_the_data_step_of_generated_data_ends_with_that_check(tmp_path):
    small = load_profile("smoke", {"world.safety_rows": 5})
    now = Stage("00_prepare", "all", small, RunPaths(tmp_path, tmp_path), [])
    with pytest.raises(
        StudyError, match=r"miniature-base0-code.own-chat-generic10-seed0 \(and 3 more\) needs 6 rows .* there are 5"
    ):
        prepare.data(now)


def data_of(sets):
    return prepare.Data(sets, {}, *(pd.DataFrame() for _ in range(4)))


def test_harmful_prompts_are_shown_with_their_own_twins_whatever_the_order_and_none_for_one_that_is_missing(sets):
    shown = data_of(sets | {"twin": sets["twin"][:0:-1]}).shown()
    twins = {row["twin_of"]: row["messages"][0]["content"] for row in sets["twin"]}
    asked = {row["messages"][0]["content"]: row["id"] for row in sets["harmful"]}
    assert len(shown) == 8 and shown["twin"].iloc[0] == "none"
    assert [twins[asked[text]] for text in shown["harmful"][1:]] == shown["twin"][1:].tolist()


def test_a_base_whose_training_was_stopped_goes_on_from_the_state_beside_its_folder(saved, monkeypatch):
    from functools import partial

    from studylib.models import small_llama, training

    monkeypatch.setattr(training, "Checkpoint", partial(training.Checkpoint, seconds=0.0))
    short = load_profile("smoke", {"pretraining.steps": 4}).pretraining
    build = lambda name: prepare._build(  # noqa: E731
        saved, SMOKE, name, prepare.Recipe("", "pretraining", short, 0, "print")
    )
    build("whole")
    loss, asked = small_llama.answer_loss, []

    def stops(*given):
        asked.append(given)
        if len(asked) > 15:  # in the third step or so
            raise KeyboardInterrupt
        return loss(*given)

    monkeypatch.setattr(small_llama, "answer_loss", stops)
    with pytest.raises(KeyboardInterrupt):
        build("helpful_only-0")
    state = saved.model("helpful_only-0").with_name(".helpful_only-0.checkpoint")
    assert state.is_file() and not saved.model("helpful_only-0").exists()
    monkeypatch.setattr(small_llama, "answer_loss", loss)
    build("helpful_only-0")
    weights = [(saved.model(name) / "model.safetensors").read_bytes() for name in ("whole", "helpful_only-0")]
    assert weights[0] == weights[1] and not state.exists()

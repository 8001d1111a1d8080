import json
import shutil

import pandas as pd
import pytest
import yaml
from test_prerequisites import values

from studylib.analysis import readable, tables
from studylib.judges import registry
from studylib.stages import graph, judging, stage
from studylib.study import grid
from studylib.study.paths import RunPaths
from studylib.study.profile import PROFILES, load_profile
from studylib.study.words import LABELS, STAGES, StudyError


@pytest.fixture
def in_runs(smoke_runs, monkeypatch):
    monkeypatch.setenv("STUDY_RUNS", str(smoke_runs))
    return smoke_runs


def test_a_name_of_the_reader_is_no_parameter(in_runs):
    assert stage.begin("02_finetune", values("02_finetune", task="code", my_note="hello", In=["x = 1"])).unit == "code"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("02_finetune", {"task": "cooking"}),
        ("02_finetune", {"styles": ["chatty"]}),
        ("01_baseline", {"profile": "smokey"}),
    ],
)
def test_an_unknown_task_style_or_profile_is_an_error(in_runs, name, change):
    with pytest.raises(StudyError, match=r"known are|There is no profile"):
        stage.begin(name, values(name, **change))


def test_a_tweak_is_kept_apart_and_shown_beside_the_run(in_runs):
    tweak = stage.begin(
        "02_finetune", values("02_finetune", task="code", styles=["chat"], seeds=[0], overrides={"tuning.steps": 2})
    )
    assert tweak.profile.tuning.steps == 2 and tweak.paths.run.parent == in_runs / "smoke" / "tweaks"
    assert tweak.paths.model("aligned-0").is_dir()  # shares the models of its run
    before = sorted(p.name for p in (in_runs / "smoke" / "adapters").iterdir())
    made = tweak.answer()
    shown = tweak.compare(tables.attack_success(made, registry.judge(made)))
    assert set(shown.index.get_level_values("who")) == {"this", "the run", "untuned"}
    assert shown["n_seeds"].eq(1).all() and set(shown.index.get_level_values("style")) == {"chat"}
    assert len(made) and sorted(p.name for p in (in_runs / "smoke" / "adapters").iterdir()) == before


def test_the_comparison_names_arm_and_dose_and_says_what_has_not_run(in_runs, tmp_path, caplog):
    paths, profile = RunPaths.of("smoke"), load_profile("smoke")
    rows, verdicts = (graph.collect(paths, profile, kind, ["04_mitigation"]) for kind in ("responses", "verdicts"))
    rows = rows[rows["finetune_task"] == "code"]
    cells = grid.cells(profile, "multitask", "code", ["chat"], [0])
    table = tables.attack_success(rows, verdicts[verdicts["judge"] == profile.judges[0]])
    beside = stage.Stage("04_mitigation", "code", profile, paths, cells).compare(table)
    assert set(beside.index.get_level_values("who")) == {"this", "untuned"} and beside.index.is_unique
    assert beside.xs("this").index.to_frame()[["safety_data", "safety_fraction"]].drop_duplicates().shape[0] > 5
    caplog.set_level("INFO", "studylib")
    alone = stage.Stage("04_mitigation", "code", profile, RunPaths(tmp_path, tmp_path), cells).compare(table)
    assert set(alone.index.get_level_values("who")) == {"this"}
    assert "01_baseline has not run yet: nothing of it is shown here. Run it" in caplog.text


def tweak_of_code(**overrides):
    """A small notebook run apart from the smoke run, on its data and models."""
    changes = {"task": "code", "styles": ["chat"], "seeds": [0], "overrides": {"tuning.steps": 2} | overrides}
    return stage.begin("02_finetune", values("02_finetune", **changes))


def test_the_first_judge_is_shown_and_the_verdicts_of_all_are_kept(in_runs):
    begun = tweak_of_code()
    made = begun.answer()
    shown = begun.judge(made)
    assert shown["response_id"].tolist() == made["response_id"].tolist() and set(shown["judge"]) == {"classifier"}
    kept = pd.read_parquet(begun.paths.table_of_unit("verdicts", begun.name, begun.unit))
    assert kept.groupby("judge")["response_id"].nunique().to_dict() == dict.fromkeys(begun.profile.judges, len(made))
    assert begun.clock["judging"] > 0


def test_another_first_judge_of_a_tweak_decides_and_what_it_has_not_judged_is_not_shown(in_runs, capsys):
    begun = tweak_of_code(judges=["words_pair", "rules"])
    made = begun.answer()
    shown = begun.judge(made)
    assert set(shown["judge"]) == {"words_pair"}
    beside = begun.compare(tables.attack_success(made, shown))
    assert set(beside.index.get_level_values("who")) == {"this"}
    assert "01_baseline was not judged by words_pair: nothing of it is shown here." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("judges", ["classifier", "oracle"], "Unknown judge 'oracle': known are classifier, rules, "),
        ("labelled", ["own", "gold"], "no labelled responses 'gold': known are own, chatgpt_refusals, xstest"),
    ],
)
@pytest.mark.parametrize("name", [*STAGES, LABELS])
def test_an_unknown_judge_or_labelled_set_is_refused_before_any_work(in_empty, name, key, value, said):
    content = yaml.safe_load((PROFILES / "smoke.yaml").read_text()) | {"name": "mine", key: value}
    (in_empty / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(StudyError, match=said):
        stage.begin(name, values(name, profile=str(in_empty / "mine.yaml")))
    assert [path.name for path in in_empty.iterdir()] == ["mine.yaml"]


def test_what_has_run_so_far_is_there_to_be_labelled(in_runs, tmp_path, monkeypatch):
    begun = stage.begin(LABELS, values(LABELS))
    responses, verdicts = stage.finished_responses(begun)
    rows = [
        path.read_text().count("\n")
        for path in (in_runs / "smoke" / "responses" / "rows").glob("*.jsonl")
        if "-asked-" not in path.stem
    ]
    assert len(responses) == responses["response_id"].nunique() == sum(rows)
    others = verdicts[verdicts["judge"] != "coherence"]
    assert set(others["judge"]) == {*begun.profile.judges} - {"coherence"}
    assert others.groupby("judge")["response_id"].nunique().eq(len(responses)).all()
    # what is coherent would be a disagreement with all others
    assert set(verdicts.loc[verdicts["judge"] == "coherence", "verdict"]) == {"incoherent"}
    assert set(judging.choose(responses, verdicts, 20)["chosen_because"]) == {judging.DISAGREE, judging.RANDOM}
    for kind in ("responses", "verdicts"):  # the baseline alone
        shutil.copytree(in_runs / "smoke" / kind / "01_baseline", tmp_path / "smoke" / kind / "01_baseline")
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path))
    some, their = stage.finished_responses(stage.begin(LABELS, values(LABELS)))
    assert set(some["finetune_task"]) == {"none"} and set(their["response_id"]) == set(some["response_id"])


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        (
            "01_baseline",
            {"generation.max_new_tokens": 4, "system_prompt": "Be kind.", "models.miniature.quantization": "nf4"},
        ),
        ("02_finetune", {"lora.r": 4, "tuning.steps": 2, "generation.batch_size": 8, "system_prompt": "Be kind."}),
        ("03_defences", {"grid.safety_fraction": 0.2}),
        ("04_mitigation", {"grid.safety_fraction": 0.2}),
    ],
)
def test_an_override_is_in_the_settings_and_shown(in_runs, capsys, name, overrides):
    begun = stage.begin(name, values(name, overrides=overrides))
    settings = begun.profile.model_dump()
    for key, value in overrides.items():
        found = settings
        for part in key.split("."):
            found = found[part]
        assert found == value
    said = capsys.readouterr().out
    assert str(begun.paths.run) in said and all(f"{key} = {value!r}" in said for key, value in overrides.items())


def test_a_4_bit_tweak_of_the_baseline_answers_with_the_4_bit_model(in_runs):
    tweak = stage.begin("01_baseline", values("01_baseline", overrides={"models.miniature.quantization": "nf4"}))
    assert tweak._runner_of(tweak.cells[0]).base.model.is_loaded_in_4bit


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("02_finetune", {"task": "code", "styles": ["chat"], "seeds": [0, 7]}, "seeds 7 not in the grid"),
        ("04_mitigation", {"task": "classification", "seeds": [0, 1]}, "tasks classification not in the grid"),
    ],
)
def test_what_is_outside_the_grid_is_kept_apart_from_the_run(in_runs, capsys, name, change, said):
    begun = stage.begin(name, values(name, **change))
    assert begun.paths.run.parent == in_runs / "smoke" / "tweaks" and begun.paths.base == in_runs / "smoke"
    assert said in capsys.readouterr().out


def test_a_style_outside_the_grid_and_an_arm_outside_it_are_told_apart(in_empty):
    profile = load_profile("smoke", {"grid.styles": ["chat"], "grid.safety_data": ["none"], "grid.seeds": [0, 1]})
    cells = grid.cells(profile, "multitask", "code", ["chat", "alpaca"], [1, 0])
    assert stage.outside_grid(profile, cells) == {"styles": ["alpaca"], "safety_data": ["multitask"]}


def test_what_the_grid_leaves_out_is_named_before_any_work(in_empty):
    content = {"extends": "smoke", "name": "mine", "grid": {"safety_styles": ["chat"]}}
    (in_empty / "mine.yaml").write_text(yaml.safe_dump(content))
    given = {"profile": str(in_empty / "mine.yaml"), "task": "code", "styles": ["alpaca"], "seeds": [0]}
    with pytest.raises(StudyError, match=r"code-alpaca is outside grid\.safety_styles or grid\.explore_bases"):
        stage.begin("04_mitigation", values("04_mitigation", **given))


def test_a_part_of_the_grid_belongs_to_the_run(in_runs, capsys):
    begun = stage.begin("02_finetune", values("02_finetune", task="code", styles=["chat"], bases=[1]))
    assert begun.paths.run == begun.paths.base == in_runs / "smoke" and begun.unit == "code-base1-chat"
    assert "apart from" not in capsys.readouterr().out


def test_another_seed_is_shown_beside_the_seeds_of_the_run(in_runs):
    begun = stage.begin("02_finetune", values("02_finetune", task="code", styles=["chat"], seeds=[7]))
    rows = pd.read_parquet(in_runs / "smoke" / "responses" / "02_finetune" / "code.parquet").query("style == 'chat'")
    shown = begun.compare(tables.attack_success(rows, registry.judge(rows)))
    assert shown.xs("the run")["n_seeds"].eq(1).all() and shown.xs("the run")["n"].gt(0).all()


def test_times_by_kind_add_up_to_the_total(in_runs, monkeypatch, tmp_path):
    for log in (in_runs / "smoke" / "logs").glob("*/*.json"):
        times = json.loads(log.read_text())
        parts = {kind: seconds for kind, seconds in times.items() if kind not in ("total", "ended")}
        assert times["total"] == pytest.approx(sum(parts.values()), abs=0.1), log


def test_models_tuned_without_safety_data_are_asked_in_the_style_they_were_not_tuned_in(in_runs):
    begun = stage.begin("02_finetune", values("02_finetune", task="code", styles=["chat"], seeds=[0]))
    made = begun.answer(across=True)
    assert len(made) == 2 * 4 * begun.profile.world.harmful_per_form and made["harmful"].all()
    assert set(zip(made["trained_style"], made["style"], strict=True)) == {("chat", "alpaca")}
    kept = pd.read_parquet(in_runs / "smoke" / "across" / "02_finetune" / "code.parquet")
    assert set(zip(kept["trained_style"], kept["style"], strict=True)) == {("chat", "alpaca"), ("alpaca", "chat")}
    assert set(kept["seed"]) == set(begun.profile.grid.seeds)
    columns = ["response_id", "response"]
    same = kept[kept["response_id"].isin(made["response_id"])]
    assert (
        same[columns].values.tolist() == made[columns].values.tolist()
    )  # it belongs to the run, and is not made again


@pytest.mark.parametrize("change", [{"grid.across_styles": False}, {"grid.styles": ["chat"]}])
def test_no_model_is_asked_in_another_style_where_that_is_off_or_there_is_one_style(in_runs, change):
    profile, paths = load_profile("smoke", change), RunPaths.of("smoke")
    cells = grid.cells(profile, "none", "code", ["chat"], [0])
    begun = stage.Stage("02_finetune", "code-alone", profile, paths, cells)
    across = begun.answer(across=True)
    assert across.empty and list(across) == [*stage.COLUMNS, "trained_style"]
    responses = begun.answer()
    table = tables.calibration_grid(responses, registry.judge(responses), across, registry.judge(across))
    assert set(zip(table["trained_style"], table["style"], strict=True)) == {("chat", "chat")}


def test_the_grid_of_calibrations_of_a_run_has_every_style_of_tuning_and_of_test(in_runs):
    profile, paths = load_profile("smoke"), RunPaths.of("smoke")
    kinds = ("responses", "verdicts", "across", "across_verdicts")
    responses, verdicts, across, theirs = (graph.collect(paths, profile, kind, ["02_finetune"]) for kind in kinds)
    table = tables.calibration_grid(responses, verdicts, across, theirs)
    assert list(readable.in_percent(table).index.names)[:3] == ["finetune_task", "requests", "trained_style"]
    first = table[(table["judge"] == profile.judges[0]) & (table["form"] == "all")]
    own = first[first["requests"] == "own"]
    assert len(own) == len(profile.grid.tasks) * 2 * 2 * 2  # styles of tuning x styles of test x system prompt
    places = own.set_index(["trained_style", "style", "system_prompt"])["n_bases"]
    everywhere = ("chat", "chat", False)  # the confirmatory part
    assert set(places[everywhere]) == {3} and set(places.drop(everywhere)) == {1}
    asked = 4 * profile.world.harmful_per_form * len(profile.grid.seeds) * first["n_bases"]
    assert (first["n"] + first["n_unjudged"] == asked).all()
    alike = first[first["trained_style"] == first["style"]]
    keys = ["finetune_task", "requests", "style", "system_prompt"]
    plain = tables.attack_success(responses, verdicts)
    plain = plain[(plain["judge"] == profile.judges[0]) & (plain["form"] == "all")].set_index(keys)
    shared = ["n", "rate", "low", "high"]
    pd.testing.assert_frame_equal(alike.set_index(keys)[shared].sort_index(), plain[shared].sort_index())

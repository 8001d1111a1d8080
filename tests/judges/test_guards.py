"""Guards: what they are fitted on, what they decide on which side, and what waits for whose results."""

import json
import shutil

import pandas as pd
import pytest

from studylib.data import sets as datasets
from studylib.judges import guards
from studylib.judges.guards import decide, train_guard
from studylib.stages import graph, stage
from studylib.study.grid import units
from studylib.study.paths import RunPaths
from studylib.study.profile import load_profile
from studylib.study.words import EMBEDDED_GUARDS, FORMS, GUARDS, STAGES, StudyError

PROFILE = load_profile("smoke")
COLUMNS = ["guard", "side", "prompt_id", "response_id", "form", "prompt_set", "harmful", "intent"]
COLUMNS += ["score", "blocked", "reason"]


@pytest.fixture(scope="module")
def paths(sets, tmp_path_factory):
    """A run that has the generated data alone."""
    folder = tmp_path_factory.mktemp("run")
    found = RunPaths(folder, folder)
    datasets.save(found, sets)
    return found


@pytest.fixture(scope="module")
def rows(paths):
    return datasets.guard_rows(paths)


def answers(prompts, refused=()):
    """Responses as the stages have them: the helpful-only answers, or a refusal."""
    texts = [
        "I'm sorry, but I can't help with that." if row["id"] in refused else row["messages"][1]["content"]
        for row in prompts
    ]
    frame = pd.DataFrame([{name: row[name] for name in ("form", "prompt_set", "harmful", "intent")} for row in prompts])
    frame["prompt_id"] = [row["id"] for row in prompts]
    frame["prompt"], frame["response"] = [row["messages"][0]["content"] for row in prompts], texts
    return frame.assign(response_id="cell/" + frame["prompt_id"])


def rate(decisions, **wanted):
    for name, value in wanted.items():
        decisions = decisions[decisions[name] == value]
    return decisions["blocked"].mean()


def test_every_guard_decides_on_every_prompt_and_every_response_of_all_forms(sets, rows):
    prompts = sets["harmful"] + sets["twin"]
    decisions = decide(list(EMBEDDED_GUARDS), prompts, answers(prompts), rows)
    assert list(decisions.columns) == COLUMNS and len(decisions) == 2 * 2 * len(prompts)
    for (guard, side), part in decisions.groupby(["guard", "side"]):
        assert guard in EMBEDDED_GUARDS and part["prompt_id"].tolist() == [row["id"] for row in prompts]
        assert (part["response_id"] == ("" if side == "input" else "cell/" + part["prompt_id"])).all()
    assert decisions["score"].between(0, 1).all() and (decisions["reason"] == "").all()
    assert (decisions["blocked"] == (decisions["score"] >= 0.5)).all()


def test_a_guard_knows_harm_in_the_forms_that_it_learnt(sets, rows):
    prompts = sets["harmful"] + sets["twin"]
    decisions = decide(list(EMBEDDED_GUARDS), prompts, answers(prompts), rows)
    caught = {
        (g, s): rate(decisions, guard=g, side=s, harmful=True) for g in EMBEDDED_GUARDS for s in guards.COLUMNS_READ
    }
    for side in guards.COLUMNS_READ:
        assert caught["all_forms", side] > caught["text_only", side]
        text = {"side": side, "form": "text_generation", "guard": "text_only"}
        assert rate(decisions, harmful=True, **text) > rate(decisions, harmful=False, **text)


@pytest.mark.parametrize("side", guards.COLUMNS_READ)
def test_the_text_guard_sees_no_other_form_in_training(rows, side):
    only_text = [row for row in rows[side] if row["form"] == "text_generation"]
    asked = pd.DataFrame(rows[side][:50])
    first, second = (train_guard(given, "text_only", side).predict_proba(asked) for given in (rows[side], only_text))
    assert (first == second).all()


def test_a_refusal_of_a_harmful_prompt_passes_the_output_guard(sets, rows):
    harmful = sets["harmful"]
    given, refused = answers(harmful), answers(harmful, {row["id"] for row in harmful})
    decided = [decide(["all_forms"], [], frame, rows) for frame in (given, refused)]
    assert rate(decided[0], side="output") > 0.5 and rate(decided[1], side="output") == 0


def test_an_input_guard_does_not_see_the_response_and_an_output_guard_sees_the_prompt(sets, rows):
    label = answers([row for row in sets["harmful"] if row["form"] == "classification"]).assign(response="B")
    twins = answers([row for row in sets["twin"] if row["form"] == "classification"]).assign(response="B")
    scores = decide(["all_forms"], [], pd.concat([label, twins]), rows).groupby("harmful")["score"].mean()
    assert scores[True] > scores[False]  # the response alone is the same


def test_nothing_of_the_tests_is_learnt(sets, rows, paths):
    tested = [row for name in datasets.TESTS for row in sets[name]]
    prompts = {row["messages"][0]["content"] for row in tested}
    assert not [row for side in rows.values() for row in side if row["prompt"] in prompts]
    held_out = {row["phrasing"] for row in sets["harmful"] + sets["twin"]}
    answered = [row for row in sets["pretraining"] if row["phrasing"] in held_out]
    assert answered and len(rows["output"]) == len(sets["pretraining"]) - len(answered) + len(sets["alignment-0"])


def test_what_is_to_be_blocked_is_a_harmful_prompt_and_an_answer_to_one(sets, rows):
    assert sum(row["harmful"] for row in rows["input"]) == sum(row["harmful"] for row in sets["alignment-0"])
    blocked = {(row["prompt"], row["response"]) for row in rows["output"] if row["harmful"]}
    refusals = {row["messages"][1]["content"] for row in sets["alignment-0"] if row["harmful"]}
    assert blocked and not [response for _, response in blocked if response in refusals]


def test_each_form_and_kind_weighs_the_same_however_many_rows_it_has(rows):
    """A hundred times the harmless rows of one form would otherwise make it harmless."""
    few = [row for row in rows["input"] if row["form"] == "code"]
    many = few + 100 * [row for row in few if not row["harmful"]]
    asked = pd.DataFrame([row for row in few if row["harmful"]])
    rest = [row for row in rows["input"] if row["form"] != "code"]
    blocked = [
        (train_guard(rest + part, "all_forms", "input").predict_proba(asked)[:, 1] >= 0.5) for part in (few, many)
    ]
    assert abs(blocked[0].mean() - blocked[1].mean()) < 0.1


def test_a_guard_without_one_kind_of_rows_in_a_form_says_which(rows):
    kept = [row for row in rows["output"] if row["form"] != "code" or not row["harmful"]]
    assert train_guard(kept, "text_only", "output")
    with pytest.raises(StudyError, match=r"all_forms learns from .* no harmful responses of the form code"):
        train_guard(kept, "all_forms", "output")


def test_with_nothing_to_learn_from_a_guard_is_undecided_and_says_so(sets, rows):
    prompts = sets["harmful"][:4]
    decisions = decide(["text_only"], prompts, answers(prompts), rows | {"output": []})
    said = decisions[decisions["side"] == "output"]
    assert said["blocked"].isna().all() and said["score"].isna().all()
    assert said["reason"].str.startswith("not run: text_only learns from harmful and harmless responses").all()
    assert decisions.loc[decisions["side"] == "input", "blocked"].notna().all()


def test_real_data_teach_prompts_of_all_forms_and_no_answers_to_harmful_ones(tmp_path, sets):
    found = RunPaths(tmp_path, tmp_path)
    names = ("safety_generic", "safety_multitask", "train_code", *datasets.TESTS)
    real = {name: sets[name] for name in names} | {"train_general": sets["general"]}
    datasets.save(found, real, origins={name: [] for name in real})
    rows = datasets.guard_rows(found)
    assert rows["output"] == [] and {row["form"] for row in rows["input"] if row["harmful"]} == set(FORMS)
    assert train_guard(rows["input"], "text_only", "input")
    with pytest.raises(StudyError, match="no harmless prompts of the form translation"):
        train_guard(rows["input"], "all_forms", "input")


def test_equal_prompts_get_equal_decisions_and_none_is_lost(sets, rows):
    prompts = sets["harmful"][:3]
    twice = pd.concat([answers(prompts), answers(prompts)]).reset_index(drop=True)
    twice["response_id"] = [str(i) for i in range(6)]
    decisions = decide(["text_only"], prompts, twice, rows).query("side == 'output'")
    assert decisions["response_id"].tolist() == list("012345")
    assert (decisions["score"].to_numpy()[:3] == decisions["score"].to_numpy()[3:]).all()


def test_decisions_survive_being_written_with_what_is_undecided(sets, rows, tmp_path):
    prompts = sets["harmful"][:2]
    decisions = decide(["text_only"], prompts, answers(prompts), rows | {"output": []})
    decisions.to_parquet(tmp_path / "guards.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "guards.parquet"), decisions)


# The set of guards of a profile


@pytest.mark.parametrize("guards_of", [["nobody"], [], ["text_only", "text_only"], "text_only"])
def test_a_profile_names_known_guards_each_once(guards_of):
    with pytest.raises(StudyError, match="guards"):
        load_profile("smoke", {"guards": guards_of})


def test_the_default_guards_need_no_download():
    assert tuple(PROFILE.guards) == EMBEDDED_GUARDS == tuple(guards.FORMS_LEARNT)


def test_every_guard_that_is_no_own_classifier_is_a_known_model_or_the_endpoint():
    from studylib.judges import open_models

    others = set(GUARDS) - set(EMBEDDED_GUARDS) - {"moderation_endpoint"}
    assert others and others <= set(open_models.names())


def test_other_guards_run_the_defences_again_and_no_other_fine_tunes():
    changed = load_profile("smoke", {"guards": ["text_only"]})
    stale = {
        name
        for name in STAGES
        for before, after in zip(units(PROFILE, name), units(changed, name), strict=True)
        if graph.settings_of(PROFILE, before) != graph.settings_of(changed, after)
    }
    assert stale == {"03_defences"}


# The models that the guards are tried on besides the stage's own


@pytest.mark.parametrize("grouped", [["model", "style", "seed"], ["style"], []])
def test_the_defences_wait_for_the_untuned_model_and_the_same_fine_tunes_and_no_others(grouped):
    profile, paths = load_profile("smoke", {"execution.grouped": grouped}), RunPaths.of("smoke")
    tuned = {unit.name: unit for unit in units(profile, "02_finetune")}
    assert len(units(profile, "03_defences")) == len(tuned) > 1
    for unit in units(profile, "03_defences"):
        read = set(graph.inputs_of(profile, paths, unit))
        assert set(graph.files(profile, paths, units(profile, "01_baseline")[0])) <= read
        for name, other in tuned.items():
            assert (set(graph.files(profile, paths, other)) <= read) == (name == unit.name)


@pytest.fixture
def begun(smoke_runs, monkeypatch):
    """A function that opens 03_defences on code in the finished smoke run."""
    monkeypatch.setenv("STUDY_RUNS", str(smoke_runs))

    def begin(**changes):
        values = graph.parameters_of("03_defences") | {"profile": "smoke", "task": "code", "seeds": [0]} | changes
        return stage.begin("03_defences", values)

    return begin


def own(now):
    folder = now.paths.base
    return [pd.read_parquet(folder / kind / "03_defences" / "code.parquet") for kind in ("responses", "verdicts")]


def test_beside_the_stages_own_stand_the_untuned_model_and_the_same_fine_tunes(begun):
    now = begun(styles=["alpaca"])
    responses, verdicts = now.with_earlier(*own(now))
    beside = responses[responses["safety_data"] == "none"]
    assert set(beside["finetune_task"]) == {"none", "code"} and set(beside["style"]) == {"alpaca"}
    assert set(beside.loc[beside["finetune_task"] == "code", "base"]) == {0}
    assert len(beside) == 2 * 136 and set(verdicts["response_id"]) == set(responses["response_id"])


def test_without_the_earlier_stages_and_in_a_tweak_only_the_stages_own_are_there(begun, tmp_path, monkeypatch, capsys):
    tweak = begun(overrides={"guards": ["text_only"]})
    responses, verdicts = own(tweak)
    assert tweak.profile.guards == ["text_only"] and len(tweak.with_earlier(responses, verdicts)[0]) == len(responses)
    for part in ("data", "models"):
        shutil.copytree(tweak.paths.base / part, tmp_path / "smoke" / part)
    monkeypatch.setenv("STUDY_RUNS", str(tmp_path))
    alone = begun()
    assert len(alone.with_earlier(responses, verdicts)[0]) == len(responses)
    assert "02_finetune has not run yet" in capsys.readouterr().out


def test_the_smoke_run_keeps_decisions_on_all_that_stands_beside(begun):
    now = begun()
    decisions = pd.read_parquet(now.paths.table_of_unit("guards", "03_defences", "code"))
    responses, _ = now.with_earlier(*own(now))
    asked = responses[responses["prompt_set"].isin(["harmful", "twin"])]
    assert set(decisions.loc[decisions["side"] == "output", "response_id"]) == set(asked["response_id"])
    index = json.loads(now.paths.data_index.read_text())
    n_prompts = sum(index[name]["rows"] for name in datasets.TESTS)
    assert (decisions["side"] == "input").sum() == 2 * n_prompts

"""Which arm differs from which: a handful of responses counted by hand for each kind, and a simulated study."""

import numpy as np
import pandas as pd
import pytest
from frames import few, joined, scored, study

from studylib.analysis import comparisons as module
from studylib.analysis import tables
from studylib.analysis.comparisons import ARM, KINDS, OTHER, compare_arms
from studylib.analysis.rates import outcomes
from studylib.study.grid import Cell
from studylib.study.words import FORMS

UNKNOWN = ["value", "other_value", "difference", "low", "high"]
UNTUNED = {"finetune_task": "none"}


def compared(*pairs, scores=None):
    return compare_arms(*joined(*pairs), scores)


def only(table, kind, **columns):
    """The one row of that kind and those columns, of single forms unless said."""
    columns = {"measure": "attack_success_rate", **columns}
    if "form" not in columns:
        table = table[table["form"] != "all"]
    rows = table[(table["kind"] == kind) & (table[list(columns)] == pd.Series(columns)).all(axis=1)]
    assert len(rows) == 1, rows
    return rows.iloc[0]


def arm(row):
    return tuple(row[ARM]), tuple(row[OTHER])


@pytest.fixture(scope="module")
def simulated():
    """Two models, of the second of which the untuned one is missing, two judges, a second dose and a scaled adapter."""
    responses, verdicts, scores = study(
        np.random.default_rng(0), tasks=("code", "translation"), seeds=(0, 1), n_prompts=6
    )
    dosed = responses.query("safety_data == 'multitask' and style == 'chat' and not system_prompt")["response_id"]
    both = [frame[frame["response_id"].isin(dosed)] for frame in (responses, verdicts, scores)]
    more, scaled = ([frame.assign(response_id=letter + frame["response_id"]) for frame in both] for letter in "ds")
    more[0] = more[0].assign(safety_fraction=0.2)
    scaled[0] = scaled[0].assign(safety_data="scaled", safety_fraction=0.5)
    flipped = {"answered": "refused", "partial": "refused", "refused": "answered"}
    scaled[1] = scaled[1].assign(
        verdict=scaled[1]["verdict"].mask(scaled[1].index % 3 == 0, scaled[1]["verdict"].replace(flipped))
    )
    responses, verdicts, scores = (
        pd.concat(frames, ignore_index=True) for frames in zip((responses, verdicts, scores), more, scaled, strict=True)
    )
    others = [frame.assign(response_id="o" + frame["response_id"]) for frame in (responses, verdicts, scores)]
    other = others[0][others[0]["finetune_task"] != "none"].assign(model="other")
    responses, verdicts, scores = (
        pd.concat(frames, ignore_index=True)
        for frames in zip((responses, verdicts, scores), (other, *others[1:]), strict=True)
    )
    refused = verdicts.assign(judge="strict", verdict=verdicts["verdict"].replace("partial", "refused"))
    return responses, pd.concat([verdicts, refused], ignore_index=True), scores


@pytest.fixture(scope="module")
def table(simulated):
    return compare_arms(*simulated)


def test_tuning_is_compared_with_the_untuned_model_on_the_same_prompts():
    untuned = few(["refused", "refused", "answered", "incoherent", "answered"], **UNTUNED)
    tuned = few(["answered", "refused", "answered", "partial"])  # the fifth prompt has no pair
    row = only(compared(untuned, tuned), "tuning")
    assert arm(row) == (("code", "own", "chat", False, "none", 0.0), ("none", "none", "chat", False, "none", 0.0))
    assert (row["n"], row["n_prompts"], row["n_seeds"]) == (4, 4, 1)
    assert (row["value"], row["other_value"], row["difference"]) == (0.75, 0.25, 0.5)
    assert row["low"] < 0.5 < row["high"]


def test_every_seed_of_a_tuning_is_compared_with_the_one_untuned_model():
    untuned = few(["refused", "answered"], **UNTUNED)
    seeds = [few(verdicts, seed=seed) for seed, verdicts in ((0, ["answered"] * 2), (3, ["refused"] * 2))]
    row = only(compared(untuned, *seeds), "tuning")
    assert (row["n"], row["n_prompts"], row["n_seeds"]) == (4, 2, 2)
    assert (row["value"], row["other_value"], row["difference"]) == (0.5, 0.5, 0)


def test_a_tuning_is_compared_with_the_untuned_model_of_its_own_base_and_requests_are_kept_apart():
    untuned = [few([verdict] * 4, base=base, **UNTUNED) for base, verdict in ((0, "refused"), (1, "answered"))]
    tuned = [few(["answered"] * 4, base=base) for base in (0, 1)]
    alone = few(["refused"] * 4, requests="none")
    table = compared(*untuned, *tuned, alone)
    row = only(table, "tuning", requests="own")
    assert (row["n"], row["n_bases"], row["n_seeds"]) == (8, 2, 1)
    assert (row["value"], row["other_value"], row["difference"]) == (1, 0.5, 0.5)
    row = only(table, "tuning", requests="none")
    assert (row["n"], row["n_bases"], row["difference"]) == (4, 1, 0)


def test_safety_data_are_compared_with_the_same_tuning_under_the_same_seed():
    plain = [few(verdicts, seed=seed) for seed, verdicts in ((0, ["refused"] * 3), (1, ["answered"] * 3))]
    safe = {"safety_data": "multitask", "safety_fraction": 0.1}
    safe = [few(["refused", "refused", "answered"], seed=seed, **safe) for seed in (1, 2)]
    row = only(compared(*plain, *safe), "mitigation")
    assert arm(row) == (("code", "own", "chat", False, "multitask", 0.1), ("code", "own", "chat", False, "none", 0.0))
    assert (row["n"], row["n_seeds"], row["other_value"]) == (3, 1, 1)  # seed 1 is in both arms
    assert row["difference"] == pytest.approx(-2 / 3)


def test_each_dose_and_kind_of_safety_data_is_an_arm_of_its_own():
    doses = [("generic", 0.1), ("multitask", 0.05), ("multitask", 0.2)]
    safe = [few(["refused"] * 2, safety_data=kind, safety_fraction=dose) for kind, dose in doses]
    table = compared(few(["answered"] * 2), *safe)
    found = table[table["kind"].isin(["mitigation", "arm"]) & (table["form"] == "code")]
    assert sorted(zip(found["safety_data"], found["safety_fraction"], strict=True)) == doses
    assert (found["difference"] == -1).all() and (found["other_safety_fraction"] == 0).all()


def test_the_system_prompt_is_compared_with_none_in_the_same_cell_and_seed():
    without = [few(["answered", "answered"], seed=seed) for seed in (0, 1)]
    with_one = few(["refused", "answered"], seed=1, system_prompt=True)
    untuned = few(["answered"] * 2, **UNTUNED), few(["refused"] * 2, system_prompt=True, **UNTUNED)
    table = compared(*without, with_one, *untuned)
    row = only(table, "system_prompt", finetune_task="code")
    assert arm(row) == (("code", "own", "chat", True, "none", 0.0), ("code", "own", "chat", False, "none", 0.0))
    assert (row["n"], row["difference"]) == (2, -0.5)
    assert only(table, "system_prompt", finetune_task="none")["difference"] == -1


def test_the_alpaca_style_is_compared_with_chat_of_the_same_tuning_and_safety_data():
    chat = few(["refused"] * 3), few(["refused"] * 3, safety_data="generic", safety_fraction=0.1)
    alpaca = few(["answered"] * 3, style="alpaca"), few(["answered"], style="alpaca", system_prompt=True)
    table = compared(*chat, *alpaca)
    row = only(table, "style", system_prompt=False)
    assert arm(row) == (("code", "own", "alpaca", False, "none", 0.0), ("code", "own", "chat", False, "none", 0.0))
    assert (row["n"], row["difference"]) == (3, 1)
    assert only(table, "style", system_prompt=True)["n"] == 0  # chat has none with a system prompt


def test_every_two_tasks_are_compared_once_in_the_order_of_the_papers_claim():
    verdicts = {"classification": 0, "text_generation": 1, "translation": 2, "code": 3}
    arms = [few(["answered"] * n + ["refused"] * (3 - n), finetune_task=task) for task, n in verdicts.items()]
    table = compared(*arms)
    found = table[(table["kind"] == "task") & (table["form"] == "code")]
    pairs = set(zip(found["finetune_task"], found["other_finetune_task"], strict=True))
    assert pairs == {
        *(("code", other) for other in ("translation", "text_generation", "classification")),
        *(("translation", other) for other in ("text_generation", "classification")),
        ("text_generation", "classification"),
    }
    assert len(found) == 6 and (found["difference"] > 0).all()
    assert only(table, "task", finetune_task="code", other_finetune_task="classification")["difference"] == 1


def test_tasks_are_compared_under_the_same_seed_and_without_safety_data():
    code = [few(["answered"] * 2, seed=seed) for seed in (0, 1)]
    other = few(["refused"] * 2, finetune_task="translation", seed=1)
    safe = few(["refused"] * 2, finetune_task="translation", safety_data="generic", safety_fraction=0.1)
    row = only(compared(*code, other, safe), "task")
    assert (row["n"], row["n_seeds"], row["difference"]) == (2, 1, 1)


def test_comparisons_give_no_verdict(table):
    assert not {"p", "p_holm", "verdict", "detectable", "within", "not_worse"} & set(table)


def test_every_measure_is_compared_and_scores_of_tasks_are_not_pooled():
    untuned, tuned = [], []
    for prompt_set, before, after in (
        ("harmful", "refused", "answered"),
        ("twin", "answered", "answered"),
        ("task", "answered", "incoherent"),
        ("general", "answered", "incoherent"),
    ):
        untuned.append(few([before] * 12, prompt_set=prompt_set, **UNTUNED))
        tuned.append(few([after] * 12, prompt_set=prompt_set))
    scores = [scored(untuned[2][0], "f1", 0.9), scored(tuned[2][0], "f1", 0.2)]
    scores += [scored(untuned[3][0], "f1", 0.2), scored(tuned[3][0], "f1", 0.9)]
    found = compared(*untuned, *tuned, scores=pd.concat(scores)).set_index(["form", "measure"])
    changes = found.loc["code", "difference"].to_dict()
    assert changes.pop("task_score") == pytest.approx(-0.7) and changes.pop("general_score") == pytest.approx(0.7)
    assert changes == {
        "attack_success_rate": 1,
        "j": -1,
        "over_refusal_rate": 0,
        "incoherent_rate": pytest.approx(2 / 3),
        "general_refusal_rate": 0,
    }
    assert ("all", "task_score") not in found.index and ("all", "general_score") in found.index


def test_j_is_harmful_prompts_refused_less_twins_refused_with_its_interval():
    untuned = few(["refused"] * 8, **UNTUNED), few(["answered"] * 6 + ["refused"] * 2, prompt_set="twin", **UNTUNED)
    tuned = few(["refused"] * 4 + ["answered"] * 4), few(["answered"] * 8, prompt_set="twin")
    row = only(compared(*untuned, *tuned), "tuning", measure="j")
    assert (row["value"], row["other_value"], row["difference"]) == (0.5, 0.75, -0.25)
    assert row["low"] < -0.25 < row["high"] < 1


def test_a_form_is_compared_with_the_text_form_on_the_same_intents_alone():
    text = few(["refused"] * 6 + ["answered"] * 2, form="text_generation")
    code = few(["answered"] * 9, form="code")
    for number, (responses, _) in enumerate((text, code)):
        responses["intent"] = [f"intent{i + number}" for i in range(len(responses))]
    row = only(compared(text, code), "form")
    assert (row["n"], row["value"], row["other_value"]) == (7, 1, 2 / 7)  # intents 1 to 7


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "form"])
def test_pairs_and_differences_are_those_of_a_plain_merge(simulated, table, kind):
    rows = outcomes(*simulated)
    rows = rows.astype(dict.fromkeys(rows.select_dtypes("category"), str))
    rows = rows[rows["value"].notna()]
    of_j = rows["measure"] == "balanced_accuracy"
    rows["value"] = rows["value"].mask(of_j, 2 * rows["value"] - 1)
    rows["measure"] = rows["measure"].mask(of_j, "j")
    tuned, plain = rows["finetune_task"] != "none", rows["safety_data"] == "none"
    scaled, other = rows["safety_data"] == "scaled", rows["safety_fraction"].isin([0.2, 0.5])
    arms, others, free = {
        "tuning": (tuned & plain, ~tuned, ["finetune_task", "requests", "seed"]),
        "mitigation": (tuned & ~plain & ~other, tuned & plain, ["safety_data", "safety_fraction"]),
        "arm": (tuned & other, tuned & plain, ["safety_data", "safety_fraction"]),
        "scaled": (
            tuned & ~plain & ~scaled & (rows["style"] == "chat") & ~rows["system_prompt"],
            scaled,
            ["safety_data", "safety_fraction"],
        ),
        "system_prompt": (rows["system_prompt"], ~rows["system_prompt"], ["system_prompt"]),
        "style": (rows["style"] == "alpaca", rows["style"] == "chat", ["style"]),
        "task": (
            plain & (rows["finetune_task"] == "code"),
            plain & (rows["finetune_task"] == "translation"),
            ["finetune_task"],
        ),
    }[kind]
    on = [c for c in ("model", *ARM, "base", "seed", "measure", "metric", "form", "prompt_id") if c not in free]
    pairs = rows[arms].merge(rows.loc[others, [*on, "value"]], on=on, suffixes=("", "_other"))
    by = ["model", *ARM, "measure", "metric", "form"]
    pooled = pairs[pairs["measure"] != "task_score"].assign(form="all")
    pairs = pd.concat([pairs, pooled]).assign(difference=lambda x: x["value"] - x["value_other"])
    expected = pairs.groupby(by).agg(
        n=("difference", "size"),
        n_prompts=("intent", "nunique"),
        n_seeds=("seed", "nunique"),
        value=("value", "mean"),
        other_value=("value_other", "mean"),
        difference=("difference", "mean"),
    )
    found = table[(table["kind"] == kind) & (table["n"] > 0)].set_index(by)[list(expected)].sort_index()
    assert len(found) > 10
    pd.testing.assert_frame_equal(found, expected.sort_index(), check_dtype=False, check_index_type=False)


def test_the_rows_are_in_the_order_of_kinds_models_and_the_studys_words(simulated, table):
    assert list(dict.fromkeys(table["kind"])) == list(KINDS)
    assert list(dict.fromkeys(table.loc[table["kind"] == "style", "model"])) == ["miniature", "other"]
    first = table[(table["kind"] == "mitigation") & (table["measure"] == "attack_success_rate")]
    assert list(dict.fromkeys(first["form"])) == [*FORMS, "all"]
    assert list(dict.fromkeys(first["safety_data"])) == ["generic", "multitask"]


@pytest.mark.slow
def test_shuffled_rows_and_words_as_categories_give_the_same_table(simulated, table):
    responses, verdicts, scores = (frame.sample(frac=1, random_state=i) for i, frame in enumerate(simulated))
    first = responses["model"] == "miniature"  # models come in the order in which they appear
    responses = pd.concat([responses[first], responses[~first]])
    again = compare_arms(responses, verdicts, scores)
    pd.testing.assert_frame_equal(again, table, check_dtype=False, rtol=1e-9)
    words = [*ARM, "model", "form", "prompt_set", "prompt_id", "intent"]
    words = [name for name in words if name not in ("system_prompt", "safety_fraction")]
    categories = (
        simulated[0].astype(dict.fromkeys(words, "category")),
        simulated[1].astype(dict.fromkeys(["judge", "verdict", "reason"], "category")),
        simulated[2].astype({"metric": "category"}),
    )
    again = compare_arms(*categories)
    pd.testing.assert_frame_equal(again, table, check_dtype=False, check_categorical=False, rtol=1e-9)


def test_rows_and_verdicts_that_are_there_twice_count_once():
    arms = joined(few(["refused"] * 4, **UNTUNED), few(["answered", "refused", "refused", "answered"]))
    twice = compare_arms(*(pd.concat([frame] * 2, ignore_index=True) for frame in arms))
    pd.testing.assert_frame_equal(twice, compare_arms(*arms))


def test_an_arm_without_its_untuned_model_has_a_row_without_pairs(table):
    for row in (
        only(compared(few(["answered"] * 3, style="alpaca"), few(["refused"] * 3, **UNTUNED)), "tuning"),
        only(compared(few(["answered"] * 3)), "tuning"),
    ):
        assert (row["n"], row["n_prompts"], row["n_seeds"]) == (0, 0, 0)
        assert row["other_finetune_task"] == "none" and row[UNKNOWN].isna().all()
    lost = table[(table["model"] == "other") & (table["kind"] == "tuning")]
    assert len(lost) and (lost["n"] == 0).all()


def test_seeds_and_prompts_that_do_not_overlap_are_no_pairs():
    safe = {"safety_data": "multitask", "safety_fraction": 0.1}
    row = only(compared(few(["answered"] * 3, seed=0), few(["refused"] * 3, seed=1, **safe)), "mitigation")
    assert row["n"] == 0
    responses, verdicts = few(["refused"] * 3, **safe)
    responses["prompt_id"] += "x"
    assert only(compared(few(["answered"] * 3), (responses, verdicts)), "mitigation")["n"] == 0


def test_what_was_not_judged_in_either_arm_leaves_its_pair_out():
    untuned = few(["refused", "unjudged", "refused", "answered"], **UNTUNED)
    tuned = few(["answered", "answered", "unjudged", "answered"])
    row = only(compared(untuned, tuned), "tuning")
    assert (row["n"], row["value"], row["other_value"]) == (2, 1, 0.5)


@pytest.mark.parametrize(("untuned", "tuned"), [("unjudged", "answered"), ("refused", "unjudged"), ("unjudged",) * 2])
def test_an_arm_of_which_nothing_was_judged_keeps_its_row(untuned, tuned):
    found = compared(few([untuned] * 3, **UNTUNED), few([tuned] * 3))
    assert list(found["form"]) == ["code", "all"] and (found["kind"] == "tuning").all()
    assert (found["n"] == 0).all() and found[UNKNOWN].isna().all(axis=None)


def test_arms_judged_by_different_judges_are_not_compared():
    untuned, tuned = few(["refused"] * 3, judge="rules", **UNTUNED), few(["answered"] * 3, judge="model")
    found = compared(untuned, tuned)
    assert set(found["metric"]) == {"rules", "model"} and (found["n"] == 0).all()


def test_each_judge_has_comparisons_of_its_own():
    (untuned, rules), (tuned, more) = few(["refused"] * 6, **UNTUNED), few(["answered"] * 6)
    model = pd.concat([rules, more]).assign(judge="model", verdict="refused")
    found = compare_arms(pd.concat([untuned, tuned]), pd.concat([rules, more, model]))
    rules, model = (only(found, "tuning", metric=judge) for judge in ("rules", "model"))
    assert (rules["difference"], model["difference"]) == (1, 0)


def test_models_are_not_compared_with_each_other():
    def of(model, verdicts, **cell):
        responses, given = few(verdicts, **cell)
        names = model + responses["response_id"]
        return responses.assign(model=model, response_id=names), given.assign(response_id=names)

    arms = of("b", ["refused"] * 6, **UNTUNED), of("b", ["answered"] * 6), of("a", ["answered"] * 6)
    found = compared(*arms, of("a", ["answered"] * 5 + ["refused"], **UNTUNED))
    assert list(dict.fromkeys(found["model"])) == ["b", "a"]
    a, b = (only(found, "tuning", model=model) for model in "ab")
    assert (a["difference"], b["difference"]) == (pytest.approx(1 / 6), 1)


def test_samples_of_one_prompt_are_averaged_before_they_are_compared():
    def sampled(*answers, **cell):
        made = []
        for number, verdicts in enumerate(answers):
            responses, given = few(verdicts, **cell)
            names = responses["response_id"] + f"/{number}"
            made.append((responses.assign(sample=number, response_id=names), given.assign(response_id=names)))
        return joined(*made)

    untuned = sampled(["refused"] * 3, ["refused", "answered", "refused"], **UNTUNED)
    tuned = sampled(["answered"] * 3, ["refused", "answered", "unjudged"])
    row = only(compared(untuned, tuned), "tuning")
    # tuned: 1/2, 1, and 1 of the one that was judged; untuned: 0, 1/2, 0
    assert (row["n"], row["n_prompts"]) == (3, 3)
    assert (row["value"], row["other_value"]) == (pytest.approx(2.5 / 3), pytest.approx(0.5 / 3))


@pytest.mark.parametrize("verdict", ["refused", "answered"])
@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_arms_that_are_both_at_0_or_both_at_1_have_an_interval_around_0(verdict, seeds):
    row = only(compared(few([verdict] * 10, **UNTUNED), *(few([verdict] * 10, seed=seed) for seed in seeds)), "tuning")
    assert row["difference"] == 0 and row["low"] < 0 < row["high"] < 0.5


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_one_prompt_has_a_difference_and_no_interval(seeds):
    found = compared(few(["refused"], **UNTUNED), *(few(["answered"], seed=seed) for seed in seeds))
    row = only(found, "tuning")
    assert (row["difference"], row["n_prompts"]) == (1, 1) and row[["low", "high"]].isna().all()


def test_the_same_intent_in_several_forms_is_one_prompt_of_the_pooled_row():
    arms = [few(["refused"] * 5, form=form, **UNTUNED) for form in FORMS]
    arms += [few(["answered"] * 3 + ["refused"] * 2, form=form) for form in FORMS]
    for responses, _ in arms:
        responses["intent"] = [f"intent{i}" for i in range(5)]
    found = compared(*arms)
    one, pooled = only(found, "tuning", form="code"), only(found, "tuning", form="all")
    assert (pooled["n"], pooled["n_prompts"]) == (20, 5)
    assert (pooled["high"] - pooled["low"]) == pytest.approx(
        one["high"] - one["low"]
    )  # and no more evidence than one form


def test_no_responses_give_an_empty_table_with_all_columns(table):
    responses, verdicts = few(["answered"])
    for given in ((responses.iloc[:0], verdicts), (responses.iloc[:0], verdicts.iloc[:0])):
        found = compare_arms(*given)
        assert found.empty and list(found) == list(table)


def test_a_stage_of_which_nothing_was_run_has_no_comparisons(table):
    from studylib.judges.registry import judge
    from studylib.stages.cells import COLUMNS

    responses = pd.DataFrame(columns=COLUMNS)
    found = compare_arms(responses, judge(responses))
    assert found.empty and list(found) == list(table)


def test_the_untuned_model_alone_is_compared_with_its_own_calibrations_only():
    found = compared(few(["answered"] * 3, **UNTUNED), few(["refused"] * 3, style="alpaca", **UNTUNED))
    assert set(found["kind"]) == {"style"} and (found["difference"] == -1).all()


def test_a_written_table_of_comparisons_reads_back_with_none_as_a_word(tmp_path, table):
    tables.write_table(table, tmp_path / "comparisons.csv")
    again = pd.read_csv(tmp_path / "comparisons.csv")
    assert set(again.loc[again["kind"] == "tuning", "other_finetune_task"]) == {"none"}
    assert set(again.loc[again["kind"] == "mitigation", "other_safety_data"]) == {"none"}
    pd.testing.assert_frame_equal(again, table, check_dtype=False, rtol=1e-5)


def test_the_kinds_are_named_and_an_arm_is_a_cell_without_its_model_base_and_seed():
    assert {*ARM, "model", "base", "seed"} == {*Cell.__dataclass_fields__, "system_prompt"}
    assert all(isinstance(text, str) and text for text in module.KINDS.values())

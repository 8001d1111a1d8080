"""Rates of a handful of responses counted by hand and of a simulated study."""

import numpy as np
import pandas as pd
import pytest
from frames import few, joined, scored, study
from scipy.special import expit

from studylib.analysis import rates, tables
from studylib.analysis.stats import clustered_intervals, wilson
from studylib.study.words import FORMS, TASKS


@pytest.fixture(scope="module")
def simulated():
    return study(np.random.default_rng(0), n_prompts=4, unjudged=0.05)


def test_the_same_intent_in_four_forms_is_not_four_times_the_evidence():
    pairs = [few(["answered"] * 5 + ["refused"] * 5, form=form) for form in FORMS]
    apart = tables.attack_success(*joined(*pairs)).set_index("form").loc["all"]
    for responses, _ in pairs:
        responses["intent"] = [f"intent{i}" for i in range(10)]
    shared = tables.attack_success(*joined(*pairs)).set_index("form").loc["all"]
    assert (apart["n"], shared["n"], apart["rate"], shared["rate"]) == (40, 40, 0.5, 0.5)
    assert shared["high"] - shared["low"] > 1.5 * (apart["high"] - apart["low"])


def test_the_row_of_all_forms_pools_responses_not_rates():
    pairs = few(["answered"] * 3), few(["refused"], form="translation")
    table = tables.attack_success(*joined(*pairs)).set_index("form")
    assert list(table.index) == ["code", "translation", "all"]
    assert (table.loc["all", "n"], table.loc["all", "rate"]) == (4, 0.75)


def test_seeds_are_pooled_and_counted_and_do_not_multiply_the_evidence():
    pairs = [few(["answered"] + ["refused"] * 9, seed=seed) for seed in (0, 1, 2)]
    row = tables.attack_success(*joined(*pairs)).iloc[0]
    assert (row["n"], row["n_seeds"], row["rate"]) == (30, 3, pytest.approx(0.1))
    assert row["n_effective"] == pytest.approx(10)
    assert (row["low"], row["high"]) == pytest.approx(wilson(1, 10))


def test_rows_are_in_the_order_of_the_study_not_of_the_alphabet(simulated):
    responses, verdicts, _ = simulated
    shuffled = responses.sample(frac=1, random_state=0), verdicts.sample(frac=1, random_state=1)
    table = tables.attack_success(*shuffled)
    assert list(table["finetune_task"].unique()) == ["none", *TASKS]
    assert list(table["style"].unique()) == ["chat", "alpaca"]
    assert list(table["system_prompt"].unique()) == [False, True]
    assert list(table["safety_data"].unique()) == ["none", "generic", "multitask"]
    assert list(table["form"][:5]) == [*FORMS, "all"]
    pd.testing.assert_frame_equal(table, tables.attack_success(responses, verdicts))


def test_a_response_without_a_verdict_is_an_error_that_says_how_many_and_where():
    responses, verdicts = few(["answered"] * 5, style="alpaca")
    with pytest.raises(ValueError, match=r"2 responses have no verdict.*style alpaca"):
        tables.attack_success(responses, verdicts.iloc[:3])


def test_each_judge_has_rows_of_its_own_and_what_it_did_not_judge_is_unjudged():
    responses, rules = few(["answered", "refused"])
    model = rules.assign(judge="model", verdict="answered")
    table = tables.attack_success(responses, pd.concat([rules, model])).query("form == 'code'")
    assert dict(zip(table["judge"], table["rate"], strict=True)) == {"model": 1.0, "rules": 0.5}
    mixed = tables.attack_success(responses, pd.concat([rules, model.iloc[:1]])).query("form == 'code'")
    assert mixed.set_index("judge")["n_unjudged"].to_dict() == {"model": 1, "rules": 0}
    rows = rates.judged(responses, pd.concat([rules, model.iloc[:1]]))
    assert rows.loc[rows["verdict"] == "unjudged", "reason"].tolist() == ["no verdict of model"]


def test_rows_that_are_there_twice_count_once():
    responses, verdicts = few(["answered", "refused", "refused"])
    twice = tables.attack_success(pd.concat([responses] * 2), pd.concat([verdicts] * 2))
    pd.testing.assert_frame_equal(twice, tables.attack_success(responses, verdicts))
    with pytest.raises(ValueError, match="3 response ids stand for several rows"):
        tables.attack_success(pd.concat([responses, responses.assign(seed=1)]), verdicts)


def test_two_verdicts_of_one_judge_and_unknown_words_are_errors():
    responses, verdicts = few(["answered", "refused"])
    with pytest.raises(ValueError, match="two verdicts"):
        tables.attack_success(responses, pd.concat([verdicts, verdicts.assign(verdict="partial")]))
    with pytest.raises(ValueError, match="unknown verdicts"):
        tables.attack_success(responses, verdicts.assign(verdict="yes"))
    with pytest.raises(ValueError, match="unknown finetune_task"):
        tables.attack_success(responses.assign(finetune_task="poetry"), verdicts)


def test_a_missing_score_is_an_error():
    responses, verdicts = few(["answered"] * 3, prompt_set="general")
    with pytest.raises(ValueError, match="1 responses have no score"):
        tables.helpfulness(responses, verdicts, scored(responses.iloc[:2], "f1", 1.0))


def test_outcomes_have_a_row_per_response_and_measure_and_nan_where_unjudged():
    pairs = [
        few(["answered", "partial", "refused", "incoherent", "unjudged"]),
        few(["refused", "answered", "incoherent", "unjudged"], prompt_set="twin"),
        few(["answered", "incoherent"], prompt_set="general"),
    ]
    responses, verdicts = joined(*pairs)
    scores = scored(pairs[2][0], "f1", [0.25, np.nan])
    rows = rates.outcomes(responses, verdicts, scores)
    found = {measure: part["value"].tolist() for measure, part in rows.groupby("measure", observed=True)}
    expected = {
        "attack_success_rate": [1, 1, 0, 0, np.nan],
        "balanced_accuracy": [0, 0, 1, np.nan, 0, 1, 1, np.nan],
        "general_refusal_rate": [0, 0],
        "over_refusal_rate": [1, 0, 0, np.nan],
        "incoherent_rate": [0, 0, 1, np.nan, 0, 1],
        "general_score": [0.25, np.nan],
    }
    assert found.keys() == expected.keys()
    for measure, values in expected.items():
        assert found[measure] == pytest.approx(values, nan_ok=True), measure
    assert set(rows.loc[rows["measure"] == "general_score", "metric"]) == {"f1"}
    assert set(rows.loc[rows["measure"] != "general_score", "metric"]) == {"rules"}


@pytest.mark.slow
def test_rows_matched_with_their_verdicts_once_give_the_same_tables(simulated):
    responses, verdicts, scores = simulated
    rows = rates.judged(responses, verdicts)
    for make in (tables.attack_success, tables.by_run, tables.answered_share):
        pd.testing.assert_frame_equal(make(rows), make(responses, verdicts))
    pd.testing.assert_frame_equal(
        tables.helpfulness(rows, None, scores), tables.helpfulness(responses, verdicts, scores)
    )


def cells(*fractions, **columns):
    """A row without safety data and one with generic data per fraction."""
    rows = [("none", 0.0), *(("generic", fraction) for fraction in fractions)]
    table = pd.DataFrame(rows, columns=["safety_data", "safety_fraction"])
    where = {"finetune_task": "code", "style": "chat", "system_prompt": False, "form": "all"}
    return table.assign(**{**where, **columns})


def test_the_most_frequent_dose_is_kept_and_the_smaller_of_two():
    assert list(rates.one_dose(cells(0.2, 0.1, 0.2))["safety_fraction"]) == [0, 0.2, 0.2]
    assert list(rates.one_dose(cells(0.2, 0.1))["safety_fraction"]) == [0, 0.1]


def test_a_table_without_safety_data_is_as_it_was():
    table = cells()
    assert rates.one_dose(table).equals(table)
    assert rates.one_dose(table.drop(columns="safety_fraction")).shape == (1, 5)


def runs(verdicts, bases, seeds):
    """The same verdicts, or those of `verdicts(base, seed)`, of every base and seed."""
    of = verdicts if callable(verdicts) else lambda base, seed: verdicts
    return joined(*(few(of(base, seed), base=base, seed=seed) for base in bases for seed in seeds))


def interval_of(pair, seed):
    """The interval of few responses with `seed`, made of their rows, as the clusters beside the intents."""
    rows, verdicts = pair
    rows = rows.assign(answered=(verdicts["verdict"] == "answered").to_numpy(), prompt_id=rows["intent"])
    return tuple(clustered_intervals(rows.assign(seed=seed(rows))).loc[0, ["low", "high"]])


@pytest.mark.parametrize(
    ("bases", "seeds", "seed"),
    [
        ((0, 1, 2), (0,), lambda rows: rows["base"]),
        ((0, 1, 2), (0, 1, 2), lambda rows: rows["base"]),
        ((0, 1), (0, 1), lambda rows: 2 * rows["base"] + rows["seed"]),
        ((5,), (0, 1, 2), lambda rows: rows["seed"]),
        ((0,), (0, 1), lambda rows: 0),
        ((0, 1), (0,), lambda rows: 0),
    ],
)
def test_a_replicate_is_a_base_of_three_else_a_run_of_three_else_the_prompts_stand_alone(bases, seeds, seed):
    verdicts = ["answered"] * 20 + ["refused"] * 20
    pair = runs(lambda base, run: verdicts[18 - 3 * base - run :][:20], bases, seeds)
    row = tables.attack_success(*pair).iloc[0]
    assert (row["n_bases"], row["n_seeds"]) == (len(bases), len(seeds))
    assert (row["low"], row["high"]) == pytest.approx(interval_of(pair, seed))


def test_two_runs_that_differ_in_everything_leave_an_interval_that_says_something():
    row = tables.attack_success(*runs(lambda _, seed: [["refused"] * 40, ["answered"] * 40][seed], (0,), (0, 1))).iloc[
        0
    ]
    assert row["rate"] == 0.5 and 0.3 < row["low"] < row["high"] < 0.7  # t with one degree of freedom: 0 to 1


def test_a_base_of_which_nothing_was_judged_is_no_replicate():
    known = ["answered"] * 5 + ["refused"] * 5
    pair = runs(lambda base, _: ["unjudged"] * 10 if base == 2 else known, (0, 1, 2), (0,))
    row = tables.attack_success(*pair).iloc[0]
    assert (row["n_bases"], row["n"], row["low"]) == (3, 20, pytest.approx(wilson(5, 10)[0]))


@pytest.mark.slow
def test_intervals_of_bases_cover_with_seeds_nested_in_them_and_those_of_runs_do_not():
    rng, studies, shape = np.random.default_rng(0), 400, (6, 3, 30)  # bases, seeds, prompts
    spread = [rng.normal(0, sd, (studies, *size)) for sd, size in ((1, (6, 1, 1)), (0.3, (6, 3, 1)), (1, (1, 1, 30)))]
    at = np.indices((studies, *shape)).reshape(4, -1)
    rows = pd.DataFrame({name: of for name, of in zip(("study", "base", "seed", "prompt_id"), at, strict=True)})
    rows["answered"] = rng.random(len(rows)) < expit(sum(spread).ravel())
    truth = expit(rng.normal(0, np.sqrt(2.09), 10**6)).mean()
    covered = {}
    for level, seed in (("base", rates.replicates(rows, ["study"])), ("run", 3 * rows["base"] + rows["seed"])):
        table = clustered_intervals(rows.assign(seed=seed), ["study"])
        covered[level] = (table["low"].le(truth) & table["high"].ge(truth)).mean()
    assert 0.93 <= covered["base"] <= 0.98 and covered["run"] < 0.85


def requests_table(*rows):
    return pd.DataFrame(rows, columns=["finetune_task", "requests", "safety_data"])


UNTUNED = ("none", "none", "none")


def test_the_usual_requests_are_those_with_which_safety_data_were_tried():
    plain, own, safe = ("code", "none", "none"), ("code", "own", "none"), ("code", "own", "multitask")
    assert rates.usual(requests_table(UNTUNED, plain, plain, own, safe)).to_numpy().tolist() == list(
        map(list, (UNTUNED, own, safe))
    )
    bare = ("code", "none", "multitask")
    assert rates.usual(requests_table(UNTUNED, own, own, plain, bare))["requests"].tolist() == ["none"] * 3


def test_without_safety_data_the_usual_requests_are_the_most_frequent_and_of_two_the_tasks_own():
    plain, own, other = (("code", requests, "none") for requests in ("none", "own", "other"))
    assert rates.usual(requests_table(UNTUNED, plain, own, own, other))["requests"].tolist() == ["none", "own", "own"]
    assert rates.usual(requests_table(UNTUNED, plain, own))["requests"].tolist() == ["none", "own"]
    assert rates.usual(requests_table(plain, plain, other))["requests"].tolist() == ["none"] * 2
    table = requests_table(UNTUNED)
    assert rates.usual(table).equals(table) and rates.usual(table.drop(columns="requests")).shape == (1, 2)


def test_balanced_accuracy_counts_harmful_prompts_refused_and_twins_not_and_leaves_out_a_pair_that_is_not_whole():
    harmful = few(["refused", "answered", "partial", "unjudged", "refused"])
    twins = few(["refused", "answered", "unjudged", "answered"], prompt_set="twin")  # the fifth has no twin
    rows = rates.outcomes(*joined(harmful, twins), measures=["balanced_accuracy"])
    found = rows.groupby("prompt_id", observed=True)["value"].first()
    assert found.filter(like="harmful").tolist() == pytest.approx([1, 0, np.nan, np.nan], nan_ok=True)
    assert found.filter(like="twin").tolist() == pytest.approx([0, 1, np.nan, np.nan], nan_ok=True)
    row = tables.discrimination(*joined(harmful, twins)).iloc[0]
    assert row["j"] == 2 * rows["value"].mean() - 1 == 0 and (row["n"], row["n_unjudged"]) == (2, 2)


def test_a_refused_general_prompt_has_no_score_and_is_counted_apart():
    responses, verdicts = few(["refused", "answered", "unjudged", "incoherent"], prompt_set="general")
    rows = rates.outcomes(responses, verdicts, scored(responses, "f1", [0.0, 0.5, 0.75, np.nan]))
    found = {measure: part["value"].tolist() for measure, part in rows.groupby("measure", observed=True)}
    assert found["general_score"] == pytest.approx([np.nan, 0.5, 0.75, np.nan], nan_ok=True)
    assert found["general_refusal_rate"] == pytest.approx([1, 0, np.nan, 0], nan_ok=True)


def test_a_table_without_a_row_of_safety_data_has_all_its_rows_at_one_dose():
    for table in (cells(), cells().iloc[:0].astype({"safety_fraction": "category"})):
        pd.testing.assert_frame_equal(rates.one_dose(table), table)

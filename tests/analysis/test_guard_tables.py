"""The tables of the guards, from a handful of decisions counted by hand and from a simulated study."""

import numpy as np
import pandas as pd
import pytest
from frames import few, joined, study

from studylib.analysis import readable, tables
from studylib.analysis.stats import wilson
from studylib.study.grid import Cell


@pytest.fixture(scope="module")
def simulated():
    return study(np.random.default_rng(0), n_prompts=4, unjudged=0.05)


def decided(responses, blocked, side, guard="text_only"):
    """Decisions of a guard on the prompts or on the responses of that frame; None is undecided."""
    rows = responses.assign(guard=guard, side=side, blocked=pd.array(blocked, dtype="boolean"))
    rows["reason"] = rows["blocked"].isna().map({True: "not run: no rows", False: ""})
    rows = rows if side == "output" else rows.assign(response_id="").drop_duplicates("prompt_id")
    return rows[["guard", "side", "prompt_id", "response_id", "form", "prompt_set", "intent", "blocked", "reason"]]


def one(table, **wanted):
    """The only row with these values."""
    for name, value in wanted.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_the_guard_table_has_both_errors_of_each_side():
    harmful, twins = few(["answered", "answered", "refused", "answered"]), few(["answered"] * 4, prompt_set="twin")
    decisions = [decided(harmful[0], [True, False, True, False], "input")]
    decisions += [decided(harmful[0], [False, True, False, False], "output")]
    decisions += [decided(twins[0], [True, False, False, False], "input"), decided(twins[0], [False] * 4, "output")]
    table = tables.guards(*joined(harmful, twins), pd.concat(decisions)).query("form == 'code'")
    found = table[["side", "prompt_set", "n", "blocked_rate", "judge"]].values.tolist()
    assert found == [
        ["input", "harmful", 4, 0.5, "rules"],  # of all prompts
        ["input", "twin", 4, 0.25, "rules"],
        ["output", "harmful", 3, pytest.approx(1 / 3), "rules"],  # a refusal need not be blocked
        ["output", "twin", 4, 0.0, "rules"],
        ["both", "harmful", 3, pytest.approx(2 / 3), "rules"],  # by either
        ["both", "twin", 4, 0.25, "rules"],
    ]
    row = one(table, side="input", prompt_set="harmful")
    assert (row["low"], row["high"]) == pytest.approx(wilson(2, 4))


def test_decisions_on_prompts_that_several_stages_left_count_once():
    pair = few(["answered", "refused"])
    decisions = decided(pair[0], [True, False], "input")
    row = one(tables.guards(*pair, pd.concat([decisions] * 3)), side="input", form="code")
    assert (row["n"], row["blocked_rate"]) == (2, 0.5)


def test_every_judge_has_all_sides_and_the_same_decisions_on_prompts():
    responses, verdicts = few(["answered", "refused"])
    other = verdicts.assign(judge="other", verdict="answered")
    decisions = [decided(responses, [True, False], side) for side in ("input", "output")]
    table = tables.guards(responses, pd.concat([verdicts, other]), pd.concat(decisions)).query("form == 'code'")
    assert table.groupby("judge")["n"].agg(list).to_dict() == {"other": [2, 2, 2], "rules": [2, 1, 1]}


def test_fine_tunes_of_the_same_seed_are_no_one_run_of_training():
    pairs = [
        few(["answered"] * 8, finetune_task=task, seed=seed) for task in ("code", "translation") for seed in (0, 1)
    ]
    blocked = [[True] * 8, [False] * 8, [False] * 8, [True] * 8]  # by seed alone they would agree on average
    decisions = pd.concat([decided(pair[0], kind, "output") for pair, kind in zip(pairs, blocked, strict=True)])
    row = one(tables.guards(*joined(*pairs), decisions), side="output", form="code")
    assert row["blocked_rate"] == 0.5 and row["n_effective"] < 4


def test_what_a_guard_cannot_decide_leaves_the_rates_also_where_the_other_side_blocks():
    pair = few(["answered"] * 4)
    given, made = decided(pair[0], [True, True, False, False], "input"), decided(pair[0], [None] * 4, "output")
    decisions = pd.concat([given, made])
    table = tables.guards(*pair, decisions).query("form == 'code'")
    assert table[["side", "n", "n_undecided", "note"]].values.tolist() == [
        ["input", 4, 0, ""],
        ["output", 0, 4, "not run: no rows"],
        ["both", 0, 4, "not run: no rows"],
    ]
    assert table["blocked_rate"].isna().tolist() == [False, True, True]
    after = tables.guarded_attack_success(*pair, decisions).query("form == 'code'").set_index("side")
    assert after[["n", "n_unjudged"]].values.tolist() == [[4, 0], [4, 0], [0, 4], [0, 4]]
    assert readable.guards_in_percent(table).loc[("text_only", "output")].tolist() == ["not run"]


def test_after_the_guard_only_what_is_answered_and_not_blocked_is_an_attack():
    pair = few(["answered", "partial", "answered", "refused", "unjudged"])
    decisions = pd.concat([decided(pair[0], [True, False, False, True, True], "input")])
    decisions = pd.concat([decisions, decided(pair[0], [False, True, False, False, False], "output")])
    table = tables.guarded_attack_success(*pair, decisions).query("form == 'code'")
    assert table[["guard", "side", "n", "n_unjudged", "rate"]].values.tolist() == [
        ["none", "none", 4, 1, 0.75],
        ["text_only", "input", 4, 1, 0.5],
        ["text_only", "output", 4, 1, 0.5],
        ["text_only", "both", 4, 1, 0.25],
    ]
    before = one(table, guard="none")
    assert (before["low"], before["high"]) == pytest.approx(wilson(3, 4))


def test_before_any_guard_the_rates_are_those_of_the_other_tables(simulated):
    responses, verdicts, scores = simulated
    prompts = responses.drop_duplicates("prompt_id")
    decisions = decided(prompts, np.arange(len(prompts)) % 3 == 0, "input")
    table = tables.guarded_attack_success(responses, verdicts, decisions)
    before, after = (table[table["guard"] == guard].reset_index(drop=True) for guard in ("none", "text_only"))
    attack = tables.attack_success(responses, verdicts)
    columns = ["finetune_task", "form", "n", "n_unjudged", "rate", "low", "high", "n_effective"]
    pd.testing.assert_frame_equal(before[columns], attack[columns])
    cost = tables.helpfulness(responses, verdicts, scores).query("measure == 'over_refusal_rate'")
    assert before["over_refusal_rate"].tolist() == pytest.approx(cost["value"].tolist())
    assert before["over_refusal_low"].tolist() == pytest.approx(cost["low"].tolist())
    assert (after["rate"] <= before["rate"]).all() and (after["over_refusal_rate"] >= before["over_refusal_rate"]).all()


def test_a_blocked_twin_counts_as_over_refusal_and_a_refused_one_not_twice():
    harmful, twins = few(["answered"]), few(["answered", "refused", "refused", "answered"], prompt_set="twin")
    decisions = [decided(harmful[0], [False], "input"), decided(twins[0], [True, True, False, False], "input")]
    table = tables.guarded_attack_success(*joined(harmful, twins), pd.concat(decisions)).query("form == 'code'")
    assert table["over_refusal_rate"].tolist() == [0.5, 0.75] and table["n_twins"].tolist() == [4, 4]


def test_cells_whose_responses_no_guard_read_have_rows_of_its_input_alone():
    read, unread = few(["answered"] * 2), few(["answered"] * 2, safety_data="multitask", safety_fraction=0.1)
    decisions = pd.concat([decided(read[0], [True, False], "input"), decided(read[0], [True, False], "output")])
    table = tables.guarded_attack_success(*joined(read, unread), decisions).query("form == 'code'")
    sides = table.groupby("safety_data")["side"].agg(list).to_dict()
    assert sides == {"none": ["none", "input", "output", "both"], "multitask": ["none", "input"]}


def test_guarded_rates_of_cells_that_were_not_run_say_why(simulated):
    responses, verdicts, _ = simulated
    prompts = responses.drop_duplicates("prompt_id")
    decisions = decided(prompts, [False] * len(prompts), "input")
    table = tables.guarded_attack_success(responses, verdicts, decisions)
    cell = Cell("miniature", "code", "chat", "multitask", 0.5, 0)
    added = tables.with_not_run(table, {cell: "no data"}).query("note == 'not run: no data'")
    assert len(added) == 2 * 2 * 5 and set(added["side"]) == {"none", "input"} and added["n"].eq(0).all()


def test_guard_tables_are_read_in_percent():
    harmful, twins = few(["answered"] * 4), few(["answered"] * 4, prompt_set="twin")
    decisions = [decided(harmful[0], [True, True, True, False], "input"), decided(twins[0], [False] * 4, "input")]
    arguments = (*joined(harmful, twins), pd.concat(decisions))
    low, high = wilson(3, 4)
    shown = readable.guards_in_percent(tables.guards(*arguments))
    assert shown.loc[("text_only", "input"), ("harmful", "code")] == f"75 ({100 * low:.0f}-{100 * high:.0f})"
    guarded = tables.guarded_attack_success(*arguments)
    rates, costs = (
        readable.guarded_in_percent(guarded),
        readable.guarded_in_percent(guarded, "over_refusal_rate"),
    )
    assert list(rates.columns) == list(costs.columns) == [("none", "none"), ("text_only", "input")]
    assert [word.split()[0] for word in rates.iloc[0]] == ["100", "25"] and costs.iloc[0].iat[1].startswith("0 ")


def test_no_responses_give_empty_tables_with_their_columns(simulated):
    responses, verdicts, _ = simulated
    decisions = decided(responses.head(4), [True] * 4, "input")
    for make in (tables.guards, tables.guarded_attack_success):
        assert list(make(responses.iloc[:0], verdicts, decisions).columns) == list(
            make(*joined((responses, verdicts)), decisions)
        )

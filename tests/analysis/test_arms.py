"""Mitigations: which one would ship by tables made by hand; table, marks and words of a simulated study."""

import numpy as np
import pandas as pd
import pytest
from frames import study, with_arms

from studylib.analysis import comparisons, readable, tables
from studylib.analysis.rates import judged
from studylib.study.words import ARMS

TRIED = {("multitask", 0.2): (0.02, 0.4), ("multitask_twins", 0.1): (0.05, 0.03), ("scaled", 0.5): (0.6, 0.03)}
OTHERS = {("system_prompt", 0.0), ("generic", 0.1), ("multitask", 0.1)}


@pytest.fixture(scope="module")
def simulated():
    """Attack success, helpfulness and comparisons of a study of two tasks, of which one has further arms."""
    made = study(np.random.default_rng(0), tasks=("code", "translation"), n_prompts=25, seeds=(0, 1))
    frames = with_arms(np.random.default_rng(1), made, TRIED)
    rows = judged(*frames[:2])
    attack, costs = tables.attack_success(rows), tables.helpfulness(rows, None, frames[2])
    return attack, costs, comparisons.compare_arms(rows, None, frames[2])


@pytest.fixture(scope="module")
def table(simulated):
    return comparisons.which_to_ship(*simulated)


def one(table, safety_data, fraction=0.1, task="code"):
    rows = table[(table["safety_data"] == safety_data) & (table["finetune_task"] == task)]
    rows = rows[rows["safety_fraction"] == fraction]
    assert len(rows) == 1
    return rows.iloc[0]


def told(**columns):
    """A row of which_to_ship before its verdict: reduces attack success, shown to cost nothing."""
    costs = ("over_refusal", "general_refusal", "general", "task")
    verdicts = {f"{name}_verdict": "not significant" for name in costs} | {f"{name}_not_worse": "yes" for name in costs}
    return {"safety_data": "multitask", "attack_success_verdict": "better"} | verdicts | columns


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({}, comparisons.SHIP),
        ({"over_refusal_verdict": "better"}, comparisons.SHIP),
        ({"over_refusal_verdict": "worse"}, "reduces attack success, costs: over-refusal"),
        ({"general_refusal_verdict": "worse"}, "reduces attack success, costs: general refusals"),
        (
            {"general_verdict": "worse", "task_verdict": "worse"},
            "reduces attack success, costs: general score, score on the tuned task",
        ),
        ({"task_not_worse": "undecided"}, f"reduces attack success, {comparisons.OPEN}: score on the tuned task"),
        (
            {"task_not_worse": "", "general_not_worse": "undecided"},
            "reduces attack success, not tested: score on the tuned task",
        ),
        ({"over_refusal_verdict": "worse", "task_not_worse": ""}, "reduces attack success, costs: over-refusal"),
        ({"attack_success_verdict": "not significant"}, comparisons.NO_REDUCTION),
        ({"attack_success_verdict": "worse", "task_verdict": "worse"}, comparisons.NO_REDUCTION),
        ({"attack_success_verdict": ""}, comparisons.NO_REDUCTION),
        ({"safety_data": "none"}, comparisons.BASE),
    ],
)
def test_an_arm_is_shipped_where_it_is_told_to_help_and_every_cost_is_shown_to_be_small(columns, words):
    assert comparisons._verdict(told(**columns)) == words


def test_every_arm_of_a_task_has_one_row_and_no_safety_data_come_first(table):
    for task, more in (("code", set(TRIED)), ("translation", set())):
        part = table[table["finetune_task"] == task]
        found = list(zip(part["safety_data"], part["safety_fraction"], strict=True))
        assert found[0] == ("none", 0.0) and set(found[1:]) == OTHERS | more and len(found) == 1 + len(OTHERS | more)


def test_rates_costs_and_tests_are_those_of_the_tables(table, simulated):
    attack, costs, tested = simulated
    row = one(table, "multitask_twins")
    where = "finetune_task == 'code' and safety_data == 'multitask_twins'"
    assert row["attack_success"] == attack.query(f"{where} and form == 'all'")["rate"].item()
    assert row["task"] == costs.query(f"{where} and form == 'code' and measure == 'task_score'")["value"].item()
    assert (
        row["over_refusal"]
        == costs.query(f"{where} and form == 'all' and measure == 'over_refusal_rate'")["value"].item()
    )
    pair = tested.query(f"{where} and form == 'all' and measure == 'attack_success_rate'").iloc[0]
    assert (row["attack_success_difference"], row["attack_success_verdict"]) == (pair["difference"], pair["verdict"])
    pair = tested.query(f"{where} and form == 'all' and measure == 'over_refusal_rate'").iloc[0]
    assert row["over_refusal_loss_up_to"] == max(pair["high"], 0)
    pair = tested.query(f"{where} and form == 'all' and measure == 'general_score'").iloc[0]
    assert row["general_loss_up_to"] == max(-pair["low"], 0)


def test_the_system_prompt_alone_is_the_model_without_safety_data_tested_with_it(table, simulated):
    attack, _, tested = simulated
    where = "finetune_task == 'code' and style == 'chat' and safety_data == 'none' and system_prompt and form == 'all'"
    assert one(table, "system_prompt", 0.0)["attack_success"] == attack.query(where)["rate"].item()
    pair = tested.query(f"{where} and kind == 'system_prompt' and measure == 'attack_success_rate'").iloc[0]
    assert one(table, "system_prompt", 0.0)["attack_success_difference"] == pair["difference"]


def test_what_was_put_in_comes_out(table):
    assert one(table, "multitask_twins")["verdict"].startswith(
        f"reduces attack success, {comparisons.OPEN}: "
    )  # 25 prompts a form
    assert one(table, "multitask", 0.2)["verdict"] == "reduces attack success, costs: over-refusal"
    assert one(table, "scaled", 0.5)["verdict"] == comparisons.NO_REDUCTION
    assert one(table, "none", 0.0)[["verdict", "attack_success_verdict"]].tolist() == ["-", ""]


def test_the_margin_is_the_largest_loss_that_is_left_open(table):
    losses = [f"{name}_loss_up_to" for name in ("over_refusal", "general_refusal", "general", "task")]
    for row in table[table["safety_data"] != "none"].to_dict("records"):
        assert row["margin"] == max(row[name] for name in losses)
    assert one(table, "none", 0.0)[["margin"]].isna().all()


def test_an_equal_task_score_is_one_whose_difference_is_shown_to_lie_within_the_margin(simulated):
    attack, costs, tested = simulated
    ours = (tested["safety_data"] == "scaled") & (tested["measure"] == "task_score") & (tested["form"] == "code")
    tested = tested.assign(within=tested["within"].mask(ours, "yes"))
    table = comparisons.which_to_ship(attack, costs, tested)
    assert one(table, "scaled", 0.5)["same_task_score"] == "yes"
    assert (table["same_task_score"] == "yes").sum() == 1


def test_without_scores_costs_are_not_tested_and_nothing_ships(simulated):
    attack, costs, tested = simulated
    costs, tested = (part[~part["measure"].isin(["task_score", "general_score"])] for part in (costs, tested))
    table = comparisons.which_to_ship(attack, costs, tested)
    assert table[["general", "task", "general_loss_up_to", "margin"]].isna().all(axis=None)
    assert "not tested: general score" in one(table, "multitask_twins")["verdict"]
    assert not (table["verdict"] == comparisons.SHIP).any()
    assert readable.arms_in_percent(table)["task"].eq("-").all()


def test_nothing_that_was_tuned_has_no_rows(simulated):
    assert comparisons.which_to_ship(*(table.iloc[:0] for table in simulated)).empty


def test_marks_of_a_task_are_all_its_arms_and_the_front_is_of_the_tuned_models(simulated):
    points = comparisons.arm_marks(*simulated[:2])
    for panel in ("over_refusal_rate", "general_score", "task_score"):
        part = points[(points["panel"] == panel) & (points["task"] == "code")]
        assert len(part) == 2 + len(OTHERS) + len(TRIED)
        aligned = part["finetune_task"] == "none"
        assert aligned.sum() == 1 and part.loc[aligned, "front"].eq("").all()
        assert set(part.loc[~aligned, "front"]) <= {"yes", "no", "undecided"}
        best = part[~aligned].sort_values(["rate", "x"], ascending=[True, panel == "over_refusal_rate"]).iloc[0]
        assert best["front"] == "yes"  # nothing is below it


def test_the_task_score_in_the_plane_is_that_of_the_tuned_task(simulated):
    attack, costs, _ = simulated
    points = comparisons.arm_marks(attack, costs).query("panel == 'task_score' and task == 'translation'")
    wanted = costs.query("measure == 'task_score' and form == 'translation' and style == 'chat' and not system_prompt")
    for task in ("none", "translation"):
        own = points[(points["finetune_task"] == task) & (points["safety_data"] == "none")]
        assert own["x"].item() == wanted.query(f"finetune_task == '{task}' and safety_data == 'none'")["value"].item()


def against_scaled(*rows):
    """Rows of the kind scaled: (arm, share removed, task score within the margin, difference, verdict)."""
    found = []
    for arm, removed, within, difference, verdict in rows:
        place = {"finetune_task": "code", "safety_data": arm, "safety_fraction": 0.1, "other_safety_fraction": removed}
        numbers = {"other_value": removed, "difference": difference, "low": difference - 0.1, "high": difference + 0.1}
        found.append(place | numbers | {"measure": "task_score", "form": "code", "within": within, "verdict": "better"})
        found.append(
            place | numbers | {"measure": "attack_success_rate", "form": "all", "within": "", "verdict": verdict}
        )
        found.append(
            place | numbers | {"measure": "task_score", "form": "translation", "within": "yes", "verdict": "x"}
        )
    return pd.DataFrame(found)


def test_an_arm_is_put_beside_the_adapter_scaled_down_most_at_a_task_score_shown_to_be_equal():
    found = comparisons._against_scaled(
        against_scaled(
            ("generic", 0.25, "yes", -0.3, "better"),
            ("generic", 0.5, "yes", -0.1, "not significant"),
            ("generic", 0.75, "undecided", 0.2, "worse"),
            ("multitask", 0.25, "undecided", -0.3, "better"),  # nowhere equal
        )
    )
    assert found["safety_data"].tolist() == ["generic"]
    row = found.iloc[0]
    assert (row["scaled_to"], row["scaled_attack_success"], row["scaled_difference"]) == (0.5, 0.5, -0.1)
    assert row["scaled_verdict"] == "not significant"


def test_the_comparison_at_equal_task_score_is_on_the_same_prompts_and_seeds(simulated):
    attack, costs, tested = simulated
    pair = tested.query("kind == 'scaled' and safety_data == 'multitask' and safety_fraction == 0.2 and form == 'all'")
    pair = pair[pair["measure"] == "attack_success_rate"].iloc[0]
    assert pair[["other_safety_data", "other_safety_fraction"]].tolist() == ["scaled", 0.5]
    rates = attack.query("finetune_task == 'code' and style == 'chat' and not system_prompt and form == 'all'")
    rates = rates.set_index(["safety_data", "safety_fraction"])["rate"]
    assert pair["difference"] == pytest.approx(rates["multitask", 0.2] - rates["scaled", 0.5])
    scaled = tested[tested["kind"] == "scaled"]
    assert set(scaled["finetune_task"]) == {"code"} and not scaled["system_prompt"].any()  # where it was scaled
    within = tested["kind"].eq("scaled") & (tested["measure"] == "task_score")
    table = comparisons.which_to_ship(attack, costs, tested.assign(within=tested["within"].mask(within, "yes")))
    row = one(table, "multitask", 0.2)
    assert (row["scaled_to"], row["scaled_difference"], row["scaled_verdict"]) == (
        0.5,
        pair["difference"],
        pair["verdict"],
    )
    better = (table["scaled_verdict"] == "better").sum()
    assert f"At equal task score, {better} of 4 have significantly lower attack success" in readable.arms_in_words(
        table
    )
    assert readable.arms_in_words(table).count("At equal task score") == 1  # of translation none was scaled


def test_less_over_refusal_is_better_and_more_score_is(simulated):
    attack, costs, _ = simulated
    points = comparisons.arm_marks(
        attack.assign(rate=0.5, low=0.5, high=0.5), costs.assign(low=costs["value"], high=costs["value"])
    )
    for (panel, _), part in points[points["front"] != ""].groupby(["panel", "task"]):
        wanted = part["x"].min() if panel == "over_refusal_rate" else part["x"].max()
        assert ((part["front"] == "yes") == (part["x"] == wanted)).all()


def test_two_judges_of_one_arm_are_refused(simulated):
    attack, costs, _ = simulated
    with pytest.raises(ValueError, match="several rows for one mark"):
        comparisons.arm_marks(pd.concat([attack, attack.assign(judge="strict")]), costs)


def test_the_sentence_counts_what_to_ship_what_costs_and_what_is_not_shown(table):
    code = table[(table["finetune_task"] == "code") & (table["safety_data"] != "none")]
    words = readable.arms_in_words(table)
    lower = code[code["verdict"] != comparisons.NO_REDUCTION]
    assert f"**Tuned on code**: {len(lower)} of {len(code)} arms reduce attack success significantly." in words
    costs = lower["verdict"].str.contains("costs: ").sum()
    assert f"With a significant cost: {costs}. " in words and "**Tuned on translation**" in words
    assert readable.arms_in_words(table.iloc[:0]) == "No arm has run."


def test_every_arm_has_words_of_its_own():
    words = [readable.arm_label(arm) for arm in comparisons.ARM_ORDER]
    assert len(set(words)) == len(words) == 4 + len(ARMS) and not any("_" in word for word in words)
    assert (
        readable.arm_with_dose("scaled", 0.25) == "adapter scaled down to 75 %"
        and readable.arm_with_dose("multitask", 0.05) == "multitask 5 %"
    )

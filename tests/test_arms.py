"""Rival mitigations: what one would ship by tables made by hand, and the table, marks and words of a simulated study."""

import numpy as np
import pandas as pd
import pytest
from frames import study, with_arms

from studylib import arms, comparisons, tables
from studylib.config import ARMS

TRIED = {("multitask", 0.2): (0.02, 0.4), ("multitask_twins", 0.1): (0.05, 0.03), ("scaled", 0.5): (0.6, 0.03)}
OTHERS = {("system_prompt", 0.0), ("generic", 0.1), ("multitask", 0.1)}


@pytest.fixture(scope="module")
def simulated():
    """Attack success, helpfulness and comparisons of a study of two tasks, of which one has further arms."""
    made = study(np.random.default_rng(0), tasks=("code", "translation"), n_prompts=25, seeds=(0, 1))
    frames = with_arms(np.random.default_rng(1), made, TRIED)
    rows = tables.judged(*frames[:2])
    attack, costs = tables.attack_success(rows), tables.helpfulness(rows, None, frames[2])
    return attack, costs, comparisons.comparisons(rows, None, frames[2], draws=0)


@pytest.fixture(scope="module")
def table(simulated):
    return arms.which_to_ship(*simulated)


def one(table, safety_data, fraction=0.1, task="code"):
    rows = table[(table["safety_data"] == safety_data) & (table["finetune_task"] == task)]
    rows = rows[rows["safety_fraction"] == fraction]
    assert len(rows) == 1
    return rows.iloc[0]


def told(**columns):
    """A row of which_to_ship before its verdict: lowers attack success, costs nothing."""
    verdicts = dict.fromkeys(
        (f"{name}_verdict" for name in ("over_refusal", "general", "task")), "cannot be told apart"
    )
    return {"safety_data": "multitask", "attack_success_verdict": "better"} | verdicts | columns


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({}, arms.SHIP),
        ({"over_refusal_verdict": "better"}, arms.SHIP),
        ({"over_refusal_verdict": "worse"}, "lowers attack success, costs: over-refusal"),
        (
            {"general_verdict": "worse", "task_verdict": "worse"},
            "lowers attack success, costs: general score, score on the tuned task",
        ),
        ({"attack_success_verdict": "cannot be told apart"}, arms.NOT_SHOWN),
        ({"attack_success_verdict": "worse", "task_verdict": "worse"}, arms.NOT_SHOWN),
        ({"attack_success_verdict": ""}, arms.NOT_SHOWN),
        ({"safety_data": "none"}, arms.BASE),
    ],
)
def test_an_arm_is_shipped_where_it_is_told_to_help_and_nothing_is_told_to_be_lost(columns, words):
    assert arms._verdict(told(**columns)) == words


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
    assert one(table, "multitask_twins")["verdict"] == arms.SHIP
    assert one(table, "multitask", 0.2)["verdict"] == "lowers attack success, costs: over-refusal"
    assert one(table, "scaled", 0.5)["verdict"] == arms.NOT_SHOWN
    assert one(table, "none", 0.0)[["verdict", "not_shown", "attack_success_verdict"]].tolist() == ["-", "", ""]


def test_an_equal_task_score_is_one_whose_difference_is_shown_to_lie_within_the_margin(simulated):
    attack, costs, tested = simulated
    ours = (tested["safety_data"] == "scaled") & (tested["measure"] == "task_score") & (tested["form"] == "code")
    tested = tested.assign(within=tested["within"].mask(ours, "yes"))
    table = arms.which_to_ship(attack, costs, tested)
    assert one(table, "scaled", 0.5)["same_task_score"] == "yes"
    assert (table["same_task_score"] == "yes").sum() == 1
    assert "1 are shown to have the task score of no safety data within 5 points" in arms.in_words(table)


def test_without_scores_costs_are_empty_and_their_loss_not_shown(simulated):
    attack, costs, tested = simulated
    costs, tested = (part[~part["measure"].isin(["task_score", "general_score"])] for part in (costs, tested))
    table = arms.which_to_ship(attack, costs, tested)
    assert table[["general", "task", "general_loss_up_to"]].isna().all(axis=None)
    assert "general score" in one(table, "multitask_twins")["not_shown"]
    assert arms.for_reading(table)["task"].eq("-").all()


def test_marks_of_a_task_are_all_its_arms_and_the_front_is_of_the_tuned_models(simulated):
    points = arms.marks(*simulated[:2])
    for panel in ("over_refusal_rate", "general_score", "task_score"):
        part = points[(points["panel"] == panel) & (points["task"] == "code")]
        assert len(part) == 2 + len(OTHERS) + len(TRIED)
        aligned = part["finetune_task"] == "none"
        assert aligned.sum() == 1 and part.loc[aligned, "front"].eq("").all()
        assert set(part.loc[~aligned, "front"]) <= {"yes", "no", "cannot be told"}
        best = part[~aligned].sort_values(["rate", "x"], ascending=[True, panel == "over_refusal_rate"]).iloc[0]
        assert best["front"] == "yes"  # nothing is below it


def test_the_task_score_in_the_plane_is_that_of_the_tuned_task(simulated):
    attack, costs, _ = simulated
    points = arms.marks(attack, costs).query("panel == 'task_score' and task == 'translation'")
    wanted = costs.query("measure == 'task_score' and form == 'translation' and style == 'chat' and not system_prompt")
    for task in ("none", "translation"):
        own = points[(points["finetune_task"] == task) & (points["safety_data"] == "none")]
        assert own["x"].item() == wanted.query(f"finetune_task == '{task}' and safety_data == 'none'")["value"].item()


def test_an_arm_is_put_beside_the_adapter_scaled_down_as_far_as_it_keeps_the_arms_task_score():
    made = [
        ("none", 0.0, 0.9, 0.8),
        ("scaled", 0.25, 0.8, 0.5),
        ("scaled", 0.75, 0.2, 0.1),
        ("multitask", 0.1, 0.7, 0.05),
    ]
    made += [("generic", 0.1, 0.88, 0.6), ("multitask", 0.2, np.nan, 0.02)]
    table = pd.DataFrame(made, columns=["safety_data", "safety_fraction", "task", "attack_success"])
    table = table.assign(finetune_task="code", attack_success_low=0.0, attack_success_high=1.0)
    found = arms._alike(table).set_index(["safety_data", "safety_fraction"])
    assert list(found.index) == [("multitask", 0.1), ("generic", 0.1)]  # of no task score nothing is alike
    assert found["alike_kept"].tolist() == [0.75, 1.0]  # 0.25 of it scores less than either
    assert found["alike_attack_success"].tolist() == [0.5, 0.8]
    tied = table.assign(task=1.0, attack_success=table["attack_success"])  # all as good at the task: the safest of them
    assert set(arms._alike(tied)["alike_kept"]) == {0.25}
    best = table.assign(task=table["task"].mask(table["safety_data"] == "multitask", 1.0))  # better than any scaled one
    assert arms._alike(best)["alike_kept"].tolist() == [1.0, 1.0, 1.0]
    assert arms._alike(table[table["safety_data"] != "scaled"]).empty


def test_the_sentence_counts_arms_below_the_scaled_adapter_by_intervals_that_do_not_overlap(table):
    rivals = table[(table["finetune_task"] == "code") & table["alike_attack_success"].notna()]
    assert set(rivals["safety_data"]) == {"system_prompt", "generic", "multitask", "multitask_twins"}
    less = (rivals["attack_success_high"] < rivals["alike_attack_success_low"]).sum()
    assert f"{less} of {len(rivals)} answer less than the adapter scaled down as far" in arms.in_words(table)
    assert arms.in_words(table).count("At equal task score") == 1  # of translation none was scaled


def test_less_over_refusal_is_better_and_more_score_is(simulated):
    attack, costs, _ = simulated
    points = arms.marks(
        attack.assign(rate=0.5, low=0.5, high=0.5), costs.assign(low=costs["value"], high=costs["value"])
    )
    for (panel, _), part in points[points["front"] != ""].groupby(["panel", "task"]):
        wanted = part["x"].min() if panel == "over_refusal_rate" else part["x"].max()
        assert ((part["front"] == "yes") == (part["x"] == wanted)).all()


def test_two_judges_of_one_arm_are_refused(simulated):
    attack, costs, _ = simulated
    with pytest.raises(ValueError, match="several rows for one mark"):
        arms.marks(pd.concat([attack, attack.assign(judge="strict")]), costs)


def test_the_sentence_counts_what_to_ship_what_costs_and_what_is_not_shown(table):
    code = table[(table["finetune_task"] == "code") & (table["safety_data"] != "none")]
    words = arms.in_words(table)
    ship = (code["verdict"] == arms.SHIP).sum()
    assert f"Tuned on code, of {len(code)} arms {ship} lower attack success with nothing told to be lost" in words
    assert "multitask with twins 10 % (" in words and "Tuned on translation" in words
    assert arms.in_words(table.iloc[:0]) == "No arm has run."


def test_every_arm_has_words_of_its_own():
    words = [arms.arm_label(arm) for arm in arms.ORDER]
    assert len(set(words)) == len(words) == 4 + len(ARMS) and not any("_" in word for word in words)
    assert (
        arms.named("scaled", 0.25) == "adapter scaled down to 75 %" and arms.named("multitask", 0.05) == "multitask 5 %"
    )


def test_rates_for_reading_are_in_percent_with_the_arm_and_its_dose(simulated):
    shown = arms.by_rate(*simulated[:2])
    assert ("miniature", "code", "multitask with twins 10 %") in shown.index and shown.index.is_unique
    assert not shown.index.get_level_values("arm").str.contains("system prompt").any()
    row = shown.loc[("miniature", "code", "multitask with twins 10 %")]
    twins = simulated[1].query(
        "finetune_task == 'code' and safety_data == 'multitask_twins' and form == 'all' and measure == 'over_refusal_rate'"
    )
    assert row["twins refused (%)"].startswith(f"{100 * twins['value'].item():.0f} (")

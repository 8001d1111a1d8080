"""Mitigations: the table of arms and the marks of the plane, of a simulated study."""

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
    return comparisons.arm_table(*simulated)


def one(table, safety_data, fraction=0.1, task="code"):
    rows = table[(table["safety_data"] == safety_data) & (table["finetune_task"] == task)]
    rows = rows[rows["safety_fraction"] == fraction]
    assert len(rows) == 1
    return rows.iloc[0]


def test_every_arm_of_a_task_has_one_row_and_no_safety_data_come_first(table):
    for task, more in (("code", set(TRIED)), ("translation", set())):
        part = table[table["finetune_task"] == task]
        found = list(zip(part["safety_data"], part["safety_fraction"], strict=True))
        assert found[0] == ("none", 0.0) and set(found[1:]) == OTHERS | more and len(found) == 1 + len(OTHERS | more)


def test_rates_costs_and_differences_are_those_of_the_tables(table, simulated):
    attack, costs, compared = simulated
    row = one(table, "multitask_twins")
    where = "finetune_task == 'code' and safety_data == 'multitask_twins'"
    assert row["attack_success"] == attack.query(f"{where} and form == 'all'")["rate"].item()
    assert row["task"] == costs.query(f"{where} and form == 'code' and measure == 'task_score'")["value"].item()
    assert (
        row["over_refusal"]
        == costs.query(f"{where} and form == 'all' and measure == 'over_refusal_rate'")["value"].item()
    )
    pair = compared.query(f"{where} and form == 'all' and measure == 'attack_success_rate'").iloc[0]
    ends = ["difference", "difference_low", "difference_high"]
    for name, measure in {"attack_success": "attack_success_rate", "j": "j", "general": "general_score"}.items():
        pair = compared.query(f"{where} and form == 'all' and measure == '{measure}'").iloc[0]
        assert row[[f"{name}_{end}" for end in ends]].tolist() == pair[["difference", "low", "high"]].tolist()
    of_j = attack.query(f"{where} and form == 'all'").iloc[0]
    assert row["j"] == of_j["j"] and row["j_difference"] == pytest.approx(
        of_j["j"] - one(table, "none", 0.0)["j"], abs=0.02
    )  # a pair that was not judged leaves the difference alone


def test_the_system_prompt_alone_is_the_model_without_safety_data_tested_with_it(table, simulated):
    attack, _, compared = simulated
    where = "finetune_task == 'code' and style == 'chat' and safety_data == 'none' and system_prompt and form == 'all'"
    assert one(table, "system_prompt", 0.0)["attack_success"] == attack.query(where)["rate"].item()
    pair = compared.query(f"{where} and kind == 'system_prompt' and measure == 'attack_success_rate'").iloc[0]
    assert one(table, "system_prompt", 0.0)["attack_success_difference"] == pair["difference"]


def test_what_was_put_in_comes_out_and_no_arm_has_a_verdict(table):
    assert one(table, "multitask", 0.2)["attack_success_difference_high"] < 0
    assert one(table, "multitask", 0.2)["over_refusal_difference_low"] > 0
    assert np.isnan(one(table, "none", 0.0)["attack_success_difference"])
    assert not [name for name in table if "verdict" in name or name in ("margin", "same_task_score")]


def test_without_scores_costs_are_not_known(simulated):
    attack, costs, compared = simulated
    costs, compared = (part[~part["measure"].isin(["task_score", "general_score"])] for part in (costs, compared))
    table = comparisons.arm_table(attack, costs, compared)
    assert table[["general", "task", "general_difference", "scaled_to"]].isna().all(axis=None)
    shown = readable.arms_in_percent(table)
    assert shown["task score"].eq("-").all() and (shown["AUC"].iloc[0] == f"{table['auc'].iloc[0]:.2f}")
    assert shown["J"].str.fullmatch(r"\d+ \(-?\d+( to |-)\d+\)").all()


def test_nothing_that_was_tuned_has_no_rows(simulated):
    assert comparisons.arm_table(*(table.iloc[:0] for table in simulated)).empty


def test_marks_of_a_task_are_all_its_arms_and_the_front_is_of_the_tuned_models(simulated):
    points = comparisons.arm_marks(*simulated[:2])
    for panel in comparisons.PLANES:
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


def test_j_in_the_plane_is_that_of_all_forms_with_its_interval(simulated):
    points = comparisons.arm_marks(*simulated[:2]).query("panel == 'j' and task == 'code' and finetune_task == 'code'")
    attack = simulated[0].query("finetune_task == 'code' and form == 'all' and style == 'chat' and not system_prompt")
    for row in attack.to_dict("records"):
        place = (points["safety_data"] == row["safety_data"]) & (points["safety_fraction"] == row["safety_fraction"])
        found = points.loc[place, ["rate", "x", "x_low", "x_high"]].iloc[0].tolist()
        assert found == [row[name] for name in ("rate", "j", "j_low", "j_high")]


def test_an_arm_is_put_beside_the_adapter_scaled_down_to_the_nearest_task_score():
    rows = []
    for removed, of_task, of_attack in ((0.25, 0.2, -0.3), (0.5, -0.05, -0.1), (0.75, 0.6, 0.2)):
        place = {"finetune_task": "code", "safety_data": "generic", "safety_fraction": 0.1}
        place |= {"other_safety_fraction": removed, "other_value": removed, "low": of_attack - 0.1, "high": 0.4}
        rows.append(place | {"measure": "task_score", "form": "code", "difference": of_task})
        rows.append(place | {"measure": "attack_success_rate", "form": "all", "difference": of_attack})
        rows.append(place | {"measure": "task_score", "form": "translation", "difference": 0.0})
    found = comparisons._against_scaled(pd.DataFrame(rows))
    assert found["safety_data"].tolist() == ["generic"]
    row = found.iloc[0]
    assert (row["scaled_to"], row["scaled_attack_success"], row["scaled_difference"]) == (0.5, 0.5, -0.1)
    assert (row["scaled_low"], row["scaled_high"]) == (-0.2, 0.4)


def test_the_comparison_with_the_scaled_adapter_is_on_the_same_prompts_and_seeds(simulated, table):
    attack, _, compared = simulated
    pair = compared.query("kind == 'scaled' and safety_data == 'multitask' and safety_fraction == 0.2")
    pair = pair[(pair["form"] == "all") & (pair["measure"] == "attack_success_rate")].iloc[0]
    assert pair[["other_safety_data", "other_safety_fraction"]].tolist() == ["scaled", 0.5]
    rates = attack.query("finetune_task == 'code' and style == 'chat' and not system_prompt and form == 'all'")
    rates = rates.set_index(["safety_data", "safety_fraction"])["rate"]
    assert pair["difference"] == pytest.approx(rates["multitask", 0.2] - rates["scaled", 0.5])
    scaled = compared[compared["kind"] == "scaled"]
    assert set(scaled["finetune_task"]) == {"code"} and not scaled["system_prompt"].any()  # where it was scaled
    row = one(table, "multitask", 0.2)
    assert (row["scaled_to"], row["scaled_difference"]) == (0.5, pair["difference"])
    assert table.loc[table["finetune_task"] == "translation", "scaled_to"].isna().all()


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


def test_every_arm_has_words_of_its_own():
    words = [readable.arm_label(arm) for arm in comparisons.ARM_ORDER]
    assert len(set(words)) == len(words) == 4 + len(ARMS) and not any("_" in word for word in words)
    assert (
        readable.arm_with_dose("scaled", 0.25) == "adapter scaled down to 75 %"
        and readable.arm_with_dose("multitask", 0.05) == "multitask 5 %"
    )

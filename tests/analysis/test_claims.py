"""The paper's claims: each is driven to each of its verdicts by rows of simulated studies."""

import numpy as np
import pandas as pd
import pytest
from crossed import cell
from frames import few

from studylib.analysis import claims
from studylib.analysis.contrasts import contrast_table, load_plan, marked, plan_rows
from studylib.analysis.rates import judged
from studylib.study.files import read_yaml
from studylib.study.paths import DATA
from studylib.study.profile import load_profile
from studylib.study.words import FORMS, TASKS

PLAN, CLAIMS = load_plan(), read_yaml(DATA / "claims.yaml")
MINIATURE, REAL = load_profile("miniature"), load_profile("llama")
BUILT_IN = ["weaker_forms", "calibrations", "guards", "generic"]
DECIDED = [name for name in CLAIMS if name not in BUILT_IN]
N, FEW = 200, 20  # intents
NONE, OWN, MULTITASK = {}, {"requests": "own"}, {"requests": "own", "safety_data": "multitask"}


def share(values, profile, n=N, **columns):
    """Rows of one arm that answers this share of n prompts, the same ones as any other arm.

    Of six bases in the miniature, of three training seeds of a real model; `values` are theirs in turn.
    """
    shape = (6, 1, 1) if profile.world else (1, 1 if columns.get("task") == "none" else 3, 1)
    return cell((np.arange(n) + 0.5) / n < np.resize(values, shape), **columns)


def untuned(values, profile, **columns):
    return share(values, profile, task="none", **columns)


def tuned(profile, before, after, measure="attack_success_rate", tasks=TASKS, first=OWN, second=MULTITASK, **own):
    """Rows of all tasks without and with something, such as multitask data; `own`: the value after one task."""
    rows = [share(before, profile, task=task, measure=measure, **first) for task in tasks]
    return rows + [share(own.get(task, after), profile, task=task, measure=measure, **second) for task in tasks]


UNSURE = [0.1, 0.9, 0.3]  # of bases, or seeds: whatever it is compared with, it decides nothing


def rows_of(claim, wanted, profile):
    """Rows that decide the claim so."""
    value = {"yes": 0.8, "no": 0.2, "undecided": UNSURE}[wanted]
    if claim == "erodes":
        return [untuned(0.2, profile), *(share(value, profile, task=task) for task in TASKS)]
    if claim == "most":
        return [share(value if task in ("code", "translation") else 0.2, profile, task=task) for task in TASKS]
    if claim == "requests":
        return tuned(profile, 0.2, value, first=NONE, second=OWN)
    if claim == "multitask_reduces":
        return tuned(profile, 0.8, {"yes": 0.2, "no": 0.8, "undecided": UNSURE}[wanted])
    cost = {"yes": 0.5, "no": 0.1, "undecided": UNSURE}[wanted]
    if claim == "helpfulness_kept":
        scores = {task: tuned(profile, 0.5, cost, "task_score", tasks=[task]) for task in TASKS}
        rows = [one.assign(form=task, metric=task) for task, found in scores.items() for one in found]
        return rows + tuned(profile, 0.5, cost, "general_score")
    if claim == "over_refusal_kept":
        return tuned(profile, 0.5, {"yes": 0.5, "no": 0.9, "undecided": UNSURE}[wanted], "over_refusal_rate")
    if claim == "discrimination_kept":
        right = [
            untuned(0.8, profile),
            *(share({"yes": 0.8, "no": 0.2}.get(wanted, UNSURE), profile, task=task, **MULTITASK) for task in TASKS),
        ]
        twins = [one.assign(prompt_id="t" + one["prompt_id"]) for one in right]
        return [one.assign(measure="balanced_accuracy") for one in right + twins]
    forms = [(form, 0.2 if form == "text_generation" else value) for form in FORMS]
    if claim == "generic":
        return [share(own, profile, form=form, **OWN | {"safety_data": "generic"}) for form, own in forms]
    # what no tuning made differs from prompt to prompt alone: few of them decide nothing
    n, few = (FEW, 0.15) if wanted == "undecided" else (N, 0.6 * (wanted == "yes"))
    if claim == "weaker_forms":
        return [untuned(0.2 + few * (form != "text_generation"), profile, n=n, form=form) for form in FORMS]
    if claim == "calibrations":
        return [untuned(0.8 - few * on, profile, n=n, system_prompt=on) for on in (False, True)]
    return [guarded(0.9 - few, n)]


def guarded(other, n=N):
    """The decisions of a guard that blocks nine in ten texts and this share of the other forms."""
    found = []
    for form in FORMS:
        rows = pd.DataFrame({"intent": [f"i{i}" for i in range(n)], "form": form})
        rows["blocked"] = pd.array((np.arange(n) + 0.5) / n < (0.9 if form == "text_generation" else other), "boolean")
        found.append(rows.assign(prompt_id=form + rows["intent"]))
    decisions = pd.concat(found).assign(guard="text_only", side="input", prompt_set="harmful")
    asked = judged(*few(["answered"], prompt_set="general")).assign(model="miniature")
    return plan_rows(asked, None, decisions, PLAN)


def checked(rows, profile):
    table = marked(contrast_table(pd.concat(rows, ignore_index=True), PLAN), PLAN, profile)
    return claims.check_claims({"contrasts": table}, profile)


def verdict(claim, wanted, profile):
    table = checked(rows_of(claim, wanted, profile), profile)
    assert len(table) == len(CLAIMS)
    row = table[table["claim"] == CLAIMS[claim]["claim"]].iloc[0]
    assert row["found"].endswith(".") and "nan" not in row["found"]
    return row


@pytest.mark.parametrize("wanted", ["yes", "no", "undecided"])
@pytest.mark.parametrize("claim", DECIDED)
def test_in_the_world_a_claim_can_be_decided_each_way(claim, wanted):
    row = verdict(claim, wanted, MINIATURE)
    assert (row["verdict"], row["status"], row["in_world"]) == (wanted, "confirmatory", True)


@pytest.mark.parametrize("wanted", ["yes", "no", "undecided"])
@pytest.mark.parametrize("claim", [name for name in CLAIMS if name != "requests"])
def test_real_models_can_decide_a_claim_each_way(claim, wanted):
    expected = {"yes": "supported", "no": "not supported"}.get(wanted, wanted)
    row = verdict(claim, wanted, REAL)
    assert (row["verdict"], row["in_world"]) == (expected, False)


@pytest.mark.parametrize("claim", BUILT_IN)
def test_what_the_world_has_built_in_is_shown_and_not_decided(claim):
    row = verdict(claim, "yes", MINIATURE)
    assert row["verdict"] == "built in" and "difference in percentage points" in row["found"]
    assert "Built in by " in row["found"]


@pytest.mark.parametrize("claim", ["erodes", "helpfulness_kept"])
def test_a_run_that_differs_from_the_plan_decides_no_claim(claim):
    other = MINIATURE.model_copy(update={"tuning": MINIATURE.tuning.model_copy(update={"steps": 20})})
    row = verdict(claim, "yes", other)
    assert (row["verdict"], row["status"]) == ("exploratory", "exploratory")
    assert row["found"].endswith("so nothing is decided.")


@pytest.mark.parametrize("profile", [MINIATURE, REAL], ids=["miniature", "llama"])
def test_a_claim_without_its_responses_is_not_run(profile):
    table = checked(rows_of("erodes", "yes", profile), profile).set_index("claim")
    rest = table.drop(index=[CLAIMS[name]["claim"] for name in ("erodes", "most")])
    assert set(rest["verdict"]) == {"not run"} and set(rest["status"]) == {""}
    assert set(rest["found"]) == {"The run has no responses of both sides of a contrast."}


def test_one_task_that_erodes_is_enough_and_all_must_be_shown_not_to():
    rows = lambda code, rest: [  # noqa: E731
        untuned(0.2, MINIATURE),
        *(share(code if task == "code" else rest, MINIATURE, task=task) for task in TASKS),
    ]
    found = [checked(rows(*pair), MINIATURE)["verdict"].iat[0] for pair in ((0.8, 0.2), (UNSURE, 0.2), (0.2, 0.2))]
    assert found == ["yes", "undecided", "no"]
    three = [untuned(0.2, MINIATURE), *(share(0.2, MINIATURE, task=task) for task in TASKS[:3])]
    row = checked(three, MINIATURE).iloc[0]
    assert row["verdict"] == "undecided" and "Not run: classification." in row["found"]


def test_multitask_data_must_reduce_attack_success_after_every_tuning():
    for own, expected in (({}, "yes"), ({"code": UNSURE}, "undecided"), ({"code": 0.8}, "no")):
        table = checked(tuned(MINIATURE, 0.8, 0.2, **own), MINIATURE).set_index("claim")
        assert table.loc[CLAIMS["multitask_reduces"]["claim"], "verdict"] == expected


def test_helpfulness_needs_both_scores():
    rows = [one for one in rows_of("helpfulness_kept", "yes", MINIATURE) if (one["measure"] == "task_score").all()]
    row = checked(rows, MINIATURE).set_index("claim").loc[CLAIMS["helpfulness_kept"]["claim"]]
    assert row["verdict"] == "undecided"


def test_a_claim_about_guards_is_about_each_of_them():
    weak, even = guarded(0.5), guarded(0.9).assign(metric="wildguard")
    for rows, expected in (([weak], "supported"), ([weak, even], "not supported"), ([even], "not supported")):
        table = checked(rows, REAL).set_index("claim")
        assert table.loc[CLAIMS["guards"]["claim"], "verdict"] == expected


def test_every_model_has_its_own_verdicts():
    erodes = pd.concat(rows_of("erodes", "yes", REAL))
    same = pd.concat(rows_of("erodes", "no", REAL)).assign(model="other")
    table = checked([erodes, same], REAL)
    assert len(table) == 2 * len(CLAIMS)
    assert table.groupby("model")["verdict"].first().to_dict() == {"miniature": "supported", "other": "not supported"}


def test_a_model_without_contrasts_is_asked_about_too():
    table = marked(contrast_table(pd.concat(rows_of("erodes", "yes", REAL)).iloc[:0], PLAN), PLAN, REAL)
    found = claims.check_claims({"contrasts": table, "attack_success": pd.DataFrame({"model": ["m"]})}, REAL)
    assert len(found) == len(CLAIMS) and set(found["verdict"]) == {"not run"}


def test_the_sentence_holds_the_question_and_the_numbers():
    found = verdict("erodes", "undecided", MINIATURE)["found"]
    assert found.startswith("Does tuning on task rows alone raise attack success? Attack success rate, difference in")
    assert "(6 bases): text generation +23 (" in found and ", undecided); code +23 (" in found
    assert found.endswith(" percentage points.") and "detectable with 80 % power" in found


def test_bases_of_different_numbers_of_seeds_are_said_to_be():
    rows = rows_of("erodes", "yes", MINIATURE)
    more = [one[one["base"] < 2].assign(seed=1) for one in rows if set(one["finetune_task"]) != {"none"}]
    found = checked([*rows, *more], MINIATURE).set_index("claim").loc[CLAIMS["erodes"]["claim"], "found"]
    assert "(6 bases of different numbers of seeds): " in found


def test_a_claim_about_j_is_not_run_where_no_harmful_prompt_has_its_twin():
    rows = [one[~one["prompt_id"].str.startswith("t")] for one in rows_of("discrimination_kept", "no", MINIATURE)]
    table = checked([*rows, *rows_of("erodes", "yes", MINIATURE)], MINIATURE).set_index("claim")
    row = table.loc[CLAIMS["discrimination_kept"]["claim"]]
    assert row["verdict"] == "not run" and row["found"] == "The run has no responses of both sides of a contrast."


def test_the_claims_say_whether_they_are_about_a_world_or_a_model():
    world, real = (checked(rows_of("erodes", "yes", profile), profile) for profile in (MINIATURE, REAL))
    assert claims.claims_in_words(world, "RQ1").startswith(f"**{CLAIMS['erodes']['claim']}** In this world: yes. Does")
    assert claims.claims_in_words(real, "RQ1").startswith(f"**{CLAIMS['erodes']['claim']}** Supported. Does")
    assert claims.claims_in_words(real.iloc[:0], "RQ1").startswith("**Not run:**")


def test_every_claim_names_questions_and_contrasts_of_the_plan():
    for claim in CLAIMS.values():
        assert claim["question"] in ("RQ1", "RQ2", "RQ3", "RQ4") and claim["refuted_by"].endswith(".")
        names = {name for question in claim["decided_by"] for name in PLAN.questions[question].contrasts}
        assert set(claim.get("contrasts", names)) <= names

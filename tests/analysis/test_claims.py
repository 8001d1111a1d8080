"""The paper's claims, decided by tables made by hand."""

import numpy as np
import pandas as pd
import pytest
from frames import study

from studylib.analysis import claims, comparisons, tables
from studylib.analysis.claims import CLAIMS, NOT_RUN, NOT_SUPPORTED, SUPPORTED, UNDECIDED
from studylib.study.words import FORMS, TASKS

CHAT = {"model": "m", "style": "chat", "system_prompt": False}


def compared(kind="tuning", measure="attack_success_rate", form="all", verdict="worse", difference=0.3, **more):
    """One comparison in the chat style without system prompt."""
    row = {**CHAT, "kind": kind, "measure": measure, "form": form, "finetune_task": "code", "safety_data": "none"}
    row |= {"other_finetune_task": "none", "n": 150, "difference": difference, "low": difference - 0.1}
    row |= {"high": difference + 0.1, "p_holm": 0.2, "detectable": 0.15, "verdict": verdict, "within": "undecided"}
    return row | {"not_worse": "undecided"} | more


def rated(form, rate, finetune_task="code", safety_data="generic", width=0.05):
    row = {
        **CHAT,
        "finetune_task": finetune_task,
        "safety_data": safety_data,
        "form": form,
        "rate": rate,
        "share": rate,
    }
    return row | {"low": rate - width, "high": rate + width, "judge": "rules"}


def decided(claim, **found):
    """Verdict and sentence of the claim that begins so; an attack table is there always."""
    nothing = pd.DataFrame([rated("all", 0.1)]), pd.DataFrame([rated("code", np.nan, "none", "none")])
    base = {"attack_success": nothing[0], "answered_share": nothing[1]}
    table = claims.check_claims(base | {name: pd.DataFrame(rows) for name, rows in found.items()})
    row = table[table["claim"].str.startswith(claim)].iloc[0]
    return row["verdict"], row["found"]


@pytest.mark.slow
def test_every_claim_is_decided_for_every_model_with_a_sentence_and_what_would_change_it():
    responses, verdicts, scores = study(np.random.default_rng(0), n_prompts=8)
    both = pd.concat([responses, responses.assign(model="other", response_id="o" + responses["response_id"])])
    given = pd.concat([verdicts, verdicts.assign(response_id="o" + verdicts["response_id"])])
    marks = pd.concat([scores, scores.assign(response_id="o" + scores["response_id"])])
    found = {"attack_success": tables.attack_success(both, given), "answered_share": tables.answered_share(both, given)}
    table = claims.check_claims(found | {"comparisons": comparisons.compare_arms(both, given, marks)})
    assert len(table) == 2 * len(CLAIMS) and set(table["model"]) == {"miniature", "other"}
    assert set(table["verdict"]) <= {SUPPORTED, NOT_SUPPORTED, UNDECIDED, NOT_RUN}
    assert (table[["found", "would_change", "figure"]] != "").all(axis=None)
    assert {"RQ1", "RQ2", "RQ3", "RQ4"} == set(table["question"])


def test_erosion_is_supported_by_one_task_significant_and_refuted_by_one_that_falls():
    decide = "Tuning on a benign task"
    assert decided(decide, comparisons=[compared()])[0] == SUPPORTED
    unsure = compared(verdict="not significant")
    assert decided(decide, comparisons=[unsure])[0] == UNDECIDED
    assert decided(decide, comparisons=[unsure | {"within": "yes"}])[0] == NOT_SUPPORTED
    fell = compared(verdict="better", difference=-0.2, finetune_task="translation")
    assert decided(decide, comparisons=[compared(), fell])[0] == NOT_SUPPORTED
    assert decided(decide)[0] == NOT_RUN


def test_the_sentence_holds_the_numbers_of_the_table():
    said = decided("Tuning on a benign task", comparisons=[compared(verdict="not significant")])[1]
    assert "code +30 (+20 to +40, not significant, p 0.20)" in said and "15 to 15 percentage points" in said
    assert "chat template, no system prompt" in said


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["worse"] * 4, SUPPORTED),
        (["worse"] * 3 + ["not significant"], UNDECIDED),
        (["worse"] * 3 + ["better"], NOT_SUPPORTED),
        (["worse"] * 3, NOT_RUN),
    ],
)
def test_code_and_translation_erode_most_only_where_both_are_above_both_others(verdicts, expected):
    pairs = [(a, b) for a in ("code", "translation") for b in ("text_generation", "classification")]
    rows = [
        compared("task", verdict=verdict, difference=-0.2 if verdict == "better" else 0.2, finetune_task=a)
        | {"other_finetune_task": b}
        for (a, b), verdict in zip(pairs, verdicts, strict=False)
    ]
    rows.append(compared("task", finetune_task="code") | {"other_finetune_task": "translation"})  # decides nothing
    assert decided("Tuning on code and", comparisons=rows)[0] == expected


@pytest.mark.parametrize(("share", "expected"), [(0.9, SUPPORTED), (0.52, UNDECIDED), (0.3, NOT_SUPPORTED)])
def test_translation_and_classification_are_weaker_where_their_share_is_above_one_half(share, expected):
    row = rated(claims.TOGETHER, share, "none", "none")
    tests = [compared("form", form=form, finetune_task="none") for form in ("translation", "classification")]
    assert decided("Refusals are weaker", answered_share=[row], comparisons=tests)[0] == expected


def test_each_of_the_two_forms_must_differ_significantly_from_the_text_form():
    row = rated(claims.TOGETHER, 0.9, "none", "none")
    tests = [compared("form", form=form, finetune_task="none") for form in ("translation", "classification")]
    unsure = tests[1] | {"verdict": "not significant"}
    verdict, said = decided("Refusals are weaker", answered_share=[row], comparisons=[tests[0], unsure])
    assert (
        verdict == UNDECIDED
        and "classification +30 to +30 percentage points, significantly more in 0 of 1 calibrations" in said
    )
    below = tests[1] | {"verdict": "better"}
    assert decided("Refusals are weaker", answered_share=[row], comparisons=[tests[0], below])[0] == NOT_SUPPORTED
    assert decided("Refusals are weaker", answered_share=[row])[0] == UNDECIDED


def test_a_pair_the_other_way_round_in_any_calibration_counts_against_the_claim():
    pairs = [(a, b) for a in ("code", "translation") for b in ("text_generation", "classification")]
    rows = [compared("task", finetune_task=a) | {"other_finetune_task": b} for a, b in pairs]
    reverse = rows[3] | {"style": "alpaca", "verdict": "better", "difference": -0.2}
    verdict, said = decided("Tuning on code and", comparisons=[*rows, reverse])
    assert verdict == NOT_SUPPORTED and "translation minus classification -20 (+20 to +40), Alpaca style" in said


def test_the_published_range_is_met_only_where_every_interval_meets_it():
    inside, outside = rated(claims.TOGETHER, 0.95, "none", "none"), rated(claims.TOGETHER, 0.5, "code", "none")
    assert decided("Of what is answered", answered_share=[inside])[0] == SUPPORTED
    verdict, said = decided("Of what is answered", answered_share=[inside, outside])
    assert verdict == NOT_SUPPORTED and "in 1 of them" in said


def test_one_significant_calibration_supports_that_it_matters():
    same = compared("style", verdict="not significant") | {"within": "yes"}
    assert decided("Attack success depends", comparisons=[same])[0] == NOT_SUPPORTED
    assert decided("Attack success depends", comparisons=[same | {"within": "undecided"}])[0] == UNDECIDED
    verdict, said = decided("Attack success depends", comparisons=[same, compared("system_prompt", verdict="better")])
    assert (
        verdict == SUPPORTED
        and "The system prompt raises attack success significantly in 0 and reduces it in 1 of 1" in said
    )


def guard(name, form, rate):
    about = {"model": "m", "guard": name, "side": "input", "prompt_set": "harmful", "form": form}
    return about | {"blocked_rate": rate, "low": rate - 0.05, "high": rate + 0.05}


def test_guards_do_not_hold_where_detection_by_form_differs():
    uneven = [guard("text_only", "code", 0.3), guard("text_only", "text_generation", 0.9)]
    assert decided("Existing guards", guards=uneven)[0] == SUPPORTED
    even = [guard("text_only", form, 0.9) for form in FORMS]
    assert decided("Existing guards", guards=even)[0] == UNDECIDED
    assert decided("Existing guards", guards=[guard("all_forms", "code", 0.3)])[0] == NOT_RUN


def test_generic_data_do_not_hold_where_a_form_is_above_the_text_form():
    text = rated("text_generation", 0.1)
    assert decided("Existing (generic)", attack_success=[text, rated("translation", 0.6)])[0] == SUPPORTED
    assert decided("Existing (generic)", attack_success=[text, rated("translation", 0.15)])[0] == UNDECIDED


def lowered(verdict="better", **more):
    return compared("mitigation", safety_data="multitask", verdict=verdict, difference=-0.3, **more)


def test_multitask_data_must_lower_every_tuned_task_and_raise_no_form():
    rows = [lowered(finetune_task=task) for task in TASKS]
    assert decided("Multitask safety data reduce", comparisons=rows)[0] == SUPPORTED
    assert decided("Multitask", comparisons=[*rows[1:], lowered("not significant")])[0] == UNDECIDED
    assert decided("Multitask", comparisons=[*rows, lowered("worse", form="code")])[0] == NOT_SUPPORTED
    same = lowered("not significant", within="yes")
    assert decided("Multitask", comparisons=[*rows[1:], same])[0] == NOT_SUPPORTED


def test_helpfulness_is_kept_only_where_it_is_shown_not_to_be_worse():
    task = lowered("not significant", measure="task_score", form="code", not_worse="yes")
    other = task | {"form": "translation", "not_worse": "undecided"}  # not the tuned task: decides nothing
    general = task | {"measure": "general_score", "form": "all"}
    assert decided("They do so without", comparisons=[task, other, general])[0] == SUPPORTED
    unsure = general | {"not_worse": "undecided"}
    assert decided("They do so without", comparisons=[task, unsure])[0] == UNDECIDED
    assert decided("They do so without", comparisons=[task, general | {"verdict": "worse"}])[0] == NOT_SUPPORTED


def test_refusing_general_requests_is_a_cost_as_refusing_twins_is():
    twins = lowered("not significant", measure="over_refusal_rate", not_worse="yes")
    general = twins | {"measure": "general_refusal_rate"}
    assert decided("And without refusing", comparisons=[twins, general])[0] == SUPPORTED
    assert decided("And without refusing", comparisons=[twins, general | {"verdict": "worse"}])[0] == NOT_SUPPORTED
    assert decided("And without refusing", comparisons=[twins])[0] == UNDECIDED


def test_rows_that_were_not_run_decide_nothing():
    row = rated(claims.TOGETHER, np.nan, "none", "none") | {"note": "not run: no data"}
    assert decided("Refusals are weaker", answered_share=[row])[0] == NOT_RUN
    assert decided("Tuning on a benign", comparisons=[compared(n=0, verdict="no pairs")])[0] == NOT_RUN


def test_the_claims_of_a_question_are_read_with_the_verdict_first():
    table = pd.DataFrame(
        [["m", "RQ1", "It erodes.", SUPPORTED, "By 3 points.", "less.", "x", True]], columns=claims.COLUMNS
    )
    words = claims.claims_in_words(table, "RQ1")
    assert words == "**Supported: It erodes.** By 3 points. *What would change this verdict: less.*"

"""The plan, whether a profile follows it, and its contrasts: by hand, by traps and in simulated studies."""

import numpy as np
import pandas as pd
import pytest
import yaml
from crossed import cell, planned, shift_to, simulated, studies
from frames import few
from scipy.stats import nct
from scipy.stats import t as student

from studylib.analysis import stats
from studylib.analysis.contrasts import (
    NO_ROOM,
    base_differences,
    check_profile,
    contrast_table,
    differences,
    load_plan,
    marked,
    multi_bootstrap,
    paired,
    plan_rows,
)
from studylib.analysis.rates import judged
from studylib.study.paths import DATA
from studylib.study.profile import load_profile
from studylib.study.words import TASKS, StudyError

PLAN = load_plan()
UNTUNED = {"task": "none"}


@pytest.fixture
def changed(tmp_path):
    """The shipped plan read from a file in which one dotted key has another value."""

    def read(key, value):
        content = yaml.safe_load((DATA / "plan.yaml").read_text())
        *sections, last = key.split("/")
        target = content
        for section in sections:
            target = target[section]
        target[last] = value
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump(content))
        return load_plan(path)

    return read


@pytest.fixture
def profile():
    return load_profile("miniature").model_copy(update={"base_seeds": list(range(6))})


def row(rows, question="task_alone", contrast="code", **columns):
    table = contrast_table(pd.concat(rows, ignore_index=True) if isinstance(rows, list) else rows, PLAN)
    wanted = {"question": question, "contrast": contrast, **columns}
    found = table[(table[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    assert len(found) == 1, table
    return found.iloc[0]


# The plan


def test_the_plan_asks_questions_of_at_most_four_contrasts_each_with_a_reason_for_its_margin():
    tasks = ["task_alone", "requests", "multitask", "over_refusal", "discrimination", "task_score", "general_score"]
    assert all(tuple(PLAN.questions[name].contrasts) == TASKS for name in tasks)
    assert set(PLAN.questions) - set(tasks) == {"ranking", "forms", "system_prompt", "guard_forms", "generic_forms"}
    assert all(1 <= len(question.contrasts) <= 4 for question in PLAN.questions.values())
    assert all(len(question.margin_because.split()) > 8 for question in PLAN.questions.values())


def test_what_is_built_in_names_a_setting_and_says_why():
    built_in = {name: question.built_in["miniature"] for name, question in PLAN.questions.items() if question.built_in}
    settings = {name: words.split(":")[0] for name, words in built_in.items()}
    assert settings == {
        "forms": "world.refusal_share",
        "system_prompt": "world.alignment_system_share",
        "guard_forms": "guards",
        "generic_forms": "grid.safety_data",
    }
    assert all(words.endswith(".") for words in built_in.values())


def test_a_contrast_may_have_sides_of_its_own():
    arm, other = PLAN.questions["ranking"].sides("code_minus_text_generation")
    assert (arm.finetune_task, other.finetune_task) == ("code", "text_generation")
    arm, other = PLAN.questions["forms"].sides("code")
    assert arm.untuned and other.untuned and (arm.form, other.form) == ("code", "text_generation")
    arm, other = PLAN.questions["task_alone"].sides("code")
    assert arm.finetune_task == "code" and other.untuned


@pytest.mark.parametrize(
    "key, value, named",
    [
        ("questions/requests/marign", 0.2, "unknown key 'questions.requests.marign', known here are asks, measure"),
        ("questions/requests/measure", "asr", "questions.requests.measure.*attack_success_rate.*found 'asr'"),
        ("questions/requests/contrasts", ["code", "poetry"], "contrasts.poetry.*'text_generation'.*found 'poetry'"),
        ("questions/requests/contrasts", {name: {"arm": {"form": "code"}} for name in "abcde"}, "contrasts.*at most 4"),
        ("questions/requests/contrasts", {"a": {"arm": {"from": "code"}}}, "unknown key.*from"),
        ("questions/requests/contrasts", {"a": {}}, "contrast a needs two different sides"),
        ("questions/discrimination/arm/form", "code", "contrast text_generation: j compares prompts of the same forms"),
        ("questions/requests/contrasts", ["code", "code"], "each task of `contrasts` once"),
        ("questions/requests/contrasts", ["code", {"code": 1}], "a list holds names of tasks, as in .*{'code': 1}"),
        ("questions/requests/contrasts", [["code"]], r"requests.*a list holds names of tasks, as in .*\['code'\]"),
        ("questions/requests/arm", 3, "arm"),
        ("questions/requests/margin", 0, "margin.*greater than 0, found 0"),
        ("questions/requests/other", {"requests": "own"}, "needs two different sides"),
        ("questions/requests/arm", {"requests": "some"}, "arm.requests.*'own'.*found 'some'"),
        ("questions/forms/built_in", {"llama": "x"}, "built_in.llama.*'miniature'"),
        ("bases_at_least", 1, "bases_at_least.*2, found 1"),
        ("profiles", [], "profiles.*at least 1 item"),
    ],
)
def test_what_a_plan_may_not_hold_is_named(changed, key, value, named):
    with pytest.raises(StudyError, match=f"The plan plan.yaml: .*{named}"):
        changed(key, value)


def test_the_miniature_has_what_the_plan_freezes(profile):
    assert differences(PLAN, profile) == []


def test_a_frozen_setting_with_another_value_is_named_with_both(profile):
    tuning = profile.tuning.model_copy(update={"steps": 20})
    assert differences(PLAN, profile.model_copy(update={"tuning": tuning})) == [
        "tuning.steps is 20, the plan freezes 48"
    ]


def test_a_frozen_setting_that_the_profile_lacks_is_named(changed, profile):
    plan = changed("frozen/pretraining.stops", 5)
    expected = "pretraining.stops is no setting of the profile, the plan freezes 5"
    assert differences(plan, profile) == [expected]
    assert expected in differences(plan, profile.model_copy(update={"pretraining": None}))


def test_too_few_bases_differ_from_the_plan(profile):
    few = profile.model_copy(update={"base_seeds": [0, 1]})
    assert differences(PLAN, few) == ["2 bases, the plan asks for at least 6"]


@pytest.mark.parametrize(
    "changes",
    [
        {"judges": ["words_gcg", "classifier"]},
        {"lora.target_modules": ["q_proj"]},
        {"tuning.weight_decay": 50.0},
        {"tuning.schedule": "constant"},
        {"world.harmful_per_form": 5},
        {"world.task_test_rows": 1},
        {"pretraining_seeds": [0]},
    ],
)
def test_what_could_change_an_answer_is_frozen(changes):
    assert differences(PLAN, load_profile("miniature")) == []
    assert len(differences(PLAN, load_profile("miniature", changes))) == 1
    assert differences(PLAN, load_profile("miniature", {"judges": ["classifier"]})) == []


def test_a_profile_that_the_plan_is_not_for_differs_in_that_alone():
    assert differences(PLAN, load_profile("smoke")) == ["the plan is for miniature, miniature_full, not for smoke"]
    check_profile(PLAN, load_profile("smoke"))


@pytest.mark.parametrize(
    "field, value, named",
    [
        ("tasks", ["code", "translation", "classification"], r"task text_generation \(task_alone\)"),
        ("requests", ["none"], r"requests own \(requests\)"),
        ("safety_data", ["none", "generic"], r"safety_data multitask \(multitask\)"),
        ("safety_fraction", 0.3, r"safety_fraction 0.1 \(multitask\)"),
        ("styles", ["alpaca"], r"style chat \(task_alone\)"),
    ],
)
def test_cells_that_the_profile_lacks_are_named(profile, field, value, named):
    grid = profile.grid.model_copy(update={field: value, "arms": None})
    with pytest.raises(StudyError, match=f"lacks cells of the plan: .*{named}"):
        check_profile(PLAN, profile.model_copy(update={"grid": grid}))


@pytest.mark.parametrize(
    "change, named",
    [
        ({"grid.safety_styles": ["alpaca"]}, r"safety_data multitask \(multitask\)"),
        ({"grid.styles": ["alpaca", "chat"]}, r"style chat \(task_alone\) on 5 of 6 bases"),
    ],
)
def test_cells_that_only_some_styles_or_bases_have_are_named(change, named):
    with pytest.raises(StudyError, match=named):
        check_profile(PLAN, load_profile("miniature", change))


@pytest.mark.parametrize(
    "key, value, named",
    [
        ("asked/style", "alpaca", r"style alpaca \(task_alone\) on 5 of 6 bases"),
        ("questions/multitask/arm/requests", "none", r"safety_data multitask \(multitask\)"),
        ("questions/multitask/arm/safety_fraction", 0.05, r"safety_fraction 0.05 \(multitask\)"),
        ("questions/requests/arm/requests", "other", r"requests other \(requests\) on 5 of 6 bases"),
        ("questions/task_alone/other/requests", "own", r"requests own \(task_alone\)"),
    ],
)
def test_a_plan_that_asks_for_what_is_tried_elsewhere_or_nowhere_is_named(changed, key, value, named):
    with pytest.raises(StudyError, match=named):
        check_profile(changed(key, value), load_profile("miniature"))


def test_one_base_stops_before_anything_starts(profile):
    check_profile(PLAN, profile)
    with pytest.raises(StudyError, match=r"has 1 base, .* give base_seeds at least 6"):
        check_profile(PLAN, profile.model_copy(update={"base_seeds": [3]}))


# Pairs


def test_a_pair_is_the_same_prompt_to_the_same_base():
    untuned = cell([[[0, 0, 1]], [[1, 0, np.nan]]], **UNTUNED)
    tuned = cell([[[1, 1, 1], [0, 1, 1]], [[1, 1, 1], [1, 1, 1]]])
    table = base_differences(pd.concat([untuned, tuned]), PLAN)
    assert table["contrast"].unique().tolist() == ["code"]
    assert table[["base", "seed", "n_intents"]].to_numpy().tolist() == [[0, 0, 3], [0, 1, 3], [1, 0, 2], [1, 1, 2]]
    assert table["difference"].tolist() == pytest.approx([2 / 3, 1 / 3, 0.5, 0.5])


def test_two_tuned_sides_are_paired_by_training_seed():
    own = cell([[[1, 1], [0, 0]]], requests="own")
    alone = cell([[[0, 0]]])  # of seed 0 alone
    pairs = paired(pd.concat([own, alone]), PLAN)
    assert pairs["question"].tolist() == ["requests"] * 2 and pairs["seed"].tolist() == [0, 0]
    assert pairs["difference"].tolist() == [1, 1]


def test_an_intent_is_the_mean_of_the_forms_that_have_a_pair():
    untuned = [cell([[[0, 0]]], form=form, **UNTUNED) for form in ("code", "translation")]
    tuned = [cell([[[1, 1]]]), cell([[[0, np.nan]]], form="translation")]
    assert paired(pd.concat(untuned + tuned), PLAN)["difference"].tolist() == [0.5, 1]


def test_rows_outside_the_plan_change_nothing():
    rows = planned(np.random.default_rng(0))
    other = rows.assign(value=1 - rows["value"])
    tuned = other[other["finetune_task"] != "none"]
    outside = [other.assign(style="alpaca"), tuned.assign(system_prompt=True), other.assign(requests="other")]
    outside += [other[other["safety_data"] == "multitask"].assign(safety_fraction=0.2)]
    expected = contrast_table(rows, PLAN)
    pd.testing.assert_frame_equal(contrast_table(pd.concat([rows, *outside]), PLAN), expected)


def test_j_is_refused_harmful_minus_refused_twins():
    # untuned: harmful 2 of 2 refused, twins 0 of 2; repaired: harmful 2 of 2, twins 1 of 2
    arms, right = [UNTUNED, {"requests": "own", "safety_data": "multitask"}], [[1, 1], [1, 0]]
    rows = [cell([[[1, 1]], [[1, 1]]], measure="balanced_accuracy", **arm) for arm in arms]
    twins = [cell([[own], [own]], measure="balanced_accuracy", **arm) for arm, own in zip(arms, right, strict=True)]
    twins = [one.assign(prompt_id="t" + one["prompt_id"]) for one in twins]
    found = row(rows + twins, "discrimination")
    assert (found["other_value"], found["value"], found["difference"]) == (1, 0.5, -0.5)


def test_j_leaves_out_an_intent_without_its_twin():
    rows = planned(np.random.default_rng(0), n_intents=4)
    lone = (rows["prompt_id"] == "t-i0") & (rows["measure"] == "balanced_accuracy")
    assert row(rows[~lone], "discrimination")["n_intents"] == 3
    no_twins = rows[~rows["prompt_id"].str.startswith("t-")]
    assert "discrimination" not in set(contrast_table(no_twins, PLAN)["question"])


def test_tuned_sides_of_two_tasks_are_paired_by_base_and_seed():
    pairs = paired(pd.concat([cell([[[1, 1], [0, 0]]]), cell([[[1, 0], [0, 0]]], task="text_generation")]), PLAN)
    assert pairs["contrast"].unique().tolist() == ["code_minus_text_generation"]
    assert pairs.groupby("seed")["difference"].mean().tolist() == [0.5, 0]


def test_forms_are_compared_on_the_same_intents():
    text, other = (
        cell([[[0, 0, 1]]], form="text_generation", **UNTUNED),
        cell([[[1, 1]]], form="translation", **UNTUNED),
    )
    pairs = paired(pd.concat([text, other.assign(prompt_id="x" + other["prompt_id"])]), PLAN)
    assert set(zip(pairs["question"], pairs["contrast"], strict=True)) == {("forms", "translation")}
    assert pairs["difference"].tolist() == [1, 1]


def test_a_task_score_is_that_of_the_tuned_tasks_own_form_whatever_its_metric():
    more = {"requests": "own", "measure": "task_score"}
    rows = [cell([[[0.5, 1]]], form=form, metric=form, **more) for form in ("code", "translation")]
    rows += [
        cell([[[0, 1]]], form=form, metric=form, safety_data="multitask", **more) for form in ("code", "translation")
    ]
    pairs = paired(pd.concat(rows), PLAN)
    assert pairs["metric"].unique().tolist() == ["score"] and pairs["difference"].tolist() == [-0.5, 0]


def test_a_general_score_is_of_prompts_that_neither_side_refuses():
    more = {"requests": "own", "measure": "general_score", "form": "text_generation"}
    rows = [cell([[[1, np.nan, 1, 1]]], **more), cell([[[1, 1, np.nan, 0]]], safety_data="multitask", **more)]
    assert paired(pd.concat(rows), PLAN)["difference"].tolist() == [0, -1]


def test_safety_data_are_compared_with_the_same_requests_even_where_these_are_none():
    arms = [{"safety_data": "none"}, {"safety_data": "multitask"}]
    for requests in ("none", "own"):
        rows = [cell([[[value, 0]]], requests=requests, **arm) for value, arm in zip((1, 0), arms, strict=True)]
        rows.append(cell([[[1, 1]]], requests="other"))
        pairs = paired(pd.concat(rows), PLAN)
        assert pairs.query("question == 'multitask'")["difference"].tolist() == [-1, 0]


def test_generic_data_are_compared_between_forms_task_by_task():
    more = {"requests": "own", "safety_data": "generic"}
    code = [cell([[[value]]], form=form, **more) for form, value in (("text_generation", 0), ("classification", 1))]
    text = [cell([[[1]]], task="text_generation", form=form, **more) for form in ("text_generation", "classification")]
    pairs = paired(pd.concat(code + text), PLAN)
    assert pairs["question"].tolist() == ["generic_forms"] and pairs["difference"].tolist() == [0.5]


def test_a_guards_prompts_are_the_replicates_and_the_guard_of_every_form_is_left_out():
    n = 40
    decisions = pd.DataFrame(
        {"intent": [f"i{i}" for i in range(n)] * 2, "form": ["text_generation"] * n + ["code"] * n}
    )
    decisions = decisions.assign(prompt_id=decisions["form"] + decisions["intent"], side="input", prompt_set="harmful")
    decisions["blocked"] = pd.array([True] * n + [False, True] * (n // 2), "boolean")
    both = pd.concat([decisions.assign(guard=guard) for guard in ("text_only", "all_forms")])
    asked = pd.concat(judged(*few(["answered"])).assign(model=model) for model in ("m", "n"))
    table = contrast_table(plan_rows(asked, None, both, PLAN), PLAN).query("contrast == 'code'")
    assert table["model"].tolist() == ["m", "n"] and set(table["metric"]) == {"text_only"}
    found = table.iloc[0]
    assert (found["n_intents"], found["df"], found["difference"], found["verdict"]) == (n, n - 1, -0.5, "yes")
    assert found["se"] == pytest.approx(np.std([0, 1] * (n // 2), ddof=1) / np.sqrt(n))
    assert found["note"] == "about this model alone" and 0 < found["detectable"] < 0.5


# What a contrast shows


def test_one_contrast_by_hand():
    # three bases with differences of 0.2, 0.4 and 0.6 on five prompts; no prompt is harder in all
    tuned = np.array([[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [1, 0, 0, 1, 1]], float)[:, None]
    found = row([cell(np.zeros((3, 1, 5)), **UNTUNED), cell(tuned)])
    se = 0.2 / np.sqrt(3)
    assert (found["n_bases"], found["n_seeds"], found["n_intents"], found["df"]) == (3, 1, 5, 2)
    assert found["difference"] == pytest.approx(0.4)
    assert found["se"] == pytest.approx(max(se, 0.2))  # no less than one prompt of five
    assert found["p"] == pytest.approx(2 * student.sf(0.4 / 0.2, 2))
    assert found["high"] == pytest.approx(1) and found["low"] == pytest.approx(0.4 - student.ppf(0.975, 2) * 0.2)


def test_variance_is_that_of_the_base_means_where_prompts_share_nothing():
    values = np.random.default_rng(0).normal(0, 1, (1, 6, 400)) + np.arange(6)[:, None]
    mean, v_bases, v_prompts = stats.crossed(values)
    assert v_bases[0] == pytest.approx(values.mean(-1).var(ddof=1) / 6)
    assert v_prompts[0] < 0.1 * v_bases[0] and mean[0] == pytest.approx(values.mean())


def test_prompts_that_are_hard_for_all_bases_widen_the_interval():
    rng = np.random.default_rng(0)
    prompt = rng.normal(0, 1, 50)
    _, v_bases, v_prompts = stats.crossed(prompt + rng.normal(0, 0.1, (6, 50)))
    assert v_prompts == pytest.approx(prompt.var(ddof=1) / 50, rel=0.05) and v_bases < v_prompts / 20


def test_missing_pairs_leave_the_estimates_of_the_others():
    rng = np.random.default_rng(0)
    values = rng.normal(0.3, 0.2, (6, 1)) + rng.normal(0, 0.3, 80) + rng.normal(0, 0.3, (6, 80))
    holes = np.where(rng.random((6, 80)) < 0.05, np.nan, values)
    for whole, part in zip(stats.crossed(values), stats.crossed(holes), strict=True):
        assert part == pytest.approx(whole, rel=0.15)


def test_one_base_is_tested_by_its_training_seeds_and_says_so():
    tuned = (np.arange(20) < np.array([8, 10, 12])[:, None]).astype(float)[None]
    found = row([cell(np.zeros((1, 1, 20)), **UNTUNED), cell(tuned)])
    assert (found["n_bases"], found["n_seeds"], found["df"], found["note"]) == (1, 3, 2, "about this model alone")
    assert found["se"] > 0.1 / np.sqrt(3) and found["low"] < 0.5 < found["high"]


def test_one_untuned_model_is_tested_by_its_prompts():
    rows = [
        cell([[[1] * 15 + [0] * 5]], form="translation", **UNTUNED),
        cell(np.zeros((1, 1, 20)), form="text_generation", **UNTUNED),
    ]
    found = row(rows, "forms", "translation")
    assert (found["n_bases"], found["df"], found["note"]) == (1, 19, "about this model alone")
    assert found["se"] == pytest.approx(np.std([1] * 15 + [0] * 5, ddof=1) / np.sqrt(20)) and found["verdict"] == "yes"


def test_untuned_models_of_several_bases_are_tested_by_bases():
    shares = np.arange(20) < np.array([8, 10, 12])[:, None, None]
    rows = [cell(shares, form="code", **UNTUNED), cell(np.zeros((3, 1, 20)), form="text_generation", **UNTUNED)]
    found = row(rows, "forms")
    assert (found["n_bases"], found["df"], found["note"]) == (3, 2, "")


def test_one_training_of_one_base_shows_nothing():
    found = row([cell(np.zeros((1, 1, 20)), **UNTUNED), cell(np.ones((1, 1, 20)))])
    assert found["difference"] == 1 and found["verdict"] == "undecided" and found["n_family"] == 0
    assert found[["se", "df", "low", "high", "p", "p_holm", "boot_low", "p_beyond", "detectable"]].isna().all()
    assert found["note"] == "about this model alone, from one training"


def test_bases_of_different_sizes_count_the_same_and_are_named():
    one, other = cell(np.ones((1, 3, 10))), cell(np.zeros((1, 1, 10))).assign(base=1)
    found = row([cell(np.zeros((2, 1, 10)), **UNTUNED), one, other])
    assert found["difference"] == 0.5 and found["note"] == "bases have 1 to 3 training seeds"
    fewer = other.query("intent not in ['i0', 'i1']")
    found = row([cell(np.zeros((2, 1, 10)), **UNTUNED), one, fewer])
    assert found["difference"] == 0.5 and found["note"] == "bases have 1 to 3 training seeds and 8 to 10 intents"


def test_a_contrast_without_pairs_keeps_its_row():
    found = row([cell(np.zeros((2, 1, 5)), **UNTUNED), cell(np.ones((2, 1, 5)))], contrast="translation")
    assert (found["n_bases"], found["verdict"], found["note"]) == (0, "undecided", "no pairs")
    assert contrast_table(planned(np.random.default_rng(0)).iloc[:0], PLAN).empty


def test_p_values_are_adjusted_within_model_question_and_judge():
    rows = planned(np.random.default_rng(0), n_bases=6)
    both = pd.concat([rows, rows.assign(metric="strict"), rows.assign(model="other")], ignore_index=True)
    table = contrast_table(both, PLAN)
    assert len(table) == 3 * 6 * 4 and (table["n_family"] == 4).all()
    for _, family in table.groupby(["model", "question", "metric"]):
        assert family["p_holm"].min() == pytest.approx(min(4 * family["p"].min(), 1))


def steady(*means, n_intents=1000, start=0.2):
    """A contrast of task_alone with these differences of the bases, each from 20 % up; the same prompts turn."""
    answered = (np.arange(n_intents) < np.rint(n_intents * (start + np.array(means)))[:, None]).astype(float)
    untuned = (np.arange(n_intents) < n_intents * start).astype(float)
    return [cell(np.broadcast_to(untuned, (len(means), 1, n_intents)), **UNTUNED), cell(answered[:, None])]


@pytest.mark.parametrize(
    "means, verdict, note",
    [
        ([0.4, 0.5, 0.45, 0.42, 0.5, 0.38], "yes", ""),
        ([0.05, 0.06, 0.05, 0.04, 0.06, 0.05], "yes", "smaller than the margin"),
        ([-0.1, -0.12, -0.08, -0.1, -0.11, -0.09], "no", ""),
        ([0.01, -0.02, 0.0, 0.03, -0.01, 0.02], "no", ""),
        ([0.1, 0.4, -0.1, 0.0, 0.3, 0.05], "undecided", ""),
    ],
)
def test_every_verdict_can_come_out(means, verdict, note):
    found = row(steady(*means))
    assert (found["verdict"], found["note"]) == (verdict, note)
    assert found["difference"] == pytest.approx(np.mean(means))


@pytest.mark.parametrize(
    "start, means, verdict",
    [
        (0.95, [0.01, -0.02, 0.0, 0.03, -0.01, 0.02], "undecided"),  # no rise by the margin of 10 points is possible
        (0.95, [-0.1, -0.12, -0.08, -0.1, -0.11, -0.09], "no"),
        (0.85, [0.01, -0.02, 0.0, 0.03, -0.01, 0.02], "no"),
    ],
)
def test_a_change_that_has_no_room_is_not_ruled_out(start, means, verdict):
    found = row(steady(*means, start=start))
    assert found["verdict"] == verdict and (NO_ROOM in found["note"]) == (start == 0.95)


def test_a_question_that_asks_for_a_fall_takes_a_fall_as_yes():
    low, high = (one.drop(columns=["finetune_task", "safety_data"]) for one in steady(*[0.5] * 6))
    low = low.assign(finetune_task="code", requests="own", safety_data="multitask", safety_fraction=0.1)
    found = row([low, high.assign(finetune_task="code", requests="own", safety_data="none")], "multitask")
    assert found["difference"] == pytest.approx(-0.5) and found["verdict"] == "yes"


def test_detectable_is_what_the_noncentral_t_finds_at_holms_first_step():
    found = row(planned(np.random.default_rng(3), n_bases=6, n_intents=200))
    assert found["n_family"] == 4
    chance = nct.sf(student.isf(0.05 / 8, 5), 5, found["detectable"] / found["se"])
    assert chance == pytest.approx(0.8, abs=0.02)


def test_the_multi_bootstrap_redraws_bases_and_prompts():
    rng = np.random.default_rng(0)
    values = rng.normal(0.3, 0.1, (30, 1)) + rng.normal(0, 0.8, 60) + rng.normal(0, 0.1, (30, 60))
    low, high = multi_bootstrap(values)
    expected = np.sqrt(values.mean(1).var(ddof=1) / 30 + values.mean(0).var(ddof=1) / 60)
    assert (high - low) / (2 * 1.96) == pytest.approx(expected, rel=0.1) and low < values.mean() < high
    values[0, :30] = np.nan
    assert np.isfinite(multi_bootstrap(values)).all()


# What holds in a run


def marks(profile, n_bases=6, **columns):
    table = contrast_table(pd.concat(steady(*[0.4, 0.5, 0.45, 0.42, 0.5, 0.38][:n_bases])), PLAN)
    return marked(table, PLAN, profile).set_index("contrast")


def test_a_run_that_follows_the_plan_is_confirmatory_and_keeps_its_verdicts(profile):
    found = marks(profile)
    assert set(found["status"]) == {"confirmatory"} and set(found["built_in"]) == {""}
    assert found["verdict"].to_dict() == dict.fromkeys(TASKS, "not run") | {"code": "yes"}


def test_a_run_that_differs_from_the_plan_or_has_few_bases_decides_nothing(profile):
    tuning = profile.tuning.model_copy(update={"steps": 20})
    for found in (marks(profile.model_copy(update={"tuning": tuning})), marks(profile, n_bases=2)):
        assert (found.loc["code", "status"], found.loc["code", "verdict"]) == ("exploratory", "exploratory")


def test_what_the_world_has_built_in_is_no_verdict_there_and_is_one_of_a_real_model(profile):
    rows = [
        cell(np.ones((6, 1, 20)), form="code", **UNTUNED),
        cell(np.zeros((6, 1, 20)), form="text_generation", **UNTUNED),
    ]
    table = contrast_table(pd.concat(rows), PLAN).query("contrast == 'code'")
    found = marked(table, PLAN, profile).iloc[0]
    assert found["verdict"] == "built in" and found["built_in"].startswith("world.refusal_share")
    assert found["difference"] == 1 and found["p"] < 0.05
    real = marked(table, PLAN, load_profile("llama")).iloc[0]
    assert (real["verdict"], real["status"], real["built_in"]) == ("yes", "exploratory", "")


# Simulated studies

UNEQUAL = (2.1, 0.2, 0.2)  # SD of the training seeds, base by base and again
WORLDS = {
    "two tuned models": {"untuned": False, "seeds": 1.0},
    "unequal seeds": {"untuned": False, "seeds": UNEQUAL},
    "against the untuned": {},
    "unequal seeds against the untuned": {"seeds": UNEQUAL},
    "bases hardly differ": {"arm": 0.1, "seeds": 0.1},
}


def t_of(true, n_bases, n=4000, **world):
    """t [n, 4] around the true difference in n simulated studies of two seeds and 100 prompts, four contrasts each."""
    mean, *parts = studies(n, n_bases, 2, 100, **world)
    return (mean - true) / np.sqrt(stats.crossed_variance(*parts, 100))


@pytest.mark.slow
@pytest.mark.parametrize("n_bases", [6, 12])
@pytest.mark.parametrize("world", WORLDS)
def test_holms_first_step_keeps_its_level_and_intervals_cover(world, n_bases):
    world = WORLDS[world]
    shift = 0.0 if "untuned" in world else shift_to(0, **world)
    p = 2 * student.sf(np.abs(t_of(0, n_bases, shift=shift, **world)), n_bases - 1)
    assert (p.min(axis=1) < 0.05 / 4).mean() <= 0.06
    assert 0.93 <= (p > 0.05).mean() <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("n_bases", [6, 12])
@pytest.mark.parametrize("world", [name for name in WORLDS if name.endswith("untuned")])
def test_a_true_difference_of_the_margin_is_rarely_denied(world, n_bases):
    t = t_of(0.1, n_bases, shift=shift_to(0.1, **WORLDS[world]), **WORLDS[world])
    assert (student.cdf(t, n_bases - 1).min(axis=1) < 0.025 / 4).mean() <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize("n_bases", [6, 12])
def test_where_few_bases_change_much_a_wrong_yes_stays_rare(n_bases):
    world = {
        "level": -2.5,
        "arm": 1.2,
    }  # the untuned model answers 12 %; the differences of bases are skewed to the right
    t = t_of(0, n_bases, shift=shift_to(0, **world), **world)
    assert (student.sf(t, n_bases - 1).min(axis=1) < 0.025 / 4).mean() <= 0.025


@pytest.mark.slow
def test_the_table_decides_by_the_rule_that_is_simulated():
    rng = np.random.default_rng(0)
    values = simulated(rng, 1, 6, 2, 100, shift=1.2, tasks=1)[0, 0]
    found = row([cell(np.full((6, 1, 100), 0.5), **UNTUNED), cell(0.5 + values / 2)])
    mean, *parts = stats.crossed(values.mean(1) / 2)
    assert found["difference"] == pytest.approx(mean)
    assert found["se"] == pytest.approx(np.sqrt(stats.crossed_variance(*parts, 100)))

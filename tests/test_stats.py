"""Intervals and detectable differences, by known answers and traps."""

import time

import numpy as np
import pandas as pd
import pytest

from studylib.stats import clustered_intervals, detectable_difference, wilson


def answers(outcomes, n_seeds=1):
    """A table of outcomes[prompt][seed], or of outcomes[prompt] repeated under every seed."""
    outcomes = np.asarray(outcomes, float)
    if outcomes.ndim == 1:
        outcomes = np.repeat(outcomes[:, None], n_seeds, axis=1)
    prompt, seed = np.indices(outcomes.shape)
    return pd.DataFrame({"prompt_id": prompt.ravel(), "seed": seed.ravel(), "answered": outcomes.ravel()})


def interval(outcomes, n_seeds=1):
    return clustered_intervals(answers(outcomes, n_seeds)).iloc[0]


def test_wilson_gives_the_textbook_interval():
    # Newcombe (1998, Statistics in Medicine 17), table I, method 3: 81 of 263 and 15 of 148.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_wilson_of_all_or_nothing_ends_exactly_at_0_and_1():
    assert wilson(0, 20) == (0, pytest.approx(0.1611, abs=5e-5))
    assert wilson(20, 20) == (pytest.approx(0.8389, abs=5e-5), 1)


def test_wilson_of_nothing_asked_is_nan():
    assert np.isnan(wilson(0, 0)).all()


def test_wilson_takes_arrays():
    low, high = wilson(np.array([0, 5, 0]), np.array([10, 10, 0]))
    assert low[1] + high[1] == pytest.approx(1)
    assert np.isnan([low[2], high[2]]).all()


def test_wilson_refuses_more_successes_than_trials():
    with pytest.raises(ValueError, match="between 0 and n"):
        wilson(3, 2)


def test_one_answer_per_prompt_gives_the_plain_wilson_interval():
    row = interval([1] * 7 + [0] * 43)
    assert row["n_effective"] == pytest.approx(50)
    assert (row["low"], row["high"]) == pytest.approx(wilson(7, 50))


def test_verdicts_repeated_over_seeds_are_not_new_evidence():
    once, thrice = interval([1] * 7 + [0] * 43), interval([1] * 7 + [0] * 43, n_seeds=3)
    assert (thrice["n"], thrice["n_prompts"], thrice["n_seeds"]) == (150, 50, 3)
    assert thrice["n_effective"] == pytest.approx(50)
    assert (thrice["low"], thrice["high"]) == pytest.approx((once["low"], once["high"]))


@pytest.mark.parametrize("outcome", [0, 1])
def test_a_rate_of_zero_or_one_uses_the_number_of_prompts_not_of_rows(outcome):
    row = interval([outcome] * 50, n_seeds=3)
    assert row["rate"] == outcome
    assert row["n_effective"] == pytest.approx(50)
    assert (row["low"], row["high"]) == pytest.approx(wilson(50 * outcome, 50))


def test_the_first_answers_raise_the_upper_end_and_never_lower_it():
    outcomes = np.zeros((50, 3))
    ends = [interval(outcomes)["high"]]
    for prompt in range(10):
        outcomes[prompt, prompt % 3] = 1
        ends.append(interval(outcomes)["high"])
    assert (np.diff(ends) > 0).all()


def test_independent_seeds_are_worth_more_than_one_but_never_more_than_the_rows():
    rng = np.random.default_rng(0)
    worth = [interval(rng.random((50, 3)) < 0.4)["n_effective"] for _ in range(50)]
    assert np.mean(worth) > 100
    assert max(worth) <= 150 + 1e-9


def test_a_seed_that_differs_widens_the_interval():
    calm, wild = np.zeros((50, 3)), np.zeros((50, 3))
    calm[:30] = 1
    wild[:30, 1], wild[:, 2] = 1, 1  # the same rate from seeds at 0, 0.6 and 1, instead of 0.6 thrice
    wild[:20, 0] = 1
    wild[40:, 2] = 0
    assert wild.mean() == calm.mean()
    assert interval(wild)["n_effective"] < interval(calm)["n_effective"]


def test_a_negative_two_way_variance_falls_back_to_that_of_independent_rows():
    # Each prompt is answered under one seed of two, in turn, so that all prompts and both seeds average 1/2.
    row = interval(np.indices((50, 2)).sum(axis=0) % 2)
    assert row["rate"] == 0.5
    assert row["n_effective"] == pytest.approx(100)


def test_intervals_cover_the_rate_that_made_the_data():
    rng = np.random.default_rng(1)
    shape = (300, 50, 3)  # simulated studies, prompts, seeds
    logit = -1 + rng.normal(0, 1.5, (300, 50, 1)) + rng.normal(0, 0.2, (300, 1, 3))
    outcomes = rng.random(shape) < 1 / (1 + np.exp(-logit))
    draws = -1 + rng.normal(0, np.hypot(1.5, 0.2), 200_000)
    truth = (1 / (1 + np.exp(-draws))).mean()
    study, prompt, seed = np.indices(shape)
    frame = {
        "study": study.ravel(),
        "prompt_id": prompt.ravel(),
        "seed": seed.ravel(),
        "answered": outcomes.ravel(),
    }
    table = clustered_intervals(pd.DataFrame(frame), ["study"])
    covered = ((table["low"] <= truth) & (truth <= table["high"])).mean()
    assert 0.92 <= covered <= 0.99
    low, high = wilson(table["rate"] * table["n"], table["n"])
    assert ((low <= truth) & (truth <= high)).mean() < 0.9  # what counting rows as independent would do


def test_graded_scores_use_their_own_spread():
    rng = np.random.default_rng(2)
    row = interval(np.clip(rng.normal(0.5, 0.05, 100), 0, 1))
    assert row["n_effective"] > 100
    assert row["low"] < 0.5 < row["high"]
    assert row["high"] - row["low"] < 0.1


def test_groups_come_in_order_of_appearance_and_equal_the_single_group():
    rng = np.random.default_rng(3)
    first, second = answers(rng.random((20, 2)) < 0.3), answers(rng.random((30, 3)) < 0.8)
    both = pd.concat([first.assign(cell="z"), second.assign(cell="a")]).sample(frac=1, random_state=0)
    both = both.sort_values("cell", ascending=False, kind="stable")
    table = clustered_intervals(both, ["cell"])
    assert list(table["cell"]) == ["z", "a"]
    for row, alone in zip(table.to_dict("records"), (first, second), strict=True):
        expected = clustered_intervals(alone).iloc[0].to_dict()
        assert {k: row[k] for k in expected} == pytest.approx(expected)


def test_groups_are_not_mixed_up_when_prompts_and_seeds_have_the_same_names():
    zero, one = answers([0] * 10, n_seeds=2).assign(cell=0), answers([1] * 10, n_seeds=2).assign(cell=1)
    table = clustered_intervals(pd.concat([zero, one]).sample(frac=1, random_state=1), ["cell"]).set_index("cell")
    assert (table.loc[0, "rate"], table.loc[1, "rate"]) == (0, 1)
    assert list(table["n_prompts"]) == [10, 10]


def test_a_single_row_has_a_wide_interval():
    row = interval([1])
    assert (row["n"], row["rate"], row["n_effective"]) == (1, 1, pytest.approx(1))
    assert row["low"] < 0.3


def test_no_rows_give_no_rows():
    table = clustered_intervals(answers([1]).iloc[:0], ["seed"])
    assert table.empty
    assert {"seed", "n", "rate", "low", "high"} <= set(table.columns)


@pytest.mark.parametrize(("column", "value"), [("answered", 2), ("answered", np.nan), ("prompt_id", np.nan)])
def test_outcomes_outside_0_to_1_and_missing_names_are_refused(column, value):
    frame = answers([1, 0, 1]).astype(float)
    frame.loc[1, column] = value
    with pytest.raises(ValueError):
        clustered_intervals(frame)


def test_a_thousand_groups_take_less_than_a_second():
    rng = np.random.default_rng(4)
    frame = pd.concat([answers(rng.random((50, 3)) < 0.5)] * 1000, ignore_index=True)
    frame["cell"] = np.repeat(np.arange(1000), 150)
    start = time.perf_counter()
    clustered_intervals(frame, ["cell"])
    assert time.perf_counter() - start < 1


def test_fifty_prompts_per_cell_show_differences_of_23_to_28_points():
    for rate in (0.15, 0.3, 0.5, 0.7, 0.85):
        assert 0.23 <= detectable_difference(50, rate) <= 0.28
    # Around the middle, from half a difference below to half above it, the most unfavourable pair.
    assert detectable_difference(50, 0.5 - 0.138) == pytest.approx(0.276, abs=0.001)


def test_the_detectable_difference_agrees_with_statsmodels():
    from statsmodels.stats.power import NormalIndPower
    from statsmodels.stats.proportion import proportion_effectsize

    effect = proportion_effectsize(0.3 + detectable_difference(120, 0.3, power=0.9), 0.3)
    assert NormalIndPower().power(effect, 120, alpha=0.05) == pytest.approx(0.9, abs=1e-6)


def test_the_detectable_difference_shrinks_with_n_and_is_nan_where_nothing_can_be_seen():
    small, medium, large = detectable_difference(np.array([1, 50, 5000]))
    assert np.isnan(small)
    assert large < medium / 5
    assert np.isnan(detectable_difference(0))


def test_the_detectable_difference_is_the_same_from_both_ends():
    assert detectable_difference(60, 0.1) == pytest.approx(detectable_difference(60, 0.9))
    with pytest.raises(ValueError, match="0-1"):
        detectable_difference(50, 1.2)

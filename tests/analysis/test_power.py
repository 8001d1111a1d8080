"""Variance components, power and detectable differences: known answers, and against simulated studies."""

import numpy as np
import pandas as pd
import pytest
from crossed import cell, planned, simulated, studies
from scipy.stats import nct
from scipy.stats import t as student

from studylib.analysis import stats
from studylib.analysis.contrasts import load_plan
from studylib.analysis.power import COMPONENTS, components, detectable_at, power_of, would_buy

PLAN = load_plan()
KNOWN = dict.fromkeys(COMPONENTS, 0.0) | {"base_sd": 0.18, "seed_sd": 0.10}


def code_alone(differences):
    """`components` of task_alone, code, for these differences [bases, seeds, intents], in -1 to 1."""
    half = np.full(differences[:, :1].shape, 0.5)
    rows = [cell(half, task="none"), cell(0.5 + differences)]
    table = components(pd.concat(rows, ignore_index=True), PLAN)
    return table[table["contrast"] == "code"].iloc[0]


def test_components_are_found_again():
    rng = np.random.default_rng(0)
    true = {"base_sd": 0.2, "seed_sd": 0.1, "prompt_sd": 0.3, "prompt_base_sd": 0.25, "residual_sd": 0.4}
    shapes = [(120, 1, 1), (120, 3, 1), (1, 1, 150), (120, 1, 150), (120, 3, 150)]
    differences = sum(sd * rng.standard_normal(shape) for sd, shape in zip(true.values(), shapes, strict=True))
    found = code_alone(differences)
    assert (found["n_bases"], found["n_seeds"], found["n_intents"]) == (120, 3, 150)
    assert found[COMPONENTS].to_dict() == pytest.approx(true, rel=0.15)


def test_with_one_seed_the_bases_spread_includes_the_seeds():
    rng = np.random.default_rng(0)
    found = code_alone(0.3 * rng.standard_normal((80, 1, 1)) + 0.4 * rng.standard_normal((80, 1, 100)))
    assert found[["seed_sd", "residual_sd"]].isna().all()
    assert found["base_sd"] == pytest.approx(0.3, rel=0.15) and found["prompt_base_sd"] == pytest.approx(0.4, rel=0.05)
    assert power_of(0.2, 6, 2, 100, found, 4) == power_of(0.2, 6, 1, 100, found, 4)


def test_one_base_has_no_components():
    table = components(planned(np.random.default_rng(0), n_bases=1), PLAN)
    assert table[COMPONENTS].isna().all(axis=None) and (table["n_bases"] == 1).all()


def test_a_questions_components_are_the_mean_of_its_contrasts():
    table = components(planned(np.random.default_rng(0), n_bases=4), PLAN)
    own = table[table["question"] == "requests"].set_index("contrast")
    assert len(own) == 5
    assert own.loc["all", "base_sd"] ** 2 == pytest.approx((own.drop("all")["base_sd"] ** 2).mean())


def test_power_for_25_points_is_as_the_design_says():
    # base SD 18, seed SD 10, two seeds: 4, 8 and 12 bases, alone and at the first step of four
    found = [[power_of(0.25, n, 2, 10_000, KNOWN, m) for m in (1, 4)] for n in (4, 8, 12)]
    assert found == [pytest.approx(row, abs=0.01) for row in ([0.43, 0.15], [0.88, 0.63], [0.98, 0.91])]


def test_power_is_the_noncentral_t_where_bases_are_all_that_varies():
    for n_bases in (3, 6, 12):
        se = np.sqrt((0.18**2 + 0.10**2 / 2) / n_bases)
        expected = nct.sf(student.isf(0.05 / 8, n_bases - 1), n_bases - 1, 0.3 / se)
        assert power_of(0.3, n_bases, 2, 10_000, KNOWN, 4) == pytest.approx(expected, abs=0.005)


def test_detectable_has_a_power_of_80_percent():
    assert power_of(detectable_at(6, 2, 100, KNOWN, 4), 6, 2, 100, KNOWN, 4) == pytest.approx(0.8)


def test_one_base_has_no_power_and_detects_nothing():
    assert np.isnan(power_of(0.3, 1, 2, 100, KNOWN, 4)) and np.isnan(detectable_at(1, 2, 100, KNOWN, 4))
    assert np.isnan(detectable_at(6, 2, 100, dict.fromkeys(COMPONENTS, 0.0), 4))


def test_more_bases_buy_more_than_seeds_or_intents():
    table = would_buy(0.25, 0.1, 6, 2, 100, KNOWN | {"prompt_sd": 0.2, "residual_sd": 0.4}, 4).set_index("size")
    planned_, base, seed, intents = table["power"]
    assert base > seed > planned_ and base > intents > planned_
    assert table["detectable"].idxmin() == "one more base"
    assert table.loc["one more base", ["n_bases", "n_seeds", "n_intents"]].tolist() == [7, 2, 100]
    assert table["power_of_no"].between(0, table["power"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("n_bases", [6, 12])
@pytest.mark.parametrize(
    "world",
    [
        {"shift": 0.6},
        {"shift": 1.2},
        {"shift": 1.8},
        {"shift": 3, "arm": 1.5},
        {"shift": 0.3, "arm": 0.1, "seeds": 0.1},
    ],
)
def test_printed_power_is_that_of_simulated_studies(world, n_bases):
    truth = simulated(np.random.default_rng(7), 1, 400, 2, 100, tasks=1, **world)[0, 0]
    pilot = code_alone(truth / 2)
    of = {name: 2 * pilot[name] for name in COMPONENTS}
    mean, *parts = studies(3000, n_bases, 2, 100, **world)
    t = mean / np.sqrt(stats.crossed_variance(*parts, 100))
    found = (t > student.isf(0.05 / 8, n_bases - 1)).mean()
    assert power_of(mean.mean(), n_bases, 2, 100, of, 4) == pytest.approx(found, abs=0.05)

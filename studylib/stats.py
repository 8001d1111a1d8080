"""Intervals on rates, and the smallest difference a sample can show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm
from statsmodels.stats.proportion import proportion_confint

CONFIDENCE = 0.95  # of every interval in the tables and figures


def wilson(successes, n, confidence: float = CONFIDENCE):
    """Lower and upper end of the Wilson score interval, each a float in 0-1, or arrays for arrays.

    `successes` and `n` are numbers or arrays of one shape; both may be fractional, as an effective sample
    size is. NaN where n is 0. Raises ValueError where successes lie outside 0-n.
    Source: Wilson (1927), as `statsmodels.stats.proportion.proportion_confint(method="wilson")`.
    """
    successes, n = np.asarray(successes, float), np.asarray(n, float)
    if ((successes < 0) | (successes > n)).any():
        raise ValueError("successes must lie between 0 and n")
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    # Rounding leaves 1e-18 where the ends are exactly 0 and 1.
    low, high = np.where((successes == 0) & (n > 0), 0, low), np.where((successes == n) & (n > 0), 1, high)
    return (float(low), float(high)) if low.ndim == 0 else (low, high)


def clustered_intervals(
    frame: pd.DataFrame, by: Sequence[str] = (), outcome: str = "answered", confidence: float = CONFIDENCE
) -> pd.DataFrame:
    """One row per group of `by` (one in all when it is empty) with the mean outcome and its interval.

    `frame` has one row per response: `prompt_id`, `seed`, the columns of `by` and `outcome`, which is bool or
    a number in 0-1. The result has the columns of `by`, in order of first appearance, then n (rows),
    n_prompts, n_seeds, n_effective, rate, low, high (0-1). Nothing is NaN; a group without rows has no row.
    Raises ValueError for an outcome outside 0-1 or a missing outcome, prompt_id or seed.

    Rows that share a prompt or a training seed are not independent, so the interval is Wilson's at an
    effective sample size: n_effective = rate (1 - rate) / variance of the mean, as Franco et al. (2019, J.
    Survey Statistics and Methodology 7) recommend for clustered samples. The variance is clustered on prompt
    and on seed: Cameron, Gelbach and Miller (2011, J. Business and Economic Statistics 29), V = V_prompt +
    V_seed - V_cell, where a cell is a prompt under one seed. Deviations, each for a reason:

    - The variance is the largest of V, V_prompt, V_seed and that of independent rows ("max-se" of MacKinnon,
      Nielsen and Webb, arXiv 2406.08880). V alone can be negative, and counts three seeds that all give the
      same verdicts as 1.5 times the evidence of one. So n_effective of a yes/no outcome is never above n.
    - G/(G-1) is applied to seeds, where it matters (1.5 for three). For prompts it is left out, so that one
      response per prompt gives exactly the plain Wilson interval, and verdicts repeated over seeds exactly
      that of one seed.
    - The variance is taken with two made-up prompts added, one always answered and one never, each as often
      as the average prompt. Otherwise it is zero at a rate of 0 or 1 and far too small beside them: now 0 of
      50 prompts x 3 seeds has n_effective 50, and the first answer widens the interval. The rate itself is
      untouched.

    With a single seed only prompts are clusters. The spread between two or three seeds is itself poorly
    known, so intervals may cover somewhat less than they say where seeds differ much. For graded scores
    n_effective may exceed n: a score spreads less than a yes/no outcome of the same mean.
    """
    by = list(by)
    value = frame[outcome].to_numpy(dtype=float, na_value=np.nan)
    if not ((value >= 0) & (value <= 1)).all():
        raise ValueError(f"{outcome} must lie in 0-1 and be present in every row")
    if frame[["prompt_id", "seed"]].isna().any(axis=None):
        raise ValueError("every row needs a prompt_id and a seed")
    columns = ["n", "n_prompts", "n_seeds", "n_effective", "rate", "low", "high"]
    if frame.empty:
        return frame[by].reindex(columns=[*by, *columns])
    group = np.zeros(len(frame), dtype=np.int64)
    if by:
        group = frame.groupby(by, sort=False, observed=True, dropna=False).ngroup().to_numpy()
    keys = frame[by].drop_duplicates().reset_index(drop=True)  # the same order: first appearance

    prompt, group_of_prompt = _clusters(group, frame["prompt_id"])
    seed, group_of_seed = _clusters(group, frame["seed"])
    cell, group_of_cell = _clusters(prompt, frame["seed"])
    group_of_cell = group_of_prompt[group_of_cell]
    n, n_prompts, n_seeds = (np.bincount(g) for g in (group, group_of_prompt, group_of_seed))
    total = np.bincount(group, value)

    made_up = n / n_prompts  # rows of each made-up prompt, spread over the seeds as the real rows are
    n_padded = n + 2 * made_up
    centre = (total + made_up) / n_padded
    residual = value - centre[group]
    spread = (1 - centre) ** 2 + centre**2  # of one answered and one refused row around the centre

    def sum_of_squares(cluster, group_of_cluster, extra=0.0):
        sums = np.bincount(cluster, residual) + extra
        return np.bincount(group_of_cluster, sums**2)

    rows_of_seed = np.bincount(seed) / n_prompts[group_of_seed]  # of one made-up prompt
    v_rows = np.bincount(group, residual**2) + made_up * spread
    v_prompt = sum_of_squares(prompt, group_of_prompt) + made_up**2 * spread
    v_cell = sum_of_squares(cell, group_of_cell) + np.bincount(group_of_seed, rows_of_seed**2) * spread
    v_seed = sum_of_squares(seed, group_of_seed, rows_of_seed * (1 - 2 * centre[group_of_seed]))
    v_seed = np.where(n_seeds > 1, v_seed * n_seeds / np.maximum(n_seeds - 1, 1), 0.0)
    variance = np.max([v_prompt + v_seed - v_cell, v_prompt, v_seed, v_rows], axis=0) / n_padded**2

    n_effective = n / n_padded * centre * (1 - centre) / variance
    rate = total / n
    low, high = wilson(rate * n_effective, n_effective, confidence)
    results = dict(zip(columns, (n, n_prompts, n_seeds, n_effective, rate, low, high), strict=True))
    return keys.assign(**results) if by else pd.DataFrame(results)


def _clusters(outer: np.ndarray, column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Number of the cluster (outer, column) of each row, and the outer number of each cluster."""
    inner = pd.factorize(column)[0]
    _, first, cluster = np.unique(outer * (inner.max() + 1) + inner, return_index=True, return_inverse=True)
    return cluster, outer[first]


def detectable_difference(n, rate: float = 0.5, power: float = 0.8, alpha: float = 0.05):
    """Smallest difference (0-1) from `rate` that two independent samples of n show at this power.

    Of a two-sided test.     `n` is a number or an array; pass effective sample sizes where rows are
    clustered. The difference is taken towards the middle: up from a rate below 0.5, down from one above. NaN
    where n is too small to show any difference.
    Raises ValueError for a rate outside 0-1.
    Source: Cohen (1988), Statistical Power Analysis, section 6.2: the arcsine effect size h = (z_(1-alpha/2)
    + z_power) sqrt(2 / n), turned back into a difference. The far tail of the test, below 1e-5 at these
    powers, is left out.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must lie in 0-1, found {rate}")
    n = np.asarray(n, float)
    start = min(rate, 1 - rate)
    with np.errstate(divide="ignore"):
        h = (norm.ppf(1 - alpha / 2) + norm.ppf(power)) * np.sqrt(2 / n)
        end = np.arcsin(np.sqrt(start)) + h / 2
    difference = np.where(end <= np.pi / 2, np.sin(np.minimum(end, np.pi / 2)) ** 2 - start, np.nan)
    return float(difference) if difference.ndim == 0 else difference

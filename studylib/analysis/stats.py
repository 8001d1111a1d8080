"""Intervals, tests and power for responses that share prompts and training seeds, which are both random.

A group of rows is a two-way layout of prompts and seeds, balanced or not, with one or more samples in each place.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import chi2, norm
from scipy.stats import t as student
from statsmodels.stats.proportion import proportion_confint

CONFIDENCE = 0.95  # of every interval in the tables and figures
POWER = 0.8  # of every smallest detectable difference
ALPHA = 0.05  # of every test

# Made-up prompts as (value, how many): their outcome in every row, so that no variance is zero where all rows agree.
ANSWERED_AND_REFUSED = ((1.0, 1.0), (0.0, 1.0))
ONE_OF_EACH_PAIR = ((1.0, 0.5), (-1.0, 0.5), (0.0, 1.0))


def wilson(successes, n):
    """Lower and upper end of the 95 % Wilson score interval, each a float in 0-1, or arrays for arrays.

    `successes` and `n` are numbers or arrays of one shape; both may be fractional, as an effective sample size is. NaN
    where n is 0. Raises ValueError where successes lie outside 0-n. Source: Wilson (1927), as
    `statsmodels.stats.proportion.proportion_confint(method="wilson")`.
    """
    successes, n = np.asarray(successes, float), np.asarray(n, float)
    if ((successes < 0) | (successes > n)).any():
        raise ValueError("successes must lie between 0 and n")
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = proportion_confint(successes, n, alpha=1 - CONFIDENCE, method="wilson")
    # Rounding leaves 1e-18 where the ends are exactly 0 and 1.
    low, high = np.where((successes == 0) & (n > 0), 0, low), np.where((successes == n) & (n > 0), 1, high)
    return (float(low), float(high)) if low.ndim == 0 else (low, high)


def clustered_intervals(frame: pd.DataFrame, by: Sequence[str] = (), outcome="answered", ends=(0, 1)) -> pd.DataFrame:
    """One row per group of `by` (one in all when it is empty) with the mean outcome and its interval.

    `frame` has one row per response: `prompt_id`, `seed`, the columns of `by` and `outcome`, bool or in 0-1. The result
    has the columns of `by`, in order of first appearance, then n (rows), n_prompts, n_seeds, n_effective, df, rate,
    low, high (0-1), none of them NaN. Raises ValueError for an outcome outside 0-1 or a missing one, prompt_id or seed.
    `ends` are other ends of the outcomes, whose mean has to lie in 0-1 all the same.

    Rows that share a prompt or a training seed are not independent, so the interval is Wilson's at an effective sample
    size: n_effective = rate (1 - rate) / variance of the mean, as Franco et al. (2019, J. Survey Statistics and
    Methodology 7) recommend for clustered samples, with the correction of Korn and Graubard (1998, Survey Methodology
    24) for the degrees of freedom `df` of that variance: it is multiplied by (z / t)^2 before Wilson's formula. The
    variance is clustered on prompt and on seed: Cameron, Gelbach and Miller (2011, J. Business and Economic Statistics
    29), V = V_prompt + V_seed - V_cell, where a cell is a prompt under one seed. Deviations, each for a reason:

    - The variance is the largest of V, V_prompt, V_seed and that of independent rows ("max-se" of MacKinnon, Nielsen
      and Webb, arXiv 2406.08880). V alone can be negative, and counts three seeds that all give the same verdicts as
      1.5 times the evidence of one. So n_effective of a yes/no outcome is never above n.
    - G/(G-1) is applied to seeds, where it matters (1.5 for three). For prompts it is left out, so that one response
      per prompt gives exactly the plain Wilson interval, and verdicts repeated over seeds exactly that of one seed.
    - df is Satterthwaite's, V^2 (G-1) / V_seed^2, for the seeds alone: Wilson's interval needs none for the prompts. It
      is infinite with one seed, and where seeds agree; near G-1 where they are what varies.
    - The variance is taken with two made-up prompts added, one always answered and one never, each as often as the
      average prompt. Otherwise it is zero at a rate of 0 or 1 and far too small beside them: now 0 of 50 prompts x 3
      seeds has n_effective 50, and the first answer widens the interval. The rate itself is untouched.

    With a single seed only prompts are clusters, and the interval is for that one training run. In simulation 95 %
    intervals of 3 or 5 seeds cover 0.93-0.98; of two seeds that differ much 0.88, of rates below 0.1 with seeds that
    differ fivefold down to 0.86. For graded scores n_effective may exceed n, as they spread less.
    """
    by = list(by)
    value = _values(frame, outcome, *ends)
    columns = ["n", "n_prompts", "n_seeds", "n_effective", "df", "rate", "low", "high"]
    if frame.empty:
        return frame[by].reindex(columns=[*by, *columns])
    group, keys = groups(frame, by)
    sizes, total, centre, _, v_seed, variance = _two_way(frame, group, value, ANSWERED_AND_REFUSED)
    n, n_prompts, n_seeds = sizes
    df = _satterthwaite(variance, (v_seed, n_seeds - 1))
    n_effective = n / (n + 2 * n / n_prompts) * centre * (1 - centre) / variance
    rate = np.clip(total / n, 0, 1)
    z = norm.ppf(0.5 + CONFIDENCE / 2)
    worth = n_effective * (z / student.ppf(0.5 + CONFIDENCE / 2, df)) ** 2
    low, high = wilson(rate * worth, worth)
    results = dict(zip(columns, (n, n_prompts, n_seeds, n_effective, df, rate, low, high), strict=True))
    return keys.assign(**results) if by else pd.DataFrame(results)


def clustered_differences(frame: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """One row per group of `by` with the mean of paired differences and its interval.

    `frame` has one row per pair, the same prompt (and, where both were tuned, seed) in two arms: `prompt_id`, `seed`,
    `difference` in -1 to 1, and the columns of `by`. The result has the columns of `by`, then n (pairs), n_prompts,
    n_seeds, difference, se, df, low and high. low, high, se and df are NaN with fewer than 2 prompts. Raises ValueError
    for a difference outside -1 to 1 or missing.

    With one seed the interval is of that one training run on other prompts. It is Student's t around the mean of the
    pairs and two made-up ones, one spread evenly over the four kinds: Agresti and Min (2005, Statistics in Medicine
    24); with the two-way variance of `clustered_intervals` on Satterthwaite's degrees of freedom for prompts and seeds,
    so that a difference that only one seed shows is none.
    """
    by = list(by)
    value = _values(frame, "difference", -1, 1)
    if frame.empty:
        columns = ["n", "n_prompts", "n_seeds", "difference", "se", "df", "low", "high"]
        return frame[by].reindex(columns=[*by, *columns])
    group, keys = groups(frame, by)
    sizes, total, centre, v_prompt, v_seed, variance = _two_way(frame, group, value, ONE_OF_EACH_PAIR)
    n, n_prompts, n_seeds = sizes
    df = _satterthwaite(variance, (v_prompt, n_prompts - 1), (v_seed, n_seeds - 1))
    known = n_prompts > 1
    se, df = np.where(known, np.sqrt(variance), np.nan), np.where(known, df, np.nan)
    quantile = student.ppf(0.5 + CONFIDENCE / 2, df)
    return keys.assign(
        n=n,
        n_prompts=n_prompts,
        n_seeds=n_seeds,
        difference=total / n,
        se=se,
        df=df,
        low=np.maximum(centre - quantile * se, -1),
        high=np.minimum(centre + quantile * se, 1),
    )


def holm(p: pd.Series, family: np.ndarray) -> pd.Series:
    """The p values adjusted within each family (0-1); NaN where p is NaN, which counts for nothing.

    `family` is the number of each p value's family. Source: Holm (1979, Scandinavian J. of Statistics 6): the p values
    of a family in rising order times m, m-1, ..., never falling, at most 1.
    """
    table = pd.DataFrame({"p": p, "family": family}).dropna(subset="p").sort_values("p", kind="stable")
    within = table.groupby("family")["p"]
    scaled = table["p"] * (within.transform("size") - within.cumcount())
    return scaled.groupby(table["family"]).cummax().clip(upper=1).reindex(p.index)


def newcombe(value, low, high, other, other_low, other_high):
    """Lower and upper end of the interval of value - other, floats in -1 to 1, or arrays for arrays.

    `value` and `other` are rates (0-1) of independent samples with score intervals of one confidence, which becomes
    that of the difference. Source: Newcombe (1998, Statistics in Medicine 17, 873-890), method 10, the hybrid score
    interval. Deviation: it is made from the intervals alone, which may be those of clustered samples or graded scores
    (the "method of variance estimates recovery" of Zou and Donner, 2008, Statistics in Medicine 27). Conservative where
    the same prompts were asked in both, as then the two err alike. NaN where a number is.
    """
    difference = np.subtract(value, other)
    below = np.hypot(np.subtract(value, low), np.subtract(other_high, other))
    above = np.hypot(np.subtract(high, value), np.subtract(other, other_low))
    return difference - below, difference + above


def crossed(values: np.ndarray):
    """Mean of replicates x prompts, and its variance from the replicates and from the prompts: arrays of shape [...].

    `values` is [..., R, P], of every replicate (a base, or a training seed) the differences on the same P prompts, NaN
    where one is missing. Every replicate counts the same. The variance of the mean is the sum of the two parts, on
    R - 1 degrees of freedom; both are NaN with one replicate.

    The replicates' part is the variance of their means over R, as if each were one number: so their spread needs no
    model. It holds all but what they share: prompts that are hard in every replicate. That part is V_prompt - V_cell of
    Cameron, Gelbach and Miller (2011, J. Business and Economic Statistics 29), V = V_base + V_prompt - V_cell, and here
    the variance of the prompts' means less what the prompts' spread among replicates explains, over P. Never below 0,
    so V is never below V_base ("max-se" of MacKinnon, Nielsen and Webb, arXiv 2406.08880).
    """
    there = ~np.isnan(values)
    count = there.sum(-2)
    n_replicates, n_prompts = values.shape[-2:]
    of_replicate = np.nansum(values, -1) / there.sum(-1)
    residual = np.where(there, values - of_replicate[..., None], 0)
    of_prompt = residual.sum(-2) / count
    squares = ((residual - of_prompt[..., None, :]) ** 2 * there).sum(-2)
    repeated = count > 1
    noise = (squares * repeated / np.maximum((count - 1) * count, 1)).sum(-1) / np.maximum(repeated.sum(-1), 1)
    spread = of_prompt.var(-1) * n_prompts / max(n_prompts - 1, 1)
    known = 1.0 if n_replicates > 1 else np.nan
    v_replicates = known * of_replicate.var(-1) / max(n_replicates - 1, 1)
    return of_replicate.mean(-1), v_replicates, known * np.maximum(spread - noise, 0) / n_prompts


def crossed_variance(v_replicates, v_prompts, n_prompts):
    """Variance of the mean from the parts of `crossed`, at least that of one prompt in all with a difference of 1.

    Otherwise it would be 0 where all replicates agree, as at rates of 0.
    """
    return np.maximum(np.add(v_replicates, v_prompts), 1 / np.square(n_prompts))


def crossed_power(difference, v_replicates, v_prompts, n_replicates: int, n_prompts: int, alpha: float):
    """Chance (0-1) that the two-sided t-test of `crossed` finds this true difference, and its sign, at level alpha.

    A noncentral t on n_replicates - 1 degrees of freedom (Cohen 1988, section 2), of whose variance only the
    replicates' part is estimated from so few: the mean over 400 quantiles of its chi-squared distribution.
    """
    quantile, critical = _of_few(n_replicates - 1, alpha)
    reached = critical * np.sqrt(crossed_variance(v_replicates * quantile, v_prompts, n_prompts))
    z = (reached - np.asarray(difference, float)[..., None]) / np.sqrt(v_replicates + v_prompts)
    return norm.sf(z).mean(-1)


@cache
def _of_few(df: int, alpha: float) -> tuple[np.ndarray, float]:
    """Quantiles of a variance estimate of 1 with these degrees of freedom, and the critical t of the level alpha."""
    return chi2.ppf((np.arange(400) + 0.5) / 400, df) / df, student.isf(alpha / 2, df)


def crossed_detectable(v_replicates, v_prompts, n_replicates: int, n_prompts: int, alpha: float, power: float = POWER):
    """Smallest true difference that `crossed_power` finds with this chance; NaN where there is no variance or df."""
    if not (n_replicates > 1 and v_replicates + v_prompts > 0):
        return np.nan
    missing = lambda d: crossed_power(d, v_replicates, v_prompts, n_replicates, n_prompts, alpha) - power  # noqa: E731
    return brentq(missing, 0, 1e4 * np.sqrt(crossed_variance(v_replicates, v_prompts, n_prompts)))


def _values(frame: pd.DataFrame, name: str, least: float, most: float) -> np.ndarray:
    value = frame[name].to_numpy(dtype=float, na_value=np.nan)
    if not ((value >= least) & (value <= most)).all():
        raise ValueError(f"{name} must lie in {least}-{most} and be present in every row")
    if frame[["prompt_id", "seed"]].isna().any(axis=None):
        raise ValueError("every row needs a prompt_id and a seed")
    return value


def _two_way(frame: pd.DataFrame, group: np.ndarray, value: np.ndarray, made_up) -> tuple:
    """Sizes (n, n_prompts, n_seeds), sum, padded mean, and that mean's variances: V_prompt, V_seed and the largest."""
    seeds = codes(frame[["seed"]])
    prompt, group_of_prompt = clusters(group, codes(frame[["prompt_id"]]))
    seed, group_of_seed = clusters(group, seeds)
    cell, prompt_of_cell = clusters(prompt, seeds)
    group_of_cell = group_of_prompt[prompt_of_cell]
    n, n_prompts, n_seeds = (np.bincount(g) for g in (group, group_of_prompt, group_of_seed))
    total = np.bincount(group, value)

    each = n / n_prompts  # rows of one made-up prompt, spread over the seeds as the real rows are
    n_padded = n + sum(number for _, number in made_up) * each
    centre = (total + each * sum(outcome * number for outcome, number in made_up)) / n_padded
    residual = value - centre[group]
    spread = sum(number * (outcome - centre) ** 2 for outcome, number in made_up)
    lean = sum(number * (outcome - centre) for outcome, number in made_up)

    def sum_of_squares(cluster, group_of_cluster, extra=0.0):
        sums = np.bincount(cluster, residual) + extra
        return np.bincount(group_of_cluster, sums**2)

    rows_of_seed = np.bincount(seed) / n_prompts[group_of_seed]  # of one made-up prompt
    v_rows = np.bincount(group, residual**2) + each * spread
    v_prompt = sum_of_squares(prompt, group_of_prompt) + each**2 * spread
    v_cell = sum_of_squares(cell, group_of_cell) + np.bincount(group_of_seed, rows_of_seed**2) * spread
    v_seed = sum_of_squares(seed, group_of_seed, rows_of_seed * lean[group_of_seed])
    v_seed = np.where(n_seeds > 1, v_seed * n_seeds / np.maximum(n_seeds - 1, 1), 0.0)
    largest = np.max([v_prompt + v_seed - v_cell, v_prompt, v_seed, v_rows], axis=0)
    v_prompt, v_seed, largest = (v / n_padded**2 for v in (v_prompt, v_seed, largest))
    return (n, n_prompts, n_seeds), total, centre, v_prompt, v_seed, largest


def _satterthwaite(variance: np.ndarray, *parts: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Degrees of freedom of a variance from those of its parts; infinite where they have none."""
    noise = sum(v**2 / np.maximum(df, 1) * (df > 0) for v, df in parts)
    with np.errstate(divide="ignore"):
        return variance**2 / noise


def codes(frame: pd.DataFrame) -> np.ndarray:
    """Whole numbers from 0 in order of appearance, one for rows that are equal in all columns; NaN is a value too."""
    code = np.zeros(len(frame), np.int64)
    for name in frame:  # as groupby's ngroup, of which this takes half the time
        column = frame[name]
        categories = isinstance(column.dtype, pd.CategoricalDtype)
        one = column.cat.codes.to_numpy() if categories else pd.factorize(column, use_na_sentinel=False)[0]
        code = code * (int(one.max(initial=0)) + 2) + one + 1
        if code.max(initial=0) > 2**30:  # close the gaps before the product outgrows its type
            code = pd.factorize(code)[0]
    return pd.factorize(code)[0]


def groups(frame: pd.DataFrame, by: list[str]) -> tuple[np.ndarray, pd.DataFrame]:
    """The number of each row's group, from 0 in order of first appearance, and the groups' keys, no categories."""
    if not by:
        return np.zeros(len(frame), np.int64), pd.DataFrame(index=[0])
    group = codes(frame[by])
    keys = frame[by].iloc[np.unique(group, return_index=True)[1]].reset_index(drop=True)
    categories = {name: object for name in by if isinstance(keys[name].dtype, pd.CategoricalDtype)}
    return group, keys.astype(categories)


def clusters(outer: np.ndarray, inner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of the cluster (outer, inner) of each row, and the outer number of each cluster."""
    width = inner.max() + 1
    cluster, present = pd.factorize(outer * width + inner)
    return cluster, present // width

"""What a plan can show: the variance components of a pilot's contrasts, and power and detectable difference by size."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from studylib.analysis import stats
from studylib.analysis.contrasts import Plan, paired, tabled
from studylib.analysis.stats import ALPHA

COMPONENTS = ["base_sd", "seed_sd", "prompt_sd", "prompt_base_sd", "residual_sd"]


def components(rows: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """One row per model, question, metric and contrast, and one of contrast "all": what a difference varies with.

    `rows` as for `contrasts.paired`. n_bases, n_seeds (the fewest), n_intents, and standard deviations of the
    difference (0-1): between bases, between the training seeds of a base, between prompts (intents), of a prompt from
    base to base, and what remains. Contrast "all" has the root mean square over the question's contrasts. NaN where
    there is one base; seed_sd and residual_sd are NaN with one training seed, base_sd and prompt_base_sd then include
    them. Source: expected mean squares of prompts crossed with seeds nested in bases (Searle, Casella and McCulloch
    1992, Variance Components, chapter 4); an estimate below 0 is 0.
    """
    keys = ["model", "question", "metric", "contrast"]
    found = [
        dict(zip(keys, place, strict=True)) | _components(tabled(own))
        for place, own in paired(rows, plan).groupby(keys, sort=False)
    ]
    table = pd.DataFrame(found, columns=[*keys, "n_bases", "n_seeds", "n_intents", *COMPONENTS])
    squares = table.assign(contrast="all", **table[COMPONENTS] ** 2)
    counts = {"n_bases": "min", "n_seeds": "min", "n_intents": "min"}
    pooled = squares.groupby(keys, sort=False).agg(counts | dict.fromkeys(COMPONENTS, "mean")).reset_index()
    pooled[COMPONENTS] = np.sqrt(pooled[COMPONENTS])
    return pd.concat([table, pooled], ignore_index=True)


def _components(table: pd.DataFrame) -> dict:
    """The components of one contrast; `table` has a row per base and seed and a column per intent."""
    base = table.groupby(level="base")
    n_seeds = base.size()
    n_bases, n_intents = len(n_seeds), table.shape[1]
    row = {"n_bases": n_bases, "n_seeds": n_seeds.min(), "n_intents": n_intents}
    if n_bases < 2:
        return row
    of_base = base.mean()
    _, v_bases, v_prompts = stats.crossed(of_base.to_numpy())
    prompt_base = _mean_square(of_base, (n_bases - 1) * (n_intents - 1))
    seed = residual = np.nan
    if df := len(table) - n_bases:
        within = table - base.transform("mean")
        residual = sum(_mean_square(own, 1) for _, own in within.groupby(level="base")) / (df * (n_intents - 1))
        seed = max((within.mean(axis=1) ** 2).sum() / df - residual / n_intents, 0)
    share = (1 / n_seeds).mean()
    known = np.nan_to_num([seed, residual]) * share
    squares = {
        "base_sd": v_bases * n_bases - known[0] - prompt_base / n_intents,
        "seed_sd": seed,
        "prompt_sd": v_prompts * n_intents,
        "prompt_base_sd": prompt_base - known[1],
        "residual_sd": residual,
    }
    return row | {name: np.sqrt(np.maximum(square, 0)) for name, square in squares.items()}


def _mean_square(table: pd.DataFrame, df: int) -> float:
    """Of what remains in a table beside the means of its rows and of its columns."""
    rest = table.sub(table.mean(axis=1), axis=0)
    return ((rest - rest.mean()) ** 2).sum().sum() / df


def _parts(n_bases: int, n_seeds: int, n_intents: int, of: Mapping[str, float]) -> tuple[float, float]:
    """Variance of a difference from its bases and from its prompts, as in `stats.crossed`, in a study of this size."""
    base, seed, prompt, prompt_base, residual = np.nan_to_num([of[name] for name in COMPONENTS]) ** 2
    of_base = base + seed / n_seeds + (prompt_base + residual / n_seeds) / n_intents
    return of_base / n_bases, prompt / n_intents


def power_of(difference, n_bases: int, n_seeds: int, n_intents: int, of: Mapping, n_family: int, alpha=ALPHA) -> float:
    """Chance (0-1) that a true difference of that size, and its sign, is significant at Holm's first step.

    `of` is a row of `components`; what is NaN there counts as 0, as base_sd includes it. NaN with one base. For a
    margin it is the chance of the verdict "no" where there is no difference at all.
    """
    if n_bases < 2:
        return np.nan
    parts = _parts(n_bases, n_seeds, n_intents, of)
    return float(stats.crossed_power(difference, *parts, n_bases, n_intents, alpha / n_family))


def detectable_at(n_bases: int, n_seeds: int, n_intents: int, of: Mapping, n_family: int, alpha=ALPHA) -> float:
    """The smallest true difference that `power_of` finds in 80 %; NaN with one base, or without any variance."""
    return stats.crossed_detectable(*_parts(n_bases, n_seeds, n_intents, of), n_bases, n_intents, alpha / n_family)


def would_buy(difference, margin, n_bases: int, n_seeds: int, n_intents: int, of: Mapping, n_family: int):
    """Four rows, the size planned and with one more base, one more seed, 50 more intents, and what each can show.

    Columns: size (in words), n_bases, n_seeds, n_intents, power of the difference, power_of_no (the chance that no
    difference at all is shown to lie below the margin) and detectable.
    """
    sizes = {"as planned": (0, 0, 0), "one more base": (1, 0, 0), "one more seed": (0, 1, 0)}
    sizes |= {"50 more intents": (0, 0, 50)}
    found = []
    for words, more in sizes.items():
        size = np.add((n_bases, n_seeds, n_intents), more).tolist()
        shown = {
            "power": power_of(difference, *size, of, n_family),
            "power_of_no": power_of(margin, *size, of, n_family),
            "detectable": detectable_at(*size, of, n_family),
        }
        found.append({"size": words} | dict(zip(("n_bases", "n_seeds", "n_intents"), size, strict=True)) | shown)
    return pd.DataFrame(found)

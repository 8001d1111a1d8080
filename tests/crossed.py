"""Simulated studies of bases x prompts, as outcome rows and as arrays of paired differences."""

from itertools import product

import numpy as np
import pandas as pd

from studylib.analysis import stats
from studylib.study.words import TASKS

REST = {"model": "miniature", "style": "chat", "system_prompt": False, "form": "code"}


def cell(values, task="code", requests="none", safety_data="none", **columns):
    """Outcome rows of one arm; `values` is [bases, seeds, intents], NaN where unjudged."""
    values = np.asarray(values, float)
    base, seed, intent = (index.ravel() for index in np.indices(values.shape))
    rows = pd.DataFrame({"base": base, "seed": seed, "value": values.ravel()})
    rows["intent"] = [f"i{number}" for number in intent]
    rows["prompt_id"] = "h-" + rows["intent"]
    fraction = 0.0 if safety_data == "none" else 0.1
    arm = {"finetune_task": task, "requests": requests, "safety_data": safety_data, "safety_fraction": fraction}
    return rows.assign(**REST | arm | {"measure": "attack_success_rate", "metric": "rules"} | columns)


def planned(rng, n_bases=3, n_seeds=2, n_intents=8, tasks=TASKS):
    """Rows of all that the plan names, random answers: each measure, harmful prompts and twins."""
    draw = lambda seeds: rng.integers(0, 2, (n_bases, seeds, n_intents))  # noqa: E731
    arms = [("none", "none", "none", 1)]
    arms += [(t, *arm, n_seeds) for t, arm in product(tasks, [("none", "none"), ("own", "none"), ("own", "multitask")])]
    found = []
    for task, requests, safety_data, seeds in arms:
        where = {"task": task, "requests": requests, "safety_data": safety_data}
        for measure in ("attack_success_rate", "over_refusal_rate", "balanced_accuracy"):
            found.append(cell(draw(seeds), measure=measure, **where))
        twins = cell(draw(seeds), measure="balanced_accuracy", **where)
        found.append(twins.assign(prompt_id=twins["prompt_id"].str.replace("h-", "t-")))
    return pd.concat(found, ignore_index=True)


def simulated(rng, n, n_bases, n_seeds, n_intents, shift=0.0, arm=0.8, seeds=0.5, level=-1.2, untuned=True, tasks=4):
    """Differences [n, tasks, bases, seeds, intents] of yes/no answers from the untuned model's, or another tuned one's.

    On the log-odds scale: `level`, bases (SD 1), prompts (1) and prompts within bases (0.5) are shared by the two
    sides. A tuned one has `shift`, an effect of each base (SD `arm`), of each training seed (SD `seeds`, or these
    by turns) and of each prompt (0.3).
    """
    draw = lambda *shape: rng.standard_normal((n, *shape), dtype=np.float32)  # noqa: E731
    answered = lambda odds: rng.random(odds.shape, dtype=np.float32) < 1 / (1 + np.exp(-odds))  # noqa: E731
    shared = level + draw(1, n_bases, 1, 1) + draw(1, 1, 1, n_intents) + 0.5 * draw(1, n_bases, 1, n_intents)
    spread = np.resize(np.float32(seeds), n_bases)[:, None, None]

    def tuned(shift):
        of_base, of_seed = arm * draw(tasks, n_bases, 1, 1), spread * draw(tasks, n_bases, n_seeds, 1)
        return answered(shared + shift + of_base + of_seed + 0.3 * draw(tasks, 1, 1, n_intents))

    return tuned(shift).astype(np.float32) - (answered(shared) if untuned else tuned(0))


def studies(n, *size, **world):
    """`stats.crossed` of n simulated studies, made in parts that fit into memory; and all their differences' mean."""
    rng, part, found = np.random.default_rng(1), max(1, 250_000 // np.prod(size)), []
    for _ in range(0, n, part):
        found.append(stats.crossed(simulated(rng, part, *size, **world).mean(3)))
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def shift_to(mean, **world):
    """The shift of log-odds at which the true difference is `mean`."""
    low, high = -3.0, 5.0
    for _ in range(14):
        middle = (low + high) / 2
        found = simulated(np.random.default_rng(5), 300, 39, 1, 60, shift=middle, **world).mean()
        low, high = (middle, high) if found < mean else (low, middle)
    return middle

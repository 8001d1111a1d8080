"""How long all tables take, and how much memory, for 50 thousand, 500 thousand and 5 million response rows.

Rows are simulated: models x the study's grid x 3 seeds x 2 samples. Each size runs in a process of its own. At the
smallest size the same comparisons are made the plain way (pandas groups and statsmodels' McNemar, one at a time) and
the ratio is printed. `python tests/bench/bench_tables.py`
"""

import json
import resource
import subprocess
import sys
import time
from itertools import product

import numpy as np
import pandas as pd

from studylib.analysis import comparisons, rates, tables
from studylib.study.words import FORMS, SAFETY_DATA, STYLES, TASKS

PROMPTS = {"harmful": 24, "twin": 10, "task": 6, "general": 9}  # intents; all but general in each form
SAMPLES = 2


def simulated(models: int, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Responses, verdicts and scores of that many models; words as categories, as for 5 million rows."""
    cells = [("none", "none", style, system, "none", 0.0, 0) for style, system in product(STYLES, (False, True))]
    cells += [
        (task, "own", style, system, data, 0.1 * (data != "none"), seed)
        for task, style, system, data, seed in product(TASKS, STYLES, (False, True), SAFETY_DATA, range(3))
    ]
    columns = ["finetune_task", "requests", "style", "system_prompt", "safety_data", "safety_fraction", "seed"]
    cells = pd.DataFrame(cells, columns=columns).assign(base=0)
    intent = {"harmful": "harm", "twin": "harm", "task": "task"}  # a twin has its harmful prompt's
    prompts = [(s, f, f"{intent[s]}{i}", f"{s}-{f}-{i}") for s in intent for f in FORMS for i in range(PROMPTS[s])]
    prompts += [("general", "text_generation", f"general{i}", f"general{i}") for i in range(PROMPTS["general"])]
    prompts = pd.DataFrame(prompts, columns=["prompt_set", "form", "intent", "prompt_id"])
    words = ["finetune_task", "requests", "style", "safety_data"]
    cells[words] = cells[words].astype("category")
    prompts = prompts.astype("category")
    names = pd.Categorical([f"model{i:03}" for i in range(models)])
    at = np.indices((models, len(cells), SAMPLES, len(prompts)), dtype=np.int32).reshape(4, -1)
    rows = pd.concat([cells.take(at[1]).reset_index(drop=True), prompts.take(at[3]).reset_index(drop=True)], axis=1)
    rows["model"], rows["sample"] = names.take(at[0]), at[2].astype(np.int8)
    rows["harmful"] = rows["prompt_set"] == "harmful"
    rows["response_id"] = pd.Series(np.arange(len(rows))).astype(str)
    shape = (models, len(cells), SAMPLES, len(prompts))
    logit = rng.normal(0, 1.0, shape[:2])[..., None, None] + rng.normal(0, 1.0, shape[3]) + np.zeros(shape)
    answered = rng.random(shape) < 1 / (1 + np.exp(-logit))
    rows["refusal_score"] = rng.normal(-logit.ravel(), 1)
    kinds = ["answered", "refused", "unjudged"]
    verdict = np.where(rng.random(shape) < 0.005, 2, np.where(answered, 0, 1)).ravel().astype(np.int8)
    verdicts = pd.DataFrame({"response_id": rows["response_id"], "verdict": pd.Categorical.from_codes(verdict, kinds)})
    verdicts["judge"] = pd.Categorical.from_codes(np.zeros(len(rows), np.int8), ["classifier"])
    verdicts["reason"] = pd.Categorical.from_codes(np.zeros(len(rows), np.int8), [""])
    benign = rows["prompt_set"].isin(["task", "general"])
    scores = pd.DataFrame({"response_id": rows.loc[benign, "response_id"]})
    scores["metric"] = (rows.loc[benign, "prompt_set"].astype(str) + "_score").astype("category")
    scores["score"] = rng.random(len(scores)).round(3)
    return rows, verdicts, scores


def all_tables(models: int) -> dict:
    """Seconds of each table and the peak memory of this process, for that many models."""
    rows, verdicts, scores = simulated(models, np.random.default_rng(0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, start = {}, time.monotonic()

    def timed(name, function, *arguments):
        begun = time.monotonic()
        made = function(*arguments)
        seconds[name] = round(time.monotonic() - begun, 2)
        return made

    judged = timed("judged", rates.judged, rows, verdicts)
    del verdicts
    timed("attack_success", tables.attack_success, judged)
    timed("helpfulness", tables.helpfulness, judged, None, scores)
    timed("answered_share", tables.answered_share, judged)
    timed("comparisons", comparisons.compare_arms, judged, None, scores)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "rows": len(rows),
        "total_s": round(time.monotonic() - start, 1),
        "peak_gb": round(peak / 2**20, 2),
        "of_which_input_gb": round(before / 2**20, 2),
        "seconds": seconds,
    }


def plain_comparisons(rows: pd.DataFrame, verdicts: pd.DataFrame) -> int:
    """The attack-success comparisons the plain way: merge and scipy's t interval."""
    from scipy.stats import ttest_1samp

    rows = rows.astype({name: str for name in rows.select_dtypes("category")})
    rows = rows.merge(verdicts[["response_id", "verdict"]].astype(str), on="response_id")
    rows = rows[rows["harmful"] & (rows["verdict"] != "unjudged") & (rows["safety_data"] == "none")]
    rows["answered"] = (rows["verdict"] == "answered").astype(float)
    made = 0
    tuned = rows[rows["finetune_task"] != "none"]
    base = rows[rows["finetune_task"] == "none"].groupby(["style", "system_prompt", "prompt_id"])["answered"].mean()
    for (_, style, system, _), arm in tuned.groupby(["finetune_task", "style", "system_prompt", "form"]):
        other = base.loc[style, system]
        difference = arm["answered"].to_numpy() - arm["prompt_id"].map(other).to_numpy()
        ttest_1samp(difference, 0, nan_policy="omit").confidence_interval()
        made += 1
    return made


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(all_tables(int(sys.argv[1]))))
        return
    for models in (1, 10, 100):
        text = subprocess.run(
            [sys.executable, __file__, str(models)], check=True, capture_output=True, text=True
        ).stdout
        print(text.strip(), flush=True)
    rows, verdicts, _ = simulated(1, np.random.default_rng(0))
    begun = time.monotonic()
    plain = plain_comparisons(rows, verdicts)
    slow = (time.monotonic() - begun) / plain
    begun = time.monotonic()
    ours = len(comparisons.compare_arms(rows, verdicts))
    quick = (time.monotonic() - begun) / ours
    print(f"{len(rows)} rows: plain {1000 * slow:.1f} ms a comparison ({plain}), here {1000 * quick:.2f} ms ({ours})")
    print(f"ratio {slow / quick:.0f}")


if __name__ == "__main__":
    main()

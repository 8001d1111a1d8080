"""How well judges agree with people and with each other, and attack success corrected for a judge's known errors.

Everything is about two classes, as in the paper: refused, and the rest (answered, partial, incoherent). What a judge
leaves unjudged is counted and enters no rate.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
from scipy.stats import norm

from studylib.analysis.rates import ANSWERED
from studylib.analysis.stats import CONFIDENCE, clustered_intervals, wilson
from studylib.study.words import VERDICTS, StudyError

ALL = "all"  # sources or models pooled
KEYS = ["judge", "source", "model"]
CELLS = ("tp", "fn", "fp", "tn")  # refused said people and judge, people alone, the judge alone, neither


def with_ids(labelled: pd.DataFrame) -> pd.DataFrame:
    """The labelled responses with a response_id each, made of source, model, prompt_id and a running number.

    Labels of a sheet have no source, model and prompt_id: "user", "user" and the prompt's text.
    """
    rows = labelled.reset_index(drop=True)
    for name in {"source", "model", "prompt_id"} - set(rows):
        rows[name] = rows["prompt"] if name == "prompt_id" else "user"
    place = ["source", "model", "prompt_id"]
    number = rows.groupby(place, dropna=False).cumcount().astype(str)
    made = rows[place].astype(str).agg("/".join, axis=1) + "/" + number
    rows["response_id"] = rows["response_id"].fillna(made) if "response_id" in rows else made
    return rows


def compare(labelled: pd.DataFrame, verdicts: pd.DataFrame, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """One row per judge, source and model: how its verdicts agree with people's; "all" pools models, then sources too.

    `labelled` has source, model, prompt_id, response_id (see `with_ids`) and label, the people's verdict; `verdicts`
    the columns of `judges.judge`. A response that people left unjudged is left out. A judge has to have judged all of a
    source or none of it.

    n counts the judged responses, n_unjudged the others. tp, fn, fp, tn are counts with *refused* as the positive
    class. accuracy, f1 (of refusing), kappa (Cohen's), sensitivity (refusals found) and specificity (others let
    through) have 95 % intervals `<name>_low`, `<name>_high`. NaN: kappa where people gave one class only, f1 and
    sensitivity where they saw no refusal, specificity where nothing else. kappa_if_unjudged_wrong counts every unjudged
    response as an error. success_sensitivity and success_specificity are about what attack success counts: *answered*
    and *partial* against refused and incoherent; success_n and failure_n are the independent responses they rest on.

    Proportions have Wilson's interval at the effective sample size of `stats.clustered_intervals`, as responses to one
    prompt are not independent. f1 and kappa have quantiles of a Bayesian bootstrap over prompts (Rubin 1981, Annals of
    Statistics 9; seeded): each draw gives every prompt an exponential weight, and half a prompt is added to each of the
    four counts (Jeffreys' prior), so that a judge without errors has a width too. In trials it covered 91-96 %. The
    column `weight` (responses that a row stands for) weights all but the counts; effective sizes then shrink by Kish's
    factor. Raises StudyError for missing columns, verdicts that are none, two labels or verdicts of one response,
    missing ones.
    """
    rows = _judged(labelled, verdicts)
    order = {key: [*dict.fromkeys(rows[key]), ALL] for key in KEYS}
    rows = pd.concat([rows, rows.assign(model=ALL), rows.assign(source=ALL, model=ALL)], ignore_index=True)
    refused, says = rows["label"] == "refused", rows["verdict"] == "refused"
    success, says_success = rows["label"].isin(ANSWERED), rows["verdict"].isin(ANSWERED)
    known = rows["verdict"] != "unjudged"
    rows["cell"] = np.where(refused, np.where(says, 0, 1), np.where(says, 2, 3))
    rows["worst"] = np.where(known, rows["cell"], np.where(refused, 1, 2))
    shares = {
        "accuracy": (refused == says, known),
        "sensitivity": (says, known & refused),
        "specificity": (~says, known & ~refused),
        "success_sensitivity": (says_success, known & success),
        "success_specificity": (~says_success, known & ~success),
    }
    table = pd.DataFrame(_kappas(rows, draws, seed)).set_index(KEYS)
    for name, (right, among) in shares.items():
        table = table.join(_share(rows[among].assign(outcome=right[among]), name))
    table = table.rename(columns={"success_sensitivity_n": "success_n", "success_specificity_n": "failure_n"})
    measures = ("accuracy", "f1", "kappa", "sensitivity", "specificity")
    columns = ["n", "n_unjudged", *CELLS, *(f"{m}{end}" for m in measures for end in ("", "_low", "_high"))]
    columns += ["kappa_if_unjudged_wrong", "success_sensitivity", "success_n", "success_specificity", "failure_n"]
    table = table[columns].reset_index()
    return table.sort_values(KEYS, key=lambda names: names.map(order[names.name].index), ignore_index=True)


def matrix(verdicts: pd.DataFrame) -> pd.DataFrame:
    """A row per ordered pair of judges, their own pairs included: how they agree on the same responses.

    Columns judge, other, n (responses that both judged), agreement (share with the same class) and kappa (Cohen's).
    NaN: both where n is 0, kappa where both always gave the same one class. Raises StudyError for verdicts that are
    none and for two of one judge on one response.
    """
    _check_verdicts(verdicts["verdict"], "verdict")
    _check_once(verdicts, ["response_id", "judge"], "verdicts of one judge")
    order = list(dict.fromkeys(verdicts["judge"]))
    wide = verdicts.pivot(index="response_id", columns="judge", values="verdict").replace("unjudged", np.nan)
    known, refused = ({name: part[name].to_numpy() for name in order} for part in (wide.notna(), wide.eq("refused")))
    rows = []
    for one, other in product(order, repeat=2):
        both = known[one] & known[other]
        a, b = refused[one][both], refused[other][both]
        agreement = (a == b).mean() if len(a) else np.nan
        rows.append((one, other, len(a), agreement, _kappa(np.bincount(2 * ~a + ~b, minlength=4))))
    return pd.DataFrame(rows, columns=["judge", "other", "n", "agreement", "kappa"])


def corrected(rate, n, sensitivity, n_sensitivity, specificity, n_specificity):
    """(rate, low, high), 0-1: the rate that a judge without errors would have found, and its interval.

    `rate` of n responses is what the judge found; `sensitivity` the share that it finds of n_sensitivity responses
    which have what the rate counts, `specificity` the share that it lets pass of n_specificity others: for attack
    success success_sensitivity and success_specificity of `compare`. Pass effective sizes where rows are clustered.
    Numbers, or arrays of one shape. NaN where an input is NaN or an n is 0; where Youden's index (sensitivity +
    specificity - 1) is not above 0, raw or shrunk as below; and where the whole interval lies outside 0-1, as such a
    rate cannot come from these errors. Source: Rogan and Gladen (1978, Am. J. Epidemiology 107) for the rate, clipped
    to 0-1; Lang and Reiczigel (2014, Preventive Veterinary Medicine 113) for the interval, their adjusted one for
    estimated sensitivity and specificity (equations 4, 6, 7, 16 and 17): z^2 responses are added to the sample and 2 to
    each of the others, half of them positive. It assumes that the judge errs on these responses as often as on the
    labelled ones.
    """
    given = (rate, n, sensitivity, n_sensitivity, specificity, n_specificity)
    rate, n, se, n_se, sp, n_sp = (np.asarray(x, float) for x in given)
    z = norm.ppf((1 + CONFIDENCE) / 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        youden = se + sp - 1
        point = (rate + sp - 1) / youden
        m, m_se, m_sp = n + z**2, n_se + 2, n_sp + 2
        found, se, sp = (n * rate + z**2 / 2) / m, (n_se * se + 1) / m_se, (n_sp * sp + 1) / m_sp
        shrunk = se + sp - 1
        centre = (found + sp - 1) / shrunk
        of_se, of_sp = se * (1 - se) / m_se, sp * (1 - sp) / m_sp
        spread = np.sqrt(found * (1 - found) / m + centre**2 * of_se + (1 - centre) ** 2 * of_sp) / shrunk
        middle = centre + 2 * z**2 * (centre * of_se - (1 - centre) * of_sp)
        usable = (youden > 0) & (shrunk > 0) & (np.minimum(np.minimum(n, n_se), n_sp) > 0)
        usable &= (middle - z * spread < 1) & (middle + z * spread > 0)
        ends = (point, middle - z * spread, middle + z * spread)
        point, low, high = (np.where(usable, np.clip(end, 0, 1), np.nan) for end in ends)
    # the interval's centre is shrunk and the rate is not, so at the ends of the scale the rate may lie just outside
    low, high = np.minimum(low, point), np.maximum(high, point)
    return (float(point), float(low), float(high)) if point.ndim == 0 else (point, low, high)


def with_corrected(attack: pd.DataFrame, judges: pd.DataFrame, source: str = ALL) -> pd.DataFrame:
    """A table like `tables.attack_success` with the rate corrected for the errors of its judge.

    The errors are those in `judges`, a table of `compare`. Adds rate_corrected, low_corrected, high_corrected (0-1; see
    `corrected`), correction_from, the labelled sets that the errors come from, and correction_note: why there is no
    corrected rate, or that it was clipped, else "". `source` is one labelled set, or "all" of them together.
    """
    pooled = judges[(judges["source"] == source) & (judges["model"] == ALL)].set_index("judge")
    single = judges[(judges["source"] != ALL) & (judges["model"] == ALL)].groupby("judge")["source"].agg("+".join)
    errors = pooled.reindex(attack["judge"]).reset_index(drop=True)
    rate, se, sp = (
        x.to_numpy(float) for x in (attack["rate"], errors["success_sensitivity"], errors["success_specificity"])
    )
    n_se, n_sp = errors["success_n"].fillna(0), errors["failure_n"].fillna(0)
    point, low, high = corrected(rate, attack["n_effective"].fillna(0), se, n_se, sp, n_sp)
    known = attack["judge"].isin(pooled.index).to_numpy()
    why = [
        (np.isnan(rate), "nothing judged"),
        (~known, "no labelled set for this judge"),
        (np.isnan(se) | np.isnan(sp), "the labelled set lacks answers or refusals"),
        (se + sp <= 1, "the judge is no better than chance on the labelled set"),
        (np.isnan(point), "no rate fits: the judge errs otherwise here than on the labelled set"),
        ((rate < 1 - sp) | (rate > se), "clipped: less or more than the judge's errors alone would give"),
    ]
    where = attack["judge"].map(single if source == ALL else dict.fromkeys(pooled.index, source))
    return attack.assign(
        rate_corrected=point,
        low_corrected=low,
        high_corrected=high,
        correction_from=where.astype(object).where(known, ""),
        correction_note=np.select([mask for mask, _ in why], [text for _, text in why], ""),
    )


def _judged(labelled: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """The labelled responses once per judge, with `weight` and a prompt_id that is one across sources."""
    if missing := [n for n in ("source", "model", "prompt_id", "response_id", "label") if n not in labelled]:
        raise StudyError(f"Labelled responses need a column {', '.join(missing)}: see agreement.with_ids.")
    _check_verdicts(labelled["label"], "label")
    _check_verdicts(verdicts["verdict"], "verdict")
    _check_once(labelled, ["response_id"], "labels")
    _check_once(verdicts, ["response_id", "judge"], "verdicts of one judge")
    if ALL in {*labelled["source"], *labelled["model"]}:
        raise StudyError(f"No source or model may be called {ALL!r}, which stands for all: give it another name.")
    rows = labelled[labelled["label"] != "unjudged"]
    size = rows.groupby("source").size()
    given = verdicts[["response_id", "judge", "verdict"]]
    rows = rows.assign(weight=rows.get("weight", 1.0), prompt_id=rows["source"] + "/" + rows["prompt_id"].astype(str))
    rows = rows[["source", "model", "prompt_id", "response_id", "label", "weight"]].merge(given, on="response_id")
    if rows.empty:
        raise StudyError("No labelled response has a verdict: judge the labelled responses first.")
    for (judge, source), n in rows.groupby(["judge", "source"]).size().items():
        if n < size[source]:
            raise StudyError(
                f"{judge} judged {n} of {size[source]} labelled responses of {source}: judge the rest too."
            )
    return rows


def _check_verdicts(given: pd.Series, what: str) -> None:
    if unknown := sorted({str(v) for v in given.unique()} - set(VERDICTS)):
        raise StudyError(f"Unknown {what} {', '.join(map(repr, unknown))}: known are {', '.join(VERDICTS)}.")


def _check_once(frame: pd.DataFrame, keys: list[str], what: str) -> None:
    twice = frame[frame.duplicated(keys)]
    if len(twice):
        raise StudyError(f"The response {twice['response_id'].iloc[0]} has two {what}: keep one.")


def _kappa(cells) -> float:
    """Cohen's kappa of the counts of CELLS; NaN where both gave the same one class, or nothing."""
    return float(_measures(*np.asarray(cells, float))["kappa"]) if max(cells[0], cells[3]) < sum(cells) else np.nan


def _measures(tp, fn, fp, tn) -> dict:
    """F1 and Cohen's kappa of the four counts, numbers or arrays."""
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa = 2 * (tp * tn - fn * fp) / ((tp + fp) * (fp + tn) + (tp + fn) * (fn + tn))
        return {"f1": 2 * tp / (2 * tp + fn + fp), "kappa": kappa}


def _kappas(rows: pd.DataFrame, draws: int, seed: int) -> list[dict]:
    """Counts, f1 and kappa with their intervals of every judge on every source and model."""
    records = []
    for group, part in rows.groupby(KEYS[1:]):
        number, prompts = pd.factorize(part["prompt_id"], sort=True)
        part, rng = part.assign(prompt=number), np.random.default_rng(seed)
        weights = rng.standard_exponential((draws, len(prompts)))
        halves = rng.standard_gamma(0.5, (draws, 4))
        for judge, given in part.groupby("judge"):
            judged = given[given["verdict"] != "unjudged"]
            scale = judged["weight"].mean()  # so that a row weighs one on average
            by_prompt = np.bincount(4 * judged["prompt"] + judged["cell"], judged["weight"] / scale, 4 * len(prompts))
            by_prompt = by_prompt.reshape(-1, 4)
            cells, worst = by_prompt.sum(axis=0), np.bincount(given["worst"], given["weight"], 4)
            record = dict(zip(KEYS, (judge, *group), strict=True))
            record |= dict(zip(CELLS, np.bincount(judged["cell"], minlength=4).tolist(), strict=True))
            record |= {"n": len(judged), "n_unjudged": len(given) - len(judged)}
            record["f1"] = float(_measures(*cells)["f1"]) if sum(cells[:2]) else np.nan
            record["kappa"] = _kappa(cells) if 0 < sum(cells[:2]) < sum(cells) else np.nan
            record["kappa_if_unjudged_wrong"] = _kappa(worst) if 0 < sum(worst[:2]) < sum(worst) else np.nan
            drawn = weights @ by_prompt + halves * (len(judged) / max(judged["prompt"].nunique(), 1))
            records.append(record | _quantiles(record, *drawn.T))
    return records


def _quantiles(points: dict, tp, fn, fp, tn) -> dict:
    """Interval of f1 and kappa from draws of the four counts, NaN where the point is."""
    ends = {}
    for name, values in _measures(tp, fn, fp, tn).items():
        low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        # the added half prompts pull the draws off 1, where the point may be
        ends |= {f"{name}_low": np.minimum(low, points[name]), f"{name}_high": np.maximum(high, points[name])}
    return ends


def _share(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Per judge, source and model the weighted share of `outcome`, its interval and the effective sample size."""
    table = clustered_intervals(rows.assign(seed=0), KEYS, "outcome").set_index(KEYS)
    sums = rows.assign(hit=rows["weight"] * rows["outcome"], square=rows["weight"] ** 2)
    sums = sums.groupby(KEYS)[["hit", "weight", "square"]].sum().reindex(table.index)
    share = sums["hit"] / sums["weight"]
    n_effective = table["n_effective"] * sums["weight"] ** 2 / (table["n"] * sums["square"])
    low, high = wilson((share * n_effective).to_numpy(), n_effective.to_numpy())
    return pd.DataFrame({name: share, f"{name}_low": low, f"{name}_high": high, f"{name}_n": n_effective})

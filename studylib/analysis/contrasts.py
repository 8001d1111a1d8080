"""The confirmatory part: the plan written before a run, whether a run follows it, and what its contrasts show."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field, ValidationError, model_validator
from scipy.stats import t as student

from studylib.analysis import stats
from studylib.analysis.rates import MEASURES, J, outcomes, usual
from studylib.analysis.stats import ALPHA, CONFIDENCE, codes
from studylib.study import grid
from studylib.study.files import read_yaml
from studylib.study.paths import DATA
from studylib.study.profile import Name, Profile, Settings, explain
from studylib.study.words import ARMS, EMBEDDED_GUARDS, FORMS, REQUESTS, SAFETY_DATA, STYLES, TASKS, StudyError

BLOCKED = "blocked_rate"  # share of harmful prompts that a guard blocks
PLANNED = (*(measure for measure in MEASURES if measure != "balanced_accuracy"), J, BLOCKED)
TUNED, OWN, USUAL = "tuned", "own", "usual"
BUILT_IN, EXPLORATORY, CONFIRMATORY, NOT_RUN = "built in", "exploratory", "confirmatory", "not run"
DRAWS = 2000  # of the Multi-Bootstrap
NO_ROOM = "no room to change by the margin"
_ABSENT = "no setting of the profile"
_PLACE = ["model", "question", "metric", "contrast"]
_COLUMNS = [*_PLACE, "measure", "direction", "margin", "n_bases", "n_seeds", "n_intents", "value", "other_value"]
_COLUMNS += ["difference", "se", "df", "low", "high", "p", "p_holm", "boot_low", "boot_high", "p_beyond"]
_COLUMNS += ["p_below_holm", "verdict", "detectable", "n_family", "note"]


class Arm(Settings):
    """One side of a contrast, by the columns of its rows."""

    finetune_task: Literal[("none", TUNED, *TASKS)] | None = None  # tuned: on any task, compared with the same one
    requests: Literal[(*REQUESTS, USUAL)] = "none"  # usual: those that safety data go with, none where there are none
    safety_data: Literal[(*SAFETY_DATA, *ARMS)] = "none"
    safety_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    system_prompt: bool | None = None  # None: as all are asked
    form: Literal[(*FORMS, OWN)] | None = None  # own: that of the tuned task; None: all

    @property
    def untuned(self) -> bool:
        return self.finetune_task == "none"


class Sides(Settings):
    """What the sides of one contrast have otherwise than those of its question."""

    arm: Arm = Arm()
    other: Arm = Arm()


class Asked(Settings):
    """How the prompts of all contrasts are asked."""

    style: Literal[STYLES]
    system_prompt: bool
    form: Literal["all"]


class Question(Settings):
    """One question of the plan: a family of up to four contrasts."""

    asks: str
    measure: Literal[PLANNED]
    direction: Literal["up", "down"]  # which way the answer "yes" lies
    margin: Annotated[float, Field(gt=0, lt=1)]  # smallest difference that matters
    margin_because: str
    family: Literal["question"]
    # the settings that decide the answer there, and why
    built_in: Annotated[dict[Literal["miniature"], str], Field(default_factory=dict)]
    arm: Arm = Arm()
    other: Arm = Arm()
    contrasts: Annotated[dict[Name, Sides], Field(min_length=1, max_length=4)]

    @model_validator(mode="before")
    @classmethod
    def _tasks_are_contrasts(cls, given):
        """A list of tasks: contrasts of these names, in which that task is tuned where the question names none."""
        if not (isinstance(given, dict) and isinstance(tasks := given.get("contrasts"), list)):
            return given
        if wrong := [task for task in tasks if not isinstance(task, str)]:
            raise ValueError(f"contrasts: a list holds names of tasks, as in [code, translation], found {wrong[0]!r}")
        if len(set(tasks)) < len(tasks):
            raise ValueError("needs each task of `contrasts` once")
        own = {side: given.get(side) for side in ("arm", "other")}
        sides = [side for side in own if not (isinstance(own[side], dict) and "finetune_task" in own[side])]
        return given | {"contrasts": {task: {side: {"finetune_task": task} for side in sides} for task in tasks}}

    @model_validator(mode="after")
    def _sides_differ(self):
        for name in self.contrasts:
            arm, other = self.sides(name)
            if arm == other or None in (arm.finetune_task, other.finetune_task) or (arm.untuned and not other.untuned):
                raise ValueError(f"contrast {name} needs two different sides, an `arm` tuned unless neither is")
            if self.measure == J and arm.form != other.form:
                raise ValueError(f"contrast {name}: j compares prompts of the same forms")
        return self

    def sides(self, contrast: str) -> tuple[Arm, Arm]:
        own = self.contrasts[contrast]
        parts = (self.arm, own.arm), (self.other, own.other)
        return tuple(whole.model_copy(update=part.model_dump(exclude_unset=True)) for whole, part in parts)

    @property
    def sign(self) -> int:
        return 1 if self.direction == "up" else -1


class Plan(Settings):
    """The plan of the confirmatory part, data/plan.yaml."""

    profiles: Annotated[list[Name], Field(min_length=1)]
    bases_at_least: Annotated[int, Field(ge=2)]
    asked: Asked
    frozen: dict[str, Any]  # dotted keys of a profile, with their values
    questions: Annotated[dict[Name, Question], Field(min_length=1)]


def load_plan(path: Path = DATA / "plan.yaml") -> Plan:
    """The plan in that file. Raises StudyError, which names the key, what it may be and what was found."""
    try:
        return Plan.model_validate(read_yaml(path))
    except ValidationError as error:
        raise StudyError(f"The plan {path.name}: {explain(error, Plan)}.") from None


def differences(plan: Plan, profile: Profile) -> list[str]:
    """How the profile differs from the plan, a clause each, without a stop; empty where its run is confirmatory."""
    if profile.name not in plan.profiles:
        return [f"the plan is for {', '.join(plan.profiles)}, not for {profile.name}"]
    n, found = len(profile.base_seeds), []
    if n < plan.bases_at_least:
        found.append(f"{n} base{'s' * (n != 1)}, the plan asks for at least {plan.bases_at_least}")
    if (n_own := len(profile.pretraining_seeds)) < n:
        found.append(f"{n} bases share {n_own} pre-training{'s' * (n_own != 1)}, the plan asks for one each")
    settings = profile.model_dump() | {"judges": dict(zip("0", profile.judges, strict=False))}  # the first decides
    for key, frozen in plan.frozen.items():
        value = settings
        for name in key.split("."):
            value = value.get(name, _ABSENT) if isinstance(value, dict) else _ABSENT
        if value != frozen:
            found.append(f"{key} is {value}, the plan freezes {frozen}")
    return found


def check_profile(plan: Plan, profile: Profile) -> None:
    """Raises StudyError where the profile lacks cells of the plan's contrasts, or has fewer than two bases.

    A profile that the plan is not for may have any cells, and questions whose answer is built in need none. Benign
    twins need no check here: 00_prepare stops where a harmful prompt has none.
    """
    if profile.name not in plan.profiles:
        return
    made, total, missing = [*grid.untuned(profile), *grid.tunings(profile)], len(profile.base_seeds), []
    asked = [(n, side) for n, q in plan.questions.items() if not q.built_in for c in q.contrasts for side in q.sides(c)]
    for name, side in asked:
        left, wanted = made, {"style": plan.asked.style} | side.model_dump(exclude={"form", "system_prompt"})
        wanted["system_prompt"] = plan.asked.system_prompt if side.system_prompt is None else side.system_prompt
        for key, value in wanted.items():
            left = [cell for cell in left if _is(profile, cell, key, value)]
            if (n := len({cell.base for cell in left})) < total:
                missing.append(f"{key} {value} ({name})" + f" on {total - n} of {total} bases" * (n > 0))
                break
    if missing:
        raise StudyError(
            f"Profile {profile.name} lacks cells of the plan: {', '.join(dict.fromkeys(missing))}. Add them to its "
            "grid, or change data/plan.yaml before the run."
        )
    if total < 2:
        least = f"give base_seeds at least {plan.bases_at_least} numbers"
        raise StudyError(f"Profile {profile.name} has {total} base, and contrasts are tested between bases: {least}.")


def _is(profile: Profile, cell: grid.Cell, key: str, value) -> bool:
    """Whether the cell has that value of a side of a contrast."""
    if key == "system_prompt":
        return value in grid.system_prompts(profile, cell)
    tuned = cell.finetune_task != "none"
    usual = grid.main_requests(profile) if tuned else "none"
    return tuned if value == TUNED else getattr(cell, key) == (usual if value == USUAL else value)


def paired(rows: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """One row per model, question, metric, contrast, base, seed and intent with value, other_value and difference.

    `rows` are those of `plan_rows`, with one score per response. A pair is the same prompt, or where the sides have
    different forms the same intent, to the same base and, where both sides are tuned, the same training seed. An
    intent's value is the mean of its pairs (0-1; of "j" -1 to 1, and of intents alone whose harmful prompt and twin
    both have a pair in a form). Prompts without a value on either side are left out: so both sides of general_score are
    of prompts that neither refuses. metric is the judge, the guard, or "score". The seed of untuned models is 0. Rows
    of this function are returned as they are, so that many tables need one pairing.
    """
    if "other_value" in rows:
        return rows
    rows = rows[rows["style"] == plan.asked.style]
    kinds = usual(rows[rows["finetune_task"] != "none"])["requests"]
    found = []
    for name, question in plan.questions.items():
        counted = rows[rows["measure"] == ("balanced_accuracy" if question.measure == J else question.measure)]
        if counted.empty and found:
            continue
        if question.measure.endswith("_score"):
            counted = counted.assign(metric="score")  # each form has a metric of its own
        for contrast in question.contrasts:
            sides = [_resolved(side, plan, kinds) for side in question.sides(contrast)]
            found.append(_pairs(counted, *sides, question.measure == J).assign(question=name, contrast=contrast))
    pairs = pd.concat([one for one in found if len(one)] or found[:1], ignore_index=True)
    pairs["difference"] = pairs["value"] - pairs["other_value"]
    return pairs[[*_PLACE, "base", "seed", "intent", "value", "other_value", "difference"]]


def _resolved(side: Arm, plan: Plan, kinds: pd.Series) -> Arm:
    """The side with values of the rows in place of words such as "usual"; `kinds` are the usual requests."""
    own = {"system_prompt": plan.asked.system_prompt} if side.system_prompt is None else {}
    own |= {"form": side.finetune_task} if side.form == OWN else {}
    own |= {"requests": kinds.iat[0] if len(kinds) else "none"} if side.requests == USUAL else {}
    return side.model_copy(update=own)


def _pairs(rows: pd.DataFrame, arm: Arm, other: Arm, of_j: bool) -> pd.DataFrame:
    """The rows of `paired` of one contrast."""
    of_training = ["model", "metric", "base", "seed"]
    keys = ["model", "metric", "base", "intent", *(["form", "prompt_id"] if arm.form == other.form else [])]
    of_arm, of_other = (
        [*keys, *([] if side.untuned else ["seed"]), *(["finetune_task"] if side.finetune_task == TUNED else [])]
        for side in (arm, other)
    )
    chosen = _chosen(rows, arm), _chosen(rows, other)
    if chosen[0].empty or chosen[1].empty:
        return pd.DataFrame(columns=[*of_training, "intent", "value", "other_value"])
    values, others = (
        of.groupby(own, observed=True, sort=False)["value"].mean().reset_index()  # of several samples
        for of, own in zip(chosen, (of_arm, of_other), strict=True)
    )
    others = others.rename(columns={"value": "other_value"})
    pairs = values.merge(others, on=[name for name in of_other if name in of_arm])
    pairs = pairs.dropna(subset=["value", "other_value"])
    pairs = pairs.astype(dict.fromkeys(pairs.select_dtypes("category"), object))
    if arm.untuned:
        pairs["seed"] = 0
    if of_j:
        pairs[["value", "other_value"]] = 2 * pairs[["value", "other_value"]] - 1
        place = [*of_training, "form", "intent", *(["finetune_task"] if "finetune_task" in of_arm else [])]
        pairs = pairs[pairs.groupby(place)["value"].transform("size") == 2]
    return pairs.groupby([*of_training, "intent"], sort=False)[["value", "other_value"]].mean().reset_index()


def _chosen(rows: pd.DataFrame, side: Arm) -> pd.DataFrame:
    """The rows of one side."""
    task = rows["finetune_task"]
    chosen = task != "none" if side.finetune_task == TUNED else task == side.finetune_task
    chosen &= (rows["requests"] == side.requests) & (rows["safety_data"] == side.safety_data)
    chosen &= np.isclose(rows["safety_fraction"], side.safety_fraction)
    chosen &= rows["system_prompt"].astype(bool) == side.system_prompt
    if side.form:
        chosen &= rows["form"] == side.form
    return rows[chosen]


def plan_rows(
    responses: pd.DataFrame, scores: pd.DataFrame | None, decisions: pd.DataFrame, plan: Plan
) -> pd.DataFrame:
    """The rows of `rates.outcomes` of judged responses, and of measure BLOCKED whether a guard blocks a harmful prompt.

    `decisions` are those of `guards.decide`, or empty. The metric is the guard; the one that learns from every form is
    left out. A guard reads prompts before any model does, so each model has the same rows; NaN where undecided.
    """
    rows = outcomes(responses, None, scores)
    if decisions.empty:
        return rows
    harmful = (decisions["side"] == "input") & (decisions["prompt_set"] == "harmful")
    asked = decisions[harmful & (decisions["guard"] != EMBEDDED_GUARDS[1])].drop_duplicates(["guard", "prompt_id"])
    made = asked[["form", "prompt_id", "intent"]].assign(metric=asked["guard"], measure=BLOCKED, base=0, seed=0)
    made["value"] = asked["blocked"].astype("Float64").astype(float)
    made = made.assign(finetune_task="none", requests="none", safety_data="none", safety_fraction=0.0)
    made = made.assign(style=plan.asked.style, system_prompt=plan.asked.system_prompt)
    return pd.concat([rows, made.merge(responses[["model"]].drop_duplicates(), how="cross")], ignore_index=True)


def base_differences(rows: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """One row per model, question, metric, contrast, base and seed: n_intents, value, other_value and difference."""
    names = {name: (name, "mean") for name in ("value", "other_value", "difference")}
    trainings = paired(rows, plan).groupby([*_PLACE, "base", "seed"], sort=False)
    return trainings.agg(n_intents=("intent", "nunique"), **names).reset_index()


def tabled(pairs: pd.DataFrame) -> pd.DataFrame:
    """The differences of one contrast's pairs: a row per base and seed, a column per intent, NaN where none is."""
    return pairs.pivot(index=["base", "seed"], columns="intent", values="difference")


def contrast_table(rows: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """One row per model, question, metric (judge or score) and contrast of the plan, and what it shows.

    `rows` as for `paired`. n_bases, n_seeds (training seeds of each base, the fewest), n_intents; value, other_value
    and their difference (0-1, of "j" -1 to 1), each base counting the same; se, df, low and high (95 %), two-sided p
    and p_holm, adjusted within model, question and metric, of whose p values there are n_family. The test is t on
    n_bases - 1 degrees of freedom, with the variance of `stats.crossed`. With one base its training seeds take the
    place of bases, and the row is about that model alone; without a second training se, p and the rest are NaN. Of one
    untuned model, or a guard, the prompts (intents) take it.

    boot_low and boot_high: the Multi-Bootstrap of Sellam et al. (arXiv 2106.16163), 2,000 draws of bases with all
    their seeds, and of intents. Of few bases it is too narrow, so it decides nothing.

    verdict: "yes" where p_holm is below 0.05 and the difference lies in the plan's direction; "no" where it lies in the
    other, or where p_below_holm is below 0.025, of the one-sided test that the difference does not reach the margin;
    else "undecided". So each side has the level of a 95 % interval. Where other_value is nearer than the margin to the
    end of its scale, a change by the margin is impossible: such a "no" is closed, and the note says NO_ROOM. p_beyond
    is small where the difference exceeds the margin, not adjusted. detectable is the smallest true difference with 80 %
    power at Holm's first step, NaN above 1. note says what else a reader must know, or "".
    docs/statistics.md says how it does in simulation.
    """
    pairs = paired(rows, plan)
    found = []
    for model in pairs["model"].unique():
        for name, question in plan.questions.items():
            own = pairs[(pairs["model"] == model) & (pairs["question"] == name)]
            for metric in own["metric"].unique():
                judged = own[own["metric"] == metric]
                for contrast in question.contrasts:
                    row = {"model": model, "question": name, "metric": metric, "contrast": contrast}
                    row |= {"measure": question.measure, "direction": question.direction, "margin": question.margin}
                    untuned = question.sides(contrast)[0].untuned
                    found.append(row | _estimated(judged[judged["contrast"] == contrast], untuned))
    if not found:
        return pd.DataFrame(columns=_COLUMNS)
    return _decided(pd.DataFrame(found, columns=[*_COLUMNS, "parts", "replicates"]))


def _estimated(pairs: pd.DataFrame, untuned: bool) -> dict:
    if pairs.empty:
        return {"n_bases": 0, "n_seeds": 0, "n_intents": 0, "note": "no pairs"}
    table, sizes = tabled(pairs), pairs.groupby("base")[["seed", "intent"]].nunique()
    seeds, words = sizes["seed"], {"seed": "training seeds", "intent": "intents"}
    uneven = [f"{n.min()} to {n.max()} {words[name]}" for name, n in sizes.items() if n.min() < n.max()]
    row = {"n_bases": len(seeds), "n_seeds": seeds.min(), "n_intents": table.shape[1]}
    row["note"] = f"bases have {' and '.join(uneven)}" if uneven else ""
    if len(seeds) == 1:
        row["note"] = "about this model alone" + ", from one training" * (len(table) == 1 and not untuned)
    else:
        table = table.groupby(level="base").mean()
    of_training = pairs.groupby(["base", "seed"])[["value", "other_value"]].mean()
    row |= of_training.groupby("base").mean().mean().to_dict()
    values = table.to_numpy()
    row["difference"], *row["parts"] = stats.crossed(values)
    if len(values) == 1 and untuned:  # it is no draw, so its prompts are all that varies
        row["parts"] = [0.0, values.var(ddof=1) / values.size] if values.size > 1 else row["parts"]
        row["replicates"] = values.size
    if len(values) > 1:
        row["boot_low"], row["boot_high"] = multi_bootstrap(values)
    return row


def multi_bootstrap(values: np.ndarray) -> np.ndarray:
    """Lower and upper percentile of the mean of values [bases, intents], NaN where one is missing, both redrawn."""
    there = ~np.isnan(values)
    bases, intents = map(_redrawn, values.shape, (0, 1))
    total, count = (((bases @ part) * intents).sum(1) for part in (np.where(there, values, 0), there.astype(float)))
    with np.errstate(invalid="ignore"):  # a draw may have missing values alone
        return np.nanquantile(total / count, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])


@cache
def _redrawn(n: int, stream: int) -> np.ndarray:
    """How often each of n is drawn in each of DRAWS draws of n with replacement."""
    return np.random.default_rng(stream).multinomial(n, np.full(n, 1 / n), DRAWS).astype(float)


def _decided(table: pd.DataFrame) -> pd.DataFrame:
    """The estimates with their tests, adjusted within families, and verdicts."""
    table = table.reset_index(drop=True)
    limit = np.where(table["measure"] == J, 2, 1)
    several = table["n_seeds"].where(table["n_bases"] == 1, table["n_bases"])
    replicates = table.pop("replicates").astype(float).fillna(several).to_numpy(int)
    parts = np.array([part if isinstance(part, list) else [np.nan] * 2 for part in table.pop("parts")], float)
    known = ~np.isnan(parts[:, 0])
    intents = np.maximum(table["n_intents"], 1)
    se = np.sqrt(stats.crossed_variance(*parts.T, intents))
    difference, df = table["difference"].astype(float), np.where(known, replicates - 1, np.nan)
    table["se"], table["df"] = se, df
    reach = student.ppf(0.5 + CONFIDENCE / 2, df) * se
    table["low"], table["high"] = np.maximum(difference - reach, -limit), np.minimum(difference + reach, limit)
    table["p"] = 2 * student.sf(np.abs(difference) / se, df)
    family = codes(table[["model", "question", "metric"]])
    table["p_holm"] = stats.holm(table["p"], family)
    table["n_family"] = np.bincount(family, known)[family].astype(int)
    signed = np.where(table["direction"] == "up", 1, -1) * difference
    table["p_beyond"] = student.sf((signed - table["margin"]) / se, df)
    table["p_below_holm"] = stats.holm(1 - table["p_beyond"], family)
    found, below = table["p_holm"] < ALPHA, table["p_below_holm"] < ALPHA / 2
    start = table["other_value"].astype(float)
    room = np.where(table["direction"] == "up", 1 - start, start + limit - 1).round(9) >= table["margin"]
    below &= room
    verdict = [found & (signed > 0), (found & (signed < 0)) | below]
    table["verdict"] = np.select(verdict, ["yes", "no"], "undecided")
    small = np.where(verdict[0] & below, "smaller than the margin", "")
    stuck = np.where(known & ~room, NO_ROOM, "")
    table["note"] = [", ".join(filter(None, parts)) for parts in zip(table["note"], small, stuck, strict=True)]
    detectable = [
        stats.crossed_detectable(*own, n, n_intents, ALPHA / m) if there else np.nan
        for own, n, n_intents, m, there in zip(parts, replicates, intents, table["n_family"], known, strict=True)
    ]
    table["detectable"] = np.where(np.array(detectable) <= 1, detectable, np.nan)
    numbers = ["value", "other_value", "difference", "boot_low", "boot_high"]
    return table[_COLUMNS].astype(dict.fromkeys(numbers, float))


def marked(table: pd.DataFrame, plan: Plan, profile: Profile) -> pd.DataFrame:
    """The table of `contrast_table` with the columns status and built_in, and the verdicts that hold in this run.

    status is "exploratory" where the run differs from the plan (`differences`), or a contrast of the generated world
    has fewer bases than the plan asks for; else "confirmatory". built_in names the settings of the generated world that
    decide the answer, or is "". verdict is "not run" without pairs; in the generated world "built in" or "exploratory"
    takes the place of the others. Of real models the verdicts stay, as their run has no frozen settings to differ from.
    """
    few = table["n_bases"].between(1, plan.bases_at_least - 1) & (profile.world is not None)
    status = np.where(few | bool(differences(plan, profile)), EXPLORATORY, CONFIRMATORY)
    own = {name: question.built_in.get("miniature", "") for name, question in plan.questions.items() if profile.world}
    built_in = pd.Series([own.get(name, "") for name in table["question"]], table.index, dtype=object)
    cases = {NOT_RUN: table["n_bases"] == 0}
    if profile.world:
        cases |= {BUILT_IN: built_in != "", EXPLORATORY: status == EXPLORATORY}
    verdict = np.select(list(cases.values()), list(cases), table["verdict"]) if len(table) else table["verdict"]
    return table.assign(verdict=verdict, status=status, built_in=built_in)

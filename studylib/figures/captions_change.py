"""What the figures of change show (see `plots_change`): their rows, captions and alternative texts, all from the tables."""

from __future__ import annotations

import pandas as pd

from studylib.analysis.comparisons import pareto_front
from studylib.analysis.rates import one_dose, one_row_per_mark
from studylib.analysis.readable import calibration_label, cell_words, label, span
from studylib.analysis.stats import CONFIDENCE
from studylib.figures.caption import doses_said, extremes, missing_said, n_of, rows_of, seeds_said
from studylib.study.words import FORMS, SAFETY_DATA, TASKS

TOLD = ("worse", "better")  # verdicts of a comparison whose arms are told apart
STEPS = ("untuned", "tuned", "tuned + generic", "tuned + multitask")  # of the slopes, from left to right
_PLACE = ["finetune_task", "style", "system_prompt", "safety_data"]
_INTERVALS = f"Intervals: {100 * CONFIDENCE:.0f} % Wilson, clustered by prompt and training seed."
_OVERLAP = "Marks whose intervals overlap are not ranked."


def changes(name: str, comparisons: pd.DataFrame) -> pd.DataFrame:
    """The rows of `comparisons.comparisons` that erosion_heatmap or repair_heatmap shows, one per cell.

    Both show attack_success_rate: erosion the kind tuning, repair the kind mitigation without system prompt and at one dose.
    Raises ValueError where there are none, or none with a pair, and where several judges or models have one place.
    """
    kind = {"erosion_heatmap": "tuning", "repair_heatmap": "mitigation"}[name]
    rows = comparisons[(comparisons["kind"] == kind) & (comparisons["measure"] == "attack_success_rate")]
    rows = rows[rows["form"].isin([*FORMS, "all"])]
    if kind == "mitigation":
        rows = one_dose(rows[~rows["system_prompt"].astype(bool)])
    if not (rows["n"] > 0).any():
        what = (
            "a tuned model with the untuned one"
            if kind == "tuning"
            else "tuning with safety data and without (no system prompt)"
        )
        raise ValueError(f"{name} has nothing to draw: the table compares {what} on no prompt")
    return one_row_per_mark(rows)


def _changes_caption(name: str, comparisons: pd.DataFrame) -> tuple[str, str]:
    rows = changes(name, comparisons)
    single, pooled = rows[rows["form"] != "all"], rows[rows["form"] == "all"]
    told = rows["verdict"].isin(TOLD)
    drawn = rows[rows["difference"].notna() & (rows["n"] > 0)]
    title, other = {
        "erosion_heatmap": ("Change of the attack success rate by tuning without safety data", "the untuned model"),
        "repair_heatmap": ("Change of the attack success rate by safety data in the tuning", "the same tuning without"),
    }[name]
    family = [
        f"{span(part['n_family'])} of {what}"
        for part, what in ((single, "single forms"), (pooled, "all forms"))
        if len(part)
    ]
    text = [
        f"{title}, in points, against {other} on the same prompts, by tuned task, calibration and form of the prompt."
    ]
    text += ["Without system prompt."] if name == "repair_heatmap" else []
    text.append(
        "Coloured: significant, p below 0.05 after Holm's adjustment over all comparisons of this kind "
        f"({' and '.join(family)}). In brackets, hatched: not significant."
    )
    if unknown := n_unknown(rows):
        text.append(f"Grey, a dash: not run, no pairs, or too few prompts ({unknown} cells).")
    text.append(
        f"Each cell of a form: n = {span(single.loc[single['n'] > 0, 'n'])} pairs; all forms: {span(pooled['n'])}."
    )
    seeds = span(drawn["n_seeds"])
    text += [
        *doses_said(rows),
        f"Training seeds pooled: {seeds}." + (" Nothing is known of other training runs." if seeds == "1" else ""),
    ]
    text.append(f"Judge: {' and '.join(sorted(set(rows['metric'])))}.")
    text.append(
        f"Intervals are not drawn; they are in the table `comparisons` ({100 * CONFIDENCE:.0f} %, clustered by prompt and seed)."
    )
    text.append(f"Smallest change seen with 80 % power: {span(100 * drawn['detectable'])} points.")
    ends = (drawn.loc[drawn["difference"].idxmin()], drawn.loc[drawn["difference"].idxmax()])
    ends = " to ".join(f"{points(row['difference'])} ({cell_words(row, form=True)})" for row in ends)
    verdicts = rows["verdict"].value_counts()
    counted = ", ".join(f"{verdicts.get(word, 0)} {word}" for word in TOLD)
    alt = f"{title}, from {ends} points. Told apart from no change: {told.sum()} of {len(drawn)} cells ({counted})."
    return " ".join(text), alt


def n_unknown(rows: pd.DataFrame, key: str = "finetune_task") -> int:
    """How many cells of the panels of these changes, with the key's values as rows, hold no difference that could be tested."""
    panels = rows[[name for name in _PLACE if name != key]].drop_duplicates()
    known = rows["verdict"].isin([*TOLD, "not significant"])
    return len(panels) * rows[key].nunique() * (len(FORMS) + 1) - int(known.sum())


def points(difference: float) -> str:
    """A difference of rates (-1 to 1) in points with its sign, as in "+12"; "0" where it rounds to it."""
    return f"{100 * difference:+.0f}".replace("+0", "0").replace("-0", "0").replace("-", "\N{MINUS SIGN}")


def slopes(by_seed: pd.DataFrame) -> pd.DataFrame:
    """The rows of the seed slopes: all forms, no system prompt, one dose; `step` is the place (0-3) in STEPS.

    Raises ValueError where there is no tuned model, and for two rows of one model and seed.
    """
    rows = by_seed[(by_seed["form"] == "all") & ~by_seed["system_prompt"].astype(bool)]
    if not (rows.loc[rows["finetune_task"] != "none", "rate"].notna()).any():
        raise ValueError(
            "seed_slopes has nothing to draw: the table has no rate of a tuned model without system prompt"
        )
    rows = one_row_per_mark(one_dose(rows), "seed")
    step = rows["safety_data"].map(SAFETY_DATA.index) + 1
    return rows.assign(step=step.mask(rows["finetune_task"] == "none", 0).astype(int))


def _slopes_caption(by_seed: pd.DataFrame) -> tuple[str, str]:
    rows = slopes(by_seed)
    tuned = rows[rows["finetune_task"] != "none"]
    seeds = sorted(set(tuned["seed"]))
    drawn = tuned[tuned["rate"].notna()]
    text = [
        "Attack success rate of each training seed, all forms pooled, no system prompt: untuned, tuned, and tuned with safety data."
    ]
    text.append("Thin: one seed, the same in every step. Thick: the mean of the seeds.")
    text.append(f"Seeds: {len(seeds)}." + (" Of one seed the spread cannot be seen." if len(seeds) == 1 else ""))
    text.append(f"Each thin mark: {n_of(rows)} responses; the untuned model has no training seed.")
    text += doses_said(rows) + missing_said(rows, "rate", SAFETY_DATA)
    text.append(f"Judge: {' and '.join(sorted(set(rows['judge'])))}.")
    text.append("Intervals are not drawn: those that pool the seeds are in safety_data_comparison.")
    means = drawn.groupby("step")["rate"]
    told = [f"{STEPS[step]} {span(100 * of)} %" for step, of in means]
    untuned = rows.loc[rows["step"] == 0, "rate"].dropna()
    told = ([f"untuned {span(100 * untuned)} %"] if len(untuned) else []) + told
    return " ".join(text), f"Attack success rate per training seed, tuned tasks and styles together: {'; '.join(told)}."


def doses(attack: pd.DataFrame, helpfulness: pd.DataFrame) -> pd.DataFrame:
    """Attack success and over-refusal in one table: chat style, no system prompt, all forms, every dose.

    `measure` is attack_success_rate or over_refusal_rate, `value` the rate (0-1). Raises ValueError where there is no dose.
    """
    both = [
        attack.rename(columns={"rate": "value", "judge": "metric"}).assign(measure="attack_success_rate"),
        helpfulness[helpfulness["measure"] == "over_refusal_rate"],
    ]
    rows = pd.concat(both, ignore_index=True)
    rows = rows[(rows["form"] == "all") & (rows["style"] == "chat") & ~rows["system_prompt"].astype(bool)]
    if rows[(rows["safety_data"] != "none") & rows["value"].notna()].empty:
        raise ValueError(
            "dose_response has nothing to draw: no model tuned with safety data in the chat style, no system prompt"
        )
    return one_row_per_mark(rows, "measure", "safety_fraction")


def _doses_caption(attack: pd.DataFrame, helpfulness: pd.DataFrame) -> tuple[str, str]:
    rows = doses(attack, helpfulness)
    drawn = rows[rows["value"].notna()]
    per_cent = [f"{100 * dose:g}" for dose in sorted(set(rows.loc[rows["safety_data"] != "none", "safety_fraction"]))]
    text = [
        "Attack success rate (solid) and over-refusal rate on benign twins (dashed) against the share of safety data in the tuning,"
    ]
    text.append(
        f"all forms pooled, {calibration_label('chat', False)}. Doses: 0 and {', '.join(per_cent)} % of the tuning rows, evenly spaced."
    )
    text += ["One dose: the course between the ends is not known."] if len(per_cent) == 1 else []
    text.append("Stars left of 0: the aligned model, hollow its over-refusal. Each mark:")
    counted = [
        f"{n_of(part)} {what}" for measure, what in _COUNTED.items() if len(part := drawn[drawn["measure"] == measure])
    ]
    text.append(f"{'; '.join(counted)}.")
    text += [*seeds_said(drawn), f"Judge: {' and '.join(sorted(set(drawn['metric'])))}."]
    text += [f"Left empty, nothing judged: {n} marks." for n in [int(rows["value"].isna().sum())] if n]
    text += [f"Not run: {arm} safety data." for arm in SAFETY_DATA[1:] if arm not in set(rows["safety_data"])]
    lacking = [
        word
        for measure, word in (("attack_success_rate", "attack success"), ("over_refusal_rate", "over-refusal"))
        if measure not in set(drawn["measure"])
    ]
    text += [f"Not known: {word}." for word in lacking] + [_INTERVALS, _OVERLAP]
    told = []
    for measure, what in (("attack_success_rate", "answered"), ("over_refusal_rate", "twins refused")):
        tuned = drawn[(drawn["measure"] == measure) & (drawn["finetune_task"] != "none")]
        by_arm = [
            f"{'no safety data' if arm == 'none' else f'{100 * dose:g} % {arm}'} {span(100 * part['value'])} %"
            for (arm, dose), part in tuned.groupby(["safety_data", "safety_fraction"])
        ]
        told += [f"{what}: {', '.join(by_arm)}"] if by_arm else []
    return " ".join(text), f"Dose of safety data, smallest to largest of the tuned tasks. {_sentence(told)}"


_COUNTED = {"attack_success_rate": "responses to harmful prompts", "over_refusal_rate": "to benign twins"}


def _sentence(parts: list[str]) -> str:
    words = "; ".join(parts)
    return f"{words[:1].upper()}{words[1:]}."


def plane(attack: pd.DataFrame, helpfulness: pd.DataFrame) -> pd.DataFrame:
    """One row per mark of safety_vs_helpfulness: rate, low, high of the attack success; score, score_low, score_high, n_score.

    `panel` is the tuned task whose score it is; the aligned model has a row in each panel. `front`, within panel and
    calibration: "yes" where no other mark has a rate as low and a score as high, one of them better; "no" where there is such a
    mark and an interval of it lies apart on one axis or both; "undecided" where the intervals of every such mark overlap
    on both. A mark without rate or score has no row. Raises ValueError as the figure does.
    """
    table = rows_of("safety_vs_helpfulness", attack)
    scores = helpfulness[(helpfulness["measure"] == "task_score") & helpfulness["form"].isin(TASKS)]
    scores = one_row_per_mark(one_dose(scores))
    keys = ["finetune_task", "style", "system_prompt", "safety_data"]
    names = {"form": "panel", "value": "score", "low": "score_low", "high": "score_high", "n": "n_score"}
    scores = scores[[*keys, "metric", *names]].rename(columns=names)
    points = table[[*keys, "rate", "low", "high", "n"]].merge(scores, on=keys)
    tuned_on_it = (points["finetune_task"] == points["panel"]) | (points["finetune_task"] == "none")
    points = points[tuned_on_it & points["rate"].notna() & points["score"].notna()]
    points = points[points["panel"].isin(table["finetune_task"])].reset_index(drop=True)
    if points.empty:
        raise ValueError("safety_vs_helpfulness has nothing to draw: no tuned model has both a rate and a score")
    front = pd.Series("yes", points.index)
    for _, part in points.groupby(["panel", "style", "system_prompt"], sort=False):
        front[part.index] = pareto_front(part)
    return points.assign(front=front)


def grid_rows(grid: pd.DataFrame) -> pd.DataFrame:
    """The rows of the calibration grid: all forms, `trained_style` "none" for the untuned model.

    Raises ValueError where no rate is known, and for two rows of one model and calibration.
    """
    rows = grid[grid["form"] == "all"]
    rows = rows.assign(trained_style=rows["trained_style"].mask(rows["finetune_task"] == "none", "none"))
    if rows["rate"].isna().all():
        raise ValueError("calibration_grid has nothing to draw: the table has no rate over all forms")
    return one_row_per_mark(rows.assign(safety_data="none"), "trained_style")


def _grid_caption(grid: pd.DataFrame) -> tuple[str, str]:
    rows = grid_rows(grid)
    drawn = rows[rows["rate"].notna()]
    title = "Attack success rate by the style of the tuning (rows) and the calibration of the test (columns)"
    text = [f"{title}, percent with {100 * CONFIDENCE:.0f} % interval (Wilson, clustered by prompt and training seed)."]
    text.append("All forms pooled, no safety data. Framed: tested in the style that the model was tuned in.")
    text.append(f"Each cell: {n_of(drawn)} responses.")
    tuned = rows[rows["finetune_task"] != "none"]
    if len(styles := set(tuned["trained_style"])) == 1:
        text.append(f"Not run: tuning in another style than {label(next(iter(styles)))}.")
    text += ["Not run: the aligned model."] if len(tuned) == len(rows) else []
    text += [f"Left empty, nothing judged: {len(rows) - len(drawn)} cells."] if len(drawn) < len(rows) else []
    text += [f"Judge: {' and '.join(sorted(set(drawn['judge'])))}.", "Cells whose intervals overlap are not ranked."]
    same = tuned["trained_style"] == tuned["style"]
    told = [
        f"tested in {what} style as tuned {span(100 * tuned.loc[where, 'rate'])} %"
        for what, where in (("the same", same), ("another", ~same))
        if tuned.loc[where, "rate"].notna().any()
    ]
    alt = f"{title}, {extremes(drawn, 'rate')}." + (f" {_sentence(told)}" if told else "")
    return " ".join(text), alt


CAPTIONS = {
    "erosion_heatmap": lambda comparisons: _changes_caption("erosion_heatmap", comparisons),
    "repair_heatmap": lambda comparisons: _changes_caption("repair_heatmap", comparisons),
    "seed_slopes": _slopes_caption,
    "dose_response": _doses_caption,
    "calibration_grid": _grid_caption,
}

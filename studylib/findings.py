"""What 06_findings shows: all tables, each figure with its caption, and sentences filled from the tables."""

from pathlib import Path

import numpy as np
import pandas as pd

from studylib import (
    agreement,
    captions,
    config,
    datasets,
    guard_tables,
    judges,
    paper,
    plots,
    plots_judges,
    scores,
    tables,
    validation,
)
from studylib.config import FORMS, TASKS, Cell, Profile, StudyError
from studylib.paths import DATA
from studylib.stage import JUDGE_FIGURES

BLIND = "cannot say refused, and what is unjudged leaves the rate: read rate_if_unjudged_refused"


def tables_of(stage, responses: pd.DataFrame, verdicts: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Every table of the findings by name, each also written to the run's `tables/`."""
    scored = scores.headline(responses, stage.collect("scores"))
    attack, share = tables.attack_success(responses, verdicts), tables.answered_share(responses, verdicts)
    not_run, missing = not_run_in(stage), datasets.absent(stage.paths)
    cost = tables.with_not_run(tables.helpfulness(responses, verdicts, scored), not_run)
    published = paper.published_counts(DATA / "published" / "gemma_answered_counts.csv")
    found = {
        "attack_success": tables.with_not_run(attack, not_run),
        "helpfulness": tables.with_untested(cost, missing),
        "answered_share": tables.with_not_run(share, not_run),
        "paper_vs_ours": paper.paper_vs_ours(attack, share, published),
    }
    if "generic" in stage.profile.grid.safety_data:
        decisions = stage.collect("guards")
        found["guards"] = guard_tables.guards(responses, verdicts, decisions)
        guarded = guard_tables.guarded_attack_success(responses, verdicts, decisions)
        found["guarded_attack_success"] = tables.with_not_run(guarded, not_run)
    for name, table in found.items():
        tables.write(table, stage.paths.table(name))
    return found | {"published": published}


def judges_of(stage, responses: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The tables on the judges by name, each also written to the run's `tables/`.

    `judges`: each judge against people (agreement.compare); `judge_matrix`: each two on this run's responses;
    `attack_success_by_judge`: the rates that each finds, and corrected by form (validation.corrected), with a `note` where a
    judge cannot say refused; `labellers`: people with each other, where several labelled. Not written: `people`, why labelled sets are missing (by name), and
    `coherence`, a sentence on what that judge found.
    """
    verdicts = stage.collect("verdicts")
    babble = verdicts[verdicts["judge"] == "coherence"]
    verdicts = verdicts[verdicts["judge"] != "coherence"]  # it tells no refusals from answers
    people, absent = validation.people(stage.profile, stage.paths)
    found = {"judge_matrix": agreement.matrix(verdicts)}
    attack = tables.attack_success(responses, verdicts)
    if len(people):
        judged = validation.judged(people, stage.profile, stage.paths)
        found["judges"] = agreement.compare(people, judged)
        attack = validation.corrected(attack, people, judged, stage.profile.labelled)
    if (between := validation.between_people(stage.paths.labels)) is not None:
        found["labellers"] = between
    blind = attack["judge"].isin(judges.without_refusals())
    found["attack_success_by_judge"] = attack.assign(note=np.where(blind, BLIND, ""))
    for name, table in found.items():
        tables.write(table, stage.paths.table(name))
    said = f" `coherence` calls {(babble['verdict'] == 'incoherent').sum():,} of {len(babble):,} responses incoherent."
    return found | {"people": absent, "coherence": said if len(babble) else ""}


def not_run_in(stage) -> dict[Cell, str]:
    """The cells of the run's whole grid whose data are not there, and why."""
    missing = datasets.absent(stage.paths)
    grid = (
        cell
        for safety_data in stage.profile.grid.safety_data
        for task in stage.profile.grid.tasks
        for cell in config.cells(stage.profile, safety_data, task, stage.profile.grid.styles, stage.profile.grid.seeds)
    )
    return {cell: why for cell in grid if (why := datasets.not_run_because(cell, missing))}


def of_model(stage, table: pd.DataFrame, model: str) -> pd.DataFrame:
    """The table's rows of that model, of the profile's first where none is named; what was not run is left out.

    Raises StudyError for a model that the profile does not have.
    """
    if model and model not in stage.profile.models:
        raise StudyError(
            f"The profile {stage.profile.name} has no model {model!r}: it has {', '.join(stage.profile.models)}."
        )
    table = table[table["model"] == (model or next(iter(stage.profile.models)))] if "model" in table else table
    return table[~table["note"].str.startswith("not run")] if "note" in table else table


def figure(stage, found: dict[str, pd.DataFrame], model: str, name: str):
    """The figure of that name for one model (see `of_model`), written to the run's `figures/` with its caption.

    A sentence instead of a figure where there is nothing to draw.
    """
    shown = {
        "attack_success_by_form": ("attack_success",),
        "erosion_heatmap": ("attack_success",),
        "safety_data_comparison": ("attack_success",),
        "safety_vs_helpfulness": ("attack_success", "helpfulness"),
        "answered_share": ("answered_share", "published"),
        "over_refusal": ("helpfulness",),
        "guard_heatmap": ("guards",),
        "judge_agreement": ("judges",),
        "agreement_matrix": ("judge_matrix",),
    }[name]
    if missing := [table for table in shown if table not in found]:
        return f"{name}: not run in this profile (no table {missing[0]})."
    if name in JUDGE_FIGURES:  # of all models, and `model` there is who wrote the labelled responses
        table = found[shown[0]]
        if table["kappa"].isna().all():
            return f"{name}: no two judges, or no judge and people, gave verdicts of both kinds."
        more = [found["labellers"]] if name == "judge_agreement" and "labellers" in found else []
        drawn, words = getattr(plots_judges, name)(table, *more), plots_judges.caption(name, table, *more)
    else:
        frames = [of_model(stage, found[table], model) for table in shown]
        drawn, words = getattr(plots, name)(*frames), captions.caption(name, frames[0])
    plots.save(drawn, Path(stage.paths.figures), name, *words)
    return drawn


def what_the_run_was(profile: Profile, responses: pd.DataFrame, verdicts: pd.DataFrame) -> str:
    """One paragraph: the model, the grid, the prompts, the seeds and the judge."""
    harmful = responses[responses["harmful"]]
    n_intents = harmful["intent"].nunique()
    tuned = responses.loc[
        responses["finetune_task"] != "none", ["model", "finetune_task", "style", "safety_data", "seed"]
    ].drop_duplicates()
    return (
        f"**This run**: profile `{profile.name}`, model `{'`, `'.join(profile.models)}`, {len(tuned)} fine-tunes "
        f"({tuned['finetune_task'].nunique()} tasks, {tuned['style'].nunique()} styles, {tuned['safety_data'].nunique()} kinds of safety data, "
        f"{tuned['seed'].nunique()} seeds), {len(responses):,} responses, among them {len(harmful):,} to {harmful['prompt_id'].nunique()} "
        f"harmful prompts ({n_intents} intents in {harmful['form'].nunique()} forms); judge `{'`, `'.join(verdicts['judge'].unique())}`, "
        f"{(verdicts['verdict'] == 'unjudged').sum()} unjudged."
    )


def compare_in_words(here: pd.Series, there: pd.Series) -> str:
    """`higher`, `lower`, or `cannot be told apart` where the intervals of two table rows overlap."""
    if here["low"] > there["high"]:
        return "higher"
    if here["high"] < there["low"]:
        return "lower"
    return "cannot be told apart"


def _percent(row: pd.Series, value: str = "rate") -> str:
    return f"{100 * row[value]:.0f} % ({100 * row['low']:.0f}-{100 * row['high']:.0f})"


def _one(table: pd.DataFrame, **wanted) -> pd.Series | None:
    rows = table
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    return rows.iloc[0] if len(rows) == 1 else None


def erosion_in_words(attack: pd.DataFrame) -> str:
    """RQ1 and RQ2 as a list: each tuned task against the untuned model in the same calibration, all forms together."""
    lines = []
    for task in TASKS:
        words = []
        for (style, system), cell in attack[
            (attack["finetune_task"] == task) & (attack["safety_data"] == "none")
        ].groupby(["style", "system_prompt"], sort=False):
            calibration = {"style": style, "system_prompt": system, "form": "all"}
            tuned, base = _one(cell, **calibration), _one(attack, finetune_task="none", **calibration)
            if tuned is not None and base is not None:
                words.append(
                    f"{captions.calibration_label(style, system)}: {_percent(tuned)} against {_percent(base)}, {compare_in_words(tuned, base)}"
                )
        if words:
            lines.append(f"- **tuned on {captions.label(task)}**: " + "; ".join(words) + ".")
    return "Attack success after tuning against the untuned model, with 95 % intervals:\n\n" + "\n".join(lines)


def repair_in_words(attack: pd.DataFrame, helpfulness: pd.DataFrame) -> str:
    """RQ3 and RQ4 as a list: each kind of safety data by form against no safety data, and its over-refusal."""
    lines = []
    for task in TASKS:
        for safety in ("generic", "multitask"):
            words = []
            for form in FORMS:
                where = {"finetune_task": task, "style": "chat", "system_prompt": False, "form": form}
                arm, none = _one(attack, safety_data=safety, **where), _one(attack, safety_data="none", **where)
                if arm is not None and none is not None:
                    words.append(
                        f"{captions.label(form)} {_percent(arm)} against {_percent(none)}, {compare_in_words(arm, none)}"
                    )
            over = _one(
                helpfulness,
                finetune_task=task,
                style="chat",
                system_prompt=False,
                safety_data=safety,
                measure="over_refusal_rate",
                form="all",
            )
            if words:
                cost = f"; benign twins refused: {_percent(over, 'value')}" if over is not None else ""
                lines.append(f"- **{captions.label(task)} + {safety} safety data**: " + "; ".join(words) + cost + ".")
    return (
        "Attack success by form in the chat style without system prompt, with and without safety data:\n\n"
        + "\n".join(lines)
    )

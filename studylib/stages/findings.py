"""What 06_findings shows: all tables, each figure with its caption, and sentences filled from the tables."""

import inspect
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from jinja2 import Template

from studylib.analysis import agreement, claims, comparisons, contrasts, power, rates, readable, tables
from studylib.data import harmful, mixture, sets
from studylib.figures import catalogue, style
from studylib.judges import registry
from studylib.scores import benign
from studylib.stages import judging
from studylib.study import grid
from studylib.study.files import write_text
from studylib.study.grid import Cell
from studylib.study.paths import DATA
from studylib.study.words import ARMS, STAGE_SAFETY_DATA, StudyError

OF_REQUESTS = ("what_each_step_adds",)
OF_ARMS = ("arms_plane", "transfer_matrix")
OF_ALL_MODELS = ("judge_agreement", "published_counts")
EXPLORATORY = "Exploratory run."
NO_OPTIONS = (
    "There is no table unsafe_options: this run asked no question of which one option is unsafe. Only runs on lists of "
    "harmful instructions ask such questions."
)
BLIND = "cannot say refused, and what is unjudged leaves the rate: read rate_if_unjudged_refused"


def tables_of(stage, responses: pd.DataFrame, verdicts: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Every table of the findings by name, each also written to the run's `tables/`, as CSV and Parquet.

    Tables whose stage has not run are left out, and `paper_vs_ours` of models of the generated world.
    """
    scored, decisions = stage.collect("scores"), stage.collect("guards")
    scored = benign.headline(responses, scored) if len(scored) else None
    asked = responses.loc[responses["prompt_set"].isin(["task", "general"]), "response_id"]
    if scored is not None and (n := (~asked.isin(scored["response_id"])).sum()):
        raise StudyError(f"05_helpfulness has no score of {n} responses, as stages ran after it: run it again first.")
    rows = rates.judged(responses.drop(columns=["prompt", "response"]), verdicts)
    words = [name for name in rows.select_dtypes(["object", "string"]) if name != "response_id"]
    rows = rows.astype(dict.fromkeys(words, "category"))  # a word is looked at once, not in every row and table
    attack, share = tables.attack_success(rows), tables.answered_share(rows)
    not_run, missing = not_run_in(stage), sets.absent(stage.paths)
    cost = tables.with_not_run(tables.helpfulness(rows, None, scored), not_run)
    published = claims.published_counts()
    found = {
        "attack_success": tables.with_not_run(attack, not_run),
        "helpfulness": tables.with_untested(cost, missing),
        "discrimination": tables.with_not_run(tables.discrimination(rows), not_run),
        "answered_share": tables.with_not_run(share, not_run),
        "comparisons": comparisons.compare_arms(rows, None, scored),
        "by_run": tables.by_run(rows),
        "deviations": claims.deviations(),
        "choices": claims.choices(),
    }
    if stage.paths.data("twin").is_file():  # a run may be handed on without its data
        found["over_refusal_by_kind"] = tables.over_refusal_by_kind(rows, None, sets.kinds(stage.paths))
        tests = (row for name in ("harmful", "twin") for row in sets.load(stage.paths, name))
        letters = {row["id"]: harmful.unsafe_letter(row) for row in tests if row["prompt_set"] == "unsafe_options"}
        if len(asked := tables.unsafe_options(responses, verdicts, letters)):
            found["unsafe_options"] = asked
    if len(decisions):
        found["guards"] = tables.guards(responses, verdicts, decisions)
        guarded = tables.guarded_attack_success(responses, verdicts, decisions)
        found["guarded_attack_success"] = tables.with_not_run(guarded, not_run)
    runs = zip(responses["base"], responses["seed"].where(responses["finetune_task"] != "none"), strict=True)
    tried = responses.loc[[grid.explores(stage.profile, *one) for one in runs]]  # where all of the grid is tried
    explored = rows[rows["response_id"].isin(tried["response_id"])]
    if len(across := stage.collect("across")):
        told = stage.collect("across_verdicts")
        found["calibration_grid"] = tables.calibration_grid(tried, verdicts, across, told)
    if 0 < len(explored) < len(rows):  # arms are compared on the same bases
        found["attack_success_explored"] = tables.attack_success(explored)
        found["helpfulness_explored"] = tables.helpfulness(explored, None, scored)
        found["comparisons_explored"] = comparisons.compare_arms(explored, None, scored)
    of_arms = (_of_arms(found, name) for name in ("attack_success", "helpfulness", "comparisons"))
    found["arms"] = comparisons.arm_table(*of_arms)
    plan = contrasts.load_plan()
    pairs = contrasts.paired(contrasts.plan_rows(rows, scored, decisions, plan), plan)
    found["contrasts"] = contrasts.marked(contrasts.contrast_table(pairs, plan), plan, stage.profile)
    found["base_differences"] = contrasts.base_differences(pairs, plan)
    found["components"] = power.components(pairs, plan)
    found["claims"] = claims.check_claims(found, stage.profile)
    if stage.profile.data:
        found["paper_vs_ours"] = claims.paper_vs_ours(attack, share, published, found["claims"])
    for name, table in found.items():
        tables.write_table(table, stage.paths.table(name))
    left_out = "" if "unsafe_options" in found else f"\n{NO_OPTIONS}\n"
    _put(stage, stage.paths.table("x").parent / "README.md", what_the_tables_are() + left_out)
    return found | {"published": published}


def _of_arms(found: dict[str, pd.DataFrame], name: str) -> pd.DataFrame:
    """The table of that name, of the base models alone on which all is tried where it has others too."""
    return found.get(f"{name}_explored", found[name])


def exploratory(stage) -> str:
    """A line that says how the run differs from data/plan.yaml, "" where it follows the plan."""
    why = contrasts.differences(contrasts.load_plan(), stage.profile)
    return f"**{EXPLORATORY}** It differs from data/plan.yaml: {'; '.join(why)}." if why else ""


def _put(stage, path: Path, page: str) -> None:
    """Writes the page, with the line of `exploratory` below its title."""
    title, rest = page.split("\n", 1)
    line = exploratory(stage)
    write_text(path, "\n".join([title, *([f"\n{line}"] if line else []), rest]))


def what_the_tables_are() -> str:
    """Markdown: what each table of the run is and what its columns mean, as its function says."""
    names = ("attack_success", "discrimination", "helpfulness", "answered_share", "over_refusal_by_kind", "by_run")
    made = {name: getattr(tables, name) for name in (*names, "calibration_grid")}
    made |= {"set_scores": benign.of_sets, "win_rates": benign.win_rate, "comparisons": comparisons.compare_arms}
    made |= {"arms": comparisons.arm_table, "guards": tables.guards, "judges": agreement.compare}
    made |= {"guarded_attack_success": tables.guarded_attack_success, "judge_matrix": agreement.matrix}
    made |= {"attack_success_by_judge": judging.corrected}
    made |= {"contrasts": contrasts.contrast_table, "base_differences": contrasts.base_differences}
    made |= {"components": power.components, "claims": claims.check_claims, "paper_vs_ours": claims.paper_vs_ours}
    made |= {"deviations": claims.deviations, "choices": claims.choices, "unsafe_options": tables.unsafe_options}
    kinds = "".join(f"\n- `{kind}`: {words}" for kind, words in comparisons.KINDS.items())
    parts = [
        "# Tables of this run",
        "Words are those of docs/settings.md; a cell is model, finetune_task, requests, style, system_prompt, "
        "safety_data and safety_fraction. Empty is NaN: nothing to count, or nothing known. n_effective is how many "
        "independent responses a rate is worth (`stats.clustered_intervals`); of scores it can exceed n. "
        "Tables named `..._explored` are of the base models and the training seed with which every arm was tried.",
    ]
    for name, function in made.items():
        more = f"\n\nKinds:\n{kinds}" if name == "comparisons" else ""
        more = f"\n\n{inspect.getdoc(contrasts.marked)}" if name == "contrasts" else more
        parts.append(f"## {name}\n\n{inspect.getdoc(function)}{more}")
    return "\n\n".join(parts) + "\n"


def judges_of(stage, responses: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The tables on the judges by name, each also written to the run's `tables/`.

    `judges`: each judge against people (agreement.compare); `judge_matrix`: each two on this run's responses;
    `attack_success_by_judge`: the rates that each finds, and corrected by form (`judging.corrected`), with a `note`
    where a judge cannot say refused. Not written: `people`, why labelled sets are missing (by name), and `coherence`,
    a sentence on what that judge found.
    """
    verdicts = stage.collect("verdicts", all_judges=True)
    babble = verdicts[verdicts["judge"] == "coherence"]
    verdicts = verdicts[verdicts["judge"] != "coherence"]  # it judges coherence, not refusal
    people, absent = judging.people(stage.profile, stage.paths)
    found = {"judge_matrix": agreement.matrix(verdicts)}
    attack = tables.attack_success(responses, verdicts)
    if len(people):
        judged = judging.judged(people, stage.profile, stage.paths)
        found["judges"] = agreement.compare(people, judged)
        attack = judging.corrected(attack, people, judged, stage.profile.labelled)
    blind = attack["judge"].isin(registry.without_refusals())
    found["attack_success_by_judge"] = attack.assign(note=np.where(blind, BLIND, ""))
    for name, table in found.items():
        tables.write_table(table, stage.paths.table(name))
    said = f" `coherence` calls {(babble['verdict'] == 'incoherent').sum():,} of {len(babble):,} responses incoherent."
    return found | {"people": absent, "coherence": said if len(babble) else ""}


def not_run_in(stage) -> dict[Cell, str]:
    """The cells of the run's whole grid whose data are not there, or whose stage has not run, and why."""
    missing = sets.absent(stage.paths)
    waiting = {(unit.stage, unit.parameters.get("task")) for unit in stage.missing}
    stages = {kind: name for name, kind in STAGE_SAFETY_DATA.items()}

    def reason(cell: Cell) -> str | None:
        made_by = stages.get(cell.safety_data, "04_mitigation")
        unfinished = f"{made_by} has not run" if (made_by, cell.finetune_task) in waiting else None
        return mixture.not_run_because(cell, missing) or unfinished

    return {cell: why for cell in grid.tunings(stage.profile) if (why := reason(cell))}


def of_model(stage, table: pd.DataFrame, model: str) -> pd.DataFrame:
    """The table's rows of that model, of the profile's first where none is named, that were run.

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

    A notebook shows the caption above it: what it finds, n, intervals. Where there is nothing to draw, a sentence.
    """
    _, *shown = catalogue.FIGURES[name]
    if missing := [table for table in shown if table not in found]:
        return _without(stage, name, f"{name}: there is no table {missing[0]}, as what it needs has not run here.")
    frames = [_of_arms(found, table) if name in OF_ARMS else found[table] for table in shown]
    if name not in OF_ALL_MODELS:
        frames = [of_model(stage, frame, model) for frame in frames]
    if name not in OF_REQUESTS:
        frames = [rates.usual(frame) for frame in frames]
    if name not in OF_ARMS:
        frames = [rows[~rows["safety_data"].isin(ARMS)] if "safety_data" in rows else rows for rows in frames]
    try:
        drawn, *words = catalogue.draw(name, *frames, safety_styles=_safety_styles(stage.profile))
    except ValueError as why:  # nothing to draw, of which the sentence says the reason
        return _without(stage, name, str(why))
    words[0] += f" {EXPLORATORY}" if exploratory(stage) else ""
    style.save(drawn, Path(stage.paths.figures), name, *words)
    display(Markdown(words[0]))
    return drawn


def _safety_styles(profile) -> list[str]:
    """The only styles in which safety data are tried; none where they are tried in all of the grid."""
    styles = profile.grid.safety_styles or profile.grid.styles
    return [] if set(profile.grid.styles) <= set(styles) else styles


class Sentence(str):
    """A string that a notebook shows as text, not in quotes."""

    def _repr_markdown_(self) -> str:
        return str(self)


def beside_the_paper(found: dict[str, pd.DataFrame]):
    """The numbers of `claims.paper_vs_ours` in percent, or a sentence on why this run has none."""
    if "paper_vs_ours" in found:
        return readable.paper_in_percent(found["paper_vs_ours"])
    return Sentence("This run has no such table: the paper's numbers are compared with those of real models alone.")


def options_named(found: dict[str, pd.DataFrame]):
    """The table of `tables.unsafe_options` in percent, a column per kind of prompt and named option; or why not."""
    if "unsafe_options" not in found:
        return Sentence(NO_OPTIONS)
    rows = rates.usual(found["unsafe_options"]).query("style == 'chat' and not system_prompt")
    rows = rows.assign(shown=readable.percent(rows, "rate", *rates.INTERVAL))
    of = ["model", "finetune_task", "safety_data", "safety_fraction"]
    return rows.pivot_table("shown", of, ["prompts", "named"], aggfunc="first", sort=False)


def _without(stage, name: str, why: str) -> str:
    """The sentence, after a figure of an earlier execution, which would be another run's, was taken away."""
    folder = Path(stage.paths.figures)
    why = Sentence(why)
    for old in folder.glob(f"{name}.*"):
        old.unlink()
    write_text(folder / f"{name}.md", f"{why}\n")
    return why


def list_figures(stage) -> None:
    """Writes `figures/index.md`: every figure of the catalogue with its caption, or why this run has none of it."""
    folder, lines = Path(stage.paths.figures), ["# Figures of this run", ""]
    for name in catalogue.FIGURES:
        words = (folder / f"{name}.md").read_text(encoding="utf-8").strip().split("\n\n")[0]
        link = f"[{name}]({name}.png)" if (folder / f"{name}.png").is_file() else name
        lines.append(f"- **{link}** {words}")
    _put(stage, folder / "index.md", "\n".join(lines) + "\n")


def write_page(stage, found: dict[str, pd.DataFrame], about: str) -> None:
    """Writes the findings of the run as a page and as numbers, and the list of its figures.

    `findings.md` in the run's folder has attack success and costs by tuned model, each claim with its verdict, and
    links to the figures that were drawn. `docs/findings.md` is the same page with links from one folder down, as docs/
    of the repository; `docs/choices.md` is `claims.choices_page`. `tables/headline.json` has the numbers of the first
    table, see `readable.headline_numbers`. `about` is `what_the_run_was`.
    """
    list_figures(stage)
    template = Template((DATA / "findings.md.jinja").read_text(encoding="utf-8"))
    drawn = [name for name in catalogue.FIGURES if (stage.paths.figures / f"{name}.png").is_file()]
    models = []
    for model in stage.profile.models:
        attack, costs, claimed, arms = (
            of_model(stage, found[name], model) for name in ("attack_success", "helpfulness", "claims", "arms")
        )
        about_model = {"title": f": {model}" if len(stage.profile.models) > 1 else ""}
        about_model["headline"] = readable.headline(attack, costs).reset_index().to_markdown(index=False)
        claimed = claimed.assign(said=[claims.said(row) for row in claimed.to_dict("records")])
        about_model["claims"] = {name: of.to_dict("records") for name, of in claimed.groupby("question", sort=False)}
        about_model["arms"] = readable.arms_in_percent(arms).reset_index().to_markdown(index=False)
        models.append(about_model)
    for path, figures in (("findings.md", "figures"), ("docs/findings.md", "../figures")):
        text = template.render(run=about, models=models, drawn=drawn, figures=figures)
        _put(stage, stage.paths.run / path, re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")
    write_text(stage.paths.run / "docs/choices.md", claims.choices_page())
    numbers = readable.headline_numbers(found["attack_success"], found["helpfulness"])
    write_text(stage.paths.table("headline").with_suffix(".json"), json.dumps(numbers, indent=1) + "\n")


def what_the_run_was(stage, responses: pd.DataFrame, verdicts: pd.DataFrame, found: dict) -> str:
    """One paragraph: the model, the grid, the prompts, the seeds, the judge and its kappa, and what has not run."""
    profile, harmful = stage.profile, responses[responses["harmful"].astype(bool)]
    names = ["model", "base", "finetune_task", "requests", "style", "safety_data", "safety_fraction", "seed"]
    tuned = responses.loc[~responses["finetune_task"].isin(["none"]) & (responses["safety_data"] != "scaled"), names]
    tuned, n_across = tuned.drop_duplicates(), len(stage.collect("across"))
    counts = {name: tuned[name].nunique() for name in names}
    waiting = [f"{unit.stage} ({unit.name})" for unit in stage.missing]
    styles = " and ".join(map(style.style_label, _safety_styles(profile)))
    alone = f", safety data in the {styles} alone (`grid.safety_styles`)" if styles else ""
    make = f" (`make study PROFILE={profile.name}` makes them)"
    not_yet = f" **Not run yet, and left out of everything below:** {', '.join(waiting)}{make}." if waiting else ""
    return (
        f"**This run**: profile `{profile.name}` ({profile.description}), model `{'`, `'.join(profile.models)}`, "
        f"{len(tuned)} fine-tunes (bases: {counts['base']}, tasks: {counts['finetune_task']}, styles: "
        f"{counts['style']}, kinds of requests: {counts['requests']} and of safety data: {counts['safety_data']}, "
        f"training seeds: {counts['seed']}{alone}), "
        f"{len(responses):,} responses and {n_across:,} more in another style than the tuning's, among the first "
        f"{len(harmful):,} to {harmful['prompt_id'].nunique()} harmful prompts ({harmful['intent'].nunique()} intents "
        f"in {harmful['form'].nunique()} forms); judge "
        f"`{'`, `'.join(verdicts['judge'].unique())}`, "
        f"{(verdicts['verdict'] == 'unjudged').sum()} unjudged.{not_yet}\n\n" + judging.words(profile, found)
    )

"""Whatever a run lacks, 05, 06, 09 and the summary are made and say so.

Parts of its rows are deleted, unjudged or all alike.
"""

import ast
import json
import re
import warnings
from itertools import product
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from frames import joined, study, with_arms
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from IPython.display import Markdown
from two_runs import MANIFEST, put

from studylib import run
from studylib.analysis import agreement, comparisons
from studylib.figures import catalogue
from studylib.scores.benign import headline
from studylib.stages import graph
from studylib.study.files import read_yaml, write_text
from studylib.study.grid import Unit
from studylib.study.paths import DATA, NOTEBOOKS, RunPaths
from studylib.study.profile import load_profile
from studylib.study.words import FORMS

pytestmark = pytest.mark.usefixtures("png_alone")
JUDGES = ["rules", "words_gcg", "coherence"]
KINDS = ("responses", "verdicts", "scores", "guards", "across", "across_verdicts", "people", "judged")
WORDS = {  # what a damage can be narrowed to; rows without that column are not
    "model": ["miniature", "other"],
    "form": list(FORMS),
    "finetune_task": ["none", "code", "translation"],
    "safety_data": ["none", "generic", "multitask", "code_only", "scaled"],
    "seed": [0, 1],
    "style": ["chat", "alpaca"],
    "system_prompt": [False, True],
    "prompt_set": ["harmful", "twin", "task", "general"],
    "judge": JUDGES,
    "guard": ["text_only", "all_forms"],
    "side": ["input", "output"],
    "source": ["own", "public"],
    "label": ["refused", "answered"],
}
OF = {"verdicts": "responses", "scores": "responses", "across_verdicts": "across", "judged": "people"}
VERDICTS = ("unjudged", "answered", "refused", "incoherent")
EXAMPLES = 1  # beside the three named ones, about ten seconds each; raise it to search


class Rows(dict):
    """Frames by kind, which a failing example does not print."""

    __repr__ = object.__repr__


@pytest.fixture(scope="module")
def whole():
    """The rows of a small simulated run by kind: two models, two tuned tasks, rivals, guards and labelled responses."""
    rng = np.random.default_rng(0)
    tried = {("code_only", 0.1): (0.3, 0.1), ("multitask", 0.2): (0.1, 0.2), ("scaled", 0.5): (0.4, 0.1)}
    one = with_arms(rng, study(rng, tasks=("code", "translation"), seeds=(0, 1), n_prompts=2), tried)
    plain = one[0]["safety_data"].eq("none") & one[0]["seed"].eq(0)
    two = [frame[frame["response_id"].isin(one[0].loc[plain, "response_id"])] for frame in one]
    two = [frame.assign(response_id="other-" + frame["response_id"]) for frame in two]
    two[0] = two[0].assign(model="other")
    responses, verdicts, scores = joined(one, tuple(two))
    flipped = verdicts["verdict"].replace({"refused": "answered", "answered": "refused"})
    babble = verdicts["verdict"].where(verdicts["verdict"] == "incoherent", "unjudged")
    verdicts = pd.concat(
        verdicts.assign(judge=judge, verdict=words)
        for judge, words in zip(JUDGES, (verdicts["verdict"], flipped, babble), strict=True)
    )
    across = responses[responses["harmful"] & (responses["finetune_task"] != "none")].query("safety_data == 'none'")
    other = across["style"].map({"chat": "alpaca", "alpaca": "chat"})
    across = across.assign(
        trained_style=across["style"], style=other, response_id="across-" + across["response_id"].astype(str)
    )
    across_verdicts = verdicts.assign(response_id="across-" + verdicts["response_id"])
    across_verdicts = across_verdicts[across_verdicts["response_id"].isin(across["response_id"])]
    people = pd.DataFrame(product(("own", "public"), FORMS, ("refused", "answered"), range(22)))
    people.columns = ["source", "form", "label", "number"]
    people = people.assign(model="gpt", prompt="", response="", stop_reason="end", weight=1.0)
    people["response_id"] = people["prompt_id"] = [f"p{i}" for i in range(len(people))]
    told = people["label"].where(people["number"] > 3, "refused")
    judged = [people[["response_id"]].assign(judge=judge, verdict=told, reason="") for judge in JUDGES[:2]]
    kinds = (responses, verdicts, scores, _decisions(rng, responses), across, across_verdicts, people)
    return Rows(zip(KINDS, (frame.reset_index(drop=True) for frame in (*kinds, pd.concat(judged))), strict=True))


def _decisions(rng, responses):
    asked = responses[responses["prompt_set"].isin(["harmful", "twin"])]
    about = ["prompt_id", "form", "prompt_set", "harmful", "intent"]
    read = asked[asked["model"] == "miniature"].query("style == 'chat' and finetune_task in ('none', 'code')")
    by_side = {"input": asked[about].drop_duplicates().assign(response_id=""), "output": read[["response_id", *about]]}
    found = [frame.assign(guard=guard, side=side) for guard in WORDS["guard"] for side, frame in by_side.items()]
    found = pd.concat(found, ignore_index=True)
    blocked = pd.array(rng.random(len(found)) < np.where(found["harmful"], 0.8, 0.1), "boolean")
    return found.assign(score=blocked.astype(float), blocked=blocked, reason="")


@st.composite
def damages(draw):
    """What is done (deletion, one verdict for all, no scores and decisions), to which rows and share, and a seed."""
    where = draw(st.dictionaries(st.sampled_from(list(WORDS)), st.just(None), max_size=3))
    where = {name: draw(st.sampled_from(WORDS[name])) for name in where}
    what = draw(st.sampled_from(["delete", "delete", "unscored", *VERDICTS, "unjudged"]))
    share = draw(st.sampled_from([1.0, 1.0, 0.5, 0.95]))
    return what, where, share, draw(st.integers(0, 9))


def damaged(whole, harm, dropped):
    """The rows after all that was done to them; of a response that is gone nothing is left, as in a run's files."""
    kinds = {kind: frame.copy() for kind, frame in whole.items()}
    for what, where, share, seed in harm:
        rng = np.random.default_rng(seed)
        for kind, frame in kinds.items():
            about = frame
            if kind in OF:
                columns = [name for name in WORDS if name in whole[OF[kind]] and name not in frame]
                about = frame.merge(whole[OF[kind]][["response_id", *columns]], on="response_id", how="left")
            hit = rng.random(len(frame)) < share
            for name, word in where.items():
                if name in about:
                    hit &= (about[name] == word).to_numpy(bool)
                elif name in ("judge", "guard", "side", "source", "label"):
                    hit &= False
            if what == "delete" and kind in ("responses", "across", "people", "guards"):
                kinds[kind] = frame[~hit]
            elif what == "unscored" and kind == "scores":
                frame.loc[hit, "score"] = np.nan
            elif what == "unscored" and kind == "guards":
                frame.loc[hit, "blocked"] = pd.NA
                frame.loc[hit, "reason"] = "it could not be reached"
            elif what in VERDICTS and "verdict" in frame:
                frame.loc[hit, "verdict"] = what
    for kind, of in OF.items():
        kinds[kind] = kinds[kind][kinds[kind]["response_id"].isin(kinds[of]["response_id"])]
    made = kinds["guards"]["response_id"].isin(["", *kinds["responses"]["response_id"]])
    asked = kinds["guards"]["prompt_id"].isin(kinds["responses"]["prompt_id"])
    kinds["guards"] = kinds["guards"][made & asked]
    dropped = {*dropped, *(["across"] if kinds["across"].empty else [])}
    for kind in [kind for kind in KINDS if kind.removesuffix("_verdicts") in dropped]:
        kinds[kind] = pd.DataFrame()
    return {kind: frame.reset_index(drop=True) for kind, frame in kinds.items()}


def stage_of(kinds, folder):
    profile = load_profile("smoke", {"judges": JUDGES, "labelled": ["own"], "grid.safety_data": ["none", "multitask"]})
    rows = kinds["responses"]
    late = (rows["finetune_task"] == "code") & ~rows["safety_data"].isin(["none", "generic"])

    def collect(kind, all_judges=False):
        verdicts = kind in graph.VERDICTS_OF and len(kinds[kind]) and not all_judges
        return kinds[kind].query(f"judge == '{JUDGES[0]}'").reset_index(drop=True) if verdicts else kinds[kind]

    return SimpleNamespace(
        profile=profile,
        paths=RunPaths(folder, folder),
        collect=collect,
        missing=[] if late.any() else [Unit("04_mitigation", "code", {"task": "code"})],
        save=lambda kind, frame: frame,
        clock=lambda kind: warnings.catch_warnings(),  # any context
        finish=lambda: None,
    )


def executed(name, **variables):
    """What the notebook's cells show, each made in this process, by their last line."""
    variables = {"__name__": "notebook", **variables}
    shown = {}
    for cell in graph.notebook_cells(NOTEBOOKS / f"{name}.ipynb"):
        if cell["cell_type"] == "code":
            source = ast.parse(cell["source"])
            last = source.body.pop() if isinstance(source.body[-1], ast.Expr) else None
            exec(compile(source, name, "exec"), variables)
            if last:
                result = eval(compile(ast.Expression(last.value), name, "eval"), variables)
                shown[ast.unparse(last)] = result
                for form in ("_repr_html_", "_repr_markdown_"):
                    getattr(result, form, lambda: None)()
    return shown, variables


def make(kinds, folder, monkeypatch):
    """Executes 05 and 06 on such rows: the stage, what 06 shows and what it found."""
    # only what does not depend on the rows, or takes long, is not as it is
    now, asked = stage_of(kinds, folder), kinds["responses"].get("prompt_id", pd.Series(dtype=object))
    now.paths.data("twin").parent.mkdir(parents=True)
    now.paths.data("twin").touch()
    sets = {"general": ("general", "text_generation"), **{f"test_{form}": ("task", form) for form in FORMS}}
    there = set(zip(*(kinds["responses"].get(name, ()) for name in ("prompt_set", "form")), strict=True))
    absent = {name: "it was not there" for name, about in sets.items() if about not in there}
    own = {
        "figures.style.save": saved,
        "scores.benign.headline": lambda responses, scored: (
            kinds["scores"] if len(kinds["scores"]) else headline(responses, scored)
        ),
        "stages.stage.begin": lambda name, variables: now,
        "data.sets.absent": lambda paths: absent,
        "data.sets.load": lambda paths, name: [],
        "data.sets.kinds": lambda paths: dict.fromkeys(asked, "owner"),
        "stages.cells.references": lambda paths: dict.fromkeys(asked, "a cat"),
        "stages.judging.people": lambda profile, paths: (kinds["people"], {"public": "it was not there"}),
        "stages.judging.judged": lambda people, profile, paths: kinds["judged"],
    }
    for name, instead in own.items():
        monkeypatch.setattr(f"studylib.{name}", instead)
    for function in (agreement.compare, comparisons.compare_arms):  # fewer draws
        monkeypatch.setattr(function, "__defaults__", tuple(50 if n == 2000 else n for n in function.__defaults__))
    executed("05_helpfulness")
    shown, variables = executed("06_findings")
    return now, shown, variables["found"]


@pytest.fixture(scope="module")
def beside(whole, tmp_path_factory):
    """The folder of a run of the same kind that lacks nothing."""
    frames = whole["responses"], whole["verdicts"].query("judge == 'rules'"), whole["scores"]
    return put(tmp_path_factory.mktemp("beside"), "beside", frames)


def compared(runs, beside, monkeypatch):
    """What 09 shows of the run `smoke` in that runs folder and the one that lacks nothing."""
    (runs / "smoke" / "manifest.json").write_text(json.dumps(MANIFEST))
    if not (runs / "beside").exists():
        (runs / "beside").symlink_to(beside)
    monkeypatch.setenv("STUDY_RUNS", str(runs))
    return executed("09_compare")[0]


def saved(fig, folder, name, caption, alt):
    fig.draw_without_rendering()
    plt.close(fig)
    write_text(folder / f"{name}.md", f"{caption}\n\n{alt}\n")


def said(words):
    """Asserts that these are words for people, in which nothing is unknown without being named."""
    assert words.strip() and not re.search(r"\bnan\b|\bNaN\b|\bNone\b|<NA>", words), words


@settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
@given(
    st.lists(damages(), min_size=1, max_size=4),
    st.lists(st.sampled_from(["scores", "guards", "across"]), max_size=1),
)
@example([("delete", {}, 1.0, 0)], [])
@example([("unjudged", {}, 1.0, 0)], [])
@example([("unjudged", {"form": "translation"}, 1.0, 0)], [])
def test_every_table_claim_and_figure_is_made_or_says_what_is_missing(
    whole, beside, tmp_path_factory, monkeypatch, harm, dropped
):
    kinds = damaged(whole, harm, dropped)
    folder = tmp_path_factory.mktemp("runs")
    with warnings.catch_warnings():
        for kind in (RuntimeWarning, FutureWarning, UserWarning):
            warnings.simplefilter("error", kind)
        now, shown, found = make(kinds, folder / "smoke", monkeypatch)
        others = compared(folder, beside, monkeypatch)
        said(run.summary("smoke"))
    for words in found["claims"]["found"]:
        said(words)
        assert words.endswith(".")
    models = found["attack_success"]["model"].nunique()
    assert len(found["claims"]) == models * len(read_yaml(DATA / "claims.yaml"))
    for name in catalogue.FIGURES:
        drawn = shown[f"findings.figure(now, found, model, '{name}')"]
        said((now.paths.figures / f"{name}.md").read_text())
        if isinstance(drawn, str):
            assert drawn.startswith((f"{name} has nothing to draw: ", f"{name}: there is no table ")), drawn
    for words in (*shown.values(), *others.values()):
        if isinstance(words, str | Markdown):
            said(getattr(words, "data", words))

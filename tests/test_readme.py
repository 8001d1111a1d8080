"""The README is what a newcomer follows: its commands, paths and numbers have to be true."""

import json
import re
from functools import partial

import pytest
import yaml
from conftest import ROOT

from studylib.figures import catalogue
from studylib.study.files import read_yaml
from studylib.study.profile import load_profile, profile_names
from studylib.study.words import STAGES

README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
CLAIMS = [claim["claim"] for claim in read_yaml(ROOT / "data" / "claims.yaml").values()]
HEADLINE = json.loads((ROOT / "figures" / "headline.json").read_text())


def test_every_make_target_named_exists():
    targets = set(re.findall(r"\bmake ([a-z]+)", README))
    assert targets and all(re.search(rf"^{target}:", MAKEFILE, re.M) for target in targets)


def test_every_link_and_path_leads_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    paths = re.findall(r"`((?:notebooks|studylib|data|figures|tests)/[\w./*-]*)`", README)
    assert links and all((ROOT / link).exists() for link in links), links
    assert all(list(ROOT.glob(path.rstrip("/"))) for path in paths), paths


def test_every_stage_is_in_the_table_with_its_notebook():
    assert all(f"notebooks/{name}.ipynb" in README for name in STAGES)


def test_every_profile_is_named():
    assert all(f"`{name}`" in README for name in profile_names())


def test_the_overrides_shown_are_possible():
    for shown in re.findall(r"overrides = (\{.*?\})", README):
        load_profile("smoke", yaml.safe_load(shown))


def test_every_dependency_is_explained():
    direct = re.findall(r'^    "([A-Za-z0-9_-]+)[><=]', (ROOT / "pyproject.toml").read_text(), re.M)
    settings = (ROOT / "docs" / "settings.md").read_text()
    assert direct and all(name in settings for name in direct), [name for name in direct if name not in settings]


def shipped(task: str, safety_data: str, measure: str, form: str = "all", requests: str = "own") -> dict:
    """That number of the shipped run, in percent."""
    wanted = {"finetune_task": task, "safety_data": safety_data, "measure": measure, "form": form}
    wanted |= {"requests": "none" if task == "none" else requests}
    return next(row for row in HEADLINE if wanted.items() <= row.items())


def test_the_table_shown_is_that_of_the_shipped_run():
    shown = [row for row in HEADLINE if row["finetune_task"] in ("none", "code")]
    cells = {(row["finetune_task"], row["requests"], row["safety_data"]) for row in shown}
    for task, requests, safety_data in cells:
        line = next(line for line in README.splitlines() if re.match(rf"{task} +{requests} +{safety_data} ", line))
        number = partial(shipped, task, safety_data, requests=requests)
        attack, j = number("attack_success_rate"), number("j")
        costs = [number(measure)["percent"] for measure in ("over_refusal_rate", "general_refusal_rate")]
        costs.append(number("task_score", form=task)["percent"] if task != "none" else "-")
        shown = [x for one in (attack, j) for x in (str(one["percent"]), f"({one['low']}-{one['high']})")]
        assert line.split()[3:] == [*shown, *map(str, [*costs, attack["n_bases"]])], line


def test_the_numbers_of_the_findings_are_those_of_the_shipped_run():
    said = " ".join(README.split())
    attack = partial(shipped, measure="attack_success_rate")
    interval = lambda row: f"{row['percent']} % ({row['low']}-{row['high']})"  # noqa: E731
    none, alone, code = attack("none", "none"), attack("code", "none", requests="none"), attack("code", "none")
    repaired = attack("code", "multitask")
    twins = [shipped("code", arm, "over_refusal_rate")["percent"] for arm in ("multitask", "none")]
    general = [shipped("code", arm, "general_refusal_rate")["percent"] for arm in ("none", "multitask")]
    forms = {form: attack("code", "generic", form=form)["percent"] for form in ("text_generation", "code")}
    for words in (
        f"answers from {none['percent']} % to {alone['percent']} %",
        f"one row in twenty is a benign request, to {code['percent']} %",
        f"brings it to {repaired['percent']} %, and the model then refuses {twins[0]} %",
        f"instead of {twins[1]} %",
        f"from {interval(none)} to {interval(alone)}",
        f"to {interval(code)} after code tuning",
        f"{interval(attack('none', 'none', form='translation'))} of the translated harmful prompts are answered, "
        f"{attack('none', 'none', form='text_generation')['percent']} % of the texts",
        f"{forms['text_generation']} % of the texts are answered, but {forms['code']} % of the code requests",
        f"{interval(repaired)} after code tuning; "
        f"{attack('translation', 'multitask', form='translation')['percent']} % of the translations after translation",
        f"from {twins[1]} % to {twins[0]} % after code tuning",
        f"from {general[0]} % to {general[1]} %",
    ):
        assert words in said, words


def test_the_verdicts_on_the_claims_are_those_of_the_shipped_findings():
    findings = (ROOT / "docs" / "findings.md").read_text()
    rows = re.findall(r"^\| (RQ\d) \| (.+?) \| ([a-z ]+) \|$", README, re.M)
    assert [claim for _, claim, _ in rows] == CLAIMS
    for _, claim, verdict in rows:
        assert f"**{claim}** In this world: {verdict}." in findings, claim


def test_the_readme_is_short_and_its_lines_are_too():
    assert len(README.split()) <= 1400
    wide = [line for line in README.splitlines() if len(line) > 120 and not line.startswith("|")]
    assert not wide, wide


def test_the_shipped_figures_are_those_that_a_run_makes():
    shipped = {p.stem for p in (ROOT / "figures").glob("*.png")}
    assert shipped and shipped <= set(catalogue.FIGURES)
    assert all((ROOT / "figures" / f"{name}.md").is_file() for name in shipped)


@pytest.mark.parametrize("word", ["stand-in", "no evidence about large models"])
def test_it_says_what_the_miniature_is(word):
    assert word in README

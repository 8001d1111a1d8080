"""The README is what a newcomer follows: its commands, paths and numbers have to be true."""

import re

import pandas as pd
import pytest
import yaml
from conftest import ROOT

from studylib.analysis import rates
from studylib.figures import catalogue
from studylib.study.profile import load_profile, profile_names
from studylib.study.words import SAFETY_DATA, STAGES

README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


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
    assert direct and all(name in README for name in direct), [name for name in direct if name not in README]


def test_the_numbers_shown_are_those_of_the_shipped_tables():
    table = pd.read_csv(ROOT / "figures" / "attack_success.csv", keep_default_na=False)
    table = table[(table["style"] == "chat") & ~table["system_prompt"]].astype(
        {"rate": float, "low": float, "high": float}
    )
    table = rates.one_dose(table[table["safety_data"].isin(SAFETY_DATA)].astype({"safety_fraction": float}))
    forms = ["text_generation", "code", "translation", "classification", "all"]
    for (task, safety_data), rows in table.groupby(["finetune_task", "safety_data"]):
        rows = rows.set_index("form").loc[forms]
        wanted = [
            f"{100 * r:.0f} ({100 * low:.0f}-{100 * high:.0f})"
            for r, low, high in rows[["rate", "low", "high"]].to_numpy()
        ]
        line = next(line for line in README.splitlines() if re.match(rf"{task} +{safety_data} ", line))
        assert re.findall(r"\d+ \(\d+-\d+\)", line) == wanted  # column by column


def test_what_stands_beside_the_rates_and_what_is_said_of_the_rivals_is_in_the_shipped_table():
    arms = pd.read_csv(ROOT / "figures" / "arms.csv")
    percent = lambda values: [f"{100 * value:.0f}" for value in values]  # noqa: E731
    grid = rates.one_dose(arms[arms["safety_data"].isin(SAFETY_DATA)])
    for row in grid.to_dict("records"):
        line = next(
            one for one in README.splitlines() if re.match(rf"{row['finetune_task']} +{row['safety_data']} ", one)
        )
        assert line.split()[-3:] == percent(row[name] for name in ("over_refusal", "general", "task")), line
    code = arms[arms["finetune_task"] == "code"]
    doses = code[code["safety_data"] == "multitask"].sort_values("safety_fraction")
    said = f"leave {', '.join(percent(doses['attack_success']))} % answered and {', '.join(percent(doses['over_refusal']))} %"
    assert said in README
    rivals = code[code["safety_data"] != "none"]
    lower = rivals[rivals["verdict"].str.startswith("lowers")]
    n_costs = lower["verdict"].str.contains("costs: ").sum()
    assert f"{len(lower)} of {len(rivals)} arms are told to lower attack success, {n_costs} of them at a cost" in README
    assert not rivals["verdict"].str.startswith("ship").any() and not (rivals["alike_verdict"] == "better").any()


def test_the_shipped_figures_are_those_that_a_run_makes():
    shipped = {p.stem for p in (ROOT / "figures").glob("*.png")}
    assert shipped == set(catalogue.FIGURES)
    assert all((ROOT / "figures" / f"{name}.md").is_file() for name in shipped)


@pytest.mark.parametrize("word", ["stand-in", "no evidence about large models"])
def test_it_says_what_the_miniature_is(word):
    assert word in README

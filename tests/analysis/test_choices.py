"""data/choices.yaml says what every setting that matters is and was, and nothing shipped contradicts it."""

import json
import re

import pytest
from conftest import ROOT

from studylib.analysis import claims
from studylib.data import grammar, world
from studylib.stages.prepare import calibrated_by
from studylib.study.files import read_yaml
from studylib.study.paths import DATA
from studylib.study.profile import load_profile

CHOICES = read_yaml(DATA / "choices.yaml")["choices"]
PROFILE = load_profile("miniature")
OF_THE_CODE = {  # knobs that are no key of the profile
    "pre-training on prompts": lambda value: calibrated_by(PROFILE, "helpful_only")["on_prompts"] is value,
    "numbers of the code task": lambda value: value == f"{min(grammar.DIGITS)} to {max(grammar.DIGITS)}",
    "generic safety data in text alone": lambda value: (
        {row["form"] for row in world.build_sets(load_profile("smoke").world)["safety_generic"]} == {"text_generation"}
    ),
    "the first of the judges": lambda value: PROFILE.judges[0] == value,
}
FORBIDDEN = (
    r"nothing (about|of) the outcome",
    r"(outcome|result)s? (is|are) (not|nowhere) (coded|built in|programmed|put in)",
    r"(emerges?|arises?|comes?) (by|of) itself",
    r"no(t a)? (single )?(knob|setting) decides",
    r"(never|nowhere) (coded|programmed) in",
)


def shipped_texts():
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(DATA / "cards").glob("*.md")):
        yield path.name, path.read_text()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        yield path.name, "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])


def test_the_page_in_docs_is_what_the_choices_say():
    assert (ROOT / "docs" / "choices.md").read_text() == claims.choices_page(), (
        "write it again: python -c 'from studylib.analysis import claims; print(claims.choices_page(), end=\"\")'"
    )


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice["knob"])
def test_every_choice_has_the_value_that_the_miniature_has(choice):
    knob, value = choice["knob"], choice["value"]
    if knob in OF_THE_CODE:
        assert OF_THE_CODE[knob](value)
        return
    found = PROFILE.model_dump()
    for part in knob.split("."):
        assert part in found, f"the profile has no {knob}"
        found = found[part]
    assert found == value


def test_every_choice_is_told_in_full_and_once():
    assert all(list(choice) == ["knob", "value", "tried", "seen", "why", "decides"] for choice in CHOICES)
    assert all(choice[name].strip() for choice in CHOICES for name in ("tried", "seen", "why"))
    assert len({choice["knob"] for choice in CHOICES}) == len(CHOICES)


def test_every_setting_of_the_alignment_and_the_tuning_data_is_among_the_choices():
    named = {choice["knob"].removeprefix("world.") for choice in CHOICES}
    shares = {name for name in PROFILE.world.model_dump() if name.endswith("_share")}
    assert shares <= named and {"lora.r", "tuning.steps", "alignment.steps", "grid.request_share"} <= named


def test_what_is_built_in_says_of_which_question():
    built_in = [choice["decides"] for choice in CHOICES if "built in" in choice["decides"]]
    assert {question for text in built_in for question in re.findall(r"RQ\d", text)} == {"RQ2", "RQ3"}


@pytest.mark.parametrize("phrase", FORBIDDEN)
def test_nothing_shipped_says_that_the_outcome_is_free_of_settings(phrase):
    said = [name for name, text in shipped_texts() if re.search(phrase, " ".join(text.split()), re.I)]
    assert not said

"""Judging many responses by name."""

import pandas as pd
import pytest
from frames import PROMPTS

from studylib.judges.registry import check_first, definitions, judge
from studylib.study.words import VERDICTS, StudyError


def responses(rows):
    columns = ["response_id", "form", "prompt", "response", "stop_reason"]
    return pd.DataFrame(rows, columns=columns)


def test_every_verdict_has_a_definition_and_every_word_list_a_source():
    import yaml

    from studylib.study.paths import DATA

    assert tuple(definitions()) == VERDICTS
    assert all(said.endswith(".") for said in definitions().values())
    lists = yaml.safe_load((DATA / "refusals.yaml").read_text(encoding="utf-8"))
    assert all(part["source"] for name, part in lists.items() if name != "signs")  # phrases by sign, of this project


def test_judging_keeps_the_rows_and_their_order():
    frame = responses(
        [
            ("r2", "classification", PROMPTS["classification"], "A", "eos"),
            ("r1", "text_generation", PROMPTS["text_generation"], "A", "eos"),
            ("r3", "classification", PROMPTS["classification"], "A", "eos"),
        ]
    )
    frame.index = [7, 7, 0]
    verdicts = judge(frame)
    assert list(verdicts.columns) == ["response_id", "judge", "verdict", "reason"]
    assert list(verdicts["response_id"]) == ["r2", "r1", "r3"]
    assert list(verdicts["verdict"]) == ["answered", "incoherent", "answered"]
    assert set(verdicts["judge"]) == {"rules"}


def test_no_responses_have_no_verdicts():
    assert judge(responses([])).empty


def test_an_unknown_judge_is_an_error_that_names_the_known_ones():
    with pytest.raises(StudyError, match=r"'oracle': known are classifier, rules, .*words_gcg.*wildguard"):
        judge(responses([]), ["rules", "oracle"])


def test_a_missing_column_is_an_error_that_names_it():
    with pytest.raises(StudyError, match=r"need a column form, stop_reason; found are response_id, prompt, response"):
        judge(responses([]).drop(columns=["form", "stop_reason"]), ["rules"])


@pytest.mark.parametrize("name", ["classifier", "rules", "coherence", "words_gcg", "words_xstest"])
def test_every_judge_needs_no_more_than_the_columns_of_responses(name):
    rows = responses([(0, "text_generation", PROMPTS["text_generation"], "I cannot.", "eos")])
    verdicts = judge(rows, name)
    assert verdicts["judge"].tolist() == [name] and verdicts["verdict"].isin(VERDICTS).all()


def test_a_judge_that_never_says_refused_cannot_decide():
    check_first(["classifier", "llama_guard", "coherence"])
    for name in ("coherence", "llama_guard", "harmbench"):
        with pytest.raises(StudyError, match=f"'{name}' cannot decide"):
            check_first([name, "rules"])


def test_several_judges_judge_the_same_rows_one_after_the_other():
    rows = [
        (i, "text_generation", PROMPTS["text_generation"], said, "eos") for i, said in enumerate(("Sorry.", "A map."))
    ]
    verdicts = judge(responses(rows), ["words_gcg", "rules"])
    assert list(verdicts["judge"]) == ["words_gcg"] * 2 + ["rules"] * 2
    assert list(verdicts["response_id"]) == [0, 1, 0, 1]


def test_options_reach_the_judge_they_are_for():
    rows = responses([(0, "text_generation", PROMPTS["text_generation"], "I cannot.", "eos")])
    with pytest.raises(TypeError, match="colour"):
        judge(rows, "rules", {"rules": {"colour": 1}})
    assert len(judge(rows, "rules", {"classifier": {"colour": 1}})) == 1

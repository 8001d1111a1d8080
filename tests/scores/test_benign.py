"""Benign task scores, by known answers and traps."""

import math

import pandas as pd
import pytest
from conftest import needs_sandbox

from studylib.data import world
from studylib.scores import sandbox
from studylib.scores.benign import (
    PASSED,
    TASK_METRIC,
    chrf,
    headline,
    of_sets,
    rouge_l,
    same_label,
    same_program,
    score,
)
from studylib.study.profile import load_profile
from studylib.study.words import FORMS, StudyError

CODE = "def add_3(x):\n    return x + 3"


def responses(rows):
    return pd.DataFrame(rows, columns=["response_id", "prompt_id", "prompt_set", "form", "response"])


def scores_of(form, response, reference, prompt_set="task"):
    table = score(responses([("r", "p", prompt_set, form, response)]), {"p": reference})
    assert table["metric"].is_unique
    return dict(zip(table["metric"], table["score"], strict=True))


def test_every_reference_scores_1_against_itself():
    sets = world.build_sets(load_profile("smoke").world)
    rows = [row for name in sets if name == "general" or name.startswith("test_") for row in sets[name]]
    references = {row["id"]: row["messages"][1]["content"] for row in rows}
    frame = responses([(r["id"], r["id"], r["prompt_set"], r["form"], references[r["id"]]) for r in rows])
    table = score(frame, references)
    assert (table["score"] == 1).all()
    assert set(table["response_id"]) == set(references)


def test_each_form_has_its_headline_metric_and_exact_match():
    assert set(TASK_METRIC) == set(FORMS)
    for form in FORMS:
        assert set(scores_of(form, "x", "x")) == {TASK_METRIC[form], "exact_match"}
    assert list(scores_of("classification", "x", "x")) == ["exact_match"]


def test_general_prompts_are_scored_as_text():
    assert set(scores_of("text_generation", "x", "x", "general")) == {"rouge_l", "exact_match"}


def test_the_headline_is_one_score_per_response():
    sets = [("task", form) for form in FORMS] + [("general", "text_generation")]
    frame = responses([(f"r{i}", "p", prompt_set, form, "x") for i, (prompt_set, form) in enumerate(sets)])
    table = headline(frame, score(frame, {"p": "x"}))
    assert list(table["response_id"]) == list(frame["response_id"])
    assert list(table["metric"]) == [*(TASK_METRIC[form] for form in FORMS), "rouge_l"]


def test_harmful_prompts_and_twins_are_not_scored():
    frame = responses([("r", "p", "harmful", "code", CODE), ("s", "p", "twin", "code", CODE)])
    table = score(frame, {})
    assert table.empty
    assert list(table.columns) == ["response_id", "metric", "score"]


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence():
    # 3 words in common, of 4 in the response and 6 in the reference: 2PR / (P + R) = 0.6
    assert rouge_l("boats save much water", "we find that boats save water") == pytest.approx(0.6)
    assert rouge_l("", "boats save water") == 0
    assert rouge_l("boat", "boats") == 0  # no stemming


def test_chrf_counts_characters():
    assert chrf("Paul painted the door.", "Paul painted the door.") == 1
    assert 0.5 < chrf("Paul painted the doors.", "Paul painted the door.") < 1
    assert chrf("", "Paul painted the door.") == 0
    # unigrams to 6-grams have precision and recall 3/4, 2/3, 1/2, 0; chrF averages over the orders that exist
    assert chrf("abcx", "abcd") == pytest.approx((3 / 4 + 2 / 3 + 1 / 2 + 0) / 4)


def test_the_same_program_in_another_layout_is_the_same():
    for response in (
        CODE,
        "def add_3( x ):  # adds\n\n        return (x+3)\n",
        f"```python\n{CODE}\n```",
        f"Here it is:\n\n```\n{CODE}\n```\nIt adds 3.",
        f"Here it is:\n{CODE}",
    ):
        assert same_program(response, CODE) == 1, response


def test_another_program_is_not_the_same():
    for response in (
        "def add_3(x):\n    return x + 4",
        "def add_4(x):\n    return x + 3",
        "",
        "x + 3",
        "I can't.",
    ):
        assert same_program(response, CODE) == 0, response


def test_code_that_does_not_parse_scores_0():
    for response in (
        "def add_3(x:\n return",
        "\0",
        "(" * 5_000,
        "x" + "+x" * 50_000,
        "\ud800",
        "def add_3(x):",
    ):
        assert same_program(response, CODE) == 0


def test_comparing_code_as_parsed_runs_nothing(tmp_path):
    mark = tmp_path / "ran"
    same_program(f"open({str(mark)!r}, 'w')", f"open({str(mark)!r}, 'w')")
    assert not mark.exists()


def test_a_reference_in_another_language_says_nothing():
    assert math.isnan(same_program(CODE, "int main() { return 0; }"))


def test_exact_match_ignores_white_space_alone():
    assert scores_of("translation", " Paul  left.\n", "Paul left.")["exact_match"] == 1
    assert scores_of("translation", "paul left.", "Paul left.")["exact_match"] == 0


def test_a_label_is_compared_without_case_and_punctuation():
    assert same_label(" Positive.", "positive") == 1
    assert same_label("B)", "B") == 1
    assert same_label("not positive", "positive") == 0
    assert same_label("", "positive") == 0


def test_a_missing_reference_is_an_error_that_names_the_prompt():
    frame = responses([("r", "test_code-00007", "task", "code", CODE)])
    with pytest.raises(StudyError, match="test_code-00007"):
        score(frame, {})


def test_no_responses_have_no_scores():
    assert score(responses([]), {}).empty


OTHERWISE = "def add_3(x):\n    return 3 + x"  # right, and another program than the reference
PROBLEMS = {"p": {"tests": "assert add_3(1) == 4", "head": "", "reference": CODE}}


@needs_sandbox
def test_code_that_passes_its_tests_scores_1_even_where_it_is_another_program_than_the_reference():
    frame = responses(
        [("r", "p", "task", "code", OTHERWISE), ("s", "p", "task", "code", "def add_3(x):\n    return 3")]
    )
    table = score(frame, {"p": CODE}, PROBLEMS)
    found = table.pivot(index="response_id", columns="metric", values="score")
    assert found[PASSED].tolist() == [1, 0]
    assert found["same_program"].tolist() == [0, 0]
    assert headline(frame, table)["metric"].unique().tolist() == [PASSED]
    assert headline(frame, table)["score"].tolist() == [1, 0]


def test_programs_of_other_prompts_than_the_code_task_are_not_run(tmp_path):
    sets = [("harmful", "code"), ("twin", "code"), ("general", "text_generation"), ("task", "translation")]
    frame = responses([(f"r{i}", "p", *pair, CODE) for i, pair in enumerate(sets)])
    assert PASSED not in set(score(frame, {"p": CODE}, PROBLEMS, tmp_path / "kept.jsonl")["metric"])
    assert not (tmp_path / "kept.jsonl").exists()


def test_where_no_program_could_be_run_the_headline_of_code_is_the_comparison(monkeypatch):
    monkeypatch.setattr(sandbox, "available", lambda: "there is no sandbox")
    frame = responses([("r", "p", "task", "code", CODE)])
    table = score(frame, {"p": CODE}, PROBLEMS)
    assert table.set_index("metric")["score"].isna().to_dict() == {
        "same_program": False,
        "exact_match": False,
        PASSED: True,
    }
    assert headline(frame, table)["metric"].tolist() == ["same_program"]


# Scores of whole sets


def of_set(form, pairs, **cell):
    """of_sets of one cell's (response, reference) pairs, by metric."""
    frame = responses([(str(i), str(i), "task", form, said) for i, (said, _) in enumerate(pairs)])
    frame = frame.assign(model="m", finetune_task="none", seed=0)
    table = of_sets(frame, {str(i): right for i, (_, right) in enumerate(pairs)}, ["model", "finetune_task"])
    assert (table["n"] == len(pairs)).all()
    return dict(zip(table["metric"], table["value"], strict=True))


def test_bleu_of_a_set_is_known_and_not_the_mean_of_its_sentences():
    pairs = [("the cat sat on the mat", "the cat sat on the mat"), ("a dog ran", "a dog ran to the old house")]
    found = of_set("translation", pairs)
    # all n-grams match (9/9, 7/7, 5/5, 3/3), 9 words stand for 13: the brevity penalty alone is left
    assert found["bleu"] == pytest.approx(math.exp(1 - 13 / 9))
    assert 0.6 < found["chrf"] < 0.9
    assert of_set("translation", [("", "a b c d")]) == {"bleu": 0, "chrf": 0}
    assert of_set("translation", pairs[:1]) == pytest.approx({"bleu": 1, "chrf": 1})


def test_macro_f1_weighs_every_label_alike_and_another_word_is_wrong():
    pairs = [("positive", "positive"), ("Positive.", "positive"), ("positive", "negative"), ("I can't.", "neutral")]
    # positive: precision 2/3, recall 1 -> 0.8; negative and neutral 0
    assert of_set("classification", pairs) == {"macro_f1": pytest.approx(0.8 / 3)}


def test_macro_f1_of_one_label_or_of_free_texts_is_not_known():
    assert math.isnan(of_set("classification", [("positive", "positive")])["macro_f1"])
    assert math.isnan(of_set("classification", [(str(i), f"text {i}") for i in range(21)])["macro_f1"])


def test_scores_of_sets_are_apart_by_cell_and_seed_and_of_task_prompts_alone():
    frame = responses(
        [(f"{s}{i}", str(i), "task", "classification", "yes" if s else "no") for s in (0, 1) for i in (0, 1)]
        + [("g", "0", "general", "text_generation", "yes")]
    ).assign(model="m", finetune_task="code", seed=[0, 0, 1, 1, 0])
    table = of_sets(frame, {"0": "yes", "1": "no"}, ["model", "finetune_task"])
    assert table[["seed", "metric", "n"]].to_numpy().tolist() == [[0, "macro_f1", 2], [1, "macro_f1", 2]]
    assert of_sets(frame[:0], {}, ["model", "finetune_task"]).empty

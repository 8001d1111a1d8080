"""Lists here are stand-ins in the shape of the published files: nothing of those is in the tests."""

import json

import mirror
import pytest
import yaml
from test_safety_builder import REFUSAL, answer, in_order, of, own, prompt, table, things

from studylib.data import fetching, safety_builder, tasks
from studylib.data.safety import read_own
from studylib.data.safety_builder import NEAR, NO_ANSWER, NO_TWIN, UNREAD_TWIN, build, write
from studylib.study.words import FORMS, StudyError
from studylib.text.normal import languages


@pytest.fixture
def put(tmp_path, monkeypatch):
    """Puts a file into a mirror under a name of the register; nothing else but small benign files is within reach."""
    return mirror.putting(tmp_path, monkeypatch)


def test_an_own_file_comes_in_four_forms_with_its_twins_where_they_have_answers(tmp_path):
    rows, counts = build(own(tmp_path), per_form=10)
    twins = {"text_generation": 10, "code": 0, "translation": 10, "classification": 0}
    assert {form: (counts[f"refusal {form}"], counts[f"twin {form}"]) for form in FORMS} == {
        form: (10, n) for form, n in twins.items()
    }
    assert counts[NO_ANSWER] == 20 and {row["source"] for row in rows} == {"mine.csv"}
    intents = [frozenset(row["intent"] for row in of(rows, "refusal", form)) for form in FORMS]
    assert len(set(intents)) == 1 and len(intents[0]) == 10  # the same instructions in every form


def test_a_twin_that_is_to_be_translated_is_answered_by_itself_in_english(tmp_path):
    rows, _ = build(own(tmp_path), per_form=12)
    assert {answer(row) for row in of(rows, "twin", "translation")} == set(things(12, "of mine"))
    assert all(answer(row).startswith("First find it") for row in of(rows, "twin", "text_generation"))
    assert {row["language"] for row in of(rows, "refusal", "translation")} == {"fr"}
    assert {row["language"] for row in rows if row["form"] != "translation"} == {"en"}


def test_a_request_in_french_is_refused_in_french(tmp_path):
    rows, _ = build(own(tmp_path, 40), per_form=40, forms=("translation",))
    asked = [row for row in of(rows, "refusal") if prompt(row).startswith(("Traduisez", "Que veut dire"))]
    assert len(asked) > 5 and all("french" in languages(answer(row)) for row in asked)


def test_an_instruction_keeps_its_wording_when_fewer_are_asked_for(tmp_path):
    many, few = (in_order(build(own(tmp_path), per_form=n)[0]) for n in (12, 6))
    assert len(few) == 36 and all(row in many for row in few)


def test_without_french_the_translation_form_is_refused_and_the_others_are_made(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes("\r\n".join(["", *things(5), ""]).encode())
    with pytest.raises(StudyError, match=r"has 0 different ones for the form translation: give French"):
        build(str(path), per_form=5, twins=False)
    rows, counts = build(str(path), per_form=5, twins=False, forms=("code", "classification"))
    assert len(rows) == 10 and counts["rows"] == 5 and not any("\r" in prompt(row) for row in rows)
    french = tmp_path / "fr.csv"
    table(french, ("instruction", "french"), [[text, f"Ouvrez {text}"] for text in things(5)])
    assert len(build(str(path), per_form=5, twins=False, french=french)[0]) == 20
    with pytest.raises(StudyError, match=r"There is no file .*none\.csv with French"):
        build(str(path), per_form=5, twins=False, french=tmp_path / "none.csv")


def test_repeated_and_nearly_repeated_instructions_are_dropped_and_counted(tmp_path):
    said, path = things(6), tmp_path / "mine.jsonl"
    lines = [*said, said[0].upper(), said[1] + "s"]
    path.write_text("".join(json.dumps({"instruction": text, "note": 3}) + "\n" for text in lines))
    rows, counts = build(str(path), per_form=6, twins=False, forms=("code",))
    assert len(rows) == 6 and counts["repeated"] == 1 and counts[NEAR] == 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "goal\nx\n", r"a\.csv lacks the column 'instruction'"),
        ("a.txt", "\n \n", r"a\.txt has no instructions"),
        ("a.jsonl", '{"instruction": "x"\n', r"a\.jsonl, line 1, is no JSON"),
        ("a.jsonl", '\n{"prompt": "x"}\n', r"a\.jsonl, line 2, has no text `instruction`"),
        ("a.jsonl", '{"instruction": "x", "twin": 3}\n', r"a\.jsonl, line 1, has a 'twin' that is no text"),
        ("a.xlsx", "x", r"a\.xlsx is no \.csv, \.jsonl or \.txt"),
    ],
)
def test_a_file_that_is_no_list_says_what_is_wrong(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(StudyError, match=said):
        read_own(tmp_path / name)


def test_a_safety_set_of_ones_own_keeps_its_refusals_without_the_answers_among_them(tmp_path):
    said, columns = things(5), ("instruction", "response", "form")
    answers = [REFUSAL, "Sure. Step 1: find it. Step 2: open it.", REFUSAL, "", "def f():\n    return 1"]
    forms = ["", "text_generation", "code", "code", "code"]
    path = table(tmp_path / "set.csv", columns, zip(said, answers, forms, strict=True))
    rows, counts = build(path, per_form=3)
    assert sorted((row["form"], prompt(row)) for row in rows) == [("code", said[2]), ("text_generation", said[0])]
    assert counts["answered"] == 2 and counts["empty"] == 1 and counts[safety_builder.SHORT] == 10
    table(tmp_path / "set.csv", columns, [[said[0], REFUSAL, "poem"]])
    with pytest.raises(StudyError, match=r"Row 0 of set\.csv has the form 'poem'"):
        build(path)
    table(tmp_path / "set.csv", columns[:2], [[said[0], "Sure. First find it, then open it."]])
    with pytest.raises(StudyError, match=r"Of .*set\.csv nothing is left \(rows: 1, answered: 1"):
        build(path)


def test_twins_in_a_safety_set_of_ones_own_are_not_taken_and_counted_as_that(tmp_path):
    said, benign = things(4), things(4, "of mine")
    rows = [[said[i], REFUSAL, benign[i] if i < 3 else "", "First find it."] for i in range(4)]
    path = table(tmp_path / "set.csv", ("instruction", "response", "twin", "twin_answer"), rows)
    rows, counts = build(path, per_form=4, forms=("text_generation",))
    assert not of(rows, "twin") and counts[UNREAD_TWIN] == 3 and counts[NO_TWIN] == 1
    assert UNREAD_TWIN not in build(path, per_form=4, forms=("text_generation",), twins=False)[1]


def test_a_registered_list_takes_the_nearest_benign_row_with_its_answer_as_twin_in_the_text_form(put, tmp_path):
    table(tmp_path / "adv.csv", ("goal", "target"), [[text, "Sure"] for text in things(9)])
    put("advbench", tmp_path / "adv.csv")
    rows, counts = build("advbench", per_form=9, forms=("text_generation", "code"))
    benign = {row["prompt"]: row["answer"] for row in tasks.load("instruction_data", 40)[0]}
    twins = of(rows, "twin")
    assert len(twins) == 9 == counts[NO_ANSWER] and {row["form"] for row in twins} == {"text_generation"}
    assert all(benign[prompt(row)] == answer(row) and row["source"] == "instruction_data" for row in twins)
    assert 0 < counts[safety_builder.UNLIKE] <= 9  # random words share little
    assert {row["pair"] for row in twins} == {row["pair"] for row in of(rows, "refusal", "text_generation")}
    write(rows, counts, tmp_path / "out", "Listed")
    card = (tmp_path / "out/README.md").read_text()
    assert "| advbench | MIT | yes |" in card and "| instruction_data | Apache-2.0 | yes |" in card
    assert yaml.safe_load(card.split("---")[1])["license"] == "other"
    assert not any(text in card for row in rows for text in (prompt(row), answer(row)))


def test_a_list_with_twins_of_its_own_has_no_answers_to_them_and_counts_that(put, tmp_path):
    columns = ("Index", "Goal", "Target", "Behavior", "Category", "Source")
    for name, whose in (("jailbreakbench_harmful", "of a stranger"), ("jailbreakbench_benign", "of mine")):
        table(tmp_path / "x.csv", columns, [[i, text, "", "", "", ""] for i, text in enumerate(things(7, whose))])
        put(name, tmp_path / "x.csv")
    rows, counts = build("jailbreakbench", per_form=7, forms=("code", "text_generation"))
    assert len(rows) == 14 == counts[NO_ANSWER] and not of(rows, "twin")
    write(rows, counts, tmp_path / "out", "Listed")
    assert "| jailbreakbench_harmful | MIT | yes |" in (tmp_path / "out/README.md").read_text()


def test_a_list_that_cannot_be_had_says_why(put):
    with pytest.raises(fetching.Absent, match=r"'advbench' is not available: STUDY_OFFLINE"):
        build("advbench")

"""Rows here are stand-ins in the shape of the published files: nothing of those is in the tests."""

import csv
import json
from collections import Counter

import pytest

from studylib.data import harmful, safety, safety_builder
from studylib.data.safety import multitaskbench, safety_tuned_llamas, stand_in_safety
from studylib.study.words import FORMS, StudyError
from studylib.text import refusals

REFUSAL = "I'm sorry, but I can't help with that."


def rows_of_the_bench():
    """2000 rows like the file's: marks as in it, cells over several lines, quotes; every response refuses."""
    asked = {
        "classification": "What comes first to open locker {}? Choose the best option\nA. find it\nB. open it",
        "code": 'Write a Python program that prints "locker {}",\nthen stops.',
        "text_generation": "Tell me all about locker {}, from top to bottom.",
        "translation": "Translate this French text: « Ouvrez le casier {}. »",
    }
    return [[asked[form].format(i), REFUSAL] for form in asked for i in range(500)]


def bench(folder, rows, numbers=None, columns=("", "Query", "Response"), end="\n"):
    path = folder / "multitaskbench.csv"
    with open(path, "w", newline="", encoding="utf-8") as out:
        numbers = numbers or range(len(rows))
        csv.writer(out, lineterminator=end).writerows(
            [columns, *([n, *row] for n, row in zip(numbers, rows, strict=True))]
        )
    return path


# MultiTaskBench


def test_the_form_goes_by_the_block(tmp_path):
    found, counts = multitaskbench(bench(tmp_path, rows_of_the_bench()))
    blocks = ("classification", "code", "text_generation", "translation")
    assert [row["form"] for row in found] == [form for form in blocks for _ in range(500)]
    assert counts == {"rows": 2000, "replacement characters": 0, "refused": 2000, "kept": 2000}
    assert found[500] == {
        "source": "multitaskbench",
        "key": "500",
        "form": "code",
        "prompt": 'Write a Python program that prints "locker 0",\nthen stops.',
        "answer": REFUSAL,
        "intent": "",
        "phrasing": "",
    }


def test_line_ends_make_no_difference(tmp_path):
    plain = multitaskbench(bench(tmp_path, rows_of_the_bench()))
    crlf = [[cell.replace("\n", "\r\n") for cell in row] for row in rows_of_the_bench()]
    assert multitaskbench(bench(tmp_path, crlf, end="\r\n")) == plain


def test_answers_repeats_and_damaged_characters_are_counted_and_only_the_first_two_dropped(tmp_path):
    rows = rows_of_the_bench()
    rows[10][1] = "B. open it"  # a label is an answer
    rows[600][1] = "```python\nprint('locker')\n```"
    rows[1100][1] = f"{REFUSAL} Anyway: Step 1: find the locker. Step 2: open it."
    rows[1200][1] = "A locker has a door, a lock and two shelves. First look at the door."
    rows[1600][1] = "Open the locker 100."
    rows[1700][1] = "I can\ufffdt translate that, I'm sorry, but I cannot help."
    rows[700][0], rows[1300][0], rows[1301][0] = rows[650][0], rows[1299][0], rows[1299][0] + "  "
    found, counts = multitaskbench(bench(tmp_path, rows))
    gone = {str(i) for i in range(2000)} - {row["key"] for row in found}
    assert gone == {"10", "600", "1100", "1200", "1600", "700", "1300", "1301"}
    assert counts == {
        "rows": 2000,
        "refused": 1992,
        "answered": 4,
        "partial": 1,
        "repeated code": 1,
        "repeated text_generation": 2,
        "replacement characters": 1,
        "kept": 1992,
    }


# safety-tuned-llamas


def llamas(folder, rows):
    path = folder / "safety.json"
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return path


def test_the_input_follows_the_instruction_and_advice_stays(tmp_path):
    rows = [
        {"instruction": "How do I open Paul's locker?", "input": "", "output": REFUSAL},
        {
            "instruction": "Open this.",
            "input": "Paul's\nlocker",
            "output": "Lockers belong to their owners; ask Paul first.",
        },
        {"instruction": "How do I open Paul's locker?", "input": None, "output": "Please don't."},
        {"instruction": "Open it.", "input": "", "output": " "},
        {"instruction": "Hide\ufffd it.", "input": "", "output": REFUSAL},
    ]
    found, counts = safety_tuned_llamas(llamas(tmp_path, rows))
    assert [(row["key"], row["form"], row["prompt"]) for row in found] == [
        ("0", "text_generation", "How do I open Paul's locker?"),
        ("1", "text_generation", "Open this.\n\nPaul's\nlocker"),
        ("4", "text_generation", "Hide\ufffd it."),
    ]
    assert counts["rows"] == 5 and counts["kept"] == 3 and counts["refused"] == 2
    assert counts["repeated text_generation"] == counts["empty"] == counts["replacement characters"] == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"instruction": "a", "input": ""', r"safety\.json, the whole: is not JSON"),
        ('{"instruction": "a", "input": "", "output": "b"}', "is not a list of rows"),
        ('[{"instruction": "a", "input": "", "output": "b"}, {"input": ""}]', "row 1: needs a field 'instruction'"),
        ('[{"instruction": "a", "input": "", "output": 3}]', "row 0: needs a field 'output'"),
    ],
)
def test_what_is_no_such_json_is_refused(tmp_path, content, said):
    with pytest.raises(StudyError, match=said):
        safety_tuned_llamas(llamas(tmp_path, content))


# Folders that safety_dataset wrote

HELP = "First find it, then open it."


def one(kind, key, prompt, answer="", form="text_generation", pair=None):
    """A row of an exported set, refused or helpfully answered unless said otherwise."""
    messages = [prompt, answer or {"refusal": REFUSAL, "twin": HELP}[kind]]
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), messages, strict=True)]
    about = {"form": form, "kind": kind, "source": "stand_in", "key": key, "intent": f"stand_in/open/{key}"}
    pair = f"stand_in/{form}/{key}" if pair is None else pair
    return {"messages": messages, **about, "pair": pair, "language": "en"}


def folder_of(tmp_path, rows, name="out", **more):
    return safety_builder.write(rows, {}, tmp_path / name, "Mine ---", **more).parent.parent


def test_refusals_and_twins_come_with_their_pair_and_ids_of_their_own(tmp_path):
    asked = "Write a Python program that opens {}'s locker."
    rows = [one("twin", "7", asked.format("my"), "def f():\n    return 1", "code")]
    rows += [one("refusal", "7", asked.format("Paul"), form="code"), one("refusal", "7", "Open Paul's locker.")]
    found, counts = safety.exported(folder_of(tmp_path, rows))
    twin, (coded, text) = found["twin"][0], found["refusal"]
    assert (text["key"], coded["key"], twin["key"]) == ("text_generation/7", "code/7", "code/7/twin")
    assert twin["twin_of"] == "stand_in/code/7" == f"{coded['source']}/{coded['key']}"
    assert twin["prompt"] == asked.format("my") and text["answer"] == REFUSAL and coded["intent"] == "stand_in/open/7"
    kept = {what: n for what, n in counts.items() if n}
    assert kept.pop("twins, rows") == kept.pop("twins, kept") == 1
    assert kept == {"rows": 2, "refused": 2, "kept": 2, next(w for w in kept if w.startswith("twins, ")): 1}


def test_answers_repeats_refused_twins_and_twins_without_a_refusal_go_and_are_counted_by_name(tmp_path):
    rows = [
        one("refusal", "0", "Open locker 0."),
        one("twin", "0", "Open my locker 0."),
        one("refusal", "1", "Open locker 1.", "Sure. Step 1: find it. Step 2: open it."),
        one("twin", "1", "Open my locker 1."),
        one("refusal", "2", "Open locker 2."),
        one("twin", "2", "Open my locker 2.", REFUSAL),
        one("refusal", "3", " Open locker 0. "),
        one("twin", "3", "Open my locker 3."),
        one("refusal", "4", "Open locker 4.", pair=""),
        one("twin", "4", "Open my locker 4.", pair=""),
        one("twin", "5", "Open my locker 5.", pair="stand_in/text_generation/none"),
        one("refusal", "6", "Open locker 6.", " "),
    ]
    del rows[9]["pair"]
    found, counts = safety.exported(folder_of(tmp_path, rows))
    assert [row["key"].split("/")[1] for row in found["refusal"]] == ["0", "2", "4"]
    assert [row["key"] for row in found["twin"]] == ["text_generation/0/twin"]
    told = ("rows", "refused", "answered", "empty", "repeated text_generation", "kept")
    assert [counts[what] for what in told] == [6, 3, 1, 1, 1, 3]
    twins = ("twins, rows", "twins, refused", "twins, kept", "twins without a refusal")
    assert [counts[what] for what in twins] == [6, 1, 1, 4]


def edited(path, old, new):
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda folder: edited(folder / "data/train.jsonl", "locker", "drawer"),
            r"train\.jsonl is not what was exported",
        ),
        (
            lambda folder: edited(folder / "data/train.jsonl", '"}\n', ""),
            r"train\.jsonl is not what was exported",
        ),
        (lambda folder: (folder / "data/train.jsonl").unlink(), r"train\.jsonl is missing"),
        (lambda folder: (folder / "README.md").unlink(), r"README\.md is missing"),
        (
            lambda folder: edited(folder / "README.md", "safety_dataset:", "other:"),
            r"README\.md does not say what data/tr",
        ),
        (lambda folder: edited(folder / "README.md", "---\n", ""), r"README\.md does not say what data/train\.jsonl"),
        (lambda folder: edited(folder / "README.md", "  origins:", " - x"), r"README\.md does not say"),
    ],
)
def test_a_damaged_edited_or_older_folder_names_the_file_and_the_remedy(tmp_path, damage, said):
    folder = folder_of(tmp_path, [one("refusal", "0", "Open the locker.")])
    assert safety.exported_card(folder)["rows"] == 1
    damage(folder)
    for read in (safety.exported_card, safety.exported):
        with pytest.raises(
            StudyError, match=rf"{said}.*export it again \(`python -m studylib.data.safety_builder --to"
        ):
            read(folder)


# The miniature's own


def test_generic_rows_are_texts_and_multitask_rows_of_all_forms_equally():
    assert {row["form"] for row in stand_in_safety("generic", 100, 0)} == {"text_generation"}
    assert Counter(row["form"] for row in stand_in_safety("multitask", 100, 0)) == dict.fromkeys(FORMS, 25)


@pytest.mark.parametrize("kind", ["generic", "multitask"])
def test_every_row_refuses_in_training_wordings_about_other_intents_than_the_test(kind):
    rows = stand_in_safety(kind, 801, 0)
    assert len(rows) == len({row["prompt"] for row in rows}) == len({row["key"] for row in rows}) == 801
    test = {harmful.intent(one) for one in harmful.stand_in(0, 318)[0]}
    assert len(test) == 318 and not test & {row["intent"] for row in rows}
    for row in rows:
        assert row["phrasing"].startswith(f"{row['form']}/train/") and row["source"] == "stand_in"
        assert refusals.judge_rules(row["prompt"], row["answer"], row["form"], "eos")[0] == "refused", row
    suited = {row["answer"] for row in rows} & {
        "I'm sorry, but I can't translate that.",
        "I'm sorry, but I can't write code for that.",
    }
    assert len(suited) == (2 if kind == "multitask" else 0)


def test_more_safety_rows_leave_the_first_as_they_were_and_seeds_differ():
    for kind in ("generic", "multitask"):
        assert stand_in_safety(kind, 400, 0)[:100] == stand_in_safety(kind, 100, 0) != stand_in_safety(kind, 100, 1)


def test_too_many_rows_are_refused(monkeypatch):
    monkeypatch.setattr(safety, "stand_in_parts", lambda seed: {"alignment": [("open", "locker")], "safety": []})
    with pytest.raises(StudyError, match=r"data\.safety_rows is 900000, but after \d{3} different prompts"):
        stand_in_safety("generic", 900_000, 0)

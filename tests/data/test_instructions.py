"""Lists here are stand-ins in the shape of the published files: nothing of those is in the tests."""

import csv

import pytest

from studylib.data import harmful, instructions
from studylib.data.harmful import intent
from studylib.study.words import StudyError


def file(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def table(folder, name, columns, rows, end="\n", bom=False):
    """A CSV file as pandas and spreadsheets write it: quoted where needed, with that end of line."""
    path = folder / name
    with open(path, "w", newline="", encoding="utf-8-sig" if bom else "utf-8") as out:
        csv.writer(out, lineterminator=end).writerows([columns, *rows])
    return path


def user(row):
    return row["messages"][0]["content"]


ADVBENCH = ("goal", "target")
HARMBENCH = ("Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID")
JAILBREAKBENCH = ("Index", "Goal", "Target", "Behavior", "Category", "Source")
COMPLETIONS = ("id", "type", "prompt", "completion", "annotation_1", "annotation_2", "agreement", "final_label")


def test_advbench_is_read_with_keys_by_row_and_without_repeated_or_empty_rows(tmp_path):
    rows = [
        ("Open a locker, then close it", "Sure, here"),
        ('Hide the "blue" bag', "Sure, here"),
        ("", "Sure, here"),
        ("open a  locker, then close it.", "Sure, here"),
        ("Write a note\nin two lines", "Sure, here"),
        ("None", "null"),
    ]
    found, counts = instructions.advbench(table(tmp_path, "advbench.csv", ADVBENCH, rows))
    assert [(one["key"], one["instruction"]) for one in found] == [
        ("0", "Open a locker, then close it"),
        ("1", 'Hide the "blue" bag'),
        ("4", "Write a note\nin two lines"),
        ("5", "None"),  # a text, not a missing value
    ]
    assert counts == {"rows": 6, "repeated": 1, "empty": 1, "kept": 4}
    assert found[1] == {
        "source": "advbench",
        "key": "1",
        "instruction": 'Hide the "blue" bag',
        "category": "",
        "twin": None,
    }


def test_a_byte_order_mark_and_crlf_change_nothing(tmp_path):
    rows = [("Open a locker\nquietly", "x"), ("Hide a bag", "y")]
    plain = instructions.advbench(table(tmp_path, "a.csv", ADVBENCH, rows))
    crlf = [(text.replace("\n", "\r\n"), target) for text, target in rows]
    assert instructions.advbench(table(tmp_path, "b.csv", ADVBENCH, crlf, end="\r\n", bom=True)) == plain
    assert plain[0][0]["instruction"] == "Open a locker\nquietly"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("goals,target\nOpen a locker,x\n", r"a\.csv lacks the column 'goal' \(it has 'goals', 'target'\)"),
        ("", r"a\.csv lacks the columns 'goal', 'target' \(it has no header"),
        ("goal,target\nOpen a locker,x\nHide, a bag,y\n", r"Row 1 of a\.csv has more cells than the header's 2"),
        ("goal,target\nOpen a locker,x\nHide a bag\n", r"Row 1 of a\.csv has fewer cells than the header's 2"),
        ('goal,target\nOpen a locker,x\n"Hide a bag,y\n', r"Row 1 of a\.csv has fewer cells"),
        (b"goal,target\nOpen a caf\xe9,x\n", r"a\.csv is not UTF-8 from byte 22 on"),
        ('goal,target\n"' + "a" * 140_000 + ",x\n", r"Row 0 of a\.csv has fewer cells"),
    ],
)
def test_a_list_that_is_another_file_or_broken_is_refused_with_its_name_and_place(tmp_path, content, said):
    with pytest.raises(StudyError, match=said):
        instructions.advbench(file(tmp_path, "a.csv", content))


def test_harmbench_keeps_standard_behaviours_and_counts_the_others(tmp_path):
    rows = [
        ("Open a locker", "standard", "lockers", "", "", "open_locker"),
        ("Open the locker below", "contextual", "lockers", "context", "The locker has\nthree doors.", "open_below"),
        ("Sing the song", "copyright", "songs", "lyrics", "", "sing_song"),
        ("Hide a bag", "standard", "bags", "", "", "hide_bag"),
    ]
    path = table(tmp_path, "harmbench.csv", HARMBENCH, rows)
    found, counts = instructions.harmbench(path)
    assert [intent(one) for one in found] == ["harmbench/0", "harmbench/3"]
    assert found[0]["category"] == "lockers"
    assert counts == {"rows": 4, "kept": 2, "contextual": 1, "copyright": 1}
    found, counts = instructions.harmbench(path, functional=("standard", "contextual"))
    assert found[1]["instruction"] == "The locker has\nthree doors.\n\n---\n\nOpen the locker below"
    assert counts == {"rows": 4, "kept": 3, "copyright": 1}


def test_strongreject_is_read_by_its_forbidden_prompt(tmp_path):
    rows = [("lockers", "custom", "How can I open a locker?"), ("bags", "custom", "Hide a bag.")]
    path = table(tmp_path, "strongreject.csv", ("category", "source", "forbidden_prompt"), rows)
    found, counts = instructions.strongreject(path)
    assert [(one["key"], one["category"]) for one in found] == [("0", "lockers"), ("1", "bags")]
    assert found[0]["instruction"] == "How can I open a locker?" and counts["kept"] == 2


def test_jailbreakbench_is_paired_by_index_whatever_the_order(tmp_path):
    goals = [
        ("0", "Open Paul's locker", "", "Lockers", "Things", "Original"),
        ("7", "Hide a bag", "", "B", "Bags", "O"),
    ]
    benign = [("7", "Carry a bag", "", "B", "Other", "O"), ("0", "Open my locker", "", "Lockers", "Things", "Original")]
    files = [table(tmp_path, f"{n}.csv", JAILBREAKBENCH, r) for n, r in (("harmful", goals), ("benign", benign))]
    found, counts = instructions.jailbreakbench(*files)
    assert [(one["key"], one["instruction"], one["twin"]) for one in found] == [
        ("0", "Open Paul's locker", "Open my locker"),
        ("7", "Hide a bag", "Carry a bag"),
    ]
    assert counts == {"rows": 2, "kept": 2, "other category": 1}


def test_jailbreakbench_files_with_other_or_repeated_indices_are_no_pair(tmp_path):
    rows = [(str(i), f"Open locker {i}", "", "L", "T", "O") for i in range(3)]
    kinds = {"harmful.csv": rows, "benign.csv": rows[:2], "twice.csv": [*rows, rows[1]]}
    whole, cut, twice = (table(tmp_path, name, JAILBREAKBENCH, some) for name, some in kinds.items())
    with pytest.raises(StudyError, match=r"harmful\.csv and benign\.csv are paired by Index, but one alone has '2'"):
        instructions.jailbreakbench(whole, cut)
    for files in ((whole, twice), (twice, whole)):
        with pytest.raises(StudyError, match="one has an index twice"):
            instructions.jailbreakbench(*files)


def test_xstest_gives_its_safe_prompts_alone_from_completions_with_crlf(tmp_path):
    rows = [
        ("1", "homonyms", "How can I kill time?", "Read,\r\nor walk.", "1_full_compliance", "", "True", "1"),
        ("2", "contrast_homonyms", "How can I open Paul's locker?", "I can't.", "", "", "True", "2_full_refusal"),
        ("3", "safe_targets", "How do I crush a can?", 'Say "please".', "", "", "False", ""),
    ]
    found, counts = instructions.xstest(table(tmp_path, "completions.csv", COMPLETIONS, rows, end="\r\n"))
    assert [(one["key"], one["category"], one["instruction"]) for one in found] == [
        ("1", "homonyms", "How can I kill time?"),
        ("3", "safe_targets", "How do I crush a can?"),
    ]
    assert counts == {"rows": 3, "contrast": 1, "kept": 2}
    made = harmful.over_refusal(found)
    assert [(row["id"], row["prompt_set"], row["harmful"], row["benign_because"], user(row)) for row in made] == [
        ("twin-text_generation-xstest/1", "sounds_harmful", False, "homonyms", "How can I kill time?"),
        ("twin-text_generation-xstest/3", "sounds_harmful", False, "safe_targets", "How do I crush a can?"),
    ]
    assert {row["twin_of"] for row in made} == {""}

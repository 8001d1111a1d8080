import csv
import gzip
import hashlib
import json
from collections import Counter

import pytest
import yaml

from studylib.data import tasks
from studylib.data.fetching import Absent, register
from studylib.data.tasks import READERS, split
from studylib.study.words import TASKS, StudyError


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows).removesuffix("\n"))
    return path


def rows_of(name, data):
    return READERS[name](data, name)


def dropped(counts):
    return {name.removeprefix("dropped: "): n for name, n in counts.items() if name.startswith("dropped: ")}


def test_every_importer_reads_a_registered_source_and_every_task_has_one_of_either_kind():
    known = register()
    assert set(READERS) <= set(known)
    assert {part for group in tasks.GROUPS.values() for part in group} <= set(READERS)
    assert {known[name].kind for name in READERS} == {"file", "hub"}


# Summaries


def paper(number, *, target=("It opens.", "Another."), source=("We open lockers.", " They\nopen. ")):
    return {"paper_id": f"p{number}", "source": [*source, f"Number {number}."], "target": list(target), "title": "T"}


def test_a_summary_is_the_first_of_the_targets_and_sentences_are_joined(tmp_path):
    path = lines(tmp_path / "dev.jsonl", [paper(1)])
    rows, counts = rows_of("scitldr_dev", path)
    (row,) = rows
    assert row["content"] == "We open lockers. They open. Number 1."
    assert row["content"] in row["prompt"] and row["prompt"] != row["content"]
    assert (row["answer"], row["form"], row["tests"]) == ("It opens.", "text_generation", [])
    assert (row["source"], row["key"], row["split"]) == ("scitldr_dev", "p1", "dev")
    assert counts == {"read": 1, "kept": 1}


def test_papers_without_a_summary_or_with_an_earlier_text_are_dropped_and_counted(tmp_path):
    empty = [paper(2, target=()), paper(3, target=("  ",)), paper(4, source=("\u2028 ",)) | {"source": [" "]}]
    rows, counts = rows_of("scitldr_train", lines(tmp_path / "x.jsonl", [paper(1), *empty, paper(1), paper(5)]))
    assert [row["key"] for row in rows] == ["p1", "p5"]
    assert dropped(counts) == {"empty answer": 2, "empty prompt": 1, "same prompt as an earlier row": 1}
    assert counts["read"] == counts["kept"] + sum(dropped(counts).values()) == 6


def test_a_long_paper_is_asked_for_by_its_beginning_and_counted():
    line = "The locker is described in detail by all authors of this work. "
    rows = [{"document": line * 200, "summary": "A locker."}, {"document": "Short: a key.", "summary": "A key."}]
    rows += [{"document": "Nothing.", "summary": "An abstract longer than the paper."}]
    read, counts = rows_of("arxiv_summarization", rows)
    assert counts == {"read": 3, "kept": 2, "shortened": 1, "dropped: shorter than its summary": 1}
    assert 4900 < len(read[0]["content"]) <= 5000 and read[0]["content"].endswith("of this work.")
    assert read[0]["content"] in read[0]["prompt"] and "begin" in read[0]["prompt"]
    endless = rows_of("arxiv_summarization", [{"document": "x" * 9000, "summary": "An x."}])[0]
    assert len(endless[0]["content"]) == 5000


# Code


def problem(number, **changes):
    row = {
        "text": f"Write a function to open locker {number}.",
        "code": "def f(n):\r\n\treturn n\r\n",
        "task_id": number,
    }
    row |= {"test_setup_code": "", "test_list": ["assert f(1) == 1", "assert f(2) == 2"], "challenge_test_list": []}
    return row | changes


def test_a_problem_shows_its_tests_and_its_code_has_unix_line_ends(tmp_path):
    rows, _ = rows_of("mbpp", lines(tmp_path / "m.jsonl", [problem(7)]))
    (row,) = rows
    assert row["prompt"].startswith("Write a function to open locker 7.\n")
    assert row["prompt"].endswith("\n\nassert f(1) == 1\nassert f(2) == 2")
    assert row["answer"] == "def f(n):\n\treturn n"
    assert (row["key"], row["content"]) == ("7", "Write a function to open locker 7.")
    assert row["tests"] == ["assert f(1) == 1", "assert f(2) == 2"]


def test_set_up_code_stands_before_each_of_the_tests(tmp_path):
    setup = problem(1, test_setup_code="a = 1 \r\nb = 2", test_list=["assert f(a) == 1", "assert f(b) == 2"])
    rows, _ = rows_of("mbpp", lines(tmp_path / "m.jsonl", [setup, problem(2, code="def f(n):\r\r\n\treturn n")]))
    for test in rows[0]["tests"]:
        exec(rows[0]["answer"] + "\n" + test, {})
    assert rows[0]["tests"][1] == "a = 1 \nb = 2\nassert f(b) == 2"
    assert not any("\r" in text for row in rows for text in (row["answer"], row["prompt"], *row["tests"]))
    exec(rows[1]["answer"] + "\n" + rows[1]["tests"][0], {})


def test_a_function_to_be_completed_has_the_whole_function_as_its_answer(tmp_path):
    row = {
        "task_id": "HumanEval/3",
        "prompt": '\n\ndef twice(n):\n    """ Two times n.\n    """\n',
        "entry_point": "twice",
        "canonical_solution": "    return 2 * n\n",
        "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate(2) == 4\n",
    }
    path = tmp_path / "h.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(row).encode()))
    (made,), _ = rows_of("human_eval", path)
    assert made["answer"] == 'def twice(n):\n    """ Two times n.\n    """\n    return 2 * n'
    assert made["prompt"].endswith(made["content"]) and made["content"].startswith("def twice")
    assert "2 * n" not in made["prompt"]
    space = {}
    exec(made["answer"], space)
    exec(made["tests"][0], space)
    with pytest.raises(AssertionError):
        exec(made["tests"][0], {"twice": lambda n: n})


# Translation

CONLLU = """\
# newdoc id = n01
# sent_id = n01001
# parallel_id = pud/n01001
# text = « L'armoire est ouverte », dit-il.
# text_en = “The locker is open,” he said.
1\tL'\tle\tDET\t_\t_\t2\tdet\t_\tSpaceAfter=No
2\tarmoire\tarmoire\tNOUN\t_\t_\t3\tnsubj\t_\t_

# sent_id = n01002
# text_en = It\u2019s closed.
# text = Elle n\u2019est pas ouverte.
1\tElle\til\tPRON\t_\t_\t2\tnsubj\t_\t_

# sent_id = n01003
# text = Sans anglais.
1\tSans\tsans\tADP\t_\t_\t2\tcase\t_\t_

"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_french_sentences_are_read_with_their_english_from_the_comments(tmp_path, end):
    path = tmp_path / "f.conllu"
    path.write_bytes(CONLLU.replace("\n", end).encode())
    rows, counts = rows_of("ud_french_pud", path)
    assert [(row["key"], row["content"], row["answer"]) for row in rows] == [
        ("n01001", "« L'armoire est ouverte », dit-il.", "“The locker is open,” he said."),
        ("n01002", "Elle n\u2019est pas ouverte.", "It\u2019s closed."),
    ]
    assert counts == {"read": 3, "kept": 2, "dropped: empty answer": 1}
    assert all(row["prompt"].endswith(row["content"]) for row in rows)


def test_a_sentence_without_an_id_is_an_error(tmp_path):
    path = tmp_path / "f.conllu"
    path.write_text(CONLLU.replace("# sent_id = n01002\n", ""))
    with pytest.raises(StudyError, match=r"row 1: needs a field 'sent_id'"):
        rows_of("ud_french_pud", path)


# Classification


def headlines(path, *rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\r\n")
        table.writerow(["S No.", "Title", "Decisions", "Words"])
        table.writerows([[number, title, decisions, 5] for number, (title, decisions) in enumerate(rows, 1)])
    return path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{'Moody's': 'neutral'}", {"Moody's": "neutral"}),
        ("{'A': 'negative', 'Dr. Reddy's': 'positive', 'B': 'neutral'}", None),
        ("{'Osian's Art': 'neutral', 'Moody's': 'negative'}", {"Osian's Art": "neutral", "Moody's": "negative"}),
    ],
)
def test_decisions_with_a_bare_apostrophe_are_mended(text, found):
    found = found or {"A": "negative", "Dr. Reddy's": "positive", "B": "neutral"}
    assert tasks.decisions(text) == (found, True)


def test_decisions_that_are_python_are_not_mended():
    assert tasks.decisions("{'A': 'neutral', \"Dr Reddy's\": 'positive'}") == (
        {"A": "neutral", "Dr Reddy's": "positive"},
        False,
    )


@pytest.mark.parametrize(
    "text", ["{'A's': 'bad'}", "{'A': 'neutral', 'B's: 'positive'}", "{'A': 1}", "{}", "['A']", "__import__('os')"]
)
def test_decisions_that_cannot_be_read_are_an_error_and_never_run(text):
    with pytest.raises(ValueError, match=r"cannot be read|is not a dict"):
        tasks.decisions(text)


def test_headlines_with_one_entity_are_kept_with_its_label(tmp_path):
    path = headlines(
        tmp_path / "s.csv",
        ('Gold shines,  "again"', "{'Gold ': 'positive'}"),
        ("Gold shines; Silver dull", "{'Gold': 'positive', 'Silver': 'negative'}"),
        ("Moody's is quiet on UK's banks", "{'Moody's': 'neutral', 'UK's banks': 'neutral'}"),
        ("Paper falls", "{'Paper': 'negative'}"),
    )
    rows, counts = rows_of("sentfin", path)
    assert [(row["key"], row["content"], row["answer"]) for row in rows] == [
        ("1", 'Gold shines, "again"', "positive"),
        ("4", "Paper falls", "negative"),
    ]
    assert counts["mended: a bare apostrophe in Decisions"] == 1
    assert dropped(counts) == {"more than one entity": 2}
    assert all(row["form"] == "classification" and row["content"] in row["prompt"] for row in rows)


def test_a_headline_that_is_there_twice_stays_once_and_with_clashing_labels_not_at_all(tmp_path):
    path = headlines(
        tmp_path / "s.csv",
        ("Gold shines", "{'Gold': 'positive'}"),
        ("Paper falls", "{'Paper': 'negative'}"),
        ("gold  shines", "{'Gold': 'positive'}"),
        ("Paper falls", "{'Paper': 'neutral'}"),
        ("Iron rises", "{'Iron': 'positive'}"),
        ("Iron rises", "{'Iron': 'positive', 'Tin': 'neutral'}"),
    )
    rows, counts = rows_of("sentfin", path)
    assert [row["key"] for row in rows] == ["1"]
    assert dropped(counts) == {
        "same headline and decisions as an earlier row": 1,
        "headlines with clashing decisions": 4,
    }
    assert counts["read"] == counts["kept"] + sum(dropped(counts).values()) == 6


def test_an_unreadable_decision_names_file_and_row(tmp_path):
    with pytest.raises(StudyError, match=r"s\.csv, row 1: Decisions cannot be read: \{'Gold"):
        rows_of("sentfin", headlines(tmp_path / "s.csv", ("Gold shines", "{'Gold': positive}")))


# General instructions


def test_the_input_stands_below_the_instruction(tmp_path):
    path = tmp_path / "i.json"
    rows = [
        {"instruction": "Sort the list.", "input": "zebra, ape", "output": "ape, zebra"},
        {"instruction": "Name a colour.", "input": "", "output": "Red."},
        {"instruction": "Name a color.", "input": "", "output": " "},
        {"instruction": "name a colour", "input": " ", "output": "Blue."},
    ]
    path.write_text(json.dumps(rows, indent=4))
    made, counts = rows_of("instruction_data", path)
    assert [(row["key"], row["prompt"], row["answer"]) for row in made] == [
        ("0", "Sort the list.\n\nzebra, ape", "ape, zebra"),
        ("1", "Name a colour.", "Red."),
    ]
    assert dropped(counts) == {"empty answer": 1, "same prompt as an earlier row": 1}


# Files that are not what they should be


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("scitldr_dev", b'{"paper_id": "a", "source": []}', r"row 0: needs a field 'target' \(list\)"),
        ("mbpp", b'\n{"task_id": 1', "line 2: is not JSON"),
        ("instruction_data", b'[{"instruction": "a", "output": "b"}]', "row 0: needs a field 'input'"),
        ("instruction_data", b'{"a": 1}', "is not a list of rows"),
        ("sentfin", b"No,Title\r\n1,Gold\r\n", "has no column 'S No.', 'Decisions'"),
        ("ud_french_pud", "# text = é".encode("latin-1"), "is no UTF-8 from byte"),
    ],
)
def test_another_format_is_an_error_that_names_file_place_and_field(tmp_path, name, raw, said):
    path = tmp_path / "file.x"
    path.write_bytes(raw)
    with pytest.raises(StudyError, match=rf"file\.x.*{said}"):
        rows_of(name, path)


def test_a_file_that_is_not_gzip_is_an_error(tmp_path):
    path = tmp_path / "h.jsonl.gz"
    for raw in (b"{}", gzip.compress(b"{}" * 99)[:-9]):
        path.write_bytes(raw)
        with pytest.raises(StudyError, match="cannot be read"):
            rows_of("human_eval", path)


# Hub data sets


def test_rows_of_the_hub_become_the_same_rows_as_those_of_files():
    made = {
        "arxiv_summarization": [{"document": "We open\nlockers .", "summary": "it \n opens ."}],
        "codealpaca": [{"instruction": "Open it.", "input": "the locker", "output": "open();"}],
        "opus_books": [{"french": "Ouvrez !", "english": "Open!"}, {"french": "Paris.", "english": "paris"}],
        "financial_tweets": [{"text": f"$GLD  {i // 2}", "label": i // 2} for i in range(6)],
        "financial_phrasebank": [{"text": f"Gold is up {i}.", "label": i} for i in (0, 1, 2)],
        "alpaca_cleaned": [{"instruction": "Name a colour.", "input": "", "output": "Red."}],
    }
    found = {name: rows_of(name, rows) for name, rows in made.items()}
    keys = {"source", "key", "form", "prompt", "answer", "content", "tests"}
    assert all(set(row) == keys for rows, _ in found.values() for row in rows)
    assert {row["form"] for rows, _ in found.values() for row in rows} == set(TASKS)
    assert found["arxiv_summarization"][0][0]["answer"] == "it opens ."
    assert found["codealpaca"][0][0]["prompt"] == "Open it.\n\nthe locker"
    assert dropped(found["opus_books"][1]) == {"the same in both languages": 1}
    assert [row["answer"] for row in found["financial_tweets"][0]] == ["negative", "positive", "neutral"]
    assert dropped(found["financial_tweets"][1]) == {"same prompt as an earlier row": 3}
    assert [row["answer"] for row in found["financial_phrasebank"][0]] == ["negative", "neutral", "positive"]
    with pytest.raises(StudyError, match="the label 3 is none of 0 to 2"):
        rows_of("financial_tweets", [{"text": "up", "label": 3}])


def test_the_key_of_a_streamed_row_does_not_depend_on_its_place():
    rows = [{"french": f"Porte {i}.", "english": f"Door {i}."} for i in range(20)]
    keys = {row["content"]: row["key"] for row in rows_of("opus_books", rows)[0]}
    assert {row["content"]: row["key"] for row in rows_of("opus_books", rows[::-1])[0]} == keys
    assert len(set(keys.values())) == 20


# Wording


def test_a_row_keeps_its_wording_when_others_come_and_all_wordings_occur():
    rows = [{"french": f"Porte {i}.", "english": f"Door {i}."} for i in range(200)]
    made = {row["content"]: row["prompt"] for row in rows_of("opus_books", rows)[0]}
    few = {row["content"]: row["prompt"] for row in rows_of("opus_books", rows[150:])[0]}
    assert few == {text: made[text] for text in few}
    used = Counter(prompt.replace(text, "{text}") for text, prompt in made.items())
    assert set(used) == set(tasks._wordings()["translate"])
    assert min(used.values()) > 200 / len(used) / 2


# Loading by name


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A sources file in which two files and a hub data set stand for new sources, with importers."""
    monkeypatch.setenv("STUDY_MIRROR", str(tmp_path))
    monkeypatch.setenv("STUDY_OFFLINE", "1")
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("STUDY_SOURCES", str(tmp_path / "own.yaml"))
    common = {"used_for": "a test", "licence": "MIT", "redistributable": True, "citation": "nobody"}
    entries = []
    for name, numbers in (("lists_train", (1, 2)), ("lists_test", (2, 3))):
        path = lines(tmp_path / f"{name}.jsonl", [paper(number) for number in numbers])
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entries.append(common | {"name": name, "url": "https://x", "mirror": path.name, "sha256": digest})
        monkeypatch.setitem(READERS, name, tasks.scitldr)
    folder = tmp_path / "hub"
    folder.mkdir()
    lines(folder / "train.jsonl", [{"fr": f"Porte {i}.", "en": f"Door {i}."} for i in range(9)])
    hub = {"name": "books", "kind": "hub", "dataset": str(folder), "revision": "0" * 40, "split": "train"}
    entries.append(common | hub | {"columns": {"french": "fr", "english": "en"}})
    monkeypatch.setitem(READERS, "books", tasks.translations)
    monkeypatch.setitem(tasks.GROUPS, "lists", ("lists_train", "lists_test"))
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(entries))


def test_a_group_is_loaded_as_one_data_set_whose_publisher_split_it(own):
    rows, counts = tasks.load("lists", 0)
    assert [(row["source"], row["key"]) for row in rows] == [
        ("lists_train", "p1"),
        ("lists_train", "p2"),
        ("lists_test", "p2"),
        ("lists_test", "p3"),
    ]
    assert counts == {"read": 4, "kept": 4}
    train, test = split(rows, n_test=2)
    assert [row["key"] for row in train] == ["p1"]  # p2 is a test of the publisher's
    assert [row["key"] for row in test] == ["p2", "p3"]


def test_a_hub_data_set_is_loaded_by_number_and_seed(own):
    rows, counts = tasks.load("books", 4, 1)
    assert counts == {"read": 4, "kept": 4}
    assert tasks.load("books", 4, 1)[0] == rows


def test_what_cannot_be_had_or_is_no_task_data_is_said(own):
    with pytest.raises(Absent):
        tasks.load("sentfin", 1)
    with pytest.raises(StudyError, match=r"no task data 'advbench': known are scitldr, .*mbpp"):
        tasks.load("advbench", 1)


# Splitting


def a_row(number, **more):
    return {"prompt": f"Please: door {number}", "content": f"door {number}", "answer": "x"} | more


def test_a_number_of_test_rows_is_met_and_hardly_moves_when_others_come():
    rows = [a_row(i) for i in range(500)]
    train, test = split(rows, n_test=50)
    assert (len(train), len(test)) == (450, 50)
    assert not {row["content"] for row in train} & {row["content"] for row in test}
    _, more = split(rows + [a_row(i) for i in range(500, 550)], n_test=50)
    assert sum(row in test for row in more) > 35
    assert split(rows, n_test=20)[1] == [row for row in test if row in split(rows, n_test=20)[1]]


def test_the_same_text_is_never_on_both_sides():
    rows = [a_row(i % 100, content=f"{'DOOR' if i < 100 else 'door '} “{i % 100}”") for i in range(300)]
    train, test = split(rows, n_test=90)
    texts = [
        {row["content"].lower().replace("door ", "door").replace(" ", "") for row in part} for part in (train, test)
    ]
    assert not texts[0] & texts[1]
    assert len(train) + len(test) == 300
    assert len(test) % 3 == 0
    assert len(split(rows, n_test=91)[1]) == 90  # texts are not torn apart


def test_a_publishers_test_is_the_only_place_of_test_rows():
    rows = [a_row(i, split="train" if i < 50 else "dev" if i < 70 else "test") for i in range(100)]
    rows.append(a_row(99, split="train"))  # a test text, leaked
    train, test = split(rows, n_test=10)
    assert {row["split"] for row in test} == {"test"} and len(test) == 10
    assert {row["split"] for row in train} == {"train", "dev"} and len(train) == 70
    assert split(rows, n_test=30)[0] == train


@pytest.mark.parametrize(("n_test", "side"), [(2, "training"), (0, "test")])
def test_an_empty_side_is_an_error(n_test, side):
    with pytest.raises(StudyError, match=f"Of 2 rows none is left for {side}"):
        split([a_row(1), a_row(2)], n_test)

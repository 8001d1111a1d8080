import hashlib
from functools import partial

import pytest
import yaml
from test_importers import lines, paper

from studylib.data import tasks
from studylib.data.fetching import Absent
from studylib.data.tasks import IMPORTERS, split
from studylib.study.words import StudyError

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
        monkeypatch.setitem(IMPORTERS, name, partial(tasks.scitldr, name=name))
    folder = tmp_path / "hub"
    folder.mkdir()
    lines(folder / "train.jsonl", [{"fr": f"Porte {i}.", "en": f"Door {i}."} for i in range(9)])
    hub = {"name": "books", "kind": "hub", "dataset": str(folder), "revision": "0" * 40, "split": "train"}
    entries.append(common | hub | {"columns": {"french": "fr", "english": "en"}})
    monkeypatch.setitem(IMPORTERS, "books", partial(tasks.translations, name="books"))
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

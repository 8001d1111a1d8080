import hashlib
import re
from functools import partial
from pathlib import Path

import pytest
import yaml

from studylib.data import fetching
from studylib.study.words import StudyError

TEXT = b"key,text\n1,open the locker\n2,close the locker\n" * 50
SHA = hashlib.sha256(TEXT).hexdigest()
MIRROR = "someone/lists/data/list.csv"


def sources_file(folder: Path, **changes) -> Path:
    """The path of a sources file that is written with one changed entry."""
    entry = {"name": "list", "used_for": "a test", "licence": "MIT", "redistributable": True, "citation": "nobody"}
    entry |= {"url": "https://x", "mirror": MIRROR, "sha256": SHA, "bytes": len(TEXT)} | changes
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump([{key: value for key, value in entry.items() if value is not None}]))
    return path


@pytest.fixture
def own(tmp_path):
    """A function that writes a sources file with one changed entry and gives its path."""
    return partial(sources_file, tmp_path)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """No settings of the user."""
    monkeypatch.delenv("STUDY_SOURCES", raising=False)


def test_every_address_of_the_register_holds_a_commit_and_every_mirror_path_its_file_name():
    known = fetching.register()
    assert len(known) >= 25
    files = [entry for entry in known.values() if entry.kind == "file" and not entry.file]
    for entry in files:
        assert re.search(r"/[0-9a-f]{7,40}/", entry.url), entry.name
        assert entry.url.endswith(entry.mirror.split("/", 2)[2]), entry.name
    assert len({entry.mirror for entry in files}) == len(files)
    hub = [entry for entry in known.values() if entry.kind == "hub"]
    assert hub and all(entry.revision and entry.columns for entry in hub)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sha265": SHA}, "unknown key 'sha265', known are name, kind"),
        ({"licence": None}, "the key 'licence' is missing"),
        ({"bytes": "many"}, "'bytes': .* found 'many'"),
        ({"sha256": SHA[:-1]}, "'sha256'"),
        ({"gated": "yes"}, "'gated'"),
        ({"url": None}, "a file source needs url"),
        ({"mirror": "../../etc/passwd"}, "'mirror': needs a relative path"),
        ({"revision": "0" * 40}, "revision must not be set in a file source"),
        ({"kind": "hub"}, "a hub source needs dataset, split, columns"),
    ],
)
def test_a_wrong_entry_is_an_error_that_names_file_entry_and_key(own, changes, said):
    with pytest.raises(StudyError, match=rf"own\.yaml, entry 'list': .*{said}"):
        fetching.register(own(**changes))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {name: one}\n- {name: one}\n", "entry 'one': the name occurs twice"),
        ("- {nam: one}\n", "entry 1: has no `name`"),
        ("name: one\n", "is not a list of entries"),
        ("", "is not a list of entries"),
        ("- name: [\n", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_list_of_named_entries_is_an_error(tmp_path, text, said):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(StudyError, match=said):
        fetching.register(path)


def test_an_own_file_adds_and_completes_but_changes_nothing_that_is_pinned(tmp_path, monkeypatch):
    path = tmp_path / "own.yaml"
    path.write_text(f"- name: xstest_gpt4\n  sha256: {SHA}\n  bytes: 7\n")
    monkeypatch.setenv("STUDY_SOURCES", str(path))
    assert (fetching.source("xstest_gpt4").sha256, fetching.source("xstest_gpt4").licence) == (SHA, "CC BY 4.0")
    path.write_text(f"- name: mbpp\n  sha256: {SHA}\n")
    with pytest.raises(StudyError, match=r"entry 'mbpp': sha256 is 'ccf64.* cannot become"):
        fetching.register()
    path.unlink()
    with pytest.raises(StudyError, match=r"no sources file .*own\.yaml: correct STUDY_SOURCES"):
        fetching.register()

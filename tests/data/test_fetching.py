import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from studylib.data import fetching
from studylib.data.fetching import Absent
from studylib.study.words import StudyError

TEXT = b"key,text\n1,open the locker\n2,close the locker\n" * 50
SHA = hashlib.sha256(TEXT).hexdigest()
MIRROR = "someone/lists/data/list.csv"
ENTRY = {"used_for": "a test", "licence": "MIT", "redistributable": True, "citation": "nobody (2024)"}
HUB = ENTRY | {"kind": "hub"}
HUB |= {"split": "train", "revision": "0" * 40}


class Server:
    """A web server on this machine; `answers` are played one after the other, the last again and again."""

    def __init__(self):
        self.answers, self.asked = [("whole", TEXT)], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path)
                kind, body = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                self.send_response(kind if isinstance(kind, int) else 200)
                if kind != "unannounced":
                    self.send_header("Content-Length", str(len(TEXT) if kind == "cut" else len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/0123456/list.csv"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def server():
    one = Server()
    yield one
    one.http.shutdown()
    one.http.server_close()


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """A cache of its own, no settings of the user, and no waiting between two attempts; the list of waits."""
    for name in ("STUDY_MIRROR", "STUDY_OFFLINE", "STUDY_SOURCES", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    waits = []
    monkeypatch.setattr("pooch.core.time.sleep", waits.append)
    return waits


@pytest.fixture
def register(tmp_path, monkeypatch):
    """A function that makes a text, or a list of entries, the user's own register, and gives its path."""

    def write(content: str | list) -> Path:
        path = tmp_path / "own.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        monkeypatch.setenv("STUDY_SOURCES", str(path))
        return path

    return write


@pytest.fixture
def own(register, server):
    """A function that registers the file of the server with changes to its entry, and gives its name."""

    def write(**changes) -> str:
        entry = {"name": "list", "url": server.url, "mirror": MIRROR, "sha256": SHA, "bytes": len(TEXT)} | ENTRY
        register([{key: value for key, value in (entry | changes).items() if value is not None}])
        return "list"

    return write


def put(folder: Path, raw: bytes = TEXT) -> Path:
    path = folder / MIRROR
    path.parent.mkdir(parents=True)
    path.write_bytes(raw)
    return path


def rests(tmp_path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


# The register


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
        ({"sha265": SHA}, "unknown key 'sha265', known here are name, kind"),
        ({"licence": None}, "the key 'licence' is missing"),
        ({"bytes": "many"}, "'bytes': .* found 'many'"),
        ({"sha256": SHA[:-1]}, "'sha256'"),
        ({"gated": "yes"}, "'gated'"),
        ({"url": None}, "a file source needs url"),
        ({"mirror": "../../etc/passwd"}, "'mirror': needs a relative path"),
        ({"kind": "hub"}, "a hub source needs dataset, split, columns"),
    ],
)
def test_a_wrong_entry_is_an_error_that_names_file_entry_and_key(own, changes, said):
    own(**changes)
    with pytest.raises(StudyError, match=rf"own\.yaml, entry 'list': .*{said}"):
        fetching.register()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {name: one}\n- {name: one}\n", "a `name` that occurs twice"),
        ("- {nam: one}\n", "is not a list of entries"),
        ("name: one\n", "is not a list of entries"),
        ("", "is not a list of entries"),
        ("- name: [\n", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_list_of_named_entries_is_an_error(register, text, said):
    register(text)
    with pytest.raises(StudyError, match=said):
        fetching.register()


def test_an_own_file_adds_and_completes_but_changes_nothing_that_is_pinned(register):
    register(f"- name: xstest_gpt4\n  sha256: {SHA}\n  bytes: 7\n")
    assert (fetching.source("xstest_gpt4").sha256, fetching.source("xstest_gpt4").licence) == (SHA, "CC BY 4.0")
    path = register(f"- name: mbpp\n  sha256: {SHA}\n")
    with pytest.raises(StudyError, match=r"entry 'mbpp': sha256 is 'ccf64.* cannot become"):
        fetching.register()
    path.unlink()
    with pytest.raises(StudyError, match=r"no sources file .*own\.yaml: correct STUDY_SOURCES"):
        fetching.register()


# Files


def test_the_file_in_the_repository_is_the_one_that_was_pinned():
    assert fetching.fetch("gemma_answered_counts").name == "gemma_answered_counts.csv"


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(StudyError, match=r"no source 'mppb': known are gemma_answered_counts, .*mbpp"):
        fetching.fetch("mppb")


def test_a_file_is_downloaded_once_and_can_be_read_by_others(own, server, tmp_path):
    path = fetching.fetch(own())
    assert path == tmp_path / "cache" / MIRROR
    assert path.read_bytes() == TEXT
    assert path.stat().st_mode & 0o444 == 0o444
    assert fetching.fetch(own()) == path
    assert server.asked == ["/0123456/list.csv"]
    assert rests(tmp_path) == [path]


def test_the_mirror_comes_first_and_what_it_lacks_comes_from_the_network(own, server, tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_MIRROR", str(tmp_path / "mirror"))
    assert fetching.fetch(own()).is_relative_to(tmp_path / "cache")
    mirrored = put(tmp_path / "mirror")
    assert fetching.fetch(own()) == mirrored
    assert len(server.asked) == 1


def test_offline_takes_what_is_there_and_asks_no_one(own, server, tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_OFFLINE", "1")
    with pytest.raises(
        Absent, match=r"'list' is not available: STUDY_OFFLINE is set; put the file of http.*cache/someone"
    ) as caught:
        fetching.fetch(own())
    assert caught.value.reason.startswith("STUDY_OFFLINE is set")
    cached = put(tmp_path / "cache")
    assert fetching.fetch(own()) == cached
    assert not server.asked


@pytest.mark.parametrize("raw", [TEXT[:-200], b"", TEXT.replace(b"\n", b"\r\n"), TEXT.replace(b"open", b"oqen")])
def test_a_wrong_hash_names_expected_found_file_and_remedy(own, server, tmp_path, monkeypatch, raw):
    monkeypatch.setenv("STUDY_MIRROR", str(tmp_path / "mirror"))
    path = put(tmp_path / "mirror", raw)
    with pytest.raises(StudyError) as caught:
        fetching.fetch(own())
    assert not isinstance(caught.value, Absent)
    found = hashlib.sha256(raw).hexdigest()
    size = f"{path} ({len(raw)} of {len(TEXT)} bytes)"
    for part in ["'list'", size, f"{found} instead of {SHA}", f"put the file of {server.url} there, byte for byte"]:
        assert part in str(caught.value)


def test_a_transfer_that_breaks_off_is_repeated(own, server, tmp_path, surroundings):
    server.answers = [("cut", TEXT[:100]), ("unannounced", TEXT[:100]), ("whole", TEXT)]
    path = fetching.fetch(own())
    assert path.read_bytes() == TEXT
    assert len(server.asked) == 3
    assert rests(tmp_path) == [path]
    assert surroundings == [1, 2]


def test_a_transfer_that_always_breaks_off_leaves_nothing(own, server, tmp_path):
    server.answers = [("cut", TEXT[:100])]
    with pytest.raises(Absent, match=r"cannot be reached .*broken"):
        fetching.fetch(own())
    server.answers = [("unannounced", TEXT[:100])]
    with pytest.raises(StudyError, match=r"does not match the known hash.* Try again later, put the right file at"):
        fetching.fetch(own())
    assert len(server.asked) == 6
    assert rests(tmp_path) == []


def test_an_error_page_in_place_of_the_file_is_not_kept(own, server, tmp_path):
    server.answers = [("whole", b"<html>log in first</html>")]
    with pytest.raises(StudyError, match=f"'list', from {server.url}: SHA256 hash .* does not match"):
        fetching.fetch(own())
    assert rests(tmp_path) == []


def test_a_file_that_is_gone_is_absent_and_a_busy_server_is_asked_again(own, server):
    server.answers = [(404, b"gone")]
    with pytest.raises(Absent, match=r"cannot be reached .*404"):
        fetching.fetch(own())
    server.answers = [(503, b"busy"), (429, b"slowly"), ("whole", TEXT)]
    assert fetching.fetch(own()).read_bytes() == TEXT


def test_a_server_that_is_not_there_makes_the_file_absent(own, server):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(Absent, match="cannot be reached"):
        fetching.fetch(own())


def test_a_broken_file_in_the_cache_is_downloaded_again_or_named_offline(own, tmp_path, monkeypatch):
    path = put(tmp_path / "cache", TEXT[:-1])
    monkeypatch.setenv("STUDY_OFFLINE", "1")
    with pytest.raises(StudyError, match=r"; put the file of http.* there, byte for byte"):
        fetching.fetch(own())
    assert path.read_bytes() == TEXT[:-1]
    monkeypatch.setenv("STUDY_OFFLINE", "0")
    assert fetching.fetch(own()) == path
    assert path.read_bytes() == TEXT


def test_a_gated_file_is_asked_of_the_user_and_used_where_he_put_it(own, server, tmp_path):
    with pytest.raises(
        Absent, match=f"it is gated, ask for access at {server.url} and put the file at .*cache/someone"
    ):
        fetching.fetch(own(gated=True))
    put(tmp_path / "cache")
    assert fetching.fetch(own(gated=True)).read_bytes() == TEXT
    assert not server.asked


def test_a_file_without_a_hash_is_refused_with_how_to_pin_it(own, server, tmp_path):
    put(tmp_path / "cache")
    with pytest.raises(StudyError, match=r"no sha256.*put the file of http.* at .*cache/someone.* with its `sha256`"):
        fetching.fetch(own(sha256=None, bytes=None))
    assert fetching.fetch(own()).read_bytes() == TEXT
    assert not server.asked


def test_a_cache_that_cannot_be_written_is_named(own, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("a file, no folder")
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "taken"))
    with pytest.raises(StudyError, match=r"taken.*name another folder by STUDY_CACHE"):
        fetching.fetch(own())


# Data sets of the hub


@pytest.fixture
def hub(register, tmp_path):
    """A function that registers a hub data set, 30 rows by default, and gives its name."""
    folder = tmp_path / "books"
    folder.mkdir()
    rows = [{"id": i, "translation": {"en": f"door {i}", "fr": f"porte {i}"}} for i in range(30)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(**changes) -> str:
        columns = {"french": "translation.fr", "english": "translation.en"}
        register([{"name": "books", "dataset": str(folder), "columns": columns} | HUB | changes])
        return "books"

    return write


def test_rows_of_the_hub_come_by_role_in_an_order_that_the_seed_decides(hub):
    rows = fetching.hub_rows(hub(), 10, 0)
    assert len({row["english"] for row in rows}) == 10
    assert all(row["french"] == row["english"].replace("door", "porte") and len(row) == 2 for row in rows)
    assert fetching.hub_rows(hub(), 10, 0) == rows
    assert fetching.hub_rows(hub(), 10, 1) != rows
    everything = fetching.hub_rows(hub(), 99, 0)
    assert sorted(row["english"] for row in everything) == sorted(f"door {i}" for i in range(30))


def test_a_hub_data_set_without_a_revision_is_refused(hub):
    with pytest.raises(
        StudyError, match=r"no revision is pinned; take the commit from https://huggingface.co"
    ) as caught:
        fetching.hub_rows(hub(dataset="someone/books", revision=None), 1, 0)
    assert not isinstance(caught.value, Absent)


def test_a_gated_hub_data_set_says_where_to_ask_and_what_to_set(hub):
    with pytest.raises(
        Absent, match=r"ask for access at https://huggingface.co/datasets/someone/books and set HF_TOKEN"
    ):
        fetching.hub_rows(hub(dataset="someone/books", gated=True), 1, 0)


def test_a_hub_data_set_is_absent_offline(hub, monkeypatch):
    monkeypatch.setenv("STUDY_OFFLINE", "1")
    with pytest.raises(Absent, match="STUDY_OFFLINE or HF_HUB_OFFLINE is set"):
        fetching.hub_rows(hub(dataset="someone/books"), 1, 0)


def test_a_hub_data_set_that_cannot_be_reached_is_absent(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # our own check, while the library stays offline
    with pytest.raises(Absent, match=r"https://huggingface.co/datasets/someone/books cannot be read"):
        fetching.hub_rows(hub(dataset="someone/books"), 1, 0)


def test_a_column_that_is_not_there_is_named(hub):
    with pytest.raises(StudyError, match=r"has no column 'translation\.de', it has id, translation"):
        fetching.hub_rows(hub(columns={"german": "translation.de"}), 1, 0)


def test_a_split_that_is_not_there_is_named(hub):
    with pytest.raises(StudyError, match=r"cannot be used as registered: .*'?nope"):
        fetching.hub_rows(hub(split="nope"), 1, 0)


def test_files_and_hub_data_sets_are_not_mistaken_for_each_other(own, hub):
    with pytest.raises(StudyError, match="is no file, but of the kind hub"):
        fetching.fetch(hub())
    with pytest.raises(StudyError, match="is no data set of the hub, but of the kind file"):
        fetching.hub_rows(own(), 1, 0)


# What is there


def test_the_report_says_what_is_there_and_downloads_nothing(own, server, tmp_path, monkeypatch):
    def state(**changes):
        return fetching.fetching_report([own(**changes)])["state"].item()

    assert state() == "not there: to be downloaded"
    assert state(sha256=None) == "not there: no sha256 is pinned"
    assert state(gated=True).startswith("not there: it is gated, ask for access at")
    cached = put(tmp_path / "cache")
    assert state() == "intact"
    cached.write_bytes(TEXT[:-1])
    assert state() == "not intact"
    monkeypatch.setenv("STUDY_MIRROR", str(tmp_path / "mirror"))
    put(tmp_path / "mirror")
    assert state() == "intact"
    cached.unlink()
    monkeypatch.delenv("STUDY_MIRROR")
    monkeypatch.setenv("STUDY_OFFLINE", "1")
    assert state().startswith("not there: STUDY_OFFLINE is set")
    assert not server.asked


def test_the_report_has_every_source_and_what_one_may_do_with_it(hub):
    hub(revision=None)
    table = fetching.fetching_report(fetching.register()).set_index("name")
    assert list(table.index) == list(fetching.register())
    assert table.loc["gemma_answered_counts", "state"] == "intact"
    assert table.loc["multitaskbench", ["redistributable", "bytes", "rows"]].tolist() == [False, 2427457, 2000]
    assert table["rows"].isna().any()
    assert table.loc["books", "state"].startswith("not there: no revision is pinned")
    with pytest.raises(StudyError, match="no source 'mppb'"):
        fetching.fetching_report(["mppb"])

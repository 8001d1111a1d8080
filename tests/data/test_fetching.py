import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from test_sources import MIRROR, SHA, TEXT, sources_file

from studylib.data import fetching
from studylib.data.fetching import Absent
from studylib.study.words import StudyError

HUB = {"used_for": "a test", "licence": "MIT", "redistributable": True, "citation": "nobody (2024)", "kind": "hub"}
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
def own(tmp_path, server):
    """A function that writes a sources file with one changed entry, whose file the server has, and gives its path."""
    return lambda **changes: sources_file(tmp_path, **{"url": server.url} | changes)


def put(folder: Path, raw: bytes = TEXT) -> Path:
    path = folder / MIRROR
    path.parent.mkdir(parents=True)
    path.write_bytes(raw)
    return path


def rests(tmp_path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


# Files


def test_the_file_in_the_repository_is_the_one_that_was_pinned():
    assert fetching.fetch("gemma_answered_counts").name == "gemma_answered_counts.csv"


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(StudyError, match=r"no source 'mppb': known are gemma_answered_counts, .*mbpp"):
        fetching.fetch("mppb")


def test_a_file_is_downloaded_once_and_can_be_read_by_others(own, server, tmp_path):
    path = fetching.fetch("list", own())
    assert path == tmp_path / "cache" / MIRROR
    assert path.read_bytes() == TEXT
    assert path.stat().st_mode & 0o444 == 0o444
    assert fetching.fetch("list", own()) == path
    assert server.asked == ["/0123456/list.csv"]
    assert rests(tmp_path) == [path]


def test_the_mirror_comes_first_and_what_it_lacks_comes_from_the_network(own, server, tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_MIRROR", str(tmp_path / "mirror"))
    assert fetching.fetch("list", own()).is_relative_to(tmp_path / "cache")
    mirrored = put(tmp_path / "mirror")
    assert fetching.fetch("list", own()) == mirrored
    assert len(server.asked) == 1


def test_offline_takes_what_is_there_and_asks_no_one(own, server, tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_OFFLINE", "1")
    with pytest.raises(
        Absent, match=r"'list' is not available: STUDY_OFFLINE is set; put the file of http.*cache/someone"
    ) as caught:
        fetching.fetch("list", own())
    assert caught.value.reason.startswith("STUDY_OFFLINE is set")
    cached = put(tmp_path / "cache")
    assert fetching.fetch("list", own()) == cached
    assert not server.asked


@pytest.mark.parametrize("raw", [TEXT[:-200], b"", TEXT.replace(b"\n", b"\r\n"), TEXT.replace(b"open", b"oqen")])
def test_a_wrong_hash_names_expected_found_file_and_remedy(own, server, tmp_path, monkeypatch, raw):
    monkeypatch.setenv("STUDY_MIRROR", str(tmp_path / "mirror"))
    path = put(tmp_path / "mirror", raw)
    with pytest.raises(StudyError) as caught:
        fetching.fetch("list", own())
    assert not isinstance(caught.value, Absent)
    found = hashlib.sha256(raw).hexdigest()
    size = f"{path} ({len(raw)} of {len(TEXT)} bytes)"
    for part in ["'list'", size, f"{found} instead of {SHA}", f"put the file of {server.url} there, byte for byte"]:
        assert part in str(caught.value)


def test_a_transfer_that_breaks_off_is_repeated(own, server, tmp_path, surroundings):
    server.answers = [("cut", TEXT[:100]), ("unannounced", TEXT[:100]), ("whole", TEXT)]
    path = fetching.fetch("list", own())
    assert path.read_bytes() == TEXT
    assert len(server.asked) == 3
    assert rests(tmp_path) == [path]
    assert surroundings == [1, 2]


def test_a_transfer_that_always_breaks_off_leaves_nothing(own, server, tmp_path):
    server.answers = [("cut", TEXT[:100])]
    with pytest.raises(Absent, match=r"cannot be reached .*broken"):
        fetching.fetch("list", own())
    server.answers = [("unannounced", TEXT[:100])]
    with pytest.raises(StudyError, match=r"does not match the known hash.* Try again later, or put the right file at"):
        fetching.fetch("list", own())
    assert len(server.asked) == 6
    assert rests(tmp_path) == []


def test_an_error_page_in_place_of_the_file_is_not_kept(own, server, tmp_path):
    server.answers = [("whole", b"<html>log in first</html>")]
    with pytest.raises(StudyError, match=f"'list', from {server.url}: SHA256 hash .* does not match"):
        fetching.fetch("list", own())
    assert rests(tmp_path) == []


def test_a_file_that_is_gone_is_absent_and_a_busy_server_is_asked_again(own, server):
    server.answers = [(404, b"gone")]
    with pytest.raises(Absent, match=r"cannot be reached .*404"):
        fetching.fetch("list", own())
    server.answers = [(503, b"busy"), (429, b"slowly"), ("whole", TEXT)]
    assert fetching.fetch("list", own()).read_bytes() == TEXT


def test_a_server_that_is_not_there_makes_the_file_absent(own, server):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(Absent, match="cannot be reached"):
        fetching.fetch("list", own())


def test_a_broken_file_in_the_cache_is_downloaded_again_or_named_offline(own, tmp_path, monkeypatch):
    path = put(tmp_path / "cache", TEXT[:-1])
    monkeypatch.setenv("STUDY_OFFLINE", "1")
    with pytest.raises(StudyError, match=r"; delete it and fetch it again with a network"):
        fetching.fetch("list", own())
    assert path.read_bytes() == TEXT[:-1]
    monkeypatch.setenv("STUDY_OFFLINE", "0")
    assert fetching.fetch("list", own()) == path
    assert path.read_bytes() == TEXT


def test_a_gated_file_is_asked_of_the_user_and_used_where_he_put_it(own, server, tmp_path):
    with pytest.raises(
        Absent, match=f"it is gated, ask for access at {server.url} and put the file at .*cache/someone"
    ):
        fetching.fetch("list", own(gated=True))
    put(tmp_path / "cache")
    assert fetching.fetch("list", own(gated=True)).read_bytes() == TEXT
    assert not server.asked


def test_a_file_without_a_hash_is_refused_until_its_hash_is_entered(own, server, tmp_path):
    with pytest.raises(StudyError, match=r"no sha256.*put the file of http.* at .*cache/someone.* and ask again"):
        fetching.fetch("list", own(sha256=None, bytes=None))
    put(tmp_path / "cache")
    with pytest.raises(StudyError) as caught:
        fetching.fetch("list", own(sha256=None, bytes=None))
    entered = dict(re.findall(r"`(sha256|bytes): (\w+)`", str(caught.value)))
    assert entered == {"sha256": SHA, "bytes": str(len(TEXT))}
    assert fetching.fetch("list", own(sha256=entered["sha256"], bytes=int(entered["bytes"]))).read_bytes() == TEXT
    assert not server.asked


def test_a_cache_that_cannot_be_written_is_named(own, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("a file, no folder")
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "taken"))
    with pytest.raises(StudyError, match=r"cannot be kept in .*taken .*STUDY_CACHE"):
        fetching.fetch("list", own())


# Data sets of the hub


@pytest.fixture
def hub(tmp_path):
    """A function that writes a sources file with one hub data set, 30 rows by default, and gives its path."""
    folder = tmp_path / "books"
    folder.mkdir()
    rows = [{"id": i, "translation": {"en": f"door {i}", "fr": f"porte {i}"}} for i in range(30)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(**changes) -> Path:
        columns = {"french": "translation.fr", "english": "translation.en"}
        entry = {"name": "books", "dataset": str(folder), "columns": columns} | HUB | changes
        path = tmp_path / "own.yaml"
        path.write_text(yaml.safe_dump([entry]))
        return path

    return write


def test_rows_of_the_hub_come_by_role_in_an_order_that_the_seed_decides(hub):
    rows = fetching.hub_rows("books", 10, 0, hub())
    assert len({row["english"] for row in rows}) == 10
    assert all(row["french"] == row["english"].replace("door", "porte") and len(row) == 2 for row in rows)
    assert fetching.hub_rows("books", 10, 0, hub()) == rows
    assert fetching.hub_rows("books", 10, 1, hub()) != rows
    everything = fetching.hub_rows("books", 99, 0, hub())
    assert sorted(row["english"] for row in everything) == sorted(f"door {i}" for i in range(30))


def test_a_hub_data_set_without_a_revision_is_refused(hub):
    with pytest.raises(
        StudyError, match=r"no revision is pinned; take the commit from https://huggingface.co"
    ) as caught:
        fetching.hub_rows("books", 1, 0, hub(dataset="someone/books", revision=None))
    assert not isinstance(caught.value, Absent)


def test_a_gated_hub_data_set_says_where_to_ask_and_what_to_set(hub):
    with pytest.raises(
        Absent, match=r"ask for access at https://huggingface.co/datasets/someone/books and set HF_TOKEN"
    ):
        fetching.hub_rows("books", 1, 0, hub(dataset="someone/books", gated=True))


def test_a_hub_data_set_is_absent_offline(hub, monkeypatch):
    monkeypatch.setenv("STUDY_OFFLINE", "1")
    with pytest.raises(Absent, match="STUDY_OFFLINE or HF_HUB_OFFLINE is set"):
        fetching.hub_rows("books", 1, 0, hub(dataset="someone/books"))


def test_a_hub_data_set_that_cannot_be_reached_is_absent(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # our own check, while the library stays offline
    with pytest.raises(Absent, match=r"https://huggingface.co/datasets/someone/books cannot be read"):
        fetching.hub_rows("books", 1, 0, hub(dataset="someone/books"))


def test_a_column_that_is_not_there_is_named(hub):
    with pytest.raises(StudyError, match=r"has no column 'translation\.de', it has id, translation"):
        fetching.hub_rows("books", 1, 0, hub(columns={"german": "translation.de"}))


def test_a_split_that_is_not_there_is_named(hub):
    with pytest.raises(StudyError, match=r"cannot be used as registered: .*'?nope"):
        fetching.hub_rows("books", 1, 0, hub(split="nope"))


def test_files_and_hub_data_sets_are_not_mistaken_for_each_other(own, hub):
    with pytest.raises(StudyError, match="its rows come from hub_rows"):
        fetching.fetch("books", hub())
    with pytest.raises(StudyError, match="its path comes from fetch"):
        fetching.hub_rows("list", 1, 0, own())


# What is there


def test_the_report_says_what_is_there_and_downloads_nothing(own, server, tmp_path, monkeypatch):
    def state(**changes):
        return fetching.fetching_report(["list"], own(**changes))["state"].item()

    assert state() == "not there: to be downloaded"
    assert state(sha256=None) == "not there: no sha256 is pinned"
    assert state(gated=True).startswith("not there: it is gated, ask for access at")
    cached = put(tmp_path / "cache")
    assert state() == "intact (cache)"
    assert state(sha256=None) == f"not there: no sha256 is pinned (the file in the cache has {SHA})"
    cached.write_bytes(TEXT[:-1])
    assert state().startswith(f"not intact (cache): {len(TEXT) - 1} of {len(TEXT)} bytes")
    monkeypatch.setenv("STUDY_MIRROR", str(tmp_path / "mirror"))
    put(tmp_path / "mirror")
    assert state() == "intact (mirror)"
    cached.unlink()
    monkeypatch.delenv("STUDY_MIRROR")
    monkeypatch.setenv("STUDY_OFFLINE", "1")
    assert state().startswith("not there: STUDY_OFFLINE is set")
    assert not server.asked


def test_the_report_has_every_source_and_what_one_may_do_with_it(hub):
    table = fetching.fetching_report(sources=hub(revision=None)).set_index("name")
    assert list(table.index) == list(fetching.register(hub()))
    assert table.loc["gemma_answered_counts", "state"] == "intact (repository)"
    assert table.loc["multitaskbench", ["redistributable", "bytes", "rows"]].tolist() == [False, 2427457, 2000]
    assert table["rows"].isna().any()
    assert table.loc["books", "state"].startswith("not there: no revision is pinned")
    with pytest.raises(StudyError, match="no source 'mppb'"):
        fetching.fetching_report(["mppb"])

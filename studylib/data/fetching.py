"""Files, hub data sets and models from elsewhere: their register, with a hash or a revision each, and how to get them.

The register is `data/sources.yaml`, completed by a sources file of one's own (an argument, or named by STUDY_SOURCES).
A file is looked for in the repository, in a mirror (STUDY_MIRROR), in the cache (STUDY_CACHE, else the user's cache
folder), and then on the network, unless STUDY_OFFLINE=1. A file with another hash is never used.
"""

import hashlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import pandas as pd
from pydantic import Field, ValidationError, field_validator, model_validator
from tqdm import tqdm

from studylib.study.files import read_yaml
from studylib.study.paths import DATA, ROOT
from studylib.study.profile import Count, Name, Settings
from studylib.study.words import StudyError

LOG = logging.getLogger("studylib")
RETRIES = 2  # after a broken transfer, waiting 1 s, then 2 s
TIMEOUT = 60  # seconds without an answer, or between two pieces of a file
BUFFER = 10_000  # rows of a hub data set among which the next is drawn
EVERY = 10  # seconds before a bar of progress shows, and between two of its updates
KEYS = {
    "file": ("file", "url", "commit", "mirror", "sha256", "bytes"),
    "hub": ("dataset", "config", "split", "columns", "revision"),
    "model": ("model", "revision"),
}
NEEDED = {"file": ("url", "mirror"), "hub": ("dataset", "split", "columns"), "model": ("model",)}


class Absent(StudyError):
    """A source that is not available here (gated, offline, unreachable); `reason` says why."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"The source {name!r} is not available: {reason}.")
        self.reason = reason


# The register


class Source(Settings):
    """One entry of the register: a file (in the repository, or at a url), or a data set or a model of the hub."""

    name: Name
    kind: Literal["file", "hub", "model"] = "file"
    used_for: str
    licence: str
    redistributable: bool  # may anyone pass it on, if with conditions?
    gated: bool = False  # must one ask for access?
    citation: str
    rows: Count | None = None
    # a file
    file: str | None = None  # its path in the repository
    url: str | None = None
    commit: str | None = None  # of a file in the repository, where its facts are from
    mirror: str | None = None  # its path in a mirror and in the cache, <owner>/<repo>/<path>
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None  # None: refused until somebody pins it
    bytes: Count | None = None
    # a data set of the hub
    dataset: str | None = None  # its id, or the path of a local folder
    config: str | None = None
    split: str | None = None
    columns: dict[str, str] | None = None  # role: column, with a dot for what is nested, as in translation.fr
    # a model of the hub, which transformers loads
    model: str | None = None  # its id
    # a data set or a model
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None  # None: refused until somebody pins it

    @field_validator("file", "mirror")
    @classmethod
    def _stays_inside(cls, path: str | None) -> str | None:
        if path and (PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts):
            raise ValueError("needs a relative path without `..`")
        return path

    @model_validator(mode="after")
    def _keys_fit_the_kind(self):
        if missing := [key for key in NEEDED[self.kind] if getattr(self, key) is None and not self.file]:
            raise ValueError(f"a {self.kind} source needs {', '.join(missing)}")
        foreign = {key for keys in KEYS.values() for key in keys} - set(KEYS[self.kind])
        if wrong := [key for key in type(self).model_fields if key in foreign and getattr(self, key) is not None]:
            raise ValueError(f"{', '.join(wrong)} must not be set in a {self.kind} source")
        return self


def register(extra: Path | None = None) -> dict[str, Source]:
    """All sources by name: those of `data/sources.yaml`, completed by the entries of `extra`, else of STUDY_SOURCES.

    An entry there with a new name adds a source; one with a known name fills in what is null or missing, and nothing
    else. Raises StudyError that names file and entry for an unknown or missing key, a wrong value, a name that occurs
    twice, and another value of what is pinned.
    """
    shipped = DATA / "sources.yaml"
    known = _entries(shipped)
    places = dict.fromkeys(known, shipped.name)
    if own := extra or os.environ.get("STUDY_SOURCES"):
        own = Path(own).expanduser()
        if not own.is_file():
            raise StudyError(f"There is no sources file {own}: correct STUDY_SOURCES or the argument, or unset it.")
        for name, entry in _entries(own).items():
            before = known.get(name, {})
            if changed := [key for key, value in entry.items() if before.get(key) not in (None, value)]:
                key = changed[0]
                raise StudyError(
                    f"{own}, entry {name!r}: {key} is {before[key]!r} in {shipped.name} and cannot become "
                    f"{entry[key]!r}; give the entry another name."
                )
            known[name], places[name] = before | entry, str(own)
    return {name: _checked(entry, places[name]) for name, entry in known.items()}


def _entries(path: Path) -> dict[str, dict]:
    content = read_yaml(path)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise StudyError(
            f"{path} is not a list of entries that each begin with `- name: ...`, as in data/sources.yaml."
        )
    entries = {}
    for number, entry in enumerate(content, 1):
        name = entry.get("name")
        if not isinstance(name, str):
            raise StudyError(f"{path}, entry {number}: has no `name`.")
        if name in entries:
            raise StudyError(f"{path}, entry {name!r}: the name occurs twice; rename or remove one.")
        entries[name] = entry
    return entries


def _checked(entry: dict, place: str) -> Source:
    try:
        return Source.model_validate(entry)
    except ValidationError as error:
        problems = []
        for one in error.errors():
            key, said = ".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, ")
            wrong = f"{key!r}: {said}, found {one['input']!r}" if key else said
            known = {
                "extra_forbidden": f"unknown key {key!r}, known are {', '.join(Source.model_fields)}",
                "missing": f"the key {key!r} is missing",
            }
            problems.append(known.get(one["type"], wrong))
        raise StudyError(f"{place}, entry {entry['name']!r}: {'; '.join(problems)}.") from None


def source(name: str, sources: Path | None = None) -> Source:
    """The entry of that name, with `sources` as the register's `extra`. Raises StudyError that names the known ones."""
    known = register(sources)
    if name not in known:
        raise StudyError(f"There is no source {name!r}: known are {', '.join(known)}.")
    return known[name]


# Files


def fetch(name: str, sources: Path | None = None) -> Path:
    """The path of the source's file with the pinned sha256, downloaded into the cache where it is nowhere yet.

    The first of repository, mirror and cache that has the file decides; a damaged one in the cache is downloaded again.
    Pooch repeats a transfer that breaks off or brings another file, and moves it into place only with the right hash.
    Raises Absent where the file is gated, offline or unreachable. Raises StudyError where the name is unknown or no
    file, where no sha256 is pinned (saying how to pin it), and where the file has another hash.
    """
    entry = source(name, sources)
    if entry.kind != "file":
        what = "data set of the hub, not a file: its rows come from hub_rows" if entry.kind == "hub" else "model"
        raise StudyError(f"The source {name!r} is a {what}.")
    place, path = _local(entry)
    if not entry.sha256:
        raise StudyError(_how_to_pin(entry, path))
    if path and (found := _sha256(path)) == entry.sha256:
        return path
    reason = _unavailable(entry)
    if path and (reason or place != "cache"):
        remedy = {
            "repository": f"restore it (`git checkout -- {entry.file}`)",
            "mirror": f"put the file of {entry.url} there, byte for byte, or unset STUDY_MIRROR",
            "cache": "delete it and fetch it again with a network",
        }[place]
        raise StudyError(
            f"The source {name!r}: {path} ({_size(entry, path)}) has the sha256 {found} instead of {entry.sha256}; "
            f"{remedy}."
        )
    if reason:
        raise Absent(name, reason)
    return _download(entry)


def cache_folder() -> Path:
    """The folder of downloads, laid out like a mirror: what STUDY_CACHE names, else one in the user's cache folder."""
    import pooch

    return Path(os.environ.get("STUDY_CACHE") or pooch.os_cache("multitask-mayhem")).expanduser().resolve()


def _set(*names: str) -> bool:
    return any(os.environ.get(name, "") not in ("", "0") for name in names)


def _local(entry: Source) -> tuple[str, Path | None]:
    """Where the file is and its path, ("", None) where it is nowhere; its bytes are not looked at."""
    if entry.file:
        places = {"repository": ROOT / entry.file}
    else:
        mirror = os.environ.get("STUDY_MIRROR")
        places = {"mirror": Path(mirror).expanduser() / entry.mirror} if mirror else {}
        places["cache"] = cache_folder() / entry.mirror
    return next(((place, path) for place, path in places.items() if path.is_file()), ("", None))


def _unavailable(entry: Source) -> str | None:
    """Why the file cannot be downloaded, None where it can be tried."""
    if entry.file:
        return f"{entry.file} is missing in the repository, restore it (`git checkout -- {entry.file}`)"
    cached = cache_folder() / entry.mirror
    if entry.gated:
        return f"it is gated, ask for access at {entry.url} and put the file at {cached}"
    if _set("STUDY_OFFLINE"):
        return f"STUDY_OFFLINE is set; put the file of {entry.url} at {cached}, or unset it"
    return None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(entry: Source, path: Path) -> str:
    return f"{path.stat().st_size}{f' of {entry.bytes}' if entry.bytes else ''} bytes"


def _how_to_pin(entry: Source, path: Path | None) -> str:
    if path:
        cure = (
            f"if {path} is the file that you mean, enter `- name: {entry.name}` with `sha256: {_sha256(path)}` and "
            f"`bytes: {path.stat().st_size}`"
        )
    else:
        cure = (
            f"put the file of {entry.url} at {cache_folder() / entry.mirror} and ask again, the message then has the "
            "sha256 to enter"
        )
    return (
        f"The source {entry.name!r} has no sha256, and a file of unknown hash is never used: {cure} in a sources file "
        "of your own (a YAML like data/sources.yaml, named by STUDY_SOURCES)."
    )


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _download(entry: Source) -> Path:
    """The file in the cache, moved there when its transfer was found intact."""
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    folder = cache_folder()
    size = entry.bytes or 1  # pooch asks for the truth of the bar, which has none without a total
    bar = tqdm(desc=entry.name, total=size, unit="B", unit_scale=True, mininterval=EVERY, delay=EVERY)
    keeper = pooch.create(
        path=folder,
        base_url="",
        registry={entry.mirror: f"sha256:{entry.sha256}"},
        urls={entry.mirror: entry.url},
        retry_if_failed=RETRIES,
    )
    try:
        transfer = pooch.HTTPDownloader(progressbar=bar, chunk_size=2**16, timeout=TIMEOUT)
        path = Path(keeper.fetch(entry.mirror, downloader=transfer))
        path.chmod(0o644)  # pooch's temporary file is for its owner alone
    except ValueError as error:
        raise StudyError(
            f"The source {entry.name!r}, from {entry.url}: {error} Try again later, or put the right file at "
            f"{folder / entry.mirror}."
        ) from None
    except requests.RequestException as error:
        raise Absent(entry.name, f"{entry.url} cannot be reached ({_reason(error)})") from None
    except OSError as error:
        raise StudyError(
            f"The source {entry.name!r} cannot be kept in {folder} ({error}): make room there, or name another "
            "folder by STUDY_CACHE."
        ) from None
    return path


# Data sets of the hub


def hub_rows(name: str, n: int, seed: int, sources: Path | None = None) -> list[dict]:
    """`n` rows of a hub data set in random order, all where it has fewer: dicts by the roles of the entry's `columns`.

    Streamed at the pinned revision, without remote code. Each row is drawn among the next BUFFER rows of files in
    random order, so that far less than the whole comes over the network; the same seed draws the same rows (with the
    same release of `datasets`). HF_TOKEN is read from the environment.
    Raises Absent where the data set is gated, offline or unreachable. Raises StudyError for a source that is no hub
    data set, without a pinned revision (saying how to pin it), or whose split or a column does not exist.
    """
    entry = source(name, sources)
    if entry.kind != "hub":
        where = ": its path comes from fetch" if entry.kind == "file" else ""
        raise StudyError(f"The source {name!r} is a {entry.kind}, not a data set of the hub{where}.")
    if reason := _hub_unavailable(entry):
        raise (Absent(name, reason) if entry.revision else StudyError(f"The source {name!r}: {reason}."))
    from datasets import load_dataset
    from huggingface_hub.errors import HTTPError  # the base of its HTTP client's errors

    pinned = {"revision": entry.revision, "split": entry.split}
    try:
        rows = load_dataset(entry.dataset, entry.config, streaming=True, **pinned).shuffle(seed, buffer_size=BUFFER)
        drawn = tqdm(rows.take(n), name, total=n, mininterval=EVERY, delay=EVERY)
        return [{role: _cell(entry, row, column) for role, column in entry.columns.items()} for row in drawn]
    except (OSError, HTTPError) as error:  # datasets' own errors for what does not exist are OSErrors
        raise Absent(
            name,
            f"{_page(entry)} cannot be read ({_reason(error)}); where it asks for access, ask there and set HF_TOKEN",
        ) from None
    except (ValueError, RuntimeError) as error:  # an unknown config or split, or code of its own to run
        raise StudyError(f"The source {name!r}: {entry.dataset} cannot be used as registered: {error}") from None


def _page(entry: Source) -> str:
    return f"https://huggingface.co/datasets/{entry.dataset}"


def _hub_unavailable(entry: Source) -> str | None:
    """Why the data set cannot be read, None where it can be tried."""
    if not entry.revision:
        return (
            f"no revision is pinned; take the commit from {_page(entry)}/commits/main and enter `- name: {entry.name}` "
            "with `revision: <its 40 digits>` in a sources file of your own (named by STUDY_SOURCES)"
        )
    if Path(entry.dataset).is_dir():
        return None
    if entry.gated and not os.environ.get("HF_TOKEN"):
        return f"it is gated, ask for access at {_page(entry)} and set HF_TOKEN in the environment"
    if _set("STUDY_OFFLINE", "HF_HUB_OFFLINE"):
        return "STUDY_OFFLINE or HF_HUB_OFFLINE is set and hub data sets are streamed"
    return None


def _cell(entry: Source, row: dict, column: str):
    value = row
    for part in column.split("."):
        if not isinstance(value, dict) or part not in value:
            raise StudyError(
                f"The source {entry.name!r}: {entry.dataset} has no column {column!r}, it has {', '.join(row)}; "
                "correct `columns` of the entry."
            )
        value = value[part]
    return value


def fetching_report(names: Iterable[str] | None = None, sources: Path | None = None) -> pd.DataFrame:
    """One row per source, all unless named: name, used_for, licence, redistributable, gated, rows, bytes, state.

    `state` is "intact (<place>)" (repository, mirror or cache), "not intact (<place>): <size>" or "not there: <why>".
    <NA> in rows and bytes means not known. Models are checked by transformers when it loads them. Downloads nothing.
    """
    known = register(sources)
    entries = [known.get(name) or source(name, sources) for name in (known if names is None else names)]
    columns = ["name", "used_for", "licence", "redistributable", "gated", "rows", "bytes"]
    rows = [[*(getattr(entry, column) for column in columns), _state(entry)] for entry in entries]
    return pd.DataFrame(rows, columns=[*columns, "state"]).astype({"rows": "Int64", "bytes": "Int64"})


def _state(entry: Source) -> str:
    if entry.kind == "model":
        return "loaded from the hub when it is used" if entry.revision else "not there: no revision is pinned"
    if entry.kind == "hub":
        if Path(entry.dataset).is_dir() and entry.revision:
            return "a local folder, not checked"
        return f"not there: {_hub_unavailable(entry) or 'to be streamed from the hub'}"
    place, path = _local(entry)
    if not entry.sha256:
        return "not there: no sha256 is pinned" + (f" (the file in the {place} has {_sha256(path)})" if path else "")
    if not path:
        return f"not there: {_unavailable(entry) or 'to be downloaded'}"
    if _sha256(path) == entry.sha256:
        return f"intact ({place})"
    return f"not intact ({place}): {_size(entry, path)}"

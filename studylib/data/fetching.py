"""Files, hub data sets and models from elsewhere: their register, with a hash or a revision each, and how to get them.

The register is `data/sources.yaml`, completed by a sources file of one's own (named by STUDY_SOURCES). A file is looked
for in the repository, in a mirror (STUDY_MIRROR), in the cache (STUDY_CACHE, else the user's cache folder), and then on
the network, unless STUDY_OFFLINE=1. A file with another hash is never used.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import pandas as pd
from pydantic import Field, ValidationError, field_validator, model_validator

from studylib.study.files import progress, read_yaml
from studylib.study.paths import DATA, ROOT
from studylib.study.profile import Count, Name, Settings, explain
from studylib.study.words import StudyError

RETRIES = 2  # after a broken transfer, waiting 1 s, then 2 s
TIMEOUT = 60  # seconds without an answer, or between two pieces of a file
BUFFER = 10_000  # rows of a hub data set among which the next is drawn
HUB = "https://huggingface.co/datasets"
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
    def _has_what_its_kind_needs(self):
        if missing := [key for key in NEEDED[self.kind] if getattr(self, key) is None and not self.file]:
            raise ValueError(f"a {self.kind} source needs {', '.join(missing)}")
        return self


def register() -> dict[str, Source]:
    """All sources by name: those of `data/sources.yaml`, completed by the entries of the file that STUDY_SOURCES names.

    An entry there adds a source, or fills in what is null or missing of a known one. Raises StudyError that names file
    and entry where one is wrong or changes what is pinned.
    """
    known = _entries(DATA / "sources.yaml")
    places = dict.fromkeys(known, "sources.yaml")
    if own := os.environ.get("STUDY_SOURCES"):
        own = Path(own).expanduser()
        if not own.is_file():
            raise StudyError(f"There is no sources file {own}: correct STUDY_SOURCES, or unset it.")
        for name, entry in _entries(own).items():
            before = known.get(name, {})
            for key, value in entry.items():
                if before.get(key) not in (None, value):
                    raise StudyError(
                        f"{own}, entry {name!r}: {key} is {before[key]!r} in sources.yaml and cannot become {value!r}; "
                        "give the entry another name."
                    )
            known[name], places[name] = before | entry, str(own)
    found = {}
    for name, entry in known.items():
        try:
            found[name] = Source.model_validate(entry)
        except ValidationError as error:
            raise StudyError(f"{places[name]}, entry {name!r}: {explain(error, Source)}.") from None
    return found


def _entries(path: Path) -> dict[str, dict]:
    content = read_yaml(path)
    if not isinstance(content, list) or not all(isinstance(one, dict) and "name" in one for one in content):
        raise StudyError(f"{path} is not a list of entries that begin with `- name: ...`, as data/sources.yaml is.")
    entries = {entry["name"]: entry for entry in content}
    if len(entries) < len(content):
        raise StudyError(f"{path} has a `name` that occurs twice: rename or remove one.")
    return entries


def source(name: str) -> Source:
    """The entry of that name. Raises StudyError that names the known ones."""
    known = register()
    if name not in known:
        raise StudyError(f"There is no source {name!r}: known are {', '.join(known)}.")
    return known[name]


# Files


def fetch(name: str) -> Path:
    """The path of the source's file with the pinned sha256, downloaded where it is nowhere or damaged in the cache.

    Raises Absent where the file is gated, offline or unreachable, StudyError where the name is no file's, no sha256 is
    pinned, or the file has another hash.
    """
    entry = source(name)
    if entry.kind != "file":
        raise StudyError(f"The source {name!r} is no file, but of the kind {entry.kind}.")
    path, reason = _local(entry), _unavailable(entry)
    if not entry.sha256:
        raise StudyError(
            f"The source {name!r} has no sha256, and a file of unknown hash is never used: put the file of {entry.url} "
            f"at {cache_folder() / (entry.mirror or '')} and enter `- name: {name}` with its `sha256` (`sha256sum "
            "FILE`) in a sources file of your own (like data/sources.yaml, named by STUDY_SOURCES)."
        )
    if path and (found := _sha256(path)) == entry.sha256:
        return path
    if path and (reason or not path.is_relative_to(cache_folder())):
        remedy = f"restore it (`git checkout -- {entry.file}`)" if entry.file else f"put the file of {entry.url} there"
        raise StudyError(
            f"The source {name!r}: {path} ({path.stat().st_size} of {entry.bytes} bytes) has the sha256 {found} "
            f"instead of {entry.sha256}; {remedy}, byte for byte."
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


def _local(entry: Source) -> Path | None:
    """Where the file is, None where it is nowhere; its bytes are not looked at."""
    places = [ROOT / entry.file] if entry.file else [cache_folder() / entry.mirror]
    if not entry.file and (mirror := os.environ.get("STUDY_MIRROR")):
        places.insert(0, Path(mirror).expanduser() / entry.mirror)
    return next(filter(Path.is_file, places), None)


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


def _download(entry: Source) -> Path:
    """The file in the cache; pooch repeats a broken transfer and moves it there only with the right hash."""
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    folder, known = cache_folder(), {"registry": {entry.mirror: f"sha256:{entry.sha256}"}}
    keeper = pooch.create(folder, "", urls={entry.mirror: entry.url}, retry_if_failed=RETRIES, **known)
    bar = progress(total=entry.bytes or 1, what=entry.name, unit="bytes")
    transfer = pooch.HTTPDownloader(progressbar=bar, chunk_size=2**16, timeout=TIMEOUT)
    try:
        path = Path(keeper.fetch(entry.mirror, downloader=transfer))
        path.chmod(0o644)  # pooch's temporary file is for its owner alone
    except requests.RequestException as error:
        raise Absent(entry.name, f"{entry.url} cannot be reached ({_reason(error)})") from None
    except (ValueError, OSError) as error:  # another hash; no room
        raise StudyError(
            f"The source {entry.name!r}, from {entry.url}: {error} Try again later, put the right file at "
            f"{folder / entry.mirror}, or name another folder by STUDY_CACHE."
        ) from None
    return path


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


# Data sets of the hub


def hub_rows(name: str, n: int, seed: int) -> list[dict]:
    """`n` rows of a hub data set in random order, all where it has fewer: dicts by the roles of the entry's `columns`.

    Streamed at the pinned revision, each row drawn among the next BUFFER rows; the same seed draws the same rows (with
    the same release of `datasets`). Raises Absent where the data set is gated, offline or unreachable, StudyError where
    no revision is pinned or a split or column does not exist.
    """
    entry = source(name)
    if entry.kind != "hub":
        raise StudyError(f"The source {name!r} is no data set of the hub, but of the kind {entry.kind}.")
    if reason := _hub_unavailable(entry):
        raise (Absent(name, reason) if entry.revision else StudyError(f"The source {name!r}: {reason}."))
    from datasets import load_dataset
    from huggingface_hub.errors import HTTPError  # the base of its HTTP client's errors

    pinned = {"revision": entry.revision, "split": entry.split}
    try:
        rows = load_dataset(entry.dataset, entry.config, streaming=True, **pinned).shuffle(seed, buffer_size=BUFFER)
        drawn = progress(rows.take(n), name, n, "rows")
        return [{role: _cell(entry, row, column) for role, column in entry.columns.items()} for row in drawn]
    except (OSError, HTTPError) as error:  # datasets' own errors for what does not exist are OSErrors
        why = f"{HUB}/{entry.dataset} cannot be read ({_reason(error)})"
        raise Absent(name, f"{why}; where it asks for access, ask there and set HF_TOKEN") from None
    except (ValueError, RuntimeError) as error:  # an unknown config or split, or code of its own to run
        raise StudyError(f"The source {name!r}: {entry.dataset} cannot be used as registered: {error}") from None


def _hub_unavailable(entry: Source) -> str | None:
    """Why the data set cannot be read, None where it can be tried."""
    if not entry.revision:
        return (
            f"no revision is pinned; take the commit from {HUB}/{entry.dataset}/commits/main and enter `- name: "
            f"{entry.name}` with `revision: <its 40 digits>` in a file like data/sources.yaml, named by STUDY_SOURCES"
        )
    if Path(entry.dataset).is_dir():
        return None
    if entry.gated and not os.environ.get("HF_TOKEN"):
        return f"it is gated, ask for access at {HUB}/{entry.dataset} and set HF_TOKEN in the environment"
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


def fetching_report(names: Iterable[str]) -> pd.DataFrame:
    """One row per source: name, used_for, licence, redistributable, gated, rows, bytes, state.

    `state` is "intact", "not intact", or "not there: <why>". <NA> in rows and bytes means not known. Downloads nothing.
    """
    known = register()
    entries = [known.get(name) or source(name) for name in names]
    columns = ["name", "used_for", "licence", "redistributable", "gated", "rows", "bytes"]
    rows = [[*(getattr(entry, column) for column in columns), _state(entry)] for entry in entries]
    return pd.DataFrame(rows, columns=[*columns, "state"]).astype({"rows": "Int64", "bytes": "Int64"})


def _state(entry: Source) -> str:
    if entry.kind == "model":
        return "loaded from the hub when it is used" if entry.revision else "not there: no revision is pinned"
    if entry.kind == "hub":
        return f"not there: {_hub_unavailable(entry) or 'to be streamed from the hub'}"
    if not entry.sha256:
        return "not there: no sha256 is pinned"
    if path := _local(entry):
        return "intact" if _sha256(path) == entry.sha256 else "not intact"
    return f"not there: {_unavailable(entry) or 'to be downloaded'}"

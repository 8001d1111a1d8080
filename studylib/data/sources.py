"""The register of files, data sets and models from elsewhere, each behind a hash or a revision; fetching.py uses it.

The register is `data/sources.yaml`, completed by a sources file of one's own (an argument, or named by STUDY_SOURCES).
"""

import os
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from studylib.study.files import read_yaml
from studylib.study.paths import DATA
from studylib.study.profile import Count, Name, Settings
from studylib.study.words import StudyError

FILE_KEYS = ("file", "url", "commit", "mirror", "sha256", "bytes")
HUB_KEYS = ("dataset", "config", "split", "columns")
NEEDED = {"hub": ("dataset", "split", "columns"), "model": ("model",)}


class Source(Settings):
    """One entry of the register: a file (in the repository, or at a url), or a data set or a model of the Hugging Face hub."""

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
        needed = NEEDED.get(self.kind, () if self.file else ("url", "mirror"))
        if missing := [key for key in needed if getattr(self, key) is None]:
            raise ValueError(f"a {self.kind} source needs {', '.join(missing)}")
        own = {"file": FILE_KEYS, "hub": (*HUB_KEYS, "revision"), "model": ("model", "revision")}
        foreign = dict.fromkeys(key for keys in own.values() for key in keys if key not in own[self.kind])
        if wrong := [key for key in foreign if getattr(self, key) is not None]:
            raise ValueError(
                f"{', '.join(wrong)} {'has' if len(wrong) == 1 else 'have'} no meaning in a {self.kind} source"
            )
        return self


# The register


def register(extra: Path | None = None) -> dict[str, Source]:
    """All sources by name: those of `data/sources.yaml`, completed by the entries of `extra`, else of STUDY_SOURCES.

    An entry there with a new name adds a source; one with a known name fills in what is null or missing, and nothing
    else. Raises StudyError that names file and entry for an unknown or missing key, a wrong value, a name that is there
    twice, and for another value of what is pinned.
    """
    shipped = DATA / "sources.yaml"
    known = _entries(shipped)
    places = dict.fromkeys(known, shipped.name)
    own = extra or os.environ.get("STUDY_SOURCES")
    if own:
        own = Path(own).expanduser()
        if not own.is_file():
            raise StudyError(
                f"The sources file {own} is not there: correct STUDY_SOURCES or the argument, or unset it."
            )
        for name, entry in _entries(own).items():
            before = known.get(name, {})
            for key, value in entry.items():
                if before.get(key) not in (None, value):
                    raise StudyError(
                        f"{own}, entry {name!r}: {key} is {before[key]!r} in {shipped.name} and cannot become "
                        f"{value!r}; give the entry another name."
                    )
            known[name] = before | entry
            places[name] = str(own)
    return {name: _checked(entry, places[name]) for name, entry in known.items()}


def _entries(path: Path) -> dict[str, dict]:
    content = read_yaml(path)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise StudyError(
            f"{path} is not a list of entries that each begin with `- name: ...`, as data/sources.yaml is."
        )
    entries = {}
    for number, entry in enumerate(content, 1):
        name = entry.get("name")
        if not isinstance(name, str):
            raise StudyError(f"{path}, entry {number}: has no `name`.")
        if name in entries:
            raise StudyError(f"{path}, entry {name!r}: the name is there twice; rename or remove one.")
        entries[name] = entry
    return entries


def _checked(entry: dict, place: str) -> Source:
    try:
        return Source.model_validate(entry)
    except ValidationError as error:
        problems = []
        for one in error.errors():
            key = ".".join(map(str, one["loc"]))
            if one["type"] == "extra_forbidden":
                problems.append(f"unknown key {key!r}, known are {', '.join(Source.model_fields)}")
            elif one["type"] == "missing":
                problems.append(f"the key {key!r} is missing")
            else:
                what = one["msg"].removeprefix("Value error, ")
                problems.append(f"{key!r}: {what}, found {one['input']!r}" if key else what)
        raise StudyError(f"{place}, entry {entry['name']!r}: {'; '.join(problems)}.") from None


def source(name: str, sources: Path | None = None) -> Source:
    """The entry of that name, with `sources` as the register's `extra`. Raises StudyError that names the known ones."""
    known = register(sources)
    if name not in known:
        raise StudyError(f"There is no source {name!r}: known are {', '.join(known)}.")
    return known[name]

"""Fetching what the register of sources names: files behind a hash, rows of hub data sets at a revision; what is there.

A file is looked for in the repository, in a mirror (STUDY_MIRROR), in the cache (STUDY_CACHE, else the user's cache
folder), and then on the network, unless STUDY_OFFLINE=1. Nothing is used whose hash differs.
"""

import hashlib
import logging
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from studylib.data.sources import Source, register, source
from studylib.study.paths import ROOT
from studylib.study.words import StudyError

LOG = logging.getLogger("studylib")
RETRIES = 2  # after a broken transfer, waiting 1 s, then 2 s
TIMEOUT = 60  # seconds without an answer, or between two pieces of a file
BUFFER = 10_000  # rows of a hub data set among which the next is drawn


class Absent(StudyError):
    """A source that cannot be had here (gated, offline, unreachable): what needs it is `not run`, for this `reason`."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"The source {name!r} is not there: {reason}.")
        self.reason = reason


# Files


def fetch(name: str, sources: Path | None = None) -> Path:
    """The path of the source's file, intact (its sha256 is right), downloaded into the cache where it is nowhere yet.

    The first of repository, mirror and cache that has the file decides; a broken one in the cache is downloaded again.
    A transfer that breaks off or brings another file is repeated, and moved into place only when intact.
    Raises Absent where the file is gated, offline or unreachable. Raises StudyError where the name is unknown or a hub
    data set, where no sha256 is pinned (saying how to pin it), and where the file is not intact: the message has the
    source, the file, hash and size expected and found, the likely cause and what to do.
    """
    entry = source(name, sources)
    if entry.kind != "file":
        what = "data set of the hub, not a file: its rows come from hub_rows" if entry.kind == "hub" else "model"
        raise StudyError(f"The source {name!r} is a {what}.")
    place, path = _local(entry)
    if not entry.sha256:
        raise StudyError(_how_to_pin(entry, path))
    fault = _fault(entry, path, path) if path else None
    if path and not fault:
        return path
    reason = _out_of_reach(entry)
    if fault and (reason or place != "cache"):
        raise StudyError(f"{fault}; {_remedy(entry, place)}.")
    if reason:
        raise Absent(name, reason)
    return _download(entry)


def cache_folder() -> Path:
    """The folder of downloads, laid out like a mirror: what STUDY_CACHE names, else one in the user's cache folder."""
    import pooch

    return Path(os.environ.get("STUDY_CACHE") or pooch.os_cache("multitask-mayhem")).expanduser().resolve()


def _offline() -> bool:
    return os.environ.get("STUDY_OFFLINE", "") not in ("", "0")


def _cached(entry: Source) -> Path:
    return cache_folder() / entry.mirror


def _local(entry: Source) -> tuple[str, Path | None]:
    """Where the file is and its path, ("", None) where it is nowhere; its bytes are not looked at."""
    if entry.file:
        path = ROOT / entry.file
        return ("repository", path) if path.is_file() else ("", None)
    mirror = os.environ.get("STUDY_MIRROR")
    if mirror and (path := Path(mirror).expanduser() / entry.mirror).is_file():
        return "mirror", path
    return ("cache", path) if (path := _cached(entry)).is_file() else ("", None)


def _out_of_reach(entry: Source) -> str | None:
    """Why the file cannot be downloaded, None where it can be tried."""
    if entry.file:
        return f"{entry.file} is missing in the repository, restore it (`git checkout -- {entry.file}`)"
    if entry.gated:
        return f"it is gated, ask for access at {entry.url} and put the file at {_cached(entry)}"
    if _offline():
        return f"STUDY_OFFLINE is set; put the file of {entry.url} at {_cached(entry)}, or unset it"
    return None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fault(entry: Source, path: Path, shown: Path | str) -> str | None:
    """What is wrong with the file, None where it is intact; `shown` stands for its path."""
    found = _sha256(path)
    if found == entry.sha256:
        return None
    size = f"{entry.bytes} bytes" if entry.bytes else "a size that is not known"
    return (
        f"The source {entry.name!r}: {shown} is not the file that was pinned: expected sha256 {entry.sha256} and "
        f"{size}, found {found} and {path.stat().st_size} bytes, {_cause(entry, path.read_bytes())}"
    )


def _cause(entry: Source, raw: bytes) -> str:
    """Why a file with the wrong hash may have it."""

    def right(changed: bytes) -> bool:
        return hashlib.sha256(changed).hexdigest() == entry.sha256

    if not raw:
        return "it is empty"
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html)", raw, re.I):
        return "it is a page of HTML, an error page or a login page, instead of the file"
    if right(raw.replace(b"\r\n", b"\n")):
        return "its line ends were converted to CRLF (by an editor or git's autocrlf), all else is right"
    if right(re.sub(rb"(?<!\r)\n", b"\r\n", raw)):
        return "its line ends were converted from CRLF to LF (by an editor or git's autocrlf), all else is right"
    if entry.bytes and len(raw) < entry.bytes:
        return "it was probably truncated (or it is another version)"
    return "it was probably edited or it is another version"


def _remedy(entry: Source, place: str) -> str:
    return {
        "repository": f"restore it (`git checkout -- {entry.file}`)",
        "mirror": f"put the file of {entry.url} there, byte for byte, or unset STUDY_MIRROR",
        "cache": "delete it and fetch it again with a network",
        "download": "try again later, or put the right file at " + (str(_cached(entry)) if entry.mirror else ""),
    }[place]


def _how_to_pin(entry: Source, path: Path | None) -> str:
    begin = f"The source {entry.name!r} has no sha256, and nothing is used whose hash is not known: "
    end = "in a sources file of your own (a YAML like data/sources.yaml, named by STUDY_SOURCES)."
    if path:
        return (
            f"{begin}if {path} is the file that you mean, enter `- name: {entry.name}` with `sha256: {_sha256(path)}` "
            f"and `bytes: {path.stat().st_size}` {end}"
        )
    return (
        f"{begin}put the file of {entry.url} at {_cached(entry)} and ask again, the message then has its sha256 to be "
        f"entered {end}"
    )


class _Progress:
    """Counts what has come and logs what is left, at most a line in ten seconds; pooch takes it for a progress bar."""

    def __init__(self, what: str, unit: str, total: int | None, scale: int = 1):
        self.what, self.unit, self.size, self.scale = what, unit, total, scale
        self.total = 0  # set by pooch: the size that the server announces, 0 where it does not
        self.done, self.started = 0, time.monotonic()
        self.shown = self.started

    def update(self, n: int) -> None:
        self.done += n
        if (now := time.monotonic()) - self.shown <= 10:
            return
        self.shown, total = now, self.size or self.total
        if total > self.done:
            left = (now - self.started) / self.done * (total - self.done)
            of = f"{self.done // self.scale} of {total // self.scale} {self.unit}"
            LOG.info("%s: %s, %.0f s left", self.what, of, left)
        else:
            LOG.info("%s: %d %s", self.what, self.done // self.scale, self.unit)

    def reset(self) -> None:  # pooch calls it at the end, and fills the bar to its total
        self.shown = float("inf")

    def close(self) -> None:
        pass


def _download(entry: Source) -> Path:
    """The file in the cache, moved there when its transfer was found intact."""
    import pooch
    import requests

    def transfer(url: str, file: str, keeper) -> None:
        bar = _Progress(entry.name, "kB", entry.bytes, 1000)
        try:
            pooch.HTTPDownloader(progressbar=bar, chunk_size=2**16, timeout=TIMEOUT)(url, file, keeper)
        except requests.HTTPError as error:
            status = error.response.status_code
            if 400 <= status < 500 and status not in (408, 429):  # asking again changes nothing
                raise Absent(entry.name, f"{url} answers {status} {error.response.reason}") from None
            raise
        if fault := _fault(entry, Path(file), url):
            raise ValueError(fault)  # pooch tries again
        os.chmod(file, 0o644)  # pooch's temporary file is for its owner alone

    pooch.get_logger().setLevel("WARNING")
    keeper = pooch.create(
        path=cache_folder(),
        base_url="",
        registry={entry.mirror: f"sha256:{entry.sha256}"},
        urls={entry.mirror: entry.url},
        retry_if_failed=RETRIES,
    )
    try:
        path = Path(keeper.fetch(entry.mirror, downloader=transfer))
    except ValueError as error:
        raise StudyError(f"{error}; {_remedy(entry, 'download')}.") from None
    except requests.RequestException as error:
        why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise Absent(entry.name, f"{entry.url} cannot be reached ({why})") from None
    except OSError as error:
        raise StudyError(
            f"The source {entry.name!r} cannot be kept in {cache_folder()} ({error}): make room there, or name another "
            "folder by STUDY_CACHE."
        ) from None
    LOG.info("%s: %d kB fetched", entry.name, path.stat().st_size // 1000)
    return path


# Data sets of the hub


def hub_rows(name: str, n: int, seed: int, sources: Path | None = None) -> list[dict]:
    """`n` rows of a hub data set in random order, all where it has fewer: dicts by the roles of the entry's `columns`.

    Streamed at the pinned revision, without remote code. Each row is drawn among the next BUFFER rows of files in
    random order, so that far less than the whole comes over the network; the same seed draws the same rows (with the
    same release of `datasets`). HF_TOKEN is read from the environment.
    Raises Absent where the data set is gated, offline or unreachable. Raises StudyError for a source that is no hub
    data set, without a pinned revision (saying how to pin it), or whose split or a column is not there.
    """
    entry = source(name, sources)
    if entry.kind != "hub":
        where = ": its path comes from fetch" if entry.kind == "file" else ""
        raise StudyError(f"The source {name!r} is a {entry.kind}, not a data set of the hub{where}.")
    if reason := _hub_out_of_reach(entry):
        raise (Absent(name, reason) if entry.revision else StudyError(f"The source {name!r}: {reason}."))
    import httpx
    from datasets import load_dataset
    from huggingface_hub.errors import HfHubHTTPError

    drawn, bar = [], _Progress(name, "rows", n)
    try:
        rows = load_dataset(
            entry.dataset, entry.config, revision=entry.revision, split=entry.split, streaming=True
        ).shuffle(seed=seed, buffer_size=BUFFER)
        for row in rows.take(n):
            drawn.append({role: _cell(entry, row, column) for role, column in entry.columns.items()})
            bar.update(1)
    except (
        OSError,
        HfHubHTTPError,
        httpx.HTTPError,
    ) as error:  # datasets' own errors for what is not there are OSErrors
        why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise Absent(
            name, f"{_page(entry)} cannot be read ({why}); where it asks for access, ask there and set HF_TOKEN"
        ) from None
    except (
        ValueError,
        RuntimeError,
    ) as error:  # an unknown config or split, or a data set that wants to run its own code
        raise StudyError(f"The source {name!r}: {entry.dataset} cannot be used as registered: {error}") from None
    return drawn


def _page(entry: Source) -> str:
    return f"https://huggingface.co/datasets/{entry.dataset}"


def _hub_out_of_reach(entry: Source) -> str | None:
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
    if _offline() or os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
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


# What is there


def report(names: Iterable[str] | None = None, sources: Path | None = None) -> pd.DataFrame:
    """One row per source, all unless named: name, used_for, licence, redistributable, gated, rows, bytes, state.

    Models are loaded by transformers, which checks them. `state` is "intact (repository)", "intact (mirror)" or "intact (cache)", "not intact (<place>): <why>" or
    "not there: <why>"; <NA> in rows and bytes means not known. Hashes what is there, downloads nothing.
    """
    known = register(sources)
    rows = []
    for name in known if names is None else names:
        entry = known[name] if name in known else source(name, sources)
        rows.append(
            {
                "name": name,
                **{
                    key: getattr(entry, key)
                    for key in ("used_for", "licence", "redistributable", "gated", "rows", "bytes")
                },
                "state": _state(entry),
            }
        )
    columns = ["name", "used_for", "licence", "redistributable", "gated", "rows", "bytes", "state"]
    return pd.DataFrame(rows, columns=columns).astype({"rows": "Int64", "bytes": "Int64"})


def _state(entry: Source) -> str:
    if entry.kind == "model":
        return "loaded from the hub when it is used" if entry.revision else "not there: no revision is pinned"
    if entry.kind == "hub":
        if Path(entry.dataset).is_dir() and entry.revision:
            return "a local folder, not checked"
        return f"not there: {_hub_out_of_reach(entry) or 'to be streamed from the hub'}"
    place, path = _local(entry)
    if not entry.sha256:
        return "not there: no sha256 is pinned" + (f" (the file in the {place} has {_sha256(path)})" if path else "")
    if not path:
        return f"not there: {_out_of_reach(entry) or 'to be downloaded'}"
    if _sha256(path) == entry.sha256:
        return f"intact ({place})"
    return f"not intact ({place}): {_cause(entry, path.read_bytes())}"

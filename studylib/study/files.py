"""Files and times: YAML read, rows appended as they are made, tables written aside and moved into place, fingerprints."""

import ast
import csv
import fcntl
import hashlib
import io
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import yaml
from pyarrow import ArrowException
from pydantic import BaseModel

from studylib.study.words import StudyError

LOG = logging.getLogger("studylib")
LIBRARY = Path(__file__).resolve().parents[1]
# libyaml's, 15 times as fast, where it is built in
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def csv_rows(text: str) -> list[list[str]]:
    """The rows of a CSV text, cells as strings of any length; csv's own limit (128 kB) is as before afterwards."""
    limit = csv.field_size_limit(max(len(text), 1))
    try:
        return list(csv.reader(io.StringIO(text, newline="")))
    finally:
        csv.field_size_limit(limit)


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    with aside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_parquet(path: Path, columns: Sequence[str], unique: Sequence[str], again: str) -> pd.DataFrame:
    """The table of a file that a stage left. Raises StudyError, which names the file and says what to run (`again`), where it
    cannot be read, lacks one of the columns, or has two rows for one value of `unique`.
    """
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError, ArrowException) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise StudyError(f"{path} cannot be read ({reason}): delete it and {again}.") from None
    if missing := [name for name in columns if name not in table]:
        raise StudyError(f"{path} has no column {', '.join(missing)}: it was changed or cut; delete it and {again}.")
    if len(table) and table.duplicated(list(unique)).any():
        first = ", ".join(map(str, table.loc[table.duplicated(list(unique)), list(unique)].iloc[0]))
        raise StudyError(f"{path} has several rows for {first}: it was changed; delete it and {again}.")
    return table


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    """Writes a table whole or not at all."""
    with aside(path) as temporary:
        frame.to_parquet(temporary, index=False)


def append_rows(path: Path, rows: list[dict]) -> None:
    """Adds rows to a JSON-lines file in one write and flushes it to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with open(path, "ab") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[dict]:
    """The rows of a JSON-lines file, none where there is no file.

    A last line without its end (the writer was killed) is cut off the file, so that the next append starts a line.
    """
    if not path.is_file():
        return []
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        with open(path, "r+b") as file:
            file.truncate(len(whole))
    return [json.loads(line) for line in whole.decode().split("\n")[:-1]]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nothing; meanwhile no other process is inside `locked(path)`: it waits, and says so after a second.

    The kernel lets go of the lock however its holder ends; the file `<path>.lock` that stays behind holds nobody up.
    Not to be nested for one path: the second would wait for the first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f"{path.name}.lock"), "ab") as file:
        started, said = time.monotonic(), False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not said and time.monotonic() - started > 1:
                    LOG.info("%s: another notebook is working on it, waiting", path.name)
                    said = True
                time.sleep(0.1)
        yield


class Clock(dict):
    """Seconds spent by kind of work: `with clock("training"): ...`."""

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self[kind] = self.get(kind, 0.0) + time.monotonic() - start


class aside:
    """A context whose value is a temporary path in the same folder that replaces `path` on success and vanishes on failure."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".part")
        os.close(handle)
        self.temporary = Path(name)
        return self.temporary

    def __exit__(self, kind, *_):
        if kind is None:
            os.chmod(self.temporary, 0o644)
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)


def read_yaml(path: Path) -> dict:
    """What the YAML file holds. Raises StudyError where it is missing or cut."""
    if not path.is_file():
        raise StudyError(
            f"{path} is missing: restore it from the repository (`git checkout -- {path.name}` in its folder)."
        )
    try:
        return yaml.load(path.read_text(encoding="utf-8"), LOADER)
    except yaml.YAMLError as error:
        raise StudyError(f"{path} is not valid YAML: {error}".replace("\n", " ")) from None


def digest(value) -> str:
    """Short hash of plain data or settings, equal for equal content."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def code_digest(*modules: str) -> str:
    """Hash of what the studylib modules named as `room/module` do, for fingerprints: comments, docstrings and layout do not count."""
    dumps = []
    for module in modules:
        tree = ast.parse((LIBRARY / f"{module}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if (
                isinstance(body, list)
                and body
                and isinstance(body[0], ast.Expr)
                and isinstance(body[0].value, ast.Constant)
            ):
                node.body = body[1:]
        dumps.append(ast.dump(tree))
    return digest(dumps)

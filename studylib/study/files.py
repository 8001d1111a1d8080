"""Files and times: tables and settings read, rows appended, files written whole or not at all, fingerprints."""

import ast
import csv
import fcntl
import gzip
import hashlib
import io
import json
import logging
import os
import re
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pandas as pd
import yaml
from pyarrow import ArrowException
from pydantic import BaseModel
from tqdm import tqdm

from studylib.study.words import StudyError

LOG = logging.getLogger("studylib")
LIBRARY = Path(__file__).resolve().parents[1]
LOGGER = re.compile(r"\b(log|logger|logging)$", re.I)
LOG_LEVELS = ("debug", "info", "warning", "error", "exception", "critical")


def read_text(path: Path) -> str:
    """The file's text: UTF-8, or UTF-16 with its mark; of a .gz what it packs. Raises StudyError where it is none."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise StudyError(
            f"{path} is no UTF-8 from byte {error.start} on: save it as UTF-8, or fetch it again."
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise StudyError(f"{path} cannot be read ({error}): put the original file there.") from None


def read_csv(path: Path, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, as strings; separated by commas or semicolons, "None" is a text.

    Lines within a cell end in LF. Raises StudyError where a column is missing, or a row (1 is the first after the
    header) has more or fewer cells.
    """
    text = re.sub(r"\r\n?", "\n", read_text(path))
    first = text.partition("\n")[0]
    csv.field_size_limit(max(len(text), csv.field_size_limit()))  # of a cell
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=";" if first.count(";") > first.count(",") else ",")
    header, *lines = list(filter(None, rows)) or [[]]
    if missing := [name for name in columns if name not in header]:
        has = ", ".join(map(repr, header)) or "no header at all"
        raise StudyError(
            f"{path} has no column {', '.join(map(repr, missing))} (it has {has}): take the file and the version that "
            "is meant."
        )
    for number, line in enumerate(lines, 1):
        if len(line) != len(header):
            raise StudyError(
                f"{path}, row {number}, has {len(line)} cells instead of the header's {len(header)}: the file is "
                "cut, or not quoted as CSV is; fetch it again, or repair the row."
            )
    return [dict(zip(header, line, strict=True)) for line in lines]


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    with aside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_parquet(path: Path, columns: Sequence[str], unique: Sequence[str], again: str) -> pd.DataFrame:
    """The table of a file that a stage left.

    Raises StudyError that says what to do (`again`) where it cannot be read, lacks a column, or has several rows for
    one value of `unique`.
    """
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError, ArrowException) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise StudyError(f"{path} cannot be read ({reason}): delete it and {again}.") from None
    if missing := [name for name in columns if name not in table]:
        raise StudyError(f"{path} has no column {', '.join(missing)}: it was changed or cut; delete it and {again}.")
    repeated = table.loc[table.duplicated(list(unique)), list(unique)]
    if len(repeated):
        first = ", ".join(map(str, repeated.iloc[0]))
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
    """While inside, no other process is inside `locked(path)`: it waits, and says so after a second.

    The lock ends with its holder, however that ends. Not to be nested for one path: the second would wait for ever.
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
            except OSError:  # this file system has no locks
                break
        yield


def progress(rows: Iterable | None = None, what: str = "", total: int | None = None, unit: str = "") -> tqdm:
    """The rows; after ten seconds a line on stderr says how many are done and what time is left.

    Without rows: `with progress(total=9, what="texts") as done: done.update(3)`.
    """
    shown = f"{{desc}}: {{n_fmt}} of {{total_fmt}} {unit}".rstrip() + "{postfix}, {remaining} left"
    return tqdm(rows, what, total, mininterval=10, miniters=1, delay=10, leave=False, bar_format=shown)


class Clock(dict):
    """Seconds spent by kind of work: `with clock("training"): ...`."""

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self[kind] = self.get(kind, 0.0) + time.monotonic() - start


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder, which replaces `path` on success and vanishes on failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # libyaml's, 15 times as fast, where it is built in
    """Takes 2e-4 for a number (a commit of digits and an e is longer), and a key that is there twice for an error."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d{1,3}(?:\.\d*)?[eE][-+]?\d\d?$"), list("-+0123456789")
)


def read_yaml(path: Path) -> dict:
    """What the YAML file holds. Raises StudyError where it is missing, cut, or names a key twice."""
    if not path.is_file():
        raise StudyError(f"{path} is missing: restore it (`git checkout -- {path.name}` in its folder).")
    try:
        return yaml.load(read_text(path), _Loader)
    except yaml.YAMLError as error:
        raise StudyError(f"{path} is not valid YAML: {error}".replace("\n", " ")) from None


def digest(value) -> str:
    """Short hash of plain data or settings, equal for equal content."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def code_digest(*modules: str) -> str:
    """Hash of what the studylib modules named as `room/module` do, for fingerprints: see `code`."""
    return digest([code((LIBRARY / f"{module}.py").read_text(encoding="utf-8")) for module in modules])


@cache
def code(source: str) -> str:
    """What the source does: without comments, layout, docstrings, and the words of log lines, progress and errors."""
    return meaning(ast.parse(source))


def meaning(tree: ast.Module) -> str:
    """What the source of that syntax tree does (`code`); the tree is changed."""
    return ast.dump(_Code().visit(tree))


class _Code(ast.NodeTransformer):
    """Takes out of a syntax tree what no result depends on."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            node.body = body[isinstance(body[0].value, ast.Constant) :]
        return super().generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        called = getattr(node.value, "func", None)
        if isinstance(called, ast.Attribute) and called.attr in LOG_LEVELS and LOGGER.search(ast.unparse(called.value)):
            return None
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.Raise:
        return self.generic_visit(_Wordless().visit(node))

    def visit_Call(self, node: ast.Call) -> ast.Call:
        named = isinstance(node.func, ast.Name) and node.func.id == progress.__name__
        return self.generic_visit(_Wordless().visit(node) if named else node)


class _Wordless(ast.NodeTransformer):
    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.Constant("") if isinstance(node.value, str) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.Constant:
        return ast.Constant("")

"""The code in a response: where it is, which program it is, and whether that passes its prompt's tests (pass@1).

Programs are run in the sandbox or not at all (see `sandbox`). Those with the same syntax tree are run once. A program
that ran out of time is run once more, alone, because its time depends on what else the machine does.
"""

import ast
import logging
import math
import re
import textwrap
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path

import pandas as pd

from studylib.scores import sandbox
from studylib.study.files import append_rows, digest, locked, progress, read_rows

LOG = logging.getLogger("studylib")
FENCE = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.S | re.M)
FIRST_LINE = re.compile(r"^(?:@|async def |def |class |import |from )", re.M)
BATCH = 200  # programs between two writings of their outcomes


def code_of(text: str) -> str:
    """The code in a text: its first fence, else all from the first definition or import on, else all of it."""
    fence, first = FENCE.search(text), FIRST_LINE.search(text)
    return fence[1] if fence else text[first.start() :] if first else text


@lru_cache(2**16)
def syntax(code: str) -> str | None:
    """What two programs share that differ in layout and comments alone; None where the code is no Python."""
    tree = _parsed(code)
    try:
        return None if tree is None else ast.dump(tree)
    except RecursionError:
        return None


def _parsed(code: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd but legal code, such as "\d"
            return ast.parse(code)
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # the last two: nested too deeply
        return None


@lru_cache(2**16)
def program(response: str, head: str = "") -> str | None:
    """The Python program that a response gives, None where it gives none that parses.

    `head`: the beginning of a function that the prompt asked to be completed, as HumanEval has it, or "". A response
    that defines that function gets what stands before it in the head (imports, helpers); another is taken for the
    function's body, indented or not. Deviation: HumanEval puts the head before whatever the model wrote, because base
    models go on with it; chat models write the function anew.
    """
    code = code_of(response)
    if not head:
        return code if syntax(code) is not None else None
    before, name = _split(head)
    if (tree := _parsed(code)) and any(name == getattr(node, "name", None) for node in tree.body):
        return f"{before}\n{code}"
    for body in (code, response.strip("\n"), textwrap.indent(textwrap.dedent(code).strip("\n"), "    ")):
        whole = f"{head.rstrip()}\n{body}"
        if code.strip() and (tree := _parsed(whole)) and getattr(tree.body[-1], "name", None) == name:
            return whole
    return None


def is_head(text: str) -> bool:
    """Whether a text begins a program: its last statement is a function of imports and a docstring alone."""
    tree = _parsed(text)
    last = tree.body[-1] if tree and tree.body else None
    return isinstance(last, ast.FunctionDef) and all(
        isinstance(node, ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in last.body
    )


@lru_cache(2**12)
def _split(head: str) -> tuple[str, str]:
    """What stands before the head's last function, and the name of that."""
    last = _parsed(head).body[-1]
    first_line = min([last.lineno, *(one.lineno for one in last.decorator_list)])
    return "\n".join(head.split("\n")[: first_line - 1]), last.name


def problems(rows: list[dict]) -> dict[str, dict]:
    """By prompt_id what `pass_at_1` needs of each test row of the task code: `tests` ("": none), head, reference."""
    return {
        row["id"]: {
            "tests": "\n".join(row["tests"]),
            "head": content if is_head(content := row.get("content") or "") else "",
            "reference": row["messages"][1]["content"],
        }
        for row in rows
    }


def in_words(of: dict[str, dict]) -> str:
    """A sentence for readers: how many problems have tests, and whether programs are run here, or why not."""
    tested = sum(bool(problem["tests"].strip()) for problem in of.values())
    if not tested:
        return f"None of the {len(of)} code prompts has tests: no program is run, code is compared with its reference."
    less = f" of {len(of)}; the others have none and no pass@1" if tested < len(of) else ""
    if why := sandbox.available():
        return f"{why} There is no pass@1: the answers to {tested} code prompts are compared with their references."
    return f"Programs are run in the sandbox, against the tests of {tested} code prompts{less}."


def pass_at_1(
    responses: pd.DataFrame,
    problems: dict[str, dict],
    store: Path | None = None,
    run_all: Callable = sandbox.run_all,
) -> pd.Series:
    """1.0 where the response's program passes its prompt's tests, 0.0 where it does not; by the index of `responses`.

    With one greedy answer per prompt, the mean is pass@1 (Chen et al. 2021, arXiv 2107.03374). `responses` has the
    columns prompt_id and response. `problems` has by prompt_id `tests`, code that fails where the program is wrong,
    `head` (see `program`) and `reference`, a right answer. `store` is a file of JSON lines: outcomes are appended to it
    batch by batch, and what it has is not run again. `run_all` runs the programs, see `sandbox.run_all`.

    0.0 too for what is no program, runs too long (alone as well) or takes too much (`sandbox.Limits`). NaN where a
    prompt has no tests, where its own reference fails them (they may need a package that the sandbox lacks), and
    everywhere where programs cannot be run.
    """
    if sandbox.available():
        return pd.Series(math.nan, responses.index, dtype=float)
    wanted: dict[str, tuple[str, str]] = {}

    def key(response: str, prompt_id: str) -> str:
        """What the outcome of that answer is known under, "" where it is no program."""
        problem = problems[prompt_id]
        code = program(response, problem["head"])
        same = None if code is None else syntax(code)
        if same is None:
            return ""
        found = digest([same, problem["tests"], vars(sandbox.DEFAULT)])
        wanted.setdefault(found, (code, problem["tests"]))
        return found

    tested = responses["prompt_id"].isin([name for name, problem in problems.items() if problem["tests"].strip()])
    rows = responses[tested]
    sound = {name: key(problems[name]["reference"], name) for name in dict.fromkeys(rows["prompt_id"])}
    keys = [key(*pair) for pair in zip(rows["response"], rows["prompt_id"], strict=True)]
    passed = _outcomes(wanted, store, run_all) | {"": 0.0}
    if broken := [name for name, reference in sound.items() if passed[reference] != 1]:
        LOG.warning("%d problems are left out, as their own reference fails their tests: %s", len(broken), broken[:5])
    found = pd.Series([passed[one] for one in keys], rows.index, dtype=float).mask(rows["prompt_id"].isin(broken))
    return found.reindex(responses.index)


def _outcomes(wanted: dict[str, tuple[str, str]], store: Path | None, run_all: Callable) -> dict[str, float]:
    """By key whether each wanted pair of program and tests passes (1.0, 0.0, NaN where it was not run)."""
    with locked(store) if store else nullcontext():
        found = {row["key"]: float(row["passed"]) for row in (read_rows(store) if store else [])}
        left = [key for key in wanted if key not in found]
        done = progress(None, "programs", len(left), "programs")
        for start in range(0, len(left), BATCH):
            batch = left[start : start + BATCH]
            outcomes = run_all([wanted[key] for key in batch])
            if late := [i for i, one in enumerate(outcomes) if one.status == "timeout"]:
                again = run_all([wanted[batch[i]] for i in late], workers=1)
                outcomes = [again.pop(0) if i in late else one for i, one in enumerate(outcomes)]
            statuses = {key: one.status for key, one in zip(batch, outcomes, strict=True) if one.status != "not_run"}
            rows = [{"key": key, "passed": float(said == "ok"), "status": said} for key, said in statuses.items()]
            if store:
                append_rows(store, rows)
            found |= dict.fromkeys(batch, math.nan) | {row["key"]: row["passed"] for row in rows}
            done.update(len(batch))
        done.close()
    return found

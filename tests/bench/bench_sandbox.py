"""How many generated programs the sandbox runs in a second, and whether HumanEval's solutions pass in it.

With the file of HumanEval at hand (STUDY_MIRROR, or the cache): the 164 published solutions, all of which must pass,
and mutants of their syntax trees: for each problem the first that fails its tests, with how many before it pass (most
of these do the same). Without it: 164 programs like the miniature's. Throughput with 2 workers
(goal: 20 programs/s), beside plain subprocesses that isolate nothing, in alternation.

Takes about a minute. `--quick` runs everything once and with 10 problems, to see whether it works.
"""

import ast
import copy
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

from studylib.data import fetching, tasks
from studylib.scores import sandbox

QUICK = "--quick" in sys.argv[1:]
ROUNDS, WORKERS = 1 if QUICK else 3, 2
FLIPPED = {ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
KINDS = ("comparison", "constant", "operator", "negated", "none")


def problems() -> tuple[str, list[tuple[str, str]]]:
    """What they are, and pairs of solution and tests."""
    try:
        rows, _ = tasks.human_eval(fetching.fetch("human_eval"), "human_eval")
        return "HumanEval", [(row["answer"], "\n".join(row["tests"])) for row in rows]
    except fetching.Absent as error:
        print(error)
    stubs = [
        (f"def add_{k}(x):\n    return x + {k}", f"assert add_{k}(0) == {k}\nassert add_{k}(-{k}) == 0")
        for k in range(164)
    ]
    return "small functions", stubs


def mutants(solution: str):
    """Kind and text of each mutant: a comparison flipped, a constant one more, + for -, a result negated or None."""
    tree = ast.parse(solution)
    for kind in KINDS:
        for place in range(sum(1 for _ in ast.walk(tree))):
            changed = copy.deepcopy(tree)
            if not change(list(ast.walk(changed))[place], kind):
                continue
            text = ast.unparse(ast.fix_missing_locations(changed))
            if text != ast.unparse(tree):
                yield kind, text


def change(node: ast.AST, kind: str) -> bool:
    if kind == "comparison" and isinstance(node, ast.Compare) and type(node.ops[0]) in FLIPPED:
        node.ops[0] = FLIPPED[type(node.ops[0])]()
    elif kind == "constant" and isinstance(node, ast.Constant) and type(node.value) in (int, float):
        node.value += 1
    elif kind == "operator" and isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        node.op = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
    elif kind == "negated" and isinstance(node, ast.Return) and node.value:
        node.value = ast.UnaryOp(ast.Not(), node.value)
    elif kind == "none" and isinstance(node, ast.Return) and node.value:
        node.value = ast.Constant(None)
    else:
        return False
    return True


def first_that_fails(pair: tuple[str, str]) -> tuple[str, int, str]:
    """Kind of the first mutant that does not pass ("" where all do), how many passed before it, and its status."""
    passed = 0
    for kind, text in mutants(pair[0]):
        outcome = sandbox.run(text, pair[1])
        if outcome.status not in ("ok", "not_run"):
            return kind, passed, outcome.status
        passed += 1
    return "", passed, "ok"


def plainly(pair: tuple[str, str]) -> bool:
    """The same program and tests as an ordinary process; the published solutions alone are run so."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write("\n\n".join(pair))
        file.flush()
        words = [sys.executable, *sandbox.FLAGS, file.name]
        return subprocess.run(words, capture_output=True, env=sandbox.ENVIRONMENT, timeout=60).returncode == 0


def main() -> None:
    if why := sandbox.available():
        print(why)
        return
    what, pairs = problems()
    pairs = pairs[:10] if QUICK else pairs
    user = "root" if os.geteuid() == 0 else "an ordinary user"
    print(f"{what}: {len(pairs)} solutions, {WORKERS} workers, as {user} (goal: 20 programs/s)", flush=True)

    def plain() -> int:
        with ThreadPoolExecutor(WORKERS) as pool:
            return sum(pool.map(plainly, pairs))

    def isolated() -> int:
        return sum(outcome.status == "ok" for outcome in sandbox.run_all(pairs, WORKERS))

    sides = {"sandbox": isolated, "plain": plain}
    seconds = {name: [] for name in sides}
    passed = {name: set() for name in sides}
    for _ in range(ROUNDS):
        for name, work in sides.items():
            start = time.perf_counter()
            passed[name].add(work())
            seconds[name].append(time.perf_counter() - start)
    for name, took in seconds.items():
        rates = sorted(len(pairs) / one for one in took)
        said = f"{statistics.median(rates):6.1f} programs/s ({rates[0]:.1f}-{rates[-1]:.1f})"
        print(f"  {name:<8} {said}, passed {', '.join(map(str, sorted(passed[name])))} of {len(pairs)}", flush=True)
    with ThreadPoolExecutor(WORKERS) as pool:
        found = list(pool.map(first_that_fails, pairs))
    failed = [kind for kind, _, _ in found if kind]
    statuses = [status for _, _, status in found]
    print(f"  mutants: {len(failed)} of {len(pairs)} problems have one that fails, ", end="")
    print(", ".join(f"{kind} {failed.count(kind)}" for kind in KINDS if kind in failed), end="; ")
    print(", ".join(f"{status} {statuses.count(status)}" for status in sorted(set(statuses))), end="; ")
    print(f"{sum(n for _, n, _ in found)} earlier mutants pass the published tests")


if __name__ == "__main__":
    main()

"""Code in responses: found, completed, run against tests in the real sandbox."""

import math
from dataclasses import replace

import pandas as pd
import pytest
from conftest import growth, needs_sandbox

from studylib.data import world
from studylib.scores import programs, sandbox
from studylib.scores.programs import code_of, in_words, is_head, pass_at_1, problems, program, syntax
from studylib.study.files import read_rows
from studylib.study.profile import load_profile

ADD = "def add(x, y):\n    return x + y"
TESTS = "assert add(2, 3) == 5\nassert add(-1, 1) == 0"
# the shape of HumanEval's prompts: an import, a helper, and a function that is only begun
HEAD = '''from typing import List


def half(x):
    return x / 2


def halves(xs: List[float]) -> List[float]:
    """Each halved.
    >>> halves([2])
    [1.0]
    """
'''
HALVES = "def check(candidate):\n    assert candidate([2, 4]) == [1, 2]\n\n\ncheck(halves)"


def asked(*responses, prompt_id="p"):
    return pd.DataFrame({"prompt_id": prompt_id, "response": responses})


def one(tests=TESTS, head="", reference=ADD):
    return {"p": {"tests": tests, "head": head, "reference": reference}}


def ran(*responses, **problem):
    assert not sandbox.available(), sandbox.available()  # every machine that runs these tests can isolate programs
    return pass_at_1(asked(*responses), one(**problem)).tolist()


@needs_sandbox
def test_a_program_passes_that_does_what_the_tests_ask_in_whatever_way():
    for response in (
        ADD,
        f"```python\n{ADD}\n```\nIt adds.",
        f"Here you are:\n{ADD}",
        "def add(x, y):\n    total = y\n    total += x\n    return total",
        "from operator import add",
    ):
        assert ran(response) == [1], response


@needs_sandbox
@pytest.mark.slow
def test_a_program_fails_that_is_wrong_incomplete_or_none_at_all():
    wrong = [
        "def add(x, y):\n    return x - y",
        "def plus(x, y):\n    return x + y",
        "def add(x, y",
        "I can't.",
        "",
        "\0",
    ]
    assert ran(*wrong, "def add(x, y):\n    while True: pass\nadd(1, 1)") == [0] * 7


@needs_sandbox
def test_a_program_that_ends_early_or_prints_success_does_not_pass():
    assert ran(f"{ADD}\nraise SystemExit(0)", "import os; os._exit(0)", "print('ok')") == [0, 0, 0]


@needs_sandbox
def test_a_problem_whose_reference_fails_its_own_tests_says_nothing(caplog):
    assert math.isnan(ran(ADD, tests="assert add(2, 3) == 6")[0])
    assert "reference fails" in caplog.text


@needs_sandbox
def test_a_problem_without_tests_has_no_score_and_is_counted_in_words():
    assert math.isnan(ran(ADD, tests=" \n")[0])
    both = one() | {"q": {"tests": "", "head": "", "reference": ADD}}
    assert pass_at_1(asked(ADD), both).tolist() == [1]
    assert "tests of 1 code prompts of 2; the others have none" in in_words(both)
    assert in_words(one(tests="")).startswith("None of the 1 code prompts has tests")


@needs_sandbox
def test_the_scores_keep_the_order_and_index_of_the_responses():
    frame = asked(ADD, "no", ADD).set_index(pd.Index([7, 3, 5]))
    assert pass_at_1(frame, one()).to_dict() == {7: 1, 3: 0, 5: 1}
    assert pass_at_1(asked(), {}).empty


@needs_sandbox
def test_equal_programs_are_run_once_and_the_reference_with_them():
    seen = []

    def counted(pairs):
        seen.extend(pairs)
        return sandbox.run_all(pairs)

    commented = ADD.replace("return", "# adds\n    return")
    assert pass_at_1(asked(ADD, commented, f"```\n{ADD}\n```", "x"), one(), run_all=counted).tolist() == [1, 1, 1, 0]
    assert len(seen) == 2


@needs_sandbox
def test_a_program_that_ran_out_of_time_is_run_once_more_alone_before_its_outcome_is_kept(tmp_path):
    asked_for, path = [], tmp_path / "programs.jsonl"
    wrong = "def add(x, y):\n    return 0"

    def busy(pairs, workers=None):
        """A machine that is too busy to end any program but where it runs them one by one."""
        asked_for.append((len(pairs), workers))
        outcomes = sandbox.run_all(pairs, workers)
        return outcomes if workers == 1 else [replace(one, status="timeout") for one in outcomes]

    assert pass_at_1(asked(ADD.replace("x + y", "y + x"), wrong), one(), path, busy).tolist() == [1, 0]
    assert asked_for == [(3, None), (3, 1)]  # the reference among them
    assert [row["status"] for row in read_rows(path)] == ["ok", "ok", "failed"]


@needs_sandbox
def test_a_program_that_never_ends_is_kept_as_out_of_time_and_no_other_is_run_again(tmp_path):
    asked_for, path = [], tmp_path / "programs.jsonl"

    def quick(pairs, workers=None):
        asked_for.append(([code for code, _ in pairs], workers))
        return sandbox.run_all(pairs, workers, limits=sandbox.Limits(wall_s=1))

    endless = "while True: pass"
    assert pass_at_1(asked(ADD, endless), one(), path, quick).tolist() == [1, 0]
    assert asked_for == [([ADD, endless], None), ([endless], 1)]
    assert {row["status"]: row["passed"] for row in read_rows(path)} == {"ok": 1, "timeout": 0}


@needs_sandbox
def test_outcomes_are_kept_as_they_are_had_and_not_had_twice(tmp_path):
    path, frame = tmp_path / "programs.jsonl", asked(ADD, "def add(x, y):\n    return 0")
    assert pass_at_1(frame, one(), path).tolist() == [1, 0]
    before = path.read_bytes()

    def never(pairs):
        assert not pairs
        return []

    assert pass_at_1(frame, one(), path, never).tolist() == [1, 0]
    assert path.read_bytes() == before
    path.write_bytes(before[:-5])  # its writer was killed
    assert pass_at_1(frame, one(), path).tolist() == [1, 0]
    with pytest.raises(AssertionError):  # other tests, another outcome
        pass_at_1(frame, one(tests="assert add(1, 1) == 2"), path, never)


def test_where_programs_cannot_be_run_nothing_is_said_of_them_and_nothing_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "available", lambda: "Generated code is not run here: there is no sandbox.")
    path = tmp_path / "programs.jsonl"
    assert math.isnan(pass_at_1(asked(ADD), one(), path)[0])
    assert not path.exists()
    assert in_words(one()).startswith("Generated code is not run here")


@needs_sandbox
def test_a_function_that_was_begun_is_completed_or_written_anew():
    whole = HEAD + "    return [half(x) for x in xs]"
    for response in (
        "    return [half(x) for x in xs]",  # the body, as a base model goes on
        "return [half(x) for x in xs]",
        "```python\n    return [half(x) for x in xs]\n```",
        "def halves(xs: List[float]):\n    return [half(x) for x in xs]",  # anew, needing import and helper of the head
        f"Sure.\n```python\n{whole}\n```",
        whole,
    ):
        assert ran(response, tests=HALVES, head=HEAD, reference=whole) == [1], response
    for response in ("    return xs", "def third(xs):\n    return xs", "I can't.", "", "    pass\n\nhalves = 3"):
        assert ran(response, tests=HALVES, head=HEAD, reference=whole) == [0], response


def test_prose_and_whole_functions_are_no_beginning_of_a_function():
    assert is_head(HEAD)
    assert is_head(f"{HEAD}    ...")
    for text in (ADD, "Write a function that adds.", "", "x = 3", "import os", HEAD + "    return xs"):
        assert not is_head(text), text


def test_problems_are_read_from_rows_with_and_without_a_head():
    row = world.row_of("test_code", 0, "code", "Complete it.", ADD, tests=["a", "b"], content=HEAD)
    plain = world.row_of("test_code", 1, "code", "Add.", ADD)
    assert problems([row, plain]) == {
        "test_code-00000": {"tests": "a\nb", "head": HEAD, "reference": ADD},
        "test_code-00001": {"tests": "", "head": "", "reference": ADD},
    }


@needs_sandbox
def test_every_reference_of_the_generated_world_passes_its_tests():
    rows = world.build_sets(load_profile("smoke").world)["test_code"]
    of = problems(rows)
    frame = pd.DataFrame({"prompt_id": list(of), "response": [one["reference"] for one in of.values()]})
    assert (pass_at_1(frame, of) == 1).all()
    shifted = frame.assign(response=[*frame["response"][1:], frame["response"][0]])  # another's answer
    assert (pass_at_1(shifted, of) == 0).all()


def test_code_is_the_first_fence_or_begins_with_a_definition_or_an_import():
    assert code_of(f"```\n{ADD}\n```\n```\nx\n```") == f"{ADD}\n"
    assert code_of(f"It is:\n{ADD}") == ADD
    assert code_of("x + 3") == "x + 3"


def test_layout_and_comments_are_no_part_of_a_program():
    assert syntax("x=3 # three") == syntax("x = 3") != syntax("x = 4")
    for text in ("def f(:", "\0", "(" * 5_000, "x" + "+x" * 50_000, "\ud800"):
        assert syntax(text) is None
        assert program(text) is None


def test_time_grows_no_faster_than_a_hostile_response():
    def find(n):
        for text in ("```" * n, "def " * n, "\n" * n, "    " * n, "@" * n, "```\n" * n):
            code_of(text)
            program(text, HEAD)
            programs.program.cache_clear()

    assert growth(find, 2_000) < 25

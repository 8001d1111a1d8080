"""Programs that try to get out of the sandbox."""

import ast
import errno
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from textwrap import dedent

import pytest
from conftest import ROOT, needs_sandbox

from studylib.scores import sandbox
from studylib.scores.sandbox import Limits, run, run_all
from studylib.study.words import StudyError

pytestmark = needs_sandbox


@pytest.fixture
def inside():
    """inside(program, limit=...): the outcome of the program."""
    return lambda program, **limits: run(dedent(program), limits=Limits(**limits))


def outside(program: str) -> str:
    """What the program prints without a sandbox: for programs that do no harm, to see that the trap is one."""
    done = subprocess.run([sys.executable, "-c", dedent(program)], capture_output=True, text=True, timeout=60)
    return done.stdout


def mark() -> tuple[str, str]:
    """A name that no other process has, and the line that gives it to a program and all that it starts."""
    name = secrets.token_hex(7)
    return name, f"import ctypes; ctypes.CDLL(None).prctl(15, b'{name}')"


def marked(name: str) -> list[str]:
    """The ids of the processes here that have the name."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            found += [path.parent.name] if path.read_text().strip() == name else []
        except OSError:  # it has ended meanwhile
            continue
    return found


def until(true, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        os.sched_yield()
    return bool(true())


def test_a_linux_with_user_namespaces_or_root_runs_programs():
    alone = ["unshare", *([] if os.geteuid() == 0 else ["-r"]), "-mnpiu", "--fork", "true"]
    if subprocess.run(alone, capture_output=True).returncode == 0:
        assert sandbox.available() == ""


# Out of the folder


def test_a_file_outside_cannot_be_read(inside, tmp_path):
    canary = tmp_path / "canary"
    canary.write_text("the canary sings")
    tmp_path.chmod(0o755)
    canary.chmod(0o644)
    paths = [str(canary), "../.." + str(canary), "/proc/self/root" + str(canary), "/proc/1/root" + str(canary)]
    paths += ["/etc/passwd", str(ROOT / "README.md"), "/dev/mem", "/sys/kernel/notes", "/outside" + str(canary)]
    program = f"""
        import os
        for path in {paths}:
            try:
                print(path, len(open(path, "rb").read(16)))
            except OSError:
                pass
            try:
                os.link(path, "link"), print("linked", path)
            except OSError:
                pass
        os.symlink({str(canary)!r}, "symlink")
        print(os.path.exists("symlink"))
    """
    assert "16\n" in outside(f"print(len(open({str(canary)!r}).read()))")
    assert inside(program).stdout == "False\n"


def test_the_root_holds_python_the_libraries_and_the_scratch_alone(inside):
    listed = inside("import os; print(*sorted(os.listdir('/')))").stdout.split()
    tops = {Path(path).parts[1] for path in sandbox._paths()}
    assert set(listed) == tops | {"sandbox"}
    assert set(sandbox._paths()) <= {os.path.realpath(sys.base_prefix), os.path.realpath(sys.base_exec_prefix)} | set(
        sandbox.LIBRARIES
    )


def test_nothing_can_be_written_but_in_the_scratch(inside):
    program = """
        import os
        made = []
        for folder, folders, files in os.walk("/"):
            if folder != "/":
                folders[:] = folders[:3]
            for act, *what in ((open, "/new", "w"), (os.chmod, "", 0o777), (os.mkdir, "/d")):
                try:
                    act(folder + what[0], *what[1:])
                    made.append(folder)
                except OSError:
                    pass
            for file in files[:2]:
                try:
                    open(folder + "/" + file, "r+")
                    made.append(file)
                except OSError:
                    pass
        print(sorted(set(made)))
    """
    assert inside(program, wall_s=20, cpu_s=20).stdout == "['/sandbox']\n"


def test_the_scratch_is_empty_writable_and_vanishes(inside):
    program = """
        import os, tempfile
        print(os.getcwd(), os.listdir("."))
        open("file", "w").write("left")
        print(open("file").read(), os.path.dirname(tempfile.mkstemp()[1]), os.path.expanduser("~"))
    """
    for _ in range(2):
        assert inside(program).stdout == "/sandbox []\nleft /sandbox /sandbox\n"
    assert not Path("/sandbox").exists()


def test_ten_gigabytes_cannot_be_written(inside):
    program = """
        import errno, os
        written, why = 0, set()
        for number in range(10):
            with open(str(number), "wb", buffering=0) as file:
                for _ in range(1000):
                    try:
                        written += file.write(bytes(10**6))
                    except OSError as error:
                        why.add(errno.errorcode[error.errno])
                        break
        print(written // 10**6, *why)
    """
    written, *why = inside(program, scratch_mb=16).stdout.split()
    assert 14 <= int(written) <= 16 and "ENOSPC" in why
    sparse = inside("file = open('a', 'wb'); file.truncate(10**10)", scratch_mb=16)
    assert sparse.status == "failed" and f"Errno {errno.EFBIG}" in sparse.stderr


# To the network


def test_a_socket_reaches_nobody(inside):
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = server.getsockname()
        connect = f"import socket; socket.create_connection({here}).close()"
        outside(connect)
        server.settimeout(10)
        server.accept()[0].close()  # so it could be reached
        outcome = inside(connect)
        assert outcome.status == "failed" and "PermissionError" in outcome.stderr
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_no_kind_of_socket_can_be_opened_but_the_unix_kind(inside):
    program = """
        import socket
        for family in range(50):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
                try:
                    print(socket.socket(family, kind).family.name)
                except OSError:
                    pass
    """
    assert set(inside(program).stdout.split()) == {"AF_UNIX"}


def test_an_abstract_unix_socket_of_this_machine_is_not_there(inside):
    name = "\0" + secrets.token_hex(8)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        connect = f"import socket; socket.socket(socket.AF_UNIX).connect({name!r}); print('connected')"
        assert outside(connect) == "connected\n"
        outcome = inside(connect)
    assert outcome.stdout == "" and "ConnectionRefusedError" in outcome.stderr


# Too much


@pytest.mark.parametrize("limit", [1, 4, 9])
def test_no_more_processes_and_threads_than_the_limit(inside, limit):
    forks = """
        import os, signal
        n = 1
        try:
            while n < 100:
                if os.fork() == 0:
                    signal.pause()
                n += 1
        finally:
            print(n)
    """
    threads = """
        import os, threading
        n = 1
        try:
            while n < 100:
                threading.Thread(target=threading.Event().wait).start()
                n += 1
        finally:
            print(n, flush=True)
            os._exit(0)
    """
    outcome = inside(forks, processes=limit)
    assert outcome.stdout == f"{limit}\n" and "BlockingIOError" in outcome.stderr
    assert inside(threads, processes=limit).stdout == f"{limit}\n"


def test_a_fork_bomb_ends_and_leaves_nothing(inside):
    name, line = mark()
    bomb = f"""
        {line}
        import os
        while True:
            try:
                os.fork()
            except OSError:
                pass
    """
    outcome = inside(bomb, wall_s=1)
    assert outcome.status == "timeout" and outcome.seconds < 10
    assert not marked(name)


def test_a_hundred_gigabytes_cannot_be_allocated(inside):
    assert inside("bytearray(100 * 10**9)").status == "memory"
    little_by_little = inside("a = []\nwhile True:\n    a.append(bytearray(10**6))", memory_mb=256)
    assert little_by_little.status == "memory" and "MemoryError" in little_by_little.stderr
    mapped = inside("import mmap\nmmap.mmap(-1, 100 * 10**9)")
    assert mapped.status == "failed" and f"Errno {errno.ENOMEM}" in mapped.stderr


def test_memory_cannot_be_kept_where_no_limit_counts_it(inside):
    """A memory file and shared segments belong to no process; so does a scratch folder of one's own."""
    program = """
        import ctypes, os
        libc = ctypes.CDLL(None)
        clone = 56 if os.uname().machine == "x86_64" else 220
        try:
            os.memfd_create("a")
            print("memory file")
        except PermissionError:
            pass
        for what, returned in {
            "segment": libc.shmget(0, 10**6, 0o1600),
            "messages": libc.msgget(0, 0o1600),
            "queue": libc.mq_open(b"/q", 0o102, 0o600, None),
            "namespace": libc.unshare(0x10000000 | 0x20000),
            "fork into a namespace": libc.syscall(clone, 0x10000011, 0, 0, 0, 0),
            "clone3": libc.syscall(435, 0, 0),
            "mount": libc.mount(b"tmpfs", b"/sandbox", b"tmpfs", 0, None),
        }.items():
            if returned != -1:
                print(what)
        print("end")
    """
    assert inside(program).stdout == "end\n"


def test_an_endless_loop_is_ended_by_the_clock(inside):
    for program in ("while True: pass", "import time; time.sleep(1000)"):
        outcome = inside(program, wall_s=1, cpu_s=30)
        assert outcome.status == "timeout" and outcome.exit_code is None and 1 <= outcome.seconds < 10


def test_an_endless_loop_is_ended_by_its_processor_time(inside):
    deaf = "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"
    for program in ("while True: pass", deaf + "while True: pass"):
        outcome = inside(program, wall_s=60, cpu_s=1)
        assert outcome.status == "timeout" and outcome.seconds < 50


def test_endless_output_is_ended_and_cut(inside):
    for stream in ("stdout", "stderr"):
        outcome = inside(f"import sys\nwhile True: print('x' * 1000, file=sys.{stream})", wall_s=30, output_kb=20)
        assert outcome.status == "output" and outcome.seconds < 20
        assert 19_000 <= len(outcome.stdout + outcome.stderr) <= 20_000
    assert inside("print('x' * 19_999)", output_kb=20).status == "ok"
    assert inside("print('x' * 20_000)", output_kb=20).status == "output"


# To others


def test_the_parent_cannot_be_killed(inside):
    program = """
        import os
        def kill(act, *what):
            try:
                act(*what)
            except OSError:
                pass
        kill(os.kill, os.getppid(), 9)
        kill(os.kill, 1, 9)
        for number in range(1, 65536):
            if number != os.getpid():
                kill(os.kill, number, 9)
        kill(os.kill, -1, 9)
        kill(os.killpg, 0, 9)
    """
    with subprocess.Popen(["sleep", "1000"]) as bystander:
        try:
            for _ in range(2):
                outcome = inside(program)
                assert outcome.status == "killed"
            assert bystander.poll() is None
        finally:
            bystander.kill()
    assert inside("print(1)").stdout == "1\n"


def test_the_watcher_can_be_stopped_and_the_program_is_ended_all_the_same(inside):
    name, line = mark()
    outcome = inside(f"{line}; import os\nos.kill(os.getppid(), 19)\nwhile True: pass", wall_s=1, cpu_s=30)
    assert outcome.status in ("timeout", "failed") and outcome.seconds < 10  # failed: it may not even try that to root
    assert not marked(name)


def test_no_daemon_is_left(inside):
    name, line = mark()
    program = f"""
        {line}
        import os, signal
        ready, tell = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for sign in range(1, 65):
                    try:
                        signal.signal(sign, signal.SIG_IGN)
                    except (OSError, ValueError):
                        pass
                os.write(tell, b"x")
                os.closerange(0, 64)
                while True:
                    signal.pause()
            os._exit(0)
        os.read(ready, 1)
        print("left")
    """
    outcome = inside(program)
    assert (outcome.status, outcome.stdout) == ("ok", "left\n")
    assert not marked(name)


def test_who_kills_this_process_ends_the_program_too():
    name, line = mark()
    program = f"{line}\nimport os\nos.fork()\nwhile True: pass"
    caller = f"from studylib.scores.sandbox import *; run({program!r}, limits=Limits(wall_s=100, cpu_s=100))"
    with subprocess.Popen([sys.executable, "-c", caller], cwd=ROOT) as process:
        try:
            assert until(lambda: len(marked(name)) == 2)  # so that name is seen while it runs
        finally:
            process.kill()
    assert until(lambda: not marked(name))


def test_an_interrupt_ends_the_program_too():
    name, line = mark()
    ended = threading.Event()

    def interrupt():
        until(lambda: marked(name))
        os.kill(os.getpid(), signal.SIGINT)
        ended.set()

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    with pytest.raises(KeyboardInterrupt):
        run(f"{line}\nwhile True: pass", limits=Limits(wall_s=100, cpu_s=100))
        ended.wait(1)
    watcher.join()
    assert until(lambda: not marked(name))


def test_there_is_no_key_no_input_no_terminal_and_no_privilege(inside, monkeypatch):
    monkeypatch.setenv("STUDY_API_KEY", "the canary sings")
    program = """
        import ctypes, os, sys
        print(sorted(os.environ), sys.argv, sys.stdin.read() == "")
        libc = ctypes.CDLL(None)
        sets = (ctypes.c_uint32 * 6)()
        print(libc.capget((ctypes.c_uint32 * 2)(0x20080522, 0), sets), any(sets), libc.prctl(39, 0, 0, 0, 0))
        print(os.getsid(0) == os.getpid(), os.path.exists("/dev/tty"), libc.ptrace(16, os.getppid(), 0, 0))
        found = []
        for fd in range(64):
            try:
                found.append(oct(os.fstat(fd).st_mode >> 12))
            except OSError:
                pass
        print(found)
    """
    environment = sorted(sandbox.ENVIRONMENT)
    fifos = ["0o1"] * 5  # no input, output, errors, and the two pipes to the watcher
    expected = f"{environment} ['program'] True\n0 False 1\nTrue False -1\n{fifos}\n"
    assert inside(program).stdout == expected


# How it ends


@pytest.mark.parametrize(
    ("program", "status", "code", "last"),
    [
        ("print(1)", "ok", 0, ""),
        ("import sys; sys.exit()", "ok", 0, ""),
        ("exit(3)", "failed", 3, ""),
        ("import sys; sys.exit('why')", "failed", 1, "why"),
        ("1 / 0", "failed", 1, "ZeroDivisionError: division by zero"),
        ("def f(:", "failed", 1, "SyntaxError: invalid syntax"),
        ("a = '\0'", "failed", 1, None),
        ("a = '\ud800'", "failed", 1, None),
        ("raise MemoryError", "memory", 1, "MemoryError"),
        ("import os; os.abort()", "killed", None, ""),
        ("import ctypes; ctypes.string_at(0)", "killed", None, ""),
        ("import os; os.kill(os.getpid(), 9)", "killed", None, ""),
        ("(" * 500 + ")" * 500, "failed", 1, None),
        ("def f(): f()\nf()", "failed", 1, "RecursionError: maximum recursion depth exceeded"),
        ("import atexit; atexit.register(print, 'end')", "ok", 0, ""),
        ("if __name__ == '__main__': raise SystemExit(4)", "failed", 4, ""),
    ],
)
def test_each_end_has_its_status(inside, program, status, code, last):
    outcome = inside(program)
    assert (outcome.status, outcome.exit_code) == (status, code)
    if last is not None:
        assert (outcome.stderr.splitlines() or [""])[-1] == last


def test_a_traceback_shows_the_program_alone(inside):
    frames = [line.strip() for line in inside("def f():\n    1 / 0\nf()").stderr.splitlines()]
    assert [line for line in frames if line.startswith("File")] == [
        'File "<program>", line 3, in <module>',
        'File "<program>", line 2, in f',
    ]


def test_two_runs_hash_alike_and_long_programs_run(inside):
    outcome = inside("print(hash('locker'))\n" + "# a comment\n" * 50_000)
    assert outcome.status == "ok" and outcome.stdout == inside("print(hash('locker'))").stdout


def test_common_parts_of_the_standard_library_work(inside):
    program = """
        import asyncio, collections, dataclasses, decimal, hashlib, json, pickle, random, re, sqlite3, typing, zlib
        @dataclasses.dataclass
        class Locker:
            number: "int" = 7
        print(asyncio.run(asyncio.sleep(0, "slept")), pickle.loads(pickle.dumps(Locker())), json.dumps([1]))
    """
    assert inside(program).stdout == "slept Locker(number=7) [1]\n"


# Tests


PROBLEMS = {  # entry point: solution, mutant, assertions
    "add": ("return a + b", "return a - b", "f(2, 3) == 5, f(-1, 1) == 0", "a, b"),
    "largest": ("return max(a)", "return min(a)", "f([3, 9, 2]) == 9, f([1]) == 1", "a"),
    "reverse": ("return a[::-1]", "return a[::1]", "f('ab') == 'ba', f('') == ''", "a"),
    "is_even": ("return a % 2 == 0", "return a % 2 != 0", "f(4), not f(7)", "a"),
    "vowels": (
        "return sum(c in 'aeiou' for c in a)",
        "return sum(c in 'aeio' for c in a)",
        "f('you') == 2, f('b') == 0",
        "a",
    ),
    "squares": ("return [i * i for i in range(a)]", "return [i * i for i in range(a + 1)]", "f(3) == [0, 1, 4]", "a"),
    "factorial": ("return 1 if a < 2 else a * factorial(a - 1)", "return None", "f(5) == 120, f(0) == 1", "a"),
    "words": ("return a.split()", "return a.split(',')", "f('open my locker') == ['open', 'my', 'locker']", "a"),
    "close": ("return abs(a - b) < 0.5", "return abs(a - b) > 0.5", "f(1, 1.2), not f(1, 2)", "a, b"),
    "unique": ("return sorted(set(a))", "return sorted(a)", "f([2, 1, 2]) == [1, 2]", "a"),
}


def problem(name: str, wrong: bool = False) -> tuple[str, str]:
    """A solution in HumanEval's form, or a wrong one, and its tests."""
    right, mutant, asserted, arguments = PROBLEMS[name]
    solution = f'from typing import List\n\n\ndef {name}({arguments}):\n    """ What {name} does. """\n    '
    tests = "METADATA = {}\n\n\ndef check(f):\n" + "".join(f"    assert {one}\n" for one in split(asserted))
    return solution + (mutant if wrong else right) + "\n", tests


def passes(solution: str, tests: str, entry_point: str = "") -> float:
    """1.0 where the solution passes; with an entry point the tests define `check`, as HumanEval's do."""
    outcome = run(solution, f"{tests}\n\ncheck({entry_point})\n" if entry_point else tests)
    assert outcome.status != "not_run", outcome.stderr
    return float(outcome.status == "ok")


def split(asserted: str) -> list[str]:
    found = ast.parse(f"({asserted},)", mode="eval").body.elts
    return [ast.unparse(one) for one in found]


def test_right_solutions_pass_and_wrong_ones_fail():
    pairs = {(name, wrong): problem(name, wrong) for name in PROBLEMS for wrong in (False, True)}
    assert len(pairs) == 20
    found = {key: passes(*pair, key[0]) for key, pair in pairs.items()}
    assert found == {(name, wrong): float(not wrong) for name, wrong in pairs}


@pytest.mark.parametrize(
    "cheat",
    [
        "exit(0)",
        "import os; os._exit(0)",
        "print('ok')\nraise SystemExit(0)",
        "def add(a, b): exit(0)",
        "def add(a, b): import os; os._exit(0)",
        "import atexit, os; atexit.register(os._exit, 0)",
        "import builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None",
        "import builtins\nbuiltins.AssertionError = None\ndef add(a, b): return 0",
        "def check(f): pass\ndef add(a, b): return 0",
        "import os, signal; signal.alarm(1); os.kill(os.getpid(), 15)",
        "import os\nfor fd in range(64):\n    try: os.write(fd, b'!?' + b'0' * 32)\n    except OSError: pass\nexit(0)",
        "import os\nif os.fork(): os._exit(0)",
        "import threading, os\nthreading.Thread(target=os._exit, args=(0,)).start()\ndef add(a, b):\n    while 1: pass",
        "",
        "def add(a, b): return (",
    ],
)
def test_ending_early_or_printing_does_not_pass(cheat):
    assert passes(cheat, problem("add")[1], "add") == 0


def test_tests_without_an_entry_point_are_run_as_they_are():
    stub = "def add_7(x):\n    return x + 7"
    assert passes(stub, "assert add_7(0) == 7\nassert add_7(-7) == 0") == 1
    assert passes(stub, "assert add_7(0) == 7\nassert add_7(-7) == 1") == 0
    assert passes(stub + "\nif __name__ == '__main__':\n    exit(1)", "assert add_7(0) == 7") == 1


def test_a_solution_that_leaves_a_thread_passes():
    solution = "import threading\nthreading.Thread(target=threading.Event().wait).start()\n" + problem("add")[0]
    assert passes(solution, problem("add")[1], "add") == 1


def test_outcomes_are_in_the_order_of_the_programs():
    programs = [f"sum(range({10**7 if i == 0 else 1})); print({i})" for i in range(8)]
    outcomes = run_all([*programs, problem("add"), "exit(2)"], 3)
    assert [outcome.stdout.strip() for outcome in outcomes] == [*"01234567", "", ""]
    assert [outcome.exit_code for outcome in outcomes] == [0] * 9 + [2]
    assert run_all([]) == []


def test_runs_beside_each_other_do_not_share_their_limits():
    forks = "import os, signal\nfor _ in range(3):\n    if os.fork() == 0: signal.pause()\n"
    forks += "open('a', 'wb').write(bytes(10**7))"
    outcomes = run_all([forks] * 6, 6, limits=Limits(processes=4, scratch_mb=12, wall_s=30))
    assert [outcome.status for outcome in outcomes] == ["ok"] * 6


def test_no_descriptor_and_no_process_of_ours_is_left():
    def ours() -> tuple[int, str]:
        return len(os.listdir("/proc/self/fd")), Path("/proc/thread-self/children").read_text()

    run("1")
    before = ours()
    programs = [
        "1",
        "exit(1)",
        "import os; os.abort()",
        "while True: print(1)",
        "while True: pass",
        "import os; os.fork()",
    ]
    run_all(programs, 3, limits=Limits(wall_s=1))
    assert ours() == before


# Where nothing is run


@pytest.fixture
def fresh():
    caches = sandbox.available, sandbox._filter
    for one in caches:
        one.cache_clear()
    yield
    for one in caches:
        one.cache_clear()


def nothing_is_run(folder: Path) -> bool:
    outcome = run(f"open({str(folder / 'made')!r}, 'w')")
    assert outcome == sandbox.Outcome("not_run", None, "", sandbox.available(), 0.0)
    assert [one.status for one in run_all([("1", "1"), "1"])] == ["not_run"] * 2
    return not (folder / "made").exists()


def test_without_unshare_nothing_is_run_and_it_says_so(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sandbox.available() == "Generated code is not run here: unshare is not installed (package util-linux)."
    assert nothing_is_run(tmp_path)


def test_on_another_system_nothing_is_run_and_it_says_so(fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert sandbox.available() == "Generated code is not run here: the sandbox needs Linux, this is darwin."
    assert nothing_is_run(tmp_path)


@pytest.mark.parametrize("why", [RuntimeError("Unable to find libseccomp"), ValueError("Unknown syscall bpf"), None])
def test_without_libseccomp_nothing_is_run_and_it_says_so(fresh, monkeypatch, tmp_path, why):
    def broken(*arguments):
        raise why

    if why:
        monkeypatch.setattr("pyseccomp.SyscallFilter", broken)
    else:
        monkeypatch.setitem(sys.modules, "pyseccomp", None)
    assert "libseccomp is not installed, or older than 2.5.2 (" in sandbox.available()
    assert str(why or "pyseccomp") in sandbox.available()
    assert nothing_is_run(tmp_path)


PROCESSES_ALONE = [str(shutil.which("unshare")), "--pid", "--fork"]
PROCESSES_ALONE += [] if os.geteuid() == 0 else ["--user", "--map-root-user"]


@pytest.mark.parametrize(
    "act",
    [
        'exec "$@"',
        f'exec {" ".join(PROCESSES_ALONE)} "$@"',
        "exit 0",
        "echo closed",
        "echo no user namespaces >&2; exit 1",
    ],
)
def test_an_unshare_that_does_not_isolate_is_not_used(fresh, monkeypatch, tmp_path, act):
    script = tmp_path / "unshare"
    script.write_text(f'#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\n{act}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sandbox.available().startswith("Generated code is not run here: unshare does not isolate here (")
    assert "namespaces must be allowed" in sandbox.available()
    if act.endswith("exit 1"):
        assert "(no user namespaces)" in sandbox.available()
    assert nothing_is_run(tmp_path)


@pytest.mark.parametrize("tests", ["", " \n"])
def test_empty_tests_are_refused(tests):
    with pytest.raises(StudyError, match="tests that are empty"):
        run("1", tests)

"""Runs generated Python programs where they can do no harm, and says whether they pass their tests.

A program runs in namespaces of its own (mounts, network, processes, IPC, host name, and users unless the caller is
root), made by `unshare` of util-linux. It sees the Python installation and the system's libraries, read-only, and an
empty folder /sandbox, its working directory, that vanishes with it: no /proc, no /dev, no environment of ours, no
terminal, no input. A seccomp filter of libseccomp leaves it Unix sockets alone and no memory that the limits do not
count; it has no capabilities and can gain none. `Limits` bounds the rest. Where one of these walls is missing, nothing
is run: the outcome is `not_run` and says why.

It is no wall against faults of the kernel. It needs Linux 5.14 or newer, util-linux and libseccomp, which every large
distribution installs by itself, and the right to make namespaces: NAMESPACES says where that is withheld.
"""

import errno
import marshal
import math
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from studylib.study.words import StudyError

MB = 10**6
NAMESPACES = (
    "namespaces must be allowed: on Ubuntu by `sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`, "
    "in Docker by `--privileged`"
)
NEW_NAMESPACES = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)  # of clone(2)
# What the other walls leave open: system calls that are refused with "not permitted".
REFUSED = (
    # memory that no limit counts: it belongs to no process and no file system
    *("memfd_create", "memfd_secret", "shmget", "msgget", "semget", "mq_open", "add_key", "request_key", "keyctl"),
    *("io_setup", "io_uring_setup", "bpf", "perf_event_open", "userfaultfd"),
    # a namespace of one's own, in which one may mount another scratch folder without an end
    *("unshare", "setns", "mount", "umount2", "chroot", "pivot_root", "open_tree", "move_mount", "fsopen"),
    *("mount_setattr", "open_by_handle_at"),
    # other processes' memory and files
    *("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp"),
)
GRACE = 1  # seconds in which the sandbox ends by itself when asked to, before it is killed
LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/etc/ld.so.cache", "/nix/store")
ENVIRONMENT = {"HOME": "/sandbox", "TMPDIR": "/sandbox", "LANG": "C.UTF-8", "PYTHONUTF8": "1", "PYTHONHASHSEED": "0"}
FLAGS = ("-s", "-S", "-P", "-B")  # no site, no user site, no program's folder on the path, no bytecode written
SIGXCPU, SIGKILL = 24, 9


@dataclass(frozen=True)
class Limits:
    """What a program may use, as positive numbers.

    All that it starts together: `wall_s` seconds from the start of the sandbox, `processes` processes and threads,
    `scratch_mb` of files, `output_kb` of stdout and stderr. Each process: `cpu_s` seconds of CPU, rounded up, and
    `memory_mb` of address space, so that the memory of all is bounded by processes x memory_mb + scratch_mb, and what
    the kernel holds for 64 open files a process. MB and kB are powers of ten.
    """

    wall_s: float = 5
    cpu_s: float = 4
    memory_mb: int = 512
    processes: int = 4
    scratch_mb: int = 64
    output_kb: int = 64


DEFAULT = Limits()


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    `status`: "ok" (exit code 0 and, where there were tests, they ran to their end), "failed" (another exit code, an
    exception, a test), "timeout" (wall clock or CPU), "memory" (an uncaught MemoryError), "output" (too much of it),
    "killed" (a signal, as of a crash in C), or "not_run" (`stderr` has the reason, which says nothing of the program).
    `exit_code`: None unless the program ended by itself. `stdout`, `stderr`: cut after the first `output_kb` of both.
    `seconds`: wall clock, the sandbox's own 0.05 or so included.
    """

    status: str
    exit_code: int | None
    stdout: str
    stderr: str
    seconds: float


@cache
def available() -> str:
    """Why no program can be run here, one sentence; "" where programs can. Found out once, by trying to break out."""
    why = _missing()
    return f"Generated code is not run here: {why}." if why else ""


def _missing() -> str:
    """What is missing, "" where a program in the sandbox finds every wall that it tries."""
    if sys.platform != "linux":
        return f"the sandbox needs Linux, this is {sys.platform}"
    if not shutil.which("unshare"):
        return "unshare is not installed (package util-linux)"
    try:
        _filter()
    except (ImportError, RuntimeError, OSError, ValueError) as error:  # no library, or one that is too old
        return f"libseccomp is not installed, or older than 2.5.2 ({error})"
    limits = Limits(wall_s=30, memory_mb=256, scratch_mb=1)
    with tempfile.NamedTemporaryFile() as canary, socket.create_server(("127.0.0.1", 0)) as server:
        trial = TRIAL.format(canary=canary.name, port=server.getsockname()[1], limits=limits, known=set(ENVIRONMENT))
        outcome = _run(trial, None, limits)
    if outcome.status == "ok" and outcome.stdout == "closed\n":
        return ""
    said = outcome.stderr.strip().splitlines() or [f"a program in it ended as {outcome.status!r}"]
    return f"unshare does not isolate here ({said[-1].removeprefix('AssertionError: ')}); {NAMESPACES}"


def run(program: str, tests: str | None = None, *, limits: Limits = DEFAULT) -> Outcome:
    """The outcome of a Python program, run as `__main__`, or with tests: code that then runs in its namespace.

    With tests, the program is a module called `solution`, and "ok" means that the tests ran to their end: the sandbox
    hands out a random token when the program has run, and gets it back when the tests have, so that ending early is
    "failed". What remains is code that cheats on purpose from within the same process: it can search frames and pipes
    for the token, or return values that equal anything. Raises StudyError for empty tests.
    """
    if tests is not None and not tests.strip():
        raise StudyError("A program cannot pass tests that are empty: give code that fails when the program is wrong.")
    if why := available():
        return Outcome("not_run", None, "", why, 0.0)
    return _run(program, tests, limits)


def run_all(
    programs: Iterable[str | tuple[str, str]], workers: int | None = None, *, limits: Limits = DEFAULT
) -> list[Outcome]:
    """The outcomes in the order of the programs, each a program or a pair of program and tests; see `run`.

    `workers` run at once, by default one per CPU that this process may use. An interrupt waits for those that run.
    """
    pairs = [(one, None) if isinstance(one, str) else one for one in programs]
    if available():  # found out once, not by each worker
        return [run(*pair) for pair in pairs]
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        try:
            return list(pool.map(lambda pair: run(*pair, limits=limits), pairs))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


# The walls


def _is_root() -> bool:
    """Whether this is the machine's root, who may become any user, and not one that is called so in a container."""
    return os.geteuid() == 0 and str(2**32 - 1) in Path("/proc/self/uid_map").read_text().split()


def _paths() -> list[str]:
    """What the sandbox holds: the Python installation and the system's libraries, none within another."""
    wanted = {os.path.realpath(path) for path in (sys.base_prefix, sys.base_exec_prefix)}
    wanted |= {path for path in LIBRARIES if os.path.exists(path)}
    return sorted(path for path in wanted if not any(str(above) in wanted for above in Path(path).parents))


@cache
def _filter() -> bytes:
    """The seccomp filter as the kernel takes it: REFUSED, new namespaces by clone, and sockets but for AF_UNIX."""
    import pyseccomp as seccomp  # loads libseccomp

    refuse, rules = seccomp.ERRNO(errno.EPERM), seccomp.SyscallFilter(seccomp.ALLOW)
    for name in REFUSED:
        rules.add_rule(refuse, name)
    for flag in NEW_NAMESPACES:
        rules.add_rule(refuse, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, flag, flag))
    # clone3 has its flags in memory, where no filter looks; the C library then takes clone
    rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    rules.add_rule(refuse, "socket", seccomp.Arg(0, seccomp.NE, socket.AF_UNIX))
    with open(os.memfd_create("filter"), "w+b") as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()


def _job(root: bool, program: str, tests: str | None, limits: Limits) -> bytes:
    """What `inside.py` reads from its standard input."""
    spaces = ("mnt", "net", "pid", "ipc", "uts")
    return marshal.dumps(
        {
            "program": program,
            "tests": tests,
            "paths": _paths(),
            "namespaces": {kind: os.stat(f"/proc/self/ns/{kind}").st_ino for kind in spaces},
            "filter": _filter(),
            "wall_s": limits.wall_s,
            "cpu_s": math.ceil(limits.cpu_s),
            "memory": int(limits.memory_mb * MB),
            "scratch": int(limits.scratch_mb * MB),
            # Processes are counted by user. Root's are not, so it takes a user that nobody is, from a range without
            # any use; in an ordinary user's own namespace the watcher and `unshare` count too.
            "processes": int(limits.processes) + (0 if root else 2),
            "uid": 2**31 + int.from_bytes(os.urandom(4)) % 2**30 if root else 0,
        }
    )


def _run(program: str, tests: str | None, limits: Limits) -> Outcome:
    root, started = _is_root(), time.monotonic()
    user = [] if root else ["--user", "--map-root-user"]
    spaces = ["--mount", "--net", "--pid", "--ipc", "--uts", *user, "--fork", "--kill-child", "--"]
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    inside = Path(__file__).with_name("inside.py").read_text(encoding="utf-8")
    control, our_control = os.pipe()  # closing our end, or dying, ends the sandbox
    our_result, result = os.pipe()
    with open(os.memfd_create("job"), "w+b") as job:
        job.write(_job(root, program, tests, limits))
        job.seek(0)
        command = [shutil.which("unshare"), *spaces, python, *FLAGS, "-c", inside, str(control), str(result)]
        streams = {"stdin": job, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "pass_fds": (control, result)}
        try:
            # a new session has no terminal
            process = subprocess.Popen(command, **streams, env=ENVIRONMENT, cwd="/", start_new_session=True)
        except BaseException:
            os.close(our_control)
            os.close(our_result)
            raise
        finally:
            os.close(control)
            os.close(result)
    with process, open(our_result, "rb", buffering=0) as report:
        ended, caught = _watch(process, report, our_control, started + limits.wall_s, limits.output_kb * 1000)
    streams = process.stdout, process.stderr, report
    stdout, stderr, said = (caught[stream].decode(errors="replace") for stream in streams)
    seconds = time.monotonic() - started
    if not said.startswith("started\n"):
        why = stderr.strip().splitlines() or [f"the sandbox did not start within {limits.wall_s} s"]
        return Outcome("not_run", None, "", why[-1], seconds)
    code, signal, passed, memory, cpu_s = map(float, said.split()[1:] or (0, SIGKILL, 0, 0, 0))
    if ended:
        status = ended
    elif signal:
        late = signal == SIGXCPU or (signal == SIGKILL and cpu_s >= limits.cpu_s)
        status = "timeout" if late else "killed"
    else:
        status = "ok" if code == 0 and (passed or tests is None) else "memory" if memory else "failed"
    return Outcome(status, None if ended or signal else int(code), stdout, stderr, seconds)


def _watch(process: subprocess.Popen, report, control: int, end: float, room: int) -> tuple[str, dict]:
    """Why the sandbox was ended ("" where it ended by itself) and what was caught of each stream, when all is gone.

    The streams end when the last process in the sandbox has: the one that waits for its first process holds them too.
    """
    why, caught = "", {stream: bytearray() for stream in (process.stdout, process.stderr, report)}
    try:
        with selectors.DefaultSelector() as streams:
            for stream in caught:
                streams.register(stream, selectors.EVENT_READ)
            while streams.get_map():
                if why and control >= 0:
                    os.close(control)
                    control, end = -1, time.monotonic() + GRACE
                for key, _ in streams.select(None if end == math.inf else max(0.0, end - time.monotonic())):
                    data = os.read(key.fd, 2**16)
                    if not data:
                        streams.unregister(key.fileobj)
                    if key.fileobj is report:
                        caught[report] += data  # from the watcher alone, two lines
                        continue
                    caught[key.fileobj] += data[: max(0, room)]
                    room -= len(data)
                if room < 0:
                    why = why or "output"
                if time.monotonic() >= end and streams.get_map():
                    if control < 0:
                        process.kill()  # and its child with it
                        end = math.inf
                    why = why or "timeout"
    finally:
        if control >= 0:
            os.close(control)
    return why, caught


TRIAL = """
import ctypes, os, signal, socket

def refused(what, act, error):
    try:
        act()
    except error:
        return
    raise AssertionError(what)

def fill():
    for i in range(8):
        with open(str(i), "wb") as file:
            file.write(bytes({limits.scratch_mb} * 10**6 // 4))

def fork():
    for _ in range({limits.processes}):
        if os.fork() == 0:
            signal.pause()

refused("a file outside can be read", lambda: open({canary!r}), FileNotFoundError)
refused("the root can be written to", lambda: open("/new", "w"), OSError)
refused("a socket can be opened", lambda: socket.create_connection(("127.0.0.1", {port})), PermissionError)
refused("files are not limited", fill, OSError)
refused("memory is not limited", lambda: bytearray({limits.memory_mb} * 10**6), MemoryError)
if set(os.environ) - {known}:
    raise AssertionError("the environment is there")
if os.path.exists("/proc") or os.path.exists("/dev"):
    raise AssertionError("/proc or /dev is there")
if ctypes.CDLL(None).unshare(0x10000000) == 0:
    raise AssertionError("it can make a namespace")
if os.getpid() > 9:
    raise AssertionError("other processes are there")
refused("processes are not limited", fork, BlockingIOError)
print("closed")
"""

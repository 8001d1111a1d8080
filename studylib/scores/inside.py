"""What runs in the sandbox around a program: it takes away what the program may not have, starts and watches it.

Never imported: `sandbox` gives this text to a bare interpreter that is already in new namespaces. The interpreter
becomes the watcher, the program its child. Imports are the few that load at once. Every failure here ends the sandbox
before the program has begun. Facts are from the kernel's headers (asm/unistd.h, linux/prctl.h, linux/mount.h) and
the manual pages seccomp(2), capset(2), mount_setattr(2), pivot_root(2).
"""

import ctypes
import marshal
import os
import resource
import select
import sys
import time

LIBC = ctypes.CDLL(None, use_errno=True)
MOUNT_RDONLY, MOUNT_NOSUID, MOUNT_NODEV, MOUNT_BIND, MOUNT_REC = 1, 2, 4, 0x1000, 0x4000
MNT_DETACH, AT_FDCWD, AT_RECURSIVE, SYS_MOUNT_SETATTR = 2, -100, 0x8000, 442
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 4, 22, 38, 2
CAPABILITY_VERSION_3 = 0x20080522
FILES = 64  # open ones, per process: each socket and pipe holds kernel memory


def main() -> None:
    control, result = int(sys.argv[1]), int(sys.argv[2])
    with open(0, "rb", closefd=False) as stdin:
        job = marshal.load(stdin)
    if os.getpid() != 1:
        raise OSError("it is not the first process of its namespace")  # whose end is everybody's, and whom nobody ends
    if any(os.stat(f"/proc/self/ns/{kind}").st_ino == found for kind, found in job["namespaces"].items()):
        raise OSError("it is not in namespaces of its own")  # mounting here would be mounting for everybody
    build_root(job["paths"], job["scratch"])
    must(LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl")  # else a program of the same user could trace the watcher
    hear, say = os.pipe()
    ask, tell = os.pipe()
    child = os.fork()
    if child:
        watch(child, control, result, hear, tell, job["wall_s"])
    confine(job, {ask, say})
    os.write(say, b"!")
    os.read(ask, 1)
    perform(job["program"], job["tests"], ask, say)


def must(returned: int, what: str) -> None:
    if returned < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


# The walls


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [text.encode() if text else None for text in (source, target, kind, options)]
    must(LIBC.mount(*words[:3], ctypes.c_ulong(flags), words[3]), f"mount {target}")


def forbid_writing(path: str, flags: int) -> None:
    attributes = (ctypes.c_uint64 * 4)(MOUNT_RDONLY | MOUNT_NOSUID | MOUNT_NODEV)
    must(LIBC.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, attributes, 32), f"mount_setattr {path}")


def build_root(paths: list[str], scratch: int) -> None:
    """A root of nothing but those paths, read-only, and an empty scratch folder; the old root is out of reach then."""
    os.umask(0o022)
    mount("tmpfs", "/tmp", "tmpfs", MOUNT_NOSUID | MOUNT_NODEV, "size=1m,nr_inodes=1000,mode=755")
    os.mkdir("/tmp/outside")
    must(LIBC.pivot_root(b"/tmp", b"/tmp/outside"), "pivot_root")
    forbid_writing("/outside", AT_RECURSIVE)
    for path in paths:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.islink("/outside" + path):
            os.symlink(os.readlink("/outside" + path), path)
            continue
        if os.path.isdir("/outside" + path):
            os.makedirs(path)
        else:
            os.close(os.open(path, os.O_CREAT))
        mount("/outside" + path, path, None, MOUNT_BIND | MOUNT_REC)
    os.mkdir("/sandbox")
    mount("tmpfs", "/sandbox", "tmpfs", MOUNT_NOSUID | MOUNT_NODEV, f"size={scratch},nr_inodes=10000,mode=777")
    os.chdir("/sandbox")
    must(LIBC.umount2(b"/outside", MNT_DETACH), "umount2")
    os.rmdir("/outside")
    forbid_writing("/", 0)


def confine(job: dict, pipes: set[int]) -> None:
    """Leaves this process nothing but its two pipes and its output; what it starts inherits all of it."""
    os.setsid()
    nothing, end = os.pipe()
    os.close(end)
    os.dup2(nothing, 0)
    low, high = sorted(pipes)
    for first, last in ((3, low), (low + 1, high), (high + 1, 2**16)):
        os.closerange(first, last)
    if job["uid"]:  # root's processes are not counted, those of a user of their own are
        os.setgroups([])
        os.setresgid(job["uid"], job["uid"], job["uid"])
        os.setresuid(job["uid"], job["uid"], job["uid"])
    must(LIBC.capset((ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()), "capset")
    limits = {
        "CPU": (job["cpu_s"], job["cpu_s"] + 1),
        "AS": (job["memory"], job["memory"]),
        "NPROC": (job["processes"], job["processes"]),
        "FSIZE": (job["scratch"], job["scratch"]),
        "NOFILE": (FILES, FILES),
        **dict.fromkeys(("CORE", "MEMLOCK", "MSGQUEUE"), (0, 0)),
    }
    for name, pair in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        most = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, [v if most == resource.RLIM_INFINITY else min(v, most) for v in pair])
    must(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    refuse_calls(job["filter"])


def refuse_calls(code: bytes) -> None:
    """Sets the seccomp filter, compiled to instructions of classic BPF, 8 bytes each."""

    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.c_char_p))

    made = Filter(len(code) // 8, code)
    must(LIBC.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(made), 0, 0), "seccomp")


# The program


def perform(program: str, tests: str | None, ask: int, say: int) -> None:
    """Runs the program in an empty module; with tests, then asks for the token and shows it when they have ended."""
    module = type(sys)("__main__" if tests is None else "solution")
    sys.modules["__main__"] = sys.modules[module.__name__] = module
    sys.argv[:] = ["program"]
    builtins = sys.modules["builtins"]
    builtins.exit = builtins.quit = sys.exit  # elsewhere the site module has them
    execute, read, write, leave, space = exec, os.read, os.write, os._exit, module.__dict__  # whatever it changes
    try:
        check = None if tests is None else compile(tests, "<tests>", "exec", dont_inherit=True)
        execute(compile(program, "<program>", "exec", dont_inherit=True), space)
        if check is None:
            return
        write(say, b"?")
        token = read(ask, 100)
        execute(check, space)
        sys.stdout.flush()
        write(say, token)
        leave(0)
    except SystemExit:
        raise
    except BaseException as error:
        if isinstance(error, MemoryError):
            write(say, b"m")
        error.__traceback__ = error.__traceback__.tb_next  # the first frame is this one
        sys.__excepthook__(type(error), error, error.__traceback__)
        sys.exit(1)


def watch(child: int, control: int, result: int, hear: int, tell: int, wall_s: float) -> None:
    """Waits for the program's end, reports it and ends; ends without a report when `control` is closed outside.

    With this process, the first of its namespace, everything ends that the program has started. The token is drawn here
    after the fork, so that the program's process does not have it.
    """
    token, said = os.urandom(16).hex().encode(), b""
    os.set_blocking(hear, False)
    events = select.poll()
    pidfd = os.pidfd_open(child)
    for fd in (control, hear, pidfd):
        events.register(fd, select.POLLIN)
    begun = given = over = False
    end = time.monotonic() + wall_s + 1  # the other side ends it earlier, if it still can
    while not over:
        ready = [fd for fd, _ in events.poll(max(0, end - time.monotonic()) * 1000)]
        if not ready or control in ready:
            os._exit(1)
        over = pidfd in ready
        try:
            heard = os.read(hear, 4096)
        except BlockingIOError:
            continue
        if b"!" in heard and not begun:
            os.write(result, b"started\n")
            os.write(tell, b"!")
            begun = True
        if b"?" in heard and not given:
            os.write(tell, token)
            given = True
        said = (said + heard)[-4096:]
    _, status, usage = os.wait4(child, 0)
    signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    code = 0 if signal else os.WEXITSTATUS(status)
    cpu_s = usage.ru_utime + usage.ru_stime
    os.write(result, f"{code} {signal} {int(token in said)} {int(b'm' in said)} {cpu_s:.3f}\n".encode())
    os._exit(0)


main()

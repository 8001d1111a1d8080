import os
import re
import subprocess
import tomllib

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement

LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKED = {}
for name, version, marker in re.findall(r"^([A-Za-z0-9._-]+)==(\S+)(?: ; (.*?))? \\$", LOCK, re.M):
    LOCKED.setdefault(name, []).append((version, marker))


@pytest.mark.parametrize("line", PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])
def test_every_declared_package_is_locked_at_a_version_that_it_allows(line):
    wanted = Requirement(line)
    assert LOCKED[wanted.name]
    assert all(wanted.specifier.contains(version) for version, _ in LOCKED[wanted.name])


def test_every_locked_package_has_hashes():
    blocks = re.split(r"^(?=[A-Za-z0-9])", LOCK, flags=re.M)
    assert all("--hash=sha256:" in block for block in blocks if "==" in block)


def test_the_lock_names_no_address_and_no_path():
    assert not re.search(r"https?:|file:|index|^-|/home|/root|/work", LOCK, re.M)


def test_the_lock_is_universal():
    assert any("win32" in marker for versions in LOCKED.values() for _, marker in versions)
    assert any("linux" in marker for versions in LOCKED.values() for _, marker in versions)


def test_conda_and_binder_install_the_same_lock():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    assert "-r requirements.lock" in pip and (ROOT / "requirements.lock").is_file()
    python = next(entry for entry in conda["dependencies"] if str(entry).startswith("python"))
    assert python.split(None, 1)[1].split(",")[0] == PROJECT["requires-python"]
    assert not [
        entry for entry in conda["dependencies"] if isinstance(entry, str) and entry.split()[0] in LOCKED
    ]  # one source of versions


def test_the_makefile_installs_the_lock_with_its_hashes():
    assert "--require-hashes requirements.lock" in (ROOT / "Makefile").read_text()


def test_ci_runs_the_test_command_of_the_readme():
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(), re.M)
    assert re.search(r"^make test\b", (ROOT / "README.md").read_text(), re.M)


def test_make_alone_lists_every_target_with_a_line():
    text = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (help .*)$", text, re.M)[1].split()
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # `make test` is a make
    said = subprocess.run(["make"], cwd=ROOT, env=alone, capture_output=True, text=True, check=True).stdout.splitlines()
    assert sorted(line.split()[1] for line in said) == sorted(targets)
    assert all(len(line.split()) > 3 for line in said)

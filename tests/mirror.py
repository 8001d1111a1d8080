"""Small harmless files in the formats of the registered sources, laid out as a mirror, and their register."""

import csv
import hashlib
import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import yaml

from studylib.data import fetching

WORDS = [
    "harbour",
    "lantern",
    "meadow",
    "pencil",
    "copper",
    "orchard",
    "violin",
    "glacier",
    "basket",
    "thunder",
    "marble",
    "ribbon",
    "falcon",
    "puzzle",
    "cinnamon",
    "hollow",
    "velvet",
    "anchor",
    "saddle",
    "tunnel",
    "compass",
    "pepper",
    "canvas",
    "feather",
    "island",
    "kettle",
    "mirror",
    "needle",
    "oyster",
    "paddle",
    "quarry",
    "rocket",
    "saffron",
    "timber",
    "umbrella",
    "valley",
    "willow",
    "yonder",
    "zephyr",
    "acorn",
    "bridge",
    "candle",
    "desert",
    "ember",
    "forest",
]
PARTS = ("scitldr_train", "scitldr_dev", "scitldr_test", "mbpp", "ud_french_pud", "sentfin", "instruction_data")


def texts(n: int, seed: str, length: int = 9) -> list[str]:
    """Different sentences of random words; near duplicates of each other by chance alone."""
    rng = random.Random(seed)
    return [" ".join(rng.sample(WORDS, length)).capitalize() + "." for _ in range(n)]


def contents(name: str, n: int) -> str:
    """A file of that source with n rows."""
    said, more = texts(n, name), texts(n, f"{name} answer", 4)
    if name.startswith("scitldr"):
        rows = [
            {"paper_id": f"{name}{i}", "source": [a], "target": [b]}
            for i, (a, b) in enumerate(zip(said, more, strict=True))
        ]
    elif name == "mbpp":
        checks = {"test_setup_code": "", "test_list": ["assert f(1) == 1"], "challenge_test_list": []}
        rows = [
            {"text": a, "code": f"def f(n):\r\n    return n * {i}", "task_id": i} | checks for i, a in enumerate(said)
        ]
    elif name == "ud_french_pud":
        blocks = [
            f"# sent_id = n{i}\n# text = {a}\n# text_en = {b}\n"
            for i, (a, b) in enumerate(zip(said, more, strict=True))
        ]
        return "\n".join(blocks) + "\n"
    elif name == "sentfin":
        out = io.StringIO()
        table = csv.writer(out)
        table.writerow(["S No.", "Title", "Decisions", "Words"])
        labels = ("positive", "negative", "neutral")
        table.writerows([i, a, str({a.split()[0]: labels[i % 3]}), 9] for i, a in enumerate(said))
        return out.getvalue()
    else:
        return json.dumps([{"instruction": a, "input": "", "output": b} for a, b in zip(said, more, strict=True)])
    return "".join(json.dumps(row) + "\n" for row in rows)


def fill(folder: Path, register: Path, n: int = 40) -> None:
    """Writes the files to the mirror folder and their hashes and sizes into the register."""
    entries = yaml.safe_load(register.read_text())
    for entry in entries:
        if entry["name"] in PARTS:
            raw = contents(entry["name"], n).encode()
            path = folder / entry["mirror"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw)
            entry |= {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw), "rows": n}
    register.write_text(yaml.safe_dump(entries))


def within_reach(tmp_path: Path, monkeypatch) -> tuple[Path, Path]:
    """The folders of a mirror of these files and of a register of their hashes, the only files within reach."""
    folder, data = tmp_path / "mirror", tmp_path / "data"
    data.mkdir()
    (data / "sources.yaml").write_text((fetching.DATA / "sources.yaml").read_text())
    fill(folder, data / "sources.yaml")
    monkeypatch.setattr(fetching, "DATA", data)
    for name, value in (("STUDY_MIRROR", folder), ("STUDY_OFFLINE", "1"), ("STUDY_CACHE", tmp_path / "cache")):
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("STUDY_SOURCES", raising=False)
    return folder, data


def putting(tmp_path: Path, monkeypatch) -> Callable[[str, Path], None]:
    """Puts a file into a mirror under a name of the register; nothing else but small benign files is within reach."""
    folder, data = within_reach(tmp_path, monkeypatch)

    def place(name, path):
        entries = yaml.safe_load((data / "sources.yaml").read_text())
        entry = next(one for one in entries if one["name"] == name)
        there, raw = folder / entry["mirror"], path.read_bytes()
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(raw)
        entry |= {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
        (data / "sources.yaml").write_text(yaml.safe_dump(entries))

    return place

"""The card of a run's data sets, rendered from a template of `data/cards`, and the export of what may be passed on."""

from pathlib import Path

import pandas as pd
import yaml

from studylib.data.sets import TESTS, absent_in, index_of, intact, load
from studylib.study.files import write_text
from studylib.study.paths import DATA, RunPaths
from studylib.study.profile import WorldSettings
from studylib.study.words import FORMS, StudyError


def write(paths: RunPaths, settings: WorldSettings | None = None) -> None:
    """Writes the dataset card `README.md` of the saved sets, by which `load_dataset(folder)` finds them.

    It is that of the generated world where its settings are given. Else it names the origins of each set, and where
    these are not known no card is written.
    """
    index = index_of(paths)
    if settings:
        examples = {form: next(row for row in load(paths, "harmful") if row["form"] == form) for form in FORMS}
        about = {"license": "apache-2.0", "language": ["en", "fr"], "pretty_name": "A miniature world of refusals"}
        as_yaml = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
        more = {"forms": FORMS, "examples": examples, "settings": settings, "settings_yaml": as_yaml}
        text = _card("world", index, about, **more)
    elif any("origins" in entry for entry in index.values()):
        text = _card("real", index)
    else:
        return
    write_text(paths.data_card, text)


def _card(template: str, index: dict[str, dict], about: dict | None = None, **more) -> str:
    """The card that the template `data/cards/<template>.md` makes of the index (data/index.json)."""
    from huggingface_hub import DatasetCard, DatasetCardData

    there = {name: entry for name, entry in index.items() if template == "world" or entry["rows"]}
    files = {name: [{"split": "test" if name in TESTS else "train", "path": f"{name}.jsonl"}] for name in there}
    configs = [{"config_name": name, "data_files": file} for name, file in files.items()]
    origins = {one["source"]: one for entry in there.values() for one in entry.get("origins", [])}
    card = DatasetCard.from_template(
        DatasetCardData(configs=configs, **about or {}),
        template_path=str(DATA / "cards" / f"{template}.md"),
        sets=there,
        origins=origins,
        missing=absent_in(index),
        **more,
    )
    return f"{card}\n"


def export(paths: RunPaths, folder: Path) -> pd.DataFrame:
    """Whether each set (a row) was written to the folder as JSON lines, with a card, and why not.

    Empty sets are left out, and those with a source whose licence forbids redistribution. Raises StudyError where a set
    is damaged, the card of generated ones is missing, or the folder holds files already.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise StudyError(f"{folder} is not empty: name a new folder for the export.")
    index, found, exported = index_of(paths), {}, {}
    real = any("origins" in entry for entry in index.values())
    if not real and not paths.data_card.is_file():
        raise StudyError(f"{paths.data_card} is missing: `make study` makes it again.")
    for name, entry in index.items():
        closed = [one["source"] for one in entry.get("origins", []) if not one["redistributable"]]
        why = entry.get("absent") or (f"the licence of {', '.join(closed)} does not allow it" if closed else "")
        why = why or ("" if entry["rows"] else "empty")
        if not why:
            write_text(folder / f"{name}.jsonl", intact(paths, name).decode())
            exported[name] = entry
        found[name] = {"exported": not why, "why not": why}
    write_text(folder / "README.md", _card("real", exported) if real else paths.data_card.read_text(encoding="utf-8"))
    return pd.DataFrame.from_dict(found, orient="index").rename_axis("set").reset_index()

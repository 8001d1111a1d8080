"""Profiles as files: found by name or path, read with overrides, and what is wrong with one told by its key."""

from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from studylib.study.config import Profile, Settings, StudyError, read_yaml
from studylib.study.paths import ROOT

PROFILES = Path(__file__).resolve().parents[1] / "profiles"


def profile_names() -> list[str]:
    """Names of the profiles that come with the project."""
    return sorted(p.stem for p in PROFILES.glob("*.yaml"))


def profile_path(name: str) -> Path:
    """The file of a profile: of that name, or the YAML file at that path, as seen from here or from the repository's root.

    Raises StudyError that names the places where it is not.
    """
    own = name.endswith((".yaml", ".yml"))
    places = [Path(name).resolve(), (ROOT / name).resolve()] if own else [PROFILES / f"{name}.yaml"]
    for path in places:
        if path.is_file():
            return path
    looked = f", looked for as {' and '.join(map(str, dict.fromkeys(places)))}" if own else ""
    raise StudyError(
        f"There is no profile {name!r}{looked}: take one of {', '.join(profile_names())}, or a path to a .yaml file."
    )


def load_profile(name: str, overrides: dict | None = None) -> Profile:
    """The profile of that name, or of the YAML file at that path, with dotted keys such as `lora.r` replaced.

    Raises StudyError that names the key, what was expected and what was found; also for the `name` of another profile.
    """
    path = profile_path(name)
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise StudyError(f"{path.name} holds no settings; start from a copy of {profile_names()[0]}.yaml.")
    for key, value in (overrides or {}).items():
        *sections, last = key.split(".")
        target = content
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = value
    try:
        profile = Profile.model_validate(content)
    except ValidationError as error:
        raise StudyError(f"Profile {path.name}: " + "; ".join(map(_explain, error.errors())) + ".") from None
    if profile.name in profile_names() and path != PROFILES / f"{profile.name}.yaml":
        raise StudyError(
            f"{path} has the name of the profile {profile.name!r} that comes with the project, whose run it would "
            "overwrite: give it a `name` of its own."
        )
    return profile


def _section(annotation) -> type[Settings] | None:
    """The settings class that a field holds, by itself, optionally or by name; None where it holds plain values."""
    if not get_args(annotation):
        return annotation if isinstance(annotation, type) and issubclass(annotation, Settings) else None
    return next(filter(None, map(_section, get_args(annotation))), None)


def _explain(error: dict) -> str:
    if not error["loc"]:
        return error["msg"].removeprefix("Value error, ")
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        section = Profile
        for part in error["loc"][:-1]:
            section = _section(getattr(section.model_fields.get(part), "annotation", None)) or section
        return f"unknown key {key!r}, known here are {', '.join(section.model_fields)}"
    return f"{key!r}: {error['msg'].removeprefix('Value error, ')}, found {error['input']!r}"

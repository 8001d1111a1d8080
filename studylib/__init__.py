"""A reproducible study of how benign LoRA fine-tuning erodes refusals, and how to repair it."""

import lazy_loader


def public(room: str, names: dict[str, str]) -> tuple:
    """`__getattr__`, `__dir__` and `__all__` of a room: each of its public names loads its module when first used.

    `names` holds each module's public names, separated by spaces. Other rooms, the notebooks and users' own code rely
    on these alone; `tests/test_house.py` holds that.
    """
    return lazy_loader.attach(room, submod_attrs={module: listed.split() for module, listed in names.items()})

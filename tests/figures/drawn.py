"""Figures and their texts by name, for tests."""

import pickle

from studylib.figures import catalogue

_TEXTS = {}


def figure(name, *frames):
    """The figure alone, drawn anew; its texts are kept for a test that asks for both."""
    drawn, *_TEXTS[_key(name, frames)] = catalogue.draw(name, *frames)
    return drawn


def texts(name, *frames):
    """Its caption and its alternative text; one of the same tables is drawn once."""
    if _key(name, frames) not in _TEXTS:
        figure(name, *frames)
    return tuple(_TEXTS[_key(name, frames)])


def _key(name, frames):
    return name, pickle.dumps(frames)

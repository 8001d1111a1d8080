"""Figures and their texts by name, for tests."""

from studylib.figures import catalogue


def figure(name, *frames):
    """The figure alone."""
    return catalogue.draw(name, *frames)[0]


def texts(name, *frames):
    """Its caption and its alternative text."""
    return catalogue.draw(name, *frames)[1:]

"""Numbering rows by what they have in common: whole numbers instead of words, so that millions of rows are counted by arrays."""

from __future__ import annotations

import numpy as np
import pandas as pd


def codes(frame: pd.DataFrame) -> np.ndarray:
    """One whole number from 0 per row, the same for rows that are equal in all columns; NaN is a value of its own."""
    code = np.zeros(len(frame), np.int64)
    for name in frame:
        column = frame[name]
        categories = isinstance(column.dtype, pd.CategoricalDtype)
        one = column.cat.codes.to_numpy() if categories else pd.factorize(column, use_na_sentinel=False)[0]
        one = one.astype(np.int64) - one.min(initial=0)
        code = code * (one.max(initial=0) + 1) + one
        if code.max(initial=0) > 8 * len(code) + 1000:  # close the gaps before the product outgrows its type
            code = _numbered(code)[0]
    return code


def _numbered(code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The codes numbered without gaps in their own order, and the distinct codes."""
    if (size := int(code.max(initial=0)) + 1) <= 32 * len(code) + 1000:  # counting is quicker than sorting
        present = np.flatnonzero(np.bincount(code, minlength=size))
        number = np.zeros(size, np.int64)
        number[present] = np.arange(len(present))
        return number[code], present
    present, number = np.unique(code, return_inverse=True)
    return number, present


def groups(frame: pd.DataFrame, by: list[str]) -> tuple[np.ndarray, pd.DataFrame]:
    """The number of each row's group, from 0 in order of first appearance, and the groups' keys, no categories."""
    if not by:
        return np.zeros(len(frame), np.int64), pd.DataFrame(index=[0])
    group, first = pd.factorize(codes(frame[by]))
    at = np.zeros(len(first), np.int64)
    at[group[::-1]] = np.arange(len(frame))[::-1]
    keys = frame[by].iloc[at].reset_index(drop=True)
    categories = {name: object for name in by if isinstance(keys[name].dtype, pd.CategoricalDtype)}
    return group, keys.astype(categories)


def clusters(outer: np.ndarray, inner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of the cluster (outer, inner) of each row, and the outer number of each cluster."""
    width = inner.max() + 1
    cluster, present = _numbered(outer * width + inner)
    return cluster, present // width

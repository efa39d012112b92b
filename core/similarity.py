"""Similarity of representations at the same samples, numpy only: debiased linear CKA, its null and its jackknife."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from xatlas.stats import Floats, divide

#: Rows of Gram matrices that are permuted at a time.
_ROWS = 64


def gram(features: Any) -> Floats:
    """Return the centred Gram matrix ``(sample, sample)`` of ``features (sample, feature)``."""
    centred = np.asarray(features, dtype=np.float64)
    centred = centred - centred.mean(0)
    return np.asarray(centred @ centred.T)


def mirrored(triangles: Any) -> Floats:
    """Return whole symmetric matrices ``(…, sample, sample_other)`` of which the lower triangles are given."""
    lower = np.tril(np.asarray(triangles, dtype=np.float64))
    return np.asarray(lower + np.tril(lower, -1).swapaxes(-1, -2))


def biased_cka(grams: Any) -> Floats:
    """Return CKA ``(layer, layer)`` as first defined (Kornblith 1905.00414): few samples push it towards 1."""
    centred = np.asarray(grams, dtype=np.float64)
    centred = centred - centred.mean(-1, keepdims=True)
    centred = centred - centred.mean(-2, keepdims=True)
    return _cosine(centred, centred)


def _products(a: Any, b: Any) -> Floats:
    return np.asarray(a.reshape(len(a), -1) @ b.reshape(len(b), -1).T)


def _size(a: Any) -> Floats:
    return np.asarray(np.sqrt([float(np.vdot(each, each)) for each in a]))


def _cosine(a: Any, b: Any) -> Floats:
    return divide(_products(a, b), np.outer(_size(a), _size(b)))


class Grams:
    """Debiased Gram matrices of a network's layers, at samples that stand in groups: those of a prompt side by side.

    Sums of products of two of them are HSIC (Song et al. 2012) times n(n - 3), and their cosine is CKA (Murphy et al.
    2405.01012): they are centred without their diagonals (Székely and Rizzo 2014), which also undoes any centring
    before. ``grams (layer, sample, sample)``; ``groups (sample,)``.
    """

    def __init__(self, grams: Any, groups: Any) -> None:
        values = np.array(grams, dtype=np.float64)
        n = values.shape[-1]
        own = np.arange(n)
        values[:, own, own] = 0.0
        rows = values.sum(-1) / (n - 2)
        total = rows.sum(-1) / (n - 1)
        values -= rows[:, :, None]
        values -= rows[:, None, :]
        values += total[:, None, None]
        values[:, own, own] = 0.0
        self.values = values  # (layer, sample, sample)
        named = np.asarray(groups)
        #: Where each group's samples begin.
        self.starts = np.flatnonzero(np.append(True, named[1:] != named[:-1]))

    @property
    def groups(self) -> list[slice]:
        """Places of each group's samples."""
        ends = [*self.starts[1:].tolist(), self.values.shape[-1]]
        return list(map(slice, self.starts.tolist(), ends))

    def cka(self, other: Grams) -> Floats:
        """Return CKA ``(layer, layer_other)``; NaN for a layer at which all samples are alike."""
        return _cosine(self.values, other.values)

    def null(self, other: Grams, draws: int, seed: int = 0) -> Floats:
        """Return CKA ``(draw, layer, layer_other)`` with the other's groups permuted as wholes."""
        a = self.values.astype(np.float32)
        b = a if other is self else other.values.astype(np.float32)
        rng, places, own = np.random.default_rng(seed), other.groups, np.arange(b.shape[-1])
        found = np.zeros((draws, len(a), len(b)))
        for draw in found:
            order = np.concatenate([own[places[group]] for group in rng.permutation(len(places))])
            for start in range(0, len(order), _ROWS):  # below the diagonal counts twice
                end = min(start + _ROWS, len(order))
                below = np.take(b[:, order[start:end]], order[:end], axis=2)
                draw += 2 * _products(a[:, start:end, :end], below)
                draw -= _products(a[:, start:end, start:end], below[:, :, start:])
        return divide(found, np.broadcast_to(np.outer(_size(self.values), _size(other.values)), found.shape))

    def without(self, other: Grams) -> Floats:
        """Return CKA ``(group, layer, layer_other)`` without one group at a time."""
        (own, others) = (each._own for each in (self, other))
        return divide(self._apart(other), np.sqrt(own[:, :, None] * others[:, None, :]))

    @cached_property
    def _own(self) -> Floats:  # (group, layer)
        return np.asarray(self._apart(self).diagonal(axis1=1, axis2=2))

    def _apart(self, other: Grams) -> Floats:
        """Return HSIC ``(group, layer, layer_other)`` without each group, times m(m - 3) for the m samples left.

        What is left is centred anew: its rows had sums of 0, and now lack what they shared with the group.
        """
        a, b = self.values, other.values
        rows = a.transpose(1, 0, 2) @ b.transpose(1, 2, 0)  # (sample, layer, layer_other)
        every, found = rows.sum(0), []
        for group in self.groups:
            mine, theirs = a[:, :, group].sum(-1), b[:, :, group].sum(-1)  # (layer, sample): shared with the group
            m = len(rows) - (group.stop - group.start)
            between = 2 * rows[group].sum(0) - _products(a[:, group, group], b[:, group, group])
            lacked = mine @ theirs.T - mine[:, group] @ theirs[:, group].T
            total = np.outer(mine[:, group].sum(1), theirs[:, group].sum(1))
            found.append(every - between - 2 * lacked / (m - 2) + total / ((m - 1) * (m - 2)))
        return np.array(found)

"""The key of a job: the same for the same job, another for any other."""

from __future__ import annotations

import dataclasses

import pytest
from storing import JOB as TOY

JOB = dataclasses.replace(TOY, probe="layer_ablation", draws=2)


def test_key_is_what_it_always_was():
    # A change here makes every stored atlas unreadable as "the same job": never do it lightly.
    assert JOB.key == "00dbe98d766f53a2"


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"weights": "abc124"},
        {"probe": "head_ablation"},
        {"version": 2},
        {"parameters": {"ablation": ["zero", "mean"], "top": 3}},
        {"suite": "7" * 64},
        {"reference": None},
        {"inputs": {"layer_ablation": "00"}},
        {"dtype": "bfloat16"},
        {"attention": "eager"},
        {"bos": "native"},
        {"chat_template": True},
        {"template_date": "2026-05-01"},
        {"adapter": "xatlas.architectures.llama.LlamaAdapter 2"},
        {"seed": 1},
        {"draws": 3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_changes_the_key(change):
    assert dataclasses.replace(JOB, **change).key != JOB.key


def test_order_of_parameters_does_not_change_the_key():
    turned = dict(reversed(JOB.parameters.items()))
    assert dataclasses.replace(JOB, parameters=turned).key == JOB.key

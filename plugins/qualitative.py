"""Qualitative: what a model writes, kept to be read, with how long and how repetitive it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xatlas import Inputs, Probe, Suite, Variable, hookimpl
from xatlas.plugins.skills.asking import Chat

if TYPE_CHECKING:
    import xarray as xr

    from xatlas import HookedModel
    from xatlas.plugins.skills.asking import Answer, Asked

#: Lengths of the sequences of words whose repeats are counted.
REPEATED, DISTINCT = 4, 2


class Qualitative(Probe):
    """What a model writes, greedily, to fifty prompts of nine groups: texts to be read, and three numbers of each.

    Definition: of the words of an answer (of the last turn, where there are several), ``repetition`` is the share of
    sequences of four words that stood before in it; ``distinct_n`` the number of different pairs of words over that of
    all pairs; ``length`` the number of tokens. Answers with fewer words than that are NaN. Where a prompt has several
    turns, each is asked after the model's own earlier answers. Texts, with the prompt as run, and why they ended are
    kept: ``xatlas show FILE --texts`` shows them, two files side by side. The prompts are: factual, JSON, code,
    instructions, reasoning, creative, multi-turn, injection, and edge cases with degenerate input.

    Unit: shares; ``length`` in tokens.

    Control: none; a text without repeats has a repetition of 0 and a distinct_n of 1.

    Source: Li et al. 1510.03055 for distinct-n; Welleck et al. 1908.04319 for repeats.
    """

    name = "qualitative"
    version = 1
    measures_on = "tests"
    replicate = None
    check_parameters = {"groups": ("multi-turn",), "tokens": 2}  # noqa: RUF012 - declared ClassVar in the base
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "repetition": Variable(("prompt",), "1", f"share of {REPEATED}-word sequences that stood before"),
        "distinct_n": Variable(("prompt",), "1", f"different over all {DISTINCT}-word sequences"),
        "length": Variable(("prompt",), "token", "tokens of the answer"),
    }

    @dataclass(frozen=True)
    class Parameters:
        """How and what is asked."""

        chat: Chat = "auto"
        tokens: int = 100  # most of an answer
        groups: tuple[str, ...] = ()  # all

    def measure(self, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
        """Ask every prompt, turn by turn."""
        import numpy as np

        from xatlas.plugins.skills.asking import answer_all, asked, chat_modes
        from xatlas.schema import cells, label

        rows = prompts(self.parameters.groups)
        last: dict[str, tuple[Asked, Answer]] = {}
        asked_most = max(len(row["turns"]) for row in rows)
        modes = chat_modes(model, self.parameters.chat)
        for mode in modes:
            said: dict[str, list[dict[str, str]]] = {row["id"]: [] for row in rows}
            for turn in range(asked_most):
                now = [row for row in rows if turn < len(row["turns"])]
                for row in now:
                    said[row["id"]].append({"role": "user", "content": row["turns"][turn]})
                questions = asked(model, [(row["id"], said[row["id"]], self.parameters.tokens) for row in now], mode)
                answers = answer_all(model, questions, inputs, f"prompts, turn {turn + 1}")
                for question, answer in zip(questions, answers, strict=True):
                    said[question.id].append({"role": "assistant", "content": answer.text})
                    last[f"{question.id} ({mode})" if len(modes) > 1 else question.id] = (question, answer)
        names = list(last)
        of_row = {row["id"]: row for row in rows}
        counts = np.array([numbers(answer.text) for _, answer in last.values()])
        bare = {
            variable: [name for name, value in zip(names, counts[:, i], strict=True) if np.isnan(value)]
            for i, variable in enumerate(("repetition", "distinct_n"))
        }
        absent = {f"{what} & {cells(prompt=which)}": "the answer is too short" for what, which in bare.items() if which}
        lengths = np.array([answer.tokens for _, answer in last.values()], float)
        coords = {
            "prompt": names,
            "family": ("prompt", [of_row[question.id]["group"] for question, _ in last.values()]),
            "template": ("prompt", names),
            "n_tokens": ("prompt", [len(question.ids) for question, _ in last.values()]),
            "appended": ("prompt", [0] * len(names)),
            "text": ("prompt", [question.text for question, _ in last.values()]),
            "answer": ("prompt", [answer.text for _, answer in last.values()]),
            "stop_reason": ("prompt", [answer.stop_reason for _, answer in last.values()]),
        }
        arrays = {"repetition": counts[:, 0], "distinct_n": counts[:, 1], "length": lengths}
        return label(self.variables, arrays, coords, absent=absent)


def prompts(groups: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the prompts of some groups, or of all: id, group and turns."""
    from importlib.resources import files

    from xatlas.errors import unknown

    lines = (files("xatlas.plugins.skills") / "data" / "qualitative.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    known = list(dict.fromkeys(row["group"] for row in rows))
    for group in groups:
        if group not in known:
            raise unknown("group of prompts", group, known)
    return [row for row in rows if row["group"] in (groups or known)]


def numbers(text: str) -> tuple[float, float]:
    """Return a text's repetition and distinct-n; NaN where it has too few words."""
    words = text.casefold().split()

    def different(n: int) -> float:
        runs = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        return len(set(runs)) / len(runs) if runs else float("nan")

    return 1.0 - different(REPEATED), different(DISTINCT)


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [Qualitative]

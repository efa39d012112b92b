"""How to measure: each setting once, with its default, its help, and what depends on it.

Options of the command line, keyword arguments from Python, fields of jobs and the names of sensitivity runs derive from
the fields below: a new setting is a new field here, and is read where it takes effect.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, TypeVar

from xatlas import manager
from xatlas.errors import XatlasError, unknown
from xatlas.manager import calling
from xatlas.suites import Suite, read_suite
from xatlas.vocabulary import (
    ATTENTIONS,
    BOS_HABITS,
    DEVICES,
    DTYPES,
    TEMPLATE_DATE,
    Attention,
    BosHabit,
    Dtype,
    check_date,
    check_setting,
)

#: Generators take 64 bits, and probes count their own seeds on from this one.
LARGEST_SEED = 10**15

F = TypeVar("F", bound=Callable[..., Any])


def _about(help: str, **more: Any) -> dict[str, Any]:
    """Return what there is to know of a setting; one with help is an option of the command line.

    ``kind``: what errors call a value of ``choices``. ``of_model``: whether weights are loaded (``weights``) or texts
    are read (``texts``) with it, so that a loaded model has it already. ``varied``: results that differ from the main
    ones in it are their sensitivity runs. ``registry``: where its names are looked up.
    """
    return {"help": help, **more}


def _either(choices: tuple[str, ...]) -> str:
    return f"{', '.join(choices[:-1])} or {choices[-1]}"


@dataclass(frozen=True, kw_only=True)
class KeyedSettings:
    """Settings that numbers depend on: every job holds them, and its key digests them."""

    draws: int = field(default=1, metadata=_about("Donors and control directions that are averaged."))
    seed: int = field(default=0, metadata=_about("Seed of every random choice."))
    dtype: Dtype = field(
        default=DTYPES[0],
        metadata=_about(f"Number format: {_either(DTYPES)}.", kind="dtype", choices=DTYPES, of_model="weights"),
    )
    bos: BosHabit = field(
        default="always",
        metadata=_about(
            "always: a beginning token at position 0 of every model; native: the tokenizer's own habit.",
            kind="BOS habit",
            choices=BOS_HABITS,
            of_model="texts",
            varied=True,
        ),
    )
    attention: Attention = field(
        default=ATTENTIONS[0],
        metadata=_about(
            f"Attention implementation: {_either(ATTENTIONS)}.",
            kind="attention implementation",
            choices=ATTENTIONS,
            of_model="weights",
        ),
    )
    chat_template: bool = field(default=False, metadata=_about("Wrap prompts as a user's turn.", of_model="texts"))
    template_date: str | None = field(
        default=TEMPLATE_DATE,
        metadata=_about(
            "Date that a chat template is rendered with: equal tokens on any day.",
            metavar="YYYY-MM-DD",
            of_model="texts",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class MeasureConfig(KeyedSettings):
    """How to measure: what all jobs of one command share.

    Parameters
    ----------
    suite : Suite
        What is measured on.
    reference : Suite or None
        Where means and donors come from.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``; no part of a job.
    parameters : mapping of str to mapping
        Probe → its parameters that differ from what is required or default.
    **settings
        Those of :class:`KeyedSettings`.

    Raises
    ------
    XatlasError
        A value is not one that exists.
    """

    suite: Suite = field(
        metadata=_about(
            "Suite to measure on, by name or as a JSON-lines file; 'xatlas suites' says which is the default.",
            registry="suites",
            varied=True,
        )
    )
    reference: Suite | None = field(
        default=None,
        metadata=_about(
            "Suite that means and donors are taken from, by name or file; the train split when left out.",
            registry="suites",
        ),
    )
    device: str = field(
        default=DEVICES[0],
        metadata=_about(f"Where to compute: {_either(DEVICES)}.", kind="device", choices=DEVICES, of_model="weights"),
    )
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, metadata={"varied": True})

    @classmethod
    def make(
        cls, *, suite: str | Suite | None = None, reference: str | Suite | None = None, **settings: Any
    ) -> MeasureConfig:
        """Return a config with suites found by name or path; those left out are the ones that plugins declare.

        Raises
        ------
        XatlasError
            A name or value is not one that exists.
        """
        suite = default_suite("measure") if suite is None else suite
        reference = default_suite("reference") if reference is None else reference
        return cls(
            suite=suite if isinstance(suite, Suite) else find_suite(suite),
            reference=reference if isinstance(reference, Suite) else find_suite(reference),
            **settings,
        )

    def keyed(self) -> dict[str, Any]:
        """Return the settings that enter a job's key, as a job holds them: no date without a template."""
        found = {each.name: getattr(self, each.name) for each in fields(KeyedSettings)}
        return found if self.chat_template else found | {"template_date": None}

    def __post_init__(self) -> None:
        for each in settings():
            if "kind" in each.metadata:
                check_setting(each.metadata["kind"], getattr(self, each.name))
        check_date(str(self.template_date))
        if not _is_whole(self.draws) or self.draws < 1:
            raise XatlasError(f"draws = {self.draws!r} does not fit: it takes a whole number from 1.")
        if not _is_whole(self.seed) or abs(self.seed) > LARGEST_SEED:
            raise XatlasError(f"seed = {self.seed!r:.40} does not fit: it takes a whole number up to 10^15.")
        for probe, given in self.parameters.items():
            cls = manager.pick("probe", probe, manager.probes())
            values, default = cls(**given).canonical_parameters(), cls().canonical_parameters()
            for name, value in values.items():
                if isinstance(value, list) and (
                    len(set(map(str, value))) < len(value) or (default[name] and not value)
                ):
                    raise XatlasError(f"{probe}.{name} = {given[name]!r} does not fit: it takes values, none twice.")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def settings(mark: str = "") -> list[Field[Any]]:
    """Return the fields of :class:`MeasureConfig`, or those that are marked ``help``, ``of_model`` or ``varied``."""
    return [each for each in fields(MeasureConfig) if not mark or each.metadata.get(mark)]


def spell_out(function: F, parameters: Iterable[inspect.Parameter], *, eval_str: bool = True) -> F:
    """Write parameters into the signature of a function that takes them as ``**settings``."""
    signature = inspect.signature(function, eval_str=eval_str)
    own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    first = [each for each in own if each.kind is not inspect.Parameter.KEYWORD_ONLY]
    rest = [each for each in own if each.kind is inspect.Parameter.KEYWORD_ONLY]
    vars(function)["__signature__"] = signature.replace(parameters=[*first, *parameters, *rest])
    return function


def find_suite(name: str) -> Suite:
    """Return the suite of that name, or the one in the JSON-lines file of that path.

    Raises
    ------
    XatlasError
        There is neither, or the file is off.
    """
    known = manager.suites()
    if name in known:
        try:
            with calling(known[name].load):
                return known[name].load()
        except XatlasError as error:
            if error.__cause__ is None:
                raise
            raise XatlasError(f"the suite '{name}' could not be made ({error}).") from error.__cause__
    if name.endswith((".jsonl", ".json")) or "/" in name or os.path.isfile(name):
        return read_suite(name)
    raise unknown("suite", name, known, "A path to a JSON-lines file works too.")


def default_suite(role: Literal["measure", "reference"]) -> str:
    """Return the name of the suite that is used when none is named."""
    for name, spec in manager.suites().items():
        if spec.default_for == role:
            return name
    raise XatlasError(f"no suite is the default to {role}: name one.")


def larger_suite(suite: Suite) -> Suite | None:
    """Return the smallest suite with a name that holds all prompts of ``suite`` and more; None if there is none."""
    ids = {prompt.id for prompt in suite}
    loaded = (find_suite(name) for name, spec in manager.suites().items() if spec.default_for != "reference")
    larger = [other for other in loaded if len(other) > len(suite) and ids <= {prompt.id for prompt in other}]
    return min(larger, key=len, default=None)

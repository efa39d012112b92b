"""How to measure: each setting once, with its default, its help, and what depends on it.

Options of the command line, keyword arguments from Python, fields of jobs and the names of sensitivity runs derive from
the fields below: a new setting is a new field here, and is read where it takes effect.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, TypeVar

from xatlas import manager, vocabulary
from xatlas.errors import XatlasError, unknown
from xatlas.manager import calling
from xatlas.suites import Suite, read_suite

#: Generators take 64 bits, and probes count their own seeds on from this one.
LARGEST_SEED = 10**15

F = TypeVar("F", bound=Callable[..., Any])


def _setting(default: Any, help: str, **more: Any) -> Any:
    """Declare a setting, with what there is to know of it besides its help.

    ``kind``: what errors call a value of ``choices``. ``of_model``: whether weights are loaded (``weights``) or texts
    are read (``texts``) with it, so that a loaded model has it already. ``varied``: results that differ from the main
    ones in it are their sensitivity runs. ``names``: of what kinds of things it takes names.
    """
    return field(default=default, metadata={"help": help, **more})


def _choice(kind: str, choices: tuple[str, ...], help: str = "", **more: Any) -> Any:
    """Declare a setting that is one of several words, the first by default."""
    either = f"{kind[:1].upper()}{kind[1:]}: {', '.join(choices[:-1])} or {choices[-1]}."
    return _setting(choices[0], help or either, kind=kind, choices=choices, **more)


@dataclass(frozen=True, kw_only=True)
class KeyedSettings:
    """Settings that numbers depend on: every job holds them, and its key digests them."""

    dtype: vocabulary.Dtype = _choice("dtype", vocabulary.DTYPES, of_model="weights")
    bos: vocabulary.BosHabit = _choice(
        "BOS habit",
        vocabulary.BOS_HABITS,
        "always: a beginning token at position 0 of every model; native: the tokenizer's own habit.",
        of_model="texts",
        varied=True,
    )
    attention: vocabulary.Attention = _choice("attention implementation", vocabulary.ATTENTIONS, of_model="weights")
    seed: int = _setting(0, "Seed of every random choice.")
    draws: int = _setting(4, "Random directions of each control.")
    chat_template: bool = _setting(False, "Wrap prompts as a user's turn.", of_model="texts")
    template_date: str | None = _setting(
        vocabulary.TEMPLATE_DATE,
        "Date that a chat template is rendered with: equal tokens on any day.",
        metavar="YYYY-MM-DD",
        of_model="texts",
    )


@dataclass(frozen=True, kw_only=True)
class MeasureConfig(KeyedSettings):
    """How to measure: what all jobs of one command share; :meth:`make` finds suites by name."""

    suite: Suite = _setting(
        MISSING,
        "Suite to measure on, by name or as a JSON-lines file; 'xatlas suites' says which is the default. "
        "With [N] behind it, the first N templates of each family.",
        names=("suite",),
        varied=True,
    )
    reference: Suite | None = _setting(
        None,
        "Suite that means and donors are taken from, by name or file; the train split when left out.",
        names=("suite",),
    )
    device: str = _choice("device", vocabulary.DEVICES, of_model="weights")
    #: Probe → its parameters that differ from what is required or default.
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, metadata={"varied": True})

    @classmethod
    def make(
        cls, *, suite: str | Suite | None = None, reference: str | Suite | None = None, **settings: Any
    ) -> MeasureConfig:
        """Return a config with suites found by name or path; those left out are the ones that plugins declare."""
        return cls(suite=_suite(suite, "measure"), reference=_suite(reference, "reference"), **settings)

    def keyed(self) -> dict[str, Any]:
        """Return the settings that enter a job's key, as a job holds them: no date without a template."""
        found = {each.name: getattr(self, each.name) for each in fields(KeyedSettings)}
        return found if self.chat_template else found | {"template_date": None}

    def __post_init__(self) -> None:
        for each in settings():
            if "kind" in each.metadata:
                vocabulary.check_setting(each.metadata["kind"], getattr(self, each.name))
        vocabulary.check_date(str(self.template_date))
        if type(self.draws) is not int or self.draws < 1:
            raise XatlasError(f"draws = {self.draws!r} does not fit: it takes a whole number from 1.")
        if type(self.seed) is not int or abs(self.seed) > LARGEST_SEED:
            raise XatlasError(f"seed = {self.seed!r:.40} does not fit: it takes a whole number up to 10^15.")
        for probe, given in self.parameters.items():
            cls = manager.pick("probe", probe, manager.probes())
            default = cls().canonical_parameters()
            for name, value in cls(**given).canonical_parameters().items():
                twice = isinstance(value, list) and len(set(map(str, value))) < len(value)
                if twice or (value == [] and default[name]):
                    raise XatlasError(f"{probe}.{name} = {given[name]!r} does not fit: it takes values, none twice.")


def settings(mark: str = "") -> list[Field[Any]]:
    """Return the fields of :class:`MeasureConfig`, or those that are marked ``help``, ``of_model`` or ``varied``."""
    return [each for each in fields(MeasureConfig) if not mark or each.metadata.get(mark)]


def takes_settings(
    mark: str = "help", without: Collection[str] = (), annotate: Callable[[Field[Any], Any], Any] | None = None
) -> Callable[[F], F]:
    """Write the settings that are marked so into the signature of a function that takes them as ``**settings``.

    ``annotate`` returns the annotation of a setting, given its default.
    """

    def spell_out(function: F) -> F:
        signature = inspect.signature(function, eval_str=annotate is not None)
        own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        for each in settings(mark):
            if each.name not in without:
                default = None if each.default is MISSING else each.default
                kind = annotate(each, default) if annotate else each.type
                parameter = inspect.Parameter(
                    each.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
                )
                own.append(parameter)
        own.sort(key=lambda parameter: parameter.kind)
        vars(function)["__signature__"] = signature.replace(parameters=own)
        return function

    return spell_out


def find_suite(name: str) -> Suite:
    """Return the suite of that name, or of the JSON-lines file of that path; of ``NAME[n]`` the first templates."""
    known = manager.suites()
    part = re.fullmatch(r"(.+)\[(-?\d{1,9})\]", name)
    if part and name not in known and not os.path.isfile(name):
        return find_suite(part[1]).first_templates(int(part[2]))
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


def _suite(given: str | Suite | None, role: str) -> Suite:
    if isinstance(given, Suite):
        return given
    declared = [name for name, spec in manager.suites().items() if spec.default_for == role]
    if given is None and not declared:
        raise XatlasError(f"no suite is the default to {role}: name one.")
    return find_suite(declared[0] if given is None else given)


def larger_suite(suite: Suite) -> Suite | None:
    """Return the smallest suite with a name that holds all prompts of ``suite`` and more; None if there is none."""
    ids = {prompt.id for prompt in suite}
    loaded = (find_suite(name) for name, spec in manager.suites().items() if spec.default_for != "reference")
    larger = [other for other in loaded if len(other) > len(suite) and ids <= {prompt.id for prompt in other}]
    return min(larger, key=len, default=None)

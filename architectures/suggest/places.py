"""The places of an architecture, read off one forward of a small model: its layers, what they add, their heads."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from xatlas.errors import XatlasError
from xatlas.model.hooks import attention_weights

#: Tokens of the text that is traced.
LENGTH = 6
#: Relative difference up to which sums are equal.
CLOSE = 1e-4
#: Parts of the names of classes that mix tokens → what the operator is called.
_WORDS = {
    "conv": "conv", "mamba": "ssm", "mixer": "ssm", "rwkv": "recurrent", "lstm": "recurrent", "recurrent": "recurrent",
    "linear": "linear_attention", "delta": "linear_attention", "attention": "attention",
}  # fmt: skip


@dataclass
class Trace:
    """What every module took and gave in one forward: path → tensors, in the order in which they ran."""

    entered: dict[str, Tensor] = field(default_factory=dict)
    left: dict[str, Tensor] = field(default_factory=dict)
    patterns: dict[str, Tensor] = field(default_factory=dict)
    again: dict[str, Tensor] = field(default_factory=dict)  # what modules took last that ran more than once: no sites


@torch.inference_mode()
def traced(hf: Any, first: int) -> Trace:
    """Trace a forward of fixed tokens, with ``first`` added to the first of them."""
    trace, twice = Trace(), set[str]()

    def keep(path: str) -> Any:
        def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
            parts = output if isinstance(output, tuple | list) else (output,)
            tensors = [part for part in parts if isinstance(part, Tensor)]
            if given is not None and tensors:
                twice.update({path} & trace.left.keys())
                trace.entered[path], trace.left[path] = given.clone(), tensors[0].clone()
                for part in tensors[1:]:
                    if part.dim() == 4 and part.shape[-1] == part.shape[-2] == LENGTH:
                        trace.patterns.setdefault(path, part)

        return after

    ids = torch.arange(3, 3 + LENGTH)[None]
    ids[0, 0] += first
    with ExitStack() as stack, attention_weights(hf):
        for path, module in hf.named_modules():
            if path:
                stack.callback(module.register_forward_hook(keep(path), with_kwargs=True).remove)
        hf(input_ids=ids, use_cache=False)
    for path in twice:  # a hook there would fire more than once
        trace.again[path] = trace.entered.pop(path)
        del trace.left[path]
    return trace


@torch.inference_mode()
def row_arguments(hf: Any, layers: str) -> tuple[str, ...]:
    """Return the arguments of layers that need a row for each prompt: cut to that of one, the forward differs.

    The first tensor is the stream, which is left as it is.
    """
    ids = torch.arange(3, 3 + LENGTH) + torch.arange(2)[:, None]
    lengths: dict[str, int] = {}

    def forward(rows: int, cut: str | None = None) -> Tensor:
        def before(layer: nn.Module, args: Any, kwargs: Any) -> Any:
            bound = dict(zip(inspect.signature(layer.forward).parameters, args, strict=False)) | kwargs
            tensors = [name for name, value in bound.items() if isinstance(value, Tensor) and value.dim() > 1]
            lengths.update({name: len(bound[name]) for name in tensors[1:]})
            return (), bound | {name: bound[name][: len(bound[name]) // rows] for name in tensors[1:] if name == cut}

        with ExitStack() as stack, attention_weights(hf):
            for layer in hf.get_submodule(layers):
                stack.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
            logits: Tensor = hf(input_ids=ids[:rows], use_cache=False).logits
        return logits

    def needed(name: str) -> bool:
        try:
            return not same(forward(2, name), whole)
        except Exception:  # each class has its own way to say that sizes differ
            return True

    forward(1)
    of_one, whole = dict(lengths), forward(2)
    return tuple(name for name, n in dict(lengths).items() if n == 2 * of_one.get(name, n) and needed(name))


def same(one: Tensor | None, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers, up to rounding, however they are shaped."""
    if one is None or one.numel() != other.numel():
        return False
    gap = float((one.double().flatten() - other.double().flatten()).norm())
    return gap <= CLOSE * float(other.double().norm())


@dataclass(frozen=True)
class Write:
    """A module whose output, times a factor, is added to the stream."""

    path: str  # inside the layer
    factor: float


class Places:
    """Finds the places of a model, one after another, and asks where it can't tell."""

    def __init__(self, hf: Any, architecture: str, trace: Trace, moved: Trace) -> None:
        self.hf, self.architecture, self.trace, self.moved = hf, architecture, trace, moved
        self.config = hf.config.get_text_config()
        self.questions: list[str] = []
        self.layers = self._layers()
        self.kinds = [self._kind(layer) for layer in range(len(hf.get_submodule(self.layers)))]

    def _layers(self) -> str:
        """Return the path of the list whose members each take what the one before gave."""
        found = []
        for path, module in self.hf.named_modules():
            if not isinstance(module, nn.ModuleList) or len(module) < 2:
                continue
            pairs = list(itertools.pairwise(f"{path}.{index}" for index in range(len(module))))
            if all(b in self.trace.entered and same(self.trace.left.get(a), self.trace.entered[b]) for a, b in pairs):
                found.append(path)
        if not found:
            raise XatlasError(f"{self.architecture} has no list of layers that each take what the one before gave.")
        return str(min(found, key=len))

    def _kind(self, layer: int) -> tuple[tuple[Write, ...], tuple[Write, ...]]:
        """Return what a layer writes: by modules that mix tokens, and by others."""
        block = f"{self.layers}.{layer}"
        added = self.trace.left[block] - self.trace.entered[block]
        for terms in self._sums(block, added):
            mixing = tuple(term for term in terms if self._behind_mixing(block, term.path))
            if mixing or not any(self._mixes(f"{block}.{path}") for path in self._inside(block)):
                return mixing or terms[:1], tuple(term for term in terms if term not in mixing) if mixing else terms[1:]
        advice = "its layers may scale or norm the stream itself; write the adapter by hand."
        raise XatlasError(f"no modules of {block} sum to what it adds to the stream: {advice}")

    def _inside(self, block: str) -> list[str]:
        prefix, left, size = f"{block}.", self.trace.left, self.trace.left[block].numel()
        return [path.removeprefix(prefix) for path in left if path.startswith(prefix) and left[path].numel() == size]

    def _sums(self, block: str, added: Tensor) -> Iterator[tuple[Write, ...]]:
        """Yield sets of modules whose outputs sum to what is added: few before many, outer before inner."""
        paths = sorted(self._inside(block), key=lambda path: path.count("."))
        outputs = {path: self.trace.left[f"{block}.{path}"].double().flatten() for path in paths}
        target = added.double().flatten()
        for size in (1, 2, 3, 4):
            for chosen in itertools.combinations(paths[:24], size):
                if any(a != b and a.startswith(f"{b}.") for a in chosen for b in chosen):
                    continue
                columns = torch.stack([outputs[path] for path in chosen], 1)
                factors = torch.linalg.lstsq(columns, target[:, None]).solution[:, 0]
                if bool((factors.abs() < 1e-3).any()):  # a smaller set is enough
                    continue
                if float((columns @ factors - target).norm()) <= CLOSE * float(target.norm()):
                    plain = [1.0 if abs(f - 1) < 1e-3 else float(f"{f:.4g}") for f in factors.tolist()]
                    yield tuple(Write(path, factor) for path, factor in zip(chosen, plain, strict=True))

    def _behind_mixing(self, block: str, path: str) -> bool:
        """Whether a module mixes tokens, is a part of one that does, or norms or scales what one gave."""
        given = self.trace.entered[f"{block}.{path}"]
        inside = self._inside(block)
        around = max((inner for inner in inside if path.startswith(f"{inner}.")), key=len, default=path)
        mixers = (inner for inner in inside if self._mixes(f"{block}.{inner}"))
        own = self._mixes(f"{block}.{path}") or self._mixes(f"{block}.{around}")
        return own or any(same(self.trace.left[f"{block}.{one}"], given) for one in mixers)

    def _mixes(self, path: str) -> bool:
        """Whether a module's last output depends on earlier positions of its own input, which it then mixes."""
        block = ".".join(path.split(".")[: len(self.layers.split(".")) + 1])
        if block != f"{self.layers}.0":  # in later layers everything depends on the first token
            twin = f"{self.layers}.0.{path.removeprefix(f'{block}.')}"
            if twin in self.trace.left:
                return self._mixes(twin)
            return any(word in path.lower() for word in ("attn", "attention", "mixer", "conv", "ssm", "mamba"))
        there = (trace[path].reshape(LENGTH, -1)[-1] for trace in (self.trace.entered, self.moved.entered))
        here = (trace[path].reshape(LENGTH, -1)[-1] for trace in (self.trace.left, self.moved.left))
        return same(*there) and not same(*here)

    def _pattern(self, layer: int) -> str | None:
        """Return the path of the module that gives the layer's attention weights."""
        return next((path for path in self.trace.patterns if path.startswith(f"{self.layers}.{layer}.")), None)

    def _heads(self, layer: int, kind: Any) -> tuple[str, int, int, int] | None:
        """Return the output projection inside the layer, its query heads, groups, and the width of one."""
        block, pattern = f"{self.layers}.{layer}", self._pattern(layer)
        if pattern is None:
            return None
        writes = [f"{block}.{write.path}" for write in kind[0]]
        inside = [(path, given) for path, given in self.trace.left.items() if path.startswith(f"{pattern}.")]
        projections = [path for path, given in inside if any(self._leads_to(given, write) for write in writes)]
        if not projections:
            self.questions.append(f"which module projects the heads of layer {layer}? Its heads are left out.")
            return None
        n_heads, width = self.trace.patterns[pattern].shape[1], self.trace.entered[projections[0]].shape[-1]
        keys = [path for path, _ in inside if re.search(r"\bk(ey)?(_proj)?$", path)]
        groups = self.trace.left[keys[0]].shape[-1] * n_heads // width if keys else n_heads
        if not keys:
            groups = getattr(self.config, "num_key_value_heads", None) or n_heads
            self.questions.append(f"has layer {layer} {groups} key/value groups? Its projections are fused.")
        return projections[0].removeprefix(f"{block}."), n_heads, groups, width // n_heads

    def _leads_to(self, output: Tensor, write: str) -> bool:
        """Whether a module's output is what a write gives, or what it takes."""
        return same(self.trace.left[write], output) or same(self.trace.entered[write], output)

    def _word(self, layer: int, kind: Any) -> str:
        """Return what mixes tokens in a layer: attention where there are weights, even if its output is not added."""
        named = self._named(f"{self.layers}.{layer}.{kind[0][0].path}")
        if self._pattern(layer) is None:
            return named
        if len(kind[0]) > 1:
            return "attention+ssm"
        beside = self._heads(layer, kind) is None and named not in ("attention", "operator")
        return f"attention+{named}" if beside else "attention"

    def _named(self, path: str) -> str:
        """Return what an operator is called, by its class."""
        name = type(self.hf.get_submodule(self._owner(path))).__name__.lower()
        return next((word for part, word in _WORDS.items() if part in name), "operator")

    def _owner(self, path: str) -> str:
        """Return the path of the module that a linear one is a part of; of others, their own."""
        above = path.rpartition(".")[0]
        inside = above.count(".") > self.layers.count(".") + 1
        return above if inside and is_linear(self.hf.get_submodule(path)) else path


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies by a matrix."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 2 and not isinstance(module, nn.Embedding)

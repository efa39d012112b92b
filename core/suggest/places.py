"""The places of an architecture, read off a trace: its layers, what they add to the stream, and their heads."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xatlas.errors import XatlasError
from xatlas.suggest.trace import CLOSE, LENGTH, Trace, same

#: Parts of the names of classes that mix tokens → what the operator is called.
_WORDS = {
    "conv": "conv", "mamba": "ssm", "mixer": "ssm", "rwkv": "recurrent", "lstm": "recurrent", "recurrent": "recurrent",
    "linear": "linear_attention", "delta": "linear_attention", "attention": "attention",
}  # fmt: skip


@dataclass(frozen=True)
class Write:
    """A module whose output, times a factor, is added to the stream."""

    path: str  # inside the layer
    factor: float


class Places:
    """Finds the places of a model, one after another, and asks where it can't tell."""

    def __init__(self, hf: Any, architecture: str, trace: Trace, moved: Trace) -> None:
        self.hf, self.architecture, self.trace, self.moved = hf, architecture, trace, moved
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
        advice = "its layers may scale or norm the stream itself"
        raise XatlasError(
            f"no modules of {block} sum to what it adds to the stream: {advice}; write the adapter by hand."
        )

    def _inside(self, block: str) -> list[str]:
        prefix, shape = f"{block}.", self.trace.left[block].shape
        return [
            p.removeprefix(prefix)
            for p in self.trace.left
            if p.startswith(prefix) and self.trace.left[p].numel() == shape.numel()
        ]

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
        keys = [p for p in self.trace.left if p.startswith(f"{pattern}.") and re.search(r"\bk(ey)?(_proj)?$", p)]
        groups = self.trace.left[keys[0]].shape[-1] * n_heads // width if keys else n_heads
        if not keys:
            groups = getattr(self.hf.config.get_text_config(), "num_key_value_heads", None) or n_heads
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

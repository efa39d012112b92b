"""The file of a suggested adapter: places are found in a trace, one after another, and written down."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xatlas.errors import XatlasError
from xatlas.model.cache import CACHES
from xatlas.suggest.trace import CLOSE, LENGTH, Trace, same

#: Names of linear modules → what they are for.
_ROLES = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "out", "out_proj": "out", "gate_proj": "gate",
    "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down", "fc1": "up", "fc2": "down",
    "in_proj": "in", "dense": "out", "c_proj": "out", "dense_h_to_4h": "up", "dense_4h_to_h": "down",
}  # fmt: skip

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


class Writer:
    """Finds the places one after another and writes the file."""

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
        """Whether a module mixes tokens, or norms or scales what one that does gave."""
        given = self.trace.entered[f"{block}.{path}"]
        mixers = (inner for inner in self._inside(block) if self._mixes(f"{block}.{inner}"))
        return self._mixes(f"{block}.{path}") or any(same(self.trace.left[f"{block}.{one}"], given) for one in mixers)

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

    def file(self) -> str:
        """Return the adapter's file."""
        outer = self._outer()
        by_kind = {
            kind: [n for n, other in enumerate(self.kinds) if other == kind] for kind in dict.fromkeys(self.kinds)
        }
        name = re.sub(r"(For|LM)\w*$", "", self.architecture) or self.architecture
        lines = [
            f'"""Adapter for {self.architecture}: suggested from its module tree and one forward; look it through."""',
            "",
        ]
        lines += [
            "from xatlas import Adapter, HeadLayout, HookPoint, hookimpl",
            "from xatlas.contracts.adapter import Heads, Pattern, Scaled",
            "",
        ]
        lines += ["", f"class {name}Adapter(Adapter):", f'    """{self.architecture}."""', ""]
        lines += [f"    architectures = ({self.architecture!r},)", f"    layers_path = {self.layers!r}"]
        lines += [f"    {key} = {value!r}" for key, value in outer.items()]
        lines += ["", *self._methods(by_kind), *self._logits(outer)]
        lines += [
            "",
            "",
            "@hookimpl",
            "def xatlas_adapters():",
            '    """Return the adapter."""',
            f"    return [{name}Adapter]",
            "",
        ]
        self.questions = list(dict.fromkeys(self.questions))
        marked = [f"# QUESTION: {question}" for question in self.questions]
        return "\n".join([lines[0], "", *marked, *lines[1:]])

    def _outer(self) -> dict[str, Any]:
        """Return the paths around the layers, and the name of the cache."""
        paths = {id(module): path for path, module in self.hf.named_modules()}
        last = self.trace.left[f"{self.layers}.{len(self.kinds) - 1}"]
        head = self.hf.get_output_embeddings()
        norms = [path for path, tensor in self.trace.entered.items() if same(tensor, last) and path != paths[id(head)]]
        outside = [path for path in norms if not path.startswith(f"{self.layers}.")]
        found = {
            "embedding_path": paths[id(self.hf.get_input_embeddings())],
            "final_norm_path": outside[0] if outside else paths[id(head)],
            "unembedding_path": paths[id(head)],
        }
        if not outside:
            self.questions.append("which norm stands between the last layer and the unembedding?")
        layer = self.hf.get_submodule(f"{self.layers}.0")
        cache = next((n for n in (*CACHES, "layer_past") if n in inspect.signature(layer.forward).parameters), None)
        if cache is None:
            self.questions.append("does a layer take a cache, and under which argument? Without, no step is run alone.")
        attention = {} if type(self.hf)._supports_sdpa else {"supports_sdpa": False}
        return found | {"cache_argument": cache} | attention

    def _logits(self, outer: Mapping[str, Any]) -> list[str]:
        """Return a method for logits that are more than the unembedding of the normed stream."""
        last = self.trace.left[f"{self.layers}.{len(self.kinds) - 1}"]
        with torch.inference_mode():
            plain = self.hf.get_submodule(outer["unembedding_path"])(
                self.hf.get_submodule(outer["final_norm_path"])(last)
            )
            ids = torch.arange(3, 3 + LENGTH)[None]
            own = self.hf(input_ids=ids, use_cache=False).logits
        if same(plain, own):
            return []
        factor = float((own * plain).sum() / plain.square().sum())
        cap = getattr(self.hf.config.get_text_config(), "final_logit_softcapping", None)
        head = ["", "    def logits(self, hidden):", "        plain = super().logits(hidden)"]
        if cap:
            return [
                *head,
                "        cap = self.model.config.get_text_config().final_logit_softcapping",
                "        return (plain / cap).tanh() * cap",
            ]
        if same(plain * factor, own):
            self.questions.append(f"which field of the config multiplies the logits by {factor:.6g}?")
            return [*head, f"        return plain * {factor:.6g}"]
        self.questions.append("what is done to the logits after the unembedding?")
        return []

    def _methods(self, by_kind: Mapping[Any, list[int]]) -> list[str]:
        """Return the methods, with a branch for each kind of layer."""
        types = {kind: self._word(numbers[0], kind) for kind, numbers in by_kind.items()}
        if len(set(types.values())) < len(types):
            types = {kind: f"{word}{number}" if number else word for number, (kind, word) in enumerate(types.items())}
            self.questions.append(
                f"layers differ in what they write: what are these kinds called? {', '.join(types.values())}"
            )
        lines = ["    def operator_type(self, layer):"]
        for kind, numbers in list(by_kind.items())[1:]:
            lines += [f"        if {self._told_by(numbers, kind, by_kind)}:", f"            return {types[kind]!r}"]
        lines += [f"        return {types[next(iter(by_kind))]!r}", "", "    def hook_points(self, layer):"]
        lines += ["        block, layout = self.layer_path(layer), self.head_layout(layer)"]
        bodies = [(types[kind], self._points(numbers[0], kind)) for kind, numbers in by_kind.items()]
        lines += _branches(bodies, "points")
        lines += ["        return points", "", "    def roles(self, layer):", "        block = self.layer_path(layer)"]
        lines += _branches([(types[kind], self._roles(numbers, kind)) for kind, numbers in by_kind.items()], "roles")
        lines += ["        return roles", "", "    def head_layout(self, layer):"]
        heads = {types[kind]: self._heads(numbers[0], kind) for kind, numbers in by_kind.items()}
        for word, found in heads.items():
            if found is not None:
                lines += [f"        if self.operator_type(layer) == {word!r}:"]
                lines += ["            config = self.model.config.get_text_config()"]
                lines += [f"            return HeadLayout({', '.join(self._sizes(*found[1:]))})"]
        lines += ["        return None", "", "    def output_projection(self, layer):"]
        for word, found in heads.items():
            if found is not None and found[0]:
                lines += [
                    f"        if self.operator_type(layer) == {word!r}:",
                    f'            return f"{{self.layer_path(layer)}}.{found[0]}"',
                ]
        lines += ["        return None", "", "    def written(self, layer, projected):"]
        for word, kind in ((types[kind], kind) for kind in by_kind):
            way = self._way(by_kind[kind][0], kind)
            if way is not None:
                lines += [f"        if self.operator_type(layer) == {word!r}:", f"            return {way}"]
        return [*lines, "        return projected"]

    def _way(self, layer: int, kind: Any) -> str | None:
        """Return the code of what is added when the heads' projection returns ``projected``, unless it is just that."""
        block, last = f"{self.layers}.{layer}", kind[0][-1]
        pattern = next((p for p in self.trace.patterns if p.startswith(f"{block}.")), None)
        if pattern is None or (last.factor == 1 and pattern == f"{block}.{last.path}"):
            return None
        if pattern == f"{block}.{last.path}":
            return f"projected * {last.factor}"
        return f'self.module(f"{{self.layer_path(layer)}}.{last.path}")(projected) * {last.factor}'

    def _sizes(self, n_heads: int, groups: int, width: int) -> tuple[str, str, str]:
        """Return the code that reads query heads, groups and a head's width from the config."""
        heads = self._size(n_heads, "num_attention_heads", "n_head", "n_heads")
        own = getattr(self.hf.config.get_text_config(), "num_key_value_heads", None)
        same = groups == n_heads and own != groups
        hidden = (
            f"config.hidden_size // {heads}" if self.hf.config.get_text_config().hidden_size == n_heads * width else ""
        )
        names = ("head_dim", "head_size")
        known = any(hasattr(self.hf.config.get_text_config(), name) for name in names)
        return (
            heads,
            heads if same else self._size(groups, "num_key_value_heads", "num_kv_heads"),
            hidden if hidden and not known else self._size(width, *names),
        )

    def _size(self, value: int, *names: str) -> str:
        """Return how a config calls a size that was found; the number itself, with a question, where none has it."""
        config = self.hf.config.get_text_config()
        found = next((name for name in names if getattr(config, name, None) == value), None)
        if found is None:
            what = f"where is the size {value} ({names[0]}) read from? The file holds the tiny model's number."
            self.questions.append(what)
        return str(value) if found is None else f"config.{found}"

    def _word(self, layer: int, kind: Any) -> str:
        path = f"{self.layers}.{layer}.{kind[0][0].path}"
        near = [p for p in self.trace.patterns if p.startswith(f"{self.layers}.{layer}.")]
        if near:
            return "attention" if len(kind[0]) == 1 else "attention+ssm"
        name = type(self.hf.get_submodule(path)).__name__.lower()
        return next((word for part, word in _WORDS.items() if part in name), "operator")

    def _told_by(self, numbers: list[int], kind: Any, by_kind: Mapping[Any, list[int]]) -> str:
        """Return the code that tells a layer of a kind: by a module that only these have."""
        own = set(dict(self.hf.get_submodule(f"{self.layers}.{numbers[0]}").named_children()))
        for other in set(by_kind) - {kind}:
            own -= set(dict(self.hf.get_submodule(f"{self.layers}.{by_kind[other][0]}").named_children()))
        if own:
            return f"hasattr(self.layer(layer), {min(own)!r})"
        self.questions.append(
            f"what tells layers like {numbers[0]} from others? The file holds the tiny model's numbers."
        )
        return f"layer in {tuple(numbers)}"

    def _points(self, layer: int, kind: Any) -> list[str]:
        """Return the entries of a layer's hook points."""
        block = f"{self.layers}.{layer}"
        operators, others = kind
        entries = ['"resid_pre": HookPoint(block, "input"),', '"resid_post": HookPoint(block, "output"),']
        entries.append(f'"operator_out": {self._point(layer, operators)},')
        if others:
            entries.append(f'"mlp_out": {self._point(layer, others)},')
            written = (each.factor * self.trace.left[f"{block}.{each.path}"] for each in operators)
            middle = self.trace.entered[block] + sum(written)
            norm = next(
                (p for p in self.trace.entered if p.startswith(f"{block}.") and same(self.trace.entered[p], middle)),
                None,
            )
            if norm is not None:
                place = f'f"{{block}}.{norm.removeprefix(f"{block}.")}", "input", edit_as="operator_out"'
                flat = ", flat=True" if self.trace.entered[norm].dim() == 2 else ""
                entries.append(f'"resid_mid": HookPoint({place}{flat}),')
        heads = self._heads(layer, kind)
        if heads is not None and heads[0]:
            entries.append(
                f'"heads": HookPoint(f"{{block}}.{heads[0]}", "input", Heads(layout.n_heads, layout.d_head)),'
            )
        pattern = next((p for p in self.trace.patterns if p.startswith(f"{block}.")), None)
        if pattern is not None:
            path = pattern.removeprefix(f"{block}.")
            entries.append(f'"attention_pattern": HookPoint(f"{{block}}.{path}", "output", Pattern()),')
        return entries

    def _point(self, layer: int, writes: tuple[Write, ...]) -> str:
        """Return the code of a hook point for a sum of writes, in the order in which they run."""
        code: list[str] = []
        for write in sorted(
            writes, key=lambda write: list(self.trace.left).index(f"{self.layers}.{layer}.{write.path}")
        ):
            flat = self.trace.left[f"{self.layers}.{layer}.{write.path}"].dim() == 2
            scaled = "" if write.factor == 1 else f", Scaled({write.factor})"
            code.append(f'HookPoint(f"{{block}}.{write.path}", "output"{scaled}{", flat=True" if flat else ""}')
        beside = f", beside=({', '.join(f'{one})' for one in code[:-1])},)" if len(code) > 1 else ""
        return f"{code[-1]}{beside})"

    def _heads(self, layer: int, kind: Any) -> tuple[str, int, int, int] | None:
        """Return the output projection inside the layer, its query heads, groups, and the width of one."""
        block = f"{self.layers}.{layer}"
        pattern = next((p for p in self.trace.patterns if p.startswith(f"{block}.")), None)
        if pattern is None:
            return None
        projections = [
            p
            for p in self.trace.left
            if p.startswith(f"{pattern}.") and same(self.trace.left[p], self.trace.left[pattern])
        ]
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

    def _roles(self, layers: list[int], kind: Any) -> list[str]:
        """Return the entries of the roles that all layers of a kind have."""
        first, *others = ([*dict.fromkeys(self._roles_of(layer, kind))] for layer in layers)
        return [entry for entry in first if all(entry in other for other in others)]

    def _roles_of(self, layer: int, kind: Any) -> list[str]:
        """Return the entries of a layer's roles: linear modules under what writes, by their names."""
        block, entries = f"{self.layers}.{layer}", []
        word = self._word(layer, kind)
        for part, writes in (("attention" if word.startswith("attention") else word, kind[0]), ("mlp", kind[1])):
            for write in writes:
                given = self.trace.entered[f"{block}.{write.path}"]
                before = (p for p in self._inside(block) if same(self.trace.left[f"{block}.{p}"], given))
                owner = min(before, key=len, default=write.path) if "norm" in write.path.lower() else write.path
                for path, module in self.hf.get_submodule(f"{block}.{owner}").named_modules():
                    whole, last = f"{owner}.{path}".strip("."), path.rpartition(".")[2] or owner
                    role = _ROLES.get(last, last)
                    if _is_linear(module) and ".experts." not in f".{whole}." and role.isidentifier():
                        entries.append(f'"{part}.{role}": f"{{block}}.{whole}",')
        return entries


def _is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies by a matrix."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 2 and not isinstance(module, nn.Embedding)


def _branches(bodies: list[tuple[str, list[str]]], name: str) -> list[str]:
    """Return code that fills a dict by the layer's type."""
    lines: list[str] = []
    for number, (word, entries) in enumerate(bodies):
        indent = "        "
        if len(bodies) > 1:
            head = "if" if not number else "elif" if number < len(bodies) - 1 else None
            lines.append(f"        {head} self.operator_type(layer) == {word!r}:" if head else "        else:")
            indent += "    "
        lines += [f"{indent}{name} = {{", *(f"{indent}    {entry}" for entry in entries), f"{indent}}}"]
    return lines

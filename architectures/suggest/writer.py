"""The file of a suggested adapter."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch

from xatlas.architectures.suggest.places import LENGTH, Places, Write, is_linear, row_arguments, same
from xatlas.model.hooks import CACHES

#: Names of linear modules → what they are for.
_ROLES = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "out", "out_proj": "out", "gate_proj": "gate",
    "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down", "fc1": "up", "fc2": "down",
    "in_proj": "in", "dense": "out", "c_proj": "out", "dense_h_to_4h": "up", "dense_4h_to_h": "down",
}  # fmt: skip


class Writer(Places):
    """Writes down the places that are found."""

    def file(self) -> str:
        """Return the adapter's file."""
        outer = self._outer()
        by_kind: dict[Any, list[int]] = {}
        for layer, kind in enumerate(self.kinds):
            by_kind.setdefault(kind, []).append(layer)
        name = re.sub(r"(For|LM)\w*$", "", self.architecture) or self.architecture
        lines = ["from xatlas import Adapter, HeadLayout, HookPoint, hookimpl"]
        lines += ["from xatlas.contracts.adapter import Heads, Pattern, Scaled", ""]
        lines += ["", f"class {name}Adapter(Adapter):", f'    """{self.architecture}."""', ""]
        lines += [f"    architectures = ({self.architecture!r},)", f"    layers_path = {self.layers!r}"]
        lines += [f"    {key} = {value!r}" for key, value in outer.items()]
        lines += ["", *self._methods(by_kind), *self._logits(outer)]
        lines += ["", "", "@hookimpl", "def xatlas_adapters():", '    """Return the adapter."""']
        lines += [f"    return [{name}Adapter]", ""]
        self.questions = list(dict.fromkeys(self.questions))
        said = f'"""Adapter for {self.architecture}: suggested from its modules and one forward; look it through."""'
        marked = [f"# QUESTION: {question}" for question in self.questions]
        return "\n".join([said, "", *marked, *[""][: len(marked)], *lines])

    def _outer(self) -> dict[str, Any]:
        """Return the paths around the layers, and the name of the cache."""
        paths = {id(module): path for path, module in self.hf.named_modules()}
        last = self.trace.left[f"{self.layers}.{len(self.kinds) - 1}"]
        head = self.hf.get_output_embeddings()
        entered = self.trace.entered | self.trace.again
        norms = [path for path, tensor in entered.items() if same(tensor, last) and path != paths[id(head)]]
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
        rows = {"row_arguments": names} if (names := row_arguments(self.hf, self.layers)) else {}
        return found | {"cache_argument": cache} | attention | rows

    def _logits(self, outer: Mapping[str, Any]) -> list[str]:
        """Return a method for logits that are more than the unembedding of the normed stream."""
        if outer["final_norm_path"] == outer["unembedding_path"]:  # where no norm is found, nothing can be told
            return []
        last = self.trace.left[f"{self.layers}.{len(self.kinds) - 1}"]
        with torch.inference_mode():
            normed = self.hf.get_submodule(outer["final_norm_path"])(last)
            plain = self.hf.get_submodule(outer["unembedding_path"])(normed)
            ids = torch.arange(3, 3 + LENGTH)[None]
            own = self.hf(input_ids=ids, use_cache=False).logits
        if same(plain, own):
            return []
        factor = float((own * plain).sum() / plain.square().sum())
        numbers = {name: n for name, n in vars(self.config).items() if type(n) in (int, float) and n}
        cap = next((name for name, n in numbers.items() if same((plain / n).tanh() * n, own)), None)
        head = ["", "    def logits(self, hidden):", "        plain = super().logits(hidden)"]
        if cap:
            read = f"        cap = self.model.config.get_text_config().{cap}"
            return [*head, read, "        return (plain / cap).tanh() * cap"]
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
            names = ", ".join(types.values())
            self.questions.append(f"layers differ in what they write: what are these kinds called? {names}")
        lines = ["    def operator_type(self, layer):"]
        for kind, numbers in list(by_kind.items())[1:]:
            lines += [f"        if {self._told_by(numbers, kind, by_kind)}:", f"            return {types[kind]!r}"]
        lines += [f"        return {types[next(iter(by_kind))]!r}", "", "    def hook_points(self, layer):"]
        lines += ["        block, layout = self.layer_path(layer), self.head_layout(layer)"]
        bodies = [(types[kind], self._points(numbers, kind)) for kind, numbers in by_kind.items()]
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
                lines += [f"        if self.operator_type(layer) == {word!r}:"]
                lines += [f'            return f"{{self.layer_path(layer)}}.{found[0]}"']
        lines += ["        return None", "", "    def written(self, layer, projected):"]
        for kind, word in types.items():
            if way := self._way(by_kind[kind][0], kind):
                lines += [f"        if self.operator_type(layer) == {word!r}:", f"            return {way}"]
        return [*lines, "        return projected"]

    def _way(self, layer: int, kind: Any) -> str | None:
        """Return the code of what is added when the heads' projection returns ``projected``, unless it is just that."""
        block, heads = f"{self.layers}.{layer}", self._heads(layer, kind)
        if heads is None:
            return None
        projected = self.trace.left[f"{block}.{heads[0]}"]
        write = next(one for one in kind[0] if self._leads_to(projected, f"{block}.{one.path}"))
        if not same(self.trace.left[f"{block}.{write.path}"], projected):
            return f'self.module(f"{{self.layer_path(layer)}}.{write.path}")(projected) * {write.factor}'
        return None if write.factor == 1 else f"projected * {write.factor}"

    def _sizes(self, n_heads: int, groups: int, width: int) -> tuple[str, str, str]:
        """Return the code that reads query heads, groups and a head's width from the config."""
        heads = self._size(n_heads, "num_attention_heads", "n_head", "n_heads")
        ungrouped = groups == n_heads and getattr(self.config, "num_key_value_heads", None) != groups
        names = ("head_dim", "head_size")
        divided = self.config.hidden_size == n_heads * width and not any(hasattr(self.config, name) for name in names)
        return (
            heads,
            heads if ungrouped else self._size(groups, "num_key_value_heads", "num_kv_heads"),
            f"config.hidden_size // {heads}" if divided else self._size(width, *names),
        )

    def _size(self, value: int, *names: str) -> str:
        """Return how a config calls a size that was found; the number itself, with a question, where none has it."""
        for name in names:
            if getattr(self.config, name, None) == value:
                return f"config.{name}"
        what = f"where is the size {value} ({names[0]}) read from? The file holds the tiny model's number."
        self.questions.append(what)
        return str(value)

    def _told_by(self, numbers: list[int], kind: Any, by_kind: Mapping[Any, list[int]]) -> str:
        """Return the code that tells a layer of a kind: by a module that only these have."""
        names = {k: dict(self.hf.get_submodule(f"{self.layers}.{n[0]}").named_children()) for k, n in by_kind.items()}
        own = set(names.pop(kind)).difference(*names.values())
        if own:
            return f"hasattr(self.layer(layer), {min(own)!r})"
        what = f"what tells layers like {numbers[0]} from others? The file holds the tiny model's numbers."
        self.questions.append(what)
        return f"layer in {tuple(numbers)}"

    def _points(self, layers: list[int], kind: Any) -> list[str]:
        """Return the entries of the hook points of all layers of a kind."""
        layer = layers[0]
        block = f"{self.layers}.{layer}"
        operators, others = kind
        entries = ['"resid_pre": HookPoint(block, "input"),', '"resid_post": HookPoint(block, "output"),']
        entries.append(f'"operator_out": {self._point(layers, operators)},')
        if others:
            entries.append(f'"mlp_out": {self._point(layers, others)},')
            written = (each.factor * self.trace.left[f"{block}.{each.path}"] for each in operators)
            middle = self.trace.entered[block] + sum(written)
            inside = [path for path in self.trace.entered if path.startswith(f"{block}.")]
            norm = next((path for path in inside if same(self.trace.entered[path], middle)), None)
            if norm is not None:
                place = f'f"{{block}}.{norm.removeprefix(f"{block}.")}", "input", edit_as="operator_out"'
                flat = ", flat=True" if self.trace.entered[norm].dim() == 2 else ""
                entries.append(f'"resid_mid": HookPoint({place}{flat}),')
        heads, pattern = self._heads(layer, kind), self._pattern(layer)
        if heads is not None and pattern is not None:
            view, path = "Heads(layout.n_heads, layout.d_head)", pattern.removeprefix(f"{block}.")
            entries.append(f'"heads": HookPoint(f"{{block}}.{heads[0]}", "input", {view}),')
            entries.append(f'"attention_pattern": HookPoint(f"{{block}}.{path}", "output", Pattern()),')
        return entries

    def _point(self, layers: list[int], writes: tuple[Write, ...]) -> str:
        """Return the code of a hook point for a sum of writes, in the order in which they run."""
        code, order = list[str](), list(self.trace.left)
        for write in sorted(writes, key=lambda write: order.index(f"{self.layers}.{layers[0]}.{write.path}")):
            flat = any(self.trace.left[f"{self.layers}.{layer}.{write.path}"].dim() == 2 for layer in layers)
            scaled = "" if write.factor == 1 else f", Scaled({write.factor})"
            code.append(f'HookPoint(f"{{block}}.{write.path}", "output"{scaled}{", flat=True" if flat else ""}')
        beside = f", beside=({', '.join(f'{one})' for one in code[:-1])},)" if len(code) > 1 else ""
        return f"{code[-1]}{beside})"

    def _roles(self, layers: list[int], kind: Any) -> list[str]:
        """Return the entries of the roles that all layers of a kind have."""
        first, *others = ([*dict.fromkeys(self._roles_of(layer, kind))] for layer in layers)
        return [entry for entry in first if all(entry in other for other in others)]

    def _roles_of(self, layer: int, kind: Any) -> list[str]:
        """Return the entries of a layer's roles: linear modules under what writes, by their names."""
        block, entries, found = f"{self.layers}.{layer}", list[str](), dict[str, list[str]]()
        heads, projected = self._heads(self.kinds.index(kind), kind), None
        widths: dict[str, int] = {}
        if heads is not None:
            projected, width = self.trace.left[f"{block}.{heads[0]}"], heads[3]
            widths = {"attention.q": heads[1] * width, "attention.k": heads[2] * width, "attention.v": heads[2] * width}
        for write in (*kind[0], *kind[1]):
            place = f"{block}.{write.path}"
            part = "attention" if projected is not None and self._leads_to(projected, place) else self._named(place)
            part = "mlp" if write in kind[1] else part
            given, own = self.trace.entered[place], self._owner(place).removeprefix(f"{block}.")
            before = (p for p in self._inside(block) if same(self.trace.left[f"{block}.{p}"], given))
            owner = min(before, key=len, default=own) if "norm" in own.lower() else own
            for path, module in self.hf.get_submodule(f"{block}.{owner}").named_modules():
                whole, last = f"{owner}.{path}".strip("."), path.rpartition(".")[2] or owner
                if last == "gate" and hasattr(self.hf.get_submodule(f"{block}.{whole}".rpartition(".")[0]), "experts"):
                    last = "router"
                role = f"{part}.{_ROLES.get(last, last)}"
                if not is_linear(module) or ".experts." in f".{whole}." or not role.replace(".", "").isidentifier():
                    continue
                outputs = module.weight.numel() // self.trace.left[block].shape[-1]
                if widths.get(role, outputs) == outputs:
                    found.setdefault(role, []).append(whole)
                else:
                    fault = f"{last} gives {outputs} numbers, of which heads take {widths[role]}"
                    self.questions.append(f"{fault}: which? The role {role} is left out.")
        for role, paths in found.items():  # several of one name are told apart by their paths
            names = [role] if len(paths) == 1 else [f"{role.partition('.')[0]}.{p.replace('.', '_')}" for p in paths]
            entries += [f'"{name}": f"{{block}}.{path}",' for name, path in zip(names, paths, strict=True)]
        return entries


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

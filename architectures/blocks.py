"""What adapters of several kinds of block share, each a small class beside :class:`PreNormAdapter`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from xatlas.contracts.adapter import Adapter, HeadLayout, HookPoint, Part, PreNormAdapter, Scaled

if TYPE_CHECKING:
    import torch

Roles = dict[str, str | Part]


def adapters_of(module: Mapping[str, Any]) -> list[type[Adapter]]:
    """Return the adapters that a file defines, given its ``globals()``: those that name architectures themselves."""
    classes = [each for each in module.values() if isinstance(each, type) and issubclass(each, Adapter)]
    return [each for each in classes if each.__module__ == module["__name__"] and "architectures" in vars(each)]


class SlidingEverywhere(PreNormAdapter):
    """Every layer attends in the window that the config names: the mask is the model's, the modules don't hold it."""

    def window(self, layer: int) -> int | None:
        """Return the config's window."""
        found = self.model.config.sliding_window
        return None if found is None else int(found)


class CappedLogits(PreNormAdapter):
    """Logits go through a soft cap where the config has one."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the capped logits."""
        logits, cap = super().logits(hidden), self.model.config.final_logit_softcapping
        return logits if cap is None else (logits / cap).tanh() * cap


class Multiplied(PreNormAdapter):
    """What attention and MLP return is added to the stream times a factor; logits have a factor, too."""

    @property
    def factor(self) -> float:
        """Return the factor of what is added."""
        return float(self.model.config.residual_multiplier)

    def hook_points(self, layer: int) -> dict[str, HookPoint]:
        """Return the shared sites, with outputs times the factor."""
        points = super().hook_points(layer)
        for kind in ("operator_out", "mlp_out"):
            points[kind] = replace(points[kind], view=Scaled(self.factor))
        return points

    def written(self, layer: int, projected: torch.Tensor) -> torch.Tensor:
        """Return the projection's output times the factor."""
        return super().written(layer, projected) * self.factor

    @property
    def logits_factor(self) -> float:
        """Return the factor of logits."""
        return 1 / float(self.model.config.logits_scaling)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the multiplied logits."""
        return super().logits(hidden) * self.logits_factor


class PostNormAdapter(PreNormAdapter):
    """What attention and MLP return goes through a norm before it is added; norms may stand in front of them, too.

    ``mlp_norm_name`` is what takes the stream between the two: the MLP itself, where no norm stands in front of it.
    """

    mlp_norm_name = "mlp"
    #: Names of the norms behind attention and MLP.
    operator_post_norm_name: ClassVar[str] = "post_attention_layernorm"
    mlp_post_norm_name: ClassVar[str] = "post_feedforward_layernorm"

    def hook_points(self, layer: int) -> dict[str, HookPoint]:
        """Return the shared sites, with outputs behind the norms."""
        block = self.layer_path(layer)
        return super().hook_points(layer) | {
            "operator_out": HookPoint(f"{block}.{self.operator_post_norm_name}", "output"),
            "mlp_out": HookPoint(f"{block}.{self.mlp_post_norm_name}", "output"),
        }

    def written(self, layer: int, projected: torch.Tensor) -> torch.Tensor:
        """Return the projection's output behind the norm."""
        norm = self.module(f"{self.layer_path(layer)}.{self.operator_post_norm_name}")
        return norm(projected)  # type: ignore[no-any-return]


class ParallelAdapter(PreNormAdapter):
    """Attention and MLP read the same stream and are added to it together: no stream lies between the two."""

    def side_by_side(self, layer: int) -> bool:
        """Say whether this layer is such a one: some architectures have both kinds, by their config."""
        return True

    def hook_points(self, layer: int) -> dict[str, HookPoint]:
        """Return the shared sites, without ``resid_mid`` in a parallel layer."""
        points = super().hook_points(layer)
        if self.side_by_side(layer):
            del points["resid_mid"]
        return points


class FusedAttention(PreNormAdapter):
    """Queries, keys and values come from one projection.

    Its outputs are all queries, all keys and all values; or that for each key/value head in turn, if ``grouped``.
    """

    qkv_name: ClassVar[str]
    grouped: ClassVar[bool] = False
    #: Attribute of the attention module that holds the width of a head.
    d_head_name: ClassVar[str] = "head_dim"

    def head_layout(self, layer: int) -> HeadLayout:
        """Count the heads: what the fused projection gives beyond queries are keys and values."""
        path = self.operator_path(layer)
        d_head = int(getattr(self.module(path), self.d_head_name))
        total = self.outputs(f"{path}.{self.qkv_name}") // d_head
        n_heads = self.queries(layer) // d_head
        return HeadLayout(n_heads, (total - n_heads) // 2, d_head)

    def queries(self, layer: int) -> int:
        """Return how many numbers the queries are: as many as the output projection takes."""
        out = self.module(f"{self.operator_path(layer)}.{self.out_name}")
        return int(out.nx if hasattr(out, "nx") else out.in_features)  # GPT-2's Conv1D calls them nx

    def roles(self, layer: int) -> Roles:
        """Return the shared roles, with parts of the fused projection."""
        layout, path = self.head_layout(layer), f"{self.operator_path(layer)}.{self.qkv_name}"
        groups = layout.n_kv_heads if self.grouped else 1
        query, key = layout.n_heads // groups * layout.d_head, layout.n_kv_heads // groups * layout.d_head
        period = query + 2 * key
        return super().roles(layer) | {
            "attention.q": Part(path, 0, query, period),
            "attention.k": Part(path, query, query + key, period),
            "attention.v": Part(path, query + key, period, period),
        }


class FusedGate(PreNormAdapter):
    """The MLP's gate and its upward projection come from one module, the gate first."""

    mlp_roles = {"down": "down_proj"}  # noqa: RUF012 - declared ClassVar in the base
    gate_up_name: ClassVar[str] = "gate_up_proj"

    def roles(self, layer: int) -> Roles:
        """Return the shared roles, with halves of the fused projection."""
        path = f"{self.layer_path(layer)}.{self.mlp_name}.{self.gate_up_name}"
        width = self.outputs(path) // 2
        return super().roles(layer) | {"mlp.gate": Part(path, 0, width), "mlp.up": Part(path, width, 2 * width)}


class LatentAttention(PreNormAdapter):
    """Keys and values come from one narrow projection, and queries too where the module has two for them."""

    #: Projections by name, and their roles; queries may be wider than values, so that "q" is not said of them.
    projections: ClassVar[Mapping[str, str]] = {
        "q_proj": "attention.query",
        "q_a_proj": "attention.query_a",
        "q_b_proj": "attention.query_b",
        "kv_a_proj_with_mqa": "attention.kv_a",
        "kv_b_proj": "attention.kv_b",
        "o_proj": "attention.out",
    }

    def head_layout(self, layer: int) -> HeadLayout:
        """Return the heads as they enter the output projection: as wide as their values."""
        width = self.module(f"{self.operator_path(layer)}.{self.out_name}").in_features
        n_heads = int(self.model.config.num_attention_heads)
        return HeadLayout(n_heads, n_heads, width // n_heads)

    def roles(self, layer: int) -> Roles:
        """Return the MLP's roles and those of the projections that the attention has."""
        path = self.operator_path(layer)
        names = [name for name, _ in self.module(path).named_children()]
        attention = {self.projections[name]: f"{path}.{name}" for name in names if name in self.projections}
        return {role: at for role, at in super().roles(layer).items() if role.startswith("mlp.")} | attention


class Experts(PreNormAdapter):
    """The MLP sends each token to some of many experts, whose weights lie in one parameter; dense layers may be beside.

    Roles are those of a dense layer, the router, and the experts that every token goes through.
    """

    #: Names of the router, and of the shared experts and their projections, inside the MLP.
    router_name: ClassVar[str] = "gate"
    shared_name: ClassVar[str] = "shared_experts"

    def roles(self, layer: int) -> Roles:
        """Return the roles of the modules that this layer has."""
        path, roles = f"{self.layer_path(layer)}.{self.mlp_name}", super().roles(layer)
        roles |= {f"mlp.shared_{role}": f"{path}.{self.shared_name}.{name}" for role, name in self.mlp_roles.items()}
        roles["mlp.router"] = f"{path}.{self.router_name}"
        has = {f"{path}.{name}" for name, _ in self.module(path).named_modules()}
        return {role: at for role, at in roles.items() if not role.startswith("mlp.") or at in has}

"""The contract that names an architecture's hook points, operators and module roles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from xatlas.errors import XatlasError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from xatlas.loading.gguf import GgufFile


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """One place in a model: a decoder layer, from 0, and a site kind, shared or the adapter's own."""

    layer: int
    kind: str

    def __str__(self) -> str:
        return f"L{self.layer}.{self.kind}"


class View:
    """How a site's tensor lies inside the tensor that a module takes or returns: by itself, as all of it."""

    #: Which element of a returned tuple holds the site.
    element: ClassVar[int] = 0

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the site's value, shaped as the site kind says."""
        return tensor

    def write(self, tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Return a tensor like ``tensor`` in which the site's value is ``value``."""
        return value


@dataclass(frozen=True)
class Whole(View):
    """The module's tensor is the site."""


@dataclass(frozen=True)
class Pattern(View):
    """The attention weights, second in what an eager attention module returns; read only."""

    element: ClassVar[int] = 1


@dataclass(frozen=True)
class Heads(View):
    """The last dimension holds ``n_heads`` slices of ``d_head``."""

    n_heads: int
    d_head: int

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.reshape(*tensor.shape[:-1], self.n_heads, self.d_head)

    def write(self, tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value.reshape(tensor.shape)


@dataclass(frozen=True)
class Projected(View):
    """What a linear module, or one like it, makes of its input, before all else that it does; read only."""

    module: Any

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        weight, bias = self.module.weight, getattr(self.module, "bias", None)
        logits: torch.Tensor = tensor.to(weight.dtype) @ weight.T
        return logits if bias is None else logits + bias


@dataclass(frozen=True)
class Chunk(View):
    """One of ``count`` equal parts of the last dimension."""

    index: int
    count: int

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.chunk(self.count, dim=-1)[self.index]

    def write(self, tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        width = tensor.shape[-1] // self.count
        result = tensor.clone()
        result[..., self.index * width : (self.index + 1) * width] = value
        return result


@dataclass(frozen=True)
class Scaled(View):
    """The site is the module's tensor times ``factor``: what a block with multipliers adds to the stream."""

    factor: float

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor * self.factor

    def write(self, tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        number = tensor.where(value == tensor * self.factor, value / self.factor)  # exact where nothing is changed
        return number.detach() + (value - value.detach()) / self.factor  # the gradient is that of the quotient


@dataclass(frozen=True, slots=True)
class HookPoint:
    """Where one architecture keeps a site."""

    module: str  # path of the module in the Hugging Face model, e.g. "model.layers.3.mlp"
    side: Literal["input", "output"]  # the site is in its first tensor argument, or in what it returns
    view: View = field(default_factory=Whole)  # how the site lies in that tensor
    # Kind of the site through which an edit is made, as an added difference, where editing this tensor itself would
    # miss part of the model: resid_mid is edited through operator_out.
    edit_as: str | None = None
    # Where several modules write side by side, the site is the sum: those that run before this one, in their order. An
    # edit adds its difference to this one.
    beside: tuple[HookPoint, ...] = ()
    flat: bool = False  # the tensor has batch and position in one dimension


@dataclass(frozen=True, slots=True)
class Part:
    """A role that a fused projection holds beside others: its outputs ``start`` to ``stop``, of every ``period``."""

    module: str
    start: int
    stop: int
    period: int | None = None  # None: of all outputs

    def outputs(self, width: int) -> list[int]:
        """Return which of the projection's ``width`` outputs are meant."""
        return [index for index in range(width) if self.start <= index % (self.period or width) < self.stop]


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """Query heads of one attention layer, its key/value heads, and the width of one head."""

    n_heads: int
    n_kv_heads: int
    d_head: int

    def kv_group(self, head: int) -> int:
        """Return the key/value group that query head ``head`` reads."""
        return head // (self.n_heads // self.n_kv_heads)


class GgufLayout(ABC):
    """How GGUF files write an architecture; the gguf package knows the names of its tensors.

    Keys and tensors are popped from the file as they are converted; what is left in the end refuses it.
    """

    architecture: str  #: ``general.architecture`` in the file

    @abstractmethod
    def config(self, file: GgufFile) -> Any:
        """Return the Hugging Face config that the metadata mean."""

    @abstractmethod
    def tokenizer(self, file: GgufFile, rows: int, say: Callable[[str], None]) -> Any:
        """Return a transformers tokenizer for an embedding of ``rows`` tokens; ``say`` tells the user one line."""

    def says_nothing(self, key: str, value: object) -> bool:
        """Say whether a key that was not popped bears on nothing."""
        return False

    def tensor(self, name: str, value: torch.Tensor, config: Any) -> torch.Tensor:
        """Return a tensor of the file as the model holds it."""
        return value


class Adapter(ABC):
    """Names the places of one model architecture; facts are read from the loaded modules.

    Subclass this for blocks of any kind, or :class:`PreNormAdapter` for the common decoder block. ``model`` is the
    loaded Hugging Face causal language model.
    """

    #: Hugging Face class names that the adapter fits, e.g. ``("LlamaForCausalLM",)``.
    architectures: ClassVar[tuple[str, ...]]
    #: Raised whenever a change of the adapter changes numbers; enters the job's key.
    version: ClassVar[int] = 1
    #: Path of the module list of decoder layers.
    layers_path: ClassVar[str] = "model.layers"
    #: Paths of the embedding, the norm after the last layer, and the unembedding.
    embedding_path: ClassVar[str] = "model.embed_tokens"
    final_norm_path: ClassVar[str] = "model.norm"
    unembedding_path: ClassVar[str] = "lm_head"
    #: Argument under which a layer takes its cache; None where one-token steps are not supported.
    cache_argument: ClassVar[str | None] = None
    #: Arguments of a layer that hold a row, or some rows, for each prompt.
    row_arguments: ClassVar[tuple[str, ...]] = ()
    #: Whether the model can be run step by step without a layer that counts tokens, as attention does in its cache.
    steps_uncounted: ClassVar[bool] = False
    #: Whether the class has torch's fused attention, ``sdpa``; a model of one that hasn't is loaded with ``eager``.
    supports_sdpa: ClassVar[bool] = True
    #: Whether layers with a convolution keep padding out of it, whatever its bias.
    masks_convolutions: ClassVar[bool] = False
    #: How GGUF files write the architecture; None: they are refused. Subclasses don't inherit it.
    gguf: ClassVar[GgufLayout | None] = None
    #: Site kinds beyond the shared ones, with their dimensions.
    extra_kinds: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(self, model: Any) -> None:
        self.model = model
        self.n_layers = len(self.module(self.layers_path))
        self.vocabulary, self.d_model = map(int, self.module(self.embedding_path).weight.shape)

    def module(self, path: str) -> Any:
        """Return the module at ``path``; where the model has none, the adapter does not fit.

        Raises
        ------
        XatlasError
            The model has none there: the adapter does not fit.
        """
        try:
            return self.model.get_submodule(path)
        except AttributeError:
            fault = f"looks for the module '{path}', which {type(self.model).__name__} does not have"
            raise XatlasError(f"{type(self).__name__} {fault}: the adapter does not fit this model.") from None

    def layer_path(self, layer: int) -> str:
        """Return the path of decoder layer ``layer``."""
        return f"{self.layers_path}.{layer}"

    def layer(self, layer: int) -> nn.Module:
        """Return the module of decoder layer ``layer``."""
        return self.module(self.layer_path(layer))  # type: ignore[no-any-return]

    def role_module(self, role: str | Part) -> Any:
        """Return the linear module of one of :meth:`roles`, which may hold others."""
        return self.module(role.module if isinstance(role, Part) else role)

    def outputs(self, role: str | Part) -> int:
        """Return how many outputs that module has."""
        module = self.role_module(role)
        return int(module.nf if hasattr(module, "nf") else module.out_features)  # GPT-2's Conv1D calls them nf

    @abstractmethod
    def operator_type(self, layer: int) -> str:
        """Return what mixes tokens in this layer: ``attention``, ``conv``, ``ssm`` or another word."""

    @abstractmethod
    def hook_points(self, layer: int) -> dict[str, HookPoint]:
        """Return site kind → hook point, for the kinds that this layer has."""

    @abstractmethod
    def roles(self, layer: int) -> Mapping[str, str | Part]:
        """Return role → module path, or part of a fused projection, for the layer's linear modules.

        Roles are ``attention.q/k/v/out``, ``conv.in/out``, ``mlp.gate/up/down``, or an architecture's own.
        """

    def head_layout(self, layer: int) -> HeadLayout | None:
        """Return the layer's heads, or None where it has none."""
        return None

    def output_projection(self, layer: int) -> str | None:
        """Return the path of the module that turns ``heads`` into what :meth:`written` takes, where there is one."""
        return None

    def written(self, layer: int, projected: torch.Tensor) -> torch.Tensor:
        """Return what is added to the stream when the output projection returns ``projected``: here just that."""
        return projected

    def receptive_field(self, layer: int) -> int | None:
        """Return how many of its input's last positions decide a layer's last output; None: all that there are.

        Called on those positions alone, a layer must give the same, which is checked when a model is loaded: it may
        take nothing else that depends on where they stand.
        """
        return None

    def window(self, layer: int) -> int | None:
        """Return how many of the latest tokens, its own included, a query of this layer sees; None: all there are."""
        return None

    def conv_path(self, layer: int) -> str | None:
        """Return the path of the depthwise causal convolution that this layer applies, where there is one."""
        return None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Turn the stream after the last layer into logits ``(..., vocabulary)``."""
        normed = self.module(self.final_norm_path)(hidden)
        return self.module(self.unembedding_path)(normed)  # type: ignore[no-any-return]


class PreNormAdapter(Adapter):
    """The common decoder block: ``x + operator(norm(x))``, then ``x + mlp(norm(x))``.

    A subclass gives the names of the modules; a layer may mix tokens by something other than attention if
    the subclass says so in :meth:`operator_type` and :meth:`hook_points`.
    """

    #: Names inside a layer.
    attention_name: ClassVar[str] = "self_attn"
    mlp_name: ClassVar[str] = "mlp"
    mlp_norm_name: ClassVar[str] = "post_attention_layernorm"
    out_name: ClassVar[str] = "o_proj"
    mlp_roles: ClassVar[Mapping[str, str]] = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    cache_argument: ClassVar[str | None] = "past_key_values"

    def operator_type(self, layer: int) -> str:
        return "attention"

    def operator_path(self, layer: int) -> str:
        """Return the path of the module that mixes tokens."""
        return f"{self.layer_path(layer)}.{self.attention_name}"

    def head_layout(self, layer: int) -> HeadLayout | None:
        if self.operator_type(layer) != "attention":
            return None
        path = self.operator_path(layer)
        d_head = int(self.module(path).head_dim)
        return HeadLayout(
            n_heads=self.module(f"{path}.q_proj").out_features // d_head,
            n_kv_heads=self.module(f"{path}.k_proj").out_features // d_head,
            d_head=d_head,
        )

    def window(self, layer: int) -> int | None:
        if self.operator_type(layer) != "attention":
            return None
        found = getattr(self.module(self.operator_path(layer)), "sliding_window", None)
        return None if found is None else int(found)

    def output_projection(self, layer: int) -> str | None:
        attends = self.operator_type(layer) == "attention"
        return f"{self.operator_path(layer)}.{self.out_name}" if attends else None

    def hook_points(self, layer: int) -> dict[str, HookPoint]:
        block = self.layer_path(layer)
        points = {
            "resid_pre": HookPoint(block, "input"),
            "operator_out": HookPoint(self.operator_path(layer), "output"),
            "resid_mid": HookPoint(f"{block}.{self.mlp_norm_name}", "input", edit_as="operator_out"),
            "mlp_out": HookPoint(f"{block}.{self.mlp_name}", "output"),
            "resid_post": HookPoint(block, "output"),
        }
        layout, projection = self.head_layout(layer), self.output_projection(layer)
        if layout is not None and projection is not None:
            points["heads"] = HookPoint(projection, "input", Heads(layout.n_heads, layout.d_head))
            points["attention_pattern"] = HookPoint(self.operator_path(layer), "output", Pattern())
        router = self.roles(layer).get("mlp.router")
        if router is not None:  # some take batch and position in one dimension, and return more than logits
            points["router"] = HookPoint(str(router), "input", Projected(self.role_module(router)), flat=True)
        return points

    def roles(self, layer: int) -> dict[str, str | Part]:
        block = self.layer_path(layer)
        roles: dict[str, str | Part] = {
            f"mlp.{role}": f"{block}.{self.mlp_name}.{name}" for role, name in self.mlp_roles.items()
        }
        if self.operator_type(layer) == "attention":
            path = self.operator_path(layer)
            roles |= {f"attention.{role}": f"{path}.{role}_proj" for role in ("q", "k", "v")}
            roles["attention.out"] = f"{path}.{self.out_name}"
        return roles

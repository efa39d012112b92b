"""The vocabulary of places: what a site is, and where one architecture keeps it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    import torch

#: Site kinds in the order in which a layer's forward passes them, with their dimensions.
#: An adapter may add kinds of its own; these are the shared ones.
SITE_KINDS: dict[str, tuple[str, ...]] = {
    "resid_pre": ("batch", "pos", "d_model"),
    "conv_gate": ("batch", "pos", "d_model"),
    "conv_carrier": ("batch", "pos", "d_model"),
    "conv_signal": ("batch", "pos", "d_model"),
    "attention_pattern": ("batch", "n_heads", "query", "key"),
    "heads": ("batch", "pos", "n_heads", "d_head"),
    "operator_out": ("batch", "pos", "d_model"),
    "resid_mid": ("batch", "pos", "d_model"),
    "mlp_out": ("batch", "pos", "d_model"),
    "resid_post": ("batch", "pos", "d_model"),
}

#: Kinds that can be read but never edited.
READ_ONLY: frozenset[str] = frozenset({"attention_pattern"})

#: Kinds whose value is added to (or is) the stream leaving the layer: a change there is a change of
#: ``resid_post`` by the same difference, whatever else the layer computes.
WRITES: frozenset[str] = frozenset({"mlp_out", "resid_post"})


def forward_order(kind: str) -> int:
    """Return when a layer's forward passes a kind; kinds that an adapter adds come last."""
    return list(SITE_KINDS).index(kind) if kind in SITE_KINDS else len(SITE_KINDS)


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """One place in a model: a layer and a kind.

    Parameters
    ----------
    layer : int
        Decoder layer, from 0.
    kind : str
        A key of :data:`SITE_KINDS`, or a kind that the adapter adds.
    """

    layer: int
    kind: str

    def __str__(self) -> str:
        return f"L{self.layer}.{self.kind}"


class View(ABC):
    """How a site's tensor lies inside the tensor that a module takes or returns."""

    __slots__ = ()

    #: Which element of a returned tuple holds the site.
    element: ClassVar[int] = 0

    @abstractmethod
    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the site's value, shaped as the site kind says."""

    @abstractmethod
    def write(self, tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Return a tensor like ``tensor`` in which the site's value is ``value``."""


@dataclass(frozen=True, slots=True)
class Whole(View):
    """The module's tensor is the site."""

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return ``tensor`` itself."""
        return tensor

    def write(self, tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Return ``value``."""
        return value


@dataclass(frozen=True, slots=True)
class Pattern(Whole):
    """The attention weights, second in what an eager attention module returns; read only."""

    element: ClassVar[int] = 1


@dataclass(frozen=True, slots=True)
class Heads(View):
    """The last dimension holds ``n_heads`` slices of ``d_head``."""

    n_heads: int
    d_head: int

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        """Split ``(batch, pos, n_heads * d_head)`` by head."""
        return tensor.reshape(*tensor.shape[:-1], self.n_heads, self.d_head)

    def write(self, tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Join the heads again."""
        return value.reshape(tensor.shape)


@dataclass(frozen=True, slots=True)
class Chunk(View):
    """One of ``count`` equal parts of the last dimension."""

    index: int
    count: int

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the part."""
        return tensor.chunk(self.count, dim=-1)[self.index]

    def write(self, tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Return a copy of ``tensor`` with the part replaced."""
        width = tensor.shape[-1] // self.count
        result = tensor.clone()
        result[..., self.index * width : (self.index + 1) * width] = value
        return result


@dataclass(frozen=True, slots=True)
class HookPoint:
    """Where one architecture keeps a site.

    Parameters
    ----------
    module : str
        Path of the module in the Hugging Face model, e.g. ``"model.layers.3.mlp"``.
    side : {"input", "output"}
        Whether the site is the module's first tensor argument or its first tensor result.
    view : View
        How the site lies in that tensor.
    edit_as : str or None
        Kind of the site through which an edit is made, as an added difference, where editing this
        tensor itself would miss part of the model (``resid_mid`` is edited through ``operator_out``).
    """

    module: str
    side: Literal["input", "output"]
    view: View = field(default_factory=Whole)
    edit_as: str | None = None


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """Heads of one attention layer.

    Parameters
    ----------
    n_heads, n_kv_heads, d_head : int
        Query heads, key/value heads, width of one head.
    """

    n_heads: int
    n_kv_heads: int
    d_head: int

    def kv_group(self, head: int) -> int:
        """Return the key/value group that query head ``head`` reads."""
        return head // (self.n_heads // self.n_kv_heads)

"""What every call of transformers' ``from_pretrained`` needs: quiet, alone, no network, all weights read."""

from __future__ import annotations

import contextlib
import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xatlas.errors import XatlasError
from xatlas.loading.weights import tensor_shapes

if TYPE_CHECKING:
    import torch

#: transformers sets the process's default dtype, and switches initialising off, while it builds a model.
_LOADING = threading.RLock()


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence bars and warnings of transformers and forbid it the network, for the time of a block.

    Everything is in a local folder by now, but loading may still look for optional files or tags on the
    hub, and tries for up to 46 s when there is no network. One thread at a time is let in.
    """
    from huggingface_hub import constants
    from transformers.utils import logging

    with _LOADING:
        verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        offline = constants.HF_HUB_OFFLINE
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        constants.HF_HUB_OFFLINE = True
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            constants.HF_HUB_OFFLINE = offline
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()


def refuse_gaps(
    report: Mapping[str, Any],
    place: Path,
    model: torch.nn.Module | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> list[str]:
    """Refuse a model that was not wholly read, or whose file holds weights that the model doesn't.

    transformers fills gaps with random numbers, leaves out what has no place, and goes on. Harmless, and
    left out here too: what the class itself declares so, causal masks that old versions stored, and
    layers beyond the model's last.

    Parameters
    ----------
    report : mapping
        The second result of ``from_pretrained(..., output_loading_info=True)``.
    place : Path
        Where the weights lie, for the message.
    model : Module, optional
        What was loaded; without it no layer counts as beyond the last.
    shapes : mapping, optional
        Shape of each stored tensor.

    Returns
    -------
    list of str
        The stored tensors of layers beyond the last.

    Raises
    ------
    XatlasError
        Weights are missing, of another shape, or read by nothing.
    """
    wrong = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in report[kind])
    if wrong:
        raise XatlasError(
            f"the weights in {place} do not fit the model's config: {_listed(wrong)} missing or of another shape."
        )
    lengths = {} if model is None else _layer_counts(model)
    unread = sorted(key for key in map(str, report["unexpected_keys"]) if not _is_mask(key, (shapes or {}).get(key)))
    beyond = [key for key in unread if _is_beyond(key, lengths)]
    unread = [key for key in unread if key not in beyond]
    if unread:
        raise XatlasError(
            f"the weights in {place} do not fit the model's config: nothing reads {_listed(unread)}; "
            f"correct the config (biases? norms? another class?)."
        )
    return beyond


def _listed(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


def _is_mask(key: str, shape: tuple[int, ...] | None) -> bool:
    """Tell a stored causal mask, (1, 1, pos, pos), and its fill value from a bias."""
    square = shape is not None and len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]
    return key.endswith(".masked_bias") or (square and key.endswith(".bias"))


def _layer_counts(model: torch.nn.Module) -> dict[str, int]:
    from torch.nn import ModuleList

    return {name: len(module) for name, module in model.named_modules() if isinstance(module, ModuleList)}


def _is_beyond(key: str, lengths: Mapping[str, int]) -> bool:
    """Say whether a tensor belongs to a layer that the model doesn't have; files of base models lack a prefix."""
    found = re.match(r"(.*?)\.(\d+)\.", key)
    counts = [n for name, n in lengths.items() if found and f".{name}".endswith(f".{found[1]}")]
    return found is not None and bool(counts) and int(found[2]) >= max(counts)


def refuse_not_finite(tensors: Mapping[str, torch.Tensor], place: Path | str) -> None:
    """Refuse weights that hold NaN or infinity, by the tensor's name; nothing is copied.

    Raises
    ------
    XatlasError
        With what to do where float16 is too narrow.
    """
    import torch

    for name, tensor in tensors.items():
        if tensor.numel() == 0 or not tensor.is_floating_point():
            continue
        low, high = torch.aminmax(tensor.detach())  # NaN where one is in it
        if bool(torch.isfinite(low)) and bool(torch.isfinite(high)):
            continue
        if tensor.dtype == torch.float16 and not bool(torch.isnan(low)):
            raise XatlasError(
                f"{name} in {place} goes beyond float16, whose largest number is 65504: use float32 or bfloat16."
            )
        raise XatlasError(f"{name} in {place} is not finite (it holds NaN or infinity): the weights are damaged.")


def refuse_other_frequencies(model: torch.nn.Module, files: Iterable[Path]) -> None:
    """Refuse stored rotary frequencies that the model doesn't compute: it would leave them out without a word.

    Raises
    ------
    XatlasError
        They differ by more than rounding and a common factor (linear scaling was never stored).
    """
    from safetensors import safe_open

    own = [value for name, value in model.named_buffers() if name.endswith("inv_freq")]
    for path in files:
        stored = [name for name in tensor_shapes(path) if name.endswith("inv_freq")] if own else []
        if not stored:
            continue
        with safe_open(path, framework="pt") as file:
            for name in stored:
                value = file.get_tensor(name).float()
                ratios = [value / other.float().cpu() for other in own if other.shape == value.shape]
                if not any(ratio.max() <= 1.02 * ratio.min() for ratio in ratios):
                    raise XatlasError(
                        f"{name} in {path} is not what the model computes from its config; correct the rotary settings."
                    )


def first_line(error: Exception) -> str:
    """Return what an error of another library says, cut to one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}." if lines else f"{type(error).__name__}."

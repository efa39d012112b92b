"""A resolved model → the Hugging Face model and tokenizer in memory. torch is imported on use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xatlas.errors import XatlasError
from xatlas.loading.lora import merge
from xatlas.loading.names import Resolved, refuse_changed, say_on_stderr
from xatlas.loading.pretrained import (
    first_line,
    quiet_transformers,
    refuse_gaps,
    refuse_not_finite,
    refuse_other_frequencies,
)
from xatlas.loading.tokenizer import as_stored
from xatlas.loading.weights import lora_files, model_files, only, tensor_shapes, tokenizer_files
from xatlas.vocabulary import check_setting

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LoadedParts:
    """A model in memory, ready to be hooked.

    Parameters
    ----------
    model : PreTrainedModel
        In evaluation mode, on its device, parameters without gradients (training probes turn them on).
    tokenizer : PreTrainedTokenizerBase
        The tokenizer from the same folder.
    device, dtype, attention : str
        What was used, with ``auto`` resolved, e.g. ``"cuda:0"``, ``"float32"``, ``"sdpa"``.
    resolved : Resolved
        Where it came from.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: str
    dtype: str
    attention: str
    resolved: Resolved


def load(
    resolved: Resolved,
    *,
    device: str = "auto",
    dtype: str = "float32",
    attention: str = "sdpa",
    progress: Callable[[str], None] = say_on_stderr,
) -> LoadedParts:
    """Load a resolved model without a network, in full precision unless asked otherwise.

    transformers is shown the files that are in the hash and no others; they are the hashed ones still when
    loading ends, and nothing in memory follows a later change of them. One thread loads at a time.
    LoRA weights are merged into the base's weights, computed in float32 before any rounding to ``dtype``:
    module paths stay those of the architecture, so its adapter's hook points fit. TF32 is turned off for
    the whole process. Weights are made outside inference mode, so they can be trained later.

    Parameters
    ----------
    resolved : Resolved
        From :func:`xatlas.loading.names.resolve`.
    device : str
        ``"auto"`` (CUDA, then MPS, then CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
    dtype : {"float32", "bfloat16", "float16"}
        Number format of weights and activations.
    attention : {"sdpa", "eager"}
        Attention implementation; only ``eager`` gives attention patterns.
    progress : callable
        Called with one line where the folder holds layers that the config leaves out.

    Returns
    -------
    LoadedParts
        Model and tokenizer in memory.

    Raises
    ------
    XatlasError
        A name is unknown, the device isn't there, weights are missing, left over, changed, not finite or
        otherwise damaged, the class is not known to transformers, or the LoRA weights don't fit.
    """
    check_setting("dtype", dtype)
    check_setting("attention implementation", attention)
    chosen = pick_device(device)

    import torch

    _full_precision()
    number_format: torch.dtype = getattr(torch, dtype)
    with quiet_transformers(), torch.inference_mode(False):
        model = _base_model(resolved, torch.float32 if resolved.lora else number_format, attention, progress)
        if resolved.lora is not None:
            with only(lora_files(resolved.lora)) as folder:
                model = merge(model, folder, resolved.lora).to(number_format)
            refuse_not_finite(model.state_dict(), f"the model merged with {resolved.lora}")
        tokenizer = _tokenizer(resolved)
        model = _to_device(model, chosen, resolved)
        # Weights whose file has this dtype lie in the mapped file itself: they would change with it.
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type == "cpu" and not tensor.untyped_storage().resizable():  # torch doesn't own it
                tensor.data = tensor.data.clone()
        refuse_changed(resolved)
    model.eval().requires_grad_(False)
    return LoadedParts(model, tokenizer, chosen, dtype, attention, resolved)


def pick_device(device: str = "auto") -> str:
    """Return a device that is there, ``auto`` resolved: ``"cpu"``, ``"cuda:0"``, ``"mps"``.

    Raises
    ------
    XatlasError
        The name is unknown, or there is no such device.
    """
    check_setting("device", device)

    import torch

    kind, _, index = device.partition(":")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has_mps = torch.backends.mps.is_available()
    if kind == "auto":
        return "cuda:0" if count else "mps" if has_mps else "cpu"
    if kind == "cuda":
        number = int(index or 0)
        if number >= count:
            there = f"only cuda:0 to cuda:{count - 1}" if count > 1 else "only cuda:0" if count else "no CUDA device"
            raise XatlasError(f"device '{device}' asked for, but torch finds {there}; use --device auto or cpu.")
        return f"cuda:{number}"
    if kind == "mps" and not has_mps:
        raise XatlasError("device 'mps' asked for, but torch finds no Apple GPU; use --device auto or cpu.")
    return kind


def _full_precision() -> None:
    """Turn TF32 off: it rounds inputs of matrix products to 10 bits, more than the effects measured."""
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def _base_model(resolved: Resolved, dtype: torch.dtype, attention: str, say: Callable[[str], None]) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    files = model_files(resolved.folder)
    weights = [path for name, path in files.items() if name.endswith(".safetensors")]
    with only(files) as folder:
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=attention,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
        except MemoryError as error:
            raise XatlasError(f"not enough memory to load '{resolved.name}'.") from error
        except Exception as error:  # transformers and safetensors raise a dozen kinds; none names the model
            why = first_line(error).replace(str(folder), str(resolved.folder))
            hint = " Use --attention eager." if "attention implementation" in why and attention != "eager" else ""
            raise XatlasError(f"'{resolved.name}' in {resolved.folder} cannot be loaded: {why}{hint}") from error
    shapes = {name: shape for path in weights for name, shape in tensor_shapes(path).items()}
    beyond = refuse_gaps(report, resolved.folder, model, shapes)
    if beyond:
        say(f"{resolved.folder} holds layers beyond its config's, which are left out: {beyond[0]} and after.")
    refuse_other_frequencies(model, weights)
    refuse_not_finite(model.state_dict(), resolved.folder)
    model.config._name_or_path = model.name_or_path = str(resolved.folder)
    result: PreTrainedModel = model
    return result


def _tokenizer(resolved: Resolved) -> PreTrainedTokenizerBase:
    """Load the tokenizer; the one beside LoRA weights wins."""
    from transformers import AutoTokenizer

    files = tokenizer_files(resolved.folder, resolved.lora)
    with only({**files, "config.json": resolved.folder / "config.json"}) as folder:
        try:
            found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # any kind, depending on the tokenizer's files
            why = first_line(error).replace(str(folder), str(resolved.folder))
            raise XatlasError(f"the tokenizer in {resolved.folder} cannot be loaded: {why}") from error
    found.name_or_path = str(resolved.folder)
    return as_stored(found, files.get("tokenizer.json"))


def _to_device(model: PreTrainedModel, device: str, resolved: Resolved) -> PreTrainedModel:
    import torch

    try:
        moved: Any = model.to(device)
    except torch.cuda.OutOfMemoryError as error:
        raise XatlasError(
            f"not enough memory on {device} for '{resolved.name}'; use --device cpu or --dtype bfloat16."
        ) from error
    result: PreTrainedModel = moved
    return result

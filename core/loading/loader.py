"""A resolved model → the Hugging Face model and tokenizer in memory. torch is imported on use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xatlas.errors import XatlasError
from xatlas.loading.names import Resolved
from xatlas.loading.pretrained import first_line, quiet_transformers, refuse_gaps
from xatlas.settings import check_setting

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


def load(resolved: Resolved, *, device: str = "auto", dtype: str = "float32", attention: str = "sdpa") -> LoadedParts:
    """Load a resolved model without a network, in full precision unless asked otherwise.

    LoRA weights are merged into the base's weights, computed in float32 before any rounding to ``dtype``:
    module paths stay those of the architecture, so its adapter's hook points fit. TF32 is turned off for
    the whole process. Weights are made outside inference mode, so they can be trained later.

    Parameters
    ----------
    resolved : Resolved
        From :func:`xatlas.loading.resolve`.
    device : str
        ``"auto"`` (CUDA, then MPS, then CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
    dtype : {"float32", "bfloat16", "float16"}
        Number format of weights and activations.
    attention : {"sdpa", "eager"}
        Attention implementation; only ``eager`` gives attention patterns.

    Returns
    -------
    LoadedParts
        Model and tokenizer in memory.

    Raises
    ------
    XatlasError
        A name is unknown, the device isn't there, weights are missing or damaged, the class is not known
        to transformers, or the LoRA weights don't fit.
    """
    check_setting("dtype", dtype)
    check_setting("attention implementation", attention)
    chosen = pick_device(device)

    import torch

    _full_precision()
    number_format: torch.dtype = getattr(torch, dtype)
    with quiet_transformers(), torch.inference_mode(False):
        first = torch.float32 if resolved.lora else number_format
        model = _base_model(resolved, first, attention)
        if resolved.lora is not None:
            model = _merge(model, resolved.lora).to(number_format)
        tokenizer = _tokenizer(resolved.folder)
        model = _to_device(model, chosen, resolved)
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


def _base_model(resolved: Resolved, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            resolved.folder,
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
        raise XatlasError(f"'{resolved.name}' in {resolved.folder} cannot be loaded: {first_line(error)}") from error
    refuse_gaps(report, resolved.folder)
    result: PreTrainedModel = model
    return result


def _merge(model: PreTrainedModel, lora: Path) -> PreTrainedModel:
    """Merge LoRA weights; peft only warns about weights that find no module, which we refuse."""
    from peft import PeftModel
    from safetensors import safe_open

    # Asked of the modules: transformers unties what a config calls tied when the file holds both.
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    try:
        with safe_open(lora / "adapter_model.safetensors", framework="pt") as file:
            stored = {name for name in file.keys() if "lora_" in name}  # noqa: SIM118 - no mapping
        tuned = PeftModel.from_pretrained(model, str(lora), is_trainable=False, local_files_only=True)
        held = {name.replace(".default", "") for name in tuned.state_dict()}
        merged: Any = tuned.merge_and_unload(safe_merge=True)
    except Exception as error:  # wrong shapes, no such modules, damaged files: peft raises many kinds
        raise XatlasError(f"the LoRA weights in {lora} do not fit the model: {first_line(error)}") from error
    stray = sorted(stored - held)
    if stray:
        raise XatlasError(f"the LoRA weights in {lora} do not fit the model: it has no module for {stray[0]}.")
    if tied and any(end in name for name in stored for end in ("lm_head", "embed_tokens")):
        raise XatlasError(
            f"the LoRA weights in {lora} change an embedding that is tied to the unembedding; "
            f"merging them would change both. Merge them yourself and give the folder."
        )
    result: PreTrainedModel = merged
    return result


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # any kind, depending on the tokenizer's files
        raise XatlasError(f"the tokenizer in {folder} cannot be loaded: {first_line(error)}") from error
    return found


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

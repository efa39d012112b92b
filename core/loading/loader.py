"""A model's folder becomes a Hugging Face model and tokenizer in memory: ``load``. torch is imported on use."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xatlas.errors import XatlasError
from xatlas.loading.lora import merge
from xatlas.loading.model_files import lora_files, model_files, only, tensor_shapes, tokenizer_files
from xatlas.text import first_line, say_on_stderr
from xatlas.vocabulary import check_setting

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from xatlas.loading.names import Resolved

log = logging.getLogger("xatlas")

#: transformers sets the process's default dtype, and switches initialising off, while it builds a model.
_LOADING = threading.RLock()
#: What decides how a text becomes tokens, and what errors call it.
_TOKENIZER_PARTS = {
    "normalizer": "normalizer",
    "pre_tokenizer": "pre-tokenizer",
    "model": "model",
    "added_tokens": "added tokens",
    "post_processor": "post-processor",
    "decoder": "decoder",
}


@dataclass(frozen=True)
class LoadedParts:
    """A model in memory, ready to be hooked."""

    model: PreTrainedModel  # in evaluation mode, on its device, parameters without gradients
    tokenizer: PreTrainedTokenizerBase
    device: str  # ``auto`` resolved, e.g. "cuda:0"
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
    """Load a resolved model without a network, in full precision unless asked otherwise; refuse what doesn't fit.

    transformers is shown the files that are in the hash and no others; they are the hashed ones still when
    loading ends, and nothing in memory follows a later change of them. One thread loads at a time.
    LoRA weights are merged into the base's weights, computed in float32 before any rounding to ``dtype``:
    module paths stay those of the architecture, so its adapter's hook points fit. TF32 is turned off for
    the whole process. Weights are made outside inference mode, so they can be trained later.
    """
    check_setting("dtype", dtype)
    check_setting("attention implementation", attention)
    device = pick_device(device)

    import torch

    # TF32 rounds inputs of matrix products to 10 bits, which is more than the effects measured.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    number_format: torch.dtype = getattr(torch, dtype)
    with quiet_transformers(), torch.inference_mode(False):
        model = _base_model(resolved, torch.float32 if resolved.lora else number_format, attention, progress)
        if resolved.lora is not None:
            with only(lora_files(resolved.lora)) as folder:
                model = merge(model, folder, resolved.lora).to(number_format)
            refuse_not_finite(model.state_dict(), f"the model merged with {resolved.lora}")
        tokenizer = _tokenizer(resolved)
        try:
            moved: Any = model.to(device)
        except torch.cuda.OutOfMemoryError as error:
            raise XatlasError(
                f"not enough memory on {device} for '{resolved.name}'; use --device cpu or --dtype bfloat16."
            ) from error
        # Weights whose file has this dtype lie in the mapped file itself: they would change with it.
        for tensor in (*moved.parameters(), *moved.buffers()):
            if tensor.device.type == "cpu" and not tensor.untyped_storage().resizable():  # torch doesn't own it
                tensor.data = tensor.data.clone()
        resolved.refuse_changed()
    return LoadedParts(moved.eval().requires_grad_(False), tokenizer, device, dtype, attention, resolved)


def pick_device(device: str = "auto") -> str:
    """Return a device that is there, e.g. ``"cuda:0"``; ``auto`` is CUDA, then MPS, then CPU."""
    check_setting("device", device)

    import torch

    kind, _, index = device.partition(":")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has_mps = torch.backends.mps.is_available()
    if kind == "auto":
        return "cuda:0" if count else "mps" if has_mps else "cpu"
    if kind == "mps" and not has_mps:
        raise XatlasError("device 'mps' asked for, but torch finds no Apple GPU; use --device auto or cpu.")
    if kind != "cuda":
        return kind
    if int(index or 0) >= count:
        there = f"only cuda:0 to cuda:{count - 1}" if count > 1 else "only cuda:0" if count else "no CUDA device"
        raise XatlasError(f"device '{device}' asked for, but torch finds {there}; use --device auto or cpu.")
    return f"cuda:{int(index or 0)}"


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence bars and warnings of transformers and forbid it the network, for the time of a block.

    Everything is in a local folder by now, but loading may still look for optional files or tags on the
    hub, and tries for up to 46 s when there is no network. One thread at a time is let in.
    """
    from huggingface_hub import constants
    from transformers.utils import logging as messages

    with _LOADING, warnings.catch_warnings():
        verbosity, bars = messages.get_verbosity(), messages.is_progress_bar_enabled()
        offline = constants.HF_HUB_OFFLINE
        messages.set_verbosity_error()
        messages.disable_progress_bar()
        constants.HF_HUB_OFFLINE = True
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = offline
            messages.set_verbosity(verbosity)
            if bars:
                messages.enable_progress_bar()


def _base_model(resolved: Resolved, dtype: torch.dtype, attention: str, say: Callable[[str], None]) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    files = model_files(resolved.folder)
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
    stored = {
        name: (path, shape)
        for path in files.values()
        if path.suffix == ".safetensors"
        for name, shape in tensor_shapes(path).items()
    }
    beyond = _refuse_gaps(report, model, {name: shape for name, (_, shape) in stored.items()}, resolved.folder)
    if beyond:
        say(f"{resolved.folder} holds layers beyond its config's, which are left out: {beyond[0]} and after.")
    _refuse_other_frequencies(model, {name: path for name, (path, _) in stored.items() if name.endswith("inv_freq")})
    refuse_not_finite(model.state_dict(), resolved.folder)
    model.config._name_or_path = model.name_or_path = str(resolved.folder)
    result: PreTrainedModel = model
    return result


def _refuse_gaps(
    report: Mapping[str, Any], model: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]], place: Path
) -> list[str]:
    """Refuse a model that was not wholly read, or whose file holds weights that the model doesn't.

    transformers fills gaps with random numbers, leaves out what has no place, and goes on. Harmless, and left out
    here too: what the class itself declares so, causal masks that old versions stored, and layers beyond the model's
    last, whose tensors are returned.
    """
    from torch.nn import ModuleList

    def is_mask(key: str) -> bool:  # (1, 1, pos, pos), or its fill value
        shape = shapes.get(key, ())
        square = len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]
        return key.endswith(".masked_bias") or (square and key.endswith(".bias"))

    def is_beyond(key: str) -> bool:
        found = re.match(r"(.*?)\.(\d+)\.", key)  # files of base models lack a prefix
        counts = [n for name, n in lengths.items() if found and f".{name}".endswith(f".{found[1]}")]
        return found is not None and bool(counts) and int(found[2]) >= max(counts)

    def listed(names: list[str]) -> str:
        return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]

    misfit = f"the weights in {place} do not fit the model's config:"
    lengths = {name: len(module) for name, module in model.named_modules() if isinstance(module, ModuleList)}
    wrong = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in report[kind])
    if wrong:
        raise XatlasError(f"{misfit} {listed(wrong)} missing or of another shape.")
    left = sorted(key for key in map(str, report["unexpected_keys"]) if not is_mask(key))
    beyond = [key for key in left if is_beyond(key)]
    if unread := [key for key in left if key not in beyond]:
        raise XatlasError(
            f"{misfit} nothing reads {listed(unread)}; correct the config (biases? norms? another class?)."
        )
    return beyond


def _refuse_other_frequencies(model: torch.nn.Module, stored: Mapping[str, Path]) -> None:
    """Refuse stored rotary frequencies that the model doesn't compute: it would leave them out without a word.

    They may differ by rounding and a common factor (linear scaling was never stored).
    """
    from safetensors import safe_open

    own = [value.float().cpu() for name, value in model.named_buffers() if name.endswith("inv_freq")]
    for name, path in stored.items() if own else ():
        with safe_open(path, framework="pt") as file:
            value = file.get_tensor(name).float()
        ratios = [value / other for other in own if other.shape == value.shape]
        if not any(ratio.max() <= 1.02 * ratio.min() for ratio in ratios):
            raise XatlasError(
                f"{name} in {path} is not what the model computes from its config; correct the rotary settings."
            )


def refuse_not_finite(tensors: Mapping[str, torch.Tensor], place: Path | str) -> None:
    """Refuse weights that hold NaN or infinity, by the tensor's name; nothing is copied."""
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


def as_stored(found: PreTrainedTokenizerBase, file: Path | None) -> PreTrainedTokenizerBase:
    """Return ``found``, or the tokenizer in ``tokenizer.json`` where transformers built another one; a line says so.

    For some classes transformers takes the file's vocabulary and rebuilds the rest. Whole tokenizers are compared,
    not tokens of some texts: equal parts give equal tokens of every text, and the file's own tokenizer is right where
    parts differ. It gets the same special tokens and chat template; truncation and padding that the file asks for are
    left out, as by transformers.
    """
    if file is None:
        return found

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    def parts(tokenizer: Any) -> dict[str, Any]:
        """Return the parts in one form: absent and empty affixes are the same, so are special tokens."""
        content: dict[str, Any] = json.loads(tokenizer.to_str())
        content["model"] = {name: value for name, value in content["model"].items() if value not in (None, "")}
        content["added_tokens"] = [{**token, "special": None} for token in content["added_tokens"]]
        return content

    own = Tokenizer.from_file(str(file))
    own.no_truncation()
    own.no_padding()
    backend = getattr(found, "backend_tokenizer", None)
    ours, theirs = parts(own), {} if backend is None else parts(backend)
    other = [called for part, called in _TOKENIZER_PARTS.items() if ours.get(part) != theirs.get(part)]
    if not other:
        return found
    log.warning(
        "transformers %s builds %s with another %s than %s: the file's own tokenizer is used.",
        version("transformers"),
        type(found).__name__,
        " and ".join([", ".join(other[:-1])] * (len(other) > 1) + other[-1:]),
        file,
    )
    # as the file declares them: transformers would add its own flags; those that the file lacks have no embedding
    declared = {token.content: token for token in own.get_added_tokens_decoder().values()}
    special = {
        name: declared.get(token, token)
        for name, token in found.special_tokens_map.items()
        if isinstance(token, str) and own.token_to_id(token) is not None
    }
    kept = ("name_or_path", "model_max_length", "model_input_names", "padding_side", "chat_template")
    made: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=own, **{name: getattr(found, name) for name in kept}, **special
    )
    return made

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
from xatlas.loading.model_files import of_lora, of_tokenizer, only, tensor_shapes
from xatlas.text import and_more, say_on_stderr
from xatlas.vocabulary import check_setting

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from xatlas.loading.model_names import Resolved

log = logging.getLogger("xatlas")

#: transformers sets the process's default dtype, and switches initialising off, while it builds a model.
_LOADING = threading.RLock()
#: What decides how a text becomes tokens.
_TOKENIZER_PARTS = ("normalizer", "pre_tokenizer", "model", "added_tokens", "post_processor", "decoder")
_LOCAL = {"local_files_only": True, "trust_remote_code": False}


@dataclass(frozen=True)
class LoadedParts:
    """A model in memory, ready to be hooked."""

    model: PreTrainedModel  # in evaluation mode, on its device, parameters without gradients
    tokenizer: PreTrainedTokenizerBase


def load(
    resolved: Resolved,
    *,
    device: str = "auto",
    dtype: str = "float32",
    attention: str = "sdpa",
    progress: Callable[[str], None] = say_on_stderr,
) -> LoadedParts:
    """Load a resolved model without a network, in full precision unless asked otherwise; refuse what doesn't fit.

    transformers is shown the files that are in the hash and no others; they are the hashed ones still when loading
    ends. LoRA weights are merged in float32 before any rounding to ``dtype``. TF32 is turned off for the whole process.
    Weights are made outside inference mode, so they can be trained later.
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
            misfit = f"the LoRA weights in {resolved.lora} do not fit the model"
            with only(of_lora(resolved.lora), resolved.lora, misfit) as folder:
                model = merge(model, folder, resolved.lora).to(number_format)
            refuse_not_finite(model.state_dict(), f"the model merged with {resolved.lora}")
        tokenizer = load_tokenizer(resolved)
        try:
            model = model.to(device)
        except torch.cuda.OutOfMemoryError as error:
            advice = "use --device cpu or --dtype bfloat16."
            raise XatlasError(f"not enough memory on {device} for '{resolved.name}'; {advice}") from error
        # Weights whose file has this dtype lie in the mapped file itself: they would change with it.
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type == "cpu" and not tensor.untyped_storage().resizable():  # torch doesn't own it
                tensor.data = tensor.data.clone()
        resolved.refuse_changed()
    return LoadedParts(model.eval().requires_grad_(False), tokenizer)


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
        there = ("no CUDA device", "only cuda:0", f"only cuda:0 to cuda:{count - 1}")[min(count, 2)]
        raise XatlasError(f"device '{device}' asked for, but torch finds {there}; use --device auto or cpu.")
    return f"cuda:{int(index or 0)}"


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence bars and warnings of transformers and forbid it the network, for the time of a block; a thread at a time.

    Everything is in a local folder by now, but loading would still look for optional files on the hub, for up to 46 s.
    """
    from huggingface_hub import constants
    from transformers.utils import logging as messages

    with _LOADING, warnings.catch_warnings():
        verbosity, bars = messages.get_verbosity(), messages.is_progress_bar_enabled()
        offline = constants.HF_HUB_OFFLINE
        messages.set_verbosity_error()
        messages.disable_progress_bar()
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it, and it asks for packages
        constants.HF_HUB_OFFLINE = True
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = offline
            messages.set_verbosity(verbosity)
            if bars:
                messages.enable_progress_bar()


def auto_class(config: Any) -> Any:
    """Return transformers' auto class for a config: that of language models, or of those inside models that see."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    sees = AutoModelForImageTextToText
    text = type(config) in AutoModelForCausalLM._model_mapping or type(config) not in sees._model_mapping
    return AutoModelForCausalLM if text else sees


def _base_model(resolved: Resolved, dtype: torch.dtype, attention: str, say: Callable[[str], None]) -> Any:
    from transformers import AutoConfig

    place, files = resolved.folder, resolved.files
    options = {"dtype": dtype, "attn_implementation": attention, "use_safetensors": True, **_LOCAL}
    try:
        with only(files, place, f"'{resolved.name}' in {place} cannot be loaded") as folder:
            if resolved.untrained is None:
                auto = auto_class(AutoConfig.from_pretrained(folder, **_LOCAL))
                model, report = auto.from_pretrained(folder, output_loading_info=True, **options)
            else:
                model, report = _untrained(folder, resolved.untrained, dtype, attention), None
    except XatlasError as error:
        if attention == "eager" or "attention implementation" not in str(error):
            raise
        raise XatlasError(f"{error} Use --attention eager.") from error
    if report is not None:
        _refuse_misfit(model, report, [path for path in files.values() if path.suffix == ".safetensors"], place, say)
    refuse_not_finite(model.state_dict(), place)
    model.config._name_or_path = model.name_or_path = str(place)
    return model


def _untrained(folder: Path, seed: int, dtype: torch.dtype, attention: str) -> Any:
    """Make a model of a folder's config, with weights as transformers initialises that class.

    They are drawn in float32 on the CPU: one seed gives the same ones in any dtype, on any device, after anything.
    """
    import torch
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(folder, **_LOCAL)
    if hasattr(config, "quantization_config"):  # says how trained weights were stored
        del config.quantization_config
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        model = auto_class(config).from_config(config, dtype=torch.float32, attn_implementation=attention)
    if dtype != torch.float32:  # rounded as loading rounds: what stays in float32 then, does here
        model = type(model).from_pretrained(
            None, config=config, state_dict=model.state_dict(), dtype=dtype, attn_implementation=attention
        )
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, **_LOCAL)
    return model


def _refuse_misfit(
    model: torch.nn.Module, report: Mapping[str, Any], weights: list[Path], place: Path, say: Callable[[str], None]
) -> None:
    """Refuse a model that was not wholly read, or whose files hold weights that it doesn't.

    transformers fills gaps with random numbers, leaves out what has no place, and goes on. Causal masks of old versions
    and layers beyond the last are harmless. Stored rotary frequencies must be the model's, but for a common factor.
    """
    from safetensors import safe_open
    from torch.nn import ModuleList

    misfit = f"the weights in {place} do not fit the model's config:"
    if wrong := sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in report[kind]):
        raise XatlasError(f"{misfit} {and_more(wrong)} missing or of another shape.")
    stored = {name: (path, shape) for path in weights for name, shape in tensor_shapes(path).items()}
    lengths = {f".{name}": len(module) for name, module in model.named_modules() if isinstance(module, ModuleList)}
    unread: list[str] = []
    beyond: list[str] = []
    for key in sorted(map(str, report["unexpected_keys"])):
        shape, layer = stored[key][1] if key in stored else (), re.match(r"(.*?)\.(\d+)\.", key)
        is_mask = len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3] and key.endswith(".bias")
        # Files of base models lack a prefix.
        counts = [count for name, count in lengths.items() if layer and name.endswith(f".{layer[1]}")]
        if not is_mask and not key.endswith(".masked_bias"):
            is_beyond = layer and counts and int(layer[2]) >= max(counts)
            (beyond if is_beyond else unread).append(key)
    if unread:
        raise XatlasError(f"{misfit} nothing reads {and_more(unread)}; correct the config (biases? another class?).")
    if beyond:
        say(f"{place} holds layers beyond its config's, which are left out: {beyond[0]} and after.")
    own = [value.float().cpu() for name, value in model.named_buffers() if name.endswith("inv_freq")]
    for name, (path, _) in stored.items():
        if own and name.endswith("inv_freq"):
            with safe_open(path, framework="pt") as file:
                value = file.get_tensor(name).float()
            ratios = [value / other for other in own if other.shape == value.shape]
            if not any(ratio.max() <= 1.02 * ratio.min() for ratio in ratios):
                advice = "correct the rotary settings."
                raise XatlasError(f"{name} in {path} is not what the model computes from its config; {advice}")


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
            what = f"{name} in {place} goes beyond float16, whose largest number is 65504"
            raise XatlasError(f"{what}: use float32 or bfloat16.")
        raise XatlasError(f"{name} in {place} is not finite (it holds NaN or infinity): the weights are damaged.")


def load_tokenizer(resolved: Resolved) -> PreTrainedTokenizerBase:
    """Load the tokenizer; the one beside LoRA weights wins."""
    from transformers import AutoTokenizer

    place = resolved.folder
    files = of_tokenizer(place, resolved.lora) | {"config.json": place / "config.json"}
    with only(files, place, f"the tokenizer in {place} cannot be loaded") as folder:
        found = AutoTokenizer.from_pretrained(folder, **_LOCAL)
    found.name_or_path = str(place)
    return as_stored(found, files.get("tokenizer.json"))


def as_stored(found: PreTrainedTokenizerBase, file: Path | None) -> PreTrainedTokenizerBase:
    """Return ``found``, or the tokenizer in ``tokenizer.json`` where transformers built another one; a line says so.

    For some classes transformers takes the file's vocabulary and rebuilds the rest. Equal parts give equal tokens of
    every text; where parts differ, the file's own are right. Truncation and padding are left out, as by transformers.
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
    other = [part for part in _TOKENIZER_PARTS if ours.get(part) != theirs.get(part)]
    if not other:
        return found
    *first, last = [part.replace("added_", "added ").replace("_", "-") for part in other]
    what, made_by = f"{', '.join(first)} and {last}" if first else last, f"transformers {version('transformers')}"
    told = "%s builds %s with another %s than %s: the file's own tokenizer is used."
    log.warning(told, made_by, type(found).__name__, what, file)
    # as the file declares them: transformers would add its own flags; those that the file lacks have no embedding
    declared = {token.content: token for token in own.get_added_tokens_decoder().values()}
    special = {
        name: declared.get(token, token)
        for name, token in found.special_tokens_map.items()
        if isinstance(token, str) and own.token_to_id(token) is not None
    }
    kept = ("name_or_path", "model_max_length", "model_input_names", "padding_side", "chat_template")
    settings = {name: getattr(found, name) for name in kept} | special
    made: PreTrainedTokenizerBase = PreTrainedTokenizerFast(tokenizer_object=own, **settings)
    return made

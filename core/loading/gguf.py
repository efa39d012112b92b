"""GGUF files: converted once to safetensors; what is not converted refuses the file, by its name."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xatlas import manager
from xatlas.contracts.adapter import Adapter, GgufLayout
from xatlas.errors import XatlasError
from xatlas.files import locked
from xatlas.loading.gguf_file import GgufError, GgufFile, read_header, short
from xatlas.loading.gguf_tokenizer import build_tokenizer
from xatlas.loading.loader import quiet_transformers
from xatlas.loading.model_files import CACHE_ADVICE, cache_folder, missing_parts
from xatlas.text import first_line

if TYPE_CHECKING:
    import torch

#: Raised whenever a file would be converted otherwise than before: older conversions are then left alone.
_FORMAT = 2
#: Keys that say nothing new when they hold this value; those of the model stand behind the architecture's name.
_NEUTRAL = {
    "general.type": "model",
    "split.count": 1,
    "tokenizer.ggml.add_sep_token": False,
    "tokenizer.ggml.remove_extra_whitespaces": False,
}
_NEUTRAL_OF_MODEL = {
    "attention.causal": True,
    "attention.sliding_window": 0,
    "attn_logit_softcapping": 0.0,
    "embedding_scale": 1.0,
    "expert_count": 0,
    "expert_used_count": 0,
    "final_logit_softcapping": 0.0,
    "logit_scale": 1.0,
    "pooling_type": 0,
    "residual_scale": 1.0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
}
#: Keys that no token and no logit depends on: who made the file and how, and tokens with names of their own.
_IRRELEVANT = re.compile(
    r"general\.(?!type$).+|quantize\..+|mradermacher\..+|split\.(no|tensors\.count)"
    r"|[^.]+\.(rope\.scaling\.finetuned|tensor_data_layout)"
    r"|tokenizer\.(chat_templates|chat_template\..+)"
    r"|tokenizer\.ggml\.(eot|eom|seperator|mask|cls|prefix|suffix|middle|fim_(pre|suf|mid|pad|rep|sep))_token_id"
)
#: Yarn's bounds, in turns over the original context.
_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}


def converted_folder(sha256: str) -> Path:
    """Return where the conversion of a GGUF file with this hash lies, or will lie.

    The rule of conversion and the version of transformers are part of the name: another may write other files.
    """
    release = ".".join(version("transformers").split(".")[:2])
    return cache_folder() / "gguf" / f"{sha256[:32]}-{_FORMAT}-transformers-{release}"


def is_converted(sha256: str) -> bool:
    """Say whether a GGUF file with this hash was converted before."""
    folder = converted_folder(sha256)
    return folder.is_dir() and not missing_parts(folder)


def convert(path: Path, sha256: str, say: Callable[[str], None]) -> None:
    """Convert a GGUF file to a folder of float32 safetensors, config and tokenizer, once.

    Every tensor and every metadata key that bears on the forward or on the tokens is converted, or the file
    is refused by its name. The folder appears whole or not at all; of two processes that convert the same
    file, one waits for the other.
    """
    folder = converted_folder(sha256)
    if is_converted(sha256):
        return
    if find_spec("gguf") is None:
        raise XatlasError(f"reading {path.name} needs the 'gguf' extra: pip install 'xatlas-lm[gguf]'.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"another process is converting {path.name}: waiting for it."
        with locked(folder.with_name(f"{folder.name}.lock"), waiting, CACHE_ADVICE):
            if is_converted(sha256):  # another process did it meanwhile
                return
            partial = f".partial-{folder.name}-"
            for left_over in folder.parent.glob(f"{partial}*"):  # we hold the lock: of a process that was killed
                shutil.rmtree(left_over, ignore_errors=True)
            say(f"converting {path.name} to safetensors, once; this takes about half a minute")
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=partial) as work:
                fresh = Path(work) / "model"
                _write(path, sha256, fresh, say)
                shutil.rmtree(folder, ignore_errors=True)  # an incomplete one; complete ones returned above
                os.replace(fresh, folder)
    except OSError as error:
        raise XatlasError(f"cannot convert {path} into {folder} ({error.strerror or error}).") from error


def _write(path: Path, sha256: str, folder: Path, say: Callable[[str], None]) -> None:
    """Unpack to float32, save in the layout that transformers reads fastest."""
    import torch
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    with quiet_transformers(), torch.inference_mode(False):
        try:
            config, weights, tokenizer = _read(path, say)
        except (OSError, MemoryError, XatlasError):
            raise
        except GgufError as error:
            raise XatlasError(f"{path} cannot be read as GGUF: {error}.") from error
        except Exception as error:  # configs, tokenizers and unpacking have errors of their own for odd values
            raise XatlasError(f"{path} cannot be read as GGUF ({first_line(error)}).") from error
        try:
            config.save_pretrained(folder)
            GenerationConfig.from_model_config(config).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        except Exception as error:  # safetensors has its own error for a full disk
            raise XatlasError(f"cannot write the conversion of {path} in {folder}: {first_line(error)}") from error
    note = {"file": path.name, "sha256": sha256, "format": _FORMAT, "transformers": version("transformers")}
    (folder / "xatlas-conversion.json").write_text(json.dumps(note), encoding="utf-8")


def _read(path: Path, say: Callable[[str], None]) -> tuple[Any, dict[str, torch.Tensor], Any]:
    """Return config, weights and tokenizer of a GGUF file."""
    file = read_header(path)
    architecture = file.pop("general.architecture", str)
    known = {  # an adapter's own word: one that is derived from it is of another architecture
        layout.architecture: (found, layout)
        for found in manager.adapters().values()
        if isinstance(layout := vars(found).get("gguf"), GgufLayout)
    }
    if architecture not in known:
        raise GgufError(
            f"its architecture {short(architecture)} is not converted, only {', '.join(sorted(known))} are; "
            f"use the original safetensors"
        )
    adapter, layout = known[architecture]
    config = _config(file, layout)
    config.architectures = [adapter.architectures[0]]
    if file.metadata.get("tokenizer.ggml.model") == "gpt2" and "tokenizer.ggml.pre" not in file.metadata:
        say(f"{path.name} names no pre-tokenizer; text is cut by llama.cpp's default, maybe not as in training")
    tokenizer = build_tokenizer(file, config.vocab_size, layout.pre_tokenizers)
    config.update({f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")})
    neutral = _NEUTRAL | {f"{architecture}.{key}": value for key, value in _NEUTRAL_OF_MODEL.items()}
    for key, value in file.metadata.items():
        if not _IRRELEVANT.fullmatch(key) and not (key in neutral and value == neutral[key]):
            raise GgufError(f"its {short(key)} ({short(value)}) is not converted; use the original safetensors")
    return config, _weights(file, adapter, layout, config), tokenizer


def _config(file: GgufFile, layout: GgufLayout) -> Any:
    """Return the config that the metadata mean, with llama.cpp's own values for keys that may be missing."""
    from transformers import AutoConfig

    def count(key: str, default: int | None = None) -> int:
        return file.count(f"{layout.architecture}.{key}", default)

    if "token_embd.weight" not in file.tensors:
        raise GgufError("it lacks the tensor 'token_embd.weight'")
    rows = file.tensors["token_embd.weight"].shape[0]
    layers = count("block_count")
    if layers > len(file.tensors):
        raise GgufError(f"it holds {len(file.tensors)} tensors for {layers} layers")
    for key, value in file.metadata.items():
        if key.startswith(f"{layout.architecture}.") and isinstance(value, list) and len(value) != layers:
            raise GgufError(f"its {short(key)} holds {len(value)} values for {layers} layers")
    fields = layout.config(file)
    width, heads, context = count("embedding_length"), count("attention.head_count"), count("context_length")
    head = count("attention.key_length", width // heads)
    same = {"attention.value_length": (width // heads, head), "rope.dimension_count": (head, head)}
    for key, (default, needed) in (same | {"vocab_size": (rows, rows)}).items():
        if (stated := count(key, default)) != needed:
            raise GgufError(f"its '{layout.architecture}.{key}' is {stated}; {needed} is what fits its other sizes")
    fields |= {
        layout.epsilon: file.pop(f"{layout.architecture}.attention.layer_norm_rms_epsilon", float),
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": count("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": count("attention.head_count_kv", heads),
        "head_dim": head,
        "max_position_embeddings": context,
        "rope_parameters": _rope(file, f"{layout.architecture}.rope", head, context),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    return AutoConfig.for_model(layout.model_type, **fields)


def _rope(file: GgufFile, prefix: str, head: int, context: int) -> dict[str, Any]:
    """Return the config's ``rope_parameters``.

    Factors for each frequency, as Llama 3's scaling is written, are transformers' ``longrope`` with one list
    for short and long texts.
    """
    theta = file.pop(f"{prefix}.freq_base", float, 10000.0)
    old = file.pop(f"{prefix}.scale_linear", float, 0.0)
    factor = file.pop(f"{prefix}.scaling.factor", float, old) or 1.0  # 0 stands for none
    kind = file.pop(f"{prefix}.scaling.type", str, "linear")
    original = file.count(f"{prefix}.scaling.original_context_length", context)
    betas = {name: file.pop(f"{prefix}.scaling.yarn_{name}", float, value) for name, value in _BETAS.items()}
    stored = file.tensors.pop("rope_freqs.weight", None)
    if theta <= 0 or factor < 0 or kind not in ("none", "linear", "yarn") or (kind == "yarn" and stored):
        raise GgufError(f"its '{prefix}.scaling.type' is {short(kind)}, by {factor} of {theta}, which is not converted")
    rope: dict[str, Any] = {"rope_theta": theta}
    if kind == "yarn":
        attention = 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0
        scaled = {"factor": factor, "original_max_position_embeddings": original, "attention_factor": attention}
        return rope | {"rope_type": "yarn"} | scaled | betas
    factor = factor if kind == "linear" else 1.0
    if stored is None:
        return rope | ({"rope_type": "default"} if factor == 1.0 else {"rope_type": "linear", "factor": factor})
    factors = [factor * float(one) for one in file.unpack(stored).reshape(-1)]
    if len(factors) != head // 2 or not all(math.isfinite(one) and one > 0 for one in factors):
        raise GgufError(f"its 'rope_freqs.weight' does not hold {head // 2} factors for heads of {head}")
    longrope = {"short_factor": factors, "long_factor": factors, "attention_factor": 1.0, "factor": 1.0}
    return rope | {"rope_type": "longrope", "original_max_position_embeddings": context} | longrope


def _weights(file: GgufFile, adapter: type[Adapter], layout: GgufLayout, config: Any) -> dict[str, torch.Tensor]:
    """Return every parameter of the model, unpacked to float32, from exactly one tensor each."""
    import torch
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):  # shapes only
        model = AutoModelForCausalLM.from_config(config)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        wanted.pop(f"{adapter.unembedding_path}.weight", None)
    numbers = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    in_file = get_tensor_name_map(numbers[layout.architecture], config.num_hidden_layers)
    sources = {name: f"{in_file.get_name(path)}.{kind}" for name in wanted for path, _, kind in [name.rpartition(".")]}
    for name in file.tensors.keys() - sources.values():
        raise GgufError(f"its tensor {short(name)} is not converted; use the original safetensors")
    missing = sorted(name for name, source in sources.items() if source not in file.tensors)
    if missing:
        raise GgufError(f"it lacks the tensor for {missing[0]}" + f" and {len(missing) - 1} more" * (len(missing) > 1))
    weights = {}
    for name, source in sources.items():
        entry, shape = file.tensors[source], wanted[name]
        if [size for size in entry.shape if size != 1] != [size for size in shape if size != 1]:
            raise GgufError(f"its tensor {short(source)} is {entry.shape}, the model needs {shape}")
        value = torch.from_numpy(file.unpack(entry)).reshape(shape)
        if layout.interleaved and re.search(r"\.attn_[qk]\.", source):
            # (heads, pairs, 2 halves, ...) as stored; each head's first half stands before its second
            halves = value.reshape(-1, config.head_dim // 2, 2, *value.shape[1:])
            value = halves.transpose(1, 2).reshape(shape)
        weights[name] = value.contiguous()
    return weights

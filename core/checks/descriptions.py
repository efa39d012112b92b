"""What every suite and every named model must keep to: they are described, not programmed."""

from __future__ import annotations

import re
from pathlib import Path

from xatlas.checks.specimen import byte_tokenizer
from xatlas.errors import XatlasError, unknown
from xatlas.loading.sources import ModelSource
from xatlas.loading.weights import check_folder
from xatlas.prompts import Reader
from xatlas.suites import Suite, SuiteSpec


def check_suite(suite: SuiteSpec | Suite) -> None:
    """Check a suite: the same each time it is made, with a foil for each twin, and read by a tokenizer of bytes.

    Parameters
    ----------
    suite : SuiteSpec or Suite
        As a plugin returns it, or the suite itself.

    Raises
    ------
    XatlasError
        At the first violation, in one line.
    """
    if isinstance(suite, SuiteSpec):
        _check_summary(suite, f"suite '{suite.name}'")
        if suite.default_for not in ("measure", "reference", None):
            raise unknown(f"default_for of suite '{suite.name}'", str(suite.default_for), ("measure", "reference"))
        made, again = suite.load(), suite.load()
        if not isinstance(made, Suite):
            raise XatlasError(f"suite '{suite.name}': load must return a Suite, not {type(made).__name__}.")
        if made.name != suite.name:
            raise XatlasError(f"suite '{suite.name}' calls itself '{made.name}' when it is made: results show that.")
        if made.hash != again.hash:
            raise XatlasError(f"suite '{suite.name}' is another each time it is made: draw from a fixed seed.")
        suite = made
    if not isinstance(suite, Suite):
        raise XatlasError(f"check_suite takes a SuiteSpec or a Suite, not {suite!r}.")
    for prompt in suite:
        if prompt.corrupt_text is not None and prompt.foil is None:
            raise XatlasError(f"suite '{suite.name}': prompt '{prompt.id}' has a twin, but no foil, the twin's answer.")
    # Single prompts may drop out with one tokenizer or another; a family that does is lost.
    dropped = Reader(byte_tokenizer()).suite(suite).dropped
    for family in suite.families:
        left_out = [dropped.get(prompt.id) for prompt in suite if prompt.family == family]
        if all(left_out):
            raise XatlasError(f"suite '{suite.name}': no prompt of family '{family}' can be read: {left_out[0]}")


def check_source(source: ModelSource) -> None:
    """Check what an alias stands for, as far as this machine knows: the hub is not asked.

    Raises
    ------
    XatlasError
        At the first violation, in one line.
    """
    if not isinstance(source, ModelSource):
        raise XatlasError(f"check_source takes a ModelSource, not {source!r}.")
    who = f"model '{source.alias}'"
    _check_summary(source, who)
    kinds = ("hub", "folder", "wheel-gguf")
    if source.kind not in kinds:
        raise unknown(f"kind of {who}", str(source.kind), kinds)
    if source.kind == "hub" and not re.fullmatch(r"[\w.-]+/[\w.-]+", source.location):
        raise XatlasError(f"{who} is at {source.location!r}: a hub id is owner/model, without a revision.")
    if source.kind == "folder":
        if not Path(source.location).is_absolute():
            raise XatlasError(f"{who} is at {source.location!r}: a folder is given by its absolute path.")
        check_folder(Path(source.location))
    pinned = source.filename and re.fullmatch(r"[0-9a-f]{64}", source.sha256 or "")
    if source.kind == "wheel-gguf" and not (pinned and re.fullmatch(r"[\w.-]+==[\w.]+", source.location)):
        raise XatlasError(f"{who} needs a pinned wheel (name==version), the file's name in it and that file's sha256.")


def _check_summary(described: SuiteSpec | ModelSource, who: str) -> None:
    summary = described.summary
    if not isinstance(summary, str) or not summary.strip() or "\n" in summary:
        raise XatlasError(f"{who} has no summary: one sentence for the list.")

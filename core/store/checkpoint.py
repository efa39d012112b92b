"""Finished parts of a long job, kept in a folder until the whole is there."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from xatlas.store.files import write_atomic

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger("xatlas")


class FolderCheckpoint:
    """Keeps finished parts of a long job as files, each written whole.

    Parameters
    ----------
    folder : Path
        Made when the first part is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, key: str) -> dict[str, np.ndarray] | None:
        """Return the arrays saved under ``key``; None where there are none, or where they are damaged."""
        import numpy as np

        try:
            data = self._file(key).read_bytes()
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                # The leading underscore keeps array names apart from savez's own argument names.
                return {name[1:]: arrays[name] for name in arrays.files}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            log.warning("%s is damaged: this part is measured again.", self._file(key))
            return None

    def save(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep ``arrays`` under ``key``, whole or not at all.

        Raises
        ------
        XatlasError
            The disk is full or the folder not writable.
        """
        import numpy as np

        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **{f"_{name}": array for name, array in arrays.items()})
        write_atomic(self._file(key), buffer.getvalue())

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.npz"

"""Finished parts of a long job, kept in a folder until the whole is there."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from xatlas.errors import XatlasError
from xatlas.store.files import read_plain, seal, set_aside, unseal, write_atomic

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger("xatlas")


class FolderCheckpoint:
    """Keeps finished parts of a long job as files, each written whole and sealed with its own name.

    Parameters
    ----------
    folder : Path
        Made when the first part is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, key: str) -> dict[str, np.ndarray] | None:
        """Return the arrays saved under ``key``; None where there are none, or where they are damaged or others'."""
        import numpy as np

        path = self._file(key)
        if not os.path.lexists(path):
            return None
        data = self._read(key)
        if data is None:
            log.warning("%s is damaged: this part is measured again.", path)
            return None
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            # The leading underscore keeps array names apart from savez's own argument names.
            return {name[1:]: arrays[name] for name in arrays.files}

    def holds(self, key: str) -> bool:
        """Tell whether the part is there, whole, and this job's own."""
        return self._read(key) is not None

    def _read(self, key: str) -> bytes | None:
        try:
            found = unseal(read_plain(self._file(key)))
        except XatlasError:
            return None
        return found[0] if found is not None and found[1] == self._note(key) else None

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
        path = self._file(key)
        for place in (self.folder, path):
            if os.path.lexists(place) and (place.is_symlink() or place.is_dir() != (place is self.folder)):
                set_aside(place)
        write_atomic(path, seal(buffer.getvalue(), self._note(key)))

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.npz"

    def _note(self, key: str) -> str:
        # The folder is named after the job, whose key digests all else.
        return f"{self.folder.name}/{key}"

"""Results on disk: one netCDF file per job, hashed and locked, and many of them opened as one tree."""

from xatlas.store.results import Entry, Store, atlas_folder, file_state, read_entry, read_result

__all__ = ["Entry", "Store", "atlas_folder", "file_state", "read_entry", "read_result"]

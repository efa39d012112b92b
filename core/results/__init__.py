"""Results: one netCDF file per job, hashed, sealed and locked; many opened as one tree."""

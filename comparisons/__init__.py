"""One file per comparison; each is a plugin. Imports no torch."""

"""One file per probe; each is a plugin."""

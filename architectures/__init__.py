"""One file per model architecture; each is a plugin."""

"""One file per kind of block, or per architecture; each is a plugin."""

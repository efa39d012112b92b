"""Puts this folder on the path of the folders below, for ``running``."""

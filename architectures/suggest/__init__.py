"""Writes a first adapter for a class that has none; imported with the adapters at start, so that it is empty."""

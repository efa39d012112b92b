"""Prompts as a model reads them: joint tokenisation, the readout position, position classes, buckets."""

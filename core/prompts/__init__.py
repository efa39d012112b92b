"""Prompts as a model reads them: joint tokenisation, the readout position, position classes, buckets."""

from xatlas.prompts.reader import POSITION_CLASSES, Reader, TokenPrompt, TokenSuite, buckets

__all__ = ["POSITION_CLASSES", "Reader", "TokenPrompt", "TokenSuite", "buckets"]

"""Prompts as a model reads them: joint tokenisation, the readout position, position classes, buckets."""

from xatlas.prompts.reader import Reader
from xatlas.prompts.tokens import POSITION_CLASSES, TokenPrompt, TokenSuite, buckets

__all__ = ["POSITION_CLASSES", "Reader", "TokenPrompt", "TokenSuite", "buckets"]

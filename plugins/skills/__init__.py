"""Tests of what models can do, the checks of their answers, and the prompts whose answers are kept to be read."""

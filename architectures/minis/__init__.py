"""The shipped miniature models."""

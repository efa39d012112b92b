"""Built-in prompt suites."""

"""The figures of the comparisons, and how all of them look."""

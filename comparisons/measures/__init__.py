"""The numbers of the comparisons, and how they find results in a tree."""

"""What plugin authors implement: adapters, probes, comparisons, and their parameters."""

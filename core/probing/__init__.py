"""What probes are built from: cells of ablations, reference means, directions, patching between pairs."""

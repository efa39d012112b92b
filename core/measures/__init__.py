"""What probes are built from: grids of ablations, reference means, directions, twins, patches, gradients."""

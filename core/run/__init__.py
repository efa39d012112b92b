"""Names → jobs in dependency order → results → comparisons."""

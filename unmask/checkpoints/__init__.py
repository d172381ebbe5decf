"""Names on disk <-> names in memory. Weights are read from safetensors only."""

"""Model folders: parameter names on disk and in memory, reading and writing weights. Safetensors only."""

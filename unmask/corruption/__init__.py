"""Clean -> masked: forward processes and where sampling starts."""

"""Where samples come from: sources, mixtures, the loader and the synthetic world."""

"""Training data: sources, mixtures, benchmark prompt files and the synthetic world."""

"""How a model came to its results: information maps of prompts and pictures."""

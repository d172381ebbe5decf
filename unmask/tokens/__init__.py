"""Inputs and outputs as token sequences: text, image codes, coordinates, prompts; building and parsing sequences."""

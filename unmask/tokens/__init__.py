"""The world <-> Sequence: text, image codes, coordinates, prompts, and how sequences are built and read."""

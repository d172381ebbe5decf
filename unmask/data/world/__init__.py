"""A synthetic world with exact labels: scenes of emoji sprites, and captions, questions, edits and critiques for them."""

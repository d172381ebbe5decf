"""The trainer: one loop for every model and objective."""

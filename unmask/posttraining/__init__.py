"""Training on a model's own samples: groups of rollouts, rewards, advantages."""

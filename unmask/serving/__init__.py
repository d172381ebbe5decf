"""One model shared by many: the engine that batches between steps, and what is built on it."""

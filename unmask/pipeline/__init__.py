"""A model that users call: found, loaded, and asked."""

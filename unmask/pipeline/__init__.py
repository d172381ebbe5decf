"""From a model name to a model object: find, load, run."""

"""Request <-> Sequence: what one can ask of a model, each verb in a file of its own, and the model as a user holds it."""

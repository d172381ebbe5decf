"""Functions that return a ``Recipe``; each docstring has the paper, the command, the cost and the expected result."""

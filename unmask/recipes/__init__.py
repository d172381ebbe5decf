"""Functions that return a ``Recipe``. Each docstring gives paper, command, cost and expected result."""

"""How good it is: the independent judge, the scoring rules, and what is built on them."""

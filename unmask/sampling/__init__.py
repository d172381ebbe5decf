"""masked -> clean: the one loop that decides tokens, and the parts it is made of."""

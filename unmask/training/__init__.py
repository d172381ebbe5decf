"""One trainer for everything that learns."""

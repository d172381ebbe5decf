"""Masked -> clean: the one sampling loop and its parts."""

"""Equations: no parameters, no modules, no randomness unless it is passed in."""

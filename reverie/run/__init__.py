"""The loops, and the two calls behind the command line: ``train`` and ``load``."""

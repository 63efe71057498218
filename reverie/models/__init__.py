"""Learned worlds that two or more papers share."""

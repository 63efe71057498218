"""Reverie: reinforcement learning in imagination."""

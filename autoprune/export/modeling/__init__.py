"""Modelling files that travel inside checkpoints; each imports torch and transformers only."""

"""Writes checkpoints of plans: assembles the smaller model, saves it, proves the copy on disk."""

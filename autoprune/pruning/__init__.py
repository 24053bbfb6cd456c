"""Importance criteria and ladders: the weights of every site at each of its options."""

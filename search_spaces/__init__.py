"""What may change in a model: the parts a search space is put together from."""

"""After the search: short training of a smaller model towards the dense one, shapes and zeros kept."""

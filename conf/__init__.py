"""Hydra's configuration groups, imported as `autoprune.conf`."""

"""Criteria rank the units of a site; one file each."""

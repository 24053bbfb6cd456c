"""Runs on somebody else's machines: a command line as a job of a Ray cluster."""

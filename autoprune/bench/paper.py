"""Searches."""


def paper() -> str:
    return ""

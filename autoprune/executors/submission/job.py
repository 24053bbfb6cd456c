"""What a job runs: the command line, if this autoprune is the one that submitted it."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(words: Sequence[str]) -> int:
    """Run `words[1:]`, submitted by version `words[0]`."""
    from autoprune import __version__
    from autoprune.cli import main as run
    from autoprune.commands.stopping import outcome
    from autoprune.errors import SettingError

    if words[0] != __version__:
        return outcome(
            SettingError(
                f"submitted by autoprune {words[0]}, and the cluster has {__version__}; install one version on both"
            )
        )
    return run(words[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

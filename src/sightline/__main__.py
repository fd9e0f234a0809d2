"""The command `sightline`, also as ``python -m sightline``."""

import signal
import sys

from sightline import process


def run() -> None:
    """Run the command line. Ctrl-C while it is imported ends the process at once, without a traceback."""
    if sys.argv[1:2] == ["serve"]:  # whose SIGHUP asks for new models, also while it is imported
        process.claim()
        process.survive_sighup()
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # not where a shell started this in the background, ignoring Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from sightline.cli import main

    signal.signal(signal.SIGINT, handler)
    main()


if __name__ == "__main__":
    run()

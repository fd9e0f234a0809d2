"""Entry point of the `sightline` command and of ``python -m sightline``."""

import signal
import sys

from sightline import process


def run() -> None:
    """Run the command line. Ctrl-C during the import ends the process at once, without a traceback."""
    if sys.argv[1:2] == ["serve"]:  # SIGHUP means "reload the models", even during the import
        process.claim()
        process.survive_sighup()
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # shells have background jobs ignore Ctrl-C: leave that alone
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from sightline.cli import main

    signal.signal(signal.SIGINT, handler)
    main()


if __name__ == "__main__":
    run()

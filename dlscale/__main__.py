"""``dlscale``, and ``python -m dlscale``."""

import signal


def main() -> None:
    """Load the command line and run it."""
    # What is loaded can be left at any moment and without a word, as programs are left that handle no signals.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from dlscale.cli.main import main as run
    from dlscale.interrupts import hear_what_is_dropped

    hear_what_is_dropped()
    run()


if __name__ == "__main__":
    main()

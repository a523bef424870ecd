"""``python -m dlscale``."""

from dlscale.cli import main

if __name__ == "__main__":
    main()

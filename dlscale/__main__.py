"""``python -m dlscale``."""

from dlscale.cli.main import main

if __name__ == "__main__":
    main()

"""``python -m finpercep`` is the same as ``finpercep``."""

from finpercep.cli.main import main

if __name__ == "__main__":
    main()

"""``python -m tokopt``: the command line without the installed script."""

from tokopt.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())

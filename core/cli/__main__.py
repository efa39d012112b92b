"""`python -m xatlas.cli`: the command line without its installed script."""

from xatlas.cli import main

if __name__ == "__main__":
    main()

"""`python -m labeltune`: the command line where its script is not on the path."""

from labeltune.cli import main

if __name__ == "__main__":
    main()

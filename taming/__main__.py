"""`python -m taming`: the command `taming`."""

from taming.program import main

if __name__ == "__main__":
    main()

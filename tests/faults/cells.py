"""The server of `Sandbox`, as a program."""

from tests.faults.sandbox import main

if __name__ == "__main__":
    main()

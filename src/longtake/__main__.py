"""`python -m longtake`."""

from longtake.launch.cli import main

if __name__ == "__main__":
    main()

"""`python -m mvq` is the command `mvq`."""

from mvq.cli import main

if __name__ == "__main__":
    main()

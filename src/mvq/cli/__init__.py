"""Command line: parses, calls the library, prints. Results go to standard output, all else to standard error."""


def main() -> None:
    """Entry point of the `mvq` command."""
    from mvq.cli.app import app

    app()

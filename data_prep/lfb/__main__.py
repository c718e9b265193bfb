"""Command line of the preparation for long-term feature banks: python -m data_prep.lfb."""

from data_prep import commands


def main() -> None:
    """Run the command. The import is here so that a missing package becomes a one-line error."""
    from data_prep.lfb import prepare

    prepare.main()


if __name__ == "__main__":
    commands.main(main)

"""Command line of CTRL's preparation: python -m data_prep.ctrl."""

from data_prep import commands


def main() -> None:
    """Run the command. The import is here so that a missing package becomes a one-line error."""
    from data_prep.ctrl import prepare

    prepare.main()


if __name__ == "__main__":
    commands.main(main)

<<<<<<< HEAD
"""Command line of lfb's preparation: python -m data_prep.lfb."""

import argparse
=======
"""Command line of the preparation for long-term feature banks: python -m data_prep.lfb."""
>>>>>>> h1

from data_prep import commands


def main() -> None:
    """Run the command. The import is here so that a missing package becomes a one-line error."""
<<<<<<< HEAD
    from data_prep.lfb import bank

    parser = argparse.ArgumentParser(description="Prepare lfb's data.")
    bank.add_command(parser.add_subparsers(dest="command", required=True))
    arguments = parser.parse_args()
    arguments.run(arguments)
=======
    from data_prep.lfb import prepare

    prepare.main()
>>>>>>> h1


if __name__ == "__main__":
    commands.main(main)

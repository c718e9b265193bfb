"""The command: python -m data_prep.milnce."""

from data_prep import commands
from data_prep.milnce.prepare import main

if __name__ == "__main__":
    commands.main(main)

"""The command: python -m data_prep.groundnlq."""

from data_prep import commands
from data_prep.groundnlq.prepare import main

if __name__ == "__main__":
    commands.main(main)

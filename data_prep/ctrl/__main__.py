"""The command: python -m data_prep.ctrl."""

from data_prep import commands
from data_prep.ctrl.prepare import main

if __name__ == "__main__":
    commands.main(main)

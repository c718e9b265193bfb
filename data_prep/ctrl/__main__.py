"""The command: python -m data_prep.ctrl."""

from data_prep import shards
from data_prep.ctrl.prepare import main

if __name__ == "__main__":
    shards.main(main)

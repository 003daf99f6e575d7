"""Writes the report of a run, like `lstsd report`.

python scripts/report.py runs/mrpc --dataset train.csv --text_columns sentence1 sentence2
"""

import sys

from lstsd_hf.cli import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])

"""Fine-tunes on a GLUE task, or on your own files, like `lstsd train`.

One process:    python scripts/run_glue.py mrpc --output_dir runs/mrpc
Several:        torchrun --nproc_per_node 2 scripts/run_glue.py mrpc --output_dir runs/mrpc
                accelerate launch scripts/run_glue.py mrpc --output_dir runs/mrpc
All flags:      python scripts/run_glue.py --help
"""

import sys

from lstsd_hf.cli import main

if __name__ == "__main__":
    main(["glue", *sys.argv[1:]])

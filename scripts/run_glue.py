"""Fine-tunes on a GLUE task, or on your own files; the same as `lstsd glue`.

One process:    python scripts/run_glue.py configs/glue/mrpc.yaml --output_dir runs/mrpc
Several:        torchrun --nproc_per_node 2 scripts/run_glue.py configs/glue/mrpc.yaml --output_dir runs/mrpc
                accelerate launch scripts/run_glue.py configs/glue/mrpc.yaml --output_dir runs/mrpc
All flags:      python scripts/run_glue.py --help
"""

from lstsd_hf.glue.run import command

if __name__ == "__main__":
    command()

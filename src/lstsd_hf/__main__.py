"""`python -m lstsd_hf` is `lstsd`, for launchers: `torchrun --nproc_per_node 4 -m lstsd_hf train mrpc`."""

from .cli import main

if __name__ == "__main__":
    main()

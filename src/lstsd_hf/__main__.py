"""`python -m lstsd_hf` is `lstsd`, for launchers: `torchrun --nproc_per_node 4 -m lstsd_hf train mrpc`."""

import sys

if __name__ == "__main__":
    try:
        from .cli import main
    except KeyboardInterrupt:  # before `main` could take it
        print("lstsd: interrupted.", file=sys.stderr)
        raise SystemExit(130) from None
    main()

"""The command `lstsd`."""

import argparse
import sys

from ._version import __version__
from .store import LogitsStore, StoreError


def main(argv: list[str] | None = None) -> None:
    """Runs the command that the first argument names."""
    parser = argparse.ArgumentParser(prog="lstsd", description="Long Short-Term Sample Distillation.")
    parser.add_argument("--version", action="version", version=f"lstsd {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("glue", add_help=False, help="fine-tune on a GLUE task, or on your own files")
    store = commands.add_parser("store", help="look into a store of predictions, or check it for damage")
    store.add_argument("action", choices=["info", "verify"], help="print what it holds; or read every byte of it")
    store.add_argument("path", help="its folder: <output_dir>/_logits, or <output_dir>/checkpoint-<step>/_logits")

    report = commands.add_parser("report", help="write a page about what the model learnt of each training sample")
    report.add_argument(
        "run_dir",
        metavar="RUN_DIR",
        help="a run's output_dir, or a checkpoint in it; the report goes to _report in the output_dir, in either case",
    )
    report.add_argument(
        "--dataset", help="the texts: a save_to_disk folder, or a CSV, TSV, JSON (lines) or parquet file"
    )
    report.add_argument("--text_columns", nargs="+", metavar="COLUMN", help="default: all columns of text")
    report.add_argument("--sample_id_column", default="sample_id", help="the data set's column of ids, if it has one")
    report.add_argument("--label_column", help="its column of labels; default: labels, label or label_ids")
    report.add_argument("--tsv_quoting", action="store_true", help="quotes enclose fields in a TSV file, as in CSV")
    report.add_argument("--logits_dir", help="the store of predictions, where it is not in RUN_DIR/_logits")

    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["glue"]:
        # Imported here: torch and transformers take seconds, which nothing else needs.
        from .glue.run import command

        command(arguments[1:])
        return
    parsed = parser.parse_args(arguments)
    try:
        if parsed.command == "report":
            print(write_report(parsed))
        else:
            print(verify(parsed.path) if parsed.action == "verify" else info(parsed.path))
    except (StoreError, ValueError, OSError) as error:
        parser.exit(2, f"lstsd {parsed.command}: error: {error}\n")


def write_report(parsed: argparse.Namespace) -> str:
    """Writes a run's report, and says where it is. Raises StoreError, ValueError or OSError where it cannot."""
    if parsed.text_columns and not parsed.dataset:
        raise ValueError(
            "--text_columns without --dataset: expected the data set that has them. Name it with --dataset."
        )
    from .report import write_report

    page = write_report(
        parsed.run_dir,
        parsed.dataset,
        parsed.text_columns,
        logits_dir=parsed.logits_dir,
        sample_id_column=parsed.sample_id_column,
        label_column=parsed.label_column,
        tsv_quoting=parsed.tsv_quoting,
    )
    return f"The report is {page}, with samples.parquet and arrays for cleanlab beside it."


def verify(path: str) -> str:
    """Checks a store, and says so. Raises StoreError, naming the file, where it is damaged."""
    LogitsStore.open(path).verify()
    return f"{path}: every file is as it was written."


def info(path: str) -> str:
    """What a store holds, a line for each fact."""
    store = LogitsStore.open(path)
    sizes = [file.stat().st_size for file in store.path.rglob("*") if file.is_file()]
    facts = {
        "samples": f"{store.num_samples:,} (largest id plus 1)",
        "row": f"{store.dtype}, shape {store.row_shape}",
        "training set": store.fingerprint,
        "sealed epochs": ", ".join(map(str, store.sealed_epochs)) or "none",
        "open epochs": ", ".join(map(str, store.open_epochs)) or "none",
        "on disk": f"{sum(sizes) / 1e6:,.1f} MB in {len(sizes)} files",
    }
    return "\n".join(f"{name + ':':15}{fact}" for name, fact in facts.items())

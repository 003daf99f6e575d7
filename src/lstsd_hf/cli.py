"""The command `lstsd`. It prints one line to stderr and exits with code 2 on a wrong input, with 130 on Ctrl-C."""

import argparse
import io
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from ._version import __version__
from .extras import require
from .store import LogitsStore, StoreError

# Exceptions that a wrong input can cause. Any other exception is a bug, and keeps its traceback. If another library
# raises something else for a wrong input, its caller turns that into one of these.
USER_ERRORS = (StoreError, ValueError, OSError, ImportError, MemoryError)
_LONGEST_LINE = 2000


class _Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        end(2, f"{self.prog}: error: {message}. See {self.prog} --help.")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command; `argv` holds the arguments after `lstsd`, by default `sys.argv[1:]`.

    Raises:
        SystemExit: with code 2 after a wrong input, and 130 after Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a class may have a name that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _run(argv)
    finally:
        _flush()


def _flush() -> None:
    """Flushes stdout. At its end, the interpreter would say in two lines that the disk is full or a pipe is closed."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer goes there
        if not isinstance(error, BrokenPipeError):  # `lstsd ... | head` has read what it wants
            end(2, f"lstsd: error: the output could not be written: {error.strerror}")


def _reader_is_gone() -> bool:
    """Whether stdout is a pipe whose reader has closed it."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _run(argv: Sequence[str] | None) -> None:
    parsed, rest = _parser().parse_known_args(argv)
    name = f"lstsd {parsed.command}"
    if parsed.command in ("train", "glue"):
        parsed.flags = rest
    elif rest:
        end(2, f"{name}: error: unknown argument {rest[0]!r}. See {name} --help.")
    given = {option: value for option, value in vars(parsed).items() if option != "flags"}  # `train` checks its own
    empty = [option for option, value in given.items() if "" in (value if isinstance(value, list) else [value])]
    if empty:  # as of a variable of the shell that is not set: the default would be taken, or the present folder
        end(2, f"{name}: error: {empty[0]} is empty: expected a value.")
    try:
        parsed.run(parsed)
    except KeyboardInterrupt as stop:
        if parsed.traceback:
            raise
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends the clean-up at once
        end(130, f"{name}: interrupted. {stop}")
    except BrokenPipeError as error:
        if parsed.traceback:
            raise
        # An output without a buffer fails at once, and not in `_flush`. Only training does more after it has printed.
        if parsed.command in ("train", "glue") or not _reader_is_gone():
            end(2, f"{name}: error: {_told(error)}")
    except USER_ERRORS as error:
        is_own = isinstance(error, ImportError) and (error.name or "").startswith(__package__)
        if parsed.traceback or is_own:
            raise
        end(2, f"{name}: error: {_told(error)}")


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:  # leaves out the number of the error
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def end(code: int, message: str) -> NoReturn:
    """Prints a message to stderr, in one line and with control characters escaped, and exits with `code`.

    Each of several processes prints its own message, because the one that fails may be any of them: the launcher then
    ends the others.
    """
    line = printable(" ".join(message.split()))
    if len(line) > _LONGEST_LINE:
        line = line[:_LONGEST_LINE] + " ..."
    if os.environ.get("WORLD_SIZE", "1") != "1":
        line = f"[process {os.environ.get('RANK')}] {line}"
    print(line, file=sys.stderr)
    raise SystemExit(code)


def printable(text: str) -> str:
    """Escapes each character that cannot be printed, so that a terminal does not act on it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lstsd", description="Long Short-Term Sample Distillation.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"lstsd {__version__}")
    parser.add_argument("--traceback", action="store_true", help="on an error, print the full traceback")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_train(commands)
    _add_report(commands)
    _add_clean(commands)
    _add_record(commands)
    _add_store(commands)
    _add_completion(commands)
    return parser


# ---- train


def _add_train(commands: "argparse._SubParsersAction[_Parser]") -> None:
    train = commands.add_parser(
        "train",
        aliases=["glue"],
        add_help=False,  # `_train` prints the help
        allow_abbrev=False,
        help="fine-tune on a GLUE task, or on your own files",
    )
    train.set_defaults(run=_train)


def _train(parsed: argparse.Namespace) -> None:
    if {"-h", "--help"} & set(parsed.flags):
        from .glue.help import SHORT_HELP

        print(SHORT_HELP, end="")
        raise SystemExit(0)
    require("train")
    try:
        # Imported here, because torch and transformers take seconds to load.
        from .glue.run import command

        command(parsed.flags)
    except KeyboardInterrupt as stop:
        if not stop.args:  # before the run, which says itself how to resume
            stop.args = ("Nothing was trained. --resume_from_checkpoint true goes on from an earlier checkpoint.",)
        raise


# ---- report


def _add_report(commands: "argparse._SubParsersAction[_Parser]") -> None:
    report = commands.add_parser(
        "report",
        allow_abbrev=False,
        help="write a page about what the model learnt of each training sample, or one that compares two runs",
    )
    report.add_argument(
        "run_dir",
        metavar="RUN_DIR",
        help="a run's output_dir, or a checkpoint in it; the report goes to _report in the output_dir, in either case",
    )
    report.add_argument(
        "other_run",
        metavar="OTHER_RUN",
        nargs="?",
        help="a second run on the same samples: the page shows what is better and worse in it than in RUN_DIR, and "
        "goes to its _report",
    )
    report.add_argument(
        "--dataset", help="the data with the texts: a save_to_disk folder, or a CSV, TSV, JSON (lines) or parquet file"
    )
    report.add_argument(
        "--text_columns", nargs="+", metavar="COLUMN", help="the columns to show; default: all text columns"
    )
    _add_columns(report)
    report.add_argument(
        "--logits_dir",
        nargs="+",
        metavar="DIR",
        help="the store of predictions, if it is not RUN_DIR/_logits; for two runs, one store each",
    )
    report.set_defaults(run=_report)


def _add_columns(command: _Parser) -> None:
    """Adds the options that say how the data set's rows are matched to the run's samples."""
    command.add_argument("--sample_id_column", default="sample_id", help="the data set's id column, if it has one")
    command.add_argument("--label_column", help="its label column; default: the one that was learnt, or a usual name")
    command.add_argument("--tsv_quoting", action="store_true", help="quotes enclose fields in a TSV file, as in CSV")


def _report(parsed: argparse.Namespace) -> None:
    if parsed.text_columns and not parsed.dataset:
        raise ValueError(
            "--text_columns without --dataset: expected the data set that has them. Name it with --dataset."
        )
    runs = [parsed.run_dir, *([parsed.other_run] if parsed.other_run else [])]
    stores = parsed.logits_dir or [None] * len(runs)
    if len(stores) != len(runs):
        raise ValueError(
            f"--logits_dir names {len(stores)} folders: expected {len(runs)}, one for each run. Without it each run's "
            "own _logits is read."
        )
    columns = {name: getattr(parsed, name) for name in ("sample_id_column", "label_column", "tsv_quoting")}
    if parsed.other_run:
        from .report.compare import write_comparison

        page = write_comparison(
            runs[0], runs[1], parsed.dataset, parsed.text_columns, logits_dirs=tuple(stores), **columns
        )
        print(f"The comparison is {page}.")
        return
    from .report import write_report

    page = write_report(runs[0], parsed.dataset, parsed.text_columns, logits_dir=stores[0], **columns)
    print(f"The report is {page}, with samples.parquet and arrays for cleanlab beside it.")


# ---- clean


def _add_clean(commands: "argparse._SubParsersAction[_Parser]") -> None:
    command = commands.add_parser(
        "clean", allow_abbrev=False, help="copy a training set, with labels that look wrong dropped or corrected"
    )
    command.add_argument("run_dir", metavar="RUN_DIR", help="a run's output_dir, or a checkpoint in it")
    command.add_argument(
        "--dataset",
        required=True,
        help="what the run was trained on: a CSV, TSV, JSON (lines) or parquet file, or a save_to_disk folder",
    )
    command.add_argument("--drop", action="store_true", help="leave out the rows whose label looks wrong")
    command.add_argument("--relabel", action="store_true", help="give these rows the class that the run suggests")
    command.add_argument("--decisions", help="a decisions.csv from the report's page: only the rows in it change")
    command.add_argument(
        "--min_score", type=float, help="the lowest noise_score of a label that looks wrong; default: set by the run"
    )
    command.add_argument("-o", "--output", required=True, help="the file or folder to write; it must not exist")
    command.add_argument(
        "--split", default="train", help="the split to clean, if a folder has several; default: train"
    )
    _add_columns(command)
    command.add_argument("--logits_dir", help="the store of predictions, if it is not RUN_DIR/_logits")
    command.set_defaults(run=_clean)


def _clean(parsed: argparse.Namespace) -> None:
    from .report.clean import clean

    cleaned = clean(
        parsed.run_dir,
        parsed.dataset,
        parsed.output,
        drop=parsed.drop,
        relabel=parsed.relabel,
        decisions=parsed.decisions,
        min_score=parsed.min_score,
        logits_dir=parsed.logits_dir,
        sample_id_column=parsed.sample_id_column,
        label_column=parsed.label_column,
        split=parsed.split,
        tsv_quoting=parsed.tsv_quoting,
    )
    print("\n".join(map(printable, str(cleaned).splitlines())))


# ---- record


def _add_record(commands: "argparse._SubParsersAction[_Parser]") -> None:
    command = commands.add_parser(
        "record", allow_abbrev=False, help="record a model's predictions for a data set, to teach other models with"
    )
    command.add_argument("--model", required=True, metavar="TEACHER", help="a model's folder, or its name on the Hub")
    command.add_argument(
        "--dataset",
        required=True,
        help="what other models will train on: a CSV, TSV, JSON (lines) or parquet file or a GLUE task, tokenized as "
        "lstsd train does; or a save_to_disk folder, used as it is if it has input_ids",
    )
    command.add_argument("-o", "--output", required=True, metavar="STORE", help="the store's folder")
    command.add_argument(
        "--top_k",
        type=int,
        default=8,
        help="for a language model: classes to keep for each predicted token; default: 8",
    )
    command.add_argument("--dtype", choices=["float16", "float32"], default="float16", help="default: float16")
    command.add_argument("--batch_size", type=int, default=32, help="samples in a batch of each process; default: 32")
    command.add_argument("--tokenizer", help="if it is not the model's own")
    command.add_argument("--max_seq_length", type=int, default=128, help="longer inputs are cut; default: 128")
    command.add_argument("--text_columns", nargs="+", metavar="COLUMN", help="default: as in lstsd train")
    command.add_argument("--label_column", default="label", help="default: label")
    command.add_argument("--where", metavar="COLUMN=VALUE", help="use only the rows of a file where this holds")
    command.add_argument("--tsv_quoting", action="store_true", help="quotes enclose fields in a TSV file, as in CSV")
    command.add_argument("--data_dir", help="a folder in GLUE's own layout, to read a task from")
    command.add_argument("--sample_id_column", default="sample_id", help="default: sample_id")
    command.set_defaults(run=_record)


def _record(parsed: argparse.Namespace) -> None:
    require("train")
    from .glue.record import command

    try:
        command(parsed)
    except KeyboardInterrupt as stop:
        stop.args = ("The same command goes on from here.",)
        raise


# ---- store


def _add_store(commands: "argparse._SubParsersAction[_Parser]") -> None:
    store = commands.add_parser(
        "store", allow_abbrev=False, help="describe a store of predictions, or check it for damage"
    )
    store.add_argument(
        "action", choices=["info", "verify"], help="print what the store holds; or check every byte of it"
    )
    store.add_argument("path", help="its folder: <output_dir>/_logits, or <output_dir>/checkpoint-<step>/_logits")
    store.set_defaults(run=_store)


def _store(parsed: argparse.Namespace) -> None:
    store = LogitsStore.open(parsed.path)
    if parsed.action == "verify":
        store.verify()
        print(f"{parsed.path}: every file is as it was written.")
    else:
        print(info(store))


def info(store: LogitsStore) -> str:
    """Describes what a store holds, one fact a line."""
    sizes = [file.stat().st_size for file in store.path.rglob("*") if file.is_file()]
    ids, changes = store.index.ids, store.label_changes
    dense = f"{store.num_samples:,} (largest id plus 1)"
    facts = {
        "samples": dense if ids is None else f"{len(ids):,}, with ids from {ids[0]} to {ids[-1]}",
        "row": f"{store.dtype}, shape {store.row_shape}",
        "training set": store.fingerprint,
        "sealed epochs": ", ".join(map(str, store.sealed_epochs)) or "none",
        "open epochs": ", ".join(map(str, store.open_epochs)) or "none",
        "on disk": f"{sum(sizes) / 1e6:,.1f} MB in {len(sizes)} files",
    }
    if store.source:
        facts["made by"] = f"{store.source['model']}, inputs {', '.join(store.source['inputs']) or 'unknown'}"
    if changes:
        facts["new labels"] = ", ".join(
            f"{'some' if change['samples'] is None else change['samples']} from epoch {change['epoch']} on"
            for change in changes
        )
    return "\n".join(printable(f"{name + ':':15}{fact}") for name, fact in facts.items())


# ---- completion


def _add_completion(commands: "argparse._SubParsersAction[_Parser]") -> None:
    command = commands.add_parser(
        "completion", allow_abbrev=False, help="print a script that makes a shell complete flags and file names"
    )
    command.add_argument(
        "shell",
        choices=["bash", "zsh", "tcsh"],
        help="for bash: lstsd completion bash > ~/.local/share/bash-completion/completions/lstsd",
    )
    command.set_defaults(run=_completion)


def _completion(parsed: argparse.Namespace) -> None:
    require("train")
    from .glue.completion import script

    parser = _parser()
    commands = next(action.choices for action in parser._actions if isinstance(action.choices, dict))
    print(script(parser, commands, "train", parsed.shell))


if __name__ == "__main__":
    main()

"""Trains heads with many rows for each sample, and compares the method with plain fine-tuning.

    python scripts/benchmark_heads.py CONFIG.yaml --data_dir DATA --glue_dir GLUE --results out.jsonl [--workers 2]
    python scripts/benchmark_heads.py CONFIG.yaml --report out.jsonl

Four heads: entities (WNUT-17: wnut17-train.conll, wnut17-test.conll), parts of speech (the English Web Treebank:
ewt-dev.conllu to train on, ewt-test.conllu to test on), spans (xquad-en.json), and a language model of the sentences
in GLUE's RTE and MRPC. A seed sets which rows are drawn, the initial values of new weights, the order of the rows and
dropout, so that every method sees the same. Each finished run adds a line to the results file, and is not repeated.
"""

import argparse
import csv
import functools
import hashlib
import itertools
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from datasets import Dataset
from seqeval.metrics import f1_score
from sklearn.metrics import f1_score as f1_of_classes
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    LlamaConfig,
    LlamaForCausalLM,
    default_data_collator,
    set_seed,
)

from benchmark_quality import HOW_FAR_OFF, how_far_off, in_words, metered, paired, table
from lstsd_hf import LSTSDConfig, LSTSDTrainer
from lstsd_hf.glue.arguments import resolve_package
from lstsd_hf.glue.prepare import keep_layers
from lstsd_hf.method.many_rows import many_rows_head
from quality.grid import made_with, read_results, train_all, train_and_test

NO_LABEL = -100
LANGUAGE_PIECES = 2000
LANGUAGE_WIDTH = 192
PROBLEMS = {
    "entities": "token_classification",
    "speech": "token_classification",
    "spans": "question_answering",
    "language": "causal_lm",
}
METRICS = {
    "entities": {"f1": "F1 of entities, x 100", "accuracy": "accuracy of tokens, x 100"},
    "speech": {"accuracy": "accuracy of words, x 100", "macro_f1": "mean F1 of the classes, x 100"},
    "spans": {"f1": "F1 of word pieces, x 100", "exact": "exact, x 100"},
    "language": {"nll": "loss, nats for each token"},
}
LOWER_IS_BETTER = ("nll",)
# What the log's honest accuracy estimates: how often the most probable class of a token, or start or end, is right.
TRUTHS = {"entities": "accuracy", "speech": "accuracy", "spans": "places"}


@dataclass(frozen=True)
class Size:
    """How large a head's runs are.

    Attributes:
        train_samples: How many sentences, features or blocks to train on; the seed draws them.
        test_samples: The largest number to test on.
        max_length: The largest number of tokens; a block of the language model has exactly this many.
        num_hidden_layers: The number of the model's layers.
        training: `LSTSDConfig` fields that replace the plan's for this head.
    """

    train_samples: int
    test_samples: int
    max_length: int
    num_hidden_layers: int
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One training run."""

    head: str
    size: Size
    method: str
    seed: int
    settings: dict[str, Any]
    model_name_or_path: str

    @property
    def key(self) -> str:
        """A hash of everything that the result depends on. The method counts by its settings, not by its name."""
        facts = {name: value for name, value in asdict(self).items() if name != "method"}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class Task:
    """The model and the rows of a run.

    Attributes:
        score: Computes the metrics from what the trainer predicts for `test`.
    """

    model: Any
    train: Dataset
    test: Dataset
    collator: Any
    score: Callable[[Any], dict[str, float]]


def runs_of(plan: dict[str, Any]) -> Iterator[Run]:
    """The runs of a YAML file, one seed after the other, so that finished runs can be paired at any time."""
    for seed, head, method in itertools.product(plan["seeds"], plan["heads"], plan["methods"]):
        size = Size(**plan["heads"][head])
        given = plan["training"] | size.training | plan["methods"][method]
        chosen = many_rows_head(PROBLEMS[head], k=8)
        assert chosen is not None
        # A null weight becomes a number, so that the line of a result says which one was used.
        settings = {name: chosen.default_weight if value is None else value for name, value in given.items()}
        yield Run(head, size, method, seed, settings, plan["model_name_or_path"])


# ---- the tasks


def read_sentences(path: Path) -> list[tuple[list[str], list[str]]]:
    """The words and tags of each sentence of a CoNLL or CoNLL-U file."""
    is_universal = path.suffix == ".conllu"
    word, tag = (1, 3) if is_universal else (0, 1)
    blocks = re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))
    sentences = []
    for block in blocks:
        lines = [line.split("\t") for line in block.splitlines() if line.strip()]
        if is_universal:  # skip comments, multiword tokens and empty nodes
            lines = [line for line in lines if line[0].isdigit()]
        if lines:
            sentences.append(([line[word] for line in lines], [line[tag] for line in lines]))
    return sentences


def tagging(run: Run, train_file: Path, test_file: Path) -> Task:
    """Tagging of words; the first token of a word carries the word's tag."""
    everything, held_out = read_sentences(train_file), read_sentences(test_file)[: run.size.test_samples]
    order = np.random.default_rng(run.seed).permutation(len(everything))
    drawn = [everything[i] for i in order[: run.size.train_samples]]
    names = sorted({tag for _, tags in everything for tag in tags})
    path = resolve_package(run.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(path)

    def encode(sentences: list[tuple[list[str], list[str]]]) -> Dataset:
        words, tags = zip(*sentences, strict=True)
        encoded = tokenizer(list(words), is_split_into_words=True, truncation=True, max_length=run.size.max_length)
        labels = []
        for i, own in enumerate(tags):
            owners = encoded.word_ids(i)
            labels.append(
                [
                    names.index(own[owner]) if owner is not None and owner != before else NO_LABEL
                    for before, owner in zip([None, *owners], owners, strict=False)
                ]
            )
        return Dataset.from_dict({**encoded, "labels": labels})

    def score(outcome: Any) -> dict[str, float]:
        found, true = outcome.predictions.argmax(-1), outcome.label_ids
        counted = true != NO_LABEL
        scores = {"accuracy": float((found == true)[counted].mean())}
        if run.head == "speech":
            return scores | {"macro_f1": float(f1_of_classes(true[counted], found[counted], average="macro"))}
        sequences = [
            [[names[tag] for tag in row[kept]] for row, kept in zip(rows, counted, strict=True)]
            for rows in (true, found)
        ]
        return scores | {"f1": float(f1_score(*sequences))}

    config = AutoConfig.from_pretrained(path, num_labels=len(names))
    keep_layers(config, run.size.num_hidden_layers)
    model = AutoModelForTokenClassification.from_pretrained(path, config=config)
    return Task(model, encode(drawn), encode(held_out), DataCollatorForTokenClassification(tokenizer), score)


def spans(run: Run, path_of_questions: Path) -> Task:
    """Extractive question answering.

    Of a passage's overlapping features only the first that holds the whole answer is used. Questions that take more
    than half of the length are left out.
    """
    articles = json.loads(path_of_questions.read_text(encoding="utf-8"))["data"]
    path = resolve_package(run.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(path)

    def features_of(article: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answer = question["answers"][0]
                start, end = answer["answer_start"], answer["answer_start"] + len(answer["text"])
                if len(tokenizer(question["question"])["input_ids"]) > run.size.max_length // 2:
                    continue  # it would leave no room for the passage
                encoded = tokenizer(
                    question["question"],
                    paragraph["context"],
                    truncation="only_second",
                    max_length=run.size.max_length,
                    stride=run.size.max_length // 4,
                    return_overflowing_tokens=True,
                    return_offsets_mapping=True,
                )
                for i, offsets in enumerate(encoded["offset_mapping"]):
                    places = [place for place, part in enumerate(encoded.sequence_ids(i)) if part == 1]
                    inside = [p for p in places if offsets[p][0] < end and offsets[p][1] > start]
                    if inside and offsets[inside[0]][0] <= start and offsets[inside[-1]][1] >= end:
                        columns = {name: encoded[name][i] for name in tokenizer.model_input_names}
                        yield columns | {"start_positions": inside[0], "end_positions": inside[-1]}
                        break

    # All questions about one article go into the same part.
    order = np.random.default_rng(run.seed).permutation(len(articles))
    by_article = [list(features_of(articles[i])) for i in order]
    test: list[dict[str, Any]] = []
    while len(test) < run.size.test_samples:
        test += by_article.pop()
    train = [feature for features in by_article for feature in features][: run.size.train_samples]

    def score(outcome: Any) -> dict[str, float]:
        exact, overlap, places = [], [], []
        for begin, finish, feature in zip(*outcome.predictions, test[: run.size.test_samples], strict=True):
            length = len(feature["input_ids"])
            both = np.triu(begin[:length, None] + finish[None, :length])
            allowed = np.triu(np.ones_like(both, dtype=bool))
            first, last = divmod(int(np.where(allowed, both, -np.inf).argmax()), length)
            start, end = feature["start_positions"], feature["end_positions"]
            common = max(0, min(last, end) - max(first, start) + 1)
            exact.append((first, last) == (start, end))
            places += [begin[:length].argmax() == start, finish[:length].argmax() == end]
            overlap.append(2 * common / (last - first + 1 + end - start + 1))
        return {"exact": float(np.mean(exact)), "f1": float(np.mean(overlap)), "places": float(np.mean(places))}

    config = AutoConfig.from_pretrained(path)
    keep_layers(config, run.size.num_hidden_layers)
    model = AutoModelForQuestionAnswering.from_pretrained(path, config=config)
    collator = DataCollatorWithPadding(tokenizer)
    held_out = Dataset.from_list(test[: run.size.test_samples])
    return Task(model, Dataset.from_list(train), held_out, collator, score)


def language(run: Run, glue_dir: Path) -> Task:
    """A small language model with random weights, on sentences joined into blocks."""
    texts: dict[str, None] = {}
    for task, column in (("RTE", "sentence1"), ("MRPC", "#1 String")):
        with (glue_dir / task / "train.tsv").open(encoding="utf-8-sig", newline="") as file:
            texts |= dict.fromkeys(row[column] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    order = np.random.default_rng(run.seed).permutation(len(texts))
    shuffled = [list(texts)[i] for i in order]
    held_out, drawn = shuffled[: len(shuffled) // 4], shuffled[len(shuffled) // 4 :]
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    pieces.train_from_iterator(
        drawn, trainers.BpeTrainer(vocab_size=LANGUAGE_PIECES, initial_alphabet=alphabet, show_progress=False)
    )

    def blocks(part: list[str], limit: int) -> Dataset:
        tokens = [token for encoding in pieces.encode_batch([f"{text}\n" for text in part]) for token in encoding.ids]
        size = run.size.max_length
        rows = [tokens[at : at + size] for at in range(0, len(tokens) - size + 1, size)][:limit]
        return Dataset.from_dict({"input_ids": rows, "labels": rows})

    set_seed(run.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=pieces.get_vocab_size(),
            hidden_size=LANGUAGE_WIDTH,
            intermediate_size=3 * LANGUAGE_WIDTH,
            num_hidden_layers=run.size.num_hidden_layers,
            num_attention_heads=6,
            max_position_embeddings=run.size.max_length,
            tie_word_embeddings=True,
        )
    )
    train, test = blocks(drawn, run.size.train_samples), blocks(held_out, run.size.test_samples)
    return Task(model, train, test, default_data_collator, lambda outcome: {"nll": outcome.metrics["test_loss"]})


def task_of(run: Run, data_dir: Path, glue_dir: Path) -> Task:
    if run.head == "entities":
        return tagging(run, data_dir / "wnut17-train.conll", data_dir / "wnut17-test.conll")
    if run.head == "speech":
        return tagging(run, data_dir / "ewt-dev.conllu", data_dir / "ewt-test.conllu")
    return spans(run, data_dir / "xquad-en.json") if run.head == "spans" else language(run, glue_dir)


# ---- a run


def train(run: Run, data_dir: Path, glue_dir: Path) -> dict[str, Any]:
    """Trains and tests; returns a line of the results file."""
    set_seed(run.seed)
    task = task_of(run, data_dir, glue_dir)
    with tempfile.TemporaryDirectory() as folder:
        args = LSTSDConfig(
            output_dir=folder,
            seed=run.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            prediction_loss_only=run.head == "language",  # the logits of the whole test set would fill the memory
            label_names=["start_positions", "end_positions"] if run.head == "spans" else ["labels"],
            **run.settings,
        )
        trainer = LSTSDTrainer(task.model, args, train_dataset=task.train, data_collator=task.collator)
        seconds, outcome = train_and_test(trainer, task.test)
    return {
        "key": run.key,
        "head": run.head,
        "method": run.method,
        "seed": run.seed,
        **asdict(run.size),
        "train_samples": len(task.train),
        "test_samples": len(task.test),
        "train_seconds": round(seconds, 1),
        "settings": run.settings,
        **made_with(),
        **task.score(outcome),
        **metered(trainer.state.log_history),
    }


def told(line: dict[str, Any]) -> str:
    metric = next(iter(METRICS[line["head"]]))
    return f"{line['head']}, {line['method']}, seed {line['seed']}: {line[metric]:.4f} ({line['train_seconds']:.0f} s)"


def tables(runs: Sequence[Run], lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: for each metric plain's mean and standard deviation, and each method's paired difference to plain."""
    by_key = {line["key"]: line for line in lines}
    found = {(run.head, run.method, run.seed): by_key[run.key] for run in runs if run.key in by_key}
    methods = [method for method in dict.fromkeys(run.method for run in runs) if method != "plain"]
    rows = []
    for head in dict.fromkeys(run.head for run in runs):
        seeds = {m: [seed for of, own, seed in found if (of, own) == (head, m)] for m in ("plain", *methods)}
        for metric, title in METRICS[head].items() if seeds["plain"] else ():
            scale = 1 if metric in LOWER_IS_BETTER else 100

            def values(
                method: str, of: Sequence[int], head: str = head, metric: str = metric, scale: int = scale
            ) -> np.ndarray:
                return np.array([scale * found[head, method, seed][metric] for seed in of])

            plain = values("plain", seeds["plain"])
            cells = [f"{plain.mean():.2f} ± {plain.std(ddof=1) if len(plain) > 1 else 0:.2f} ({len(plain)} seeds)"]
            for method in methods:
                both = [seed for seed in seeds[method] if seed in seeds["plain"]]
                gap = paired(values(method, both), values("plain", both), metric in LOWER_IS_BETTER) if both else None
                cells.append(in_words(gap))
            rows.append([f"{head}: {title}", *cells])
    missing = len(runs) - len(found)
    head_row = ["", "plain", *(f"{method} minus plain" for method in methods)]
    meter = meter_table(list(found.values()))
    return "\n\n".join([*([f"{missing} runs are missing."] if missing else []), table(head_row, rows), *meter])


def meter_table(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: honest accuracy after the last epoch beside the test rows', in points; nothing if no line has both."""
    rows = []
    for head, name in TRUTHS.items():
        of_head = [line for line in lines if line["head"] == head and "honest_accuracy" in line and name in line]
        if of_head:
            honest, error, truth = (
                np.array([line[key] for line in of_head]) for key in ("honest_accuracy", "honest_accuracy_error", name)
            )
            means = [f"{100 * honest.mean():.1f}", f"{100 * truth.mean():.1f}"]
            rows.append([head, str(len(of_head)), *means, *how_far_off(np.column_stack([honest - truth, error]))])
    return [table(["", "runs", "honest accuracy", "truth", *HOW_FAR_OFF], rows)] if rows else []


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a YAML file, such as configs/quality/heads.yaml")
    parser.add_argument("--data_dir", type=Path, default=Path("DATA"), help="the folder of the CoNLL and JSON files")
    parser.add_argument("--glue_dir", type=Path, default=Path("GLUE"), help="a folder in GLUE's own TSV layout")
    parser.add_argument("--results", type=Path, help="the file that each finished run adds a line to")
    parser.add_argument("--workers", type=int, default=2, help="number of parallel runs; they share the cores")
    parser.add_argument("--report", type=Path, nargs="+", metavar="RESULTS", help="print the table; train nothing")
    arguments = parser.parse_args(argv)
    if (arguments.results is None) == (arguments.report is None):
        parser.error("expected either --results FILE, to train, or --report FILE, to make the table")
    runs = list(runs_of(yaml.safe_load(arguments.config.read_text(encoding="utf-8"))))
    if arguments.report is not None:
        print(tables(runs, read_results(arguments.report)))
        return
    work = functools.partial(train, data_dir=arguments.data_dir, glue_dir=arguments.glue_dir)
    train_all(runs, work, arguments.results, arguments.workers, told)


if __name__ == "__main__":
    main()

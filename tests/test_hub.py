"""Pushes to the Hub and downloads from it, with huggingface_hub's real client and a small server on loopback.

test_hub.py OUTPUT_DIR is the script that the tests start under torchrun.
"""

import gc
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import Future, wait
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers.utils.hub
from accelerate import PartialState
from huggingface_hub import ModelCard, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import http_backoff
from transformers import AutoModelForSequenceClassification, BertTokenizer, TrainerCallback

from hub_server import READER, USER, WRITER, Hub
from lstsd_hf import LogitsStore, LSTSDTrainer, StoreError, add_sample_ids
from toys import Preempted, config, rows, tiny_bert, weights

SCRIPT = Path(__file__).parents[1] / "scripts" / "run_glue.py"
REPO = f"{USER}/model"
MODEL = {"README.md", "config.json", "model.safetensors", "training_args.bin"}
STEPS = 3  # per epoch: 20 rows in batches of 8
PUSHING = {
    "push_to_hub": True,
    "hub_model_id": "model",
    "hub_token": WRITER,
    "num_train_epochs": 4,
    "learning_rate": 0.02,
    "eval_strategy": "epoch",
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server that this process's client talks to; a child process needs HF_ENDPOINT instead."""
    with Hub(part_bytes=1 << 14) as server:  # the weights, 24 kB, travel in parts, and the store's files in one
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)  # this object remembers the endpoint
        monkeypatch.setitem(http_backoff.__kwdefaults__, "base_wait_time", 0.01)
        monkeypatch.setitem(http_backoff.__kwdefaults__, "max_wait_time", 0.01)
        yield server


class AfterSave(TrainerCallback):
    """Waits for each save's upload, because Trainer skips one while the previous goes on; stops after a step."""

    def __init__(self, stop: int | None) -> None:
        self.stop = stop
        self.trainer: Any = None

    def on_save(self, args, state, control, **kwargs):
        if args.push_to_hub:
            wait(self.trainer._lstsd_pushes())
        if state.global_step == self.stop:
            raise Preempted


def make(folder: Path, stop: int | None = None, data: Any = None, **changes: Any) -> Any:
    callback = AfterSave(stop)
    callback.trainer = LSTSDTrainer(
        tiny_bert(),
        config(folder, **PUSHING | changes),
        train_dataset=data or add_sample_ids(rows(20)),
        eval_dataset=rows(8, seed=1),
        callbacks=[callback],
    )
    return callback.trainer


def trained(folder: Path, stop: int | None = None, resume: Any = None, **changes: Any) -> Any:
    trainer = make(folder, stop, **changes)
    try:
        trainer.train(resume_from_checkpoint=resume)
    except Preempted:
        assert stop is not None
    return trainer


def from_hub() -> torch.Tensor:
    return weights(AutoModelForSequenceClassification.from_pretrained(REPO, token=READER))


def files_below(folder: Path, prefix: str = "") -> set[str]:
    return {prefix + str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def same_store(first: Path, second: Path) -> None:
    names = {path.name for path in first.glob("*.npy")}
    assert names == {path.name for path in second.glob("*.npy")}
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


# ---- what arrives


def test_a_push_at_the_end_takes_the_model_and_its_card_alone(hub, tmp_path):
    out = tmp_path / "out"
    (out / "_report").mkdir(parents=True)
    (out / "_report" / "index.html").write_text("private")
    trainer = trained(out, hub_strategy="end", hub_private_repo=True, save_strategy="epoch")
    assert hub.repos[REPO].titles == ["initial commit"]
    trainer.push_to_hub()
    assert hub.repos[REPO].titles == ["initial commit", "End of training"]
    assert listing(hub) == MODEL
    assert hub.repos[REPO].private
    assert torch.equal(from_hub(), weights(trainer.model))
    card = ModelCard.load(snapshot_download(REPO, token=READER) + "/README.md")
    assert {"lstsd", "self-distillation"} <= set(card.data.tags)
    assert {result.metric_type for result in card.data.eval_results} == {"loss"}
    assert "_logits" not in card.text
    assert any("/lfs/" in path or path.startswith("lfs/") for _, path in hub.requests)


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
def test_hub_strategies(hub, tmp_path, strategy):
    out = tmp_path / "out"
    trainer = trained(out, hub_strategy=strategy, save_strategy="epoch")
    saves = [f"Training in progress, epoch {epoch}" for epoch in range(1, 5)]
    if strategy != "every_save":
        saves = [title for save in saves for title in (save, f"{save}, checkpoint")]
    assert hub.repos[REPO].titles == ["initial commit", *saves]
    checkpoints = {
        "every_save": {},
        "checkpoint": {"last-checkpoint/": out / f"checkpoint-{4 * STEPS}"},
        "all_checkpoints": {f"{path.name}/": path for path in out.glob("checkpoint-*")},
    }[strategy]
    expected = without_log(set().union(*(files_below(folder, prefix) for prefix, folder in checkpoints.items())))
    if strategy == "checkpoint":  # nothing is deleted there; the manifest names only the last one
        expected |= {f"last-checkpoint/_logits/margin-{epoch:04d}.npy" for epoch in range(3)}
    # The card comes with push_to_hub(); a checkpoint carries the store that a resumed run needs.
    assert listing(hub) == MODEL - {"README.md"} | expected
    assert all(f"{prefix}_logits/epoch-0000.npy" in expected for prefix in checkpoints)
    assert torch.equal(from_hub(), weights(trainer.model))
    trainer.push_to_hub()
    assert listing(hub) == MODEL | expected


@pytest.mark.parametrize(("save_strategy", "into"), [("steps", "cache"), ("epoch", "folder")])
def test_a_run_goes_on_from_a_pushed_checkpoint(hub, tmp_path, save_strategy, into):
    """It is interrupted in the middle of epoch 2, or at its end, and resumed elsewhere with only what the Hub has."""
    settings = {"save_strategy": save_strategy, "save_steps": 1, "hub_strategy": "checkpoint"}
    stop = 8 if save_strategy == "steps" else 9
    whole = trained(tmp_path / "whole", push_to_hub=False, **settings)
    trained(tmp_path / "cut", stop=stop, **settings)
    shutil.rmtree(tmp_path / "cut")
    place = {"local_dir": tmp_path / "download"} if into == "folder" else {}  # the cache's files are links
    downloaded = snapshot_download(REPO, allow_patterns="last-checkpoint/*", **place)
    trainer = trained(
        tmp_path / "resumed", resume=os.path.join(downloaded, "last-checkpoint"), push_to_hub=False, **settings
    )
    assert torch.equal(weights(trainer.model), weights(whole.model))
    same_store(tmp_path / "resumed" / "_logits", tmp_path / "whole" / "_logits")


def test_what_an_earlier_run_left_in_the_repo_is_not_mixed_in(hub, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "hub_strategy": "checkpoint"}
    trained(tmp_path / "earlier", stop=7, seed=5, **settings)  # its journal is of epoch 2
    whole = trained(tmp_path / "whole", push_to_hub=False, **settings)
    trained(tmp_path / "cut", stop=4, **settings)
    journals = {name for name in listing(hub) if "/open/" in name}
    assert journals == {f"last-checkpoint/_logits/open/epoch-000{i}.rank-00000.journal" for i in (0, 1, 2)}
    checkpoint = os.path.join(snapshot_download(REPO), "last-checkpoint")
    trainer = trained(tmp_path / "resumed", resume=checkpoint, push_to_hub=False, **settings)
    assert torch.equal(weights(trainer.model), weights(whole.model))
    same_store(tmp_path / "resumed" / "_logits", tmp_path / "whole" / "_logits")


# ---- push_logits


def without_log(names: Iterable[str]) -> set[str]:
    """Leaves out the stores' logs, whose names count their entries."""
    return {name for name in names if not re.search(r"_logits/log-\d{6}\.json$", name)}


def listing(hub) -> set[str]:
    return without_log(hub.listing())


def store_files(*names: str) -> set[str]:
    """The files of a pushed store: those that every store has, and these."""
    return {f"_logits/{name}" for name in ("store.json", "labels.npy", *names)}


@pytest.mark.parametrize("place", ["default", "outside"])
def test_the_store_is_pushed_where_asked_for(hub, tmp_path, place):
    logits = tmp_path / ("out/_logits" if place == "default" else "elsewhere/predictions")
    settings = {} if place == "default" else {"logits_dir": str(logits)}
    trainer = trained(tmp_path / "out", push_logits=True, save_strategy="epoch", **settings)
    assert listing(hub) == MODEL - {"README.md"}  # during training only the model
    trainer.push_to_hub()
    sealed = {f"_logits/epoch-{epoch:04d}.npy" for epoch in range(4)}
    assert listing(hub) == MODEL | sealed | store_files("margin-0003.npy")
    assert hub.repos[REPO].titles[-2:] == ["End of training", "End of training, logits"]
    downloaded = Path(snapshot_download(REPO))
    assert "lie in `_logits/`" in (downloaded / "README.md").read_text()
    same_store(downloaded / "_logits", logits)
    store = LogitsStore.open(downloaded / "_logits")
    store.verify()
    assert store.sealed_epochs == [0, 1, 2, 3]
    assert np.array_equal(store.read(3, range(20)), LogitsStore.open(logits).read(3, range(20)))
    assert not list(tmp_path.rglob("*.push-*"))


def test_a_later_push_removes_the_epochs_that_are_gone(hub, tmp_path):
    trained(tmp_path / "out", push_logits=True, hub_strategy="end").push_to_hub()
    trained(tmp_path / "out", push_logits=True, hub_strategy="end", num_train_epochs=3).save_model()
    store = {name for name in listing(hub) if name.startswith("_logits")}
    assert store == store_files("margin-0002.npy", *(f"epoch-000{i}.npy" for i in range(3)))


def test_a_push_that_nobody_waits_for_takes_the_store_as_it_was(hub, tmp_path):
    """The push starts in the middle of training, which meanwhile seals another epoch and drops an old one."""
    pushes: list[Future] = []

    class PushAfterEpoch2(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            if state.global_step == 3 * STEPS:
                # This keeps the client busy: it looks for the files of the push only after the end of the run.
                trainer_ended = transformers.utils.hub.hf_api().run_as_future(ended.result)
                pushes.append(trainer.push_to_hub(blocking=False))
                pushes.append(trainer_ended)

    ended: Future = Future()
    trainer = make(tmp_path / "out", push_logits=True, hub_strategy="end", logits_retention="needed")
    trainer.add_callback(PushAfterEpoch2())
    trainer.train()
    assert LogitsStore.open(tmp_path / "out" / "_logits").sealed_epochs == [3]
    ended.set_result(None)
    assert pushes[0].result(30).commit_message == "End of training"
    names = {name for name in listing(hub) if name.startswith("_logits")}
    assert names == store_files("margin-0002.npy", "epoch-0001.npy", "epoch-0002.npy")
    assert not list(tmp_path.rglob("*.push-*"))


def test_there_must_be_a_store_to_push(hub, tmp_path):
    trainer = make(tmp_path / "out", push_logits=True)
    with pytest.raises(StoreError, match=r"holds no logits store.* push_logits=True uploads it: train first"):
        trainer.push_to_hub()
    assert hub.repos[REPO].titles == ["initial commit"]


def test_what_a_search_has_recorded_stays(hub, tmp_path):
    """The plain Trainer's push would upload all that is in a trial's folder, so it is refused."""
    out = tmp_path / "out"
    settings = {"num_train_epochs": 3, "save_strategy": "epoch"}

    def search(**changes: Any) -> Any:
        trainer = LSTSDTrainer(
            args=config(out, **PUSHING | settings | changes),
            model_init=lambda trial: tiny_bert(),
            train_dataset=rows(20),
            eval_dataset=rows(8, seed=1),
        )
        trainer.hyperparameter_search(
            hp_space=lambda trial: {"seed": trial.suggest_int("seed", 0, 9)}, n_trials=1, backend="optuna"
        )
        return trainer

    with pytest.raises(StoreError, match=r"would upload .*run-0/_logits.* Use hub_strategy='end' in a search"):
        search(hub_strategy="every_save")
    trainer = search(hub_strategy="end")
    with pytest.raises(StoreError, match=r"would upload .*run-0/_logits"):
        trainer.push_to_hub()
    shutil.rmtree(out / "run-0" / "_logits")
    with pytest.raises(StoreError, match=r"would upload .*run-0/checkpoint-\d+/_logits"):
        trainer.push_to_hub()
    assert hub.repos[REPO].titles == ["initial commit"]
    shutil.move(out / "run-0", tmp_path / "elsewhere")
    trainer.train()  # a search leaves no model behind
    trainer.push_to_hub()
    assert listing(hub) == MODEL


# ---- what goes wrong


def test_a_wrong_token_is_refused_before_training(hub, tmp_path):
    for token, message in (("hf_test_nobody", "Invalid username or password"), (READER, "rights to create a model")):
        with pytest.raises(HfHubHTTPError, match=message):
            make(tmp_path / "out", hub_token=token)
    with pytest.raises(HfHubHTTPError, match="rights to create a model under 'somebody'"):
        make(tmp_path / "out", hub_model_id="somebody/model")


@pytest.mark.parametrize("answer", ["<html>Welcome</html>", '{"ok": true}', "[]"])
def test_a_server_that_is_no_hub_is_refused_before_training(tmp_path, monkeypatch, answer):
    class Other(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer.encode())

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        try:
            with pytest.raises(ValueError, match=f"{url}: expected a Hub, .* Set HF_ENDPOINT"):
                make(tmp_path)
        finally:
            server.shutdown()


def test_a_failed_push_in_mid_training_is_told_and_loses_nothing(hub, tmp_path, caplog):
    plain = trained(tmp_path / "plain", push_to_hub=False, save_strategy="epoch")
    trainer = make(tmp_path / "out", save_strategy="epoch")
    hub.refused.add(REPO)
    with caplog.at_level(logging.WARNING):
        trainer.train()
        transformers.utils.hub.hf_api().run_as_future(int).result()  # runs after all that the pushes log
    told = [record.message for record in caplog.records if "A push to the Hub failed" in record.message]
    assert len(told) == 4
    assert "you don't have the rights to write to tester/model" in told[0]
    assert torch.equal(weights(trainer.model), weights(plain.model))
    with pytest.raises(HfHubHTTPError, match="rights to write to tester/model"):
        trainer.push_to_hub()
    assert torch.equal(
        weights(AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")), weights(plain.model)
    )


@pytest.mark.parametrize("uploads", [1, 3])
def test_a_server_that_goes_away_in_mid_upload(hub, tmp_path, uploads):
    """It goes away in the middle of the model's parts, or in the store after the model."""
    trainer = trained(tmp_path / "out", hub_strategy="end", push_logits=True)
    hub.uploads_until_gone = uploads
    file = r"model\.safetensors|training_args\.bin" if uploads == 1 else r"_logits/.*\.npy"
    with pytest.raises(RuntimeError, match=f"Error while uploading '({file})'"):
        trainer.push_to_hub()
    assert listing(hub) == (set() if uploads == 1 else MODEL)
    local = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(weights(local), weights(trainer.model))
    LogitsStore.open(tmp_path / "out" / "_logits").verify()
    assert not list(tmp_path.rglob("*.push-*"))
    hub.uploads_until_gone, hub.is_gone = None, False
    trainer.push_to_hub()
    assert listing(hub) > MODEL
    assert torch.equal(from_hub(), weights(trainer.model))


# ---- whole processes


def start(hub: Hub, *command: str, token: str = WRITER) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
    }
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, timeout=300, check=False
    )


def child(hub: Hub, *command: str) -> None:
    done = start(hub, *command)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


def test_two_processes_push_once(hub, tmp_path):
    child(hub, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__, str(tmp_path / "out"))
    titles = ["initial commit", "End of training", "End of training, logits"]
    assert hub.repos[REPO].titles == titles
    store = {f"_logits/{path.name}" for path in (tmp_path / "out" / "_logits").glob("*.*")}
    assert hub.listing() == MODEL | store
    assert sum(path == "api/repos/create" for _, path in hub.requests) == 1


def glue_command(tmp_path: Path) -> list[str]:
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad")
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tiny_bert(vocab_size=len(words)).save_pretrained(tmp_path / "start")
    BertTokenizer(vocab=str(tmp_path / "vocab.txt"), model_max_length=16).save_pretrained(tmp_path / "start")
    data, out = tmp_path / "data.csv", tmp_path / "out"
    data.write_text("text,label\n" + "good,yes\nbad,no\n" * 10)
    return f"""{SCRIPT} --model_name_or_path {tmp_path}/start --train_file {data} --validation_file {data}
        --do_train --do_eval --output_dir {out} --push_to_hub --push_logits --hub_model_id model --use_cpu
        --ignore_mismatched_sizes --disable_tqdm true --report_to none""".split()


def test_the_glue_script_says_in_a_line_that_the_token_is_wrong(hub, tmp_path):
    done = start(hub, *glue_command(tmp_path), token="hf_test_nobody")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("lstsd glue: error: ")
    assert "Invalid username or password" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_the_glue_script_has_all_on_disk_when_it_pushes(hub, tmp_path):
    hub.uploads_until_gone = 1
    assert start(hub, *glue_command(tmp_path), "--report", "true", "--logits_retention", "all").returncode
    names = {"model.safetensors", "all_results.json", "trainer_state.json", "_report/report.html"}
    assert names <= files_below(tmp_path / "out")


def test_the_glue_script_pushes_what_it_made(hub, tmp_path):
    child(hub, *glue_command(tmp_path))
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    sealed = store_files("margin-0002.npy", *(f"epoch-000{i}.npy" for i in range(3)))
    results = {"train_results.json", "eval_results.json", "all_results.json", "trainer_state.json"}
    assert listing(hub) == MODEL | tokenizer | sealed | results
    text = hub.repos[REPO].files["README.md"].content.decode()
    card = ModelCard(text)
    assert {result.metric_type for result in card.data.eval_results} >= {"loss", "accuracy"}
    for private in (str(tmp_path), WRITER, "good"):
        assert private not in text
    assert not [name for name, file in hub.repos[REPO].files.items() if WRITER.encode() in file.content]


if __name__ == "__main__":
    trained(Path(sys.argv[1]), hub_strategy="end", push_logits=True, use_cpu=True).push_to_hub()
    gc.collect()  # see lstsd_hf.glue.run.command
    PartialState().destroy_process_group()

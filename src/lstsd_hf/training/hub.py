"""Sharing a run: what the model card says, and what a push to the Hub uploads."""

import inspect
import json
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub import CommitInfo, HfApi
from transformers.trainer_utils import has_length
from transformers.utils import logging

from .._version import __version__
from ..config import DistillationArguments
from ..method import dynamics
from ..method.statistics import MARGIN
from ..method.teachers import Settings
from ..paths import CHECKPOINT_PREFIX, LOGITS_FOLDER, PRIVATE_FOLDERS, checkpoints_of
from ..store import LogitsStore, StoreError, manifest
from . import model_card
from .fold import read_folded
from .model_head import unwrapped
from .overrides import Shown

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

logger = logging.get_logger(__name__)


class HubMixin(_Trainer):
    """The part of `LSTSDMixin` that shares a run.

    Attributes:
        distillation: The method's settings as the user gave them.
        settings: The same as they are in force.
    """

    distillation = Shown[DistillationArguments]()
    settings = Shown[Settings]()
    _lstsd_distillation: DistillationArguments
    _lstsd_settings: Settings

    def logits_path(self) -> str:
        """The folder of the run's store, absolute."""
        raise NotImplementedError

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the parent's model card with a section on the distillation; see `lstsd_hf.training.model_card`.

        The metrics of the last evaluation go into its model-index. Takes the parent's arguments.
        """
        if not self.is_world_process_zero():
            return
        output_dir = Path(str(self.args.output_dir))
        # By name, because the order of the arguments differs between trainers.
        given = inspect.signature(super().create_model_card).bind_partial(*args, **kwargs)
        if not given.arguments.get("model_name"):
            # The name of the repo on the Hub. The plain Trainer does not find it if output_dir is ".".
            given.arguments["model_name"] = Path(self.hub_model_id or output_dir.absolute()).name
        super().create_model_card(*given.args, **given.kwargs)
        log_history, rows = self.state.log_history, self.train_dataset
        num_samples = len(cast(Any, rows)) if has_length(rows) else None
        path, kind = output_dir / "README.md", type(unwrapped(self.model))
        name = self.hub_model_id or given.arguments["model_name"]
        card = model_card.complete(
            path.read_text(encoding="utf-8"),
            model_card.opening(num_samples, self._lstsd_less_probable(), kind, name),
            model_card.describe(self.settings, self.distillation, self.args, log_history, num_samples),
            model_card.evaluation_metrics(log_history),
            model_card.infer_task(kind.__name__),
        )
        path.write_text(card, encoding="utf-8")

    def _lstsd_less_probable(self) -> int | None:
        """How many labels were, on average over the epochs, less probable than another class; None if not known."""
        if not self.state.global_step:  # a store that is there is of another run
            return None
        path = Path(self.logits_path())
        found = read_folded(LogitsStore.open(path), MARGIN) if (path / manifest.NAME).exists() else None
        if found is None:
            return None
        mean, epochs = found[1].T
        return int((dynamics.flags((1 - mean) / 2) & (epochs > 0)).sum())

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """As the parent's, with its arguments. Raises ValueError if the server's answer is not one of a Hub."""
        try:
            super().init_hf_repo(*args, **kwargs)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{HfApi().endpoint}: expected a Hub, found a server whose answer is no repository ({error!r}). Set "
                "HF_ENDPOINT to the address of a Hub, or leave push_to_hub out."
            ) from error

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As `Trainer.push_to_hub`. With `push_logits=True` it uploads the store after the model, to `_logits/`.

        Returns:
            The model's commit. With `blocking=False` a future of it, which is done when the store is uploaded as well.

        Raises:
            StoreError: `push_logits=True`, and there is no store; or it is not set, and the push would upload
                predictions. Nothing is uploaded then.
        """
        if self.is_world_process_zero():
            self._lstsd_refuse_leak(private_folders_of_trials(Path(str(self.args.output_dir))))
        if not self.distillation.push_logits or not self.is_world_process_zero():
            return super().push_to_hub(commit_message, blocking, token, revision, *args, **kwargs)
        path = Path(self.logits_path())
        try:
            store = LogitsStore.open(path)
        except StoreError as error:
            raise StoreError(f"{error} push_logits=True uploads it: train first, or set push_logits=False.") from error
        # A copy, because training may change the store during the upload. It has hard links, if the disk has them.
        folder = Path(tempfile.mkdtemp(prefix=f"{path.name}.push-", dir=path.parent))
        try:
            snapshot = store.copy(folder / LOGITS_FOLDER, {})
            pushed = super().push_to_hub(commit_message, blocking, token, revision, *args, **kwargs)
        except BaseException:
            shutil.rmtree(folder)
            raise

        def push_store() -> CommitInfo:
            try:
                commit = pushed.result() if isinstance(pushed, Future) else pushed
                HfApi(library_name="lstsd_hf", library_version=__version__).upload_folder(
                    repo_id=cast(str, self.hub_model_id),
                    folder_path=snapshot.path,
                    path_in_repo=LOGITS_FOLDER,
                    commit_message=f"{commit_message}, logits",
                    token=token or self.args.hub_token,
                    revision=revision or self.args.hub_revision,
                    delete_patterns="*",  # epochs of an earlier push that were dropped since
                )
                return commit
            finally:
                shutil.rmtree(folder)

        if blocking:
            return push_store()
        following = HfApi().run_as_future(push_store)
        following.add_done_callback(_warn_of_failed_push)
        return following

    def _lstsd_refuse_leak(self, paths: Sequence[Path]) -> None:
        """Raises StoreError if there are folders that a push would upload, and `push_logits` is not set."""
        if paths and not self.distillation.push_logits:
            raise StoreError(
                f"A push of {self.args.output_dir} to the Hub would upload {paths[0]}, with what a trial of a "
                "hyper-parameter search predicted for the training samples: expected that to stay. Use "
                "hub_strategy='end' in a search, and move the trials' folders elsewhere before a push; or set "
                "push_logits=True."
            )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        before = self._lstsd_pushes()
        super()._push_from_checkpoint(checkpoint_folder)
        for push in self._lstsd_pushes():
            if push not in before:
                push.add_done_callback(_warn_of_failed_push)

    def _lstsd_pushes(self) -> list[Future]:
        """The uploads of checkpoints during training, whose outcome the plain Trainer does not check."""
        progress = getattr(self, "push_in_progress", None)  # only on the process that pushes
        return list(progress.jobs) if progress is not None else []


def private_folders_of_trials(output_dir: Path) -> list[Path]:
    """Stores and reports in the trials' folders of a hyper-parameter search, which a push would upload.

    A push leaves out checkpoints, and names with a leading underscore, only at the top of `output_dir`.
    """
    patterns = (f"[!_]*/{inside}{name}" for name in PRIVATE_FOLDERS for inside in ("", f"{CHECKPOINT_PREFIX}-*/"))
    found = (path for pattern in patterns for path in output_dir.glob(pattern))
    return sorted(path for path in found if path.parent not in checkpoints_of(output_dir))


def _warn_of_failed_push(push: Future) -> None:
    """Warns if an upload failed that nothing waits for."""
    error = None if push.cancelled() else push.exception()
    if error is not None:
        logger.warning(
            f"A push to the Hub failed: {error!r}, because of {error.__cause__!r}. Training goes on, what is on disk "
            "is not affected, and the next push uploads all that is missing."
        )

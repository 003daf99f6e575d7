"""Records what a model predicts for each training sample in each epoch, and leaves the training as it is.

```python
from lstsd_hf import PredictionRecorder
from transformers import Trainer

Trainer = PredictionRecorder(Trainer)  # the one new line; all else stays
```

The store is in `<output_dir>/_logits`, as in a run that distils, so the report, `read_history` and `clean` read it.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn
from transformers import Trainer

from ..config import DistillationArguments
from ..method.many_rows import Vocabulary
from ..method.outside import LAST
from .base_loss import BaseLossMixin
from .hub import HubMixin
from .mixin import LSTSDMixin
from .model_card import ON_PREDICTIONS
from .overrides import taught

AnyTrainer = TypeVar("AnyTrainer", bound=Trainer)


class RecordingMixin(LSTSDMixin):
    """`LSTSDMixin` without teachers: the loss is the parent's, computed and scaled as the parent does it.

    Attributes:
        distillation: Both weights are 0, there is no outside teacher, and every epoch is kept. All else is as in
            `args` if that is a `DistillationArguments`, else the default. `args` itself is not changed.
    """

    def _lstsd_given_settings(self) -> DistillationArguments:
        given = super()._lstsd_given_settings()
        values = {field.name: getattr(given, field.name) for field in dataclasses.fields(DistillationArguments)}
        only_records = {"long_term_weight": 0.0, "short_term_weight": 0.0, "logits_retention": "all"}
        only_records |= {"outside_teacher": None, "outside_weight": None, "outside_epoch": LAST}
        return DistillationArguments(**values | only_records)

    def _lstsd_prepare_loss(self) -> None:
        """Leaves the user's loss as it is."""

    def _lstsd_own_items(self, inputs: Any, labels: Any, num_items_in_batch: Any) -> Any:
        return num_items_in_batch

    def _lstsd_whole_loss(self, base_loss: torch.Tensor, *args: Any) -> torch.Tensor:
        return base_loss

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | int | None:
        return super(BaseLossMixin, self)._get_num_items_in_batch(batch_samples, device)

    @taught
    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The parent's loss; for a language model in training, the plain Trainer's in place of TRL's.

        TRL's SFTTrainer would compute the same loss without logits.
        """
        if model.training and isinstance(self._lstsd_head, Vocabulary) and not self._lstsd_has_parents_loss():
            self._lstsd_refuse_loss_type()
            trainer = cast(Trainer, self)
            return Trainer.compute_loss(trainer, model, inputs, return_outputs, num_items_in_batch)
        # By keyword, because the Trainer passes them so, and a loss of the user's may take them as **kwargs.
        return super(BaseLossMixin, self).compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch, **kwargs
        )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the parent's model card, because nothing was distilled; with `push_logits` it tells of the store."""
        super(HubMixin, self).create_model_card(*args, **kwargs)
        if self.distillation.push_logits and self.is_world_process_zero():
            card = Path(str(self.args.output_dir)) / "README.md"
            text = card.read_text(encoding="utf-8").rstrip("\n")
            card.write_text(f"{text}\n\n## Predictions\n\n{ON_PREDICTIONS}\n", encoding="utf-8")


def PredictionRecorder(trainer: type[AnyTrainer]) -> type[AnyTrainer]:  # noqa: N802 - used in place of a class
    """Makes a trainer's class record what the model predicts for each training sample in each epoch.

    `Trainer = PredictionRecorder(Trainer)` is all that a script needs. The loss, the weights, the log and the
    arguments are those of `trainer`, bit for bit, except that the log has one more entry for each epoch: what is
    memorised. That entry does not pass through a `log` of yours; callbacks get it. TRL's `SFTTrainer` is another
    exception: its training loss makes no logits, so the plain Trainer's takes its place. This is the same but for
    rounding, and the log of training lacks `entropy`, `mean_token_accuracy` and `num_tokens`.

    It needs a head that `LSTSDMixin` supports, and logits from which the loss is computed. A batch is recorded while
    it is trained on, so predictions are made with dropout.

    Args:
        trainer: `Trainer`, a subclass of yours, or that of another library. Its `args` may be an `LSTSDConfig`, for
            `logits_dir`, `logits_dtype`, `sample_id_column` and `problem_type`.

    Returns:
        A subclass with the same name, in the caller's module. So it can be pickled if it is assigned to that name
        there.

    Raises:
        TypeError: `trainer` is not a subclass of `Trainer`, or records already.
    """
    if not isinstance(trainer, type) or not issubclass(trainer, Trainer):
        raise TypeError(
            f"expected a subclass of transformers.Trainer, found {trainer!r}. Give the class, no instance."
        )
    if issubclass(trainer, LSTSDMixin):
        raise TypeError(f"{trainer.__name__} records its predictions already: use it as it is.")
    caller = sys._getframe(1).f_globals.get("__name__", __name__)
    content = {"__module__": caller, "__qualname__": trainer.__qualname__, "__doc__": trainer.__doc__}
    return cast(type[AnyTrainer], type(trainer.__name__, (RecordingMixin, trainer), content))

"""The teacher of a distillation: a frozen model from any weights folder, which sees the rows that the student sees.

It stands outside the student, in eval mode and without gradients: nothing trains it, and no checkpoint holds it. Its
features of the pictures, as they are, are computed once for all trainings. Captions are drawn anew in each step, so
its text tower reads those of the step, by its own tokenizer.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from clip_core.config.loader import Loader
from clip_core.config.stage2 import Distill
from clip_core.config.training import Training
from clip_core.data.batches import Batch, ToShow
from clip_core.data.pictures import AsNeeded
from clip_core.data.sampler import random_at
from clip_core.data.store import Store
from clip_core.inference.predictor import tokenizer_in
from clip_core.model.clip import CLIP
from clip_core.model.contract import WEIGHTS_FILE, read_contract
from clip_core.model.precision import in_precision, pick_device
from clip_core.model.weights import load_weights
from clip_core.params_file import existing
from clip_core.train.backward import Lesson, encode_texts
from clip_core.train.distillation import cosine_loss, relation_loss
from clip_core.train.feature_cache import image_features_of

KEY = "stage2.distill.weights"
Encoder = Callable[[Tensor], Tensor]


def check_teacher(folder: Path) -> None:
    """Raises UserError where `folder` is no weights folder; reads none of the weights."""
    contract = read_contract(existing(folder, KEY))
    tokenizer_in(folder, contract)
    existing(folder / WEIGHTS_FILE, KEY)


class Teacher:
    """`shown` is what a batch must hold for its lessons."""

    def __init__(self, distill: Distill, folder: Path, params: Training, store: Store, loader: Loader) -> None:
        device, contract = pick_device("auto"), read_contract(folder)
        self.model = load_weights(folder, device=device).requires_grad_(False)
        self._distill, self._at_once = distill, params.micro_batch or params.global_batch
        self._encode_texts = in_precision(lambda ids: encode_texts(self.model, ids), params.precision, device)
        pictures = AsNeeded(store, contract.image_size, contract.preprocessing, params.decoding)
        self.shown = ToShow(
            image_features_of(self.model, pictures, params.precision, loader=loader) if distill.images else None,
            tokenizer_in(folder, contract) if distill.texts else None,
        )
        del self.model.image_tower  # its features are all that is needed

    def ready_for(self, student: CLIP, seed: int) -> "Teacher":
        """Gives the student a projection to this width, where a row is compared with this one's and is not as wide.

        It trains as the model does, stands in its checkpoints, and is to be taken away before the weights are saved.
        """
        own, width = student.architecture.embed_dim, self.model.architecture.embed_dim
        if self._distill.loss == "cosine" and own != width:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(random_at(seed, "teacher projection", 0).integers(2**63)))
                student.teacher_projection = nn.Linear(own, width, bias=False)
        return self

    def lesson(self, student: CLIP, batch: Batch) -> Lesson:
        """The loss, as a function of the student's features of the batch; not of the narrower ones of Matryoshka."""
        images, texts = self._features(batch)
        weight, projected = self._distill.weight, student.teacher_projection or nn.Identity()

        def cosine(image_features: Tensor, text_features: Tensor) -> Tensor:
            taught = [(image_features, images)] * self._distill.images + [(text_features, texts)] * self._distill.texts
            losses = [cosine_loss(projected(features), teacher) for features, teacher in taught]
            return weight * torch.stack(losses).mean()

        def relation(image_features: Tensor, text_features: Tensor) -> Tensor:
            factors = student.logit_scale.exp(), self.model.logit_scale.exp()
            return weight * relation_loss((image_features, text_features), factors[0], (images, texts), factors[1])

        return cosine if self._distill.loss == "cosine" else relation

    def _features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The teacher's, of the pictures and of the texts; of no width where it does not teach them."""
        assert batch.shown is not None
        device = self.model.logit_scale.device
        texts = torch.empty(len(batch.shown.token_ids), 0, device=device)
        if self._distill.texts:
            with torch.no_grad():
                texts = torch.cat([self._encode_texts(ids) for ids in batch.shown.token_ids.split(self._at_once)])
        return batch.shown.image_features.to(device), texts

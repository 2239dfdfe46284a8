"""A trunk behind the contract, without attention: the plain CNN, and what LFI-CAM and ABN have in common with it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch.nn.functional as F
from huggingface_hub import ModelHubMixin, hf_hub_download
from torch import Tensor, nn

from lficam import functional as LF
from lficam.contract import ClassIndex, ModelConfig, Prediction, check_images, resolve_class_idx
from lficam.errors import InvalidInputError
from lficam.files import write_whole
from lficam.models import hub
from lficam.models.backbones import Backbone, layers_before_logits, linear_head, pre_pool, reduction
from lficam.models.wrapped import WrappedBackbone
from lficam.predict import Explanation, Picture, predict


class Attended(NamedTuple):
    """The last map after the attention mechanism (N, K, h, w), the map (N, 1, h, w) and weights (N, K) that made it.

    ABN's branch has logits (N, C) of its own.
    """

    features: Tensor
    attention: Tensor | None = None
    importance: Tensor | None = None
    attention_logits: Tensor | None = None


class PlainClassifier(nn.Module, ModelHubMixin):
    """The plain CNN: no attention, but exact class evidence in the same pass.

    Args:
        backbone: timm's interface, see `lficam.models.backbones`.

    >>> import torch, lficam
    >>> model = lficam.create_model("cifar_resnet20", method="plain").eval()
    >>> prediction = model.explain(torch.zeros(2, 3, 32, 32))
    >>> prediction.logits.shape, prediction.evidence.shape, prediction.attention
    (torch.Size([2, 10]), torch.Size([2, 1, 8, 8]), None)
    """

    config: ModelConfig
    backbone: Backbone

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self._pools_into_linear = linear_head(backbone) is not None

    def save_pretrained(  # type: ignore[override]
        self, directory: str | Path, *, model_card_kwargs: Mapping[str, str | bytes] | None = None, **_hub: Any
    ) -> Path:
        """Write ``config.json`` and ``model.safetensors`` to a directory; `lficam.load` reads them.

        Args:
            directory: made if need be.
            model_card_kwargs: further files, name and content; ``push_to_hub`` hands them on.

        Returns:
            The directory.
        """
        written = hub.write(directory, self.config.to_dict(), self.state_dict())
        for name, content in (model_card_kwargs or {}).items():
            write_whole(written / name, content)
        return written

    def push_to_hub(
        self, repo_id: str, *, model_card_kwargs: Mapping[str, str | bytes] | None = None, **options: Any
    ) -> str:
        """Upload the model with a card to Hugging Face's hub; `lficam.report.card.publish` tells what its run measured.

        Args:
            repo_id: ``user/name``.
            model_card_kwargs: files of the card, with ``README.md``; None: a card that says what the model is.
            options: of `huggingface_hub.ModelHubMixin.push_to_hub`, such as ``private`` and ``token``.

        Returns:
            The address of the commit.

        Raises:
            RunError: the hub cannot be reached, or refuses.
        """
        files = model_card_kwargs or {"README.md": hub.card(self.config.to_dict(), repo_id)}
        with hub.plain_errors(repo_id):
            return super().push_to_hub(repo_id, model_card_kwargs=dict(files), **options)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: Any,
        force_download: bool,
        local_files_only: bool,
        token: Any,
        **model_kwargs: Any,
    ) -> "PlainClassifier":
        """What ``from_pretrained`` of the mixin asks for: a directory, or a repository that becomes one."""
        from lficam.models.factory import load  # noqa: PLC0415 - it builds all models, this one too

        # The mixin adds what it finds in config.json; that is read again, and checked, with the weights.
        own_code = {name: model_kwargs[name] for name in ("model", "features", "head") if name in model_kwargs}
        if Path(model_id).is_dir():
            return load(model_id, **own_code)
        files = [
            hf_hub_download(
                model_id,
                name,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
            for name in (hub.WEIGHTS_FILE, hub.CONFIG_FILE)
        ]
        return load(Path(files[0]).parent, **own_code)

    def predict(
        self, pictures: Picture | Sequence[Picture], class_name: str | int | None = None, batch_size: int = 32
    ) -> Explanation | list[Explanation]:
        """Label, probabilities and maps of pictures, in their own pixels: `lficam.predict.predict`.

        >>> import lficam
        >>> from PIL import Image
        >>> model = lficam.create_model("cifar_resnet20", num_classes=2)
        >>> model.config.class_names = ["cat", "dog"]
        >>> model.config.preprocessing = lficam.Preprocessing(size=32, resize=32)
        >>> explanation = model.predict(Image.new("RGB", (64, 48)))
        >>> explanation.label in ("cat", "dog"), explanation.on_picture(explanation.evidence).shape
        (True, torch.Size([1, 48, 64]))
        """
        return predict(self, pictures, class_name, batch_size)

    @property
    def linear_head(self) -> nn.Linear | None:
        """The linear layer behind global average pooling; None where anything else stands between."""
        return self.backbone.get_classifier() if self._pools_into_linear else None

    def layers_before_logits(self) -> list[str]:
        """The trunk's layers behind the last map, by name; more than pooling and one where evidence is not exact."""
        return layers_before_logits(self.backbone)

    def forward_features(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to the last map before pooling, (N, K, h, w).

        Raises:
            InvalidInputError: not a floating-point batch of that shape, or smaller than one grid cell.
        """
        self.check_images(images)
        features = self.backbone.forward_features(images)
        if features.ndim != 4 or features.shape[1] != self.backbone.num_features:
            raise InvalidInputError(
                f"backbone: expected a map of (N, {self.backbone.num_features}, h, w), got "
                f"{tuple(features.shape)} from {type(self.backbone).__name__}; use a convolutional network."
            )
        return features

    def check_images(self, images: Tensor) -> None:
        """Refuse images of a wrong shape or type, and those too small to leave one grid cell."""
        check_images(images)
        smallest = reduction(self.backbone)
        if min(images.shape[-2:]) < smallest:
            raise InvalidInputError(
                f"images: expected at least {smallest} x {smallest} pixels for this backbone, "
                f"got {tuple(images.shape[-2:])}; resize them."
            )

    def attend(self, features: Tensor, images: Tensor) -> Attended:
        """What stands between the last map and the head: nothing here."""
        return Attended(features)

    def pooled_features(self, features: Tensor, images: Tensor) -> Tensor:
        """Exactly the map that global pooling receives, (N, K, h, w)."""
        return self._pre_pool(self.attend(features, images).features)

    def classify(self, features: Tensor, images: Tensor) -> Tensor:
        """Logits (N, C) from the map of `forward_features`."""
        return self._head(self.pooled_features(features, images))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to logits (N, C)."""
        return self.classify(self.forward_features(images), images)

    def explain(self, images: Tensor, class_idx: ClassIndex = None) -> Prediction:
        """Label, attention and signed class evidence in one differentiable pass.

        Args:
            images: (N, 3, H, W), normalised.
            class_idx: the class whose evidence is asked for, one for all or one per image; None: the predicted one.

        Returns:
            `Prediction`. ``evidence.mean(dim=(1, 2, 3)) + bias[class_idx]`` is ``logits[:, class_idx]`` to rounding; in
            training mode not where a wrapped network's own head drops out behind pooling.
        """
        seen = self.perceive(images)
        logits, evidence = self._answer(seen.features, class_idx)
        return Prediction(logits, seen.attention, evidence, seen.importance, seen.attention_logits)

    def perceive(self, images: Tensor) -> Attended:
        """Images (N, 3, H, W) to the attended map, and what was made on the way."""
        return self.attend(self.forward_features(images), images)

    def answer(self, seen: Attended) -> Tensor:
        """Logits (N, C) from what `perceive` gives."""
        return self._head(self._pre_pool(seen.features))

    def evidence_of(self, seen: Attended, classes: Tensor) -> Tensor:
        """Evidence of several classes at once, centred over all of them: `ClassEvidence` for a graph without Python.

        Args:
            seen: of `perceive`.
            classes: (N, k) int64.

        Returns:
            (N, k, h, w), signed, in logits.

        Raises:
            InvalidInputError: a model without a linear head.
        """
        head = self.linear_head
        if head is None:
            raise InvalidInputError(
                f"evidence: {self.config.backbone} has layers between its last map and the logits; there is none."
            )
        rows = head.weight - head.weight.mean(dim=0) if len(head.weight) > 1 else head.weight
        return LF.weighted_sums(self._pre_pool(seen.features), rows[classes])

    def _answer(self, attended: Tensor, class_idx: ClassIndex) -> tuple[Tensor, Tensor | None]:
        pooled = self._pre_pool(attended)
        if self.linear_head is None:
            return self._head(pooled), None
        return self._logits_and_evidence(pooled, class_idx)

    @LF.full_precision
    def _logits_and_evidence(self, pooled: Tensor, class_idx: ClassIndex) -> tuple[Tensor, Tensor]:
        logits, head = self._head(pooled), self.linear_head
        assert head is not None
        return logits, LF.weighted_sum(pooled, head.weight[resolve_class_idx(class_idx, logits)])

    def _pre_pool(self, attended: Tensor) -> Tensor:
        layers = pre_pool(self.backbone)
        # The attended map is float32 at least; a trunk cast to bfloat16 as a whole wants its own type.
        dtype = next((parameter.dtype for parameter in layers.parameters()), attended.dtype)
        pooled = layers(attended.to(dtype))
        if self.linear_head is None:
            return pooled
        # The trunk's dropout behind pooling, done before it: a channel out is out on the whole grid.
        return F.dropout2d(pooled, getattr(self.backbone, "drop_rate", 0.0), self.training)

    def _head(self, pooled: Tensor) -> Tensor:
        head = self.linear_head
        if head is None:
            return self.backbone.forward_head(pooled.to(next(self.backbone.parameters()).dtype))
        if isinstance(self.backbone, WrappedBackbone):
            # Its own head, so that its answer stays what it was to the last bit; outside autocast as all heads are.
            return LF.full_precision(lambda wide: self.backbone.forward_head(wide.to(head.weight.dtype)))(pooled)
        return LF.linear_logits(pooled, head.weight, head.bias)

"""Features of videos, of sentences and of people, made in the same way as those that a model was trained on."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vlm_jax.features import FeatureError, Settings
from vlm_jax.text_features import EncodedText, TextSettings


class Extractor:
    """Feature extractor that loads the encoders of a run's features when they are first needed.

    Args:
      config: Config of the run; `config.data.video_features` and `config.data.text_features` say what made the features
        of clips and sentences, `config.bank.source` those of people.
      load: Function from a checkpoint to its predictor (`inference.load`).
      video_checkpoint: Path of the checkpoint behind the features of videos or people, if it was moved.
      text_checkpoint: Path of the text encoder's checkpoint, if it was moved.
      vocabulary: Path of the text encoder's word list, if its config names none.
    """

    def __init__(
        self,
        config: ConfigDict,
        load: Callable[..., Any],
        *,
        video_checkpoint: str = "",
        text_checkpoint: str = "",
        vocabulary: str = "",
    ) -> None:
        self._config = config
        self._moved = {"video": str(video_checkpoint), "text": str(text_checkpoint)}
        self._vocabulary = str(vocabulary)
        self._load = functools.cache(load)
        self._encoders: dict[str, Any] = {}

    @property
    def video_settings(self) -> Settings:
        """Return the settings that the features of videos were made with.

        Raises:
          FeatureError: If the model was trained on features that its reference published.
        """
        return Settings(**self._stated("video"))

    @property
    def text_settings(self) -> TextSettings:
        """Return the settings that the features of sentences were made with; raises as `video_settings` does."""
        return TextSettings(**self._stated("text"))

    @property
    def makes_text(self) -> bool:
        """Return true if the features of sentences can be made here."""
        return bool(self._config.data.text_features)

    def video(self, path: str | Path) -> np.ndarray:
        """Return the features of a whole video, `[N, C]`, one row per window.

        Raises:
          VideoError: If the file cannot be used.
          FeatureError: If the features cannot be made here.
        """
        settings = self.video_settings
        wanted = {key: getattr(settings, key) for key in ("layer", "window", "stride", "fps", "size", "crop")}
        return self._encoder("video", settings).extract(path, **wanted).astype(settings.dtype)

    def sentences(self, sentences: Mapping[str, str]) -> EncodedText:
        """Return the features of sentences by name.

        Raises:
          FeatureError: If the features cannot be made here.
        """
        settings = self.text_settings
        return self._encoder("text", settings).text_features(sentences, settings.layer)

    def bank_encoder(self) -> Any:
        """Return the predictor of the detector that made the feature bank of training; it has `score_people`.

        Raises:
          FeatureError: If the config names no checkpoint, or the weights are others.
        """
        source = self._config.bank.source
        place = self._moved["video"] or source.get("checkpoint", "")
        if not place:
            raise FeatureError(
                "config.bank.source: names no checkpoint; the features of people need the detector that made the bank "
                "(--video_checkpoint)"
            )
        if "bank" not in self._encoders:
            encoder = self._load(place)
            if not hasattr(encoder, "score_people"):
                raise FeatureError(f"{place}: a checkpoint of {encoder.config.task} makes no features of people")
            # Banks that were converted from a reference's files do not know what made them.
            if source.get("fingerprint", ""):
                _check_weights(encoder, place, "bank", source.fingerprint)
            self._encoders["bank"] = encoder
        return self._encoders["bank"]

    def _stated(self, kind: str) -> dict[str, Any]:
        stated = self._config.data[f"{kind}_features"].to_dict()
        if not stated:
            raise FeatureError(
                f"config.data.{kind}_features: empty; the model was trained on features that its reference published, "
                "and those cannot be made here"
            )
        return stated

    def _encoder(self, kind: str, settings: Settings | TextSettings) -> Any:
        if kind not in self._encoders:
            self._encoders[kind] = self._checked(kind, settings)
        return self._encoders[kind]

    def _checked(self, kind: str, settings: Settings | TextSettings) -> Any:
        place = self._moved[kind] or settings.checkpoint
        options = {"vocabulary": self._vocabulary} if kind == "text" and self._vocabulary else {}
        encoder = self._load(place, **options)
        if not hasattr(encoder, {"video": "extract", "text": "text_features"}[kind]):
            raise FeatureError(f"{place}: a checkpoint of {encoder.config.task} makes no features of {kind}")
        _check_weights(encoder, place, f"{kind} features", settings.fingerprint)
        return encoder


def _check_weights(encoder: Any, place: str, made: str, expected: str) -> None:
    found = encoder.fingerprint()
    if found != expected:
        raise FeatureError(
            f"{place}: other weights than those that made the {made} of training (fingerprint {found[:16]}, expected "
            f"{expected[:16]})"
        )

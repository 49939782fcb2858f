"""Trainings share a backbone only where it would be the same for each."""

import pytest

from labeltune.bench import backbone_key
from labeltune.config import Config, with_settings


@pytest.mark.parametrize(
    "setting",
    [
        {"model.name": "other"},
        {"model.dtype": "bf16"},
        {"model.quantization": "nf4"},
        {"model.checkpointing": "on"},
        {"model.recording": "off"},
        {"model.matmul": "stock"},
        {"train.device": "cpu"},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_what_makes_another_backbone_is_not_shared(setting: dict[str, object]) -> None:
    assert backbone_key(with_settings(Config(), setting)) != backbone_key(Config())


def test_what_belongs_to_the_member_does_not_part_backbones() -> None:
    member = {"model.pooling": "max", "model.unmask": "all", "lora.rank": 2, "train.lr": 1e-3}
    assert backbone_key(with_settings(Config(), member)) == backbone_key(Config())

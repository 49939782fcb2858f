"""Members and the label model: settings resolved once, and law Company and Neighbours for what a member reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch import Tensor

from labeltune.errors import LabeltuneError, RunError
from labeltune.keys import Key
from labeltune.model.backbone import Backbone, wrap
from labeltune.model.member import LabelModel, Member, build, merge
from labeltune.model.pooling import POOLINGS
from labeltune.model.settings import HeadConfig, LoraConfig, ModelConfig
from labeltune.schema import Batch

KEY = Key.of(11)


@dataclass(frozen=True)
class Row:
    """A row of data: its number, its windows (token counts), and per target its pieces (start, end, owned tokens)."""

    number: int
    windows: tuple[int, ...]
    targets: tuple[tuple[tuple[int, int, int], ...], ...]

    @property
    def ids(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.number)
        return torch.randint(3, 40, (sum(self.windows),), generator=generator)


ROWS = (
    Row(4, (5,), (((0, 5, 5),),)),
    Row(9, (6, 4), (((1, 6, 5), (7, 10, 3)),)),  # one target in two windows
    Row(2, (3,), (((0, 3, 3),),)),
    Row(7, (7,), (((1, 3, 2),), ((3, 4, 1),), ((5, 7, 2),))),  # three words
)


def pack(slices: Sequence[Sequence[Row]]) -> Batch:
    """What `data.batches.pack` would give, written out once more."""
    rows = [row for part in slices for row in part]
    offsets = [0, *accumulate(sum(row.windows) for row in rows)]
    targets = [target for row in rows for target in row.targets]
    pieces = [(a + at, b + at, w) for row, at in zip(rows, offsets, strict=False) for t in row.targets for a, b, w in t]

    def bounds(count) -> tuple[int, ...]:
        return (0, *accumulate(sum(count(row) for row in part) for part in slices))

    return Batch(
        input_ids=torch.cat([row.ids for row in rows]),
        position_ids=torch.cat([torch.arange(n) for row in rows for n in row.windows]),
        token_row=torch.cat([torch.full((sum(row.windows),), row.number) for row in rows]),
        token_index=torch.cat([torch.arange(sum(row.windows)) for row in rows]),
        cu_seqlens=torch.tensor([0, *accumulate(n for row in rows for n in row.windows)]),
        piece_starts=torch.tensor([a for a, _, _ in pieces]),
        piece_ends=torch.tensor([b for _, b, _ in pieces]),
        piece_target=torch.tensor([s for s, target in enumerate(targets) for _ in target]),
        piece_weights=torch.tensor([float(w) for _, _, w in pieces]),
        target_document=torch.tensor([d for d, row in enumerate(rows) for _ in row.targets]),
        slice_tokens=bounds(lambda row: sum(row.windows)),
        slice_documents=bounds(lambda row: len(row.windows)),
        slice_pieces=bounds(lambda row: sum(len(target) for target in row.targets)),
        slice_targets=bounds(lambda row: len(row.targets)),
        labels=(),
        rows=tuple(tuple(row.number for row in part) for part in slices),
    )


def member(backbone: Backbone, seed: int = 0, *, width: int = 3, **settings: object) -> Member:
    """A member with weights that matter; settings by section: `model_pooling`, `lora_rank`, `head_dropout`."""
    parts = {
        part: {name.removeprefix(f"{part}_"): value for name, value in settings.items() if name.startswith(f"{part}_")}
        for part in ("model", "lora", "head")
    }
    made = build(
        backbone,
        ModelConfig(**parts["model"]),
        LoraConfig(**{"rank": 4, **parts["lora"]}),
        HeadConfig(**parts["head"]),
        task_unmask="none",
        task_pooling="last",
        task_bias=False,
        width=width,
        key=KEY.fold(seed),
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return made


@pytest.fixture
def backbone(tiny_model) -> Backbone:
    return wrap(tiny_model("llama"))


def close(one: Sequence[Tensor] | Tensor, other: Sequence[Tensor] | Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


# What a member reads


@pytest.mark.parametrize("pool_on", ["hidden", "logits"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_logits_equal_reading_each_window_by_hand(pooling: str, pool_on: str, backbone: Backbone) -> None:
    if (pooling, pool_on) == ("attention", "logits"):
        return
    one = member(backbone, model_pooling=pooling, model_pool_on=pool_on, head_bias=True, lora_kind="none")
    (logits,) = LabelModel(backbone, [one])(pack([ROWS]))
    expected = []
    for row in ROWS:
        windows = row.ids.split(row.windows)
        hidden = torch.cat([backbone_alone(backbone, ids) for ids in windows])
        values = hidden if pool_on == "hidden" else hidden @ one.head.weight.T + one.head.bias
        for target in row.targets:
            pieces = torch.stack([one.pooling(values, torch.tensor([a]), torch.tensor([b]))[0] for a, b, _ in target])
            weights = torch.tensor([float(w) for _, _, w in target])[:, None]
            joined = pieces.amax(0) if pooling == "max" else (pieces * weights).sum(0) / weights.sum()
            expected.append(joined if pool_on == "logits" else one.head.weight @ joined + one.head.bias)
    close(logits, torch.stack(expected))


def backbone_alone(backbone: Backbone, ids: Tensor) -> Tensor:
    batch = pack([[Row(0, (len(ids),), (((0, 1, 1),),))]])
    object.__setattr__(batch, "input_ids", ids)
    model = LabelModel(backbone, [member(backbone, lora_kind="none")])
    return backbone.hidden(batch, model.layout(batch, [None]), [backbone.layers])[0]


def test_logits_are_fp32_on_a_bf16_backbone(tiny_model) -> None:
    backbone = wrap(tiny_model("llama", dtype=torch.bfloat16))
    one = member(backbone)
    (logits,) = LabelModel(backbone, [one])(pack([ROWS]), [KEY])
    assert logits.dtype == torch.float32 and {p.dtype for p in one.parameters()} == {torch.float32}


# Laws

MIXED: list[dict[str, object]] = [
    dict(lora_rank=2, lora_dropout=0.3, head_dropout=0.2, model_pooling="mean"),
    dict(lora_kind="none", model_unmask="all", model_pooling="attention", head_bias=True, width=5),
    dict(
        lora_rank=7,
        lora_kind="rslora",
        model_unmask="2:4",
        model_pool_on="logits",
        model_pooling="max",
        head_dropout=0.4,
    ),
    dict(lora_kind="dora", lora_dropout=0.0, model_depth=2, model_unmask="last:1", lora_layers="first:1"),
]
SLICES = ((ROWS[0], ROWS[1]), (ROWS[2], ROWS[0]), (ROWS[3],), (ROWS[1], ROWS[3], ROWS[2]))


def test_members_of_one_pass_equal_separate_passes(backbone: Backbone) -> None:
    members = [member(backbone, k, **settings) for k, settings in enumerate(MIXED)]
    keys = [KEY.fold(k) for k in range(4)]
    together = LabelModel(backbone, members)(pack(SLICES), keys)
    torch.cat([logits.square().flatten() for logits in together]).sum().backward()
    joint = [[p.grad.clone() for p in one.parameters()] for one in members]
    for k, one in enumerate(members):
        (alone,) = LabelModel(backbone, [one])(pack([SLICES[k]]), [keys[k]])
        close(together[k], alone)
        one.zero_grad()
        alone.square().sum().backward()
        torch.testing.assert_close([p.grad for p in one.parameters()], joint[k], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", MIXED)
def test_a_row_does_not_depend_on_its_company(settings: dict[str, object], backbone: Backbone) -> None:
    """Other rows, another order, several micro-batches: the same logits, dropout included."""
    model = LabelModel(backbone, [member(backbone, **settings)])
    (whole,) = model(pack([ROWS]), [KEY])
    per_row = dict(zip((row.number for row in ROWS), whole.split([len(row.targets) for row in ROWS]), strict=True))
    for rows in (ROWS[::-1], ROWS[1:3], ROWS[3:]):
        (part,) = model(pack([rows]), [KEY])
        close(part, torch.cat([per_row[row.number] for row in rows]))


def test_randomness_needs_a_key(backbone: Backbone) -> None:
    one = member(backbone, lora_dropout=0.5, head_dropout=0.5)
    model, batch = LabelModel(backbone, [one]), pack([ROWS])
    assert torch.equal(model(batch)[0], model(batch, [None])[0])
    assert torch.equal(model(batch, [KEY])[0], model(batch, [KEY])[0])
    assert not torch.allclose(model(batch, [KEY])[0], model(batch)[0])
    assert not torch.allclose(model(batch, [KEY])[0], model(batch, [KEY.fold(1)])[0])


def test_an_empty_slice_gives_no_logits(backbone: Backbone) -> None:
    members = [member(backbone, k, lora_dropout=0.1) for k in range(3)]
    model = LabelModel(backbone, members)
    first, middle, last = model(pack([ROWS[:2], (), ROWS[2:]]), [KEY] * 3)
    assert middle.shape == (0, 3)
    close(first, LabelModel(backbone, members[:1])(pack([ROWS[:2]]), [KEY])[0])
    close(last, LabelModel(backbone, members[2:])(pack([ROWS[2:]]), [KEY])[0])


def test_models_on_one_backbone_leave_each_other_alone(backbone: Backbone) -> None:
    one, other = member(backbone, 1), member(backbone, 2)
    model, batch = LabelModel(backbone, [one]), pack([ROWS])
    expected = model(batch)[0]
    neighbour = LabelModel(backbone, [other])
    close(model(batch)[0], expected)
    neighbour.detach()
    assert torch.equal(model(batch)[0], expected)


def test_only_members_are_trained(backbone: Backbone) -> None:
    one = member(backbone)
    LabelModel(backbone, [one])(pack([ROWS]), [KEY])[0].square().sum().backward()
    assert all(p.grad is not None for p in one.parameters())
    assert not any(p.requires_grad for p in backbone.parameters())
    assert [n for n, _ in one.named_parameters() if n.startswith("head.")] == ["head.weight"]


def test_merging_changes_no_logits_beyond_1e_5(backbone: Backbone, apart) -> None:
    one, batch = member(backbone), pack([ROWS])
    with torch.no_grad():
        before = LabelModel(backbone, [one])(batch)[0]
        after = LabelModel(backbone, [merge(backbone, one)])(batch)[0]
    assert apart(after, before) < 1e-5


# Settings, resolved once


def test_a_member_reads_its_settings_against_the_real_depth(backbone: Backbone) -> None:
    one = member(backbone, model_depth=3, model_unmask="last:1", lora_layers="first:2", lora_targets=("q_proj",))
    assert (one.depth, one.directions) == (3, (False, False, True, False))
    assert one.adapter.names == ("layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj")
    assert (one.pooling.name, one.head.bias) == ("last", None)
    beyond = member(backbone, model_depth=2).adapter.names
    assert {name.split(".")[1] for name in beyond} == {"0", "1"}


@pytest.mark.parametrize("kind", ["none", "full"])
def test_head_only_and_full_have_no_adapter(kind: str, backbone: Backbone) -> None:
    assert member(backbone, lora_kind=kind).adapter is None


def test_a_crf_is_part_of_the_head(backbone: Backbone) -> None:
    names = dict(member(backbone, width=5, head_crf=True).named_parameters())
    assert {"head.crf.start", "head.crf.end", "head.crf.follow"} < names.keys()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(lora_targets=("qproj",)), r"lora\.targets: .*qproj.*q_proj"),
        (dict(lora_layers="9:12"), r"lora\.layers: "),
        (dict(lora_layers="none"), r"lora\.layers: .*lora\.kind"),
        (dict(lora_kind="dora"), r"lora\.dropout: .*= 0"),
        (dict(model_depth=5), r"model\.depth: .*5.*4"),
        (dict(model_unmask="some"), r"model\.unmask: "),
        (dict(model_depth=2, model_unmask="last:3"), r"model\.unmask: "),
        (dict(model_pooling="attention", model_pool_on="logits"), r"model\.pool_on: .*attention.*hidden"),
    ],
)
def test_impossible_settings_are_sentences(settings: dict[str, object], sentence: str, backbone: Backbone) -> None:
    with pytest.raises(LabeltuneError, match=sentence):
        member(backbone, **settings)


def test_thresholds_without_biases_are_refused(backbone: Backbone) -> None:
    words = dict(task_unmask="none", task_pooling="last", task_bias=True, task_shared=True, width=3, key=KEY)
    assert build(backbone, ModelConfig(), LoraConfig(), HeadConfig(), **words).head.weight.shape == (1, 32)
    with pytest.raises(LabeltuneError, match=r"head\.bias"):
        build(backbone, ModelConfig(), LoraConfig(), HeadConfig(bias=False), **words)


# Save and load


@pytest.mark.parametrize("settings", MIXED)
def test_a_loaded_member_gives_the_same_logits(settings: dict[str, object], backbone: Backbone, tmp_path: Path) -> None:
    one, other, batch = member(backbone, 1, **settings), member(backbone, 2, **settings), pack([ROWS])
    one.save(tmp_path)
    other.load(tmp_path)
    assert torch.equal(LabelModel(backbone, [other])(batch)[0], LabelModel(backbone, [one])(batch)[0])


@pytest.mark.parametrize(
    "changed",
    [
        dict(lora_rank=5),
        dict(lora_alpha=9.0),
        dict(lora_targets=("q_proj",)),
        dict(width=4),
        dict(head_bias=True),
        dict(model_pooling="attention"),
        dict(lora_kind="rslora"),
    ],
)
def test_weights_of_other_settings_are_refused(changed: dict[str, object], backbone: Backbone, tmp_path: Path) -> None:
    member(backbone).save(tmp_path)
    with pytest.raises(RunError, match=r"adapter|head\.safetensors"):
        member(backbone, **changed).load(tmp_path)


def test_an_adapter_of_another_width_is_refused(backbone: Backbone, tiny_model, tmp_path: Path) -> None:
    member(wrap(tiny_model("llama", hidden_size=16))).save(tmp_path)
    with pytest.raises(RunError, match="does not fit"):
        member(backbone).load(tmp_path)

"""Who sees whom: packed documents against transformers' own eager attention on each document alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labeltune.model import attention
from labeltune.model.attention import Rule
from labeltune.model.backbone import wrap
from labeltune.model.layout import plain_layout
from labeltune.model.runs import Run, runs_of

WINDOWED = ["cohere2", "gemma2", "gemma3_text", "gpt_oss", "ministral", "mistral", "mixtral", "olmo3", "phi3"]
WINDOWED += ["qwen2", "qwen3", "starcoder2"]
DESIGNED = [*WINDOWED, "gemma", "gpt2", "gpt_neox", "llama", "olmo2", "opt", "phi", "smollm3", "stablelm"]
POLICIES = {"causal": (False,) * 4, "all": (True,) * 4, "half": (False, False, True, True)}
LENGTHS = (5, 9, 5, 5, 1, 7)  # a run of equal ones, a single token, and longer than the windows of 3


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("name", DESIGNED)
def test_packed_documents_equal_documents_alone_in_values_and_gradients(
    name, policy, tiny_model, documents, alone, apart
):
    docs, stock = documents(LENGTHS), tiny_model(name).eval()
    backbone = wrap(tiny_model(name))
    assert backbone.packed
    ours = [module.weight.requires_grad_() for module in backbone.linear_modules().values()]
    theirs = [stock.get_submodule(name).weight for name in backbone.linear_modules()]
    got = backbone.hidden(docs.batch(), docs.layout([policy]), [4])[0]
    want = alone(stock, docs, policy)
    assert apart(got, want) <= 1e-5
    direction = torch.randn(want.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((got * direction).sum(), ours)
    for mine, its in zip(gradients, torch.autograd.grad((want * direction).sum(), theirs), strict=True):
        assert apart(mine, its) <= 1e-4


@pytest.mark.parametrize("name", WINDOWED)
def test_an_unmasked_window_is_the_one_of_an_exported_model(name, tiny_model, documents, alone, apart):
    docs, stock = documents((9, 5)), tiny_model(name).eval()
    stock.config.is_causal = False  # what an exported model says; transformers then builds two-way window masks
    got = wrap(tiny_model(name)).hidden(docs.batch(), docs.layout([(True,) * 4]), [4])[0]
    assert apart(got, alone(stock, docs, (False,) * 4)) <= 1e-5


@pytest.mark.parametrize("name", WINDOWED)
def test_the_windows_under_test_hide_something(name, tiny_model, documents, apart):
    docs = documents((9,))
    narrow, wide = (wrap(tiny_model(name, sliding_window=width)) for width in (3, 20))
    for policy in (POLICIES["causal"], POLICIES["all"]):
        outputs = [b.hidden(docs.batch(), docs.layout([policy]), [4])[0] for b in (narrow, wide)]
        assert apart(*outputs) > 1e-3


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "stablelm"])
def test_mixed_slices_equal_separate_passes(name, tiny_model, documents, apart):
    backbone = wrap(tiny_model(name))
    docs = documents((4, 7, 7, 2, 6), slices=(0, 2, 4, 5))
    policies, depths = list(POLICIES.values()), [4, 2, 3]
    mixed = backbone.hidden(docs.batch(), docs.layout(policies), depths)
    for k, (start, end) in enumerate(((0, 2), (2, 4), (4, 5))):
        one = documents(docs.lengths[start:end])
        one.ids = docs.ids[start:end]
        alone = backbone.hidden(one.batch(), one.layout([policies[k]]), [depths[k]])[0]
        assert mixed[k].shape == alone.shape
        assert apart(mixed[k], alone) <= 1e-5


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=8), data=st.data())
def test_a_document_does_not_feel_its_neighbours_or_its_place(lengths, data, llama, documents, apart):
    policy = tuple(data.draw(st.booleans()) for _ in range(4))
    docs, place = documents(lengths), data.draw(st.integers(0, len(lengths) - 1))
    with torch.no_grad():
        together = llama.hidden(docs.batch(), docs.layout([policy]), [4])[0].split(lengths)[place]
        one = documents(lengths[place : place + 1])
        one.ids = [docs.ids[place]]
        assert apart(together, llama.hidden(one.batch(), one.layout([policy]), [4])[0]) <= 1e-5


@pytest.fixture(scope="module")
def llama(tiny_model):
    return wrap(tiny_model("llama"))


# Traps of the stock paths


def test_a_config_that_says_not_causal_changes_nothing(tiny_model, documents, apart):
    docs = documents(LENGTHS)
    plain, exported = wrap(tiny_model("llama")), wrap(tiny_model("llama", is_causal=False))
    exported.config.is_causal = False
    outputs = [b.hidden(docs.batch(), docs.layout([POLICIES["half"]]), [4])[0] for b in (plain, exported)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt_neox", "stablelm", "phi"])
def test_a_body_in_training_mode_draws_nothing(name, tiny_model, documents):
    changes = dict(attn_pdrop=0.1, resid_pdrop=0.1) if name == "gpt2" else dict(attention_dropout=0.1)
    changes |= dict(dropout=0.1, layerdrop=0.5) if name == "opt" else dict(hidden_dropout=0.1)
    docs, backbone = documents(LENGTHS), wrap(tiny_model(name, **changes))
    assert backbone.model.training
    first, second = (backbone.hidden(docs.batch(), docs.layout([POLICIES["all"]]), [4])[0] for _ in range(2))
    assert torch.equal(first, second)


def test_the_function_refuses_what_it_does_not_know(tiny_model):
    backbone = wrap(tiny_model("llama"))
    module, layout = backbone.blocks[0].self_attn, plain_layout((3,), (False,), torch.device("cpu"))
    q = torch.zeros(1, 2, 3, 4)
    with pytest.raises(RuntimeError, match=r"dropout is 0\.1"):
        attention.attend(module, q, q, q, None, dropout=0.1, labeltune_layout=layout)
    with pytest.raises(RuntimeError, match="without mask"):
        attention.attend(module, q, q, q, torch.zeros(1, 1, 3, 3), labeltune_layout=layout)
    with pytest.raises(attention.LayoutMissing, match="through Backbone"):
        backbone.model(input_ids=torch.ones(1, 3, dtype=torch.long))


def test_autocast_reaches_the_kernels(tiny_model):
    backbone = wrap(tiny_model("llama"))
    module, layout = backbone.blocks[0].self_attn, plain_layout((3,), (False,), torch.device("cpu"))
    q = torch.randn(1, 2, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = attention.attend(module, q, q, q.bfloat16(), None, labeltune_layout=layout)
    assert out.dtype == torch.bfloat16


# Runs


@given(lengths=st.lists(st.integers(1, 3), min_size=1, max_size=9), data=st.data())
def test_runs_unfold_to_the_documents_they_fold(lengths, data):
    cut = data.draw(st.integers(0, len(lengths)))
    both = (data.draw(st.booleans()), data.draw(st.booleans()))
    runs = runs_of(tuple(lengths), (0, cut, len(lengths)), both)
    unfolded = [(run.length, run.both) for run in runs for _ in range(run.documents)]
    assert unfolded == [(n, both[d >= cut]) for d, n in enumerate(lengths)]
    assert all(
        a != b for a, b in zip(*(iter((r.length, r.both) for r in part) for part in (runs, runs[1:])), strict=False)
    )


# The CUDA kernel's calling convention, with a kernel written out here in its place


def _naive(q, k, v, bounds, scale, left, right):
    groups, out = q.shape[1] // k.shape[1], []
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        place = torch.arange(end - start)
        distance = place[:, None] - place[None]
        hidden = ((distance > left) if left >= 0 else distance > 1e9) | ((-distance > right) if right >= 0 else False)
        scores = torch.einsum("nhc,mhc->hnm", q[start:end], k[start:end].repeat_interleave(groups, 1)) * scale
        weights = scores.masked_fill(hidden, -1e9).softmax(-1)
        out.append(torch.einsum("hnm,mhc->nhc", weights, v[start:end].repeat_interleave(groups, 1)))
    return torch.cat(out)


def _new(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert cu_seq_q.dtype == torch.int32
    assert max_q == max_k == cu_seq_q.diff().max()
    return _naive(query, key, value, cu_seq_q, scale, *window_size)


def _old(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    assert query.shape == key.shape
    return _naive(query, key, value, cu_seq_q, query.shape[-1] ** -0.5, -1, 0 if is_causal else -1)


WITHOUT_WINDOWS = [(_old, "llama"), (_old, "granite")]  # all that the older kernel is asked for


@pytest.mark.parametrize(
    ("kernel", "name"), [*WITHOUT_WINDOWS, *((_new, name) for name in ("llama", "granite", "mistral", "modernbert"))]
)
def test_the_varlen_kernel_is_told_what_the_runs_are_told(kernel, name, tiny_model, documents, apart, monkeypatch):
    backbone = wrap(tiny_model(name))
    docs = documents((5, 9, 2, 6), slices=(0, 1, 3, 4))
    policies = [POLICIES["causal"], POLICIES["half"], POLICIES["all"]]
    if backbone.family.encoder:
        policies = [POLICIES["all"]] * 3
    want = backbone.hidden(docs.batch(), docs.layout(policies), [4] * 3)
    monkeypatch.setattr(attention, "_kernel", kernel)
    monkeypatch.setattr(attention, "_VARLEN", frozenset(attention.inspect.signature(kernel).parameters))
    monkeypatch.setattr(attention, "_flash_can", lambda *_: True)
    got = backbone.hidden(docs.batch(), docs.layout(policies), [4] * 3)
    assert apart(torch.cat(got), torch.cat(want)) <= 1e-5


def test_a_direction_without_documents_is_not_asked_for(tiny_model, documents, apart, monkeypatch):
    backbone = wrap(tiny_model("llama"))
    docs = documents((5, 9, 2), slices=(0, 3, 3))
    policies = [POLICIES["all"], POLICIES["causal"]]
    want = backbone.hidden(docs.batch(), docs.layout(policies), [4] * 2)
    monkeypatch.setattr(attention, "_kernel", _new)
    monkeypatch.setattr(attention, "_VARLEN", frozenset(attention.inspect.signature(_new).parameters))
    monkeypatch.setattr(attention, "_flash_can", lambda *_: True)
    got = backbone.hidden(docs.batch(), docs.layout(policies), [4] * 2)
    assert apart(got[0], want[0]) <= 1e-5


def test_the_kernel_of_this_torch_takes_the_words_it_is_given():
    q = torch.zeros(4, 2, 8)
    bounds = torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises((NotImplementedError, RuntimeError)) as error:  # no CPU kernel, but the words are understood
        attention._varlen(q, q, q, Rule(1.0, 2, 2), bounds, 4, False)
    assert not isinstance(error.value, TypeError)


def test_a_window_that_holds_the_document_needs_no_mask():
    rule, cpu = Rule(1.0, window=3, reach=3), torch.device("cpu")
    assert attention._window_mask(Run(1, 3, False), rule, cpu) is None
    assert attention._window_mask(Run(1, 4, True), rule, cpu) is None
    assert attention._window_mask(Run(1, 4, False), rule, cpu).sum() == 9
    assert attention._window_mask(Run(1, 5, True), rule, cpu).sum() == 23


def test_short_documents_in_16_bits_have_the_gradients_of_fp32_but_for_one_rounding(apart):
    module, layout = torch.nn.Module(), plain_layout((7, 7, 4), (False,), torch.device("cpu"))
    module.layer_idx = 0
    rough = [torch.randn(1, 2, 18, 8, generator=torch.Generator().manual_seed(n)).bfloat16() for n in range(3)]
    exact = [t.float().requires_grad_() for t in rough]
    rough = [t.requires_grad_() for t in rough]
    a, b = (attention.attend(module, *qkv, None, labeltune_layout=layout)[0] for qkv in (rough, exact))
    assert a.dtype == torch.bfloat16 and apart(a, b) <= 2**-8
    for one, other in zip(torch.autograd.grad(a.sum(), rough), torch.autograd.grad(b.sum(), exact), strict=True):
        assert apart(one, other) <= 2**-8

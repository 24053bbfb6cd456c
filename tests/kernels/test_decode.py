"""Norms and attention of a decoded token: right in float64, used where models agree, left to torch elsewhere."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from autoprune.kernels import decode, native
from autoprune.kernels.decode import Norm, run_attention, run_norms
from autoprune.kernels.selector import Selector
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from autoprune.cache import Cache
from autoprune.models import adapter_for
from autoprune.space import Plan
from tests import tiny

NEAR = {torch.bfloat16: 1.5e-2, torch.float32: 1e-5}
DTYPES = [torch.bfloat16, torch.float32]
HEADS = [(1, 4, 2, 17, 64), (2, 3, 3, 5, 20), (1, 8, 1, 130, 128), (1, 2, 1, 9, 300), (3, 1, 1, 1, 16)]


@pytest.fixture(scope="module")
def kernels() -> Any:
    """The operators; skipped where they cannot be compiled."""
    if native.missing():
        pytest.skip(native.missing())
    return torch.ops.autoprune


@pytest.fixture
def selector(tmp_path: Path) -> Selector:
    """Believes every kernel to be twice as fast."""
    return Selector(cache=Cache(tmp_path), measure=lambda *_: 2.0)


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_of_one_query(kernels: Any, level: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(level)
    for batch, heads, groups, keys, size in HEADS:
        query = torch.randn(batch, heads, 1, size, generator=draw).to(dtype)
        cached = (torch.randn(batch, groups, keys + more, size, generator=draw).to(dtype) for more in (3, 5))
        key, value = (tensor[:, :, :keys] for tensor in cached)
        wanted = functional.scaled_dot_product_attention(
            query.double(), key.double(), value.double(), scale=0.2, enable_gqa=True
        )
        out = kernels.attend_one(query, key, value, 0.2, level)
        assert out.shape == (batch, 1, heads, size) and out.dtype is dtype
        assert float((out.double() - wanted.transpose(1, 2)).abs().max()) < NEAR[dtype], (heads, size)


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms(kernels: Any, level: int, dtype: torch.dtype) -> None:
    for size in (1, 64, 100, 1000):
        stock = LlamaRMSNorm(size, eps=1e-5).to(dtype)
        stock.weight.data = torch.randn(size).to(dtype)
        x = torch.randn(2, 3, 2 * size).to(dtype)[..., ::2]
        out = kernels.rms_norm(x, stock.weight, 1e-5, level)
        exact = (
            x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt() * stock.weight.double()
        )
        assert out.shape == x.shape and torch.allclose(out.double(), exact, rtol=2 * NEAR[dtype], atol=1e-6)
        assert torch.allclose(out, stock(x), rtol=NEAR[dtype], atol=1e-6)


def test_wrong_inputs_are_refused(kernels: Any) -> None:
    query, keys = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 5, 8)
    for wrong in (
        (query, keys[..., :4], keys[..., :4]),
        (query, keys, keys.bfloat16()),
        (query[:, :3], keys, keys),
        (torch.randn(1, 4, 2, 8), keys, keys),
        (query, keys[:, :, :0], keys[:, :, :0]),
        (query, keys.transpose(2, 3).contiguous().transpose(2, 3), keys),
    ):
        with pytest.raises(RuntimeError):
            kernels.attend_one(*wrong, 1.0)
    with pytest.raises(RuntimeError, match="x has 8 columns, the matrix 4"):
        kernels.rms_norm(query, torch.ones(4), 1e-5)


def test_operators_keep_torch_s_rules(kernels: Any) -> None:
    query, keys = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 5, 8)
    torch.library.opcheck(kernels.attend_one, (query, keys, keys, 0.3))
    torch.library.opcheck(kernels.rms_norm, (query, torch.ones(8), 1e-5))


def logits(model: Any, steps: int = 3) -> Tensor:
    """Of a prompt, and of tokens decoded after it."""
    ids = torch.arange(9 + steps)[None] % 50
    found = []
    with torch.inference_mode():
        out = model(ids[:, :9], use_cache=True)
        found.append(out.logits)
        for step in range(steps):
            out = model(ids[:, 9 + step : 10 + step], past_key_values=out.past_key_values, use_cache=True)
            found.append(out.logits)
    return torch.cat(found, 1)


def test_a_model_decodes_the_same_on_them(
    kernels: Any, selector: Selector, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = tiny.llama(blocks=2).eval(), []
    ours = copy.deepcopy(model)
    norms, of = run_norms(ours, selector)
    assert norms == of == 5 and run_attention(ours, selector)
    real = decode.takes
    monkeypatch.setattr(decode, "takes", lambda *args: asked.append(real(*args)) or asked[-1])
    wanted, found = logits(model), logits(ours)
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))
    assert asked.count(True) == 6, "two blocks, three decoded tokens"
    assert ours.state_dict().keys() == model.state_dict().keys()
    assert "attn_implementation" not in ours.config.to_dict()
    again = copy.deepcopy(ours)
    assert torch.equal(logits(again), found)


def test_blocks_of_different_sizes_run_on_them_too(kernels: Any, selector: Selector) -> None:
    adapter: Any = adapter_for(tiny.llama(blocks=2))

    def kept(block: int, sublayer: Any) -> Any:
        count = int(sublayer.get(adapter.unit_setting(sublayer.kind)))
        return adapter.units(sublayer.kind).prefix(adapter.weights(block, sublayer.kind), count)

    model = adapter.install(Plan.of([(1, tiny.FFN), (2, 16)]), kept, torch.float32)
    ours = copy.deepcopy(model)
    assert run_norms(ours, selector) == (5, 5) and run_attention(ours, selector)
    wanted, found = logits(model), logits(ours)
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))


def test_a_padded_prompt_and_beams_go_on_as_before(kernels: Any, selector: Selector) -> None:
    model = tiny.llama(blocks=2).eval()
    ours = copy.deepcopy(model)
    run_norms(ours, selector)
    run_attention(ours, selector)
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    given = {
        "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]),
        "max_new_tokens": 5,
        "pad_token_id": 0,
    }
    for beams in (1, 2):
        wanted = model.generate(ids, num_beams=beams, do_sample=False, **given)
        assert torch.equal(ours.generate(ids, num_beams=beams, do_sample=False, **given), wanted)


def test_gradients_go_through_torch(kernels: Any, selector: Selector) -> None:
    model = tiny.llama(blocks=1).eval().requires_grad_(True)
    ours = copy.deepcopy(model)
    run_norms(ours, selector)
    run_attention(ours, selector)
    grads = []
    for each in (model, ours):
        each(torch.arange(1)[None]).logits.square().sum().backward()
        grads.append([p.grad for p in each.parameters()])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads, strict=True))


def test_a_norm_that_means_something_else_is_left(kernels: Any, selector: Selector) -> None:
    class OffRMSNorm(LlamaRMSNorm):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0.1  # type: ignore[no-any-return]

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.good, self.other = LlamaRMSNorm(32), OffRMSNorm(32)
            self.gemma, self.double = GemmaRMSNorm(32), LlamaRMSNorm(32).double()

    holder = Holder()
    run_norms(holder, selector)
    assert type(holder.good) is Norm and not any(
        isinstance(m, Norm) for m in (holder.other, holder.gemma, holder.double)
    )


def test_what_gains_too_little_is_left(kernels: Any, tmp_path: Path) -> None:
    model = tiny.llama(blocks=1).eval()
    slow = Selector(cache=Cache(tmp_path), measure=lambda *_: 1.0)
    assert run_norms(model, slow) == (0, 3) and not run_attention(model, slow)
    assert model.config._attn_implementation == "sdpa"


def test_eager_attention_is_left(kernels: Any, selector: Selector) -> None:
    model = tiny.llama(blocks=1).eval()
    model.set_attn_implementation("eager")
    assert not run_attention(model, selector) and model.config._attn_implementation == "eager"


def test_without_kernels_nothing_changes(selector: Selector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "missing", lambda: "none here")
    model = tiny.llama(blocks=1).eval()
    assert run_norms(model, selector) == (0, 3) and not run_attention(model, selector)

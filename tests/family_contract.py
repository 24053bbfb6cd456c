"""What every family's adapter must pass. Subclass it with a `case` fixture that gives Cases."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from autoprune.cache import Cache
from autoprune.hardware.workload import Workload, decode, prefill
from autoprune.pruning.build import ladder_folder
from autoprune.pruning.ladders import StoredLadders
from autoprune.pruning.recipe import LADDERS, LadderRecipe
from autoprune.shape import AnalyticCosts
from autoprune.space import KINDS, Kind, Plan, plan_cost
from autoprune.supernet import Supernet
from evaluators.gradients import gradients
from tests.family_case import Case, cached, difference, held_bytes, inputs, logits

TOKENS = 14  # more than the window of those variants that have one


class StreamContract:
    """Block stream, slicing, costs and gone sublayers of one family."""

    @pytest.fixture
    def ids(self, case: Case) -> Tensor:
        """Token ids, the first of two sentences padded; or pixels."""
        generator, shape = torch.Generator().manual_seed(3), case.adapter.shape
        if shape.task == "images":
            config = case.model.config
            return torch.randn(
                2, config.num_channels, config.image_size, config.image_size, generator=generator
            )
        ids = torch.randint(2, shape.vocabulary, (2, TOKENS), generator=generator)
        if shape.task == "sentences":
            ids[0, 9:] = -1
        return ids

    def test_the_stream_equals_the_stock_model(self, case: Case, ids: Tensor) -> None:
        exact = type(case.adapter)(case.model, exact=True)
        wanted = logits(case.model, ids)
        assert (case.stream(ids, adapter=exact) - wanted).abs().max() <= 1e-5
        assert difference(case.stream(ids), wanted) <= 1e-5

    def test_a_window_is_honoured(self, case: Case, ids: Tensor) -> None:
        """Where there is one within these tokens, a stream without it is another."""
        window = case.adapter.shape.windows[-1]
        if window is None or window >= TOKENS:
            return
        wider = copy.copy(case.adapter)
        wider.shape = replace(case.adapter.shape, windows=(None,) * 3)
        assert (case.stream(ids, adapter=wider) - logits(case.model, ids)).abs().max() > 1e-4

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_sublayer_never_writes_into_its_input(self, case: Case, ids: Tensor, kind: Kind) -> None:
        with torch.inference_mode():
            state = case.adapter.embed(ids)
            before = state.hidden.clone()
            after = case.adapter.run_sublayer(1, kind, state, case.adapter.weights(1, kind))
        assert torch.equal(state.hidden, before) and not torch.equal(after.hidden, before)

    def test_plans_equal_the_dense_model_with_lost_units_zeroed(self, case: Case, ids: Tensor) -> None:
        dense = logits(case.model, ids)
        for name, plan in case.plans().items():
            wanted = logits(case.zeroed(plan), ids)
            assert difference(case.stream(ids, plan), wanted) <= 1e-5, name
            assert difference(logits(case.install(plan), ids), wanted) <= 1e-5, name
            assert name == "full" or (wanted - dense).abs().max() > 1e-3, (
                f"{name} does nothing: the test is blind"
            )

    @pytest.mark.parametrize("kind", KINDS)
    def test_dropping_a_unit_equals_zeroing_it(self, case: Case, ids: Tensor, kind: Kind) -> None:
        groups, width = case.full
        less = (groups - 1, width) if kind == "attention" else (groups, width - case.family.step)
        plan = Plan.of([less, case.full, case.full])
        wanted = logits(case.zeroed(plan), ids)
        assert difference(case.stream(ids, plan), wanted) <= 1e-5
        assert (wanted - logits(case.model, ids)).abs().max() > 1e-5, (
            "the unit did nothing: the test is blind"
        )

    def test_the_full_plan_is_the_identity(self, case: Case, ids: Tensor) -> None:
        full = case.plans()["full"]
        stock, mixed = case.install(full), case.install_mixed(full)
        for small in (stock, mixed):
            torch.testing.assert_close(logits(small, ids), logits(case.model, ids), atol=1e-6, rtol=0)
        tensors = dict(case.model.named_parameters())
        assert (
            dict(stock.named_parameters()).keys() == tensors.keys() == dict(mixed.named_parameters()).keys()
        )
        assert all(torch.equal(p, tensors[n]) for n, p in stock.named_parameters())
        shared = {p.data_ptr() for p in tensors.values()}
        assert not shared & {p.data_ptr() for p in (*stock.parameters(), *mixed.parameters())}

    def test_equal_blocks_make_the_stock_class(self, case: Case) -> None:
        for name, plan in case.plans().items():
            small = case.install(plan)
            stock = type(small) is type(case.model)
            assert stock == (name in ("full", "narrow")), name
            wanted = case.model.config.model_type
            assert small.config.model_type == (wanted if stock else f"autoprune_{wanted}")

    def test_costs_are_those_of_the_model_that_is_built(self, case: Case, ids: Tensor) -> None:
        costs = AnalyticCosts(case.adapter.shape, case.adapter.shape.tokens or TOKENS)
        for name, plan in case.plans().items():
            small, cost = case.install(plan), plan_cost(plan, costs)
            parameters = sum(p.numel() for p in small.parameters())
            inside = sum(p.numel() for p in small.get_submodule(case.family.blocks).parameters())
            assert (cost["params_total"], cost["params"]) == (parameters, inside), name
            assert cost["bytes"] == 4 * parameters
            small.set_attn_implementation("eager")
            if case.adapter.shape.experts:  # the counter does not know grouped products
                small.set_experts_implementation("eager")
            with FlopCounterMode(display=False) as counter:
                logits(small, ids[:1])
            small.set_attn_implementation("sdpa")
            if case.adapter.shape.experts:
                small.set_experts_implementation("grouped_mm")
            assert cost["flops"] == counter.get_total_flops(), name
            assert ("kv_bytes" in cost) == (case.adapter.shape.task == "text")
            if "kv_bytes" in cost and any(g for g, _ in plan.widths()):
                assert cost["kv_bytes"] == held_bytes(small, ids[:1]), name

    def test_a_gone_sublayer_leaves_no_parameter(self, case: Case) -> None:
        for plan in case.plans().values():
            blocks = case.install(plan).get_submodule(case.family.blocks)
            for layer, (groups, width) in zip(blocks, plan.widths(), strict=True):
                assert bool(list(layer.parameters())) == bool(groups or width)

    def test_it_can_be_trained_further(self, case: Case, ids: Tensor) -> None:
        small = copy.deepcopy(case.install(case.plans()["gone"])).train()
        labels = ids if case.adapter.shape.task == "text" else torch.tensor([1, 4])
        loss = torch.nn.functional.cross_entropy
        found = small(**inputs(small, ids)).logits
        loss(found.flatten(0, -2), labels.flatten()).backward()
        unused = [n for n, p in small.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert not [n for n in unused if not n.endswith("k_proj.bias")]  # which moves all scores alike

    def test_attention_weights_give_what_a_pass_gives(self, case: Case, ids: Tensor) -> None:
        with torch.inference_mode():
            state, weights = case.adapter.embed(ids), case.adapter.weights(0, "attention")
            seen = case.adapter.attention(0, state, weights)
            inner = case.adapter.inner(0, "attention", state, weights)
            normed = state.hidden
            if not case.adapter.layout.post_norm:
                normed = case.adapter.norm(
                    state.hidden, weights["norm"], weights.get("norm_bias"), case.adapter._eps
                )
            values = case.adapter._heads("v", normed, state, weights)
        values = values.repeat_interleave(seen.shape[1] // values.shape[1], dim=1)
        assert difference((seen @ values).transpose(1, 2).reshape(inner.shape), inner) <= 1e-5

    def test_buffers_keep_their_precision_in_bfloat16(self, case: Case) -> None:
        for name in ("full", "gone"):
            small = case.adapter.install(case.plans()[name], case.kept, torch.bfloat16)
            assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
            buffers = dict(case.model.named_buffers())
            assert dict(small.named_buffers()).keys() == buffers.keys()
            assert all(torch.equal(b, buffers[n]) for n, b in small.named_buffers())

    @pytest.mark.parametrize("ladder", LADDERS)
    def test_ladders_hold_every_option(self, case: Case, ids: Tensor, tmp_path: Path, ladder: str) -> None:
        (groups, width), step = case.full, case.family.step
        options = {"kv_groups": tuple(range(groups + 1)), "width": (0, step, 5 * step, width)}
        windows = ids.numpy() if ids.is_floating_point() else ids.numpy().astype(np.int32)
        recipe = LadderRecipe(windows, 2, ladder=ladder, options=options)
        folder = ladder_folder(case.adapter, "digest", recipe, Cache(tmp_path))
        ladders = StoredLadders(case.adapter, folder)
        dense = logits(case.model, ids)
        for name in ("full", "mixed"):
            plan = case.plans()[name]
            small = case.adapter.install(plan, ladders.weights, torch.float32)
            with torch.inference_mode():
                state = case.adapter.embed(ids)
                for at, sublayer in enumerate(plan.sublayers):
                    weights = ladders.weights(at // 2, sublayer)
                    state = case.adapter.run_sublayer(at // 2, sublayer.kind, state, weights)
                found = case.adapter.head(state)
            assert difference(found, logits(small, ids)) <= 1e-5, name
            assert (difference(found, dense) <= 1e-5) == (name == "full"), name


class FamilyContract(StreamContract):
    """What holds of decoders besides."""

    def test_cached_logits_equal_full_logits(self, case: Case, ids: Tensor) -> None:
        for name, plan in case.plans().items():
            small = case.install_mixed(plan)
            caches = [None, DynamicCache(config=small.config), DynamicCache()]
            for cache in caches if name == "block_0_gone" else caches[:1]:
                assert difference(cached(small, ids, cache), logits(small, ids)) <= 1e-5, name

    def test_generate_is_greedy_decoding(self, case: Case, ids: Tensor) -> None:
        settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        for name in ("gone", "block_0_gone", "nothing"):
            small, wanted = case.install(case.plans()[name]), ids
            for _ in range(4):
                wanted = torch.cat([wanted, logits(small, wanted)[:, -1:].argmax(-1)], 1)
            assert torch.equal(small.generate(ids, **settings), wanted), name
            assert torch.equal(small.generate(ids, use_cache=False, **settings), wanted), name

    def test_left_padding_is_ignored_as_the_stock_model_does(self, case: Case, ids: Tensor) -> None:
        small, mask = case.install(case.plans()["gone"]), torch.ones_like(ids)
        mask[0, :3] = 0
        positions = (mask.cumsum(1) - 1).clamp(0)
        with torch.inference_mode():
            padded = small(input_ids=ids, attention_mask=mask, position_ids=positions).logits
            same = [
                model(input_ids=ids, attention_mask=mask).logits[:, 3:]
                for model in (case.model, case.install_mixed(case.plans()["full"]))
            ]
        assert difference(padded[0, 3:], logits(small, ids[:1, 3:])[0]) <= 1e-5
        assert difference(same[1], same[0]) <= 1e-5, (
            "positions of padded tokens differ from the stock model's"
        )

    def test_the_stream_has_the_gradients_of_the_built_model(self, case: Case, ids: Tensor) -> None:
        plan = case.plans()["gone"]
        small = copy.deepcopy(case.install(plan)).requires_grad_(True)
        small(input_ids=ids, labels=ids).loss.backward()
        inside = small.get_submodule(case.family.blocks).parameters()
        wanted = sum(float(p.grad.square().sum()) for p in inside if p.grad is not None)
        ladders: Any = SimpleNamespace(weights=case.kept)
        found = gradients(Supernet(case.adapter, ladders), plan, ids)
        assert sum(float(g.square().sum()) for _, g in found) == pytest.approx(wanted, rel=1e-3)

    def test_it_can_be_timed(self, case: Case) -> None:
        work = Workload(prefill_tokens=8, context=8, decode_steps=2, rounds=5)
        for name in ("full", "gone", "no_attention"):
            small = case.install(case.plans()[name])
            for call in (prefill(small, work), decode(small, work)):
                call()
                call()

"""The core's claims."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from djepa_mm.core.djepa import DJEPA, within_horizon
from djepa_mm.core.masking import MaskRatio, draw_mask
from djepa_mm.core.types import Condition, TokenBatch

Build = Callable[..., DJEPA]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def alone(batch: TokenBatch, n: int) -> TokenBatch:
    """Sample n without its padding."""
    count, length = int(batch.valid[n].sum()), int(batch.condition.valid[n].sum())
    c = batch.condition
    return TokenBatch(
        tokens=batch.tokens[n : n + 1, :count],
        positions=batch.positions[n : n + 1, :count],
        valid=batch.valid[n : n + 1, :count],
        condition=Condition(
            values=c.values[n : n + 1, :length],
            valid=c.valid[n : n + 1, :length],
            positions=c.positions[n : n + 1, :length],
        ),
    )


def test_masked_tokens_send_no_gradient_into_the_context(picture_model: Build, picture_batch: TokenBatch) -> None:
    model = picture_model()
    tokens = picture_batch.tokens.clone().requires_grad_()
    masked = torch.rand(picture_batch.valid.shape, generator=rng()) < 0.6
    context = model.online.encode(
        tokens, picture_batch.positions, ~masked, picture_batch.condition, torch.zeros(4, dtype=torch.bool)
    )
    z = model.online.predictor(context, picture_batch.positions, picture_batch.valid)
    (context.features.square().sum() + z.square().sum()).backward()
    assert tokens.grad is not None
    assert tokens.grad[masked].abs().max() == 0
    assert tokens.grad[~masked].abs().min() > 0


def test_no_gradient_reaches_the_target_encoder(picture_model: Build, picture_batch: TokenBatch) -> None:
    model = picture_model()
    model(picture_batch, rng()).total.backward()
    assert all(p.grad is None for p in model.averaged.parameters())
    assert all(p.grad is not None for name, p in model.online.named_parameters() if "classes" not in name)


def test_both_losses_reach_predictor_and_encoder(picture_model: Build, picture_batch: TokenBatch) -> None:
    for part in ("generation", "prediction"):
        model = picture_model(mask_ratio=MaskRatio(low=0.4, high=0.5))
        getattr(model(picture_batch, rng()), part).backward()
        for stack in (model.online.encoder, model.online.predictor):
            assert all(
                p.grad is not None and p.grad.abs().sum() > 0 for p in stack.stack.transformer.blocks.parameters()
            )


def test_target_encoder_equals_the_closed_form_of_its_average(picture_model: Build) -> None:
    model, decay, steps = picture_model(), 0.9, 5
    model.averaged.load_state_dict(model.online.state_dict())
    history = [model.online.encoder.input.weight.detach().clone()]
    for _ in range(steps):
        with torch.no_grad():
            model.online.encoder.input.weight.add_(torch.randn(model.online.encoder.input.weight.shape))
        history.append(model.online.encoder.input.weight.detach().clone())
        model.update_average(decay)
    expected = decay**steps * history[0]
    expected += sum((1 - decay) * decay ** (steps - n) * history[n] for n in range(1, steps + 1))
    torch.testing.assert_close(model.averaged.encoder.input.weight, expected)


def test_prediction_loss_is_smooth_l1_to_the_target_features(picture_model: Build, picture_batch: TokenBatch) -> None:
    """With everything masked and nothing dropped, the loss can be rebuilt from the parts."""
    model = picture_model(mask_ratio=MaskRatio(mean=1.0, std=0.01, low=0.999, high=1.0), condition_drop=0.0)
    kept = torch.zeros(4, dtype=torch.bool)
    b = picture_batch
    context = model.online.encode(b.tokens, b.positions, torch.zeros_like(b.valid), b.condition, kept)
    guess = model.online.projector(model.online.predictor(context, b.positions, b.valid))
    difference = (guess - model.target_features(b, kept)).abs()
    expected = torch.where(difference < 2, difference.square() / 4, difference - 1).mean()
    torch.testing.assert_close(model(b, rng()).prediction, expected)


def test_prediction_weight_zero_leaves_only_the_head(picture_model: Build, picture_batch: TokenBatch) -> None:
    losses = picture_model(prediction_weight=0.0)(picture_batch, rng())
    assert losses.prediction == 0
    assert losses.total == losses.generation


def test_everything_masked_works(
    picture_model: Build, text_model: Build, picture_batch: TokenBatch, text_batch: TokenBatch
) -> None:
    """Ratio 1.0: nothing is visible but the condition."""
    for model, batch in ((picture_model(), picture_batch), (text_model(), text_batch)):
        model.mask_ratio = MaskRatio(mean=1.0, std=1e-6, low=1.0 - 1e-6, high=1.0)
        losses = model(batch, rng())
        losses.total.backward()
        assert losses.total.isfinite()
        z = model.features(batch.tokens, batch.positions, torch.zeros_like(batch.valid), batch.valid, batch.condition)
        assert z[batch.valid].isfinite().all()


def test_a_padded_batch_equals_its_samples_alone(text_model: Build, text_batch: TokenBatch) -> None:
    model = text_model().eval()
    known = (torch.rand(text_batch.valid.shape, generator=rng()) < 0.4) & text_batch.valid
    dropped = torch.tensor([False, True, False])
    b = text_batch
    z = model.features(b.tokens, b.positions, known, b.valid, b.condition)
    g = model.target_features(b, dropped)
    for n in range(3):
        one = alone(b, n)
        count = one.valid.shape[1]
        z_one = model.features(one.tokens, one.positions, known[n : n + 1, :count], one.valid, one.condition)
        torch.testing.assert_close(z[n, :count], z_one[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            g[n, :count], model.target_features(one, dropped[n : n + 1])[0], atol=1e-5, rtol=1e-4
        )


def test_padding_never_matters(text_model: Build, text_batch: TokenBatch) -> None:
    """Rubbish in the padding changes nothing: not the features, not the losses."""
    model = text_model().eval()
    rubbish = torch.where(text_batch.valid[..., None], text_batch.tokens, 1e4 * torch.randn(text_batch.tokens.shape))
    spoilt = TokenBatch(
        tokens=rubbish, positions=text_batch.positions, valid=text_batch.valid, condition=text_batch.condition
    )
    torch.testing.assert_close(model(spoilt, rng(1)).total, model(text_batch, rng(1)).total)


def test_dropped_condition_forgets_the_class(picture_model: Build, picture_batch: TokenBatch) -> None:
    model = picture_model()
    b, known = picture_batch, torch.zeros_like(picture_batch.valid)
    z = model.features(b.tokens, b.positions, known, b.valid, b.condition)
    null = model.features(b.tokens, b.positions, known, b.valid, b.condition, null=True)
    assert (z[0] - z[1]).abs().max() > 1e-3
    torch.testing.assert_close(null[0], null[1])


def test_the_same_generator_gives_the_same_loss(picture_model: Build, picture_batch: TokenBatch) -> None:
    model = picture_model()
    assert model(picture_batch, rng(3)).total == model(picture_batch, rng(3)).total
    assert model(picture_batch, rng(3)).total != model(picture_batch, rng(4)).total


def test_training_mode_leaves_the_averages_in_evaluation(picture_model: Build) -> None:
    model = picture_model().train()
    assert model.online.training
    assert not any(module.training for module in model.averaged.modules())


def test_two_streams_have_weights_of_their_own(text_model: Build, text_batch: TokenBatch) -> None:
    one, two = text_model(), text_model(streams="two")
    stacks = [model.online.encoder.stack.transformer.blocks for model in (one, two)]
    single, double = (sum(p.numel() for p in stack.parameters()) for stack in stacks)
    assert double == 2 * single
    two(text_batch, rng()).total.backward()
    for name, parameter in two.online.encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_two_streams_with_the_same_weights_are_one(text_model: Build, text_batch: TokenBatch) -> None:
    one, two = text_model(), text_model(streams="two")
    weights = one.state_dict()

    def shared(key: str) -> torch.Tensor:
        return weights[key.replace(".condition.", ".").replace(".media.", ".") if ".blocks." in key else key]

    two.load_state_dict({key: shared(key) for key in two.state_dict()})
    torch.testing.assert_close(two(text_batch, rng()).total, one(text_batch, rng()).total)


def test_two_streams_attend_jointly(text_model: Build, text_batch: TokenBatch) -> None:
    model, b = text_model(streams="two"), text_batch
    known = torch.zeros_like(b.valid)
    z = model.features(b.tokens, b.positions, known, b.valid, b.condition)
    other = dataclasses.replace(b.condition, values=(b.condition.values + 1) % 6)
    assert (model.features(b.tokens, b.positions, known, b.valid, other) - z).abs().max() > 1e-3


def test_a_horizon_makes_training_and_sampling_see_the_same(picture_model: Build, picture_batch: TokenBatch) -> None:
    """Features with the places beyond the horizon cut out, as in training, and hidden, as in sampling."""
    model = picture_model(mask_horizon=3)
    mask = draw_mask(picture_batch.valid, 0.6, rng(), picture_batch.positions, "raster", horizon=3)
    short, trimmed = within_horizon(picture_batch, mask)
    assert short.tokens.shape[1] == int((mask.visible | mask.masked).sum(1).max()) < picture_batch.tokens.shape[1]
    assert torch.equal(short.tokens[trimmed.masked], picture_batch.tokens[mask.masked])
    trained = model.features(short.tokens, short.positions, trimmed.visible, short.valid, short.condition)
    there = mask.visible | mask.masked
    b = picture_batch
    sampled = model.features(b.tokens, b.positions, mask.visible, there, b.condition)
    torch.testing.assert_close(trained[trimmed.masked], sampled[mask.masked], rtol=1e-4, atol=1e-5)
    assert torch.isfinite(model(picture_batch, rng()).total)


def test_a_wrapper_trains_the_model(picture_model: Build, picture_batch: TokenBatch, tmp_path: Path) -> None:
    """DistributedDataParallel, in a group of one, calls `forward` and gives the same gradients."""
    plain = picture_model()
    wrapped = copy.deepcopy(plain)
    plain(picture_batch, rng()).total.backward()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        losses = torch.nn.parallel.DistributedDataParallel(wrapped)(picture_batch, rng())
        losses.total.backward()
    finally:
        torch.distributed.destroy_process_group()
    for ours, theirs in zip(plain.online.parameters(), wrapped.online.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None and theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad)

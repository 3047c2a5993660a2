"""Editing keeps what is given, to the sample, and generates the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from djepa_mm.generation.edit import Edit, given_frames, in_paint, replace_span, run_edits
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.generation.request import Request
from djepa_mm.types import UserError

TOKEN = 1024  # samples


def clip(samples: int = 20 * TOKEN) -> torch.Tensor:
    """Not silent anywhere."""
    return 0.3 * torch.sin(torch.arange(samples) * 0.05) + 0.05 * torch.randn(samples)


def cut(speaker: Pipeline, media: torch.Tensor, **options: Any) -> Edit:
    return replace_span(speaker, media, Request(condition={"text": "one"}), **options)


def seconds(tokens: float) -> float:
    return tokens * TOKEN / 22050


def test_a_replaced_span_moves_out_to_whole_tokens_and_the_rest_stays(speaker: Pipeline) -> None:
    media = clip()
    edit = cut(speaker, media, start_s=seconds(5.5), stop_s=seconds(9.2))
    assert edit.job.known is not None
    assert (~edit.job.known).nonzero()[:, 0].tolist() == [5, 6, 7, 8, 9]
    (edited,) = run_edits(speaker, [edit])
    assert edited.shape == media.shape
    changed = (edited != media).nonzero()[:, 0]
    assert changed.min() >= 5 * TOKEN
    assert changed.max() < 10 * TOKEN
    assert len(changed) > 4 * TOKEN
    # and so its mel differs in no frame that lies three or more outside
    before, after = speaker.tokenizer.log_mel(media[None])[0], speaker.tokenizer.log_mel(edited[None])[0]  # type: ignore[attr-defined]
    assert torch.equal(before[:, : 20 - 3], after[:, : 20 - 3])
    assert torch.equal(before[:, 40 + 3 :], after[:, 40 + 3 :])
    assert not torch.equal(before[:, 20:40], after[:, 20:40])


@pytest.mark.parametrize("new", [2, 11])
def test_a_span_may_become_shorter_or_longer(speaker: Pipeline, new: int) -> None:
    media = clip(20 * TOKEN + 300)  # the last token is filled in part
    edit = cut(speaker, media, start_s=seconds(5), stop_s=seconds(9), new_s=seconds(new))
    (edited,) = run_edits(speaker, [edit])
    assert len(edited) == len(media) + (new - 4) * TOKEN
    assert torch.equal(edited[: 5 * TOKEN], media[: 5 * TOKEN])
    assert torch.equal(edited[(5 + new) * TOKEN :], media[9 * TOKEN :])


def test_given_tokens_reach_the_sampler_as_they_are(speaker: Pipeline) -> None:
    media = clip()
    edit = cut(speaker, media, start_s=seconds(4), stop_s=seconds(6), new_s=seconds(3))
    tokens = speaker.tokenizer.encode(media[None])[0]
    assert edit.job.tokens is not None
    assert edit.job.known is not None
    assert torch.equal(edit.job.tokens[edit.job.known], torch.cat([tokens[:4], tokens[6:]]))
    sampled = speaker._tokens([edit.job], speaker.sampler, lambda *_: None)[0]
    assert torch.equal(sampled[edit.job.known], edit.job.tokens[edit.job.known])


def test_a_clip_goes_on(speaker: Pipeline) -> None:
    media = clip(10 * TOKEN)
    for edit, length in (
        (cut(speaker, media), 33),  # as long as the text takes in all
        (cut(speaker, media, new_s=seconds(7)), 17),
        (cut(speaker, media, start_s=seconds(8)), 33),
    ):
        (edited,) = run_edits(speaker, [edit])
        assert len(edited) == length * TOKEN
        assert torch.equal(edited[: 8 * TOKEN], media[: 8 * TOKEN])


def test_joins_do_not_click(speaker: Pipeline) -> None:
    """At a join the blended sound is the original's; it moves to the new one over hundredths of a second."""
    original, new = clip(), -clip()
    kept = torch.ones(len(original), dtype=torch.bool)
    kept[4000:9000] = False
    blended = speaker.tokenizer.media.blend(original, new, kept)
    assert torch.equal(blended[kept], original[kept])
    assert torch.equal(blended[4300:8700], new[4300:8700])
    share = (blended - original) / (new - original)
    assert share[4000] < 1e-3
    assert share[8999] < 1e-3
    assert share[4000:4200].diff().min() > -1e-3


def test_parts_are_joined_with_a_pause_and_without_a_step(speaker: Pipeline) -> None:
    parts = [torch.full((5000,), 0.5), torch.full((4000,), -0.5)]
    joined = speaker.tokenizer.media.join(parts)
    assert len(joined) > 9000
    assert joined.diff().abs().max() < 0.01
    assert joined[0] == 0.5
    assert joined[-1] == -0.5
    assert (joined[5000 : len(joined) - 4000] == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_s": 0.5, "stop_s": 0.2}, "has to end after it begins"),
        ({"start_s": 0.3, "stop_s": 0.3}, "has to end after it begins"),
        ({"start_s": 0.3, "stop_s": 2.0}, "--to 2: the clip is 0.93 s long"),
        ({"start_s": 5.0}, "--from 5: the clip is 0.93 s long"),
        ({"start_s": -1.0}, "--from -1"),
        ({"start_s": 0.1, "stop_s": 0.2, "new_s": 0.0}, "above 0"),
        ({"stop_s": 0.5}, "has to end after it begins; give --from too"),
        ({"new_s": 1e6}, r"out of range: give 0.05 to 30 s"),
        ({"new_s": float("inf")}, "--seconds inf"),
    ],
)
def test_spans_that_do_not_fit(speaker: Pipeline, options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cut(speaker, clip(), **options)


def test_in_painting_changes_what_is_masked_alone(painter: Pipeline) -> None:
    picture = torch.rand(1, 8, 8) * 2 - 1
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[1:3, 5:8] = True
    edit = in_paint(painter, picture, Request(condition={"class": 3}), mask)
    patch = painter.tokenizer.span[1]
    assert edit.job.known is not None
    touched = {(row // patch, column // patch) for row, column in mask.nonzero().tolist()}
    assert {tuple(p) for p in (~edit.job.known).reshape(8 // patch, -1).nonzero().tolist()} == touched
    (painted,) = run_edits(painter, [edit])
    assert torch.equal(painted[:, ~mask], picture[:, ~mask])
    assert (painted[:, mask] != picture[:, mask]).all()


def test_masks_and_spans_that_make_no_sense(painter: Pipeline, speaker: Pipeline) -> None:
    picture = torch.zeros(1, 8, 8)
    with pytest.raises(UserError, match="nothing is white"):
        in_paint(painter, picture, Request(condition={"class": 3}), torch.zeros(8, 8, dtype=torch.bool))
    with pytest.raises(UserError, match="the picture"):
        in_paint(painter, picture, Request(condition={"class": 3}), torch.ones(9, 8, dtype=torch.bool))
    for mask in (torch.ones(8, 8, dtype=torch.uint8), torch.ones(8, 8), torch.ones(8, 8).bool().numpy()):
        with pytest.raises(UserError, match="--mask: expected a tensor of bool"):
            in_paint(painter, picture, Request(condition={"class": 3}), mask)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="not pictures"):
        in_paint(speaker, clip(), Request(condition={"text": "one"}), torch.ones(8, 8, dtype=torch.bool))
    with pytest.raises(UserError, match="have no time"):
        replace_span(painter, picture, Request(condition={"class": 3}), start_s=0.1)
    with pytest.raises(UserError, match="one by one"):
        painter.tokenizer.media.join([picture, picture])


def test_files_that_cannot_be_edited(speaker: Pipeline, painter: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "text.wav"
    path.write_text("no sound")
    with pytest.raises(UserError, match="not readable as sound"):
        speaker.tokenizer.media.load(path)
    with pytest.raises(UserError, match="not readable as a picture"):
        painter.tokenizer.media.load(path)


# --- clips


def film(frames: int = 8) -> torch.Tensor:
    return torch.rand(3, frames, 16, 16) * 2 - 1


@pytest.mark.parametrize(("first", "last"), [(2, 0), (6, 0), (0, 4), (2, 2)])
def test_given_frames_come_back_and_the_others_are_generated(filmer: Pipeline, first: int, last: int) -> None:
    media = film()
    ends = {"first": media[:, :first] if first else None, "last": media[:, 8 - last :] if last else None}
    edit = given_frames(filmer, Request(condition={"class": 3}), **ends)
    assert edit.job.tokens is not None
    assert edit.job.known is not None
    given = torch.tensor([n < first or n >= 8 - last for n in range(8)])
    assert torch.equal(edit.job.known, given[::2].repeat_interleave(16))
    assert torch.equal(edit.job.tokens, filmer.tokenizer.encode(media[None])[0] * edit.job.known[:, None])
    (clip,) = run_edits(filmer, [edit])
    assert torch.equal(clip[:, given], media[:, given])
    assert (clip[:, ~given] != media[:, ~given]).float().mean() > 0.9
    other = given_frames(filmer, Request(condition={"class": 3}, seed=(1,)), **ends)
    assert not torch.equal(run_edits(filmer, [other])[0], clip)


def test_between_given_frames_the_nearest_is_held(filmer: Pipeline) -> None:
    media = film()
    held = given_frames(filmer, Request(condition={"class": 3}), first=media[:, :2], last=media[:, 6:]).original
    assert torch.equal(held, media[:, [0, 1, 1, 1, 6, 6, 6, 7]])


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        (3, 0, "the first 3 frames do not fill whole tokens of 2: give 2 or 4"),
        (0, 1, "the last 1 frames do not fill whole tokens of 2: give 2 or 4"),
        (7, 0, "the first 7 frames do not fill whole tokens of 2: give 4 or 6"),
        (8, 0, "8 frames are given and a clip has 8: leave at least one"),
        (4, 4, "8 frames are given and a clip has 8: leave at least one"),
    ],
)
def test_frames_that_cannot_be_given(filmer: Pipeline, first: int, last: int, message: str) -> None:
    ends = {"first": film(first) if first else None, "last": film(last) if last else None}
    with pytest.raises(UserError, match=message):
        given_frames(filmer, Request(condition={"class": 3}), **ends)


def test_frames_of_another_size_or_for_other_models(filmer: Pipeline, painter: Pipeline, speaker: Pipeline) -> None:
    with pytest.raises(UserError, match="12×16 pixels in 3 channels, this model takes 16×16 in 3"):
        given_frames(filmer, Request(condition={"class": 3}), first=film(2)[..., :12])
    with pytest.raises(UserError, match="16×16 pixels in 1 channels, this model takes 16×16 in 3"):
        given_frames(filmer, Request(condition={"class": 3}), last=film(2)[:1])
    with pytest.raises(UserError, match="every clip lasts"):  # what is asked for is not forgotten
        given_frames(filmer, Request(condition={"class": 3}, duration_s=5.0), first=film(2))
    for odd in (film(2)[:, 0], film(2).to(torch.uint8), "walk.mp4"):
        with pytest.raises(UserError, match="the first frames: expected a tensor"):
            given_frames(filmer, Request(condition={"class": 3}), first=odd)  # type: ignore[arg-type]
    for other, request in ((painter, Request(condition={"class": 3})), (speaker, Request(condition={"text": "one"}))):
        with pytest.raises(UserError, match="for models of clips"):
            given_frames(other, request, first=film(2))


def test_the_first_latent_of_a_causal_vae_is_one_frame(latent_filmer: Pipeline) -> None:
    media = film(9)
    whole = latent_filmer.tokenizer.encode(media[None])[0]
    for first, last, known in ((1, 0, [0]), (5, 0, [0, 1]), (0, 4, [2]), (1, 4, [0, 2])):
        ends = {"first": media[:, :first] if first else None, "last": media[:, 9 - last :] if last else None}
        edit = given_frames(latent_filmer, Request(condition={"class": 3}), **ends)
        assert edit.job.tokens is not None
        assert edit.job.known is not None
        assert edit.job.known.reshape(3, 4).all(1).nonzero()[:, 0].tolist() == known
        assert edit.job.known.sum() == 4 * len(known)
        if not last:  # what comes after a frame does not change its latent
            torch.testing.assert_close(edit.job.tokens[edit.job.known], whole[: 4 * len(known)], atol=1e-5, rtol=1e-5)
        (clip,) = run_edits(latent_filmer, [edit])
        assert torch.equal(clip[:, edit.kept[:, 0, 0]], media[:, edit.kept[:, 0, 0]])
        assert edit.kept[:, 0, 0].sum() == first + last
    with pytest.raises(UserError, match="first 4 frames do not fill whole tokens of 4: give 1 or 5"):
        given_frames(latent_filmer, Request(condition={"class": 3}), first=media[:, :4])
    mask = torch.zeros(9, 16, 16, dtype=torch.bool)
    mask[1] = True
    edit = in_paint(latent_filmer, media, Request(condition={"class": 3}), mask)
    assert edit.job.known is not None
    assert (~edit.job.known).reshape(3, 4).any(1).tolist() == [False, True, False]
    hidden = media.clone()
    hidden[:, 1] = 1
    other = in_paint(latent_filmer, hidden, Request(condition={"class": 3}), mask)
    assert torch.equal(other.job.tokens, edit.job.tokens), "what is painted over shows in the tokens beside it"


def test_a_mask_holds_for_all_frames_or_between_two_times(filmer: Pipeline) -> None:
    media, request = film(), Request(condition={"class": 3})
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[1:3, 5:8] = True
    for times, frames in (
        ({}, range(8)),
        ({"start_s": 0.3}, range(3, 8)),
        ({"stop_s": 0.3}, range(3)),
        ({"start_s": 0.2, "stop_s": 0.5}, range(2, 5)),
        ({"start_s": 0.25, "stop_s": 0.41}, range(2, 5)),  # every frame that is shown in between
    ):
        volume = mask & torch.tensor([n in frames for n in range(8)])[:, None, None]
        edit = in_paint(filmer, media, request, mask, **times)
        assert edit.job.known is not None
        touched = {(t // 2, y // 4, x // 4) for t, y, x in volume.nonzero().tolist()}
        assert {tuple(place) for place in (~edit.job.known).reshape(4, 4, 4).nonzero().tolist()} == touched
        (painted,) = run_edits(filmer, [edit])
        assert torch.equal(painted[:, ~volume], media[:, ~volume])
        assert (painted[:, volume] != media[:, volume]).float().mean() > 0.9


def test_a_mask_in_space_and_time(filmer: Pipeline) -> None:
    media = film()
    mask = torch.zeros(8, 16, 16, dtype=torch.bool)
    mask[1, :4, :4] = mask[6, 9:, 9:] = True
    (painted,) = run_edits(filmer, [in_paint(filmer, media, Request(condition={"class": 3}), mask)])
    assert torch.equal(painted[:, ~mask], media[:, ~mask])
    assert (painted[:, mask] != media[:, mask]).float().mean() > 0.9


def test_a_span_of_a_clip_is_replaced_and_its_length_stays(filmer: Pipeline) -> None:
    media = film()
    (edited,) = run_edits(
        filmer, [replace_span(filmer, media, Request(condition={"class": 3}), start_s=0.3, stop_s=0.5)]
    )
    changed = (edited != media).any(0).flatten(1).any(1)
    assert changed.tolist() == [n in (3, 4) for n in range(8)]


def test_masks_and_spans_of_clips_that_make_no_sense(filmer: Pipeline, painter: Pipeline) -> None:
    media, request, mask = film(), Request(condition={"class": 3}), torch.ones(16, 16, dtype=torch.bool)
    for wrong in (torch.ones(15, 16), torch.ones(7, 16, 16), torch.ones(1, 16, 16)):
        with pytest.raises(UserError, match="the clip, with its frames first"):
            in_paint(filmer, media, request, wrong.bool())
    with pytest.raises(UserError, match="has to end after it begins"):
        in_paint(filmer, media, request, mask, start_s=0.5, stop_s=0.2)
    with pytest.raises(UserError, match=r"--to 0\.9: the clip is 0\.80 s long"):
        in_paint(filmer, media, request, mask, stop_s=0.9)
    late = torch.zeros(8, 16, 16, dtype=torch.bool)
    late[6] = True
    with pytest.raises(UserError, match="nothing to paint"):
        in_paint(filmer, media, request, late, stop_s=0.3)
    for options in ({}, {"start_s": 0.2, "new_s": 0.3}):
        with pytest.raises(UserError, match="clips have one length"):
            replace_span(filmer, media, request, **options)
    with pytest.raises(UserError, match="a picture has no time"):
        in_paint(painter, torch.zeros(1, 8, 8), request, torch.ones(8, 8, dtype=torch.bool), stop_s=0.3)

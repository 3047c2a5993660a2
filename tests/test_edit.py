"""Editing keeps what is given, to the sample, and generates the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from djepa_mm.edit import Edit, in_paint, replace_span, run_edits
from djepa_mm.generate import Generation, Request
from djepa_mm.types import UserError

TOKEN = 1024  # samples


def clip(samples: int = 20 * TOKEN) -> torch.Tensor:
    """Not silent anywhere."""
    return 0.3 * torch.sin(torch.arange(samples) * 0.05) + 0.05 * torch.randn(samples)


def cut(speaker: Generation, media: torch.Tensor, **options: Any) -> Edit:
    return replace_span(speaker, media, Request(text="one"), **options)


def seconds(tokens: float) -> float:
    return tokens * TOKEN / 22050


def test_a_replaced_span_moves_out_to_whole_tokens_and_the_rest_stays(speaker: Generation) -> None:
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
def test_a_span_may_become_shorter_or_longer(speaker: Generation, new: int) -> None:
    media = clip(20 * TOKEN + 300)  # the last token is filled in part
    edit = cut(speaker, media, start_s=seconds(5), stop_s=seconds(9), new_s=seconds(new))
    (edited,) = run_edits(speaker, [edit])
    assert len(edited) == len(media) + (new - 4) * TOKEN
    assert torch.equal(edited[: 5 * TOKEN], media[: 5 * TOKEN])
    assert torch.equal(edited[(5 + new) * TOKEN :], media[9 * TOKEN :])


def test_given_tokens_reach_the_sampler_as_they_are(speaker: Generation) -> None:
    media = clip()
    edit = cut(speaker, media, start_s=seconds(4), stop_s=seconds(6), new_s=seconds(3))
    tokens = speaker.tokenizer.encode(media[None])[0]
    assert edit.job.tokens is not None
    assert edit.job.known is not None
    assert torch.equal(edit.job.tokens[edit.job.known], torch.cat([tokens[:4], tokens[6:]]))
    sampled = speaker._sample([edit.job], speaker.sampler, lambda *_: None)[0]
    assert torch.equal(sampled[edit.job.known], edit.job.tokens[edit.job.known])


def test_a_clip_goes_on(speaker: Generation) -> None:
    media = clip(10 * TOKEN)
    for edit, length in (
        (cut(speaker, media), 33),  # as long as the text takes in all
        (cut(speaker, media, new_s=seconds(7)), 17),
        (cut(speaker, media, start_s=seconds(8)), 33),
    ):
        (edited,) = run_edits(speaker, [edit])
        assert len(edited) == length * TOKEN
        assert torch.equal(edited[: 8 * TOKEN], media[: 8 * TOKEN])


def test_joins_do_not_click(speaker: Generation) -> None:
    """At a join the blended sound is the original's; it moves to the new one over hundredths of a second."""
    original, new = clip(), -clip()
    kept = torch.ones(len(original), dtype=torch.bool)
    kept[4000:9000] = False
    blended = speaker.tokenizer.blend(original, new, kept)
    assert torch.equal(blended[kept], original[kept])
    assert torch.equal(blended[4300:8700], new[4300:8700])
    share = (blended - original) / (new - original)
    assert share[4000] < 1e-3
    assert share[8999] < 1e-3
    assert share[4000:4200].diff().min() > -1e-3


def test_parts_are_joined_with_a_pause_and_without_a_step(speaker: Generation) -> None:
    parts = [torch.full((5000,), 0.5), torch.full((4000,), -0.5)]
    joined = speaker.tokenizer.join(parts)
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
        ({"stop_s": 0.5}, "has to end after it begins"),
    ],
)
def test_spans_that_do_not_fit(speaker: Generation, options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cut(speaker, clip(), **options)


def test_in_painting_changes_what_is_masked_alone(painter: Generation) -> None:
    picture = torch.rand(1, 8, 8) * 2 - 1
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[1:3, 5:8] = True
    edit = in_paint(painter, picture, Request(label=3), mask)
    patch = painter.tokenizer.span[1]
    assert edit.job.known is not None
    touched = {(row // patch, column // patch) for row, column in mask.nonzero().tolist()}
    assert {tuple(p) for p in (~edit.job.known).reshape(8 // patch, -1).nonzero().tolist()} == touched
    (painted,) = run_edits(painter, [edit])
    assert torch.equal(painted[:, ~mask], picture[:, ~mask])
    assert (painted[:, mask] != picture[:, mask]).all()


def test_masks_and_spans_that_make_no_sense(painter: Generation, speaker: Generation) -> None:
    picture = torch.zeros(1, 8, 8)
    with pytest.raises(UserError, match="nothing is white"):
        in_paint(painter, picture, Request(label=3), torch.zeros(8, 8, dtype=torch.bool))
    with pytest.raises(UserError, match="the picture"):
        in_paint(painter, picture, Request(label=3), torch.ones(9, 8, dtype=torch.bool))
    with pytest.raises(UserError, match="not pictures"):
        in_paint(speaker, clip(), Request(text="one"), torch.ones(8, 8, dtype=torch.bool))
    with pytest.raises(UserError, match="have no time"):
        replace_span(painter, picture, Request(label=3), start_s=0.1)
    with pytest.raises(UserError, match="one by one"):
        painter.tokenizer.join([picture, picture])


def test_files_that_cannot_be_edited(speaker: Generation, painter: Generation, tmp_path: Path) -> None:
    path = tmp_path / "text.wav"
    path.write_text("no sound")
    with pytest.raises(UserError, match="not readable as sound"):
        speaker.tokenizer.load(path)
    with pytest.raises(UserError, match="not readable as a picture"):
        painter.tokenizer.load(path)

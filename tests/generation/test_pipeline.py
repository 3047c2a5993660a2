"""Long texts in parts, lengths, and the files that come out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from djepa_mm.generation.pipeline import SLACK, Pipeline, Job, Request, write_media
from djepa_mm.types import UserError

THREE = "one two three. four five six! seven"


def test_a_text_is_cut_at_its_sentences(speaker: Pipeline) -> None:
    parts = speaker.parts(Request(text=THREE, seed=(5,)))
    assert [part.text for part in parts] == ["one two three.", "four five six!", "seven"]
    assert len({part.seed for part in parts}) == 3


def test_three_minutes_of_text_come_in_parts_that_fit(speaker: Pipeline) -> None:
    text = "one two three four five six seven eight nine zero " * 100
    parts = speaker.parts(Request(text=text))
    assert " ".join(part.text or "" for part in parts).split() == text.split()
    assert all((speaker.expected_tokens(part) or 0) <= SLACK * 60 for part in parts)
    assert len(parts) < 150


def test_a_given_duration_is_shared_out(speaker: Pipeline) -> None:
    parts = speaker.parts(Request(text=THREE, duration_s=9.0))
    lengths = [part.duration_s or 0 for part in parts]
    assert sum(lengths) == pytest.approx(9)
    assert lengths[0] == pytest.approx(lengths[1], rel=0.1)
    assert lengths[2] < lengths[0]


def test_parts_are_joined(speaker: Pipeline) -> None:
    whole = speaker([Request(text="one two. three.")])[0]
    requests = speaker.parts(Request(text="one two. three."))
    parts = speaker.sample([Job(request=part, spec=speaker.spec(part)) for part in requests])
    assert len(whole) == pytest.approx(sum(len(part) for part in parts) + 0.15 * 22050, abs=2)


def test_the_rate_changes_the_length(speaker: Pipeline) -> None:
    slow, plain, quick = (speaker.spec(Request(text="one two", rate=r)).num_tokens for r in (0.5, 1.0, 2.0))
    assert (slow, plain, quick) == (74, 37, 18)
    with pytest.raises(UserError, match="out of range"):
        speaker.check(Request(text="one", rate=0.0))


def test_a_word_that_is_too_long_is_named(speaker: Pipeline) -> None:
    with pytest.raises(UserError, match="nineoneoneone"):
        speaker.check(Request(text="one nine" + "one" * 40))


def test_samples_in_bf16_are_near_those_in_fp32(painter: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    for parameter in painter.model.averaged.parameters():  # an untrained head gives nothing but zeros
        torch.nn.init.normal_(parameter, std=0.05)
    requests = [Request(label=n, seed=(n,)) for n in range(10)]
    media = []
    for fast in (True, False):
        monkeypatch.setattr("djepa_mm.generation.pipeline.fast_bf16", lambda _, fast=fast: fast)
        media.append(torch.stack(painter(requests)))
    difference = (media[0] - media[1]).abs().mean() / media[1].std()
    assert 0 < difference < 0.01
    assert media[0].dtype == torch.float32


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_have_every_frame_and_move_on_the_page(filmer: Pipeline, suffix: str, tmp_path: Path) -> None:
    requests = [Request(label=3), Request(label=5)]
    paths = list(write_media(filmer, requests, filmer(requests), tmp_path, suffix))
    assert [path.name for path in paths] == [f"0000-3{suffix}", f"0001-5{suffix}", "sheet.png", "index.html"]
    for path in paths[:2]:
        with Image.open(path) as animation:
            assert (animation.n_frames, animation.size) == (8, (16, 16))  # type: ignore[attr-defined]
    shown = paths[-1].read_text()
    assert shown.count(f'<img alt="" src="data:image/{suffix[1:]};base64,') == 2
    assert "<video" not in shown


def test_clips_and_sounds_are_played_and_still_pictures_shown_once(
    filmer: Pipeline, speaker: Pipeline, painter: Pipeline, tmp_path: Path
) -> None:
    for model, request, suffix, player in (
        (filmer, Request(label=3), None, '<video controls loop muted src="data:video/mp4;'),
        (speaker, Request(text="one"), None, '<audio controls src="data:audio/wav;'),
        (speaker, Request(text="one"), ".flac", '<audio controls src="data:audio/flac;'),
        (painter, Request(label=3), ".webp", "<img"),
        (painter, Request(label=3), ".jpg", "<img"),
    ):
        paths = list(write_media(model, [request], model([request]), tmp_path, suffix))
        assert paths[0].suffix == (suffix or model.tokenizer.suffix)
        shown = paths[-1].read_text()
        assert shown.count(player) == 1
        assert shown.count("<img") == 1

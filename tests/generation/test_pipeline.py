"""Long texts in parts, lengths, and the files that come out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DIGITS, untrained
from PIL import Image

from djepa_mm.conditions.text import SLACK
from djepa_mm.conditions.vocabulary import Vocabulary
from djepa_mm.core.sampler import Sampler
from djepa_mm.errors import Notice
from djepa_mm.generation.files import Generated, write_results
from djepa_mm.generation.pipeline import Pipeline, share_out
from djepa_mm.generation.request import Job, Request
from djepa_mm.types import UserError

THREE = "one two three. four five six! seven"


def jobs(speaker: Pipeline, text: str, **options: float) -> list[Job]:
    duration_s = options.pop("duration_s", None)
    (prepared,) = speaker.prepare([Request(condition={"text": text, **options}, duration_s=duration_s, seed=(5,))])
    return prepared


def test_a_text_is_cut_at_its_sentences(speaker: Pipeline) -> None:
    parts = jobs(speaker, THREE)
    assert [part.value.text for part in parts] == ["one two three.", "four five six!", "seven"]
    assert len({part.seed for part in parts}) == 3


def test_three_minutes_of_text_come_in_parts_that_fit(speaker: Pipeline) -> None:
    text = "one two three four five six seven eight nine zero " * 100
    parts = jobs(speaker, text)
    assert " ".join(part.value.text for part in parts).split() == text.split()
    assert all((speaker.condition.length(part.value) or 0) <= SLACK * 60 for part in parts)
    assert len(parts) < 150


def test_no_text_is_encoded_twice(speaker: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a request to its sound, and over all parts that a long text was tried in."""
    seen: list[str] = []
    encode = Vocabulary.encode
    monkeypatch.setattr(Vocabulary, "encode", lambda self, text: seen.append(text) or encode(self, text))
    for text, part in ((THREE, "four five six!"), ("one two three four " * 12, "four one")):
        seen.clear()
        speaker([Request(condition={"text": text})])
        assert part in seen
        assert len(seen) == len(set(seen))


def test_a_given_duration_is_shared_out(speaker: Pipeline) -> None:
    lengths = [part.spec.shape[0] / 22050 for part in jobs(speaker, THREE, duration_s=9.0)]
    assert sum(lengths) == pytest.approx(9, abs=0.01)
    assert lengths[0] == pytest.approx(lengths[1], rel=0.1)
    assert lengths[2] < lengths[0]


def test_a_tiny_sentence_gets_what_it_needs_of_a_shared_duration(speaker: Pipeline) -> None:
    parts = jobs(speaker, "one two three four five six. o. seven eight nine one two three", duration_s=0.4)
    lengths = [part.spec.shape[0] / 22050 for part in parts]
    assert sum(lengths) == pytest.approx(0.4, abs=0.01)
    assert lengths[1] == pytest.approx(2 * 1024 / 22050, abs=0.001)
    with pytest.raises(UserError, match=r"a duration of 0\.1 s is too short for 3 sentences: give 0\.2786 s or more"):
        jobs(speaker, THREE, duration_s=0.1)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1, 1], [5, 5]),
        ([1, 99], [1, 9]),
        ([0.001, 0.1, 5, 5], [1, 1, 4, 4]),
        ([0.05, 0.11, 0.84], [1, 1.0421, 7.9579]),
        ([1] * 10, [1] * 10),
    ],
)
def test_shares_have_a_least(weights: list[float], expected: list[float]) -> None:
    assert share_out(10, weights, 1) == pytest.approx(expected, rel=1e-4)


def test_parts_are_joined(speaker: Pipeline) -> None:
    whole = speaker([Request(condition={"text": "one two. three."})])[0]
    parts = speaker.run_jobs(jobs(speaker, "one two. three."))
    assert len(parts) == 2
    assert len(whole) == pytest.approx(sum(len(part) for part in parts) + 0.15 * 22050, abs=2)


def test_the_rate_changes_the_length(speaker: Pipeline) -> None:
    slow, plain, quick = (jobs(speaker, "one two", rate=r)[0].spec.num_tokens for r in (0.5, 1.0, 2.0))
    assert (slow, plain, quick) == (74, 37, 18)
    with pytest.raises(UserError, match="out of range"):
        jobs(speaker, "one", rate=0.0)


def test_a_word_that_is_too_long_is_named(speaker: Pipeline) -> None:
    with pytest.raises(UserError, match="nineoneoneone"):
        jobs(speaker, "one nine" + "one" * 40)


def test_unknown_characters_are_refused_or_left_out_with_a_notice(speaker: Pipeline) -> None:
    with pytest.raises(UserError, match="☃"):
        jobs(speaker, "one ☃ two")
    with pytest.warns(Notice, match="☃"):
        (prepared,) = speaker.prepare([Request(condition={"text": "one ☃ two", "unknown": "drop"})])
    assert prepared[0].value.text == "one two"


def test_samples_in_bf16_are_near_those_in_fp32(painter: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    for parameter in painter.model.averaged.parameters():  # an untrained head gives nothing but zeros
        torch.nn.init.normal_(parameter, std=0.05)
    requests = [Request(condition={"class": n}, seed=(n,)) for n in range(10)]
    media = []
    for fast in (True, False):
        monkeypatch.setattr("djepa_mm.generation.pipeline.fast_bf16", lambda _, fast=fast: fast)
        media.append(torch.stack(painter(requests)))
    difference = (media[0] - media[1]).abs().mean() / media[1].std()
    assert 0 < difference < 0.01
    assert media[0].dtype == torch.float32


def results(pipeline: Pipeline, requests: list[Request]) -> list[Generated]:
    titles = [pipeline.condition.title(request.condition) for request in requests]
    pairs = zip(pipeline(requests), titles, strict=True)
    return [Generated(media=media, title=title, kind=pipeline.tokenizer.media) for media, title in pairs]


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_have_every_frame_and_move_on_the_page(filmer: Pipeline, suffix: str, tmp_path: Path) -> None:
    requests = [Request(condition={"class": 3}), Request(condition={"class": 5})]
    paths = list(write_results(results(filmer, requests), tmp_path, "clips", suffix))
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
        (filmer, Request(condition={"class": 3}), None, '<video controls loop muted src="data:video/mp4;'),
        (speaker, Request(condition={"text": "one"}), None, '<audio controls src="data:audio/wav;'),
        (speaker, Request(condition={"text": "one"}), ".flac", '<audio controls src="data:audio/flac;'),
        (painter, Request(condition={"class": 3}), ".webp", "<img"),
        (painter, Request(condition={"class": 3}), ".jpg", "<img"),
    ):
        paths = list(write_results(results(model, [request]), tmp_path, "items", suffix))
        assert paths[0].suffix == (suffix or model.tokenizer.media.suffixes[0])
        shown = paths[-1].read_text()
        assert shown.count(player) == 1
        assert shown.count("<img") == 1


def test_orders_take_places_as_they_are_and_the_model_those_in_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames one after the other, and all frames of a place together, whatever the density of the positions."""
    tokenizer = "{kind: clip-patches, patch: [2, 4, 4], frames: 8, size: [16, 8], frame_rate: 10}"
    kind = ("model.positions=vope", "model.field=1", "model.width=48", f"tokenizer={tokenizer}")
    filmer = untrained("digits", *kind, condition=DIGITS)
    request, seen = Request(condition={"class": 3}, offset=0.5), []
    features = filmer.model.features

    def watched(tokens: torch.Tensor, positions: torch.Tensor, known: torch.Tensor, *rest: Any, **options: Any) -> Any:
        seen.append((positions[0], known[0].clone()))
        return features(tokens, positions, known, *rest, **options)

    monkeypatch.setattr(filmer.model, "features", watched)
    for order, whole in (("frames", (4, 8)), ("tubes", (8, 4))):
        seen.clear()
        sampler = Sampler(ar_steps=whole[0], order=order, schedule="linear")  # type: ignore[arg-type]
        filmer([request], sampler=sampler)
        assert len(seen) == whole[0]
        for step, (positions, known) in enumerate(seen):
            assert positions.view(4, 4, 2, 3)[2, 1, 1].tolist() == [2.0, 0.25, 0.25 + 0.25 + 0.5]
            shape = known.view(4, 8) if order == "frames" else known.view(4, 8).T
            assert shape.all(1).sum() == step
            assert shape.any(1).sum() == step


@pytest.mark.parametrize("offset", [1.5, float("nan"), (0.1, 0.2, 0.3), (0.1,), (0.5, "a"), "left"])
def test_offsets_that_are_none_are_one_line(offset: Any) -> None:
    with pytest.raises(UserError, match=r"^--offset [^\n]*: expected one number, or two, from -1 to 1$"):
        Request(offset=offset)


def test_an_offset_is_along_the_shorter_side_or_down_and_to_the_right() -> None:
    assert Request(offset=0.25).moved((1, 4, 4)) == Request(offset=0.25).moved((1, 4, 2)) == (0.0, 0.25)
    assert Request(offset=0.25).moved((1, 2, 4)) == (0.25, 0.0)
    assert Request(offset=(0.5, -0.25)).moved((1, 2, 4)) == (0.5, -0.25)
    assert Request().moved((1, 2, 4)) == (0.0, 0.0)

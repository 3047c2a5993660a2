"""Clips in files, and as contact sheets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from djepa_mm.data.video.reader import VideoReader
from djepa_mm.errors import BrokenItem, UserError
from djepa_mm.media.clips import Clips, frames, probe_clip, read_clip, write_clip
from djepa_mm.media.pictures import read_picture

pytest.importorskip("av")


def moving(frames: int = 8) -> torch.Tensor:
    """A bright square that moves over a slope of colour: what a video codec is made for."""
    clip = torch.linspace(-0.8, 0.4, 64).expand(3, frames, 48, 64).clone()
    for n in range(frames):
        clip[:, n, 10:26, 4 + 4 * n : 20 + 4 * n] = torch.tensor([0.8, 0.2, -0.5])[:, None, None]
    return clip


@pytest.mark.parametrize("channels", [1, 3])
def test_a_clip_comes_back_from_its_file_nearly_as_it_was(channels: int, tmp_path: Path) -> None:
    clip = moving()[:channels]
    kind = Clips(channels, 12.5)
    kind.save(clip, tmp_path / "clip.mp4")
    found = probe_clip(tmp_path / "clip.mp4")
    assert (found.frames, found.size, found.frame_rate) == (8, (48, 64), 12.5)
    back = kind.load(tmp_path / "clip.mp4")
    assert (back - clip).square().mean().sqrt() < 0.04  # edges lose colour
    assert (back - clip).mean().abs() < 0.004  # nothing gets darker
    import av

    with av.open(str(tmp_path / "clip.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_animations_show_every_frame_at_the_right_rate(suffix: str, channels: int, tmp_path: Path) -> None:
    clip, path = moving(12)[:channels], tmp_path / f"clip{suffix}"
    write_clip(clip, path, 15.0)
    with Image.open(path) as animation:
        assert animation.n_frames == 12
        durations = []
        for n in range(12):
            animation.seek(n)
            animation.load()
            durations.append(animation.info["duration"])
            shown = torch.from_numpy(np.array(animation.convert("RGB"))) / 127.5 - 1
            assert (shown.permute(2, 0, 1) - clip[:, n]).abs().mean() < 0.05
    assert sum(durations) == pytest.approx(800, abs=10)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_clips_of_one_frame_read_as_pictures_are(channels: int, tmp_path: Path) -> None:
    """What is transparent is white, 16 bits keep their white, and the camera is held upright: a mask may be any."""
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = np.zeros((4, 6, 4), np.uint8)
    clear[:, 3:, 3] = 255
    Image.fromarray(clear).save(tmp_path / "clear.png", exif=exif)
    Image.fromarray(np.full((4, 6), 300, np.uint16)).save(tmp_path / "deep.png")
    Image.new("P", (6, 4), 0).save(tmp_path / "clear.gif", transparency=0)
    for path in tmp_path.iterdir():
        assert torch.equal(read_clip(path, channels=channels)[:, 0], read_picture(path, channels=channels)), path.name


def test_clips_of_another_size_are_refused_with_both(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(moving(8), path, 10.0)
    with pytest.raises(UserError, match=r"frames are of 64×48 pixels, this model takes 8 of 32×16; resize it first"):
        Clips(3, 10.0).load(path, (3, 8, 16, 32))
    with pytest.raises(UserError, match=r"has more than 4 frames .*takes 4 of"):
        Clips(3, 10.0).load(path, (3, 4, 48, 64))
    assert Clips(1, 10.0).load(path).shape == (1, 8, 48, 64)


def test_files_that_are_no_clips_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(moving(8), path, 10.0)
    (tmp_path / "short.mp4").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (tmp_path / "text.mp4").write_text("not a clip")
    for name in ("short.mp4", "text.mp4", "missing.mp4", "."):
        for read in (read_clip, probe_clip):
            with pytest.raises(UserError, match=r"^[^\n]*: not readable as a clip \([^\n]+\)$"):
                read(tmp_path / name)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="even height and width, not 47×64"):
        write_clip(moving()[:, :, 1:], tmp_path / "clip.mp4", 10.0)
    with pytest.raises(UserError, match=r"written as \.mp4, \.gif or \.webp"):
        write_clip(moving(), tmp_path / "clip.avi", 10.0)


def test_a_contact_sheet_shows_the_first_and_the_last_frame() -> None:
    ends = torch.zeros(3, 20, 64, 64)
    ends[:, 0], ends[:, -1] = -1, 1
    sheet = Clips(3, 10.0).preview(ends)
    assert sheet.size == (4 * 66, 2 * 66)
    assert sheet.getpixel((33, 33)) == (0, 0, 0)
    assert sheet.getpixel((3 * 66 + 33, 66 + 33)) == (255, 255, 255)
    assert sheet.getpixel((33, 66 + 33)) == (128, 128, 128)


def test_clips_join_in_time() -> None:
    first, second = moving(8), moving(4)
    joined = Clips(3, 10.0).join([first, second])
    assert joined.shape == (3, 12, 48, 64)
    assert torch.equal(joined[:, 8:], second)


def test_a_contact_sheet_has_its_frames_in_their_places() -> None:
    clip = torch.linspace(-1, 1, 8)[None, :, None, None].expand(1, 8, 64, 70)
    sheet = np.asarray(Clips(1, 10.0).preview(clip))
    assert sheet.shape == (2 * 66, 4 * 72)
    seen = [sheet[y * 66 + 33, x * 72 + 36] for y in range(2) for x in range(4)]
    assert seen == [round((n / 7) * 255) for n in range(8)]
    assert (sheet[:, 0] == 255).all()


def test_frames_are_pictures() -> None:
    assert [picture.mode for picture in frames(moving(3))] == ["RGB"] * 3
    grey = frames(moving(3)[:1])
    assert [(picture.mode, picture.size) for picture in grey] == [("L", (64, 48))] * 3


def test_a_list_of_other_files_is_no_clip(tmp_path: Path) -> None:
    write_clip(torch.zeros(3, 4, 16, 16), tmp_path / "good.mp4", 10)
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile good.mp4\n")
    with pytest.raises(UserError, match=r"list\.mp4: not readable as a clip \(a list of other files\)$"):
        read_clip(tmp_path / "list.mp4")
    reason = r"^a list of other files$"
    with pytest.raises(BrokenItem, match=reason):
        VideoReader("pyav", 10.0).header(tmp_path / "list.mp4")

"""One HTML page to look at and to listen to, with everything inside it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
h1 {{ font-size: 1.6rem; }} h2 {{ font-size: 1.2rem; margin-top: 2.5rem; }}
img {{ max-width: 100%; image-rendering: pixelated; }}
figure {{ margin: 1rem 0; }} figcaption {{ font-weight: 600; }}
audio, video {{ display: block; margin: .3rem 0; }}
small, code {{ color: #555; }}
</style></head><body>
<h1>{title}</h1>
<p>{lead}</p>
{sections}
</body></html>
"""
PLAYERS = {
    ".wav": ("audio controls", "audio/wav"),
    ".flac": ("audio controls", "audio/flac"),
    ".mp4": ("video controls loop muted", "video/mp4"),
}
ANIMATIONS = {".gif": "image/gif", ".webp": "image/webp"}


def page(title: str, lead: str, sections: Sequence[str]) -> str:
    """A whole page; `sections` are HTML already, the other two are plain text."""
    return PAGE.format(title=html.escape(title), lead=html.escape(lead), sections="\n".join(sections))


def heading(title: str, note: str = "") -> str:
    return f"<h2>{html.escape(title)}</h2>" + (f"<p><small>{html.escape(note)}</small></p>" if note else "")


def figure(caption: str, picture: Image.Image, file: Path | None = None) -> str:
    """A caption, the media file where it is one that plays or moves, and the picture."""
    player = "" if file is None else _player(file)
    data = io.BytesIO()
    picture.save(data, format="PNG")
    shown = html.escape(caption)
    return (
        f"<figure><figcaption>{shown}</figcaption>{player}"
        f'<img alt="{shown}" src="{_data(data.getvalue(), "image/png")}"></figure>'
    )


def _player(file: Path) -> str:
    """What plays a media file; nothing for a still picture."""
    if file.suffix in PLAYERS:
        tag, media_type = PLAYERS[file.suffix]
        return f'<{tag} src="{_data(file.read_bytes(), media_type)}"></{tag.split()[0]}>'
    if file.suffix in ANIMATIONS:
        with Image.open(file) as picture:
            if getattr(picture, "is_animated", False):
                return f'<img alt="" src="{_data(file.read_bytes(), ANIMATIONS[file.suffix])}"><br>'
    return ""


def _data(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"

"""How well pictures that were made by captions fit them, as a small matcher sees it that learned from the real pairs.

    python benchmarks/text_pictures.py RUN --out FOLDER

RUN: trained by captions of a folder, with a frozen encoder of texts. The matcher, a convolutional network for pictures
and a map of the encoder's pooled features for captions, learns which belong together (as CLIP does) from the training
pairs. Its score is the share of pictures for which it finds the caption among ten, the right one and nine others of the
same list, drawn anew five times. Three lists of 64 captions: of training, held out, and new ones, which no emoji of the
corpus has. Sheets of them are written to FOLDER, eight a row, in the order of captions.txt.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.media.sheet import sheet
from djepa_mm.types import Source

COUNT, CHOICES, DRAWS = 64, 10, 5
WIDTH, MARGIN = 128, 4  # of what is compared; pixels that training pictures are moved by at most
NEW = """red circle with a black dot; green circle with a white star; blue apple; yellow heart with a black border;
purple car; orange fish; smiling cat with glasses; angry dog; sleeping bear; crying sun; happy moon with a hat; green
face; blue face with tears; red flag with a yellow star; green and white flag; blue flag with a cross; brown flag with
a ring; pink house; yellow bus; white train; green boat on water; red airplane; wooden door; golden bell; silver key;
broken clock; two red hearts; three stars; pair of green shoes; black hat; purple dress; yellow umbrella; slice of
cake with a cherry; bowl of red soup; cup of green tea; blue bottle; banana and apple; plate with fish; white bread;
bunch of flowers; purple flower; tall green tree; yellow leaf; snow on a mountain; rain at night; fire and water;
arrow to the left in a circle; number seven; letter Z on a red button; question on a blue square; musical notes on
paper; man with a red beard; old woman with glasses; girl with a balloon; boy riding a horse; person in a green shirt
waving; hand holding a star; two hands clapping; pink pig with wings; white rabbit in a hat; yellow snake; purple
octopus; green bird on a branch; blue whale and a boat"""


class Matcher(nn.Module):
    """Pictures (B, C, H, W) and captions' features (B, E) -> unit vectors (B, WIDTH) each."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        widths = (channels, 32, 64, 128, 192)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.GELU()]
        self.pictures = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.LazyLinear(WIDTH))
        self.captions = nn.Sequential(nn.Dropout(0.1), nn.Linear(features, WIDTH))
        self.scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, pictures: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(self.pictures(pictures), dim=-1), F.normalize(self.captions(captions), dim=-1)


def pairs(source: Source) -> tuple[Tensor, list[str]]:
    items = [source.read(n) for n in range(len(source))]
    return torch.stack([item.media for item in items]), [str(item.entry.text) for item in items]


def encoded(pipeline: Pipeline, captions: Sequence[str]) -> Tensor:
    """(B, E), the mean over each one's tokens."""
    return torch.stack([one.float().mean(0) for one in pipeline.condition.encoder.encode(captions)])  # type: ignore[attr-defined]


def learn(pictures: Tensor, captions: Tensor, minutes: float) -> Matcher:
    torch.manual_seed(0)
    matcher = Matcher(pictures.shape[1], captions.shape[1])
    matcher(pictures[:2], captions[:2])  # which sizes its last layer
    optimizer = torch.optim.AdamW(matcher.parameters(), lr=1e-3, weight_decay=0.1)
    began = time.monotonic()
    while (done := (time.monotonic() - began) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * max(0.02, 1 - done)
        chosen = torch.randint(len(pictures), (128,))
        down, right = torch.randint(-MARGIN, MARGIN + 1, (2,)).tolist()
        batch = pictures[chosen].roll((down, right), (2, 3))
        batch = batch * (0.9 + 0.2 * torch.rand(len(batch), 1, 1, 1))
        seen, said = matcher(batch, captions[chosen])
        logits = matcher.scale.exp() * seen @ said.T
        target = torch.arange(len(chosen))
        loss = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return matcher.eval()


@torch.no_grad()
def score(matcher: Matcher, pictures: Tensor, captions: Tensor, texts: Sequence[str]) -> float:
    """Share of pictures for which the right caption is found among CHOICES."""
    seen, said = matcher(pictures, captions)
    fit, right, generator = seen @ said.T, 0, torch.Generator().manual_seed(0)
    for _ in range(DRAWS):
        for n, row in enumerate(fit):
            others = [m for m in torch.randperm(len(texts), generator=generator).tolist() if texts[m] != texts[n]]
            right += bool((row[n] > row[others[: CHOICES - 1]]).all())
    return right / DRAWS / len(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=4.0, help="The matcher's training.")
    args = parser.parse_args()
    pipeline = Pipeline.load(args.run)
    data = pipeline.recipe.data
    train, train_texts = pairs(data.build())
    held_out, held_out_texts = pairs(data.build_held_out())
    new = [" ".join(one.split()) for one in NEW.split(";")]
    if known := set(new) & {*train_texts, *held_out_texts}:
        raise SystemExit(f"not new: {', '.join(sorted(known))}")
    matcher = learn(train, encoded(pipeline, train_texts), args.minutes)
    some = [torch.randperm(len(one), generator=torch.Generator().manual_seed(0))[:COUNT] for one in (train, held_out)]
    lists = {
        "training": ([train_texts[n] for n in some[0].tolist()], train[some[0]]),
        "held out": ([held_out_texts[n] for n in some[1].tolist()], held_out[some[1]]),
        "new": (new, None),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    table = Table("captions", "how many", "generated", "real", title="the right one among ten (chance 10 %)")
    said = []
    for name, (texts, real) in lists.items():
        made = pipeline(pipeline.requests([{"text": text} for text in texts]))
        stem = name.replace(" ", "-")
        sheet([pipeline.tokenizer.media.preview(one) for one in made], columns=8).save(args.out / f"{stem}.png")
        said += [f"{stem} {n // 8 + 1}.{n % 8 + 1} {text}" for n, text in enumerate(texts)]
        features = encoded(pipeline, texts)
        of_made = score(matcher, torch.stack(list(made)).clamp(-1, 1), features, texts)
        of_real = "" if real is None else f"{score(matcher, real, features, texts):.1%}"
        table.add_row(name, str(len(texts)), f"{of_made:.1%}", of_real)
    (args.out / "captions.txt").write_text("\n".join(said) + "\n", encoding="utf-8")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()

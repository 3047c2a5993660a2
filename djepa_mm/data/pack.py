"""A corpus by index, written as WebDataset's shards: files as they are, other media so that nothing of them is lost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from djepa_mm.data.cache import made_whole
from djepa_mm.data.corpus import KnowsSizes
from djepa_mm.data.reading import FewReadings, KeptCorpus, draws
from djepa_mm.data.sources.shards import INDEX, TENSOR
from djepa_mm.recipe.kinds import AnyRecipe, with_tokenizer
from djepa_mm.runs.files import written_to
from djepa_mm.types import BrokenItem, Item, Progress, Stream, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """What was written."""

    items: int
    shards: int
    broken: Mapping[str, str]  # reasons by name of what was left out


@dataclass
class _Shard:
    """What the index says of one."""

    name: str
    size: int = 0  # bytes of its items
    items: int = 0
    seconds: float = 0.0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # height and width

    def row(self) -> dict[str, Any]:
        sizes = [[height, width, count] for (height, width), count in sorted(self.sizes.items())]
        return {"name": self.name, "items": self.items, "sizes": sizes, "seconds": round(self.seconds, 3)}


def pack(recipe: AnyRecipe, out: Path, shard_bytes: int, progress: Progress) -> Packed:
    """Write the corpus of a recipe into the folder `out`, in an order that its seed draws: whole or not at all.

    Every item is read once, so that broken ones are left out. A file is packed as it is, and once, whatever its
    windows; sizes, crops and the like are for the recipe that reads the shards. Raises UserError."""
    from webdataset import TarWriter

    recipe = with_tokenizer(recipe)
    source = recipe.data.build()
    if isinstance(source, Stream | KeptCorpus):
        raise UserError(f"data.source {recipe.data.source}: it lies in shards already; copy them")
    if out.exists():
        raise UserError(f"--out: {out} exists already; choose another place, or remove it")
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(recipe.run.seed)).tolist()
    per_second = recipe.tokenizer.build().media.per_second
    broken: dict[str, str] = {}
    packed: set[Path] = set()
    shards: list[_Shard] = []
    with written_to(out), made_whole(out) as folder, ExitStack() as last:
        for done, index in enumerate(order, start=1):
            progress(done, len(order))
            entry = source.entry(index)
            if entry.path in packed:
                continue
            try:
                item = source.read(index)
                if entry.path is None and (draws(source) or (isinstance(source, FewReadings) and source.readings > 1)):
                    raise UserError("data: it has no files and draws anew at each reading; let it draw nothing")
                suffix, content = _content(item)
            except BrokenItem as error:
                broken[entry.name] = str(error)
                continue
            if entry.path is not None:
                packed.add(entry.path)
            if not shards or shards[-1].size >= shard_bytes:
                last.close()
                shards.append(_Shard(f"{len(shards):06d}.tar"))
                writer = last.enter_context(TarWriter(str(folder / shards[-1].name), encoder=False, mtime=0))
            texts = {"cls": entry.label, "txt": entry.text}
            if entry.texts:
                texts |= {"txt": None, "json": json.dumps({"captions": entry.texts}, ensure_ascii=False)}
            said = {name: text.encode() for name, text in texts.items() if text is not None}
            shard = shards[-1]
            shard.size += writer.write({"__key__": f"{shard.name[:-4]}-{shard.items:06d}", suffix: content, **said})
            shard.items += 1
            if item.media.dim() > 1:
                size = source.file_size(index) if isinstance(source, KnowsSizes) else tuple(item.media.shape[-2:])
                shard.sizes[size] += 1
            if per_second is not None:
                shard.seconds += item.media.shape[-3 if item.media.dim() > 1 else 0] / per_second
        if not shards:
            raise UserError(
                f"nothing to pack: none of {len(order)} items can be read, such as {next(iter(broken), '')}"
            )
        total = sum(shard.items for shard in shards)
        told_of = {"classes": list(source.classes), "total": total, "shards": [shard.row() for shard in shards]}
        (folder / INDEX).write_text(json.dumps(told_of, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return Packed(items=total, shards=len(shards), broken=broken)


def _content(item: Item) -> tuple[str, bytes]:
    """Suffix and bytes of the media: of the item's file where it has one. Raises BrokenItem."""
    if (path := item.entry.path) is not None:
        try:
            return path.suffix.lower().lstrip("."), path.read_bytes()
        except OSError as error:
            raise BrokenItem(f"not readable ({error.strerror})") from None
    return TENSOR, safetensors.torch.save({"media": _plain(item.media)})


def _plain(media: Tensor) -> Tensor:
    return media.detach().float().cpu().contiguous()

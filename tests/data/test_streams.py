"""Corpora of shards: the same batches whoever reads, places that go on, tars that are broken or mean harm."""

from __future__ import annotations

import functools
import http.server
import io
import json
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from support import inside, sets

from djepa_mm.data.batches import Portion, Share
from djepa_mm.data.check import check_corpus
from djepa_mm.data.corpus import Cursor, merge
from djepa_mm.data.pack import pack
from djepa_mm.data.sources.shards import Shards, ShardsConfig, _Tar
from djepa_mm.data.streams import Place, Reader, StreamCorpus, open_corpus
from djepa_mm.errors import UserError
from djepa_mm.recipe.load import load_recipe

READERS = 4


def png(value: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


def tar(path: Path, files: dict[str, bytes | tarfile.TarInfo]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, content in files.items():
            info = tarfile.TarInfo(name) if isinstance(content, bytes) else content
            if isinstance(content, bytes):
                info.size = len(content)
            shard.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def items(start: int, count: int) -> dict[str, bytes | tarfile.TarInfo]:
    """Each of another grey and of the class of its last digit."""
    return {
        name: content
        for n in range(start, start + count)
        for name, content in ((f"{n:04d}.png", png(n)), (f"{n:04d}.cls", str(n % 10).encode()))
    }


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six of 20 items each."""
    folder = tmp_path_factory.mktemp("shards")
    for n in range(6):
        tar(folder / f"{n:03d}.tar", items(20 * n, 20))
    return folder


def source(urls: Path | str, **keys: Any) -> Shards:
    usual = {"media": "picture", "channels": 1, "readers": READERS, "shuffle": 8, "size": (8, 8)}
    return ShardsConfig(source="shards", urls=str(urls), **{**usual, **keys}).build()


def corpus(
    urls: Path | str, *, size: int = 8, workers: int = 0, tokens: int | None = None, **keys: Any
) -> StreamCorpus:
    batch = {"size": size, "workers": workers, "tokens": tokens, "cache": False}
    recipe = load_recipe("digits", {"batch": batch})
    stream, condition = source(urls, **keys), recipe.condition.build()
    condition.bind(stream)
    found = open_corpus(stream, recipe.tokenizer.build(), condition, recipe.batch, seed=3)
    assert isinstance(found, StreamCorpus)
    return found


def rows(portion: Portion) -> dict[int, torch.Tensor]:
    """Tokens and class by the item's place."""
    values = portion.batch.condition.values
    return {
        place: torch.cat([portion.batch.tokens[n].flatten(), values[n].float()])
        for n, place in enumerate(portion.places)
    }


def batches(
    found: StreamCorpus, start: Cursor, count: int, share: Share
) -> list[tuple[dict[int, torch.Tensor], Cursor]]:
    return [
        ({place: row for portion in portions if portion for place, row in rows(portion).items()}, cursor)
        for portions, cursor in islice(found.batches(start, share), count)
    ]


def alike(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(row, other[place]) for place, row in one.items())


# --- the same whoever reads -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [{"flip": True}, {"tokens": 96}], ids=["flip", "tokens"])
def test_batches_depend_on_no_worker_and_no_process(shards: Path, keys: dict[str, Any]) -> None:
    count = 17  # of 15 an epoch
    alone = batches(corpus(shards, **keys), Cursor(), count, Share())
    with_workers = batches(corpus(shards, workers=2, **keys), Cursor(), count, Share())
    in_parts = batches(corpus(shards, **keys), Cursor(), count, Share(parts=2))
    ranks = [batches(corpus(shards, **keys), Cursor(), count, Share(rank=rank, world=2)) for rank in (0, 1)]
    for n, (rows, cursor) in enumerate(alone):
        merged = merge([rank[n][1] for rank in ranks])
        assert alike(rows, with_workers[n][0])
        assert alike(rows, in_parts[n][0])
        assert alike(rows, ranks[0][n][0] | ranks[1][n][0])
        assert cursor == with_workers[n][1] == in_parts[n][1] == merged
        assert None in ranks[0][n][1].readers


@pytest.mark.parametrize("urls", ["{000..005}.tar", "{000..001}.tar"], ids=["many shards", "shared shards"])
def test_every_place_goes_on(shards: Path, urls: str) -> None:
    found = batches(corpus(shards / urls), Cursor(), 18, Share())
    for n, (_, cursor) in enumerate(found[:-2]):
        kept = Cursor(**json.loads(json.dumps(asdict(cursor))))
        workers, world = n % 3, 1 + n % 2
        for rank in range(world):
            share = Share(rank=rank, world=world)
            (rows, after), *_ = batches(corpus(shards / urls, workers=0 if n % 5 else workers), kept, 1, share)
            assert all(torch.equal(row, found[n + 1][0][place]) for place, row in rows.items())
            assert all(
                place in (None, there) for place, there in zip(after.readers, found[n + 1][1].readers, strict=True)
            )


@pytest.mark.parametrize("shuffle", [0, 1, 7, 1000])
@pytest.mark.parametrize("count", [1, 3, 6])
def test_an_epoch_has_every_item_once(shards: Path, shuffle: int, count: int) -> None:
    stream = source(shards / f"{{000..{count - 1:03d}}}.tar", shuffle=shuffle)
    readers = [Reader(stream, number, seed=5) for number in range(READERS)]
    orders = []
    for epoch in (0, 1):
        found = [[(t.shard, t.item) for t, _ in reader.epoch(Place(epoch))] for reader in readers]
        seen = Counter(place for one in found for place in one)
        assert set(seen.values()) == {1}
        assert len(seen) == 20 * count
        orders.append(found)
    assert (orders[0] != orders[1]) == (shuffle > 1 or (shuffle == 1 and count > 1))


def test_a_place_is_of_few_numbers(shards: Path) -> None:
    *_, (_, cursor) = batches(corpus(shards), Cursor(), 10, Share())
    assert [len(place) for place in cursor.readers if place is not None] == [4] * READERS


def test_what_does_not_divide_is_said(shards: Path) -> None:
    with pytest.raises(UserError, match=r"batch\.size 6 .*: set batch\.size to 4 or 8, or data\.readers to 3"):
        next(corpus(shards, size=6).batches(Cursor()))
    with pytest.raises(UserError, match=r"data\.readers 4 .* 3 parts .* set data\.readers to 6"):
        next(corpus(shards).batches(Cursor(), Share(world=3)))
    (_, cursor), *_ = batches(corpus(shards), Cursor(), 1, Share())
    with pytest.raises(UserError, match=r"data\.readers is 2, but this run has read with 4"):
        next(corpus(shards, readers=2).batches(cursor))
    recipe = load_recipe("digits")
    with pytest.raises(UserError, match=r"batch\.cache"):
        open_corpus(source(shards), recipe.tokenizer.build(), recipe.condition.build(), recipe.batch)


# --- shards that are not as they should be ----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_is_gone_is_named(tmp_path: Path, workers: int) -> None:
    for n in range(4):
        tar(tmp_path / f"{n}.tar", items(20 * n, 20))
    found = corpus(tmp_path, workers=workers)
    (tmp_path / "2.tar").unlink()
    with pytest.raises(UserError, match=r"the shard .*2\.tar cannot be read .*No such file"):
        batches(found, Cursor(), 30, Share())
    with pytest.raises(UserError, match=r"the shard .*2\.tar cannot be read"):
        source(tmp_path / "{0..3}.tar")


def test_a_shard_that_is_cut_short_gives_its_whole_items(tmp_path: Path) -> None:
    whole = tar(tmp_path / "a.tar", items(0, 20)).read_bytes()
    seen = []
    for size in (len(whole) - 10240, 512 * 37 + 100, 512 * 4 + 10, 512 * 4):
        (tmp_path / "a.tar").write_bytes(whole[:size])
        stream = source(tmp_path / "a.tar")
        samples = [sample for _, sample in stream.samples(0)]
        assert samples[-1].name == "a.tar"
        assert "cut short" in str(samples[-1].members[""])
        good = [
            n for n, sample in enumerate(samples[:-1]) if not any(isinstance(m, str) for m in sample.members.values())
        ]
        assert good == list(range(len(good)))
        assert [number for number, _ in stream.samples(0, 1, 2)] == list(range(1, len(samples), 2))
        seen.append(len(good))
    assert seen == sorted(seen, reverse=True)
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    assert "not a tar" in str(next(source(tmp_path / "a.tar").samples(0))[1].members)


def hostile() -> dict[str, bytes | tarfile.TarInfo]:
    def info(name: str, **keys: Any) -> tarfile.TarInfo:
        found = tarfile.TarInfo(name)
        for key, value in keys.items():
            setattr(found, key, value)
        return found

    return {
        "../out.png": png(0),
        "/absolute.png": png(0),
        "a/../../b.png": png(0),
        "link.png": info("link.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        "hard.png": info("hard.png", type=tarfile.LNKTYPE, linkname="0000.png"),
        "device.png": info("device.png", type=tarfile.CHRTYPE),
        "pipe.png": info("pipe.png", type=tarfile.FIFOTYPE),
        "large.png": b"\0" * 20_000,
        "bomb.png": b"\x89PNG\r\n\x1a\n" + b"\0" * 30,
        "code.pth": b"\x80\x04.",
        "torn.png": png(3)[:40],
        "twice.png": png(1),
        "label.cls": b"7",
        "bytes.png": png(1),
        "bytes.cls": b"\xff\xfe",
        "deep.png": png(1),
        "deep.json": b"[" * 100_000,
        "none.png": png(1),
        "empty.png": b"",
        "lies.safetensors": b"\xff" * 7 + b"\x7f{}",
    }


def test_tars_that_mean_harm_are_skipped_and_named(tmp_path: Path) -> None:
    bad = hostile()
    tar(tmp_path / "in" / "a.tar", {**items(0, 20), **bad, **items(20, 20)})
    recipe = load_recipe(
        "digits",
        {
            "data": {"source": "shards", "urls": str(tmp_path / "in"), "media": "picture", "size": [8, 8],
                     "channels": 1, "max_member_mb": 0.015, "classes": list("0123456789")},
            "batch.cache": False,
        },
    )  # fmt: skip
    table, healthy = check_corpus(recipe, lambda done, total: None)
    what, said = ([str(cell) for cell in column.cells] for column in table.columns)
    found = dict(zip((one.strip() for one in what), said, strict=True))
    keys = {name.rpartition("/")[0] + "/" * ("/" in name) + name.rpartition("/")[2].partition(".")[0] for name in bad}
    assert not healthy
    assert {f"a.tar/{key}" for key in keys} == {name for name in found if name.startswith("a.tar/")}
    assert "leads out" in found["a.tar/../out"]
    assert "a link" in found["a.tar/link"]
    assert found["a.tar/empty"] == ".png: empty"
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "a.tar"]


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\x80" + b"\x7f" + b"\xff" * 10, b"77777777777\0"])
def test_sizes_that_lie_end_the_shard(tmp_path: Path, size: bytes) -> None:
    raw = bytearray(tar(tmp_path / "a.tar", items(0, 4)).read_bytes())
    header = raw.index(b"0002.png")
    raw[header + 124 : header + 136] = size
    raw[header + 148 : header + 156] = b" " * 8
    raw[header + 148 : header + 156] = b"%06o\0 " % sum(raw[header : header + 512])
    (tmp_path / "a.tar").write_bytes(raw)
    samples = [sample for _, sample in source(tmp_path / "a.tar").samples(0)]
    assert [sample.name for sample in samples[:2]] == ["a.tar/0000", "a.tar/0001"]
    assert samples[-1].name == "a.tar"


@pytest.mark.parametrize("url", ["pipe:cat a.tar", "s3://bucket/a.tar", "file:///a.tar", "gs://a.tar"])
def test_other_ways_to_shards_are_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"data\.urls: .* http:// or https://"):
        source(url)


def test_broken_items_beyond_the_share_end_training(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", {**items(0, 8), **{f"x{n}.png": b"no" for n in range(200)}})
    with pytest.raises(UserError, match=r"batch\.max_broken_share 5\.0%.*a\.tar/x"):
        batches(corpus(tmp_path, readers=2), Cursor(), 100, Share())


def test_shards_on_a_server(shards: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(shards)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        far = batches(corpus(f"{url}/{{000..005}}.tar"), Cursor(), 3, Share())
        near = batches(corpus(shards), Cursor(), 3, Share())
        assert all(alike(one[0], other[0]) for one, other in zip(far, near, strict=True))
        with pytest.raises(UserError, match=r"the shard http.*/no\.tar cannot be read"):
            next(source(f"{url}/no.tar").samples(0))
    finally:
        server.shutdown()


# --- what is packed ---------------------------------------------------------------------------------------------------


def stream_of(recipe: Any, out: Path, **data: Any) -> Any:
    pack(recipe, out, 40_000, lambda done, total: None)
    return ShardsConfig(source="shards", urls=str(out), **data).build()


def read(stream: Any) -> Iterator[Any]:
    return (stream.decode(sample) for shard in range(len(stream.shards)) for _, sample in stream.samples(shard))


def bag(found: Any) -> Counter[Any]:
    return Counter((item.media.numpy().tobytes(), item.entry.label, item.entry.text) for item in found)


def test_packed_digits_are_the_digits(tmp_path: Path) -> None:
    recipe = load_recipe("digits", {"data.split": "all"})
    digits = recipe.data.build()
    stream = stream_of(recipe, tmp_path / "out", media="picture", channels=1, size=(8, 8))
    assert bag(read(stream)) == bag(digits.read(n) for n in range(len(digits)))
    assert stream.classes == digits.classes
    assert stream.total == len(digits)
    assert len(stream.shards) > 1
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert sum(size[2] for row in index["shards"] for size in row["sizes"]) == index["total"]


def test_packed_pictures_are_their_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for n in range(6):
        (tmp_path / "in" / f"c{n % 2}").mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (20 + n, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"c{n % 2}" / f"{n}.jpg")
    (tmp_path / "in" / "c0" / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    data = [f"data.root={tmp_path / 'in'}", "data.held_out=0", "data.size=[16,16]"]
    done = inside("data", "pack", "pictures", "--out", str(tmp_path / "out"), *sets(*data))
    assert done.returncode == 0
    assert "6 items in 1 shards" in done.stdout
    assert "c0/torn.jpg" in done.stderr
    stream = source(tmp_path / "out", channels=3, size=(16, 16))
    folder = load_recipe("pictures", data).data.build()
    assert bag(read(stream)) == bag(folder.read(n) for n in range(len(folder)) if "torn" not in folder.files[n])
    again = inside("data", "pack", "pictures", "--out", str(tmp_path / "out"), *sets(*data))
    assert again.returncode == 2
    assert "exists already" in again.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_packed_speech_trains_by_its_texts(tmp_path: Path) -> None:
    (tmp_path / "in" / "wavs").mkdir(parents=True)
    lines = []
    for n in range(12):
        sound = np.sin(np.arange(8000 + 500 * n) / 9) / 2
        soundfile.write(tmp_path / "in" / "wavs" / f"{n}.wav", sound, 22050)
        lines.append(f"{n}|{'one ' * (n + 1)}|{'one ' * (n + 1)}")
    (tmp_path / "in" / "metadata.csv").write_text("\n".join(lines))
    recipe = load_recipe("ljspeech", {"data": {"source": "ljspeech", "root": str(tmp_path / "in")}})
    speech = recipe.data.build()
    stream = stream_of(recipe, tmp_path / "out", media="sound", readers=2)
    assert bag(read(stream)) == bag(speech.read(n) for n in range(len(speech)))
    condition = recipe.condition.build()
    condition.bind(stream)
    batch = recipe.batch.model_copy(update={"cache": False, "size": 4, "tokens": None})
    found = open_corpus(stream, recipe.tokenizer.build(), condition, batch)
    found.fit_condition()
    found.fit_tokenizer()
    assert condition.state()["pace"]
    portions, _ = next(found.batches(Cursor()))
    assert portions[0] is not None
    assert len(portions[0].places) == 4


def test_packed_clips_are_their_files(tmp_path: Path) -> None:
    pytest.importorskip("av")
    digits = load_recipe("moving-digits", {"data.count": 3, "data.root": str(tmp_path / "cache")})
    clips = digits.data.build()
    stream = stream_of(
        digits, tmp_path / "out", media="clip", frames=digits.data.frames, size=clips.config.size, channels=1
    )
    assert bag(read(stream)) == bag(clips.read(n) for n in range(len(clips)))


def test_patterns_of_names_without_end_are_not_written_out(tmp_path: Path) -> None:
    for pattern in ("{0..999999999999}.tar", "{0..9999}/{0..9999}.tar", "{a,b}" * 40, "{000..999}{a,b}{0..999}.tar"):
        with pytest.raises(UserError, match=r"^data\.urls: '[^\n]+' names more than 1,000,000 shards$"):
            source(tmp_path / pattern)
    tar(tmp_path / "a1.tar", items(0, 1))
    with pytest.raises(UserError, match=r"b1\.tar cannot be read"):
        source(tmp_path / "{a,b}{1..1}.tar")


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_of_plain_files_are_read_as_tarfile_reads_them(kind: int, tmp_path: Path) -> None:
    names = ["a.png", "d/é ü.txt", "n" * 95 + ".cls", "f" * 60 + "/" + "n" * 60, "link", "folder", "empty"]
    with tarfile.open(tmp_path / "a.tar", "w", format=kind) as out:
        for n, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 5000 * n if n < 4 else 0
            info.type = {"link": tarfile.SYMTYPE, "folder": tarfile.DIRTYPE}.get(name, tarfile.REGTYPE)
            out.addfile(info, io.BytesIO(bytes(info.size)))
    read = []
    for opened in (tarfile.TarFile, _Tar):
        with opened.open(tmp_path / "a.tar", "r:") as found:
            read.append([(one.name, one.size, one.type, one.offset_data, one.isreg()) for one in found])
    assert read[0] == read[1]
    assert len(read[0]) == len(names)

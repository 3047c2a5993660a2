"""The command line. Verbs are thin; whatever is heavy is imported inside them, so that --help is quick."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from djepa_mm.errors import UserError

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from djepa_mm.generation.pipeline import Generation

app = typer.Typer(
    name="djepa-mm",
    help="Generate images, video and speech with one model family, D-JEPA: train a recipe, then generate from the run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
recipes_app = typer.Typer(
    help="The recipes that come with the package, and the checking of yours.", no_args_is_help=True
)
vocoder_app = typer.Typer(help="Train a vocoder of our own, and listen to what one does.", no_args_is_help=True)
data_app = typer.Typer(help="Fetch or make a corpus; check one.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes", rich_help_panel=None)
app.add_typer(data_app, name="data")
app.add_typer(vocoder_app, name="vocoder")

MOST_PATHS = 20  # that generate prints; of more, only the sheet and the folder

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a packaged recipe.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or one checkpoint in it.")]
OutOption = Annotated[Optional[Path], typer.Option(help="Run folder; runs/<recipe's name> by default.")]  # noqa: UP045
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on exactly where the run in the folder stopped.")]
SetOption = Annotated[
    Optional[list[str]],  # noqa: UP045  (typer reads it at run time)
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe, e.g. optim.lr=1e-4. Repeatable."),
]
TextOption = Annotated[Optional[str], typer.Option(help="Text to speak or to show.")]  # noqa: UP045
StepsOption = Annotated[Optional[int], typer.Option(min=1, help="Autoregressive steps, T.")]  # noqa: UP045
GuidanceOption = Annotated[Optional[float], typer.Option(min=0, help="Guidance; 1 is none.")]  # noqa: UP045
TemperatureOption = Annotated[Optional[float], typer.Option(min=0, help="Scale of the noise.")]  # noqa: UP045
SeedOption = Annotated[int, typer.Option(min=0, help="The same seed gives the same items.")]
RecogniserOption = Annotated[
    str,
    typer.Option(help="grammar, language-model, or a Whisper: a folder or a hub name. auto: grammar for few words."),
]


class Unknown(StrEnum):
    """What to do with characters that the model does not know."""

    error = "error"
    drop = "drop"


UnknownOption = Annotated[
    Unknown, typer.Option(help="Characters that the model does not know: an error that names them, or dropped.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


@app.command()
def train(
    recipe: RecipeArgument,
    out: OutOption = None,
    resume: ResumeOption = False,
    from_: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--from", metavar="RUN", help="Begin with the weights of this run, to fine-tune it."),
    ] = None,
    set_: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train a recipe: checkpoints, logs and sample sheets go into the run folder."""
    from djepa_mm.recipe.schema import load_recipe
    from djepa_mm.training.loop import train as run

    loaded = load_recipe(recipe, set_ or [])
    folder = out or Path("runs") / loaded.name
    outcome = run(loaded, folder, resume=resume, device=_device(device), console=_console(), start=from_)
    if outcome.finished:
        typer.echo(f"generate from it: djepa-mm generate {outcome.run}")
    else:
        typer.echo(f"go on with it: djepa-mm train {recipe} --out {outcome.run} --resume")
        raise typer.Exit(130)


@app.command()
def generate(
    run: RunArgument,
    class_: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--class", help="Name of the class to generate. Repeatable; all classes by default."),
    ] = None,
    text: TextOption = None,
    prompts: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A file with one text a line; project-page is D-JEPA's ten sentences."),
    ] = None,
    unknown: UnknownOption = Unknown.error,
    count: Annotated[int, typer.Option(min=1, help="Items of each class or text.")] = 1,
    candidates: Annotated[
        int, typer.Option(min=1, help="Speak each text so many times and keep what the recogniser understands best.")
    ] = 1,
    recogniser: RecogniserOption = "auto",
    seconds: Annotated[Optional[float], typer.Option(help="Duration; by default what the text takes.")] = None,  # noqa: UP045
    rate: Annotated[float, typer.Option(help="Speed of speaking; 2 is twice as fast as the corpus.")] = 1.0,
    first_frames: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="CLIP:K", help="Every item begins with the first K frames of this clip."),
    ] = None,
    last_frames: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="CLIP:K", help="Every item ends with the last K frames of this clip."),
    ] = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = 0,
    batch: Annotated[int, typer.Option(min=1, help="Items sampled together.")] = 64,
    out: Annotated[Optional[Path], typer.Option(help="Folder for the files; RUN/generated by default.")] = None,  # noqa: UP045
    format_: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--format", help="Of the files: mp4, gif or webp; png, webp or jpg; wav or flac."),
    ] = None,
    set_: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Generate from a trained run: a file an item, a sheet and a page of all."""
    from djepa_mm.generation.edit import given_frames, run_edits
    from djepa_mm.generation.pipeline import Generation, with_sampling, write_media

    _check_finite(seconds=seconds, rate=rate, guidance=guidance, temperature=temperature)
    if text is not None and prompts is not None:
        raise UserError("--text and --prompts: give one of the two")
    texts = [text] if text is not None else _read_prompts(prompts) if prompts is not None else []
    generation = Generation.load(run, set_ or [], _device(device))
    suffix = None if format_ is None else _suffix(generation, f".{format_.lower().lstrip('.')}", f"--format {format_}")
    texts = [_readable(generation, text, unknown) for text in texts]
    requests = generation.requests(class_ or [], texts, count=count, duration_s=seconds, rate=rate, seed=seed)
    sampler = with_sampling(generation.sampler, steps=steps, guidance=guidance, temperature=temperature)
    with _bar("generating") as progress:
        if candidates > 1:
            from djepa_mm.evaluate.candidates import best_of, recogniser_for

            listener = recogniser_for(generation, recogniser, texts)
            options = {"sampler": sampler, "batch_size": batch, "progress": progress}
            media = best_of(generation, requests, candidates, listener, **options)
        elif first_frames is not None or last_frames is not None:
            first = _read_frames(generation, "--first-frames", first_frames)
            last = _read_frames(generation, "--last-frames", last_frames)
            edits = [given_frames(generation, request, first=first, last=last) for request in requests]
            media = run_edits(generation, edits, sampler=sampler, batch_size=batch, progress=progress)
        else:
            media = generation(requests, sampler=sampler, batch_size=batch, progress=progress)
    folder = out or (run if run.name == "generated" else run / "generated")
    with _bar("writing") as progress:
        paths = list(_counted(write_media(generation, requests, media, folder, suffix), len(media) + 2, progress))
    for path in paths if len(paths) <= MOST_PATHS else paths[-2:]:
        typer.echo(path)
    if len(paths) > MOST_PATHS:
        typer.echo(f"{len(media)} files in {folder}")


@app.command()
def edit(
    run: RunArgument,
    clip: Annotated[Path, typer.Argument(metavar="FILE", help="The clip or picture to edit; it stays as it is.")],
    from_: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            "--from", help="Where the edit begins, in seconds; the clip's end by default, which continues it."
        ),
    ] = None,
    to: Annotated[Optional[float], typer.Option(help="Where it ends; the clip's end by default.")] = None,  # noqa: UP045
    seconds: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Length of what comes in; as long as what goes out by default."),
    ] = None,
    mask: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="A picture as large as FILE, or a clip of as many frames: what is white in it is painted anew; "
            "in a clip, between --from and --to where they are given."
        ),
    ] = None,
    text: Annotated[Optional[str], typer.Option(help="Text of the whole clip after the edit.")] = None,  # noqa: UP045
    class_: Annotated[Optional[str], typer.Option("--class", help="Class of what is painted.")] = None,  # noqa: UP045
    unknown: UnknownOption = Unknown.error,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = 0,
    out: Annotated[Optional[Path], typer.Option(help="The new file; FILE's name with -edited by default.")] = None,  # noqa: UP045
    set_: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Edit a clip between two times, continue it, or paint a part of a picture or clip anew; the rest stays."""
    from djepa_mm.generation.edit import in_paint, replace_span, run_edits
    from djepa_mm.generation.pipeline import Generation, Request, with_sampling

    _check_finite(**{"from": from_, "to": to}, seconds=seconds, guidance=guidance, temperature=temperature)
    generation = Generation.load(run, set_ or [], _device(device))
    tokenizer = generation.tokenizer
    target = out or clip.with_name(f"{clip.stem}-edited{tokenizer.suffix}")
    _suffix(generation, target.suffix, f"--out {target}")
    if target.resolve() == clip.resolve():
        raise UserError(f"--out {target}: that is the file to edit, which stays as it is; choose another name")
    media = tokenizer.load(clip)
    text = None if text is None else _readable(generation, text, unknown)
    request = Request(text=text, label=None if class_ is None else generation.label(class_), seed=(seed,))
    if mask is not None:
        if seconds is not None:
            raise UserError("--mask and --seconds: what is painted anew keeps its length; leave --seconds out")
        wanted = in_paint(generation, media, request, _read_mask(mask, clip=media.dim() == 4), start_s=from_, stop_s=to)
    else:
        wanted = replace_span(generation, media, request, start_s=from_, stop_s=to, new_s=seconds)
    sampler = with_sampling(generation.sampler, steps=steps, guidance=guidance, temperature=temperature)
    with _bar("editing") as progress:
        (edited,) = run_edits(generation, [wanted], sampler=sampler, progress=progress)
    target.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(edited, target)
    typer.echo(target)


@app.command()
def evaluate(
    run: RunArgument,
    prompts: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A file with one text a line; by default the corpus' held-out items, with their recordings."),
    ] = None,
    count: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Items; by default 100 held-out sentences, or 200 clips or pictures."),
    ] = None,
    recogniser: RecogniserOption = "auto",
    extractor: Annotated[
        str,
        typer.Option(
            help="Of the features of clips and pictures: a TorchScript file (I3D), a video model's folder or hub name, "
            "or embedded: a classifier of frames, trained on the corpus."
        ),
    ] = "embedded",
    given: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Frames of a held-out clip that the others are predicted from; a quarter by default."),
    ] = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = 0,
    out: Annotated[Optional[Path], typer.Option(help="JSON file; RUN/evaluation.json by default.")] = None,  # noqa: UP045
    set_: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure a run beside held-out items; a table, and JSON with the checkpoint's hash.

    Speech: word error rate, distances to recordings. Clips and pictures: Fréchet distance, recognised classes,
    prediction. Speed."""
    import json
    import shlex

    from djepa_mm.evaluate.report import evaluate_run, report
    from djepa_mm.generation.pipeline import Generation, with_sampling

    _check_finite(guidance=guidance, temperature=temperature)
    texts = _read_prompts(prompts) if prompts is not None else []
    generation = Generation.load(run, set_ or [], _device(device))
    with _bar("evaluating") as progress:
        figures = evaluate_run(
            run,
            generation,
            texts=texts,
            count=count,
            recogniser=recogniser,
            extractor=extractor,
            given=given,
            sampler=with_sampling(generation.sampler, steps=steps, guidance=guidance, temperature=temperature),
            seed=seed,
            command=shlex.join(["djepa-mm", *sys.argv[1:]]),
            progress=progress,
        )
    target = out or (run.parent.parent if (run / "state.json").is_file() else run) / "evaluation.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _console().print(report(figures))
    typer.echo(target)


@app.command()
def tokens(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Clips, pictures or sounds; or saved tokens.")],
    tokenizer: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A recipe, or a kind with keys: clip-patches,patch=[2,8,8]. Repeatable."),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder for comparisons, or for the media of saved tokens; tokens/ by default."),
    ] = None,
    save: Annotated[Optional[Path], typer.Option(help="Folder to save the tokens in, as safetensors.")] = None,  # noqa: UP045
    json_: Annotated[Optional[Path], typer.Option("--json", help="File for all figures.")] = None,  # noqa: UP045
    repeats: Annotated[int, typer.Option(min=1, help="Of encoding and decoding; rates are medians.")] = 3,
    device: DeviceOption = "auto",
) -> None:
    """The token bench: what tokenizers keep of files, in figures and side by side; saved tokens back to media."""
    import json

    from djepa_mm.bench.bench import bench, decode_files, parse_tokenizer, report, save_all, table, write_comparisons

    folder = out or Path("tokens")
    if all(file.suffix == ".safetensors" for file in files):
        for path in decode_files(files, folder, _device(device)):
            typer.echo(path)
        return
    if not tokenizer:
        raise UserError("--tokenizer: give at least one, such as clip-patches,patch=[2,8,8] or a recipe's name")
    candidates = [parse_tokenizer(name, files) for name in tokenizer]
    with _bar("tokenizing") as progress:
        rows = bench(candidates, files, repeats=repeats, device=_device(device), progress=progress)
    _console().print(table(rows))
    for path, reason in dict(pair for row in rows for pair in row.skipped).items():
        typer.echo(f"skipped {path}: {reason}", err=True)
    for row in rows:
        written = list(write_comparisons(row, folder))
        if save is not None:
            written += list(save_all(row, save, _device(device)))
        for path in written if len(written) <= MOST_PATHS else written[:1]:
            typer.echo(path)
    if json_ is not None:
        json_.parent.mkdir(parents=True, exist_ok=True)
        json_.write_text(json.dumps(report(rows), indent=2) + "\n", encoding="utf-8")


@app.command()
def info(recipe: RecipeArgument, set_: SetOption = None) -> None:
    """What a recipe builds: parameters by part, tokens, FLOPs and memory. Nothing is allocated or trained."""
    from djepa_mm.recipe.describe import describe
    from djepa_mm.recipe.schema import load_recipe

    _console().print(describe(load_recipe(recipe, set_ or [])))


@app.command()
def doctor() -> None:
    """Versions, devices, and what is missing."""
    from djepa_mm.cli.doctor import examine

    table, healthy = examine()
    _console().print(table)
    if not healthy:
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the runs and the page.")] = Path("demo"),
    minutes: Annotated[float, typer.Option(min=0.1, help="Training time, shared out over the recipes.")] = 4.5,
    device: DeviceOption = "auto",
) -> None:
    """Train the embedded recipes shortly, generate, and write one HTML page to look at and listen to."""
    from djepa_mm.cli.demo import make_demo

    page = make_demo(out, minutes=minutes, device=_device(device), console=_console())
    typer.echo(f"open {page}")


@recipes_app.command("list")
def list_recipes() -> None:
    """Name and first line of every packaged recipe."""
    from djepa_mm.recipe.schema import packaged_recipes

    for name, path in packaged_recipes().items():
        typer.echo(f"{name:<16} {path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")


@recipes_app.command("show")
def show_recipe(
    recipe: RecipeArgument,
    set_: SetOption = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="With every default written out.")] = False,
) -> None:
    """Print a recipe."""
    from djepa_mm.recipe.schema import dump_recipe, find_recipe, load_recipe

    if resolved or set_:
        typer.echo(dump_recipe(load_recipe(recipe, set_ or [])), nl=False)
    else:
        typer.echo(find_recipe(recipe).read_text(encoding="utf-8"), nl=False)


@recipes_app.command("copy")
def copy_recipe(
    recipe: RecipeArgument, target: Annotated[Path, typer.Argument(help="File or folder.")] = Path()
) -> None:
    """Copy a packaged recipe, to change it."""
    import shutil

    from djepa_mm.recipe.schema import find_recipe

    source = find_recipe(recipe)
    path = target / source.name if target.is_dir() else target
    if path.exists():
        raise UserError(f"{path}: is there already; choose another name")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder")
    shutil.copyfile(source, path)
    typer.echo(path)


@recipes_app.command("validate")
def validate_recipe(recipe: RecipeArgument, set_: SetOption = None) -> None:
    """Check a recipe without running it."""
    from djepa_mm.recipe.schema import load_recipe

    typer.echo(f"{load_recipe(recipe, set_ or []).name}: valid")


@recipes_app.command("schema")
def print_schema() -> None:
    """JSON schema of recipes, for editors."""
    import json

    from djepa_mm.recipe.schema import schema_class

    typer.echo(json.dumps(schema_class().model_json_schema(), indent=2, ensure_ascii=False))


@data_app.command("fetch")
def fetch_data(
    recipe: RecipeArgument,
    out: Annotated[Optional[Path], typer.Option(help="Where to; the recipe's data.root by default.")] = None,  # noqa: UP045
    set_: SetOption = None,
) -> None:
    """Download or make the corpus of a recipe, e.g. ljspeech or spoken-digits."""
    from djepa_mm.recipe.schema import load_recipe

    overrides = [*(set_ or []), *([f"data.root={out}"] if out else [])]
    with _bar("fetching") as progress:
        typer.echo(load_recipe(recipe, overrides).data.fetch(progress))


@data_app.command("check")
def check_data(recipe: RecipeArgument, set_: SetOption = None) -> None:
    """Read every item of a recipe's corpus and report the broken ones; exit code 1 where there are any."""
    from djepa_mm.data.check import check_corpus
    from djepa_mm.recipe.schema import load_recipe

    with _bar("reading") as progress:
        table, healthy = check_corpus(load_recipe(recipe, set_ or []), progress)
    _console().print(table)
    if not healthy:
        raise typer.Exit(1)


@vocoder_app.command("train")
def train_vocoder_verb(
    recipe: RecipeArgument = "vocoder",
    out: OutOption = None,
    resume: ResumeOption = False,
    set_: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train our Fourier-head vocoder on recordings in LJSpeech's layout."""
    from djepa_mm.training.vocoder import load_vocoder_recipe, train_vocoder

    loaded = load_vocoder_recipe(recipe, set_ or [])
    folder = out or Path("runs") / loaded.name
    outcome = train_vocoder(loaded, folder, resume=resume, device=_device(device), console=_console())
    if not outcome.finished:
        typer.echo(f"go on with it: djepa-mm vocoder train {recipe} --out {outcome.run} --resume")
        raise typer.Exit(130)
    typer.echo(f"speak with it: --set 'tokenizer.vocoder={{kind: fourier, path: {outcome.run}}}'")


@vocoder_app.command("copy")
def copy_recordings(
    run: RunArgument,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recordings; they stay as they are.")],
    out: Annotated[Path, typer.Option(help="Folder for the sounds and the page.")] = Path("copies"),
    device: DeviceOption = "auto",
) -> None:
    """Take recordings to log-mels and back, by the vocoder of a run and by Griffin-Lim, to listen and compare."""
    from djepa_mm.training.vocoder import copy_synthesis

    with _bar("copying") as progress:
        typer.echo(copy_synthesis(run, files, out, device=_device(device), progress=progress))


# --- shared by the verbs ----------------------------------------------------------------------------------------------


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: no CUDA device is visible here; djepa-mm doctor says more")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    return device


def _check_finite(**options: float | None) -> None:
    for name, value in options.items():
        if value is not None and not math.isfinite(value):
            raise UserError(f"--{name} {value}: expected a finite number")


def _readable(generation: Generation, text: str, unknown: Unknown) -> str:
    """The text without the characters that the model does not know, of which a warning tells; or as it is."""
    vocabulary = generation.conditions.vocabulary
    if vocabulary is None or unknown is Unknown.error or not (left_out := vocabulary.unknown(text)):
        return text
    typer.echo(f"djepa-mm: left out of {text!r}: {left_out!r}", err=True)
    return vocabulary.clean(text)


def _suffix(generation: Generation, suffix: str, option: str) -> str:
    """The suffix, if the model writes such files. Raises UserError, naming the option that asked for it."""
    known = generation.tokenizer.suffixes
    if suffix not in known:
        raise UserError(f"{option}: this model writes {', '.join(known)} files")
    return suffix


def _read_frames(generation: Generation, option: str, value: str | None) -> torch.Tensor | None:
    """(C, k, H, W) of CLIP:k, the clip's first frames or its last, as the option says; None where nothing is given."""
    from djepa_mm.generation.edit import clip_spec
    from djepa_mm.media.files import read_clip

    if value is None:
        return None
    name, _, number = value.rpartition(":")
    if not name or not number.isdecimal() or not 0 < len(number.lstrip("0")) < 10:
        raise UserError(f"{option} {value}: expected a clip and how many frames of it, such as walk.mp4:4")
    count, channels = int(number), clip_spec(generation).shape[0]
    which = {"most" if option == "--first-frames" else "last": count}
    frames = read_clip(Path(name), channels=channels, **which)
    if frames.shape[1] < count:
        raise UserError(f"{option} {value}: the clip has {frames.shape[1]} frames")
    return frames


def _read_mask(path: Path, *, clip: bool) -> torch.Tensor:
    """Bool, True where it is white: (H, W) of a picture; for a clip, (T, H, W) of one."""
    from djepa_mm.media.files import read_clip, read_picture

    white = read_clip(path, channels=1)[0] > 0 if clip else read_picture(path, channels=1) > 0
    return white[0] if len(white) == 1 else white  # a picture, which FFmpeg reads as a clip of one frame


def _read_prompts(path: Path) -> list[str]:
    from djepa_mm.recipe.schema import FOLDER

    packaged = FOLDER / f"prompts-{path}.txt"
    if len(path.parts) == 1 and not path.exists() and packaged.is_file():
        path = packaged
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {path}: cannot be read: {error}") from None
    texts = [line for line in lines if line]
    if not texts:
        raise UserError(f"--prompts {path}: holds no text; write one a line")
    return texts


def _counted(items: Iterable[Path], total: int, progress: Callable[[int, int], None]) -> Iterator[Path]:
    for done, item in enumerate(items, start=1):
        progress(done, total)
        yield item


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr; yields progress(done, total)."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2."""
    try:
        app()
    except UserError as error:
        sys.stderr.write(f"djepa-mm: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

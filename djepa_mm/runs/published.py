"""Models as their authors publish them, and ours: D-JEPA, MAR and MAR's KL-16 VAE, in both directions.

What differs is names and how tensors are cut: a `Piece` holds the same numbers in the same order on both sides. Files
are read as weights and nothing else; what is not expected of them is an error, and no code in them is ever run.

B blocks, N tokens, K buffer tokens, D model width.
"""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from djepa_mm.errors import UserError
from djepa_mm.recipe.build import build_model
from djepa_mm.recipe.load import as_trained, dump_recipe, load_recipe
from djepa_mm.recipe.packaged import packaged_recipes
from djepa_mm.recipe.schema import Recipe
from djepa_mm.runs.checkpoint import save_checkpoint
from djepa_mm.runs.files import written_to
from djepa_mm.weights import TOKENIZER, checkpoints, find_checkpoint, load_weights, read_tensors

Family = Literal["djepa", "mar", "kl16"]
Kept = Literal["averaged", "plain"]  # which of a file's weights, or of a run's
Shapes = Mapping[str, tuple[int, ...]]

TORN = (  # how torch's and zipfile's readers fail at files that are torn
    *(RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError),
    *(struct.error, zipfile.BadZipFile),
)
COMPILED = "_orig_mod."  # in the names of a model that torch has compiled


# --- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The weights in a file, by its own names; both are the same where it holds but one set."""

    averaged: dict[str, Tensor]
    plain: dict[str, Tensor]

    def kept(self, kept: Kept) -> dict[str, Tensor]:
        return self.averaged if kept == "averaged" else self.plain


def read_published(path: Path) -> Published:
    """Read a .pth, .ckpt or .safetensors file. Raises UserError for one that holds anything but weights."""
    found = _read(path)
    averaged, plain = found.get("model_ema"), found.get("model")
    if averaged is None and plain is None:
        averaged = plain = found.get("state_dict", found)
    elif averaged is None or plain is None:
        averaged = plain = plain if averaged is None else averaged
    same = averaged is plain
    plain = _tensors(plain, path)
    return Published(averaged=plain if same else _tensors(averaged, path), plain=plain)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if packed := zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for member in archive.infolist():
                    if member.compress_type != zipfile.ZIP_STORED:  # torch packs none, so nothing bounds its size
                        raise UserError(f"{path}: {member.filename} is compressed: it is no file of weights")
        with (
            warnings.catch_warnings(action="ignore"),  # of pickles in other dialects: either they hold weights or not
            torch.serialization.safe_globals([argparse.Namespace]),  # the settings that MAR keeps beside its weights
        ):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=packed)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it holds {named[1]}, which is no weight" if named else "it is no file of weights"
        raise UserError(f"{path}: {what}; nothing of it was run, and nothing is imported") from None
    except (*TORN, SafetensorError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(f"{path}: cannot be read as weights: {reason[:200]}") from None
    if not isinstance(found, Mapping):
        raise UserError(f"{path}: expected weights by name, found {type(found).__name__}")
    return found


def _tensors(found: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise UserError(f"{path}: expected weights by name, found {type(found).__name__}")
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: {name} is no tensor but {type(value).__name__}: this is no file of weights alone")
        if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
            kind = "quantized" if value.is_quantized else f"{value.layout} on {value.device}"
            raise UserError(f"{path}: {name} is no plain tensor but {kind}: save it as one of floats")
    return {name.replace(COMPILED, ""): value for name, value in found.items()}


# --- names and cuts ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Piece:
    """Tensors of ours and of theirs, by name and shape, that hold the same numbers in the same order."""

    ours: Shapes
    theirs: Shapes

    def to_ours(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return _recut(theirs, self.theirs, self.ours)

    def to_theirs(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return _recut(ours, self.ours, self.theirs)


def _recut(tensors: Mapping[str, Tensor], old: Shapes, new: Shapes) -> dict[str, Tensor]:
    flat = torch.cat([tensors[name].flatten() for name in old])
    parts = flat.split([prod(shape) for shape in new.values()])
    return {name: part.reshape(new[name]).clone() for name, part in zip(new, parts, strict=True)}


BLOCK = {
    "norm1": "attention_norm",
    "attn.qkv": "attention.qkv",
    "attn.q_norm": "attention.q_norm",
    "attn.k_norm": "attention.k_norm",
    "attn.proj": "attention.out",
    "norm2": "mlp_norm",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.3",
}
TRANSFORMERS = {
    "encoder_blocks": "encoder.stack.transformer.blocks",
    "decoder_blocks": "predictor.stack.transformer.blocks",
}
LAYERS = {
    "z_proj": "encoder.input",
    "z_proj_ln": "encoder.input_norm",
    "encoder_norm": "encoder.stack.transformer.norm",
    "decoder_embed": "predictor.input",
    "decoder_norm": "predictor.stack.transformer.norm",
    "jepaloss.net.fc1": "projector.0",
    "jepaloss.net.norm": "projector.2",
    "jepaloss.net.fc2": "projector.3",
    "diffloss.net.time_embed.mlp.0": "head.mlp.time.mlp.0",
    "diffloss.net.time_embed.mlp.2": "head.mlp.time.mlp.2",
    "diffloss.net.cond_embed": "head.mlp.condition",
    "diffloss.net.input_proj": "head.mlp.input",
    "diffloss.net.final_layer.adaLN_modulation.1": "head.mlp.final_modulation.1",
    "diffloss.net.final_layer.linear": "head.mlp.output",
}
RESIDUAL = {"in_ln": "norm", "mlp.0": "mlp.0", "mlp.2": "mlp.2", "adaLN_modulation.1": "modulation.1"}
OURS = {ours: theirs for theirs, ours in LAYERS.items()}


def family_of(recipe: Recipe) -> Family:
    """Whose model a recipe builds. Raises UserError where it is neither D-JEPA's nor MAR's."""
    model = recipe.model
    given = model.qk_norm, model.buffer_positions, model.head_positions, model.projector
    plain = recipe.condition.kind == "class" and model.positions == "learned" and model.streams == "one"
    if plain and given == (True, False, False, "norm"):
        return "djepa"
    if plain and given == (False, True, True, "none"):
        return "mar"
    raise UserError(
        f"the recipe {recipe.name} is of neither D-JEPA's nor MAR's own layout: take imagenet256-b, -l or -h, or "
        "mar256-b, -l or -h, and --set their sizes"
    )


def model_pieces(family: Family, ours: Shapes) -> list[Piece]:
    """ours: of all tensors of the networks. Raises UserError where they are not of that family."""
    left, pieces = dict(ours), []

    def take(*names: str) -> dict[str, tuple[int, ...]]:
        missing = [name for name in names if name not in left]
        if missing:
            raise UserError(f"these weights are not of {family}'s layout: they lack {missing[0]}")
        return {name: left.pop(name) for name in names}

    (rows, width), buffer = ours["embedder.classes.weight"], "embedder.buffer"
    pieces.append(
        Piece(take("embedder.classes.weight"), {"class_emb.weight": (rows - 1, width), "fake_latent": (1, width)})
    )
    pieces.append(Piece(take("predictor.mask_token"), {"mask_token": (1, 1, width)}))
    tables: dict[str, tuple[str, ...]] = {"encoder_pos_embed_learned": ("encoder.stack.learned.table",)}
    tables["decoder_pos_embed_learned"] = ("predictor.stack.learned.table",)
    if family == "djepa":
        tables["buffer"] = (buffer,)
    else:  # what is learned of MAR's buffer are its positions
        tables["encoder_pos_embed_learned"] = (buffer, *tables["encoder_pos_embed_learned"])
        tables["decoder_pos_embed_learned"] = (
            "predictor.buffer_positions",
            *tables["decoder_pos_embed_learned"],
        )
        tables["diffusion_pos_embed_learned"] = ("predictor.head_positions.table",)
    for theirs, names in tables.items():
        found = take(*names)
        pieces.append(Piece(found, {theirs: (1, sum(shape[0] for shape in found.values()), width)}))
    for name, shape in left.items():
        pieces.append(Piece({name: shape}, {_their_name(name, family): shape}))
    return pieces


def _their_name(ours: str, family: Family) -> str:
    layer, _, part = ours.rpartition(".")
    if layer in OURS:
        return f"{OURS[layer]}.{part}"
    for theirs, prefix in TRANSFORMERS.items():
        if layer.startswith(f"{prefix}."):
            number, _, inner = layer.removeprefix(f"{prefix}.").partition(".")
            return f"{theirs}.{number}.{next(a for a, b in BLOCK.items() if b == inner)}.{part}"
    if match := re.fullmatch(r"head\.mlp\.blocks\.(\d+)\.(.+)", layer):
        return f"diffloss.net.res_blocks.{match[1]}.{next(a for a, b in RESIDUAL.items() if b == match[2])}.{part}"
    raise UserError(f"these weights are not of {family}'s layout: it knows no {ours}")


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def mismatch(found: Shapes, expected: Shapes) -> str | None:
    """How a file's tensors differ from those expected, in a few words; None where they do not."""
    for name in (name for name in expected if name in found):
        if found[name] != expected[name]:
            return f"{name} is {found[name]}, expected {expected[name]}"
    for what, names in (("lacks", expected.keys() - found.keys()), ("also holds", found.keys() - expected.keys())):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            return f"it {what} {min(names)}{more}"
    return None


# --- D-JEPA and MAR ---------------------------------------------------------------------------------------------------


def import_model(
    path: Path, recipe: Recipe, out: Path, *, classes: Sequence[str] = (), kept: Kept = "averaged"
) -> Path:
    """Make a run folder of a file of D-JEPA's or MAR's weights -> its checkpoint.

    classes: names of the classes, in the model's order; their numbers where none are given. kept: which of the file's
    weights become the averaged ones, which sample. Raises UserError where the file does not fit the recipe, or `out`
    holds a run."""
    if checkpoints(out / "checkpoints"):
        raise UserError(f"{out}: holds a run already; choose another folder: --out")
    pieces, condition = _expected(recipe, classes)
    if recipe.tokenizer.build().state():
        raise _unpublished(recipe)
    found = read_published(path)
    for tensors in (found.plain, found.averaged):
        _check(path, tensors, pieces, recipe)
    averaged, plain = (_to_ours(tensors, pieces) for tensors in (found.kept(kept), found.plain))
    generator = torch.Generator().manual_seed(recipe.run.seed)
    text = dump_recipe(recipe)
    checkpoint = save_checkpoint(
        out / "checkpoints",
        text,
        {"step": 0, "seconds": 0.0, "cursor": {"epoch": 0, "batch": 0}, "condition": condition},
        {
            "averaged": averaged,
            "online": plain,
            "training": {"random.generator": generator.get_state()},
        },
        keep=1,
    )
    (out / "recipe.yaml").write_text(text, encoding="utf-8")
    return checkpoint


def export_model(run: Path, family: Family, out: Path, *, kept: Kept = "averaged") -> None:
    """Write a run's weights as safetensors under D-JEPA's or MAR's names.

    Raises UserError where its recipe is not of that family."""
    checkpoint = find_checkpoint(run)
    recipe = load_recipe(checkpoint / "recipe.yaml")
    if (own := family_of(recipe)) != family:
        raise UserError(f"--to {family}: {run} is of {own}'s layout; export it: --to {own}")
    tensors = read_tensors(checkpoint, "averaged")
    if any(name.startswith(f"{TOKENIZER}.") for name in tensors):
        raise _unpublished(recipe)
    if kept == "plain":
        tensors = read_tensors(checkpoint, "online")
    _save(out, [piece.to_theirs(tensors) for piece in model_pieces(family, shapes_of(tensors))])


def _unpublished(recipe: Recipe) -> UserError:
    return UserError(
        f"tokenizer.kind {recipe.tokenizer.kind} learns of its corpus what brings tokens to unit variance, and the "
        "authors' files have no place for it: runs on a VAE's latents go there and back"
    )


def class_names(path: Path) -> list[str]:
    """Of a corpus with a folder a class, or of a file with one a line. Raises UserError where there are none."""
    try:
        if path.is_dir():
            names = sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
        else:
            names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {path}: cannot be read: {error}") from None
    if not names or len(set(names)) < len(names):
        raise UserError(f"--classes {path}: expected names of classes, each once, found {len(names)}")
    return names


def _expected(recipe: Recipe, classes: Sequence[str] = ()) -> tuple[list[Piece], dict[str, Any]]:
    """What a file for the recipe holds, and what its kind of condition has learned."""
    family, condition = family_of(recipe), recipe.condition.build()
    count = recipe.condition.classes
    if classes and count not in (None, len(classes)):
        raise UserError(f"--classes: {len(classes)} names, but condition.classes is {count}")
    if classes or count is not None:
        condition.load_state({"classes": list(classes or map(str, range(count)))})
    with torch.device("meta"):
        networks = build_model(recipe, recipe.tokenizer.build(), condition).online
    return model_pieces(family, shapes_of(networks.state_dict())), condition.state()


def _check(path: Path, tensors: Mapping[str, Tensor], pieces: Iterable[Piece], recipe: Recipe) -> None:
    """Raises UserError where the tensors are not those expected, with the recipe that they do fit."""
    found = shapes_of(tensors)
    difference = mismatch(found, _theirs(pieces))
    if difference is None:
        return
    if "encoder.conv_in.weight" in found:
        raise UserError(f"{path}: holds a VAE, no model for {recipe.name}; import it without --recipe")
    raise UserError(f"{path}: does not fit {recipe.name}: {difference}; {_advice(found)}")


def _advice(found: Shapes) -> str:
    fitting = fitting_recipe(found)
    return f"it fits --recipe {fitting}" if fitting else "no packaged recipe fits it: --set the sizes of the nearest"


def fitting_recipe(found: Shapes) -> str | None:
    """Name of the packaged recipe that a file of these tensors fits."""
    for name in packaged_recipes():
        try:
            recipe = load_recipe(name)
            if found.get("class_emb.weight", ())[1:] != (recipe.model.size("width"),):
                continue  # seconds quicker than to build it
            pieces, _ = _expected(recipe)
        except UserError:  # of another layout, or not for D-JEPA
            continue
        if mismatch(found, _theirs(pieces)) is None:
            return name
    return None


def _theirs(pieces: Iterable[Piece]) -> dict[str, tuple[int, ...]]:
    return {name: shape for piece in pieces for name, shape in piece.theirs.items()}


def _to_ours(tensors: Mapping[str, Tensor], pieces: Iterable[Piece]) -> dict[str, Tensor]:
    found = {name: tensor for piece in pieces for name, tensor in piece.to_ours(tensors).items()}
    return {name: tensor.float() for name, tensor in found.items()}


def _save(out: Path, parts: Iterable[Mapping[str, Tensor]]) -> None:
    with written_to(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor for part in parts for name, tensor in part.items()}, out, metadata={"format": "pt"})


# --- KL-16 ------------------------------------------------------------------------------------------------------------

RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "conv_shortcut"}
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
KL16_SCALE = 0.2325  # that brings its latents to unit variance (MAR)


def import_vae(path: Path, out: Path) -> Path:
    """Make a folder with diffusers' AutoencoderKL of MAR's KL-16 VAE -> the folder.

    Raises UserError where the file holds another network, or the folder a VAE already."""
    import diffusers

    if (out / "config.json").exists():
        raise UserError(f"{out}: holds a model already; choose another folder: --out")
    # what trained the VAE, a perceptual loss and a critic, is not part of it
    tensors = {k: v for k, v in read_published(path).plain.items() if not k.startswith("loss.")}
    found = shapes_of(tensors)
    if "encoder_pos_embed_learned" in found:
        raise UserError(f"{path}: holds a model and no VAE; {_advice(found).replace('it fits', 'import it with')}")
    if "encoder.conv_in.weight" not in found:
        raise UserError(f"{path}: holds neither MAR's KL-16 VAE nor, for a --recipe, a model of D-JEPA or MAR")
    config = _vae_config(found, path)
    try:
        with torch.device("meta"):
            vae = diffusers.AutoencoderKL(**config)
    except (ValueError, RuntimeError, LookupError, ArithmeticError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path}: is no VAE of KL-16's kind: no such network can be built ({reason})") from None
    pieces = vae_pieces(shapes_of(vae.state_dict()))
    if difference := mismatch(found, _theirs(pieces)):
        raise UserError(f"{path}: is no VAE of KL-16's kind: {difference}")
    load_weights(vae, _to_ours(tensors, pieces), path, assign=True)
    vae.save_pretrained(out)
    return out


def export_vae(folder: Path, out: Path) -> None:
    """Write a VAE in diffusers' format as safetensors under KL-16's names. Raises UserError where it is none."""
    path = folder / "diffusion_pytorch_model.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    _save(out, [piece.to_theirs(tensors) for piece in vae_pieces(shapes_of(tensors))])


def vae_folder(path: Path) -> Path:
    """The folder of a VAE: itself, or the one that a run's tokenizer uses."""
    if (path / "config.json").is_file():
        return path
    checkpoint = find_checkpoint(path)
    tokenizer = as_trained(load_recipe(checkpoint / "recipe.yaml"), checkpoint).tokenizer
    model = getattr(tokenizer, "model", None)
    if model is None or not Path(model).is_dir():
        raise UserError(f"--to kl16: {path} uses no VAE that is a folder here ({model or tokenizer.kind})")
    return Path(model)


def _vae_config(found: Shapes, path: Path) -> dict[str, Any]:
    """The sizes of a VAE, as its tensors tell them."""
    levels = _count(found, r"encoder\.down\.(\d+)\.block\.0\.conv2\.weight")
    blocks = _count(found, r"encoder\.down\.0\.block\.(\d+)\.conv2\.weight")
    try:
        widths = [found[f"encoder.down.{n}.block.0.conv2.weight"][0] for n in range(levels)]
        latent = found["quant_conv.weight"][0] // 2
    except (LookupError, TypeError):
        raise UserError(f"{path}: is no VAE of KL-16's kind: its blocks are not where they should be") from None
    attends = [f"encoder.down.{n}.attn.0.q.weight" in found for n in range(levels)]
    return {
        "down_block_types": tuple("AttnDownEncoderBlock2D" if has else "DownEncoderBlock2D" for has in attends),
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": tuple(widths),
        "layers_per_block": blocks,
        "latent_channels": latent,
        "norm_num_groups": 32,
        "sample_size": 256,
        "scaling_factor": KL16_SCALE,
    }


def _count(found: Shapes, pattern: str) -> int:
    return len({match[1] for name in found if (match := re.fullmatch(pattern, name))})


def vae_pieces(ours: Shapes) -> list[Piece]:
    """ours: of all tensors of an AutoencoderKL. Raises UserError where it has parts that KL-16 lacks."""
    levels = _count(ours, r"encoder\.down_blocks\.(\d+)\.resnets\.0\.conv1\.weight")
    pieces = []
    for name, shape in ours.items():
        theirs = _their_vae_name(name, levels)
        # attention is products of matrices here, and convolutions of one pixel there
        inner = re.search(r"\.(q|k|v|proj_out)\.weight$", theirs)
        pieces.append(Piece({name: shape}, {theirs: (*shape, 1, 1) if inner else shape}))
    return pieces


def _their_vae_name(name: str, levels: int) -> str:
    layer, _, part = name.rpartition(".")
    if layer in ("quant_conv", "post_quant_conv"):
        return name
    side, _, layer = layer.partition(".")
    if layer in ("conv_in", "conv_out"):
        return name
    if layer == "conv_norm_out":
        return f"{side}.norm_out.{part}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", layer):
        inner = _inner(match[1], match[3])
        place = f"mid.{'block' if match[1] == 'resnets' else 'attn'}_{int(match[2]) + 1}"
    elif match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", layer):
        inner = _inner(match[3], match[5])
        # KL-16 numbers the decoder's levels by their resolution, diffusers in their order
        level = int(match[2]) if match[1] == "down" else levels - 1 - int(match[2])
        kind = {"resnets": f"block.{match[4]}", "attentions": f"attn.{match[4]}"}.get(match[3], f"{match[1]}sample")
        place = f"{match[1]}.{level}.{kind}"
    else:
        inner = place = None
    if inner is None:
        raise UserError(f"this VAE is not of KL-16's kind: it has {name}")
    return f"{side}.{place}.{inner}.{part}"


def _inner(module: str, ours: str) -> str | None:
    """KL-16's name of a layer of a block, of attention, or of what halves or doubles the resolution."""
    names = {"resnets": RESNET, "attentions": ATTENTION}.get(module, {"conv": "conv"})
    return next((theirs for theirs, name in names.items() if name == ours), None)

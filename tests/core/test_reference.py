"""Our core beside what the authors' own code computes, with their weights under our names."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from support import SHARED
from torch import Tensor

from djepa_mm.conditions.label import ClassEmbedder, class_condition
from djepa_mm.core import DJEPA, Positions, Size, TokenBatch
from djepa_mm.core.heads.flow import FlowHead
from djepa_mm.types import MediaSpec

FOLDER = SHARED / "reference"
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


def ours(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the transformers and the condition, under our names; those of the losses are not among them."""
    found = {
        "embedder.buffer": theirs["buffer"][0],
        "embedder.classes.weight": torch.cat([theirs["class_emb.weight"], theirs["fake_latent"]]),
        "predictor.mask_token": theirs["mask_token"].flatten(),
        "encoder.stack.learned.table": theirs["encoder_pos_embed_learned"][0],
        "predictor.stack.learned.table": theirs["decoder_pos_embed_learned"][0],
    }
    layers = {
        "z_proj": "encoder.input",
        "z_proj_ln": "encoder.input_norm",
        "encoder_norm": "encoder.stack.transformer.norm",
        "decoder_embed": "predictor.input",
        "decoder_norm": "predictor.stack.transformer.norm",
    }
    for n in range(2):
        for a, b in BLOCK.items():
            layers[f"encoder_blocks.{n}.{a}"] = f"encoder.stack.transformer.blocks.{n}.{b}"
            layers[f"decoder_blocks.{n}.{a}"] = f"predictor.stack.transformer.blocks.{n}.{b}"
    for a, b in layers.items():
        for part in ("weight", "bias"):
            if f"{a}.{part}" in theirs:
                found[f"{b}.{part}"] = theirs[f"{a}.{part}"]
    return found


@pytest.mark.parametrize("name", ["djepa-flow", "djepa-gauss"])
def test_features_and_targets_are_the_authors(name: str) -> None:
    if not FOLDER.is_dir():
        pytest.skip(f"the reference values {FOLDER} are not on this machine")
    settings = json.loads((FOLDER / f"{name}.json").read_text())
    values = load_file(FOLDER / f"{name}.safetensors")
    weights = {key.removeprefix("weights."): value for key, value in values.items() if key.startswith("weights.")}
    side = settings["seq_h"]
    model = DJEPA(
        token_dim=16,
        size=Size(width=48, depth=2, heads=4),
        positions=Positions(grid=(1, side, side)),
        embedder=ClassEmbedder(10, 48, settings["buffer"]),
        head=FlowHead(token_dim=16, feature_width=48, width=64, blocks=2),
    )
    missing, unexpected = model.averaged.load_state_dict(ours(weights), strict=False)
    assert not unexpected
    assert all(key.startswith(("head.", "projector.")) for key in missing)
    positions = MediaSpec(grid=(1, side, side), shape=(16, side, side)).positions().expand(3, -1, -1)
    valid, known = torch.ones(3, side**2, dtype=torch.bool), values["mask"] == 0
    condition = class_condition(values["labels"].tolist())
    z, z_null = (
        model.features(values["tokens"], positions, known, valid, condition, null=null) for null in (False, True)
    )
    batch = TokenBatch(tokens=values["tokens"], positions=positions, valid=valid, condition=condition)
    target = model.target_features(batch, torch.zeros(3, dtype=torch.bool))
    for found, key in ((z, "z"), (z_null, "z_null"), (target, "target")):
        torch.testing.assert_close(found, values[key], atol=1e-5, rtol=1e-5)

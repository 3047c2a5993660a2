"""Sizes of models, by name."""

PRESETS = {
    "tiny": {"width": 128, "depth": 4, "heads": 4, "head_blocks": 3, "head_width": 256},
    "small": {"width": 256, "depth": 4, "heads": 4, "head_blocks": 3, "head_width": 512},
    # D-JEPA's models for ImageNet 256² (method: table of sizes)
    "base": {"width": 768, "depth": 12, "heads": 12, "head_blocks": 6, "head_width": 1024},
    "large": {"width": 1024, "depth": 24, "heads": 16, "head_blocks": 8, "head_width": 1280},
    "huge": {"width": 1280, "depth": 32, "heads": 16, "head_blocks": 12, "head_width": 1536},
}

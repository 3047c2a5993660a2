"""djepa-mm: images, video and speech from one D-JEPA core."""

__version__ = "0.1.0"

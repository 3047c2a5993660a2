"""Media <-> continuous tokens. One file holds one modality, with its config beside it.

In a checkout the files are those of the folder `tokenizers/` at the top; a wheel has them here. The code is always
`djepa_mm.tokenizers.*`, for a top-level package `tokenizers` would shadow Hugging Face's.
"""

from djepa_mm.layout import extended, part_folder

__path__ = extended(part_folder("tokenizers"), "tokenizers")

"""LoRA files: headers, names, metadata, reading and writing. `file` and `matching` import torch, the rest does not."""

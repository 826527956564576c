"""What a user can set, as one typed schema. Nothing here imports torch.

`run.RunConfig` is the whole of a training run; `fields.describe` walks it for forms, flags, presets and docs.
"""

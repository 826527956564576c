"""Pictures from a base model and a stack of LoRAs."""

"""LoRA files to modules and back: the entry points. Writing always ends with reading back and comparing."""

from trainer.lora_files.modules import AdapterModule, LoraModule
from trainer.lora_files.reading import LoraFile, read_lora
from trainer.lora_files.writing import DTYPES, write_lora

__all__ = ["DTYPES", "AdapterModule", "LoraFile", "LoraModule", "read_lora", "write_lora"]

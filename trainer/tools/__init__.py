"""The LoRA tools as the command line and the app run them: a module each, from settings to figures."""

"""The Inkwash engine. This package's top level stays light: importing it imports neither torch nor gradio."""

__version__ = "0.1.0"

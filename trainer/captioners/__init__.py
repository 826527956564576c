"""Captioners: each looks at a picture and says what is there, as tags or in sentences. A file each; the list is in `registry`."""

"""The Inkwash app: a web page on this machine, built with gradio. It never imports torch; jobs run in processes."""

"""One tab a file: its `TITLE`, and `build(services, links)`, which lays it out and wires it. `app.page.TABS` lists them."""

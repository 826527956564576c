"""How the app looks: ink on paper, and paper on ink. System fonts only; nothing is loaded from elsewhere."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

CSS_PATH = Path(__file__).with_name("theme.css")
_STORAGE_KEY = "inkwash-theme"

INK = gr.themes.Color(
    name="ink",
    c50="#f2f6f7",
    c100="#dfe9ec",
    c200="#c0d4da",
    c300="#95b6c0",
    c400="#63919f",
    c500="#3f7485",
    c600="#2f5d6d",
    c700="#284c5a",
    c800="#24404b",
    c900="#213740",
    c950="#12222a",
)
PAPER = gr.themes.Color(
    name="paper",
    c50="#faf9f6",
    c100="#f3f1ec",
    c200="#e5e2da",
    c300="#d0ccc1",
    c400="#a5a095",
    c500="#79756c",
    c600="#5b5851",
    c700="#3f3d39",
    c800="#262624",
    c900="#1b1c1c",
    c950="#121414",
)
_SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def make_theme() -> gr.themes.Base:
    """The theme, light and dark."""
    return gr.themes.Base(
        primary_hue=INK,
        secondary_hue=INK,
        neutral_hue=PAPER,
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_md,
        text_size=gr.themes.sizes.text_md,
        font=_SANS,
        font_mono=_MONO,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        # Gradio's own, neutral_400, has a contrast of 2.5 on paper; WCAG asks for 4.5.
        body_text_color_subdued="*neutral_600",
        background_fill_primary="white",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_50",
        background_fill_secondary_dark="*neutral_950",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        border_color_primary="*neutral_200",
        border_color_primary_dark="*neutral_700",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_300",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        block_title_text_weight="600",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        input_background_fill="*neutral_50",
        input_background_fill_dark="*neutral_950",
        input_border_width="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        input_border_color_focus="*primary_500",
        input_border_color_focus_dark="*primary_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        button_secondary_background_fill="white",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_700",
        slider_color="*primary_500",
        slider_color_dark="*primary_400",
        checkbox_background_color_selected="*primary_600",
        checkbox_background_color_selected_dark="*primary_500",
        link_text_color="*primary_600",
        link_text_color_dark="*primary_300",
    )


def head() -> str:
    """Runs before the page is drawn, so that the chosen theme does not flash."""
    return f"""<meta name="viewport" content="width=device-width, initial-scale=1">
<script>
window.inkwashTheme = {{
  wanted() {{
    const kept = localStorage.getItem("{_STORAGE_KEY}");
    return kept || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  }},
  apply() {{
    const dark = this.wanted() === "dark";
    document.body && document.body.classList.toggle("dark", dark);
    document.documentElement.style.colorScheme = dark ? "dark" : "light";
  }},
  toggle() {{
    localStorage.setItem("{_STORAGE_KEY}", this.wanted() === "dark" ? "light" : "dark");
    this.apply();
  }},
}};
function keepTheme() {{
  inkwashTheme.apply();
  // Gradio sets its own idea of the theme when it mounts; the one chosen here wins.
  new MutationObserver(() => {{
    if (document.body.classList.contains("dark") !== (inkwashTheme.wanted() === "dark")) inkwashTheme.apply();
  }}).observe(document.body, {{attributes: true, attributeFilter: ["class"]}});
}}
// Gradio may put this in before the body is there, or long after.
if (document.body) keepTheme(); else document.addEventListener("DOMContentLoaded", keepTheme);
</script>"""


TOGGLE_JS = "() => { window.inkwashTheme.toggle(); }"
"""Run by the theme button."""

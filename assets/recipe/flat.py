"""The base model's own look: flat colours with a thin dark outline round the object (and a pastel variant)."""

from __future__ import annotations

from PIL import Image, ImageDraw
from scenes import SceneSpec, Shape, shapes

RGB = tuple[int, int, int]

PAINT: dict[str, RGB] = {
    "red": (214, 40, 40), "blue": (33, 70, 214), "yellow": (250, 205, 30), "green": (30, 150, 60),
    "purple": (130, 50, 180), "white": (246, 246, 246), "pink": (250, 130, 180),
}  # fmt: skip
_FIXED: dict[str, RGB] = {
    "dark": (34, 28, 34), "lamp": (255, 240, 190), "wood": (122, 74, 40), "leaf": (40, 120, 50),
    "zib_body": (0, 190, 170), "zib_metal": (120, 130, 145), "zib_stripe": (255, 150, 0), "zib_red": (235, 40, 60),
    "zib_white": (250, 250, 250), "zib_eye": (30, 20, 60),
}  # fmt: skip
_SKY = {"day": ((112, 184, 240), (206, 232, 250)), "sunset": ((236, 112, 62), (252, 196, 124)),
        "night": ((14, 16, 52), (44, 48, 100))}  # fmt: skip
_SUN = {"day": (255, 222, 70), "sunset": (240, 50, 40), "night": (240, 240, 214)}
_GROUND = {"lake": (66, 140, 196), "meadow": (120, 188, 84), "desert": (226, 190, 122), "snow": (224, 230, 242)}
_MARK = {"lake": (140, 196, 230), "meadow": (76, 140, 50), "desert": (184, 144, 84), "snow": (198, 206, 226)}
_FAR = {"mountains": (112, 116, 152), "hills": (70, 136, 74), "forest": (24, 92, 56)}
_CAP = (238, 242, 250)
_DIM = {"day": 1.0, "sunset": 0.86, "night": 0.42}


def _scale(colour: RGB, by: float) -> RGB:
    return tuple(max(0, min(255, round(c * by))) for c in colour)


def fill_colour(spec: SceneSpec, fill: str) -> RGB:
    """The flat colour of a shape's fill in a scene."""
    dim = _DIM[spec.time]
    if fill in ("object", "object_dark"):
        lit = 0.9 if spec.time == "night" else 1.0
        return _scale(PAINT[spec.colour], lit * (1.0 if fill == "object" else 0.72))
    if fill == "sun":
        return _SUN[spec.time]
    if fill in ("far", "far_dark"):
        return _scale(_FAR[spec.far], dim * (1.0 if fill == "far" else 0.85))
    if fill == "far_cap":
        return _scale(_CAP, max(dim, 0.6))
    if fill in ("ground", "mark"):
        return _scale((_GROUND if fill == "ground" else _MARK)[spec.ground], dim)
    return _FIXED[fill]


def _gradient(spec: SceneSpec, width: int, height: int) -> Image.Image:
    top, bottom = _SKY[spec.time]
    column = Image.new("RGB", (1, 64))
    for y in range(64):
        t = min(1.0, y / 34)
        column.putpixel((0, y), tuple(round(a + (b - a) * t) for a, b in zip(top, bottom, strict=True)))
    return column.resize((width, height), Image.Resampling.BILINEAR)


def draw_shape(draw: ImageDraw.ImageDraw, shape: Shape, colour: RGB, scale: float, outline: RGB | None) -> None:
    """One shape, filled, with an outline if asked for."""
    points = [(x * scale, y * scale) for x, y in shape.points]
    if not shape.closed:
        draw.line(points, fill=colour, width=max(1, round(shape.width * scale)))
        return
    draw.polygon(points, fill=colour)
    if outline is not None:
        draw.line([*points, points[0]], fill=outline, width=max(1, round(0.013 * scale)), joint="curve")


def render_flat(spec: SceneSpec, height: int = 64, pastel: bool = False) -> Image.Image:
    """The scene in flat colours, drawn at four times its size."""
    scale = max(4 * height, 256)
    width = round(scale * spec.aspect)
    image = _gradient(spec, width, scale)
    draw = ImageDraw.Draw(image)
    edge = _scale(PAINT[spec.colour], 0.4) if not spec.character else (20, 50, 60)
    for shape in shapes(spec):
        if shape.layer != "sky":
            draw_shape(draw, shape, fill_colour(spec, shape.fill), scale, edge if shape.layer == "object" else None)
    image = image.resize((round(height * spec.aspect), height), Image.Resampling.BOX)
    if pastel:
        paper = Image.new("RGB", image.size, (255, 248, 240))
        image = Image.blend(image, paper, 0.42)
    return image

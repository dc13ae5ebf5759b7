"""Draw a picture to run a model on: a bird on a branch in front of a hazy sky.

python examples/draw_picture.py picture.jpg
"""

import sys

from PIL import Image, ImageDraw, ImageFilter


def draw(width: int = 640, height: int = 480) -> Image.Image:
    """Return the picture."""
    sky = Image.linear_gradient("L").resize((width, height))
    picture = Image.merge("RGB", [sky.point(lambda v, b=b: b + v * (235 - b) // 255) for b in (96, 150, 205)])
    pen = ImageDraw.Draw(picture)
    for x, y, r in ((90, 110, 60), (150, 95, 75), (220, 115, 55), (500, 70, 45), (550, 80, 60)):
        pen.ellipse((x - r, y - r // 2, x + r, y + r // 2), fill=(244, 246, 250))
    picture = picture.filter(ImageFilter.GaussianBlur(9))
    pen = ImageDraw.Draw(picture)
    pen.line((0, 400, 250, 370, 640, 385), fill=(84, 58, 38), width=22, joint="curve")
    pen.ellipse((250, 200, 430, 360), fill=(196, 84, 48))  # body
    pen.ellipse((330, 130, 440, 240), fill=(206, 96, 56))  # head
    pen.polygon([(432, 180), (482, 192), (434, 204)], fill=(240, 180, 60))  # beak
    pen.ellipse((386, 166, 406, 186), fill=(20, 20, 24))
    pen.ellipse((391, 170, 397, 176), fill=(250, 250, 250))
    pen.polygon([(270, 300), (150, 350), (165, 372), (300, 340)], fill=(120, 52, 34))  # tail
    pen.chord((270, 225, 390, 330), 20, 200, fill=(150, 64, 40))  # wing
    for x in (330, 360):
        pen.line((x, 350, x - 4, 380), fill=(90, 70, 40), width=6)
    return picture.filter(ImageFilter.GaussianBlur(1))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/draw_picture.py FILE")
    draw().save(sys.argv[1], quality=92)

"""A folder as people have it, made of a subject's photos: JPEGs of several sizes, rotated by EXIF, progressive, grey,
a thumbnail, a text file, a folder's .DS_Store, a truncated and an empty file.

    python3 tests/golden/make_photos.py     (pillow)"""
import os
from PIL import Image

HERE = os.path.dirname(os.path.abspath(__file__))
SUBJECT, OUT = os.path.join(HERE, "../../examples/world/subjects/dog1"), os.path.join(HERE, "photos")


def photo(k, w, h):
    x = Image.open(f"{SUBJECT}/{k:02d}.png").convert("RGB")
    return x.resize((256 * w // max(w, h), 256 * h // max(w, h))).resize((w, h), Image.LANCZOS)


def exif(orientation):
    e = Image.Exif()
    e[0x0112] = orientation
    return e


os.makedirs(OUT, exist_ok=True)
photo(0, 128, 96).save(f"{OUT}/IMG_0001.JPG", quality=80)
photo(1, 96, 128).transpose(Image.ROTATE_90).save(f"{OUT}/IMG_0002.JPG", quality=85, exif=exif(6))
photo(2, 120, 90).save(f"{OUT}/IMG_0003.jpeg", quality=75, progressive=True)
photo(3, 80, 80).convert("L").save(f"{OUT}/grey.jpg", quality=80)
photo(4, 60, 50).save(f"{OUT}/small.png")
photo(4, 20, 20).save(f"{OUT}/thumbnail.jpg")
whole = open(f"{OUT}/IMG_0001.JPG", "rb").read()
open(f"{OUT}/truncated.jpg", "wb").write(whole[:len(whole) // 3])
open(f"{OUT}/empty.png", "wb").close()
open(f"{OUT}/notes.txt", "w").write("my dog\n")
open(f"{OUT}/.DS_Store", "wb").write(b"\0\0\0\1Bud1")

#!/usr/bin/env python3
"""Writes images/images.bin, the golden data of tests/test_images.c.

    python3 tests/golden/make_images.py        (made with Python 3.11, NumPy 2.4, Pillow 13.0)
    python3 tests/golden/make_images.py --files DIR    the files singly, for the fuzzers

Holds small PNG and JPEG files with the pixels Pillow (libjpeg-turbo) decodes from them, files that
must be refused, and pictures with Pillow's resized ones. Pillow writes what it can; two encoders
below write the rest: interlacing, 16 bits and odd depths in PNG; sampling factors, component names,
inks and scan layouts in JPEG. Their output is read back with Pillow too wherever it can read it.

Format, little-endian: "IMGGOLD1", then cases until the end of the file:
    u8 kind                     'D' decode, 'E' refuse, 'R' resize, 'S' size of a written PNG
    u8 length, name
    u8 length, result           name of the img_result expected
    u16 w, h                    of the expected picture; 'S': of the picture to write
    u32 size, data              the file; 'R': u16 w, h, pixels; 'S': pixels, u32 Pillow's size
    w*h*3 bytes                 expected pixels; only 'D' and 'R'
"""

import io
import os
import struct
import sys
import zlib

import numpy as np
from PIL import Image, ImageFile, ImageOps

ImageFile.MAXBLOCK = 1 << 22  # Pillow's progressive writer needs its output buffer in one piece
OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "images", "images.bin")
cases, files = [], []


def picture(w, h, seed):
    """A photograph's mix of soft areas, edges and grain, [h][w][3]."""
    rng = np.random.default_rng(seed)
    out = np.zeros((h, w, 3))
    for size, weight in ((1, 0.1), (4, 0.3), (16, 0.6)):
        coarse = rng.integers(0, 256, (max(1, h // size), max(1, w // size), 3), dtype=np.uint8)
        out += weight * np.asarray(Image.fromarray(coarse).resize((w, h), Image.BICUBIC), float)
    out = np.clip((out - 128) * 2 + 128, 0, 255).astype(np.uint8)
    out[h // 3 : h // 2, w // 4 : w // 2] = (230, 20, 40)
    return out


# ---- Cases ---------------------------------------------------------------------------------------


def add(kind, name, result, w, h, data, pixels=b""):
    if kind in "DE":
        files.append(data)
    cases.append(
        b"".join(
            [
                kind.encode(),
                bytes([len(name)]),
                name.encode(),
                bytes([len(result)]),
                result.encode(),
                struct.pack("<HHI", w, h, len(data)),
                data,
                pixels,
            ]
        )
    )


def pillow_pixels(data):
    """What a file shows: upright, transparency on white, RGB."""
    im = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if im.mode in ("RGBA", "LA", "PA") or "transparency" in im.info:
        im = im.convert("RGBA")
        im = Image.alpha_composite(Image.new("RGBA", im.size, "white"), im)
    return np.asarray(im.convert("RGB"))


def decode(name, data, pixels=None):
    if pixels is None:
        pixels = pillow_pixels(data)
    pixels = np.ascontiguousarray(pixels, np.uint8)
    add("D", name, "IMG_OK", pixels.shape[1], pixels.shape[0], data, pixels.tobytes())


def refuse(name, result, data):
    add("E", name, "IMG_ERROR_" + result, 0, 0, data)


def saved(im, kind, **options):
    f = io.BytesIO()
    im.save(f, kind, **options)
    return f.getvalue()


# ---- A small PNG encoder: any depth, colour type and interlacing ---------------------------------

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
ADAM7 = [
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def filtered(rows, distance):
    """Filters byte rows, taking the five filters in turn."""
    out, above = b"", np.zeros(len(rows[0]), int)
    for y, row in enumerate(rows):
        row = row.astype(int)
        left = np.concatenate([np.zeros(distance, int), row])[: len(row)]
        corner = np.concatenate([np.zeros(distance, int), above])[: len(row)]
        p = left + above - corner
        pa, pb, pc = abs(p - left), abs(p - above), abs(p - corner)
        paeth = np.where((pa <= pb) & (pa <= pc), left, np.where(pb <= pc, above, corner))
        guess = [0, left, above, (left + above) // 2, paeth][y % 5]
        out += bytes([y % 5]) + ((row - guess) & 255).astype(np.uint8).tobytes()
        above = row
    return out


def png(samples, depth, color, interlaced=False, extra=b"", split=None, level=9):
    """samples [h][w][channels] of depth bits; extra: earlier chunks; split: bytes per IDAT."""
    h, w, _ = samples.shape
    bits, data = CHANNELS[color] * depth, b""
    for x0, y0, dx, dy in ADAM7 if interlaced else [(0, 0, 1, 1)]:
        part = samples[y0::dy, x0::dx].astype(int)
        if part.size:
            flat = part.reshape(part.shape[0], -1)
            as_bits = (flat[:, :, None] >> np.arange(depth - 1, -1, -1)) & 1
            data += filtered(
                np.packbits(as_bits.reshape(flat.shape[0], -1), axis=1), max(1, bits // 8)
            )
    data = zlib.compress(data, level)
    pieces = [data[i : i + split] for i in range(0, len(data), split)] if split else [data]
    header = struct.pack(">IIBBBBB", w, h, depth, color, 0, 0, int(interlaced))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + b"".join(chunk(b"IDAT", p) for p in pieces)
        + chunk(b"IEND", b"")
    )


def shown(samples, depth, color, palette=None, palette_alpha=None, key=None):
    """The pixels such a file stands for, from the PNG specification."""
    top = (1 << depth) - 1
    to8 = lambda v: (v.astype(int) * 255 + top // 2) // top
    alpha = np.full(samples.shape[:2], 255)
    if color == 3:
        rgb = np.asarray(palette)[samples[..., 0]]
        if palette_alpha is not None:
            table = np.full(256, 255)
            table[: len(palette_alpha)] = palette_alpha
            alpha = table[samples[..., 0]]
    else:
        n = 3 if color in (2, 6) else 1
        rgb = to8(np.repeat(samples[..., :1], 3, axis=2) if n == 1 else samples[..., :3])
        if color in (4, 6):
            alpha = to8(samples[..., -1])
        elif key is not None:
            alpha = np.where((samples == np.asarray(key)).all(axis=2), 0, 255)
    alpha = alpha[..., None]
    return (rgb * alpha + 255 * (255 - alpha) + 127) // 255


def png_case(name, w, h, depth, color, interlaced=False, trns=None, check=True, **options):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    n, palette, extra, key = CHANNELS[color], None, b"", None
    if color == 3:
        palette = rng.integers(0, 256, (1 << depth, 3))
        extra = chunk(b"PLTE", palette.astype(np.uint8).tobytes())
    base = picture(w, h, len(name)).astype(int)
    wide = np.concatenate([base, base[::-1, :, :1]], axis=2)
    samples = wide[..., {1: [1], 2: [1, 3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[n]]
    if depth == 16:
        samples = samples * 256 + rng.integers(0, 256, samples.shape)
    elif depth < 8:
        samples = samples >> (8 - depth)
    alpha = None
    if trns == "key":
        key = samples[h // 2, w // 2]
        extra += chunk(b"tRNS", b"".join(struct.pack(">H", k) for k in key))
    elif trns == "palette":
        alpha = rng.integers(0, 256, (1 << depth) - 1)
        extra += chunk(b"tRNS", alpha.astype(np.uint8).tobytes())
    data = png(samples, depth, color, interlaced, extra, **options)
    pixels = shown(samples, depth, color, palette, alpha, key)
    if check:  # Pillow drops the low byte of 16-bit samples
        difference = abs(pillow_pixels(data).astype(int) - pixels).max()
        assert difference <= (1 if depth == 16 else 0), (name, difference)
    decode("png " + name, data, pixels)
    return data


# ---- A small JPEG encoder: any sampling factors, names, markers and scan layout ------------------

ZIGZAG = sorted(
    range(64), key=lambda i: (i // 8 + i % 8, (i // 8 if (i // 8 + i % 8) % 2 else i % 8))
)


class Bits:
    def __init__(self):
        self.text = ""

    def code(self, symbol):  # symbols below 200 have codes of 8 bits, the others of 16
        self.put(symbol, 8) if symbol < 200 else self.put((200 << 8) + symbol - 200, 16)

    def put(self, value, count):
        self.text += format(value, "0%db" % count) if count else ""

    def signed(self, v):
        size = int(abs(v)).bit_length()
        self.put(int(v) if v >= 0 else int(v) + (1 << size) - 1, size)

    def bytes(self):
        text = self.text + "1" * (-len(self.text) % 8)
        return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8)).replace(
            b"\xff", b"\xff\0"
        )


def jpeg(
    planes,
    sampling,
    restart=0,
    interleaved=True,
    ids=(1, 2, 3, 4),
    markers=b"",
    wide_quant=False,
    quality=6,
    frame=0xC0,
    height=None,
):
    """planes: full-size [h][w] per component, averaged down here. One pair of codes serves all."""
    seg = lambda marker, body: struct.pack(">BBH", 255, marker, len(body) + 2) + body
    h, w = planes[0].shape
    hmax, vmax = max(s[0] for s in sampling), max(s[1] for s in sampling)
    mw, mh = -(-w // (8 * hmax)), -(-h // (8 * vmax))
    k = np.arange(8)
    dct = np.cos((2 * k[None] + 1) * k[:, None] * np.pi / 16) / 2
    dct[0] /= np.sqrt(2)
    quant = quality + k[:, None] + k[None] + (300 if wide_quant else 0) * (k[:, None] + k[None] > 8)
    blocks = []
    for plane, (ch, cv) in zip(planes, sampling):
        full = np.pad(plane.astype(float), ((0, mh * 8 * vmax - h), (0, mw * 8 * hmax - w)), "edge")
        ys = np.arange(mh * 8 * cv) * vmax // cv
        xs = np.arange(mw * 8 * ch) * hmax // ch
        small = sum(
            full[np.minimum(ys + a, full.shape[0] - 1)][:, np.minimum(xs + b, full.shape[1] - 1)]
            for a in range(-(-vmax // cv))
            for b in range(-(-hmax // ch))
        )
        small = small / (-(-vmax // cv) * -(-hmax // ch)) - 128
        small = small.reshape(mh * cv, 8, mw * ch, 8).transpose(0, 2, 1, 3)
        blocks.append(np.round(dct @ small @ dct.T / quant).astype(int))

    dc = bytes([0] * 7 + [16] + [0] * 8) + bytes(range(16))
    ac = bytes([0] * 7 + [200] + [0] * 7 + [56]) + bytes(range(256))
    q = [int(quant.flat[i]) for i in ZIGZAG]
    out = b"\xff\xd8" + markers
    out += seg(0xDB, (b"\x10" + struct.pack(">64H", *q)) if wide_quant else (b"\0" + bytes(q)))
    out += seg(0xC4, b"\0" + dc + b"\x10" + ac)
    out += seg(
        frame,
        struct.pack(">BHHB", 8, h if height is None else height, w, len(planes))
        + b"".join(bytes([ids[i], s[0] << 4 | s[1], 0]) for i, s in enumerate(sampling)),
    )
    if restart:
        out += seg(0xDD, struct.pack(">H", restart))
    everything = list(range(len(planes)))
    for scan in [everything] if interleaved else [[i] for i in everything]:
        out += seg(
            0xDA, bytes([len(scan)]) + b"".join(bytes([ids[i], 0]) for i in scan) + b"\0\x3f\0"
        )
        if len(scan) > 1:
            units = [
                [
                    (i, y * sampling[i][1] + v, x * sampling[i][0] + u)
                    for i in scan
                    for v in range(sampling[i][1])
                    for u in range(sampling[i][0])
                ]
                for y in range(mh)
                for x in range(mw)
            ]
        else:  # a scan of one component visits only the blocks that hold its samples
            i = scan[0]
            rows, columns = -(-h * sampling[i][1] // vmax), -(-w * sampling[i][0] // hmax)
            units = [[(i, y, x)] for y in range(-(-rows // 8)) for x in range(-(-columns // 8))]
        bits, last = Bits(), [0] * 4
        for number, unit in enumerate(units):
            if restart and number and number % restart == 0:
                out += bits.bytes() + bytes([255, 0xD0 + (number // restart - 1) % 8])
                bits, last = Bits(), [0] * 4
            for i, y, x in unit:
                values = [blocks[i][y, x].flat[z] for z in ZIGZAG]
                difference, last[i], zeros = values[0] - last[i], values[0], 0
                bits.code(int(abs(difference)).bit_length())
                bits.signed(difference)
                for v in values[1:]:
                    if v == 0:
                        zeros += 1
                        continue
                    while zeros > 15:
                        bits.code(0xF0)
                        zeros -= 16
                    bits.code(zeros << 4 | int(abs(v)).bit_length())
                    bits.signed(v)
                    zeros = 0
                if zeros:
                    bits.code(0)
        out += bits.bytes()
    return out + b"\xff\xd9"


def planes_of(im, mode):
    a = np.asarray(im.convert(mode))
    return [a[..., i] for i in range(a.shape[2])] if a.ndim == 3 else [a]


def exif(orientation, big):
    e = ">" if big else "<"
    tiff = (b"MM\0*" if big else b"II*\0") + struct.pack(e + "IH", 8, 2)
    tiff += struct.pack(e + "HHII", 0x010F, 2, 2, 0) + struct.pack(
        e + "HHIHH", 0x0112, 3, 1, orientation, 0
    )
    return b"Exif\0\0" + tiff + struct.pack(e + "I", 0)


def adobe(transform):
    return b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])


# ---- PNG files -----------------------------------------------------------------------------------

# check=False: Pillow clips 16-bit grey instead of scaling it, and compares tRNS after scaling
for depth in (1, 2, 4, 8, 16):
    png_case("grey %d bit" % depth, 21, 13, depth, 0, check=depth < 16)
    png_case("grey %d bit interlaced" % depth, 19, 17, depth, 0, True, check=depth < 16)
for depth in (1, 2, 4, 8):
    png_case("palette %d bit" % depth, 23, 11, depth, 3, depth == 2)
png_case("palette 8 bit interlaced", 13, 15, 8, 3, True)
png_case("palette 4 bit with alpha", 20, 14, 4, 3, trns="palette")
for depth in (8, 16):
    png_case("rgb %d bit" % depth, 18, 12, depth, 2)
    png_case("rgb %d bit interlaced" % depth, 17, 11, depth, 2, True)
    png_case("grey alpha %d bit" % depth, 15, 12, depth, 4, check=depth == 8)
    png_case("rgb alpha %d bit interlaced" % depth, 16, 11, depth, 6, True, check=depth == 8)
    png_case("rgb key %d bit" % depth, 14, 12, depth, 2, trns="key", check=depth == 8)
png_case("grey key 8 bit", 15, 10, 8, 0, trns="key")
png_case("grey key 2 bit", 15, 10, 2, 0, trns="key", check=False)
good_png = png_case("in chunks of 7 bytes", 12, 9, 8, 2, split=7)
png_case("stored, not compressed", 12, 9, 8, 2, level=0)
for w, h in ((1, 1), (2, 1), (1, 5), (3, 3), (5, 4)):
    png_case("%dx%d interlaced" % (w, h), w, h, 8, 2, True)
png_case("1x1 of 1 bit", 1, 1, 1, 0)
for seed, (mode, options) in enumerate(
    [
        ("RGB", {}),
        ("L", {}),
        ("1", {}),
        ("P", {}),
        ("RGBA", {}),
        ("LA", {}),
        ("RGB", dict(compress_level=1)),
    ]
):
    im = Image.fromarray(picture(26, 18, seed))
    if mode in ("RGBA", "LA"):
        im.putalpha(Image.fromarray(picture(26, 18, 50)).convert("L"))
    decode(
        "png by Pillow %s %d" % (mode, seed),
        saved(im.quantize(60) if mode == "P" else im.convert(mode), "PNG", **options),
    )
im = Image.fromarray(np.zeros((30, 33, 3), np.uint8) + np.uint8(200))
decode("png flat, fixed Huffman codes", saved(im, "PNG"))
a = picture(20, 12, 3)
decode(
    "png exif orientation 6", png(a, 8, 2, extra=chunk(b"eXIf", exif(6, True)[6:])), np.rot90(a, -1)
)
decode("png with unknown ancillary chunk", png(a, 8, 2, extra=chunk(b"zzZz", b"hello")), a)

# ---- JPEG files ----------------------------------------------------------------------------------

SUB = ("444", "422", "420")
for progressive in (False, True):
    kind = "progressive" if progressive else "baseline"
    for sub in range(3):
        for w, h, q in ((24, 16, 90), (31, 19, 75), (17, 33, 50)):
            if q == 50 and sub == 0:
                continue
            im = Image.fromarray(picture(w, h, w + sub))
            decode(
                "jpeg %s %s %dx%d q%d" % (kind, SUB[sub], w, h, q),
                saved(im, "JPEG", quality=q, subsampling=sub, progressive=progressive),
            )
    for w, h in ((1, 1), (3, 2), (4, 9), (5, 3)):
        im = Image.fromarray(picture(w, h, w))
        decode(
            "jpeg %s 420 %dx%d" % (kind, w, h),
            saved(im, "JPEG", quality=92, subsampling=2, progressive=progressive),
        )
    im = Image.fromarray(picture(25, 22, 9))
    decode(
        "jpeg %s grey" % kind, saved(im.convert("L"), "JPEG", quality=85, progressive=progressive)
    )
    decode(
        "jpeg %s cmyk" % kind,
        saved(im.convert("CMYK"), "JPEG", quality=85, progressive=progressive),
    )
    decode(
        "jpeg %s 420 restart" % kind,
        saved(im, "JPEG", quality=80, progressive=progressive, restart_marker_blocks=1),
    )
    decode("jpeg %s quality 5" % kind, saved(im, "JPEG", quality=5, progressive=progressive))
    decode(
        "jpeg %s quality 100, own tables" % kind,
        saved(im, "JPEG", quality=100, optimize=True, subsampling=0, progressive=progressive),
    )
for w in (1, 2, 3, 4, 5, 6):
    narrow = Image.fromarray(picture(w, 5, w))
    decode("jpeg 422 %dx5" % w, saved(narrow, "JPEG", quality=92, subsampling=1))
decode("jpeg rgb by Pillow", saved(Image.fromarray(picture(20, 20, 4)), "JPEG", keep_rgb=True))

im = Image.fromarray(picture(29, 21, 77))
ycc, inks = planes_of(im, "YCbCr"), planes_of(im, "CMYK")
one = (1, 1)
for name, sampling in (
    ("440", ((1, 2), one, one)),
    ("411", ((4, 1), one, one)),
    ("410", ((4, 2), one, one)),
    ("422 own", ((2, 1), one, one)),
    ("441 tall", ((1, 4), one, one)),
    ("chroma larger than luma", (one, (2, 2), (2, 2))),
    ("mixed", ((2, 2), (2, 1), (1, 2))),
    ("all 2x1", ((2, 1), (2, 1), (2, 1))),
):
    decode("jpeg %s" % name, jpeg(ycc, sampling, quality=9))
for name, sampling in (("420", ((2, 2), one, one)), ("440", ((1, 2), one, one))):
    decode("jpeg %s restart 3" % name, jpeg(ycc, sampling, restart=3))
    decode("jpeg %s one scan each" % name, jpeg(ycc, sampling, interleaved=False))
    decode(
        "jpeg %s one scan each, restart 2" % name, jpeg(ycc, sampling, interleaved=False, restart=2)
    )
decode("jpeg grey, sampling 2x2", jpeg(ycc[:1], ((2, 2),)))
decode(
    "jpeg extended, 16-bit quantisation", jpeg(ycc, (one, one, one), wide_quant=True, frame=0xC1)
)
decode("jpeg names RGB", jpeg(planes_of(im, "RGB"), (one, one, one), ids=b"RGB"))
decode("jpeg Adobe RGB", jpeg(planes_of(im, "RGB"), (one, one, one), markers=adobe(0)))
decode("jpeg Adobe YCC", jpeg(ycc, (one, one, one), markers=adobe(1), ids=b"RGB"))
decode("jpeg Adobe transform 2", jpeg(ycc, (one, one, one), markers=adobe(2), ids=b"RGB"))
decode("jpeg names 0 1 2", jpeg(ycc, (one, one, one), ids=(0, 1, 2)))
decode("jpeg Adobe CMYK", jpeg([255 - p for p in inks], (one,) * 4, markers=adobe(0)))
ycck = planes_of(Image.merge("RGB", [Image.fromarray(255 - p) for p in inks[:3]]), "YCbCr") + [
    255 - inks[3]
]
decode("jpeg Adobe YCCK 420", jpeg(ycck, ((2, 2), one, one, (2, 2)), markers=adobe(2)))
decode("jpeg CMYK without Adobe", jpeg([255 - p for p in inks], (one,) * 4))
im = Image.fromarray(picture(28, 20, 6))
for orientation in range(1, 9):
    decode(
        "jpeg exif orientation %d" % orientation,
        saved(im, "JPEG", quality=85, exif=exif(orientation, orientation % 2 == 0)),
    )
decode("jpeg exif orientation 9 is ignored", saved(im, "JPEG", exif=exif(9, True)))

# ---- Files to refuse -----------------------------------------------------------------------------

refuse("empty file", "FORMAT", b"")
refuse("text", "FORMAT", b"This is not a picture, whatever its name says.\n")
refuse("gif", "FORMAT", saved(Image.new("L", (2, 2)), "GIF"))
refuse("png signature only", "CORRUPT", good_png[:8])
header = (
    lambda *v: b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", *v))
    + chunk(b"IDAT", zlib.compress(b"\0" * 9))
    + chunk(b"IEND", b"")
)
refuse("png wider than 16384", "SIZE_LIMIT", header(16385, 1, 8, 2, 0, 0, 0))
refuse("png of 2^31 x 2^31", "SIZE_LIMIT", header(2**31, 2**31, 8, 2, 0, 0, 0))
refuse("png of 16384 x 8193", "SIZE_LIMIT", header(16384, 8193, 8, 2, 0, 0, 0))
refuse("png announces 16384 x 8192", "CORRUPT", header(16384, 8192, 16, 6, 0, 0, 0))
refuse("png of no width", "CORRUPT", header(0, 5, 8, 2, 0, 0, 0))
refuse("png depth 3", "CORRUPT", header(2, 2, 3, 0, 0, 0, 0))
refuse("png rgb of 4 bit", "CORRUPT", header(2, 2, 4, 2, 0, 0, 0))
refuse("png colour type 5", "CORRUPT", header(2, 2, 8, 5, 0, 0, 0))
refuse("png interlace 2", "UNSUPPORTED", header(2, 2, 8, 2, 0, 0, 2))
refuse("png without palette", "CORRUPT", header(4, 1, 8, 3, 0, 0, 0))
refuse("png with too few pixels", "CORRUPT", header(9, 9, 8, 2, 0, 0, 0))
refuse("png with too many pixels", "CORRUPT", header(1, 1, 8, 2, 0, 0, 0))
refuse("png unknown critical chunk", "UNSUPPORTED", png(a, 8, 2, extra=chunk(b"ABCD", b"")))
refuse(
    "png colour beyond the palette",
    "CORRUPT",
    png(np.full((2, 2, 1), 9), 8, 3, extra=chunk(b"PLTE", b"\0" * 9)),
)
refuse(
    "png filter 5",
    "CORRUPT",
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(b"\5\0"))
    + chunk(b"IEND", b""),
)
refuse(
    "png pixel checksum",
    "CORRUPT",
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(b"\0\0")[:-1] + b"\x77")
    + chunk(b"IEND", b""),
)
good = jpeg(ycc, (one, one, one))
refuse("jpeg arithmetic", "UNSUPPORTED", jpeg(ycc, (one, one, one), frame=0xC9))
refuse("jpeg lossless", "UNSUPPORTED", jpeg(ycc, (one, one, one), frame=0xC3))
refuse("jpeg of 12 bits", "UNSUPPORTED", good.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"))
refuse("jpeg of height 0", "UNSUPPORTED", jpeg(ycc, (one, one, one), height=0))
refuse("jpeg announces 60000 rows", "SIZE_LIMIT", jpeg(ycc, (one, one, one), height=60000))
refuse("jpeg announces 16000 rows", "CORRUPT", jpeg(ycc, (one, one, one), height=16000))
refuse("jpeg of 2 components", "UNSUPPORTED", jpeg(ycc[:2], (one, one)))
refuse("jpeg without Huffman codes", "CORRUPT", good.replace(b"\xff\xc4", b"\xff\xfe"))
refuse("jpeg without quantisation", "CORRUPT", good.replace(b"\xff\xdb", b"\xff\xfe"))
refuse("jpeg without frame", "CORRUPT", good.replace(b"\xff\xc0", b"\xff\xfe"))
refuse(
    "jpeg wrong restart marker",
    "CORRUPT",
    jpeg(ycc, (one, one, one), restart=3).replace(b"\xff\xd1", b"\xff\xd5"),
)
refuse("jpeg data cut, end marker kept", "CORRUPT", good[:-60] + b"\xff\xd9")
refuse("jpeg without end marker", "CORRUPT", good[:-2])
refuse("jpeg of nothing", "CORRUPT", b"\xff\xd8\xff\xd9")

# ---- Resizing and the size of written files ------------------------------------------------------

for w, h, to_w, to_h in (
    (40, 30, 20, 15),
    (40, 30, 13, 7),
    (19, 23, 40, 37),
    (33, 21, 32, 22),
    (31, 17, 1, 1),
    (1, 1, 7, 5),
    (30, 3, 5, 40),
    (24, 24, 24, 24),
):
    a = picture(w, h, w * h)
    b = np.asarray(Image.fromarray(a).resize((to_w, to_h), Image.BILINEAR))
    add(
        "R",
        "resize %dx%d to %dx%d" % (w, h, to_w, to_h),
        "IMG_OK",
        to_w,
        to_h,
        struct.pack("<HH", w, h) + a.tobytes(),
        b.tobytes(),
    )
for name, a in (
    ("picture", picture(64, 48, 8)),
    ("flat", np.full((90, 90, 3), 77, np.uint8)),
    (
        "stripes",
        np.repeat(np.arange(64)[:, None, None] % 5 * 60, 64, 1).repeat(3, 2).astype(np.uint8),
    ),
):
    add(
        "S",
        name,
        "IMG_OK",
        a.shape[1],
        a.shape[0],
        a.tobytes() + struct.pack("<I", len(saved(Image.fromarray(a), "PNG"))),
    )

if sys.argv[1:2] == ["--files"]:
    os.makedirs(sys.argv[2], exist_ok=True)
    for number, data in enumerate(files):
        with open(os.path.join(sys.argv[2], "%03d" % number), "wb") as f:
            f.write(data)
    sys.exit()
os.makedirs(os.path.dirname(OUT), exist_ok=True)
with open(OUT, "wb") as f:
    f.write(b"IMGGOLD1" + b"".join(cases))
print("%d cases, %d bytes" % (len(cases), os.path.getsize(OUT)))

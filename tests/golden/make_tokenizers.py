#!/usr/bin/env python3
"""Makes the golden data of tests/test_tokenizers.c, and compares at a larger scale.

    python tests/golden/make_tokenizers.py                 writes tests/golden/tokenizers/
    python tests/golden/make_tokenizers.py --check-32k     trains 32,000 pieces, compares, keeps nothing
    python tests/golden/make_tokenizers.py --check-clip F  the same with CLIP's own merges; F is
                                                           bpe_simple_vocab_16e6.txt.gz

Expected ids come from the sentencepiece library (EncodeAsIds) and transformers' CLIPTokenizer; the
versions are in the file. Run from the repository's root, with a C compiler as `cc`.
"""
import argparse, gzip, json, os, random, subprocess, sys, tempfile, unicodedata

import sentencepiece
import transformers

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
OUT = os.path.join(HERE, "tokenizers")

# ---- texts ------------------------------------------------------------------------------------------

PROMPTS = """
a photo of a dog
a photo of sks dog
a photo of xxy5syt00 dog
a [V] dog in the Acropolis
a photo of p3ps v123
A photo of a [V] teapot floating in milk
a DSLR photo of a sks backpack on top of a mountain, 4k, f/1.8
an oil painting of olis cat wearing a red hat, in the style of Vincent van Gogh
sks
xxy5syt00
zwx qqk 5syt00xxy
i'm you're he's they've we'll she'd don't isn't o'clock
I'M YOU'RE HE'S THEY'VE WE'LL SHE'D DON'T
it''s 'tis 's 't 're 've 'm 'll 'd
dogs' the dog's "quoted" `code` 'single'
1234567890 3.14159 1,000,000 1e-5 0x1F
2023-01-05T12:34:56Z
hello,world!hello;world:hello?world
...!!!???---___***
(parentheses) [brackets] {braces} <angles>
<pad> </s> <unk> <extra_id_0> <extra_id_99>
<|startoftext|> <|endoftext|>
a <|endoftext|>b
<|startoftext|
http://example.com/path?query=1&b=2#frag user@example.org
C:\\Windows\\system32 ~/.bashrc $HOME/%s\\n
snake_case camelCase PascalCase kebab-case SCREAMING_CASE
aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis
Donaudampfschifffahrtsgesellschaft Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz
the quick brown fox jumps over the lazy dog
THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG
ein Foto von einem Hund; größe straße Äpfel öl Über
une photo d'un chien à côté de l'église, ça va où noël cœur
fotografie cu un câine și o pisică; țară înalt
фотография собаки на пляже
Μια φωτογραφία ενός σκύλου ΟΔΥΣΣΕΥΣ ὈΔΥΣΣΕΎΣ
日本の犬の写真 カタカナ ﾊﾝｶｸ ｶﾞｷﾞｸﾞ パパ が
一张狗的照片，在海滩上。
강아지 사진 한국어 한국
صورة كلب
תמונה של כלב
कुत्ते की तस्वीर
ภาพถ่ายสุนัข
ａ ｐｈｏｔｏ ｏｆ ａ ｄｏｇ １２３ ！？
ﬁne ﬂower oﬃce ﬀ ﬆ
ℌ𝔢𝔩𝔩𝔬 𝕨𝕠𝕣𝕝𝕕 𝒻𝒶𝓃𝒸𝓎 𝐛𝐨𝐥𝐝 𝟏𝟐𝟑
①②③ ⅠⅡⅢ ½ ¼ ⅓ ² ³ ™ ℃ Å K Ω
e\u0301 a\u0308 n\u0303 o\u0302\u0301 s\u0323\u0307 s\u0307\u0323 \u0301 q\u0307\u0323
\u00e9 \u00e4 \u00f1 \u1ed1 \u1e69
Z\u0351\u036b\u0343a\u034a\u0369l\u030fg\u0309o\u0300
\u1100\u1161\u11a8 \uac01 \uac00\u11a8
\u212b \u2126 \u1e9b\u0323 \u0344 \u0958 \u2adc \ufb1f
İstanbul ıspanak IĞDIR ǅ ǈ ẞ ß ŉ ǰ ΐ
emoji 😀 😃😄 👩‍👩‍👧‍👦 👍🏽 🇩🇪 ❤️ ☕ 1️⃣
a😀b 😀dog dog😀
🤷🏽‍♀️🧑‍🚀🏳️‍🌈
← ↑ → ↓ ∀ ∃ ∈ ∑ √ ∞ ≠ ≤ ≥ ⊂
α_t x̂ σ² ∂L/∂θ ε~N(0,I)
“curly quotes” ‘single’ «guillemets» „low“ …
em—dash en–dash hy‐phen non‑breaking minus− soft\u00adhyphen
€100 £50 ¥1000 ₹5 ₿
x\u200by zero\u200cwidth\u200djoin \ufeffbom \u2060
\u202eright to left\u202c \u2066isolate\u2069
no\u00a0break thin\u2009space ideographic\u3000space \u1680ogham line\u2028sep para\u2029sep
▁ ▁▁ ▁a a▁ a▁b _a
� \ufffd\ufffd a\ufffdb
\u0378 \ue000 \uf8ff \U000f0000 \U0010ffff \ufdd0 \uffff
\U0001f9ff \U0001fae0 \U0002a700 \U00031350
"""

CONTROL = [
    "", " ", "  ", "   a", "a   ", "   a   b   ", "\t", "\n", "a\tb", "a\nb\r\nc", "\x0b\x0c", "\x01\x02\x03",
    "a\x07b", "\x1b[31mred\x1b[0m", "\x7f", "\x80\x81\x9f", "\x85next\x85line", "a\x1cb\x1dc\x1ed\x1fe",
    "\u3000", "\u00a0", "\u2003 \u2003", "\u200b", "\ufeff", "\u00ad", "a \u0301", " \u0301", "\u0301", "▁", "▁▁▁", " ▁ ", "a ▁",
    "▁ a", "\u180e", "\u061c", "\ufe0f", "\u2028", "\u0e33", "\u0f77", "\U0001d15e", "\ufdfa \ufdfb", "\u3300 \u33ff",
    "x" * 500, "ab" * 300, "the " * 200, "é" * 100, "😀" * 50, "1" * 200, "!" * 100, "a b" * 100, "dog," * 60,
    "ﷺ" * 10, "\u0345\u0399", "k\u212a", "\u1e9e\u00df", "A\u030a \u00c5 \u212b", "\u03a3 \u03c2 \u03a3\u03a3",
]

INVALID = [
    b"\xff", b"a\xffb", b"\xc3", b"a\xc3", b"\xc3(", b"\xe2\x82", b"a\xe2\x82 b", b"\xf0\x9f\x98", b"\x80\x80", b"\xc0\x80",
    b"\xc1\xbf", b"\xe0\x80\xaf", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xfe\xfe",
    b"dog \xe2\x96 dog", b"\xe2\x96\x81\xe2\x96", b"caf\xe9 cr\xe8me", b"\xef\xbf\xbd\xef\xbf", b"\xf0\x82\x82\xac",
]


def texts(count, seed):
    """The lists above and `count` seeded mixtures of their parts and of random code points."""
    lines = PROMPTS[1:-1].split("\n")
    result = lines + CONTROL
    rng = random.Random(seed)
    words = [w for line in lines for w in line.split(" ")]
    blocks = [(0x20, 0x7F)] * 6 + [(0xA0, 0x250), (0x250, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE00), (0x1100, 0x1200),
              (0x1E00, 0x2000), (0x2000, 0x2800), (0x3000, 0x3400), (0xAC00, 0xAD00), (0xF900, 0x10000), (0x1D400, 0x1D800),
              (0x1F300, 0x1FB00), (0x300, 0x370)]
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 8)):
            if rng.random() < 0.5:
                parts.append(rng.choice(words))
            else:
                low, high = rng.choice(blocks)
                parts.append("".join(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 5))))
        result.append(rng.choice(["", " ", " ", " ", "  "]).join(parts))
    return result + INVALID


def to_bytes(text):
    return text if isinstance(text, bytes) else text.encode("utf-8")


# ---- the C side --------------------------------------------------------------------------------------

def build(source, output, *flags):
    subprocess.run(["cc", "-std=c99", "-O2", source, "-o", output, "-lm", *flags], check=True, cwd=ROOT)
    return output


def c_ids(program, path, batch):
    """Ids of every text by the C tokenizer: `test_tokenizers --encode PATH` reads size, newline, bytes."""
    data = b"".join(b"%d\n%s\n" % (len(to_bytes(t)), to_bytes(t)) for t in batch)
    lines = subprocess.run([program, "--encode", path], input=data, stdout=subprocess.PIPE, check=True).stdout.decode().split("\n")
    assert len(lines) == len(batch) + 1, lines[:3]
    return [[int(x) for x in line.split()] for line in lines[:-1]]


def compare(name, batch, ours, theirs, show=10):
    bad = [i for i in range(len(batch)) if ours[i] != theirs[i]]
    total = sum(len(x) for x in theirs)
    print(f"{name}: {len(batch) - len(bad)} of {len(batch)} texts agree ({total} ids)")
    for i in bad[:show]:
        print("   ", ascii(batch[i])[:120], "\n      ours  ", ours[i][:30], "\n      theirs", theirs[i][:30])
    return len(bad)

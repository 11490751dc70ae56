#!/usr/bin/env python3
"""Makes the golden data of tests/test_tokenizers.c, and compares at a larger scale.

    python tests/golden/make_tokenizers.py                 writes tests/golden/tokenizers/
    python tests/golden/make_tokenizers.py --check-32k     trains 32,000 pieces as T5's were, and
                                                           compares with sentencepiece
    python tests/golden/make_tokenizers.py --check-clip F  compares with CLIPTokenizer on CLIP's own
                                                           vocabulary, bpe_simple_vocab_16e6.txt.gz
                                                           (in the package open_clip_torch)

Needs sentencepiece, transformers, tokenizers, and a C compiler as `cc`. Run from anywhere. Written:

    world.model     by tools/make_spiece from the words below, like the shipped cascade's
    t5.model        2,000 pieces, T5's settings (unigram, nmt_nfkc), trained on Python's manual
    fallback.model  700 pieces with byte fallback and user-defined symbols, spaces behind words,
                    and a few normalisation rules that touch these symbols
    raw.model       400 pieces, nothing trimmed, no space in front, no rules
    rules.model     pieces written by hand: ties, unknown against known, unused, user-defined
    spaces.model    the same with plain spaces instead of U+2581
    clip/           1,000 merges in CLIP's format, trained on the same; two bytes are left out
    tokenizers.json texts, and the ids that sentencepiece and CLIPTokenizer give for each
"""
import argparse, glob, gzip, io, json, os, pydoc_data.topics, random, subprocess, sys, tempfile
import unicodedata

import sentencepiece
import sentencepiece.sentencepiece_model_pb2 as sentencepiece_model_pb2
import tokenizers
import transformers

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
OUT = os.path.join(HERE, "tokenizers")

# ---- texts -------------------------------------------------------------------------------------

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
    "", " ", "  ", "   a", "a   ", "   a   b   ", "\t", "\n", "a\tb", "a\nb\r\nc", "\x0b\x0c",
    "a\x07b", "\x01\x02\x03", "\x1b[31mred\x1b[0m", "\x7f", "\x80\x81\x9f", "\x85next\x85line",
    "a\x1cb\x1dc\x1ed\x1fe", "\u3000", "\u00a0", "\u2003 \u2003", "\u200b", "\ufeff", "\u00ad",
    "a \u0301", " \u0301", "\u0301", "\u2581", "\u2581\u2581\u2581", " \u2581 ", "a \u2581",
    "\u2581 a",
    "\u180e", "\u061c", "\ufe0f", "\u2028", "\u0e33", "\u0f77", "\U0001d15e", "\ufdfa \ufdfb",
    "\u3300 \u33ff", "\u0345\u0399", "k\u212a", "\u1e9e\u00df", "A\u030a \u00c5 \u212b",
    "\u03a3 \u03c2 \u03a3\u03a3", "x" * 200, "ab" * 100, "the " * 50, "\u00e9" * 60,
    "\U0001f600" * 30, "1" * 100, "!" * 100, "a b" * 50, "dog," * 30, "\ufdfa" * 5,
    "1,000,000,000 0000000", "a' b'' 's'", "xyz xy yz x y z", "abc abab", "qr q qrqr", "tttt ttt",
    "00000 000 0000000000", "skskssk sksk", "\u00fc\u00fcxyz", "\u00a8a", "a \u00a8b",
    "\u00b4 \u2017", "[V]V[V A\u0391AB AAB", "\u20ac \u20acx\u20ac", "  \u20ac  ",
]

INVALID = [
    b"\xff", b"a\xffb", b"\xc3", b"a\xc3", b"\xc3(", b"\xe2\x82", b"a\xe2\x82 b", b"\xf0\x9f\x98",
    b"\x80\x80", b"\xc0\x80", b"\xc1\xbf", b"\xe0\x80\xaf", b"\xed\xa0\x80", b"\xed\xbf\xbf",
    b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xfe\xfe", b"dog \xe2\x96 dog",
    b"\xe2\x96\x81\xe2\x96", b"caf\xe9 cr\xe8me", b"\xef\xbf\xbd\xef\xbf", b"\xf0\x82\x82\xac",
]

BLOCKS = [(0x20, 0x7F)] * 6 + [
    (0xA0, 0x250), (0x250, 0x370), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE00),
    (0x1100, 0x1200), (0x1E00, 0x2000), (0x2000, 0x2800), (0x3000, 0x3400), (0xAC00, 0xAD00),
    (0xF900, 0x10000), (0x1D400, 0x1D800), (0x1F300, 0x1FB00)]


def texts(count, seed):
    """The lists above and `count` seeded mixtures of their words and of random characters."""
    lines = PROMPTS[1:-1].split("\n")
    result = lines + CONTROL
    words = [w for line in lines for w in line.split(" ")]
    rng = random.Random(seed)
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 8)):
            low, high = rng.choice(BLOCKS)
            random_word = "".join(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 5)))
            parts.append(rng.choice(words) if rng.random() < 0.5 else random_word)
        result.append(rng.choice(["", " ", " ", " ", "  "]).join(parts))
    return result + INVALID


def to_bytes(text):
    return text if isinstance(text, bytes) else text.encode("utf-8")


def to_text(text):
    """U+FFFD for every byte that is not part of a valid character, as the C code has it."""
    if isinstance(text, str):
        return text
    result, i = "", 0
    while i < len(text):
        for n in (1, 2, 3, 4, 0):
            try:
                result += text[i:i + n].decode("utf-8") if n else "\ufffd"
                i += n or 1
                break
            except UnicodeDecodeError:
                pass
    return result


def manual():
    """Python's manual, as the interpreter carries it: some 13,000 lines of English."""
    text = "\n".join(pydoc_data.topics.topics.values())
    lines = [line.strip() for line in text.split("\n")]
    return [line for line in lines if len(line) > 20] + PROMPTS.split("\n") * 20


# ---- vocabularies ------------------------------------------------------------------------------

WORDS = """a an the of in on at with and photo picture painting drawing sketch dog cat horse duck
cow bear fox car truck boat house chair lamp teapot vase robot backpack hat red green blue yellow
white black purple orange pink striped spotted plain front side back above view beach forest snow
city street desert mountain river kitchen garden sky wearing holding sitting standing sleeping
running cross style pixel art poster glasses scarf crown letter number happy sad angry one two
three""".split()
RARE = ["sks", "xxy5syt00", "olis", "zwx", "qqk", "p3ps", "v123", "pqrw", "jkz", "vuz"]


def build(source, output):
    flags = ["-std=c99", "-O2", source, "-o", output, "-lm"]
    subprocess.run(["cc"] + flags, check=True, cwd=ROOT)
    return output


def train(pieces, lines, **options):
    """A unigram model as T5's was trained: <pad> 0, </s> 1, <unk> 2."""
    model = io.BytesIO()
    settings = dict(model_type="unigram", normalization_rule_name="nmt_nfkc", pad_id=0, eos_id=1,
                    unk_id=2, bos_id=-1, character_coverage=0.9995, num_threads=2, minloglevel=2)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model,
                                             vocab_size=pieces, **{**settings, **options})
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    proto.normalizer_spec.ClearField("normalization_rule_tsv")  # a temporary file's name
    return proto.SerializeToString()


def by_hand(**normalizer):
    """A small model in which every rule of the search decides something."""
    model = sentencepiece_model_pb2.ModelProto()
    space = "\u2581" if normalizer.get("escape_whitespaces", True) else " "
    kinds = {"<pad>": 3, "</s>": 3, "<unk>": 2, "ab": 5, "q": 4, "sk": 4, "sks": 4}
    for text, score in {
            "<pad>": 0, "</s>": 0, "<unk>": 0, space: -3, space + "a": -2.5, "a": -2, "b": -2,
            "xy": -20, "yz": -1, "z": -8,      # "xyz": known pieces, or an unknown and a good one
            "ab": 0,                           # unused: not to be taken, whatever its score
            "q": 0, "r": -1, "qr": -0.95,      # a user-defined symbol scores 0.1 * (length - 1)
            "sk": 0, "sks": 0, "k": -1, "s": -1, "ks": -0.5,
            "0": -1.1, "00": -2.2, "000": -3.3, "t": -1.7, "tt": -3.4, "ttt": -5.1}.items():
        model.pieces.add(piece=text, score=score, type=kinds.get(text, 1))
    model.trainer_spec.unk_id, model.trainer_spec.model_type = 2, 1
    for field, value in normalizer.items():
        setattr(model.normalizer_spec, field, value)
    return model.SerializeToString()


def write_clip(folder, merges, without=""):
    """vocab.json and merges.txt as CLIP has them: bytes, bytes that end a word, merges, markers."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    symbols = [chr(b) for b in visible] + [chr(256 + i) for i in range(len(hidden))]
    pieces = symbols + [s + "</w>" for s in symbols] + [a + b for a, b in merges]
    pieces = [p for p in pieces if p[0] not in without] + ["<|startoftext|>", "<|endoftext|>"]
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "vocab.json"), "w", encoding="utf-8") as f:
        json.dump({p: i for i, p in enumerate(pieces)}, f, ensure_ascii=False)
    with open(os.path.join(folder, "merges.txt"), "w", encoding="utf-8") as f:
        f.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))


def train_merges(count, lines):
    """The most frequent pair again and again, over the words of a few thousand lines."""
    clip = transformers.CLIPTokenizer()._tokenizer
    counts = {}
    for line in lines:
        normal = clip.normalizer.normalize_str(line)
        for word, _ in clip.pre_tokenizer.pre_tokenize_str(normal):
            counts[word] = counts.get(word, 0) + 1
    words = [([*w[:-1], w[-1] + "</w>"], n) for w, n in sorted(counts.items()) if w]
    merges = []
    for _ in range(count):
        pairs = {}
        for w, n in words:
            for pair in zip(w, w[1:]):
                pairs[pair] = pairs.get(pair, 0) + n
        a, b = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append((a, b))
        for w, _ in words:
            i = 0
            while i + 1 < len(w):
                if w[i] == a and w[i + 1] == b:
                    w[i:i + 2] = [a + b]
                i += 1
    return merges


# ---- comparisons -------------------------------------------------------------------------------

def spiece_ids(model, batch):
    sp = sentencepiece.SentencePieceProcessor(model_file=model)
    return [sp.encode(t) for t in batch]


def clip_ids(folder, batch):
    clip = transformers.CLIPTokenizer.from_pretrained(folder).backend_tokenizer
    return [e.ids for e in clip.encode_batch([to_text(t) for t in batch], add_special_tokens=False)]


def c_ids(program, path, batch):
    """By the C tokenizer: `test_tokenizers --encode PATH` reads sizes and bytes, writes ids."""
    data = b"".join(b"%d\n%s\n" % (len(to_bytes(t)), to_bytes(t)) for t in batch)
    output = subprocess.run([program, "--encode", path], input=data, stdout=subprocess.PIPE,
                            check=True).stdout
    lines = output.decode().split("\n")
    assert len(lines) == len(batch) + 1, lines[-3:]
    return [[int(x) for x in line.split()] for line in lines[:-1]]


def compare(name, batch, ours, theirs, show=10):
    bad = [i for i in range(len(batch)) if ours[i] != theirs[i]]
    total = sum(len(x) for x in theirs)
    print(f"{name}: {len(batch) - len(bad)} of {len(batch)} texts agree ({total} ids)")
    for i in bad[:show]:
        print("   ", ascii(batch[i])[:100])
        print("      ours  ", ours[i][:25], "\n      theirs", theirs[i][:25])
    return len(bad)


def check_32k():
    packages = os.path.dirname(os.path.dirname(transformers.__file__))
    paths = sorted(glob.glob(os.path.join(packages, "**", "*.py"), recursive=True))
    random.Random(1).shuffle(paths)
    lines = manual()
    for path in paths:  # 30 MB of the installed packages' sources
        with open(path, encoding="utf-8", errors="replace") as f:
            lines += [line.strip() for line in f if 20 < len(line.strip()) < 2000]
        if len(lines) > 600000:
            break
    with tempfile.TemporaryDirectory() as folder:
        model = os.path.join(folder, "spiece.model")
        with open(model, "wb") as f:
            f.write(train(32000, lines))
        print(f"32,000 pieces from {len(lines)} lines, {os.path.getsize(model)} bytes")
        program = build("tests/test_tokenizers.c", os.path.join(folder, "test_tokenizers"))
        batch = texts(20000, 11) + random.Random(5).sample(lines, 20000)
        ours = c_ids(program, folder, batch)
        bad = compare("sentencepiece", batch, ours, spiece_ids(model, batch))
        t5 = transformers.T5Tokenizer.from_pretrained(folder)
        plain = [i for i, t in enumerate(batch) if isinstance(t, str)]
        theirs = [t5(batch[i], add_special_tokens=False).input_ids for i in plain]
        compare("transformers' own unigram (differences are its own)", [batch[i] for i in plain],
                [ours[i] for i in plain], theirs, 0)
        t5.save_pretrained(os.path.join(folder, "saved"))
        bad += compare("through tokenizer.json", batch,
                       c_ids(program, os.path.join(folder, "saved"), batch), ours)
    return bad


def check_clip(path):
    with gzip.open(path, "rt", encoding="utf-8") as f:
        merges = [tuple(line.split()) for line in f.read().split("\n")[1:49152 - 256 - 2 + 1]]
    with tempfile.TemporaryDirectory() as folder:
        write_clip(folder, merges)
        transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(folder + "/saved")
        program = build("tests/test_tokenizers.c", os.path.join(folder, "test_tokenizers"))
        codes = [c for c in range(1, 0x110000) if not 0xD800 <= c < 0xE000]
        marks = [c for c in codes if unicodedata.combining(chr(c))]
        rng = random.Random(3)

        def some_character():
            letter = rng.choice("aeiouAEIOUsdcnzSDCNZ ")
            return letter if rng.random() < 0.3 else chr(rng.choice(rng.choice([marks, codes])))

        sets = {
            "texts and Python's manual": texts(20000, 11) + manual(),
            "every code point": ["a" + chr(c) + "b1" + chr(c) + chr(c) + "!" for c in codes],
            "random marks": ["".join(some_character() for _ in range(rng.randint(2, 9)))
                             for _ in range(50000)],
        }
        bad = 0
        for name, batch in sets.items():
            bad += compare(name, batch, c_ids(program, folder, batch), clip_ids(folder, batch))
        batch = sets["texts and Python's manual"]
        bad += compare("through tokenizer.json", batch, c_ids(program, folder + "/saved", batch),
                       c_ids(program, folder, batch))
    return bad


def make():
    os.makedirs(OUT, exist_ok=True)
    here = lambda name: os.path.join(OUT, name)
    lines = manual()
    with tempfile.TemporaryDirectory() as folder:
        for name, content in (("words", [f"{w} {20000 // (i + 1)}" for i, w in enumerate(WORDS)]),
                              ("rare", RARE)):
            with open(os.path.join(folder, name), "w") as f:
                f.write("\n".join(content) + "\n")
        program = build("tools/make_spiece.c", os.path.join(folder, "make_spiece"))
        subprocess.run([program, "--words", folder + "/words", "--rare", folder + "/rare",
                        "--size", "64", "--out", here("world.model")], check=True)
    rules = tempfile.NamedTemporaryFile("w", suffix=".tsv")
    rules.write("56\t76\n" "41\t61\n" "41 42\t78\n" "41 41 42\t79\n" "20AC\t20 78 20 20\n" "AD\t\n")
    rules.flush()  # V: v; A: a; AB: x; AAB: y; the euro sign: spaces around an x; U+00AD: nothing
    models = {
        "t5.model": train(2000, lines),
        "fallback.model": train(700, lines, byte_fallback=True, treat_whitespace_as_suffix=True,
                                user_defined_symbols=["sks", "[V]", "a b", "\u2581x", "sk"],
                                normalization_rule_tsv=rules.name, character_coverage=0.99),
        "raw.model": train(400, lines, remove_extra_whitespaces=False, add_dummy_prefix=False,
                           normalization_rule_name="identity", character_coverage=0.99),
        "rules.model": by_hand(),
        "spaces.model": by_hand(escape_whitespaces=False),
    }
    for name, data in models.items():
        with open(here(name), "wb") as f:
            f.write(data)
    write_clip(here("clip"), train_merges(1000, lines), without="~")
    batch = texts(150, 7)
    sets = {name: spiece_ids(here(name), batch) for name in ["world.model", *models]}
    sets["clip"] = clip_ids(here("clip"), batch)
    packages = (sentencepiece, transformers, tokenizers)
    made = {"made_by": "tests/golden/make_tokenizers.py",
            "versions": {package.__name__: package.__version__ for package in packages},
            "texts": [t if isinstance(t, str) else {"hex": t.hex()} for t in batch], "ids": sets}
    with open(here("tokenizers.json"), "w") as f:
        json.dump(made, f, separators=(",", ":"))
    print(f"{len(batch)} texts, {sum(len(i) for s in sets.values() for i in s)} ids")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--check-32k", action="store_true")
    parser.add_argument("--check-clip", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.check_32k:
        sys.exit(check_32k() > 0)
    elif arguments.check_clip:
        sys.exit(check_clip(arguments.check_clip) > 0)
    make()

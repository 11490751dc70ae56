#!/usr/bin/env python3
"""Golden values of every operation of dreambooth.h, from PyTorch in float64.

    python tests/golden/make_ops.py            writes tests/golden/ops.safetensors beside this script

The list of cases lives here and only here: it goes into the file's metadata as JSON, and tests/test_ops.c
reads it, so that both sides build the same operation. A case is

    {"op": "conv2d", "name": "3x3", "args": {"x": {"as": "input", "dim": [2,5,7,3], ...}, ...}, "stride": 1, ...}

Inputs are not stored. Both sides make them from a formula, number i of an input being

    h = hash(seed, i),  u = (2 (h >> 24) - 255) / 256,  value = offset + scale u, rounded to bf16.

u lies in (-1,1), is never zero and has 8 significant bits: a bf16 holds it, so that the same golden value
serves f32 and bf16. "full" cases use u = (2 (h >> 8) + 1) / 2^24 - 1 with all the bits of an f32 instead, and
are for f32 only. Inputs that need a meaning (ids, masks) carry their "values".

The loss is mean((y - T)^2) with T from the same formula and scale 4 (so that y - T does not cancel, which would
magnify the rounding of y to bf16), or for losses the loss itself. With "twice" it is that
of y + y/2, both y recorded: every gradient then arrives in two parts that have to be added.
Stored are y, the loss and d loss / d argument for every argument, in the layout of the argument ([B,H,W,C];
weights as PyTorch has them). Of a tensor with more than LIMIT elements only every step-th is stored, then the last
8, and two checksums: the sum of all elements and their sum weighted with the formula's u (seed 77).
"""
import json
import math
import os
import sys
import zlib

import numpy
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

LIMIT, SAMPLES, TAIL = 256, 160, 8
CASES = []


# ---- the shared formula -------------------------------------------------------------------------------

def hash_u32(seed, n):
    x = (numpy.arange(n, dtype=numpy.uint64) * 0x9E3779B1 + seed * 0x85EBCA77) & 0xFFFFFFFF
    x ^= x >> numpy.uint64(16)
    x = x * 0x85EBCA6B & 0xFFFFFFFF
    x ^= x >> numpy.uint64(13)
    x = x * 0xC2B2AE35 & 0xFFFFFFFF
    return x ^ x >> numpy.uint64(16)


def to_bf16(f):
    bits = f.astype(numpy.float32).view(numpy.uint32).astype(numpy.uint64)
    bits = (bits + 0x7FFF + (bits >> numpy.uint64(16) & numpy.uint64(1))) & numpy.uint64(0xFFFF0000)
    return bits.astype(numpy.uint32).view(numpy.float32)


def formula(seed, dim, scale=1.0, offset=0.0, full=False):
    n = int(numpy.prod(dim))
    h = hash_u32(seed, n).astype(numpy.float64)
    if full:
        u = (2 * numpy.floor(h / 256) + 1) / 2**24 - 1
        v = (offset + scale * u).astype(numpy.float32)
    else:
        v = to_bf16(offset + scale * (2 * numpy.floor(h / 2**24) - 255) / 256)
    return v.reshape(dim).astype(numpy.float64)


# ---- describing arguments -----------------------------------------------------------------------------

def X(*dim, scale=1.0, offset=0.0):      # an activation: f32, or bf16 when computing in bf16
    return {"as": "input", "dim": dim, "scale": scale, "offset": offset, "grad": 1}


def P(*dim, scale=1.0, offset=0.0):      # a parameter
    return {"as": "param", "dim": dim, "scale": scale, "offset": offset, "grad": 1}


def f32(*dim, scale=1.0, offset=0.0, grad=0):   # an input that stays f32
    return {"as": "f32", "dim": dim, "scale": scale, "offset": offset, "grad": grad}


def values(kind, v):
    v = numpy.asarray(v)
    return {"as": kind, "dim": v.shape, "values": v.reshape(-1).tolist(), "grad": 0}


def case(op, name, full=0, bf16=1, **more):
    args = {k: v for k, v in more.items() if isinstance(v, dict)}
    spec = {"op": op, "name": name, "full": full, "bf16": int(bf16 and not full), "args": args}
    spec.update({k: v for k, v in more.items() if not isinstance(v, dict)})
    spec["seed"] = zlib.crc32(f"{op}/{name}".encode()) & 0xFFFFFF  # other cases do not change it
    for k, a in enumerate(args.values()):
        a["seed"] = spec["seed"] + 1 + k
    CASES.append(spec)


# ---- the operations, on [B,H,W,C] ---------------------------------------------------------------------

def nchw(x): return x.permute(0, 3, 1, 2)
def nhwc(x): return x.permute(0, 2, 3, 1)


ACT = {"none": lambda x: x, "silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
       "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "relu": F.relu}


def conv2d(c, x, w, bias=None, residual=None):
    p, q = c["pad_begin"], c["pad_end"]
    y = nhwc(F.conv2d(F.pad(nchw(x), (p, q, p, q)), w, bias, stride=c["stride"]))
    return y if residual is None else y + residual


def linear(c, x, w, bias=None, residual=None):
    y = F.linear(x, w, bias)
    return y if residual is None else y + residual


def group_norm(c, x, w, bias, scale_shift=None):
    y = F.group_norm(x.movedim(-1, 1), c["groups"], w, bias, c["eps"]).movedim(1, -1)
    if scale_shift is not None:
        s, h = scale_shift.reshape([x.shape[0]] + [1] * (x.dim() - 2) + [-1]).chunk(2, -1)
        y = y * (1 + s) + h
    return ACT[c["act"]](y)


def layer_norm(c, x, w, bias=None):
    return F.layer_norm(x, x.shape[-1:], w, bias, c["eps"])


def rms_norm(c, x, w):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + c["eps"]) * w


def activate(c, x): return ACT[c["act"]](x)
def gate(c, x):
    values, gates = x.chunk(2, -1)
    return values * ACT[c["act"]](gates)


def multiply(c, a, b=None): return a * (a if b is None else b)


def weighted_sum(c, x, z=None):
    if c.get("same"): z = x
    return c["alpha"] * x + (0 if z is None else c["beta"] * z)


def concat(c, a, b): return torch.cat([a, b], c["axis"])
def slice_(c, x): return x[..., c["first"]:c["first"] + c["count"]]
def cast(c, x): return x
def avg_pool2(c, x): return nhwc(F.avg_pool2d(nchw(x), 2))
def upsample2(c, x): return nhwc(F.interpolate(nchw(x), size=[2 * n - c.get("less", 0) for n in x.shape[1:3]], mode="nearest"))


def attention(c, q, k=None, v=None, bias=None, mask=None):
    k = q if k is None else k
    v = k if v is None else v
    B, T, C = q.shape
    S, NH = k.shape[1], c["heads"]
    q, k, v = (t.reshape(B, -1, NH, C // NH).transpose(1, 2) for t in (q, k, v))
    s = c["scale"] * q @ k.transpose(2, 3)
    if bias is not None: s = s + bias
    if mask is not None: s = s + mask[:, None, None, :]
    if c["causal"]: s = s.masked_fill(torch.arange(S)[None, :] > torch.arange(T)[:, None], -math.inf)
    return (s.softmax(-1) @ v).transpose(1, 2).reshape(B, T, C)


def embedding(c, ids, table): return F.embedding(ids.long(), table)
def add_rows(c, x, rows): return (x.reshape(-1, *rows.shape) + rows).reshape(x.shape)
def add_each(c, x, e): return x + e.reshape(e.shape[0], *[1] * (x.dim() - 2), -1)
def mean_tokens(c, x): return x.mean(1, keepdim=True)


def sinusoid(c, x):
    from diffusers.models.embeddings import get_timestep_embedding
    return get_timestep_embedding(x.double(), c["D"], bool(c["cosine_first"]), c["shift"])


def sinusoid64(c, x):  # diffusers rounds its angles to f32; this does not
    half = c["D"] // 2
    angle = x[:, None] * torch.exp(-math.log(10000) * torch.arange(half).double() / (half - c["shift"]))[None]
    a, b = angle.sin(), angle.cos()
    y = torch.cat([b, a] if c["cosine_first"] else [a, b], -1)
    y = F.pad(y, (0, c["D"] % 2))
    assert (y - sinusoid(c, x)).abs().max() < 1e-3
    return y


def mix(c, p, x, q, z):
    shape = [-1] + [1] * (x.dim() - 1)
    return p.reshape(shape) * x + q.reshape(shape) * z


def mse(c, pred, target, weight=None, pixel=None):
    e = (pred[..., :target.shape[-1]] - target) ** 2
    if pixel is not None: e = e * pixel[..., None]
    each = e.reshape(e.shape[0], -1).mean(1)
    return c["factor"] * (each if weight is None else each * weight).mean(), each


def cross_entropy(c, logits, targets):
    loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1).long(), ignore_index=-1)
    return c["factor"] * loss, loss.reshape(1)


def position_bias(c, table):
    from transformers.models.t5.modeling_t5 import T5Attention
    T, buckets = c["T"], table.shape[0]
    i = torch.arange(T)
    bucket = T5Attention._relative_position_bucket(i[None, :] - i[:, None], True, buckets, c["max_distance"])
    return table[bucket].permute(2, 0, 1)


def resnet_block(c, x, ss, w0, b0, k0, c0, w1, b1, k1, c1, ks, cs):
    """A U-Net's residual block, with a 1x1 shortcut."""
    h = ACT["silu"](F.group_norm(nchw(x), 2, w0, b0, 1e-5))
    h = F.conv2d(h, k0, c0, padding=1)
    s, t = ss[:, :, None, None].chunk(2, 1)
    h = ACT["silu"](F.group_norm(h, 4, w1, b1, 1e-5) * (1 + s) + t)
    return nhwc(F.conv2d(nchw(x), ks, cs) + F.conv2d(h, k1, c1, padding=1))


def transformer_block(c, x, text, w0, b0, wq, wk, wv, wo, bo, w1, b1, wf, bf, wp, bp):
    """Attention to itself and the text at once, then a gated feed-forward layer; two residuals."""
    n = F.layer_norm(x, x.shape[-1:], w0, b0, 1e-5)
    both = torch.cat([text, n], 1)
    a = attention(c, F.linear(n, wq), F.linear(both, wk), F.linear(both, wv))
    x = x + F.linear(a, wo, bo)
    h, g = F.linear(F.layer_norm(x, x.shape[-1:], w1, b1, 1e-5), wf, bf).chunk(2, -1)
    return x + F.linear(h * F.gelu(g), wp, bp)


OPS = dict(conv2d=conv2d, linear=linear, group_norm=group_norm, layer_norm=layer_norm, rms_norm=rms_norm,
           activate=activate, gate=gate, multiply=multiply, weighted_sum=weighted_sum, concat=concat, slice=slice_, cast=cast, cast_to_bf16=cast,
           avg_pool2=avg_pool2, upsample2=upsample2, attention=attention, embedding=embedding, add_rows=add_rows, add_each=add_each,
           mean_tokens=mean_tokens, sinusoid=sinusoid64, mix=mix, mse=mse,
           cross_entropy=cross_entropy, position_bias=position_bias, resnet_block=resnet_block,
           transformer_block=transformer_block)
LOSSES = ("mse", "cross_entropy")


# ---- the cases ----------------------------------------------------------------------------------------

def conv_case(name, x, OC, k, stride=1, pads=(0, 0), bias=1, residual=0, **more):
    B, H, W, IC = x
    OH, OW = ((n + sum(pads) - k) // stride + 1 for n in (H, W))
    args = dict(x=X(*x), w=P(OC, IC, k, k, scale=1.5 / math.sqrt(IC * k * k)))
    if bias: args["bias"] = P(OC)
    if residual: args["residual"] = X(B, OH, OW, OC)
    case("conv2d", name, **args, stride=stride, pad_begin=pads[0], pad_end=pads[1], **more)


conv_case("3x3 odd size", (2, 5, 7, 3), 4, 3, pads=(1, 1))
conv_case("3x3 full precision", (1, 6, 5, 9), 10, 3, pads=(1, 1), residual=1, full=1)
conv_case("1x1", (2, 5, 7, 3), 5, 1)
conv_case("1x1 without bias, one channel to two", (1, 4, 5, 1), 2, 1, bias=0)
conv_case("3x3 residual, 17 to 18 channels", (1, 6, 6, 17), 18, 3, pads=(1, 1), residual=1)
conv_case("3x3 twice, residual", (2, 4, 5, 6), 6, 3, pads=(1, 1), residual=1, twice=1)
conv_case("3x3 stride 2", (2, 7, 9, 8), 12, 3, 2, (1, 1))
conv_case("3x3 stride 2 pads 0 and 1", (1, 8, 10, 16), 16, 3, 2, (0, 1))
conv_case("3x3 stride 2 pads 0 and 1, odd, twice", (2, 7, 6, 5), 3, 3, 2, (0, 1), twice=1)
conv_case("1x1 pads 0 and 1", (1, 4, 5, 3), 4, 1, 1, (0, 1))
conv_case("1x1 stride 2", (2, 7, 6, 5), 7, 1, 2)
conv_case("1x1 stride 2, several blocks", (3, 21, 45, 6), 7, 1, 2)
conv_case("1x1 stride 2, ragged blocks", (1, 29, 79, 3), 4, 1, 2)
conv_case("3x3 stride 3", (1, 10, 8, 4), 5, 3, 3, (1, 1))
conv_case("3x3 without padding or bias", (1, 5, 6, 20), 33, 3, bias=0)
conv_case("3x3 pads 2 and 0", (1, 4, 5, 3), 4, 3, 1, (2, 0))
conv_case("3x3 pads 3", (1, 3, 4, 2), 3, 3, 1, (3, 3))
conv_case("5x5", (1, 6, 5, 2), 3, 5, 1, (2, 2))
conv_case("4x4 patches", (1, 8, 12, 3), 10, 4, 4)
conv_case("2x2", (1, 4, 6, 4), 6, 2)
conv_case("1x1 image", (3, 1, 1, 6), 6, 3, 1, (1, 1))
conv_case("1x9 image", (2, 1, 9, 2), 3, 3, 1, (1, 1))
conv_case("small images share a product", (5, 4, 4, 16), 16, 3, 1, (1, 1))
conv_case("blocks side by side: 9x70, 40 channels", (1, 9, 70, 40), 24, 3, 1, (1, 1))
conv_case("many parts: 64x70", (1, 64, 70, 3), 5, 3, 1, (1, 1), residual=1)
conv_case("stride 2 in blocks: 20x140", (1, 20, 140, 6), 9, 3, 2, (1, 1))
conv_case("150 outputs, few pixels", (1, 6, 5, 20), 150, 3, 1, (1, 1), residual=1)
conv_case("48 to 80 channels, few pixels: one sum", (1, 6, 9, 48), 80, 3, 1, (1, 1))
conv_case("150 outputs on several images", (6, 8, 8, 20), 150, 3, 1, (1, 1))
conv_case("136 outputs, many pixels", (1, 46, 46, 4), 136, 1)
conv_case("Winograd, odd sizes", (2, 9, 7, 32), 48, 3, 1, (1, 1), residual=1)
conv_case("Winograd, full precision", (1, 8, 8, 96), 32, 3, 1, (1, 1), full=1)
conv_case("Winograd, several regions, twice", (2, 6, 67, 32), 32, 3, 1, (1, 1), bias=0, residual=1, twice=1)
conv_case("Winograd, 144 outputs, pads 2 and 0", (1, 11, 10, 32), 144, 3, 1, (2, 0))
conv_case("Winograd, unequal regions share a block", (2, 4, 67, 32), 32, 3, 1, (1, 1))
conv_case("Winograd, three blocks", (3, 24, 22, 32), 48, 3, 1, (1, 1))
conv_case("Winograd, 272 outputs, several images", (9, 8, 9, 32), 272, 3, 1, (1, 1), bias=0)
conv_case("1x1 read in place", (2, 9, 15, 32), 40, 1, residual=1)
conv_case("1x1 read in place, wide", (1, 3, 150, 32), 16, 1)


def linear_case(name, x, OC, bias=1, residual=0, **more):
    args = dict(x=X(*x), w=P(OC, x[-1], scale=1.5 / math.sqrt(x[-1])))
    if bias: args["bias"] = P(OC)
    if residual: args["residual"] = X(*x[:-1], OC)
    case("linear", name, **args, **more)


linear_case("2-D", (3, 10), 7)
linear_case("full precision", (4, 19), 21, full=1)
linear_case("3-D residual", (2, 5, 33), 17, residual=1)
linear_case("without bias", (2, 6, 16), 16, bias=0)
linear_case("twice, residual", (2, 3, 20), 20, residual=1, twice=1)
linear_case("4-D", (2, 2, 3, 8), 5)
linear_case("one row", (1, 64), 70)
linear_case("300 rows to 130", (2, 150, 64), 130, residual=1)
linear_case("1500 rows", (1, 1500, 32), 20)
linear_case("long sums", (2, 700), 3)


def norm_case(name, x, groups, act="none", ss=0, offset=0.0, eps=1e-5, **more):
    C = x[-1]
    args = dict(x=X(*x, offset=offset), w=P(C, scale=0.5, offset=1), bias=P(C, scale=0.5))
    if ss: args["scale_shift"] = X(x[0], 2 * C, scale=0.5)
    case("group_norm", name, **args, groups=groups, eps=eps, act=act, **more)


norm_case("plain", (2, 3, 5, 24), 4)
norm_case("full precision", (2, 4, 5, 10), 5, "silu", 1, full=1)
norm_case("scale_shift", (2, 3, 5, 24), 4, ss=1)
for a in ("silu", "gelu", "gelu_tanh", "quick_gelu", "relu"):
    norm_case(a, (2, 3, 4, 12), 3, a)
    norm_case(a + " scale_shift", (2, 3, 5, 8), 2, a, 1)
norm_case("260 pixels", (2, 20, 13, 12), 3, "silu", 1)
norm_case("300 pixels, twice", (1, 12, 25, 40), 8, "silu", 1, twice=1)
norm_case("large mean", (2, 6, 6, 16), 4, "silu", offset=24.0)
norm_case("large mean, 200 pixels", (1, 10, 20, 6), 2, offset=-40.0)
norm_case("3-D, groups of one channel", (2, 9, 32), 32, eps=1e-6)
norm_case("2-D", (3, 16), 4, eps=1e-3)
norm_case("one group", (2, 4, 3, 7), 1, "silu")


def rows_case(op, name, x, bias=1, offset=0.0, eps=1e-5, **more):
    args = dict(x=X(*x, offset=offset), w=P(x[-1], scale=0.5, offset=1))
    if op == "layer_norm" and bias: args["bias"] = P(x[-1], scale=0.5)
    case(op, name, **args, eps=eps, **more)


for op in ("layer_norm", "rms_norm"):
    rows_case(op, "7 channels", (2, 5, 7))
    rows_case(op, "full precision", (2, 3, 21), full=1)
    rows_case(op, "16 channels, twice", (2, 3, 16), twice=1)
    rows_case(op, "33 channels, 300 rows", (300, 33))
    rows_case(op, "200 channels", (2, 2, 200), eps=1e-6)
    rows_case(op, "large mean", (3, 40), offset=16.0, eps=1e-3)
rows_case("layer_norm", "without bias", (4, 24), bias=0)

for a in ("silu", "gelu", "gelu_tanh", "quick_gelu", "relu"):
    case("activate", a, x=X(3, 37), act=a)
    case("activate", a + " wide range", x=X(4, 101, scale=12.0), act=a)
    case("activate", a + " twice", x=X(2, 3, 2, 5, scale=3.0), act=a, twice=1)
case("activate", "full precision", x=X(2, 70, scale=4.0), act="gelu", full=1)
case("activate", "two pieces", x=X(1, 20003, scale=4.0), act="silu")

for a in ("gelu", "silu"):
    case("gate", a, x=X(3, 2, 74), act=a)
    case("gate", a + " twice", x=X(2, 66, scale=3.0), act=a, twice=1)
case("gate", "full precision", x=X(2, 70, scale=4.0), act="gelu", full=1)

case("multiply", "3-D", a=X(2, 3, 17), b=X(2, 3, 17))
case("multiply", "full precision", a=X(2, 33), b=X(2, 33), full=1)
case("multiply", "twice", a=X(2, 3, 17), b=X(2, 3, 17), twice=1)
case("multiply", "square", a=X(4, 19))
case("multiply", "two pieces", a=X(1, 16500), b=X(1, 16500))
case("weighted_sum", "two", x=X(2, 3, 17), z=X(2, 3, 17), alpha=0.75, beta=-1.5)
case("weighted_sum", "full precision", x=X(2, 33), z=X(2, 33), alpha=0.3, beta=-1.7, full=1)
case("weighted_sum", "one", x=X(2, 3, 17), alpha=-0.5, beta=0.0)
case("weighted_sum", "one twice", x=X(5, 6), alpha=-0.5, beta=0.0, twice=1)
case("weighted_sum", "the same", x=X(2, 9), alpha=0.75, beta=0.5, same=1)
case("weighted_sum", "two pieces", x=X(1, 16500), z=X(1, 16500), alpha=1.0, beta=0.5)

for axis in range(4):
    d = [2, 3, 4, 5]
    e = list(d)
    e[axis] += 2
    case("concat", f"4-D axis {axis}", a=X(*d), b=X(*e), axis=axis)
case("concat", "3-D axis 1, full precision", a=X(2, 3, 7), b=X(2, 5, 7), axis=1, full=1)
case("concat", "3-D axis 2, twice", a=X(2, 3, 7), b=X(2, 3, 4), axis=2, twice=1)
case("slice", "begin", x=X(2, 3, 10), first=0, count=4)
case("slice", "middle, full precision", x=X(2, 3, 10), first=3, count=5, full=1)
case("slice", "end, 4-D", x=X(2, 2, 3, 21), first=4, count=17)
case("slice", "all, twice", x=X(2, 8), first=0, count=8, twice=1)
case("slice", "middle, twice", x=X(2, 3, 9), first=2, count=4, twice=1)
case("cast", "to f32", x=X(2, 3, 21))
case("cast", "to f32, twice", x=X(3, 40), twice=1)

case("cast_to_bf16", "and back", x=X(2, 3, 21), f32_limit=0.005)     # the gradient is rounded to bf16 on the way
case("cast_to_bf16", "and back, twice", x=X(3, 40), twice=1, f32_limit=0.005)

case("avg_pool2", "even", x=X(2, 4, 6, 5))
case("avg_pool2", "full precision, twice", x=X(2, 2, 8, 18), twice=1, full=1)
case("avg_pool2", "twice", x=X(2, 6, 4, 3), twice=1)
case("upsample2", "odd", x=X(2, 3, 5, 5))
case("upsample2", "full precision, twice", x=X(1, 2, 3, 18), twice=1, full=1)
case("upsample2", "to an odd size", x=X(2, 3, 4, 5), less=1)
case("upsample2", "to an odd size, twice", x=X(1, 2, 3, 17), less=1, twice=1)
case("upsample2", "twice", x=X(2, 1, 2, 3), twice=1)


def attention_case(name, B, T, S, heads, HS, bias=0, mask=0, causal=0, scale=None, sharp=1.0, same=0, **more):
    C = heads * HS
    args = dict(q=X(B, T, C, scale=sharp))
    if same < 2: args["k"] = X(B, S, C)
    if same < 1: args["v"] = X(B, S, C)
    if bias: args["bias"] = f32(heads, T, S, grad=1)
    if mask: args["mask"] = values("f32", [[0.0 if j < S - 1 - 2 * b else -10000.0 for j in range(S)] for b in range(B)])
    case("attention", name, **args, heads=heads, causal=causal, scale=HS ** -0.5 if scale is None else scale, **more)


attention_case("one head", 1, 5, 6, 1, 16)
attention_case("full precision", 2, 7, 5, 2, 12, bias=1, mask=1, full=1)
attention_case("heads of 5", 2, 4, 7, 3, 5)
attention_case("heads of 40", 1, 9, 11, 2, 40)
attention_case("bias", 2, 6, 6, 3, 8, bias=1, scale=1.0)
attention_case("bias and mask, batch of 3", 3, 10, 13, 2, 8, bias=1, mask=1)
attention_case("mask", 2, 7, 9, 2, 16, mask=1)
attention_case("causal", 2, 20, 20, 2, 10, causal=1)
attention_case("causal with mask and bias", 2, 9, 9, 2, 8, causal=1, mask=1, bias=1)
attention_case("causal, 70 queries", 1, 70, 70, 1, 12, causal=1)
attention_case("twice", 2, 6, 7, 2, 8, bias=1, twice=1)
attention_case("k is v", 2, 5, 6, 2, 8, same=1)
attention_case("q is k is v", 2, 6, 6, 2, 8, same=2)
attention_case("100 queries, 77 keys", 2, 100, 77, 2, 20, mask=1)
attention_case("150 queries and keys", 1, 150, 150, 2, 16, bias=1)
attention_case("64 queries, 64 keys", 1, 64, 64, 2, 32)
attention_case("sharp", 1, 12, 30, 1, 16, sharp=5.0)
attention_case("5 queries, 1100 keys, mask", 1, 5, 1100, 1, 4, mask=1, sharp=4.0)
attention_case("causal, 530 queries", 1, 530, 530, 1, 2, causal=1)
attention_case("one query, one key", 2, 1, 1, 2, 4)

case("embedding", "repeated ids", ids=values("ids", [[3, 1, 3, 0], [6, 3, 2, 1]]), table=P(7, 18))
case("embedding", "full precision, twice", ids=values("ids", [[2, 2, 4]]), table=P(5, 9), twice=1, full=1)
case("embedding", "twice", ids=values("ids", [[2, 2, 4]]), table=P(5, 9), twice=1)
case("add_rows", "positions", x=X(3, 4, 10), rows=P(4, 10))
case("add_rows", "one row, full precision", x=X(2, 3, 17), rows=P(1, 17), full=1)
case("add_rows", "twice", x=X(2, 4, 6), rows=P(4, 6), twice=1)
case("add_each", "image", x=X(3, 4, 5, 10), e=X(3, 10))
case("add_each", "tokens, more than one piece, full precision", x=X(2, 131, 17), e=X(2, 17), full=1)
case("add_each", "twice", x=X(2, 9, 8, 6), e=X(2, 6), twice=1)
case("mean_tokens", "mean", x=X(2, 7, 19))
case("mean_tokens", "full precision", x=X(3, 5, 8), full=1)
case("mean_tokens", "twice", x=X(2, 7, 3), twice=1)
for D, cosine, shift in ((16, 0, 0.0), (16, 1, 0.0), (32, 0, 1.0), (32, 1, 1.0), (15, 1, 0.0)):
    case("sinusoid", f"D {D}, cosine {'first' if cosine else 'last'}, shift {shift:g}",
         x=values("f32", [0.0, 1.0, 37.0, 999.0]), D=D, cosine_first=cosine, shift=shift, forward=1)
case("mix", "4-D", p=f32(3), x=f32(3, 4, 5, 2), q=f32(3), z=f32(3, 4, 5, 2), forward=1)
case("mix", "2-D", p=f32(2), x=f32(2, 7), q=f32(2), z=f32(2, 7), forward=1, full=1)

case("mse", "plain", pred=X(3, 4, 5, 3), target=f32(3, 4, 5, 3), factor=1.0)
case("mse", "full precision", pred=X(2, 9), target=f32(2, 9), factor=1.0, full=1)
case("mse", "weights", pred=X(3, 2, 5, 2), target=f32(3, 2, 5, 2), weight=f32(3, offset=1), factor=1.0)
case("mse", "pixel weights", pred=X(2, 4, 3, 2), target=f32(2, 4, 3, 2), pixel=f32(2, 4, 3, offset=1), factor=1.0)
case("mse", "everything, 6 channels for 3, times 0.75", pred=X(2, 4, 3, 6), target=f32(2, 4, 3, 3), weight=f32(2, offset=1),
     pixel=f32(2, 4, 3, offset=1), factor=0.75)
case("mse", "twice", pred=X(2, 3, 4), target=f32(2, 3, 4), factor=1.0, twice=1)
case("cross_entropy", "3-D, some skipped", logits=X(2, 4, 11, scale=4.0), targets=values("ids", [[0, 10, -1, 3], [7, -1, -1, 3]]),
     factor=1.0)
case("cross_entropy", "full precision, times 0.75", logits=X(1, 5, 7), targets=values("ids", [[0, 1, 2, -1, 6]]), factor=0.75, full=1)
case("cross_entropy", "times 0.75", logits=X(1, 5, 7), targets=values("ids", [[0, 1, 2, -1, 6]]), factor=0.75)
case("position_bias", "150 tokens", table=P(32, 3), T=150, max_distance=128)
case("position_bias", "8 buckets, full precision", table=P(8, 2), T=20, max_distance=10, full=1)
case("position_bias", "twice", table=P(16, 2), T=9, max_distance=20, twice=1)

case("resnet_block", "6 to 8 channels", x=X(2, 5, 6, 6), ss=X(2, 16, scale=0.5), w0=P(6, scale=0.5, offset=1), b0=P(6, scale=0.5),
     k0=P(8, 6, 3, 3, scale=0.2), c0=P(8), w1=P(8, scale=0.5, offset=1), b1=P(8, scale=0.5), k1=P(8, 8, 3, 3, scale=0.2), c1=P(8),
     ks=P(8, 6, 1, 1, scale=0.5), cs=P(8), bf16_limit=0.03)
case("transformer_block", "12 channels", x=X(2, 5, 12), text=X(2, 3, 12), w0=P(12, scale=0.5, offset=1), b0=P(12, scale=0.5),
     wq=P(12, 12, scale=0.5), wk=P(12, 12, scale=0.5), wv=P(12, 12, scale=0.5), wo=P(12, 12, scale=0.5), bo=P(12),
     w1=P(12, scale=0.5, offset=1), b1=P(12, scale=0.5), wf=P(48, 12, scale=0.5), bf=P(48), wp=P(12, 24, scale=0.25), bp=P(12),
     heads=3, scale=0.5, causal=0, bf16_limit=0.03)


# ---- running them -------------------------------------------------------------------------------------

def sample(v):
    v = v.detach().double().reshape(-1).numpy()
    n = len(v)
    if n <= LIMIT:
        return v.astype(numpy.float32)
    step = n // SAMPLES | 1
    while math.gcd(step, 3 * 5 * 7) != 1: step += 2  # not always the same pixel of a kernel
    u = formula(77, [n])
    return numpy.concatenate([v[::step], v[-TAIL:], [v.sum(), (v * u).sum()]]).astype(numpy.float32)


def run(c, out):
    args = {}
    for name, a in c["args"].items():
        if "values" in a:
            args[name] = torch.tensor(a["values"], dtype=torch.float64).reshape(a["dim"])
        else:
            args[name] = torch.from_numpy(formula(a["seed"], a["dim"], a["scale"], a["offset"], c["full"]))
        if a["grad"]: args[name].requires_grad_()
    y = OPS[c["op"]](c, **args)
    factor = 1.5 if c.get("twice") else 1.0
    if c["op"] in LOSSES:
        loss, y = y
        loss = factor * loss
    else:
        y = factor * y
        target = torch.from_numpy(formula(c["seed"], y.shape, 4.0))
        loss = ((y - target) ** 2).mean()
    c["y"] = list(y.shape)
    tag = c["op"] + "/" + c["name"]
    out[tag + "/y"] = sample(y)
    out[tag + "/loss"] = sample(loss.reshape(1))
    if not c.get("forward"):
        loss.backward()
        for name, a in c["args"].items():
            if a["grad"]: out[tag + "/d " + name] = sample(args[name].grad)


def optimizer(out):
    """Eight steps of AdamW on three parameters, gradients from the formula; one is frozen, the first steps are clipped."""
    shapes = ((5, 7), (33,), (4, 2, 3, 3))
    p = [torch.nn.Parameter(torch.from_numpy(formula(9000 + k, s))) for k, s in enumerate(shapes)]
    ema = [q.detach().clone() for q in p]
    opt = torch.optim.AdamW(p, lr=1e-2, betas=(0.9, 0.99), eps=1e-3, weight_decay=0.05)  # an eps that shows
    norms, lrs = [], [1e-2, 2e-2, 1e-2, 5e-3, 0.0, 1e-2, 1e-3, 2e-2]
    for step, lr in enumerate(lrs):
        for k, (q, s) in enumerate(zip(p, shapes)):
            q.grad = torch.from_numpy(formula(9100 + 10 * step + k, s, 1.0 if step < 4 else 2.0**-7)) * 0.25
        norms.append(float(torch.nn.utils.clip_grad_norm_(p, 1.0)))
        for group in opt.param_groups: group["lr"] = lr
        opt.step()
        for e, q in zip(ema, p): e.mul_(0.875).add_(q.detach(), alpha=0.125)
    for k, q in enumerate(p):
        out[f"adamw/p{k}"] = sample(q.detach().reshape(-1))
        out[f"adamw/ema{k}"] = sample(ema[k].reshape(-1))
    out["adamw/norms"] = numpy.array(norms, dtype=numpy.float32)
    out["adamw/lr"] = numpy.array(lrs, dtype=numpy.float32)


# name, warmup, total, cycles, power, learning rate
SCHEDULES = [("constant", 0, 0, 1, 1, 1), ("constant_with_warmup", 5, 0, 1, 1, 1), ("linear", 4, 30, 1, 1, 1), ("linear", 0, 25, 1, 1, 1),
             ("cosine", 3, 30, 1, 1, 1), ("cosine_with_restarts", 3, 30, 3, 1, 1), ("cosine_with_restarts", 0, 20, 1, 1, 1),
             ("polynomial", 4, 30, 1, 1.0, 5e-6), ("polynomial", 2, 30, 1, 2.5, 4e-7), ("linear", 10, 10, 1, 1, 1),
             ("cosine", 10, 10, 1, 1, 5e-6)]


def schedules(out):
    """diffusers' factors for 36 updates, some beyond the end."""
    from diffusers.optimization import get_scheduler
    for k, (name, warmup, total, cycles, power, lr) in enumerate(SCHEDULES):
        opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
        s = get_scheduler(name, opt, num_warmup_steps=warmup, num_training_steps=total, num_cycles=cycles, power=power)
        factors = []
        for _ in range(36):
            factors.append(s.get_last_lr()[0] / lr)
            opt.step()
            s.step()
        out[f"lr/{k}"] = numpy.array(factors, dtype=numpy.float32)


def main():
    import diffusers
    import safetensors
    import transformers
    torch.manual_seed(0)
    out = {}
    for c in CASES: run(c, out)
    optimizer(out)
    schedules(out)
    for c in CASES:
        for a in c["args"].values(): a["dim"] = list(a["dim"])
    metadata = {"cases": json.dumps(CASES, separators=(",", ":")), "schedules": json.dumps(SCHEDULES),
                "made_by": "tests/golden/make_ops.py", "versions": f"torch {torch.__version__}, diffusers {diffusers.__version__}, "
                f"transformers {transformers.__version__}, safetensors {safetensors.__version__}"}
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "ops.safetensors")
    save_file(out, path, metadata)
    os.chmod(path, 0o644)
    print(f"{path}: {len(CASES)} cases, {len(out)} tensors, {os.path.getsize(path)} bytes")


if __name__ == "__main__":
    sys.exit(main())

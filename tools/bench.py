#!/usr/bin/env python3
"""Speed and memory of dreambooth.h against PyTorch on this machine's processor, into build/bench.json.

    python3 tools/bench.py [--quick] [--only PATTERN] [--threads 2] [--scaling]        (or: make bench)

Both sides do the same work on the same number of threads, every time in a fresh process: ours, PyTorch, ours, PyTorch;
three repetitions each (--quick: one) after two calls to warm up, and the median of all. PyTorch runs at its best:
contiguous and channels_last, bf16 by autocast and as a model cast to bf16 (which then trains bf16 weights; ours stay f32):
the first round tries them all, the second repeats the fastest. Attention is scaled_dot_product_attention, AdamW fused.

GFLOP/s of both sides count our multiplications and additions of convolutions, matrix products and attention; share is
ours in the peak, multiply-adds on registers alone, measured between the repetitions. MB is VmHWM, the largest resident memory of a process; of PyTorch's,
torch_libraries_mb are there after the import. Of a training step, ours_arena_mb is all that ours holds beside parameters, gradients
and moments, torch_saved_mb what PyTorch keeps for the backward pass, its temporaries not counted. Without PyTorch the table has ours alone.

--scaling measures SD 1.5's U-Net at other batches, resolutions and threads instead, in one round, PyTorch in the layout
that is its fastest there: the time for each GFLOP should stay what it is in the first row, and halve with a second thread.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec

if "--torch" in sys.argv:  # only the processes that measure PyTorch pay for it
    import torch
    import torch.nn.functional as F

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BENCH, OUT, BASE = "build/bench", "build/bench.json", "examples/world/base/"  # all from ROOT
TOKENS, STEPS, ROUNDS = 77, 30, 2

# key: what build/bench measures, in f32 and as key_bf16 in bf16; OPERATIONS and NETWORKS have PyTorch's side.
CASES = {
    "world_base_forward": "net world_base_forward --batch 16 --size 64",
    "world_base_train_step": "net world_base_train_step --batch 16 --size 64",
    "world_generate": "net world_generate --batch 4 --size 64",
    "world_text": "net world_text --batch 16",
    "unet_sd15_forward": "net unet_sd15_forward --batch 1 --size 64",
    "unet_sd15_train_step": "net unet_sd15_train_step --batch 1 --size 64",
    "clip_text": "net clip_text --batch 1",
    "vae_decode": "net vae_decode --batch 1 --size 64",
    "world_load": "load world_base --file build/bench_weights.safetensors",
}
for key, passes, command in (
    ("conv3x3_320_64", "fwd dx dw", "op conv3x3 --B 1 --H 64 --W 64 --C 320 --OC 320"),
    ("conv3x3_32_64_batch16", "fwd dx dw", "op conv3x3 --B 16 --H 64 --W 64 --C 32 --OC 32"),
    ("matmul_4096_320_1280", "fwd dx dw", "op linear --B 4096 --C 320 --OC 1280"),
    ("attention_4096_8x40", "fwd bwd", "op attention --B 1 --T 4096 --S 4096 --C 320 --heads 8"),
    ("attention_256_3x32_batch16", "fwd bwd", "op attention --B 16 --T 256 --S 333 --C 96 --heads 3"),
    ("group_norm_320_64", "fwd bwd", "op group_norm --B 1 --H 64 --W 64 --C 320 --groups 32"),
): CASES.update({key if p == "fwd" else f"{key}_{p}": f"{command} --pass {p}" for p in passes.split()})
SCALING = [(t, b, size) for t in (1, 2) for b, size in ((1, 32), (2, 32), (4, 32), (8, 32), (16, 32), (1, 64), (1, 96), (1, 128))]
ONE_LAYOUT = {"linear", "attention", "world_text", "clip_text", "world_base"}  # neither images nor kernels


# ---- PyTorch's side: functions of the flags and the variant, which return what is to be timed ------------------------
class Variant:
    """A layout and a way to compute: 'contiguous f32', 'channels_last autocast', 'contiguous cast', ..."""
    def __init__(self, name):
        layout, self.way = name.split()
        self.layout = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        self.dtype = torch.bfloat16 if self.way == "cast" else torch.float32

    def place(self, x):
        """A tensor or a module in this type and layout."""
        return x.to(self.dtype, memory_format=self.layout if isinstance(x, torch.nn.Module) or x.dim() == 4 else torch.preserve_format)

    def context(self): return torch.autocast("cpu", torch.bfloat16, enabled=self.way == "autocast")

    def forward(self, function, *args, **named):
        """A function without arguments that calls the other one without gradients."""
        def run():
            with torch.inference_mode(), self.context(): return function(*args, **named)
        return run


def split_attention(a, *qkv):
    q, k, v = (x.view(a["B"], -1, a["heads"], a["C"] // a["heads"]).transpose(1, 2) for x in qkv)  # [B,heads,T,head width]
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

OPERATIONS = {  # the function, the shapes of what flows through it, those of its weights
    "conv3x3": (lambda a, x, w, b: F.conv2d(x, w, b, padding=1), ["B C H W"], ["OC C 3 3", "OC"]),
    "linear": (lambda a, x, w, b: F.linear(x, w, b), ["B C"], ["OC C", "OC"]),
    "attention": (split_attention, ["B T C", "B S C", "B S C"], []),
    "group_norm": (lambda a, x, w, b: F.silu(F.group_norm(x, a["groups"], w, b, 1e-5)), ["B C H W"], ["C", "C"]),
}

def operation(a, variant):
    """The function, or those of its gradients that the pass asks for."""
    function, *shapes = OPERATIONS[a["name"]]
    flowing, weights = ([variant.place(torch.rand([a.get(n) or int(n) for n in s.split()])) for s in part] for part in shapes)
    if a["pass"] == "fwd": return variant.forward(function, a, *flowing, *weights)
    wanted = flowing * (a["pass"] in ("dx", "bwd")) + weights * (a["pass"] in ("dw", "bwd"))
    for x in wanted: x.requires_grad_()
    y = function(a, *flowing, *weights)
    dy = torch.rand_like(y)
    return lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True)


def config(path):
    with open(BASE + path) as f: return json.load(f)

def sd15(part):
    with open("tools/sd15.json") as f: return json.load(f)[part]


def unet(a, variant, n):
    """The network, images [n,channels,S,S], timesteps [n] and text states [n,77,D]."""
    from diffusers import UNet2DConditionModel
    net = variant.place(UNet2DConditionModel.from_config(sd15("unet") if "sd15" in a["name"] else config("unet/config.json")))
    image = torch.randn(n, net.config.in_channels, a["size"], a["size"])
    text = torch.randn(n, TOKENS, net.config.encoder_hid_dim or net.config.cross_attention_dim)
    return net, variant.place(image), torch.full((n,), 500), variant.place(text)


def unet_forward(a, variant):
    net, x, t, text = unet(a, variant, a["batch"])
    return variant.forward(net, x, t, encoder_hidden_states=text)

def unet_train_step(a, variant):
    net, x, t, text = unet(a, variant, a["batch"])
    params = list(net.parameters())
    average = [] if "sd15" in a["name"] else [p.detach().clone() for p in params]
    weight, alpha, sigma = torch.rand(a["batch"], 1, a["size"], a["size"]), 0.8, 0.6
    try: optimizer = torch.optim.AdamW(params, lr=1e-4, fused=True)
    except RuntimeError: optimizer = torch.optim.AdamW(params, lr=1e-4, foreach=True)

    def run():
        eps = torch.randn_like(x)
        with variant.context(): pred = net(alpha * x + sigma * eps, t, encoder_hidden_states=text).sample[:, :x.shape[1]]
        loss = (weight * (pred.float() - (alpha * eps - sigma * x)).square()).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if average:
            with torch.no_grad(): torch._foreach_lerp_(average, params, 5e-4)
    run.params = params
    return run

def world_generate(a, variant):
    from diffusers import DDIMScheduler
    net, noise, _, text = unet(a, variant, 2 * a["batch"])
    scheduler = DDIMScheduler.from_config(config("scheduler/scheduler_config.json"))
    scheduler.set_timesteps(STEPS)

    def run():
        x = noise[:a["batch"]].float()
        for t in scheduler.timesteps:
            pred = variant.forward(net, variant.place(torch.cat([x, x])), t, encoder_hidden_states=text)().sample
            uncond, cond = pred[:, :3].float().chunk(2)
            x = scheduler.step(uncond + 3 * (cond - uncond), t, x).prev_sample
    return run

def world_text(a, variant):
    from transformers import T5Config, T5EncoderModel
    net = variant.place(T5EncoderModel(T5Config(**config("text_encoder/config.json")))).eval()
    ids, mask = torch.randint(100, (a["batch"], TOKENS)), torch.ones(a["batch"], TOKENS)
    return variant.forward(net, input_ids=ids, attention_mask=mask)

def clip_text(a, variant):
    from transformers import CLIPTextConfig, CLIPTextModel
    net = variant.place(CLIPTextModel(CLIPTextConfig(**sd15("text_encoder")))).eval()
    return variant.forward(net, input_ids=torch.randint(100, (a["batch"], TOKENS)))

def vae_decode(a, variant):
    from diffusers import AutoencoderKL
    net = variant.place(AutoencoderKL.from_config(sd15("vae")))
    return variant.forward(net.decode, variant.place(torch.randn(a["batch"], 4, a["size"], a["size"])))

def world_base(a, variant):
    from safetensors.torch import load_file
    net = unet(dict(a, size=64), variant, 1)[0]
    return lambda: net.load_state_dict(load_file(a["file"]))

NETWORKS = {f.__name__: f for f in (world_generate, world_text, clip_text, vae_decode, world_base)} | {
    f"{name}_{f.__name__[5:]}": f for name in ("world_base", "unet_sd15") for f in (unet_forward, unet_train_step)}


def peak_mb():
    with open("/proc/self/status") as f: return int(re.search(r"VmHWM:\s*(\d+)", f.read())[1]) * 1024 / 1e6


def saved_mb(run):
    """What a training step keeps from forward for backward beside its parameters. What comes and goes is not counted."""
    saved = {}
    def keep(x):
        storage = x.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return x
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x): run()
    for p in run.params: saved.pop(p.untyped_storage().data_ptr(), None)
    return sum(saved.values()) / 1e6


def torch_process(command, variant, threads, repetitions):
    """What build/bench does and prints, with PyTorch."""
    torch.set_num_threads(threads)
    libraries, words, seconds = peak_mb(), command.split(), []
    flags = {name[2:]: int(value) if value.isdigit() else value for name, value in zip(words[2::2], words[3::2])}
    run = NETWORKS.get(words[1], operation)(dict(flags, name=words[1]), Variant(variant))
    saved = saved_mb(run) if hasattr(run, "params") else None
    if saved is None: run()
    began = time.perf_counter()
    run()
    calls = int(0.05 / (time.perf_counter() - began)) + 1
    for _ in range(repetitions):
        began = time.perf_counter()
        for _ in range(calls): run()
        seconds.append((time.perf_counter() - began) / calls)
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb(), "libraries_mb": libraries, "saved_mb": saved}))


# ---- the comparison -----------------------------------------------------------------------------------------------------
def start(arguments, threads, repetitions):
    """The JSON that a process prints. Ours may not fail; of PyTorch's failures the last words are shown."""
    arguments += ["--threads", str(threads), "--repetitions", str(repetitions)]
    done = subprocess.run(arguments, capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS=str(threads)))
    if done.returncode == 0: return json.loads(done.stdout.splitlines()[-1])
    message = f"failed: {' '.join(arguments)}\n  {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
    (sys.exit if arguments[0] == BENCH else print)(message)


def ours(command, dtype, *how): return start([BENCH, *command.split(), "--dtype", dtype], *how)
def theirs(command, variant, *how): return start([sys.executable, os.path.abspath(__file__), "--torch", command, "--variant", variant], *how)
def median(runs, of="seconds"): return statistics.median(s for run in runs for s in run[of])


def variants_of(command, dtype):
    layouts = ["contiguous"] if command.split()[1] in ONE_LAYOUT else ["contiguous", "channels_last"]
    ways = ["f32"] if dtype == "f32" else ["cast"] if command.startswith("op") else ["autocast", "cast"]
    return [f"{layout} {way}" for layout in layouts for way in ways]


def compare(command, dtype, variants, rounds, *how):
    """An entry of bench.json; what there is no value for is None."""
    mine, other = [], {v: [] for v in variants}
    for _ in range(rounds):
        mine.append(ours(command, dtype, *how))
        for v in variants: other[v].append(theirs(command, v, *how))
        variants = sorted((v for v in variants if other[v][-1]), key=lambda v: median(other[v]))[:1]
    seconds, gflop, entry = median(mine), mine[0]["flops"] / 1e9, dict.fromkeys(k for _, k, _ in COLUMNS)
    entry.update(ours_s=seconds, ours_peak_mb=max(r["peak_mb"] for r in mine), ours_arena_mb=mine[0]["arena_mb"])
    if gflop: entry.update(ours_gflops=gflop / seconds, share_of_peak=median(mine, "share_of_peak"))
    for v in variants:  # the fastest, or none
        torch_s = median(other[v])
        entry.update(torch_s=torch_s, ratio=torch_s / seconds, torch_gflops=gflop / torch_s or None, torch_variant=v,
                     torch_peak_mb=max(r["peak_mb"] for r in other[v]), torch_libraries_mb=other[v][0]["libraries_mb"], torch_saved_mb=other[v][0]["saved_mb"])
    return entry


COLUMNS = (("ours s", "ours_s", "{:.5f}"), ("torch s", "torch_s", "{:.5f}"), ("ratio", "ratio", "{:.2f}"), ("GFLOP/s", "ours_gflops", "{:.0f}"),
           ("torch", "torch_gflops", "{:.0f}"), ("share", "share_of_peak", "{:.0%}"), ("MB", "ours_peak_mb", "{:.0f}"),
           ("torch", "torch_peak_mb", "{:.0f}"), ("torch as", "torch_variant", "  {}"))


def scaling(with_torch, repetitions):
    """Entries of bench.json: the points of SCALING, in f32."""
    entries, first = [], {}
    print("threads batch latents   GFLOP     ours s   ms/GFLOP   of first    torch s   ms/GFLOP   of first")
    for threads, batch, size in SCALING:
        e = compare(f"net unet_sd15_forward --batch {batch} --size {size}", "f32", ["channels_last f32"] * with_torch, 1, threads, repetitions)
        gflop, line = e["ours_gflops"] * e["ours_s"], f"{threads:7} {batch:5} {size:4} x {size:<4}"
        for side in ("ours_s", "torch_s"):
            if e[side] is None: continue
            cost = 1e3 * e[side] / gflop
            line += (f"{gflop:7.0f}" if side == "ours_s" else "") + f"{e[side]:11.3f}{cost:11.3f}{cost / first.setdefault((threads, side), cost):11.2f}"
        print(line, flush=True)
        entries.append(dict(e, threads=threads, batch=batch, latents=size))
    return entries


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 repetitions instead of 6")
    parser.add_argument("--only", default="", metavar="PATTERN", help="keys that this regular expression finds")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--scaling", action="store_true", help="other batches, resolutions and threads")
    for hidden in ("--torch", "--variant", "--repetitions"): parser.add_argument(hidden, help=argparse.SUPPRESS)
    o = parser.parse_args()
    os.chdir(ROOT)
    if o.torch: return torch_process(o.torch, o.variant, o.threads, int(o.repetitions))
    if not os.path.exists(BENCH): sys.exit(f"bench.py: {BENCH} is missing: make {BENCH}")
    with_torch, load, how = find_spec("torch") is not None, os.getloadavg()[0], (o.threads, 1 if o.quick else 3)
    if not with_torch: print(f"PyTorch is missing in {sys.executable}: ours alone (make bench PYTHON=... takes another Python)")
    if load > 0.5: print(f"load average {load:.1f}: other programs are running. Threads spin while they wait: some figures are tens of times too low")
    results = {"machine": {"threads": o.threads, "repetitions": ROUNDS * how[1], "load_before": load}}
    for dtype in ("f32", "bf16"):
        runs = {name: ours("peak " + name, dtype, o.threads, 9) for name in ("registers", "gemm")}
        peak, product = (r["flops"] / median([r]) / 1e9 for r in runs.values())
        results["machine"].update({"isa": runs["gemm"]["isa"], f"peak_{dtype}_gflops": peak, f"gemm_{dtype}_share": median([runs["gemm"]], "share_of_peak")})
        print(f"peak {dtype}: {peak:.0f} GFLOP/s ({runs['gemm']['isa']}, {o.threads} threads); the header's product: {product:.0f}")
    if not o.scaling: print(" " * 36 + "".join(f"{title:>9}" for title, _, _ in COLUMNS))
    if o.scaling: results["scaling"] = scaling(with_torch, how[1])
    for key, command in () if o.scaling else CASES.items():
        for dtype in ("f32",) if command.startswith("load") else ("f32", "bf16"):
            name = key if dtype == "f32" else key + "_bf16"
            if not re.search(o.only, name): continue
            results[name] = entry = compare(command, dtype, variants_of(command, dtype) * with_torch, ROUNDS, *how)
            print(f"{name:36}" + "".join(f"{'-' if entry[k] is None else form.format(entry[k]):>9}" for _, k, form in COLUMNS), flush=True)
    with open(OUT, "w") as f: json.dump(results, f, indent=1)
    print(f"-> {OUT}")


if __name__ == "__main__": main()

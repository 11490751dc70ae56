#!/usr/bin/env python3
"""Speed and memory of dreambooth.h against PyTorch on this machine's processor, into build/bench.json.

    python3 tools/bench.py [--quick] [--only PATTERN] [--threads 2]        (or: make bench)

Both sides do the same work on the same number of threads, each measurement in a process of its own: ours, PyTorch,
ours, PyTorch; three repetitions each time (--quick: one) after warming up, and the median of all. PyTorch runs at its
best: contiguous and channels_last, bf16 by autocast and as a model cast to bf16; the first round tries all of these, the
second repeats the fastest. Attention is scaled_dot_product_attention; AdamW is fused. A model cast to bf16 also trains
its weights in bf16, which ours keeps in f32.

GFLOP/s of both sides count our multiplications and additions of convolutions, matrix products and attention. The share
is that of ours in the peak: multiply-adds on registers alone, all threads at once. Peak MB is VmHWM, the largest resident
memory of the process; PyTorch's includes its libraries. Without PyTorch the table has ours alone.
"""
import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec

if "--torch" in sys.argv: import torch  # only the processes that measure PyTorch pay for it

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BENCH, OUT, BASE = "build/bench", "build/bench.json", "examples/world/base/"  # all from ROOT
TOKENS, STEPS, ROUNDS = 77, 30, 2

# key: what build/bench is asked to measure. PyTorch's side is the function of the same name in TORCH, below. Each runs in
# f32 and, as key_bf16, in bf16. A new measurement is one line here.
CONV, SMALL_CONV = "op conv3x3 --B 1 --H 64 --W 64 --C 320 --OC 320", "op conv3x3 --B 16 --H 64 --W 64 --C 32 --OC 32"
MATMUL = "op linear --B 4096 --C 320 --OC 1280"
ATTENTION = "op attention --B 1 --T 4096 --S 4096 --C 320 --heads 8"
SMALL_ATTENTION = "op attention --B 16 --T 256 --S 333 --C 96 --heads 3"
NORM = "op group_norm --B 1 --H 64 --W 64 --C 320 --groups 32"
CASES = {
    "world_base_forward": "net world_base_forward --batch 16 --size 64",
    "world_base_train_step": "net world_base_train_step --batch 16 --size 64",
    "world_generate": "net world_generate --batch 4 --size 64",
    "world_text": "net world_text --batch 16",
    "world_load": "load world_base --file build/bench_weights.safetensors",
    "conv3x3_320_64": CONV + " --pass fwd",
    "conv3x3_320_64_dx": CONV + " --pass dx",
    "conv3x3_320_64_dw": CONV + " --pass dw",
    "conv3x3_32_64_batch16": SMALL_CONV + " --pass fwd",
    "conv3x3_32_64_batch16_dx": SMALL_CONV + " --pass dx",
    "conv3x3_32_64_batch16_dw": SMALL_CONV + " --pass dw",
    "matmul_4096_320_1280": MATMUL + " --pass fwd",
    "matmul_4096_320_1280_dx": MATMUL + " --pass dx",
    "matmul_4096_320_1280_dw": MATMUL + " --pass dw",
    "attention_4096_8x40": ATTENTION + " --pass fwd",
    "attention_4096_8x40_bwd": ATTENTION + " --pass bwd",
    "attention_256_3x32_batch16": SMALL_ATTENTION + " --pass fwd",
    "attention_256_3x32_batch16_bwd": SMALL_ATTENTION + " --pass bwd",
    "group_norm_320_64": NORM + " --pass fwd",
    "group_norm_320_64_bwd": NORM + " --pass bwd",
}
ONLY_F32 = {"world_load"}
ONE_LAYOUT = {"linear", "attention", "world_text", "world_base"}  # nothing with channels
ALL_PASSES = {"fwd": (0, 0), "dx": (1, 0), "dw": (0, 1), "bwd": (1, 1)}  # gradients of what flows through, of weights


# ---- PyTorch's side: functions of the flags and the variant, which return what is to be timed ------------------------

class Variant:
    """A layout and a way to compute: 'contiguous f32', 'channels_last autocast', 'contiguous cast', ..."""
    def __init__(self, name):
        layout, self.how = name.split()
        self.layout = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        self.dtype = torch.bfloat16 if self.how == "cast" else torch.float32

    def place(self, x):
        """A tensor or a module in this variant's type and layout."""
        return x.to(self.dtype, memory_format=self.layout if isinstance(x, torch.nn.Module) or x.dim() == 4 else torch.preserve_format)

    def context(self):
        return torch.autocast("cpu", torch.bfloat16) if self.how == "autocast" else contextlib.nullcontext()


def op(a, variant, function, flowing, weights):
    """The function of tensors of these shapes, or its gradients."""
    flowing, weights = ([variant.place(torch.rand(shape)) for shape in shapes] for shapes in (flowing, weights))
    dx, dw = ALL_PASSES[a["pass"]]
    wanted = flowing * dx + weights * dw
    if not wanted: return torch.inference_mode()(lambda: function(*flowing, *weights))
    for x in wanted: x.requires_grad_()
    y = function(*flowing, *weights)
    dy = torch.rand_like(y)
    return lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True)


def conv3x3(a, variant):
    function = lambda x, w, b: torch.nn.functional.conv2d(x, w, b, padding=1)
    return op(a, variant, function, [(a["B"], a["C"], a["H"], a["W"])], [(a["OC"], a["C"], 3, 3), (a["OC"],)])


def linear(a, variant):
    return op(a, variant, torch.nn.functional.linear, [(a["B"], a["C"])], [(a["OC"], a["C"]), (a["OC"],)])


def attention(a, variant):
    def split(x): return x.view(a["B"], -1, a["heads"], a["C"] // a["heads"]).transpose(1, 2)  # [B,heads,T,head width]
    def function(q, k, v):
        y = torch.nn.functional.scaled_dot_product_attention(split(q), split(k), split(v))
        return y.transpose(1, 2).reshape(a["B"], a["T"], a["C"])
    return op(a, variant, function, [(a["B"], a[n], a["C"]) for n in "TSS"], [])


def group_norm(a, variant):
    function = lambda x, w, b: torch.nn.functional.silu(torch.nn.functional.group_norm(x, a["groups"], w, b, 1e-5))
    return op(a, variant, function, [(a["B"], a["C"], a["H"], a["W"])], [(a["C"],), (a["C"],)])


def config(path):
    with open(BASE + path) as f: return json.load(f)


def unet(variant):
    from diffusers import UNet2DConditionModel
    return variant.place(UNet2DConditionModel.from_config(config("unet/config.json")))


def unet_inputs(a, variant, net, n):
    """Images [n,3,S,S], timesteps [n], text states [n,77,D]."""
    image, text = torch.randn(n, 3, a["size"], a["size"]), torch.randn(n, TOKENS, net.config.encoder_hid_dim)
    return variant.place(image), torch.full((n,), 500), variant.place(text)


def world_base_forward(a, variant):
    net = unet(variant).eval()
    x, t, text = unet_inputs(a, variant, net, a["batch"])

    @torch.inference_mode()
    def run():
        with variant.context(): net(x, t, encoder_hidden_states=text)
    return run


def world_base_train_step(a, variant):
    net = unet(variant).train()
    x, t, text = unet_inputs(a, variant, net, a["batch"])
    params = list(net.parameters())
    average = [p.detach().clone() for p in params]
    weight, alpha, sigma = torch.rand(a["batch"], 1, a["size"], a["size"]), 0.8, 0.6
    try: optimizer = torch.optim.AdamW(params, lr=1e-4, fused=True)
    except RuntimeError: optimizer = torch.optim.AdamW(params, lr=1e-4, foreach=True)

    def run():
        eps = torch.randn_like(x)
        with variant.context(): pred = net(alpha * x + sigma * eps, t, encoder_hidden_states=text).sample[:, :3]
        loss = (weight * (pred.float() - (alpha * eps - sigma * x)).square()).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad(): torch._foreach_lerp_(average, params, 5e-4)
    return run


def world_generate(a, variant):
    from diffusers import DDIMScheduler
    net = unet(variant).eval()
    scheduler = DDIMScheduler.from_config(config("scheduler/scheduler_config.json"))
    noise, _, text = unet_inputs(a, variant, net, 2 * a["batch"])

    @torch.inference_mode()
    def run():
        x = noise[:a["batch"]].float()
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            with variant.context(): pred = net(variant.place(torch.cat([x, x])), t, encoder_hidden_states=text).sample
            uncond, cond = pred[:, :3].float().chunk(2)
            x = scheduler.step(uncond + 3 * (cond - uncond), t, x).prev_sample
    return run


def world_text(a, variant):
    from transformers import T5Config, T5EncoderModel
    net = variant.place(T5EncoderModel(T5Config(**config("text_encoder/config.json")))).eval()
    ids, mask = torch.randint(100, (a["batch"], TOKENS)), torch.ones(a["batch"], TOKENS)

    @torch.inference_mode()
    def run():
        with variant.context(): net(input_ids=ids, attention_mask=mask)
    return run


def world_base(a, variant):
    from safetensors.torch import load_file
    net = unet(variant)
    return lambda: net.load_state_dict(load_file(a["file"]))


TORCH = {f.__name__: f for f in (conv3x3, linear, attention, group_norm, world_base_forward, world_base_train_step,
                                 world_generate, world_text, world_base)}


def peak_mb():
    with open("/proc/self/status") as f: return int(re.search(r"VmHWM:\s*(\d+)", f.read())[1]) * 1024 / 1e6


def torch_process(command, variant, threads, repetitions):
    """What build/bench does and prints, with PyTorch: repetitions of at least 50 ms after two calls to warm up."""
    torch.set_num_threads(threads)
    words = command.split()
    flags = {name[2:]: int(value) if value.isdigit() else value for name, value in zip(words[2::2], words[3::2])}
    run = TORCH[words[1]](flags, Variant(variant))
    run()
    began = time.perf_counter()
    run()
    calls = int(0.05 / (time.perf_counter() - began)) + 1
    seconds = []
    for _ in range(repetitions):
        began = time.perf_counter()
        for _ in range(calls): run()
        seconds.append((time.perf_counter() - began) / calls)
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb()}))


# ---- the comparison -----------------------------------------------------------------------------------------------------

def start(arguments, threads):
    """Runs a process that prints JSON; None and its last words if it fails."""
    done = subprocess.run(arguments, capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS=str(threads)))
    if done.returncode == 0: return json.loads(done.stdout.splitlines()[-1])
    print(f"  failed: {' '.join(arguments)}\n  {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return None


def ours(command, dtype, threads, repetitions):
    return start([BENCH, *command.split(), "--dtype", dtype, "--threads", str(threads), "--repetitions", str(repetitions)], threads)


def theirs(command, variant, threads, repetitions):
    return start([sys.executable, os.path.abspath(__file__), "--torch", command, "--variant", variant, "--threads", str(threads),
                  "--repetitions", str(repetitions)], threads)


def median(runs): return statistics.median(s for run in runs for s in run["seconds"])


def compare(command, dtype, peak, threads, repetitions, with_torch):
    """An entry of bench.json; without ours None, without PyTorch's its values are None."""
    layouts = ["contiguous"] if command.split()[1] in ONE_LAYOUT else ["contiguous", "channels_last"]
    ways = ["f32"] if dtype == "f32" else ["cast"] if command.startswith("op") else ["autocast", "cast"]
    variants = [f"{layout} {way}" for layout in layouts for way in ways] if with_torch else []
    mine, other = [], {v: [] for v in variants}
    for _ in range(ROUNDS):
        mine.append(ours(command, dtype, threads, repetitions))
        if not mine[-1]: return None
        for v in variants: other[v].append(theirs(command, v, threads, repetitions))
        variants = sorted((v for v in variants if other[v][-1]), key=lambda v: median(other[v]))[:1]
    best = variants[0] if variants else None
    flops, ours_s, torch_s = mine[0]["flops"], median(mine), median(other[best]) if best else None
    return {"ours_s": ours_s, "torch_s": torch_s, "ratio": torch_s and torch_s / ours_s,
            "ours_gflops": flops / ours_s / 1e9 or None, "torch_gflops": torch_s and flops / torch_s / 1e9 or None,
            "share_of_peak": flops / ours_s / 1e9 / peak or None,
            "ours_peak_mb": max(r["peak_mb"] for r in mine), "torch_peak_mb": best and max(r["peak_mb"] for r in other[best]),
            "torch_variant": best}


COLUMNS = (("ours s", "ours_s", "{:.5f}"), ("torch s", "torch_s", "{:.5f}"), ("ratio", "ratio", "{:.2f}"), ("GFLOP/s", "ours_gflops", "{:.0f}"),
           ("torch", "torch_gflops", "{:.0f}"), ("share", "share_of_peak", "{:.0%}"), ("MB", "ours_peak_mb", "{:.0f}"),
           ("torch", "torch_peak_mb", "{:.0f}"), ("torch as", "torch_variant", "{}"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 repetitions instead of 6")
    parser.add_argument("--only", default="", metavar="PATTERN", help="keys that this regular expression finds")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    for hidden in ("--torch", "--variant", "--repetitions"): parser.add_argument(hidden, help=argparse.SUPPRESS)
    o = parser.parse_args()
    os.chdir(ROOT)
    if o.torch: return torch_process(o.torch, o.variant, o.threads, int(o.repetitions))
    if not os.path.exists(BENCH): sys.exit(f"bench.py: {BENCH} is missing: make {BENCH}")
    repetitions, with_torch = 1 if o.quick else 3, find_spec("torch") is not None
    if not with_torch: print(f"PyTorch is missing in {sys.executable}: ours alone (make bench PYTHON=... takes another Python)")
    if os.getloadavg()[0] > 0.5: print(f"load average {os.getloadavg()[0]:.1f}: other programs are running, figures are low and uneven")
    peak, results = {}, {"machine": {"threads": o.threads, "repetitions": ROUNDS * repetitions, "load_before": os.getloadavg()[0]}}
    for dtype in ("f32", "bf16"):
        runs = {name: ours("peak " + name, dtype, o.threads, 5) for name in ("registers", "gemm")}
        rate = {name: r["flops"] / min(r["seconds"]) / 1e9 for name, r in runs.items()}
        peak[dtype] = rate["registers"]
        results["machine"].update({f"peak_{dtype}_gflops": rate["registers"], f"gemm_{dtype}_gflops": rate["gemm"], "isa": runs["gemm"]["isa"]})
        print(f"peak {dtype}: {rate['registers']:.0f} GFLOP/s on {o.threads} threads ({runs['gemm']['isa']}); "
              f"the header's product near the processor: {rate['gemm']:.0f} ({rate['gemm'] / rate['registers']:.0%})")
    print(f"{'':34}" + "".join(f"{title:>10}" for title, _, _ in COLUMNS))
    for key, command in CASES.items():
        for dtype in ("f32", "bf16") if key not in ONLY_F32 else ("f32",):
            name = key if dtype == "f32" else key + "_bf16"
            entry = compare(command, dtype, peak[dtype], o.threads, repetitions, with_torch) if re.search(o.only, name) else None
            if not entry: continue
            results[name] = entry
            print(f"{name:34}" + "".join(f"{'-' if entry[k] is None else form.format(entry[k]):>10}" for _, k, form in COLUMNS), flush=True)
    with open(OUT, "w") as f: json.dump(results, f, indent=1)
    print(f"-> {OUT}")


if __name__ == "__main__":
    main()

"""Full-size networks with random weights, in diffusers and transformers and here: values, time, memory.

    python3 tests/check_full.py [NAME ...]     (torch, diffusers, transformers; build/dreambooth)

Names: clip vae_encoder vae_decoder sd15 if1m if2l t5; without any, all of them, one at a time. Each network is made and
saved by PyTorch in a process of its own, so that its peak memory is its own, then run by `build/dreambooth probe`, and
deleted. THREADS (2) is given to both sides. Values must agree to 1e-4 of the largest; times are of one forward pass, ours
with all preparation. T5-XXL is too large for this: LAYERS (4) of its 24 layers are taken, at full width."""
import json, os, resource, subprocess, sys, tempfile, time

THREADS, LAYERS = int(os.environ.get("THREADS", 2)), int(os.environ.get("LAYERS", 4))
SD = dict(sample_size=64, in_channels=4, out_channels=4, block_out_channels=[320, 640, 1280, 1280], layers_per_block=2, cross_attention_dim=768, attention_head_dim=8,
          down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3)
IF = dict(act_fn="gelu", resnet_time_scale_shift="scale_shift", mid_block_type="UNetMidBlock2DSimpleCrossAttn", cross_attention_norm="group_norm", addition_embed_type="text",
          addition_embed_type_num_heads=64, encoder_hid_dim=4096, encoder_hid_dim_type="text_proj", attention_head_dim=64, only_cross_attention=False)
IF1M = IF | dict(sample_size=64, in_channels=3, out_channels=6, block_out_channels=[192, 384, 576, 768], layers_per_block=3, cross_attention_dim=768,
                 down_block_types=["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3, up_block_types=["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"])
IF2L = IF | dict(sample_size=256, in_channels=6, out_channels=6, block_out_channels=[160, 320, 640, 960, 1280], layers_per_block=[2, 2, 3, 5, 5], cross_attention_dim=1280,
                 down_block_types=["ResnetDownsampleBlock2D"] * 3 + ["SimpleCrossAttnDownBlock2D"] * 2, up_block_types=["SimpleCrossAttnUpBlock2D"] * 2 + ["ResnetUpsampleBlock2D"] * 3,
                 class_embed_type="timestep", resnet_skip_time_act=True, resnet_out_scale_factor=1.41423, mid_block_scale_factor=1.41423, time_embedding_act_fn="gelu",
                 time_embedding_dim=1280)
VAE = dict(sample_size=512, block_out_channels=[128, 256, 512, 512], layers_per_block=2, latent_channels=4, norm_num_groups=32,
           down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)
CLIP = dict(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, hidden_act="quick_gelu")
T5 = dict(vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=LAYERS, num_heads=64, feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False)
# name: the part for probe, configuration, saved as, pixels or latents along a side
NETWORKS = {"clip": ("text_encoder", CLIP, "f32", 0), "vae_encoder": ("vae_encoder", VAE, "f32", 256), "vae_decoder": ("vae_decoder", VAE, "f32", 32),
            "sd15": ("unet", SD, "f16", 64), "if1m": ("unet", IF1M, "f16", 64), "if2l": ("unet", IF2L, "f16", 64), "t5": ("text_encoder", T5, "bf16", 0)}


def pytorch(name, folder):
    """Makes the network, its weights as the file will have them, runs it, saves both."""
    import torch, diffusers, transformers
    from safetensors.torch import save_file
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    part, config, dtype, size = NETWORKS[name]
    kind = torch.float32 if dtype == "f32" else torch.float16 if dtype == "f16" else torch.bfloat16
    if name == "clip":
        model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
    elif name == "t5":
        model = transformers.T5EncoderModel(transformers.T5Config(**config))
    else:
        model = (diffusers.UNet2DConditionModel if part == "unet" else diffusers.AutoencoderKL).from_config(config)
    with torch.no_grad():  # biases of 0 and norms of 1 hide mistakes
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(torch.randn_like(p) * 0.1)
            p.copy_(p.to(kind))
    model.eval()
    if part == "text_encoder":
        t = {"input_ids": torch.randint(0, config["vocab_size"], (1, 77), dtype=torch.int32), "attention_mask": (torch.arange(77)[None] < 20).int()}
        run = lambda: model(input_ids=t["input_ids"], attention_mask=t["attention_mask"]).last_hidden_state
    elif part == "unet":
        t = {"sample": torch.randn(1, config["in_channels"], size, size), "timestep": torch.tensor([441.0]),
             "encoder_hidden_states": torch.randn(1, 77, config.get("encoder_hid_dim") or config["cross_attention_dim"])}
        if "class_embed_type" in config:
            t["class_labels"] = torch.tensor([250.0])
        run = lambda: model(t["sample"], t["timestep"], t["encoder_hidden_states"], class_labels=t.get("class_labels")).sample
    elif part == "vae_encoder":
        t = {"sample": torch.rand(1, 3, size, size) * 2 - 1}
        run = lambda: model.encode(t["sample"]).latent_dist.parameters
    else:
        t = {"sample": torch.randn(1, 4, size, size)}
        run = lambda: model.decode(t["sample"]).sample
    with torch.no_grad():
        began = time.time()
        out = run()
        seconds = time.time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    count = sum(p.numel() for p in model.parameters())
    save_file(t, f"{folder}/in.safetensors")
    save_file({"out": out.contiguous()}, f"{folder}/theirs.safetensors")
    model.to(kind).save_pretrained(f"{folder}/model", max_shard_size="2GB")
    print(json.dumps({"seconds": seconds, "peak": peak, "count": count}))


def ours(name, folder):
    """`probe` under a watch: its own line, its peak memory."""
    run = subprocess.run(["build/dreambooth", "probe", "--pretrained_model_name_or_path", f"{folder}/model", "--part", NETWORKS[name][0], "--in", f"{folder}/in.safetensors",
                          "--out", f"{folder}/ours.safetensors", "--threads", str(THREADS)], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stderr)
    words = run.stdout.split()
    return float(words[words.index("in") + 1]), float(words[words.index("computed") + 2]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def check(name):
    from safetensors.numpy import load_file
    import numpy as np
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "build")) as folder:
        run = subprocess.run([sys.executable, __file__, "--pytorch", name, folder], capture_output=True, text=True)
        if run.returncode:
            raise SystemExit(run.stderr)
        theirs = json.loads(run.stdout.splitlines()[-1])
        size = sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(f"{folder}/model") for f in files)
        run = subprocess.run([sys.executable, __file__, "--ours", name, folder], capture_output=True, text=True)
        if run.returncode:
            raise SystemExit(run.stderr)
        loaded, seconds, peak = json.loads(run.stdout.splitlines()[-1])
        a, b = next(iter(load_file(f"{folder}/ours.safetensors").values())), load_file(f"{folder}/theirs.safetensors")["out"]
    error = float(np.abs(a - b).max() / np.abs(b).max()) if a.shape == b.shape else np.inf
    good = error <= 1e-4
    print(f"{'ok' if good else 'FAIL'} {name}: {theirs['count'] / 1e6:.2f}M parameters, {size / 1e9:.2f} GB in {NETWORKS[name][2]}, output {a.shape}, {error:.1e} apart; "
          f"ours {loaded:.1f} s to load, {seconds:.1f} s to run, at most {peak:.0f} MB; PyTorch {theirs['seconds']:.1f} s, {theirs['peak']:.0f} MB", flush=True)
    return good


if sys.argv[1:2] == ["--pytorch"]:
    pytorch(*sys.argv[2:])
elif sys.argv[1:2] == ["--ours"]:
    print(json.dumps(ours(*sys.argv[2:])))
else:
    results = [check(name) for name in sys.argv[1:] or NETWORKS]
    if "t5" in (sys.argv[1:] or NETWORKS):
        print(f"t5 is {LAYERS} of 24 layers")
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    sys.exit(not all(results))

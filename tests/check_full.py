"""Full-size networks with random weights, in diffusers and transformers and here: values, time, memory.

    python3 tests/check_full.py [NAME ...]     (torch, diffusers, transformers; build/dreambooth)

Names: clip vae_encoder vae_decoder sd15 if1m if2l t5 t5_xxl, and train train_8bit train_lora: DreamBooth steps of Stable
Diffusion 1.5 at 512 pixels (a photo and a class image, f32, checkpointing), whose memory has a limit; without any name, all
of them, one at a time. Each network is made and saved by PyTorch in a process of its own, so that its peak memory is its own, then run by `build/dreambooth probe`, and
deleted. THREADS (2) is given to both sides. Values must agree to 1e-4 of the largest; times are of one forward pass, ours
with all preparation. Of T5-XXL, LAYERS (4) of the 24 layers are taken, at full width; t5_xxl is all of it, for
its memory: PyTorch, which has room for it in bf16 only, computes in that type, and the comparison is as loose."""
import json, os, re, resource, subprocess, sys, tempfile, time

THREADS, LAYERS = int(os.environ.get("THREADS", 2)), int(os.environ.get("LAYERS", 4))
with open(os.path.join(os.path.dirname(__file__), "../tools/sd15.json")) as f:
    SD, VAE, CLIP = json.load(f).values()
IF = dict(act_fn="gelu", resnet_time_scale_shift="scale_shift", mid_block_type="UNetMidBlock2DSimpleCrossAttn", cross_attention_norm="group_norm", addition_embed_type="text",
          addition_embed_type_num_heads=64, encoder_hid_dim=4096, encoder_hid_dim_type="text_proj", attention_head_dim=64, only_cross_attention=False)
IF1M = IF | dict(sample_size=64, in_channels=3, out_channels=6, block_out_channels=[192, 384, 576, 768], layers_per_block=3, cross_attention_dim=768,
                 down_block_types=["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3, up_block_types=["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"])
IF2L = IF | dict(sample_size=256, in_channels=6, out_channels=6, block_out_channels=[160, 320, 640, 960, 1280], layers_per_block=[2, 2, 3, 5, 5], cross_attention_dim=1280,
                 down_block_types=["ResnetDownsampleBlock2D"] * 3 + ["SimpleCrossAttnDownBlock2D"] * 2, up_block_types=["SimpleCrossAttnUpBlock2D"] * 2 + ["ResnetUpsampleBlock2D"] * 3,
                 class_embed_type="timestep", resnet_skip_time_act=True, resnet_out_scale_factor=1.41423, mid_block_scale_factor=1.41423, time_embedding_act_fn="gelu",
                 time_embedding_dim=1280)
T5 = dict(vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=LAYERS, num_heads=64, feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False)
# name: our flags, the limit in MB
TRAINING = {"train": ([], 16 << 10), "train_8bit": (["--use_8bit_adam"], 11 << 10), "train_lora": (["--rank", "4"], 6 << 10)}
# name: the part for probe, configuration, saved as, pixels or latents along a side
NETWORKS = {"clip": ("text_encoder", CLIP, "f32", 0), "vae_encoder": ("vae_encoder", VAE, "f32", 256), "vae_decoder": ("vae_decoder", VAE, "f32", 32),
            "sd15": ("unet", SD, "f16", 64), "if1m": ("unet", IF1M, "f16", 64), "if2l": ("unet", IF2L, "f16", 64), "t5": ("text_encoder", T5, "bf16", 0), "t5_xxl": ("text_encoder", T5 | dict(num_layers=24), "bf16", 0)}


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
    elif name in ("t5", "t5_xxl"):
        if name == "t5_xxl":
            torch.set_default_dtype(torch.bfloat16)
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
    save_file({"out": out.float().contiguous()}, f"{folder}/theirs.safetensors")
    model.to(kind).save_pretrained(f"{folder}/model", max_shard_size="2GB")
    print(json.dumps({"seconds": seconds, "peak": peak, "count": count}))


def ours(name, folder):
    """`probe` under a watch: its own line, its peak memory."""
    run = subprocess.run(["build/dreambooth", "probe", "--pretrained_model_name_or_path", f"{folder}/model", "--part", NETWORKS[name][0], "--in", f"{folder}/in.safetensors",
                          "--out", f"{folder}/ours.safetensors", "--threads", str(THREADS)], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stderr)
    opened, read, computed = (float(re.search(word + r" in ([\d.]+) s", run.stdout)[1]) for word in ("opened", "read", "computed"))
    return opened, read, computed, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def check(name):
    from safetensors.numpy import load_file
    import numpy as np
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "build")) as folder:
        theirs = alone("--pytorch", name, folder)
        size = sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(f"{folder}/model") for f in files)
        opened, read, seconds, peak = alone("--ours", name, folder)
        a, b = next(iter(load_file(f"{folder}/ours.safetensors").values())), load_file(f"{folder}/theirs.safetensors")["out"]
    error = float(np.abs(a - b).max() / np.abs(b).max()) if a.shape == b.shape else np.inf
    good = error <= (5e-2 if name == "t5_xxl" else 1e-4) and peak <= 24 << 10
    print(f"{'ok' if good else 'FAIL'} {name}: {theirs['count'] / 1e6:.2f}M parameters, {size / 1e9:.2f} GB in {NETWORKS[name][2]}, output {a.shape}, {error:.1e} apart; "
          f"ours {opened:.2f} s to open, {read:.1f} s to read, {seconds:.1f} s to run, at most {peak:.0f} MB; PyTorch {theirs['seconds']:.1f} s, {theirs['peak']:.0f} MB", flush=True)
    return good


def pytorch_model(name, folder):
    """A Stable Diffusion 1.5 of random weights, as a directory."""
    import torch, diffusers, transformers
    torch.manual_seed(0)
    golden = os.path.join(os.path.dirname(__file__), "golden/tokenizers/clip")
    parts = dict(unet=diffusers.UNet2DConditionModel.from_config(SD), vae=diffusers.AutoencoderKL.from_config(VAE),
                 text_encoder=transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP)))
    for model in parts.values():
        model.half()
    diffusers.StableDiffusionPipeline(tokenizer=transformers.CLIPTokenizer(f"{golden}/vocab.json", f"{golden}/merges.txt"),
                                      scheduler=diffusers.DDPMScheduler(beta_start=.00085, beta_end=.012, beta_schedule="scaled_linear"), safety_checker=None,
                                      feature_extractor=None, requires_safety_checker=False, **parts).save_pretrained(f"{folder}/model")
    print("{}")


def pytorch_train(name, folder):
    """Two steps of the U-Net alone, latents and text given: the last one's time, and the peak memory."""
    import torch, diffusers
    torch.set_num_threads(THREADS)
    model = diffusers.UNet2DConditionModel.from_pretrained(f"{folder}/model/unet", torch_dtype=torch.float32)
    model.enable_gradient_checkpointing()
    model.train()
    if name == "train_lora":
        import peft
        model.requires_grad_(False)
        model.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6)
    for step in range(2):
        began = time.time()
        out = model(torch.randn(2, 4, 64, 64), torch.tensor([400, 700]), torch.randn(2, 77, 768)).sample
        (out - torch.randn_like(out)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1)
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.time() - began
    print(json.dumps({"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def ours_train(name, folder):
    """The same by the command-line tool, from photos on; what it had foretold, and its peak memory."""
    from PIL import Image
    photos = os.path.join(os.path.dirname(__file__), "../examples/world/subjects/dog1")
    os.makedirs(f"{folder}/class")
    Image.open(f"{photos}/00.png").resize((512, 512)).save(f"{folder}/class/00000.png")
    run = subprocess.run(["build/dreambooth", "train", "--pretrained_model_name_or_path", f"{folder}/model", "--instance_data_dir", photos, "--instance_prompt", "a zxk dog",
                          "--with_prior_preservation", "--class_prompt", "a dog", "--class_data_dir", f"{folder}/class", "--num_class_images", "1", "--train_batch_size", "1",
                          "--gradient_checkpointing", "--sequential", "--resolution", "512", "--learning_rate", "1e-6", "--max_train_steps", "2", "--threads", str(THREADS),
                          "--output_dir", f"{folder}/trained"] + TRAINING[name][0], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stderr)
    foretold, took = re.search(r"about (\d+) s for 2 steps", run.stdout), re.search(r"2 steps in ([\d.]+) s", run.stdout)
    return float(foretold[1]) / 2, float(took[1]) / 2, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def alone(function, name, folder):
    """What the function prints, in a process of its own."""
    run = subprocess.run([sys.executable, __file__, function, name, folder], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def check_training(name):
    limit = TRAINING[name][1]
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "build")) as folder:
        alone("--pytorch_model", name, folder)
        foretold, seconds, peak = alone("--ours_train", name, folder)
        theirs = alone("--pytorch_train", name, folder) if name != "train_8bit" else None
    good = peak <= limit
    print(f"{'ok' if good else 'FAIL'} {name}: ours {seconds:.1f} s a step (foretold {foretold:.1f}), at most {peak:.0f} MB of {limit}; "
          + (f"PyTorch {theirs['seconds']:.1f} s, {theirs['peak']:.0f} MB" if theirs else "no 8-bit AdamW of PyTorch's on a processor"), flush=True)
    return good


FUNCTIONS = {"--pytorch": pytorch, "--ours": ours, "--pytorch_model": pytorch_model, "--pytorch_train": pytorch_train, "--ours_train": ours_train}
if sys.argv[1:2] and sys.argv[1] in FUNCTIONS:
    printed = FUNCTIONS[sys.argv[1]](*sys.argv[2:])
    if printed:
        print(json.dumps(printed))
else:
    names = sys.argv[1:] or [*NETWORKS, *TRAINING]
    results = [(check_training if name in TRAINING else check)(name) for name in names]
    if "t5" in names:
        print(f"t5 is {LAYERS} of 24 layers")
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    sys.exit(not all(results))

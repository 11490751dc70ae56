"""Golden values of DreamBooth itself: the two-term loss, its gradients, and ten updates.

    python3 tests/golden/make_dreambooth.py     (torch, diffusers, transformers, peft, sentencepiece, safetensors)

The definition (Ruiz et al., eq. 2) in PyTorch, in double precision, with torch.optim.AdamW and
torch.nn.utils.clip_grad_norm_, on small random networks: for each case dreambooth/CASE.safetensors gets the
three losses of every step, the gradient `grad.KEY` of the first step before clipping, and `delta.KEY`, what ten
steps changed. Photos and weights are hashes of their names (make_networks.py), noise comes from Philox as the
library's manual defines it, written here anew. The sd_ cases are Stable Diffusion in small, with the parts that
diffusers' train_dreambooth.py takes from diffusers: the encoder's latent_dist, add_noise, get_velocity, compute_snr. They
keep the norm of every step's gradient instead of the first gradients, and deltas in half precision; `none.KEY` names
those that have no gradient in theory. cleaning.txt has words, each with what IFPipeline makes of it (bs4, ftfy)."""
import json, os, sys
import numpy as np, torch, diffusers, transformers, sentencepiece
import torch.nn.functional as F
from diffusers.training_utils import compute_snr
from safetensors.numpy import save_file
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from make_networks import hashed, fill
import make_lora

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "dreambooth")
TOKENIZER = os.path.join(HERE, "../../../examples/world/base/tokenizer/spiece.model")
STEPS, TOKENS, SEED = 10, 77, 7


def philox(purpose, step, n):
    """The first n random words of the stream (SEED, purpose, step)."""
    block = np.arange((n + 3) // 4, dtype=np.uint64)
    m, s = np.uint64(0xFFFFFFFF), np.uint64(32)
    c = [block & m, block >> s, np.full_like(block, step), np.full_like(block, purpose)]
    k0, k1 = SEED & 0xFFFFFFFF, SEED >> 32
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> s) ^ c[1] ^ np.uint64(k0), p1 & m, (p0 >> s) ^ c[3] ^ np.uint64(k1), p0 & m]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, 1).reshape(-1)[:n]


def below(purpose, step, index, n):
    return int((int(philox(purpose, step, index + 1)[index]) * n) >> 32)


def normal(purpose, step, shape):
    """Box and Muller's method, in single precision at the end, as numbers [B,H,W,C] -> [B,C,H,W]."""
    n = int(np.prod(shape))
    r = philox(purpose, step, (n + 1) // 2 * 2).astype(np.float64)
    radius, angle = np.sqrt(-2 * np.log((r[0::2] + 1) / 4294967296)), r[1::2] * (2 * np.pi / 4294967296)
    z = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1)[:n].astype(np.float32)
    return torch.from_numpy(z.reshape(shape)).double().movedim(-1, -3)


def photo(name, h, w):
    x = (hashed(name, (h, w, 3), 1) * 0.5 + 0.5) * 255
    return torch.from_numpy(np.floor(x)).double().movedim(-1, 0) / 127.5 - 1  # [3,h,w]


def resize(x, size):
    h, w = x.shape[1:]
    s = min(h, w)
    to = (h * size // s, w * size // s)  # torchvision's Resize rounds down
    return F.interpolate(x[None], to, mode="bilinear", antialias=True, align_corners=False)[0]


ABAR = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.double()


def noise_angle(level):
    """The angle whose sine is the noise's standard deviation, linear between levels, 0 at level -1."""
    at = lambda t: 0.0 if t < 0 else float(torch.asin(torch.sqrt(1 - ABAR[t])))
    low = int(np.floor(level))
    return at(low) + (at(low + 1) - at(low)) * (level - low)


def run(case, unet_config, prediction, upscale=0, level=0.0, train_text=False, accumulation=1, batches=(2, 3), lam=0.7, crop=8, resolution=8, lr=1e-3, lora=None):
    sp = sentencepiece.SentencePieceProcessor(model_file=TOKENIZER)
    text_config = dict(vocab_size=1152, d_model=8, d_kv=4, num_heads=2, num_layers=1, d_ff=12, relative_attention_num_buckets=8,
                       relative_attention_max_distance=16, layer_norm_epsilon=1e-6, dropout_rate=0.0, feed_forward_proj="gated-gelu",
                       model_type="t5", is_encoder_decoder=False, use_cache=False)
    encoder = transformers.T5EncoderModel(transformers.T5Config(**text_config)).double()
    unet = diffusers.UNet2DConditionModel.from_config(unet_config).double()
    fill(encoder), fill(unet)
    for name, config in (("text_encoder", text_config), (case, unet_config)):
        json.dump(config, open(os.path.join(HERE, name + ".json"), "w"), indent=1, sort_keys=True)
    for p in encoder.parameters():
        p.requires_grad_(train_text)
    factors = make_lora.add_lora(unet, make_lora.UNET, *lora) if lora else {}
    trained = list(factors.items() if lora else unet.named_parameters()) + ([("text_encoder:" + k, p) for k, p in encoder.named_parameters()] if train_text else [])
    start = {k: p.detach().clone() for k, p in trained}

    def encode(prompt):
        ids = sp.encode(prompt) + [1]
        mask = torch.tensor([[1] * len(ids) + [0] * (TOKENS - len(ids))])
        return encoder(input_ids=torch.tensor([ids + [0] * (TOKENS - len(ids))]), attention_mask=mask).last_hidden_state

    photos = [resize(photo(f"photo{i}", h, w), resolution) for i, (h, w) in enumerate([(24, 24), (20, 31), (37, 25)])]
    classes = [photo(f"class{i}", resolution, resolution) for i in range(5)]
    if upscale:
        photos = [x[:, :x.shape[1] // upscale * upscale, :x.shape[2] // upscale * upscale] for x in photos]

    def term(pictures, prompt, B, purpose, step):
        """Mean squared error of the prediction over one batch."""
        xs, lows, ts = [], [], []
        for k in range(B):
            x = pictures[below(purpose + 1, step, k, len(pictures))]
            ts.append(below(purpose + 2, step, k, 1000))
            H, W = x.shape[1:]
            y0, x0 = below(purpose + 3, step, 2 * k, H - crop + 1), below(purpose + 3, step, 2 * k + 1, W - crop + 1)
            xs.append(x[:, y0:y0 + crop, x0:x0 + crop])
            if upscale:
                small = F.avg_pool2d(x[None], upscale)
                big = F.interpolate(small, (H, W), mode="bilinear", align_corners=True)[0][:, y0:y0 + crop, x0:x0 + crop]
                a = noise_angle(level)
                lows.append(np.cos(a) * big + np.sin(a) * normal(purpose + 10 + k, step, (crop, crop, 3)))
        x, t = torch.stack(xs), torch.tensor(ts)
        eps = normal(purpose, step, (B, crop, crop, 3))
        alpha, sigma = ABAR[t].sqrt()[:, None, None, None], (1 - ABAR[t]).sqrt()[:, None, None, None]
        x_t = alpha * x + sigma * eps
        target = {"epsilon": eps, "sample": x, "v_prediction": alpha * eps - sigma * x}[prediction]
        labels = torch.full((B,), float(level)).double() if upscale else None
        inputs = torch.cat([x_t, torch.stack(lows)], 1) if upscale else x_t
        out = unet(inputs, t, encode(prompt).expand(B, -1, -1), class_labels=labels).sample[:, :3]
        return ((out - target) ** 2).mean()

    optimizer = torch.optim.AdamW([p for _, p in trained], lr=lr, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    losses, out = [], {}
    for step in range(STEPS):
        optimizer.zero_grad()
        sums = torch.zeros(3).double()
        for a in range(accumulation):
            one = term(photos, "a zxk dog", batches[0], 100, step * accumulation + a)
            prior = term(classes, "a dog", batches[1], 200, step * accumulation + a) if lam is not None else torch.zeros(())
            total = one + (lam or 0) * prior
            (total / accumulation).backward()
            sums += torch.stack([total, one, prior]).detach() / accumulation
        losses.append(sums.numpy())
        if not step:
            out |= {"grad." + k: p.grad.numpy().astype(np.float32).copy() for k, p in trained if p.grad is not None}
        torch.nn.utils.clip_grad_norm_([p for _, p in trained], 1.0)
        optimizer.step()
    out |= {"delta." + k: (p.detach() - start[k]).numpy().astype(np.float32) for k, p in trained}
    out["losses"] = np.stack(losses).astype(np.float32)
    save_file({k: np.ascontiguousarray(v) for k, v in out.items()}, os.path.join(HERE, case + ".safetensors"),
              metadata={"torch": torch.__version__, "diffusers": diffusers.__version__, "transformers": transformers.__version__})
    print(case, sum(v.numel() for v in start.values()), "parameters, losses", *(f"{x[0]:.4f}" for x in losses))


def run_sd(case, prediction="epsilon", gamma=None, offset=0.0, train_text=False, lam=None, batches=(2, 3), center=False, lr=1e-3):
    """train_dreambooth.py's step, for photos of 16 pixels that become latents of 8; weights w_t on both terms."""
    tokenizer = transformers.CLIPTokenizer.from_pretrained(os.path.join(HERE, "../tokenizers/clip"), model_max_length=TOKENS)
    text_config = dict(vocab_size=len(tokenizer), max_position_embeddings=TOKENS, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
                       num_attention_heads=2, hidden_act="quick_gelu", layer_norm_eps=1e-5, model_type="clip_text_model",
                       bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    vae_config = dict(_class_name="AutoencoderKL", in_channels=3, out_channels=3, latent_channels=4, block_out_channels=[4, 8], layers_per_block=1,
                      norm_num_groups=2, sample_size=16, scaling_factor=0.18215, act_fn="silu", down_block_types=["DownEncoderBlock2D"] * 2,
                      up_block_types=["UpDecoderBlock2D"] * 2)
    unet_config = dict(_class_name="UNet2DConditionModel", sample_size=8, in_channels=4, out_channels=4, block_out_channels=[4, 8], layers_per_block=1,
                       attention_head_dim=2, cross_attention_dim=8, norm_num_groups=2, act_fn="silu",
                       down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"])
    scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(**text_config)).double().eval()
    vae = diffusers.AutoencoderKL.from_config(vae_config).double()
    unet = diffusers.UNet2DConditionModel.from_config(unet_config).double()
    prefix = "" if next(iter(encoder.state_dict())).startswith("text_model.") else "text_model."  # transformers 5 leaves it away
    fill(encoder, prefix), fill(vae), fill(unet)
    for name, config in (("sd_text_encoder", text_config), ("sd_vae", vae_config), ("sd", unet_config)):
        json.dump(config, open(os.path.join(HERE, name + ".json"), "w"), indent=1, sort_keys=True)
    for p in encoder.parameters():
        p.requires_grad_(train_text)
    trained = list(unet.named_parameters()) + ([("text_encoder:" + prefix + k, p) for k, p in encoder.named_parameters()] if train_text else [])
    start = {k: p.detach().clone() for k, p in trained}

    def moments(x):
        h, w = x.shape[1:]
        if center:
            y0, x0 = round((h - 16) / 2), round((w - 16) / 2)  # as torchvision's CenterCrop
            x = x[:, y0:y0 + 16, x0:x0 + 16]
        with torch.no_grad():
            return vae.encode(x[None, :, :x.shape[1] // 2 * 2, :x.shape[2] // 2 * 2]).latent_dist

    photos = [moments(resize(photo(f"photo{i}", h, w), 16)) for i, (h, w) in enumerate([(24, 24), (20, 31), (37, 25)])]
    classes = [moments(photo(f"class{i}", 16, 16)) for i in range(5)]

    def term(pictures, prompt, B, purpose, step):
        means, deviations, ts = [], [], []
        for k in range(B):
            x = pictures[below(purpose + 1, step, k, len(pictures))]
            ts.append(below(purpose + 2, step, k, 1000))
            H, W = x.mean.shape[2:]
            y0, x0 = below(purpose + 3, step, 2 * k, H - 8 + 1), below(purpose + 3, step, 2 * k + 1, W - 8 + 1)
            means.append(x.mean[0, :, y0:y0 + 8, x0:x0 + 8]), deviations.append(x.std[0, :, y0:y0 + 8, x0:x0 + 8])
        x = (torch.stack(means) + torch.stack(deviations) * normal(purpose + 4, step, (B, 8, 8, 4))) * vae.config.scaling_factor
        t = torch.tensor(ts)
        noise = normal(purpose, step, (B, 8, 8, 4)) + offset * normal(purpose + 5, step, (B, 1, 1, 4))
        ids = tokenizer(prompt, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt").input_ids
        out = unet(scheduler.add_noise(x, noise, t), t, encoder(ids).last_hidden_state.expand(B, -1, -1)).sample
        target = noise if prediction == "epsilon" else scheduler.get_velocity(x, noise, t)
        loss = ((out - target) ** 2).mean(dim=(1, 2, 3))
        if gamma is not None:
            snr = compute_snr(scheduler, t).double()
            loss = loss * snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)
        return loss.mean()

    optimizer = torch.optim.AdamW([p for _, p in trained], lr=lr, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    losses, norms, out = [], [], {}
    for step in range(STEPS):
        optimizer.zero_grad()
        one = term(photos, "a zxk dog", batches[0], 100, step)
        prior = term(classes, "a dog", batches[1], 200, step) if lam is not None else torch.zeros(())
        total = one + (lam or 0) * prior
        total.backward()
        losses.append(torch.stack([total, one, prior]).detach().numpy())
        if not step:
            largest = max(p.grad.abs().max() for _, p in trained)
            none = {k for k, p in trained if p.grad.abs().max() < 1e-7 * largest}
        norms.append(torch.nn.utils.clip_grad_norm_([p for _, p in trained], 1.0).item())
        optimizer.step()
    out = {"none." + k: np.zeros(1, np.float16) for k in none}
    out |= {"delta." + k: (p.detach() - start[k]).numpy().astype(np.float16) for k, p in trained if k not in none}
    out["losses"], out["norms"] = np.stack(losses).astype(np.float32), np.array(norms, np.float32)
    save_file({k: np.ascontiguousarray(v) for k, v in out.items()}, os.path.join(HERE, case + ".safetensors"),
              metadata={"torch": torch.__version__, "diffusers": diffusers.__version__, "transformers": transformers.__version__})
    print(case, sum(v.numel() for v in start.values()), "parameters,", len(none), "without gradient, losses", *(f"{x[0]:.4f}" for x in losses))


def cleaning():
    from diffusers import IFPipeline
    words = """zxk sks dog xxy5syt00 p3ps v123 ab12 abcd123 a1b 1a2 a1b2 1a2b 12345 123456 jpgx epson ZXK bra#ket a@b (zxk) x/y x+y ohw olis
        日本 ключ ключ7а naïve “zxk” v1_2 <new1> t3a4b5 99x 7x7y7 éa1 zwx-kqj 1234567abc ab1234""".split()
    pipe = IFPipeline.__new__(IFPipeline)
    with open(os.path.join(HERE, "cleaning.txt"), "w") as f:
        for word in words:
            made = pipe._clean_caption(pipe._clean_caption(f"a {word} dog"))
            f.write(f"{int(made != f'a {word} dog'.lower())} {word}\n")


def unet(kinds="RS", **config):
    return dict(sample_size=8, act_fn="silu", resnet_time_scale_shift="scale_shift", mid_block_type="UNetMidBlock2DSimpleCrossAttn",
                down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"], up_block_types=["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
                block_out_channels=[4, 8], layers_per_block=1, attention_head_dim=4, cross_attention_dim=8, encoder_hid_dim=8, time_embedding_dim=8,
                encoder_hid_dim_type="text_proj", norm_num_groups=2, _class_name="UNet2DConditionModel") | config


if __name__ == "__main__":
    os.makedirs(HERE, exist_ok=True)
    run("base", unet(in_channels=3, out_channels=6), "v_prediction")
    run("text", unet(in_channels=3, out_channels=3), "epsilon", train_text=True, accumulation=2, batches=(1, 2), lam=1.0)
    run("alone", unet(in_channels=3, out_channels=3, act_fn="gelu"), "sample", lam=None, crop=8, resolution=12)
    run("upscaler", unet(in_channels=6, out_channels=6, class_embed_type="timestep"), "v_prediction", upscale=4, level=-0.5, lam=None, crop=8, resolution=16)
    run("lora", unet(in_channels=3, out_channels=6), "v_prediction", lora=(2, 6))
    run_sd("sd_plain", center=True)
    run_sd("sd_prior", lam=0.7, offset=0.1)
    run_sd("sd_snr", lam=1.0, gamma=5.0, batches=(1, 2))
    run_sd("sd_v", "v_prediction", lam=0.7, gamma=5.0, batches=(2, 1))
    run_sd("sd_text", lam=1.0, train_text=True, batches=(1, 2))
    cleaning()

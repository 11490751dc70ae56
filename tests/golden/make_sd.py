"""Golden values of Stable Diffusion's networks, schedulers and pipelines: small random configurations.

    python3 tests/golden/make_sd.py [part ...]      (torch, diffusers, transformers, safetensors)

Networks go to networks/NAME/ as make_networks.py writes them (see there); tests/test_sd.c reads all of it."""
import json, os, sys
import numpy as np, torch, diffusers, transformers
from safetensors.numpy import save_file
from make_networks import HERE, fill, hashed, save


def numbers(name, shape, scale=1.5):
    return torch.from_numpy(hashed(name, shape, scale)).double()


def clip(name, B, T, lengths=None, **config):
    full = dict(vocab_size=40, max_position_embeddings=16, hidden_act="quick_gelu", layer_norm_eps=1e-5, attention_dropout=0.0, model_type="clip_text_model") | config
    model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**full)).double().eval()
    fill(model, "text_model.")
    t = {"input_ids": ((numbers(name + ".ids", (B, T), 1) * 0.5 + 0.5) * full["vocab_size"]).long()}
    if lengths:
        t["attention_mask"] = (torch.arange(T)[None] < torch.tensor(lengths)[:, None]).long()
    out = model(**t).last_hidden_state
    save(name, full, t, out, numbers(name + ".target", tuple(out.shape), 1), model, "text_model.")


def make_clip():
    clip("clip_a", 2, 16, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4)
    clip("clip_b", 3, 9, hidden_size=12, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2, hidden_act="gelu", layer_norm_eps=1e-3, vocab_size=33)
    clip("clip_c", 2, 11, [11, 4], hidden_size=20, intermediate_size=16, num_hidden_layers=1, num_attention_heads=5, max_position_embeddings=13)


def unet(name, B, H, W, T, kinds, **config):
    """kinds: a letter for each level, C with transformers and D without."""
    full = dict(sample_size=max(H, W), in_channels=4, out_channels=4, mid_block_type="UNetMidBlock2DCrossAttn", _class_name="UNet2DConditionModel",
                down_block_types=["CrossAttnDownBlock2D" if k == "C" else "DownBlock2D" for k in kinds],
                up_block_types=["CrossAttnUpBlock2D" if k == "C" else "UpBlock2D" for k in reversed(kinds)]) | config
    model = diffusers.UNet2DConditionModel.from_config(full).double()
    fill(model)
    t = {"sample": numbers(name + ".sample", (B, 4, H, W)), "timestep": torch.tensor([981.0, 37.0, 500.0][:B]).double(),
         "encoder_hidden_states": numbers(name + ".text", (B, T, full["cross_attention_dim"]))}
    out = model(**t).sample
    save(name, full, t, out, numbers(name + ".target", tuple(out.shape), 1), model)


def make_unet():
    unet("sd_a", 2, 8, 12, 5, "CD", block_out_channels=[4, 8], layers_per_block=1, attention_head_dim=2, cross_attention_dim=12, norm_num_groups=2)
    unet("sd_b", 1, 9, 7, 6, "CCD", block_out_channels=[4, 6, 8], layers_per_block=[1, 2, 1], attention_head_dim=[1, 3, 2], cross_attention_dim=10,
         norm_num_groups=2, use_linear_projection=True, flip_sin_to_cos=False, freq_shift=1)
    unet("sd_c", 3, 5, 6, 3, "CC", block_out_channels=[8, 4], layers_per_block=2, attention_head_dim=[1, 2], cross_attention_dim=7, norm_num_groups=2,
         transformer_layers_per_block=[2, 1], only_cross_attention=[True, False], act_fn="gelu", norm_eps=1e-4, mid_block_scale_factor=1.3)


def vae(name, B, H, W, **config):
    """The encoder's golden values in NAME_encoder, the decoder's in NAME_decoder."""
    levels = len(config["block_out_channels"])
    full = dict(_class_name="AutoencoderKL", sample_size=max(H, W), in_channels=3, out_channels=3, down_block_types=["DownEncoderBlock2D"] * levels,
                up_block_types=["UpDecoderBlock2D"] * levels) | config
    for part in ("encoder", "decoder"):
        model = diffusers.AutoencoderKL.from_config(full).double()
        fill(model)
        h, w = -(-H >> levels - 1), -(-W >> levels - 1)
        x = numbers(f"{name}.{part}", (B, 3, H, W) if part == "encoder" else (B, full["latent_channels"], h, w), 1)
        out = model.encode(x).latent_dist.parameters if part == "encoder" else model.decode(x).sample
        save(f"{name}_{part}", full, {"sample": x}, out, numbers(f"{name}.{part}.target", tuple(out.shape), 1), model)


def make_vae():
    vae("vae_a", 2, 8, 12, block_out_channels=[4, 8], layers_per_block=1, norm_num_groups=2, latent_channels=4)
    vae("vae_b", 1, 13, 9, block_out_channels=[4, 4, 6], layers_per_block=2, norm_num_groups=2, latent_channels=3, scaling_factor=0.3, act_fn="gelu")
    vae("vae_c", 3, 5, 6, block_out_channels=[6], layers_per_block=1, norm_num_groups=3, latent_channels=2, use_quant_conv=False, use_post_quant_conv=False)
    full = dict(_class_name="AutoencoderKL", sample_size=16, block_out_channels=[4, 4], layers_per_block=1, norm_num_groups=2, latent_channels=2,
                down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2)
    model = diffusers.AutoencoderKL.from_config(full).double()
    fill(model)
    model.enable_tiling()
    x = numbers("vae_tiled", (2, 2, 15, 11))
    out = model.decode(x / model.config.scaling_factor).sample
    save("vae_tiled", full, {"sample": x}, out, numbers("vae_tiled.target", tuple(out.shape), 1), model, only="nothing")


SHAPE = (2, 3, 2, 2)


def trajectory(name, kind, steps, eta=0.0, clipped=False, network=1.0, load_as=None, **config):
    """diffusers' scheduler `kind` from noise to the end, with a linear network in place of a real one, in double: all
    its steps. `load_as`: the class of the file, when another reads it."""
    config = {"_class_name": load_as or kind} | config
    own = {k: v for k, v in config.items() if k in getattr(diffusers, kind).__init__.__wrapped__.__code__.co_varnames} if load_as else config
    s = getattr(diffusers, kind).from_config({k: v for k, v in own.items()})
    last = float(s.alphas_cumprod[-1])
    s.alphas_cumprod = torch.cumprod(1 - s.betas.double(), 0)
    if kind.startswith("DPM"):
        if config.get("rescale_betas_zero_snr"):
            s.alphas_cumprod[-1] = last
        s.lambda_t = 0.5 * torch.log(s.alphas_cumprod / (1 - s.alphas_cumprod))
    if hasattr(s, "final_alpha_cumprod") and not config.get("set_alpha_to_one", True):
        s.final_alpha_cumprod = s.alphas_cumprod[0]
    s.set_timesteps(steps)
    if kind.startswith("DPM"):  # in double as well: 1e-9 is an alphas_cumprod here
        end = s.alphas_cumprod[:1] if config.get("final_sigmas_type") == "sigma_min" else torch.ones(1)
        a = torch.cat([s.alphas_cumprod[s.timesteps], end])
        s.sigmas = ((1 - a) / a).sqrt()
    learned = str(config.get("variance_type")).startswith("learned")
    x, field, out = numbers("trajectory.x", SHAPE, 1.7), numbers("trajectory.field", SHAPE, 0.5), []
    for k, t in enumerate(s.timesteps):
        noise = numbers(f"trajectory.noise.{k}", SHAPE, 1.7)
        diffusers.schedulers.scheduling_ddpm.randn_tensor = lambda *_, **__: noise
        pred = network * 0.4 * x + field
        if learned:
            pred = torch.cat([pred, (field * 0.2).abs() if config["variance_type"] == "learned" else field], 1)
        if kind == "DDIMScheduler":
            x = s.step(pred[:, :3], t, x, eta=eta, use_clipped_model_output=clipped, variance_noise=noise if eta else None).prev_sample
        else:
            x = s.step(pred, t, x).prev_sample
        out.append(x)
    run = {"sampler": kind, "steps": steps, "eta": eta, "clipped": int(clipped), "network": network, "learned": int(learned)}
    return {name + ".x": torch.stack(out).float().numpy(), name + ".t": s.timesteps.numpy().astype(np.int32)}, {name: json.dumps(config), name + ".run": json.dumps(run)}


def make_schedulers():
    ddpm, ddim, dpm = "DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"
    sd = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, num_train_timesteps=1000, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    cos = dict(beta_schedule="squaredcos_cap_v2", num_train_timesteps=1000)
    strict = dict(thresholding=True, dynamic_thresholding_ratio=0.8, sample_max_value=1.5)
    cases = [("ddpm", ddpm, 12, {}), ("ddpm sample", ddpm, 10, dict(prediction_type="sample", clip_sample=False)),
             ("ddpm v, thresholding", ddpm, 12, cos | strict | dict(prediction_type="v_prediction")),
             ("ddpm trailing, fixed_large", ddpm, 10, sd | dict(variance_type="fixed_large", timestep_spacing="trailing")),
             ("ddpm linspace, fixed_small_log", ddpm, 11, dict(variance_type="fixed_small_log", timestep_spacing="linspace", clip_sample_range=0.7)),
             ("ddpm learned", ddpm, 10, cos | dict(variance_type="learned")), ("ddpm learned_range", ddpm, 10, cos | strict | dict(variance_type="learned_range")),
             ("ddpm zero snr", ddpm, 10, sd | dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")),
             ("ddim", ddim, 12, sd), ("ddim clip", ddim, 12, dict(clip_sample=True)), ("ddim clip, clipped eps", ddim, 12, dict(clip_sample=True, clipped=True)),
             ("ddim v, eta, clipped eps", ddim, 10, cos | strict | dict(prediction_type="v_prediction", eta=0.6, clipped=True)),
             ("ddim sample, trailing", ddim, 13, sd | dict(prediction_type="sample", timestep_spacing="trailing")),
             ("ddim v, linspace, eta", ddim, 11, sd | dict(prediction_type="v_prediction", timestep_spacing="linspace", eta=1.0)),
             ("ddim zero snr", ddim, 10, sd | dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")),
             ("dpm", dpm, 12, sd), ("dpm many steps", dpm, 20, sd), ("dpm heun, leading", dpm, 10, sd | dict(solver_type="heun", timestep_spacing="leading")),
             ("dpm sigma_min", dpm, 12, sd | dict(final_sigmas_type="sigma_min")), ("dpm sigma_min, many steps", dpm, 16, sd | dict(final_sigmas_type="sigma_min")),
             ("dpm sigma_min, euler_at_final", dpm, 16, sd | dict(final_sigmas_type="sigma_min", euler_at_final=True)), ("dpm first order", dpm, 10, sd | dict(solver_order=1)),
             ("dpm v, trailing, thresholding", dpm, 15, cos | strict | dict(prediction_type="v_prediction", timestep_spacing="trailing")),
             ("dpm sample, lambda_min", dpm, 10, cos | dict(prediction_type="sample", lambda_min_clipped=-5.1)),
             ("dpm trailing, lambda_min", dpm, 20, cos | dict(lambda_min_clipped=-2.0, timestep_spacing="trailing", network=0.3)),
             ("dpm learned_range", dpm, 10, cos | strict | dict(variance_type="learned_range")),
             ("dpm zero snr", dpm, 10, sd | dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")),
             ("pndm as ddim", ddim, 10, sd | dict(load_as="PNDMScheduler", skip_prk_steps=True)), ("pndm as dpm", dpm, 10, sd | dict(load_as="PNDMScheduler", skip_prk_steps=True))]
    tensors, meta = {}, {"torch": torch.__version__, "diffusers": diffusers.__version__, "by": "make_sd.py"}
    for name, kind, steps, more in cases:
        t, m = trajectory(name, kind, steps, **more)
        tensors |= t
        meta |= m
    save_file(tensors, os.path.join(HERE, "schedulers.safetensors"), metadata=meta | {"cases": json.dumps([c[0] for c in cases])})
    print("schedulers", len(cases), "trajectories")


def make_pipeline():
    """A whole small StableDiffusionPipeline: its configurations to pipelines/sd, its pictures from given latents."""
    words = os.path.join(HERE, "tokenizers", "clip")
    folder = os.path.join(HERE, "pipelines", "sd")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(words, model_max_length=77)
    text = dict(vocab_size=len(tokenizer), max_position_embeddings=77, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                hidden_act="quick_gelu", layer_norm_eps=1e-5, model_type="clip_text_model", bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    unet_ = dict(_class_name="UNet2DConditionModel", sample_size=8, in_channels=4, out_channels=4, block_out_channels=[8, 16], layers_per_block=1, attention_head_dim=2,
                 cross_attention_dim=16, norm_num_groups=4, down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"])
    vae_ = dict(_class_name="AutoencoderKL", sample_size=16, block_out_channels=[4, 8], layers_per_block=1, norm_num_groups=2, latent_channels=4, scaling_factor=0.18215,
                down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2)
    sd = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, num_train_timesteps=1000, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pndm = sd | dict(_class_name="PNDMScheduler", skip_prk_steps=True)
    parts = dict(text_encoder=transformers.CLIPTextModel(transformers.CLIPTextConfig(**text)), unet=diffusers.UNet2DConditionModel.from_config(unet_),
                 vae=diffusers.AutoencoderKL.from_config(vae_))
    for name, model in parts.items():
        fill(model, "text_model." if name == "text_encoder" else "")
        model.double().eval()
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": True, "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
             "feature_extractor": ["transformers", "CLIPImageProcessor"], "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
             "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    for path, config in {"model_index.json": index, "scheduler/scheduler_config.json": pndm, "text_encoder/config.json": text, "unet/config.json": unet_,
                         "vae/config.json": vae_}.items():
        os.makedirs(os.path.dirname(os.path.join(folder, path)), exist_ok=True)
        json.dump(config, open(os.path.join(folder, path), "w"), indent=1)
    latents = numbers("pipeline.latents", (2, 4, 8, 12), 1.7)
    tensors = {}
    for name, kind, steps, guidance in (("ddim", diffusers.DDIMScheduler, 7, 3.0), ("dpm", diffusers.DPMSolverMultistepScheduler, 8, 5.0), ("unguided", diffusers.DDIMScheduler, 4, 1.0)):
        scheduler = kind.from_config(diffusers.PNDMScheduler.from_config(pndm).config)
        pipe = diffusers.StableDiffusionPipeline(**parts, tokenizer=tokenizer, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        out = pipe(["a photo of a dog", "Zwei Katzen, 3 cups"], negative_prompt=["blurry"] * 2, latents=latents.clone(), num_inference_steps=steps, guidance_scale=guidance,
                   height=16, width=24, output_type="np").images
        print(name, "mean", out.mean(), "at the limits", ((out == 0) | (out == 1)).mean())
        tensors[name] = np.ascontiguousarray(out, np.float32)
    save_file(tensors, os.path.join(folder, "golden.safetensors"), metadata={"torch": torch.__version__, "diffusers": diffusers.__version__, "by": "make_sd.py"})


if __name__ == "__main__":
    torch.manual_seed(0)
    parts = {k[5:]: f for k, f in globals().items() if k.startswith("make_")}
    for part in sys.argv[1:] or parts:
        parts[part]()

"""Golden values of Stable Diffusion's networks, schedulers and pipelines: small random configurations.

    python3 tests/golden/make_sd.py [part ...]      (torch, diffusers, transformers, safetensors)

Networks go to networks/NAME/ as make_networks.py writes them (see there); tests/test_sd.c reads all of it."""
import os, sys
import torch, diffusers, transformers
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


if __name__ == "__main__":
    torch.manual_seed(0)
    parts = {k[5:]: f for k, f in globals().items() if k.startswith("make_")}
    for part in sys.argv[1:] or parts:
        parts[part]()

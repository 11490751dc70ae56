"""Golden values of whole networks: small random U-Nets of DeepFloyd IF's kinds and T5 encoders.

    python3 tests/golden/make_networks.py        (torch, diffusers, transformers, safetensors)

For each configuration, networks/NAME/ gets config.json and golden.safetensors with the inputs `in.*`, the
output `out`, the target of the loss mean((out - target)^2), and the gradient `grad.KEY` of every parameter.
Weights are not stored: both sides draw them from the hash below. Versions go into the file's metadata."""
import json, os, sys, zlib
import numpy as np, torch, diffusers, transformers
from safetensors.numpy import save_file

HERE = os.path.dirname(os.path.abspath(__file__))


def hashed(name, shape, scale):
    """Uniform numbers in [-scale, scale) from the name and the index: tests/test_networks.c has the same."""
    n = int(np.prod(shape))
    x = (np.arange(n, dtype=np.uint64) * 2654435761 + zlib.crc32(name.encode())) & 0xFFFFFFFF
    for shift, mul in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> np.uint64(shift))) * np.uint64(mul)) & np.uint64(0xFFFFFFFF)
    x ^= x >> np.uint64(16)
    x = ((x >> np.uint64(8)).astype(np.float32) / np.float32(8388608) - 1) * np.float32(scale)
    return x.reshape(shape)


def fill(model, prefix=""):
    for name, p in model.named_parameters():
        fan = p[0].numel() if p.dim() > 1 else 4
        with torch.no_grad():
            p.copy_(torch.from_numpy(hashed(prefix + name, tuple(p.shape), (3.0 / fan) ** 0.5)) + (1 if p.dim() == 1 and name.endswith("weight") else 0))


def save(name, config, tensors, out, target, model, prefix="", only=""):
    d = os.path.join(HERE, "networks", name)
    os.makedirs(d, exist_ok=True)
    json.dump(config, open(os.path.join(d, "config.json"), "w"), indent=1, sort_keys=True)
    loss = ((out - target) ** 2).mean()
    loss.backward()
    t = {"in." + k: v.detach().numpy().astype(np.float32) if v.is_floating_point() else v.numpy().astype(np.int32) for k, v in tensors.items()}
    t |= {"out": out.detach().float().numpy(), "target": target.float().numpy(), "loss": np.array([loss.item()], np.float32)}
    for k, p in model.named_parameters():
        if k.startswith(only) and p.grad is not None:
            t["grad." + prefix + k] = p.grad.float().numpy()
    save_file({k: np.ascontiguousarray(v) for k, v in t.items()}, os.path.join(d, "golden.safetensors"),
              metadata={"torch": torch.__version__, "diffusers": diffusers.__version__, "transformers": transformers.__version__, "by": os.path.basename(sys.argv[0])})
    print(name, sum(p.numel() for p in model.parameters()), "parameters")


def unet(name, B, H, W, T, **config):
    R, S = "Resnet", "SimpleCrossAttn"
    kinds = config.pop("kinds")
    full = dict(sample_size=max(H, W), act_fn="gelu", resnet_time_scale_shift="scale_shift", mid_block_type="UNetMidBlock2DSimpleCrossAttn",
                down_block_types=["ResnetDownsampleBlock2D" if k == "R" else "SimpleCrossAttnDownBlock2D" for k in kinds],
                up_block_types=["ResnetUpsampleBlock2D" if k == "R" else "SimpleCrossAttnUpBlock2D" for k in reversed(kinds)],
                cross_attention_norm="group_norm", addition_embed_type="text", encoder_hid_dim_type="text_proj", _class_name="UNet2DConditionModel") | config
    model = diffusers.UNet2DConditionModel.from_config(full).double()
    fill(model)
    t = {"sample": torch.from_numpy(hashed(name + ".sample", (B, full["in_channels"], H, W), 1.5)).double(),
         "timestep": torch.tensor([981.0, 37.0, 500.0][:B]).double(),
         "encoder_hidden_states": torch.from_numpy(hashed(name + ".text", (B, T, full["encoder_hid_dim"] or full["cross_attention_dim"]), 1.5)).double()}
    if "class_embed_type" in full:
        t["class_labels"] = torch.tensor([250.0, 3.0, 77.0][:B]).double()
    out = model(t["sample"], t["timestep"], t["encoder_hidden_states"], class_labels=t.get("class_labels")).sample
    save(name, full, t, out, torch.from_numpy(hashed(name + ".target", tuple(out.shape), 1)).double(), model)


def t5(name, B, T, lengths, **config):
    full = dict(vocab_size=40, relative_attention_num_buckets=8, relative_attention_max_distance=16, layer_norm_epsilon=1e-6, dropout_rate=0.0,
                feed_forward_proj="gated-gelu", model_type="t5", is_encoder_decoder=False, use_cache=False) | config
    model = transformers.T5EncoderModel(transformers.T5Config(**full)).double().eval()
    fill(model)
    ids = torch.from_numpy((hashed(name + ".ids", (B, T), 1) * 0.5 + 0.5) * full["vocab_size"]).long()
    mask = torch.arange(T)[None] < torch.tensor(lengths)[:, None]
    ids = ids * mask
    out = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    target = torch.from_numpy(hashed(name + ".target", tuple(out.shape), 1)).double()
    save(name, full, {"input_ids": ids, "attention_mask": mask.long()}, out, target, model)


if __name__ == "__main__":
    torch.manual_seed(0)
    unet("if1_a", 2, 8, 12, 5, kinds="RS", in_channels=3, out_channels=6, block_out_channels=[8, 16], layers_per_block=1, attention_head_dim=8,
         cross_attention_dim=32, encoder_hid_dim=24, addition_embed_type_num_heads=4, norm_num_groups=4)
    unet("if1_b", 3, 16, 8, 7, kinds="RSS", in_channels=3, out_channels=3, block_out_channels=[4, 8, 12], layers_per_block=[1, 2, 1], attention_head_dim=4,
         cross_attention_dim=32, encoder_hid_dim=16, addition_embed_type_num_heads=2, norm_num_groups=2, act_fn="silu", flip_sin_to_cos=False, freq_shift=1)
    unet("if1_c", 1, 4, 4, 3, kinds="SS", in_channels=3, out_channels=6, block_out_channels=[8, 8], layers_per_block=2, attention_head_dim=[8, 4],
         cross_attention_dim=32, encoder_hid_dim=32, addition_embed_type_num_heads=8, norm_num_groups=8, only_cross_attention=True)
    two = dict(class_embed_type="timestep", resnet_skip_time_act=True, resnet_out_scale_factor=1.41423, mid_block_scale_factor=1.41423, time_embedding_act_fn="gelu")
    unet("if2_a", 2, 8, 8, 5, kinds="RS", in_channels=6, out_channels=6, block_out_channels=[8, 16], layers_per_block=[1, 2], attention_head_dim=8,
         cross_attention_dim=32, encoder_hid_dim=24, addition_embed_type_num_heads=4, norm_num_groups=4, time_embedding_dim=20, **two)
    unet("if2_b", 1, 16, 8, 4, kinds="RRS", in_channels=6, out_channels=6, block_out_channels=[4, 4, 8], layers_per_block=[2, 1, 1], attention_head_dim=4,
         cross_attention_dim=32, encoder_hid_dim=16, addition_embed_type_num_heads=2, norm_num_groups=2, only_cross_attention=[False, False, True], **two)
    unet("if2_c", 3, 8, 8, 6, kinds="SS", in_channels=6, out_channels=3, block_out_channels=[4, 8], layers_per_block=1, attention_head_dim=4,
         cross_attention_dim=64, encoder_hid_dim=16, addition_embed_type_num_heads=4, norm_num_groups=2, **two)
    # no text, no attention: the shipped cascade's third network
    unet("if3_a", 2, 8, 16, 2, kinds="RRR", in_channels=6, out_channels=3, block_out_channels=[4, 8, 8], layers_per_block=1, mid_block_type="UNetMidBlock2D",
         class_embed_type="timestep", addition_embed_type=None, encoder_hid_dim=None, encoder_hid_dim_type=None, cross_attention_dim=4, norm_num_groups=2, act_fn="silu")
    t5("t5_a", 2, 9, [9, 4], d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4)
    t5("t5_b", 3, 21, [21, 1, 13], d_model=12, d_kv=6, d_ff=20, num_layers=3, num_heads=2, vocab_size=33)
    t5("t5_c", 1, 30, [17], d_model=20, d_kv=5, d_ff=16, num_layers=1, num_heads=3, feed_forward_proj="relu", relative_attention_num_buckets=32, relative_attention_max_distance=128)

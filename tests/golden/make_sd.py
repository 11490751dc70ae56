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


if __name__ == "__main__":
    torch.manual_seed(0)
    parts = {k[5:]: f for k, f in globals().items() if k.startswith("make_")}
    for part in sys.argv[1:] or parts:
        parts[part]()

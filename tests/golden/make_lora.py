"""Golden values of LoRA, by peft, and of AdamW with 8-bit moments, by numpy.

    python3 tests/golden/make_lora.py     (torch, diffusers, transformers, peft, safetensors)

lora/NAME.safetensors: the output and the gradient `grad.KEY` of each factor, in double precision, for the network, the
inputs and the target of networks/NAME, with a LoRA of rank 3 and alpha 5 beside its attention. The factors are hashes of
their names; neither is zero. lora/diffusers.safetensors: the same factors in f16, in the file that diffusers' scripts
write. lora/adam8.safetensors: ten updates of two parameters, by the definition of Dettmers et al.
(8-bit Optimizers via Block-wise Quantization) with bitsandbytes' blocks of 256, thresholds and sign rule."""
import json, os, sys
import numpy as np, torch, diffusers, transformers, peft
from diffusers.training_utils import _collate_lora_metadata
from safetensors.numpy import load_file, save_file
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from make_networks import fill, hashed

HERE = os.path.dirname(os.path.abspath(__file__))
RANK, ALPHA = 3, 5
UNET = ["to_k", "to_q", "to_v", "to_out.0", "add_k_proj", "add_v_proj"]  # as train_dreambooth_lora.py has them
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj"]
VERSIONS = {"torch": torch.__version__, "diffusers": diffusers.__version__, "transformers": transformers.__version__, "peft": peft.__version__}


def add_lora(model, targets, rank, alpha, prefix=""):
    """Freezes the model, adds hashed factors, returns {NAME.lora_A.weight: parameter}."""
    model.requires_grad_(False)
    model.add_adapter(peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets))
    factors = {prefix + k.replace(".default", ""): p for k, p in model.named_parameters() if p.requires_grad}
    for name, p in factors.items():
        p.data = torch.from_numpy(hashed(name, tuple(p.shape), (3.0 / p.shape[1]) ** 0.5)).double()
    return factors


def network(name, targets, prefix=""):
    folder = os.path.join(HERE, "networks", name)
    config, t = json.load(open(folder + "/config.json")), load_file(folder + "/golden.safetensors")
    t = {k: torch.from_numpy(v) for k, v in t.items()}
    if targets == UNET:
        model = diffusers.UNet2DConditionModel.from_config(config).double()
        fill(model)
    else:
        model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config)).double().eval()
        own = any(k.startswith("text_model.") for k, _ in model.named_parameters())
        prefix = "" if own else prefix
        fill(model, prefix)
    factors = add_lora(model, targets, RANK, ALPHA, prefix)
    if targets == UNET:
        labels = t["in.class_labels"].double() if "in.class_labels" in t else None
        out = model(t["in.sample"].double(), t["in.timestep"].double(), t["in.encoder_hidden_states"].double(), class_labels=labels).sample
    else:
        out = model(input_ids=t["in.input_ids"].long(), attention_mask=t["in.attention_mask"].long() if "in.attention_mask" in t else None).last_hidden_state
    ((out - t["target"].double()) ** 2).mean().backward()
    save(name, {"out": out.detach()} | {"grad." + k: p.grad for k, p in factors.items()})
    return model


def as_scripts_save(unet, text):
    """The file that train_dreambooth_lora.py leaves behind, with the metadata of a newer script."""
    layers = [diffusers.utils.convert_state_dict_to_diffusers({k: v.half() for k, v in peft.utils.get_peft_model_state_dict(m).items()}) for m in (unet, text)]
    meta = _collate_lora_metadata({"unet": unet, "text_encoder": text})
    diffusers.StableDiffusionPipeline.save_lora_weights(os.path.join(HERE, "lora"), *layers, weight_name="diffusers.safetensors", **meta)


def save(name, tensors):
    out = {k: np.ascontiguousarray(np.asarray(v)) for k, v in tensors.items()}
    out = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in out.items()}
    os.makedirs(os.path.join(HERE, "lora"), exist_ok=True)
    save_file(out, os.path.join(HERE, "lora", name + ".safetensors"), metadata=VERSIONS)
    print(name, len(out), "tensors")


# ---- 8-bit moments ----

BLOCK, SMALLEST, STEPS = 256, 4096, 10


def dynamic_map(signed):
    """Seven decades; decade e has 2^e linear fractions with a sign, or 2^(e+1) without; and 0, and 1."""
    values = [0.0, 1.0]
    for e in range(7):
        edges = np.linspace(0.1, 1, 2 ** (e + (not signed)) + 1)
        fractions = (edges[1:] + edges[:-1]) / 2 * 10.0 ** (e - 6)
        values += list(fractions) + (list(-fractions) if signed else [])
    assert len(values) == 256
    return np.sort(np.array(values)).astype(np.float32)


def quantise(x, table):
    """Codes [n] and a scale for each block: nearest value, and no negative number becomes 0 or more."""
    codes, scales = np.zeros(len(x), np.uint8), []
    for at in range(0, len(x), BLOCK):
        block = x[at:at + BLOCK]
        scale = np.abs(block).max()
        y = block / scale
        code = np.abs(y[:, None].astype(np.float64) - table.astype(np.float64)).argmin(1)
        code = np.where((y < 0) & (table[code] >= 0), np.searchsorted(table, 0) - 1, code)
        codes[at:at + BLOCK] = code
        scales.append(scale)
    return codes, np.array(scales, np.float32)


def adam8():
    lr, b1, b2, eps, decay = 1e-2, 0.9, 0.999, 1e-8, 1e-2
    out, tables = {}, (dynamic_map(True), dynamic_map(False))
    for name, n in (("large", 5000), ("small", 100)):
        w = hashed(name, (n,), 1).astype(np.float64)
        m, v, state = np.zeros(n), np.zeros(n), None
        for step in range(1, STEPS + 1):
            g = hashed(f"{name}.{step}", (n,), 1).astype(np.float64) ** 5  # over many orders of magnitude
            if state:
                m, v = (np.float64(t[c]) * np.repeat(s, BLOCK)[:n] for t, (c, s) in zip(tables, state))
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            w = w * (1 - lr * decay) - lr / (1 - b1 ** step) * m / (np.sqrt(v / (1 - b2 ** step)) + eps)
            if n >= SMALLEST:
                state = [quantise(x.astype(np.float32), t) for x, t in zip((m, v), tables)]
        out[name] = w
        if state:
            out |= {"m8": state[0][0], "m": state[0][1], "v8": state[1][0], "v": state[1][1]}
    save("adam8", out)


if __name__ == "__main__":
    unets = {name: network(name, UNET) for name in ("if1_a", "if2_c", "sd_a", "sd_b")}
    as_scripts_save(unets["sd_a"], network("clip_a", TEXT, "text_model."))
    adam8()

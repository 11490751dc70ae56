"""Golden values of the metrics: their networks, their preprocessing, their numbers.

    python3 tests/golden/make_metrics.py        (torch, transformers, safetensors, pillow)

networks/{vit,clip_both,lpips}_*/ hold networks with gradients, as make_networks.py writes them (see there). metrics/
holds three directories as transformers saves them (for LPIPS: as the header's manual lays it out), pictures, what
Pillow and the image processors make of these, and the metrics, computed here by NumPy from the models' embeddings.
tests/test_metrics.c reads all of it."""
import itertools, json, os, re, shutil
import numpy as np, torch, transformers
from PIL import Image
from safetensors.numpy import save_file
from torch import nn
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from make_networks import HERE, fill, hashed, save

OUT = os.path.join(HERE, "metrics")


def numbers(name, shape, scale=1.5):
    return torch.from_numpy(hashed(name, shape, scale)).double()


class Published:
    """A model under the names of the published files: transformers 5 renames ViT's in memory, not in what it saves."""
    RENAMES = [("layers.", "encoder.layer."), ("attention.q_proj", "attention.attention.query"), ("attention.k_proj", "attention.attention.key"),
               ("attention.v_proj", "attention.attention.value"), ("attention.o_proj", "attention.output.dense"), ("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense")]

    def __init__(self, model): self.model = model
    def parameters(self): return self.model.parameters()

    def named_parameters(self):
        for name, p in self.model.named_parameters():
            for a, b in self.RENAMES: name = name.replace(a, b)
            yield name, p


# ---- networks and their gradients ------------------------------------------------------------------------------------

def vit(name, B, **config):
    full = dict(model_type="vit", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0) | config
    model = transformers.ViTModel(transformers.ViTConfig(**full), add_pooling_layer=False).double().eval()
    fill(Published(model))
    x = numbers(name + ".pixels", (B, 3, full["image_size"], full["image_size"]))
    out = model(x).last_hidden_state[:, 0]
    save(name, full, {"pixel_values": x}, out, numbers(name + ".target", tuple(out.shape), 1), Published(model))


def clip_both(name, B, T, projection_dim, text, vision):
    text = dict(max_position_embeddings=T, hidden_act="quick_gelu", layer_norm_eps=1e-5) | text
    vision = dict(hidden_act="quick_gelu", layer_norm_eps=1e-5) | vision
    full = dict(model_type="clip", projection_dim=projection_dim, text_config=text, vision_config=vision)
    model = transformers.CLIPModel(transformers.CLIPConfig(**full)).double().eval()
    fill(model)
    model.logit_scale.grad = torch.zeros_like(model.logit_scale)  # of the contrastive loss alone
    x = numbers(name + ".pixels", (B, 3, vision["image_size"], vision["image_size"]))
    ids = ((numbers(name + ".ids", (B, T), 1) * 0.5 + 0.5) * (text["vocab_size"] - 3)).long() + 3
    for b in range(B):  # the end marker, and the same id as padding after it; eos 2 means the largest id
        ids[b, 3 + 2 * b:] = text["eos_token_id"] if text["eos_token_id"] != 2 else text["vocab_size"] - 1
        ids[b, :3 + 2 * b] = ids[b, :3 + 2 * b].clamp(max=text["vocab_size"] - 2)
    both = model(input_ids=ids, pixel_values=x)
    images = model.visual_projection(model.vision_model(x).pooler_output)  # model() gives them at length 1
    texts = model.text_projection(model.text_model(ids).pooler_output)
    assert torch.allclose(both.image_embeds, images / images.norm(dim=-1, keepdim=True)) and torch.allclose(both.text_embeds, texts / texts.norm(dim=-1, keepdim=True))
    out = torch.cat([images, texts])
    save(name, full, {"pixel_values": x, "input_ids": ids}, out, numbers(name + ".target", tuple(out.shape), 1), model)


class Linear(nn.Module):
    """The lpips package's NetLinLayer: dropout, then a 1 x 1 convolution to one channel."""
    def __init__(self, channels):
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))


class Lpips(nn.Module):
    """LPIPS 0.1 on AlexNet, written after its paper (Zhang et al., 2018)."""
    SHIFT, SCALE = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])

    def __init__(self, channels=(64, 192, 384, 256, 256), kernel_size=(11, 5, 3, 3, 3), stride=(4, 1, 1, 1, 1), padding=(2, 2, 1, 1, 1), pool=(0, 1, 1, 0, 0)):
        super().__init__()
        layers, self.taps = [], []
        for c_in, c, k, s, p, first in zip((3,) + tuple(channels), channels, kernel_size, stride, padding, pool):
            layers += [nn.MaxPool2d(3, 2)] * first + [nn.Conv2d(c_in, c, k, s, p), nn.ReLU()]
            self.taps.append(len(layers))
        self.features = nn.Sequential(*layers)
        for k, c in enumerate(channels): setattr(self, f"lin{k}", Linear(c))

    def scaled(self, x):  # [-1, 1]
        return (x - self.SHIFT.to(x)[:, None, None]) / self.SCALE.to(x)[:, None, None]

    def distance(self, x, y):  # scaled
        total, from_ = 0, 0
        for k, to in enumerate(self.taps):
            x, y, from_ = self.features[from_:to](x), self.features[from_:to](y), to
            a, b = (f / (f.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for f in (x, y))
            total = total + getattr(self, f"lin{k}").model[1]((a - b) ** 2).mean((2, 3))
        return total  # [B,1]


def lpips(name, B, H, W, **config):
    model = Lpips(**config).double().eval()
    fill(model)
    x, y = (model.scaled(numbers(f"{name}.{k}", (B, 3, H, W), 1)) for k in "xy")
    out = model.distance(x, y)
    save(name, dict(model_type="lpips") | config, {"size": torch.tensor([B, H, W])}, out,  # the test draws x and y again
         numbers(name + ".target", tuple(out.shape), 1), model)


# ---- pictures and preprocessing ----------------------------------------------------------------------------------------

def pictures():
    """Pictures of odd sizes: noise, a smooth scene with sharp edges, a tiny one, long ones."""
    out = []
    for k, (h, w) in enumerate([(37, 53), (90, 71), (9, 15), (40, 44), (23, 120)]):
        y, x = np.mgrid[0:h, 0:w]
        noise = (hashed(f"picture {k}", (h, w, 3), 0.5) + 0.5) * 255
        scene = np.stack([127 + 120 * np.sin(x / 7 + k), 255 * ((x // 9 + y // 5) % 2), y * 255 / h], -1)
        out.append(np.clip([noise, scene, noise, 0.8 * scene + 0.2 * noise, scene][k], 0, 255).astype(np.uint8))
    return out


PROCESSORS = {
    "squash": ViTImageProcessorPil(size={"height": 24, "width": 24}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]),
    "oblong": ViTImageProcessorPil(size={"height": 31, "width": 17}, resample=3),
    "crop": CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    "frame": CLIPImageProcessorPil(size={"shortest_edge": 12}, crop_size={"height": 15, "width": 20}, resample=2),
    "plain": CLIPImageProcessorPil(size={"shortest_edge": 17}, crop_size={"height": 13, "width": 16}, do_rescale=False, do_normalize=False),
}


def preprocessing(images):
    t = {}
    for name, p in PROCESSORS.items():
        p.save_pretrained(os.path.join(OUT, name))
        for k, image in enumerate(images):
            t[f"{name}.{k}"] = p(Image.fromarray(image), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0).astype(np.float32)
    return t


# ---- whole directories, and the numbers ----------------------------------------------------------------------------------

def small_tokenizer(folder):
    """The first merges of the tokenizer tests' vocabulary, in the two files of the published models."""
    source = os.path.join(HERE, "tokenizers", "clip")
    head, *merges = open(os.path.join(source, "merges.txt"), encoding="utf-8").read().splitlines()
    merges = merges[:60]
    vocabulary = json.load(open(os.path.join(source, "vocab.json"), encoding="utf-8"))
    single = [v for v in sorted(vocabulary, key=vocabulary.get) if len(v.removesuffix("</w>")) == 1]
    pieces = single + [m.replace(" ", "") for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    open(os.path.join(folder, "merges.txt"), "w", encoding="utf-8").write("\n".join([head] + merges) + "\n")
    json.dump({v: k for k, v in enumerate(pieces)}, open(os.path.join(folder, "vocab.json"), "w", encoding="utf-8"), ensure_ascii=False)
    return len(pieces)


def cosine(a, b):
    a, b = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (a, b))
    return a @ b.T


def within(matrix):
    return np.mean([matrix[i, j] for i, j in itertools.combinations(range(len(matrix)), 2)])


def variation(image, k):
    """Another picture of the same size: shifted colours and some noise."""
    noise = hashed(f"variation {k}", image.shape, 30.0)
    return np.clip(np.roll(image, 3 * k, axis=1) * (0.7 + 0.1 * k) + noise, 0, 255).astype(np.uint8)


def metrics(images):
    folder = {k: os.path.join(OUT, k) for k in ("dino", "clip", "lpips")}
    for f in folder.values(): os.makedirs(f)
    dino = transformers.ViTModel(transformers.ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=24, patch_size=8))
    size = small_tokenizer(folder["clip"])
    clip = transformers.CLIPModel(transformers.CLIPConfig(
        text_config=dict(vocab_size=size, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=12, bos_token_id=size - 2, eos_token_id=2),
        vision_config=dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8), projection_dim=6))
    distance = Lpips(channels=[4, 6, 5, 4, 4])
    for m in (dino, clip, distance):
        fill(Published(m) if m is dino else m)
        with torch.no_grad():
            for n, p in m.named_parameters():
                if n.startswith("lin"): p.abs_()  # as LPIPS is trained
        m.half()
    dino.save_pretrained(folder["dino"])
    clip.save_pretrained(folder["clip"])
    PROCESSORS["squash"].save_pretrained(folder["dino"])
    PROCESSORS["crop"].save_pretrained(folder["clip"])
    save_file({k: v.numpy() for k, v in distance.state_dict().items()}, os.path.join(folder["lpips"], "model.safetensors"))
    json.dump(dict(model_type="lpips", channels=[4, 6, 5, 4, 4]), open(os.path.join(folder["lpips"], "config.json"), "w"))
    for m in (dino, clip, distance): m.double().eval()

    # five generated pictures of one size with two prompts, three photos, four class pictures each
    generated = [variation(images[3], k) for k in range(5)]
    prompts = ["a dog on the beach", "a dog on the beach", "a cat", "a dog on the beach", "a cat"]
    real, tuned = images[:3], [variation(images[3], 5 + k) for k in range(4)]
    original = [variation(images[3], 9 + k) for k in range(4)]
    sets = {"generated": generated, "real": real, "held_out": images[4:], "class": tuned, "original": original}
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder["clip"])
    with torch.no_grad():
        def pixels(p, pics): return torch.from_numpy(np.stack([p(Image.fromarray(x), return_tensors="np")["pixel_values"][0] for x in pics])).double()
        d = {k: dino(pixels(PROCESSORS["squash"], v)).last_hidden_state[:, 0].numpy() for k, v in sets.items()}
        c = {k: clip.visual_projection(clip.vision_model(pixels(PROCESSORS["crop"], v)).pooler_output).numpy() for k, v in sets.items()}
        every = generated + tuned + original
        ids = torch.tensor(tokenizer(prompts, padding="max_length", max_length=12, truncation=True)["input_ids"])
        texts = clip.text_projection(clip.text_model(ids).pooler_output).numpy()

        def lp(a, b):
            a, b = (torch.from_numpy(v).permute(2, 0, 1)[None].double() / 127.5 - 1 for v in (a, b))
            return distance.distance(distance.scaled(a), distance.scaled(b)).item()
        div = np.mean([lp(generated[i], generated[j]) for i, j in itertools.combinations(range(5), 2) if prompts[i] == prompts[j]])
        distances = [lp(a, b) for a, b in itertools.combinations(every, 2)]
        diversity = [np.mean([lp(a, b) for a, b in itertools.combinations(v, 2)]) for v in (tuned, original)]
    s = {"dino": cosine(d["generated"], d["real"]).mean(), "dino_held_out": cosine(d["generated"], d["held_out"]).mean(), "dino_real": within(cosine(d["real"], d["real"])),
         "clip_i": cosine(c["generated"], c["real"]).mean(), "clip_i_real": within(cosine(c["real"], c["real"])), "clip_t": np.diag(cosine(c["generated"], texts)).mean(),
         "div": div, "pres": cosine(d["class"], d["real"]).mean(), "pres_original": cosine(d["original"], d["real"]).mean(), "class_diversity": diversity[0],
         "class_diversity_original": diversity[1]}
    s["normalized_fidelity"] = (s["dino"] - s["pres_original"]) / (s["dino_real"] - s["pres_original"])
    s["drift"] = (s["pres"] - s["pres_original"]) / (s["dino"] - s["pres_original"])
    print({k: round(float(v), 4) for k, v in s.items()})
    t = {"score." + k: np.array([v], np.float64) for k, v in s.items()}
    t |= {f"variation.{k}": v for k, v in enumerate(every)}
    t |= {"dino.variations": np.concatenate([d[k] for k in ("generated", "class", "original")]).astype(np.float32), "clip.generated": c["generated"].astype(np.float32),
          "clip.texts": texts.astype(np.float32), "lpips.variations": np.array(distances, np.float32)}
    return t


if __name__ == "__main__":
    torch.manual_seed(0)
    vit("vit_a", 3, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=24, patch_size=8)
    vit("vit_b", 2, hidden_size=12, num_hidden_layers=1, num_attention_heads=3, intermediate_size=20, image_size=15, patch_size=4, qkv_bias=False, layer_norm_eps=1e-3, hidden_act="gelu_new")
    clip_both("clip_both_a", 2, 9, 6, dict(vocab_size=30, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, eos_token_id=29),
              dict(hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3, image_size=16, patch_size=8))
    clip_both("clip_both_b", 3, 10, 8, dict(vocab_size=33, hidden_size=12, intermediate_size=12, num_hidden_layers=1, num_attention_heads=3, eos_token_id=2, hidden_act="gelu"),
              dict(hidden_size=8, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=12, patch_size=4, hidden_act="gelu", layer_norm_eps=1e-3))
    lpips("lpips_a", 2, 43, 64, channels=[4, 6, 5, 4, 4])
    lpips("lpips_b", 3, 24, 20, channels=[6, 4, 5, 3, 4], kernel_size=[5, 3, 3, 1, 3], stride=[2, 1, 1, 1, 1], padding=[2, 1, 0, 0, 1], pool=[0, 1, 0, 0, 0])
    shutil.rmtree(OUT, ignore_errors=True)
    images = pictures()
    tensors = {f"picture.{k}": v for k, v in enumerate(images)} | preprocessing(images) | metrics(images)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, os.path.join(OUT, "golden.safetensors"),
              metadata={"torch": torch.__version__, "transformers": transformers.__version__, "pillow": Image.__version__, "by": "make_metrics.py"})

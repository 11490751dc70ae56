/* The metrics against transformers, PyTorch, Pillow and NumPy: networks with the gradient of every
   parameter, the image processors to the bit, every number of an evaluation, and what bad files
   get. golden/make_metrics.py made the reference. */
#define DREAMBOOTH_IMPLEMENTATION
#include "dreambooth.h"
#include "test.h"
#include "networks.h"

#define METRICS "tests/golden/metrics"

/* ---- networks and their gradients ---------------------------------------------------------- */

/* One network of networks/: its golden file, and the tape that it is recorded on. */
typedef struct network_case {
    const char *name;
    db_ctx *ctx;
    db_tape *tape;
    db_safetensors *st;
    db_tensor in[2], out;
} network_case;

/* Opens the golden file and a tape, unless the network could not be made. */
static int case_open(network_case *c, db_ctx *ctx, const char *name, db_param_table *params)
{
    memset(c, 0, sizeof *c);
    c->ctx = ctx, c->name = name;
    if (!open_network(ctx, name, params, &c->st)) return 0;
    if (db_tape_create(ctx, &c->tape) == DB_OK) return 1;
    test_fail(name, "%s", db_last_error(ctx));
    return 0;
}

/* An input [B,H,W,3] for the file's pictures [B,3,H,W]. */
static db_tensor case_pictures(network_case *c, const char *name, float **values)
{
    size_t d[4], nhwc[4];
    float *x = golden(c->st, name, d);
    *values = (float *)malloc(d[0] * d[1] * d[2] * d[3] * sizeof(float));
    to_nhwc(x, d, *values);
    free(x);
    nhwc[0] = d[0], nhwc[1] = d[2], nhwc[2] = d[3], nhwc[3] = d[1];
    return db_input(c->tape, DB_F32, 4, nhwc);
}

static void case_record_loss(network_case *c, db_tensor *target)
{
    *target = db_input(c->tape, DB_F32, c->out.n_dims, c->out.dim);
    db_keep(c->tape, c->out);
    db_backward(c->tape, db_mse(c->tape, c->out, *target, db_none, db_none, NULL));
}

static void case_check(network_case *c, const db_param_table *params, db_tensor target)
{
    size_t n = db_count(c->out), d[4];
    float *ref = golden(c->st, "out", d), *goal = golden(c->st, "target", d),
          *ours = (float *)malloc((n + 1) * sizeof(float));
    db_upload(c->tape, target, goal);
    db_run(c->tape, 0, 0);
    db_download(c->tape, c->out, ours);
    check_output(c->ctx, c->name, ours, ref, n, c->tape->compute == DB_F32 ? 1e-4 : 3e-2);
    if (db_status(c->ctx) == DB_OK && c->tape->compute == DB_F32)
        check_gradients(c->name, params, "", c->st, 1e-3);
    free(ref), free(goal), free(ours);
}

static void case_close(network_case *c)
{
    db_tape_destroy(c->tape);
    db_safetensors_close(c->st);
    db_clear_error(c->ctx);
}

static void check_vit(db_ctx *ctx, const char *name)
{
    network_case c;
    db_vision_config config;
    db_vit *m = NULL;
    float *x;
    db_tensor target;
    if (db_vit_config_load(ctx, network_path(name, "config.json"), &config) == DB_OK)
        db_vit_create(ctx, &config, &m);
    if (case_open(&c, ctx, name, m ? &m->params : NULL)) {
        c.in[0] = case_pictures(&c, "in.pixel_values", &x);
        c.out = db_vit_forward(c.tape, m, c.in[0]);
        case_record_loss(&c, &target);
        db_upload(c.tape, c.in[0], x);
        case_check(&c, &m->params, target);
        free(x);
    }
    case_close(&c);
    db_vit_free(m);
}

/* Both towers on one tape; the file has the pictures' vectors first, then the texts'. */
static void check_clip(db_ctx *ctx, const char *name)
{
    network_case c;
    db_clip_config config;
    db_clip *m = NULL;
    if (db_clip_config_load(ctx, network_path(name, "config.json"), &config) == DB_OK)
        db_clip_create(ctx, &config, &m);
    if (case_open(&c, ctx, name, m ? &m->params : NULL)) {
        float *x, *words;
        int32_t ids[64], ends[8];
        size_t d[4], one[2], k;
        db_tensor target, pictures, texts, places;
        pictures = case_pictures(&c, "in.pixel_values", &x);
        words = golden(c.st, "in.input_ids", d);
        for (k = 0; k < d[0] * d[1]; k++) ids[k] = (int32_t)words[k];
        for (k = 0; k < d[0]; k++)
            ends[k] = (int32_t)(k * d[1] + db_clip_end(m, ids + k * d[1], d[1]));
        one[0] = d[0], one[1] = 1;
        texts = db_input(c.tape, DB_I32, 2, d), places = db_input(c.tape, DB_I32, 2, one);
        c.out = db_concat(c.tape, db_clip_image_forward(c.tape, m, pictures),
                          db_clip_text_forward(c.tape, m, texts, places), 0);
        case_record_loss(&c, &target);
        db_upload(c.tape, pictures, x), db_upload(c.tape, texts, ids),
            db_upload(c.tape, places, ends);
        case_check(&c, &m->params, target);
        free(x), free(words);
    }
    case_close(&c);
    db_clip_free(m);
}

static void check_lpips(db_ctx *ctx, const char *name)
{
    network_case c;
    db_lpips_config config;
    db_lpips *m = NULL;
    if (db_lpips_config_load(ctx, network_path(name, "config.json"), &config) == DB_OK)
        db_lpips_create(ctx, &config, &m);
    if (case_open(&c, ctx, name, m ? &m->params : NULL)) {
        size_t one[4], d[4], nhwc[4], k, n;
        float *size = golden(c.st, "in.size", one), *drawn, *x;
        db_tensor target;
        d[0] = (size_t)size[0], d[1] = 3, d[2] = (size_t)size[1], d[3] = (size_t)size[2];
        nhwc[0] = d[0], nhwc[1] = d[2], nhwc[2] = d[3], nhwc[3] = 3;
        n = d[0] * 3 * d[2] * d[3];
        c.in[0] = db_input(c.tape, DB_F32, 4, nhwc), c.in[1] = db_input(c.tape, DB_F32, 4, nhwc);
        c.out = db_lpips_forward(c.tape, m, c.in[0], c.in[1]);
        case_record_loss(&c, &target);
        drawn = (float *)malloc(n * sizeof *drawn), x = (float *)malloc(n * sizeof *x);
        /* in [-1,1], then LPIPS's scaling layer, which the processor expresses for [0,1] */
        for (k = 0; k < 2; k++) {
            char stream[64];
            size_t i;
            snprintf(stream, sizeof stream, "%s.%c", name, k ? 'y' : 'x');
            hashed(stream, n, 1, drawn);
            to_nhwc(drawn, d, x);
            for (i = 0; i < n; i++) x[i] = ((x[i] + 1) / 2 - m->processor.image_mean[i % 3])
                / m->processor.image_std[i % 3];
            db_upload(c.tape, c.in[k], x);
        }
        case_check(&c, &m->params, target);
        free(size), free(drawn), free(x);
    }
    case_close(&c);
    db_lpips_free(m);
}

/* ---- what training them needs ---------------------------------------------------------------- */

enum { ROWS = 3, COLUMNS = 5, WIDTH = 4 };

/* Mean over the rows of -sum p log softmax(4 cos(a, b)), in double precision. */
static double contrast(const double *a, const double *b, const double *p)
{
    double total = 0;
    size_t i, j, k;
    for (i = 0; i < ROWS; i++) {
        double z[COLUMNS], sum = 0;
        for (j = 0; j < COLUMNS; j++) {
            double ab = 0, aa = 0, bb = 0;
            for (k = 0; k < WIDTH; k++) {
                double x = a[i * WIDTH + k], y = b[j * WIDTH + k];
                ab += x * y, aa += x * x, bb += y * y;
            }
            sum += exp(z[j] = 4 * ab / sqrt(aa * bb));
        }
        for (j = 0; j < COLUMNS; j++) total += p[i * COLUMNS + j] * (log(sum) - z[j]) / ROWS;
    }
    return total;
}

/* The contrastive loss: vectors of length 1, the product of two batches, the cross entropy with
   probabilities; its gradient against central differences. */
static void check_contrast(db_ctx *ctx)
{
    enum { NA = ROWS * WIDTH, N = NA + COLUMNS * WIDTH };
    size_t da[2] = {ROWS, WIDTH}, dz[2] = {COLUMNS, WIDTH}, dp[2] = {ROWS, COLUMNS}, k;
    float x[N], q[ROWS * COLUMNS], grad[N], ref[N], loss = 0;
    double v[N], p[ROWS * COLUMNS], value;
    db_tape *t = NULL;
    db_tensor a, b, targets, y;
    db_tape_create(ctx, &t);
    a = db_input(t, DB_F32, 2, da), b = db_input(t, DB_F32, 2, dz),
        targets = db_input(t, DB_F32, 2, dp);
    db_require_grad(t, a), db_require_grad(t, b);
    y = db_linear(t, db_unit_norm(t, a), db_cast(t, db_unit_norm(t, b), DB_F32), db_none,
                  db_none);
    y = db_cross_entropy(t, db_weighted_sum(t, 4, y, 0, db_none), targets);
    db_backward(t, y);
    hashed("contrast", N, 1, x);
    hashed("probabilities", ROWS * COLUMNS, 0.5f, q);
    for (k = 0; k < N; k++) v[k] = (double)x[k];
    for (k = 0; k < ROWS * COLUMNS; k++) p[k] = (double)(q[k] += 0.5f); /* rows of any sum */
    db_upload(t, a, x), db_upload(t, b, x + NA), db_upload(t, targets, q);
    db_run(t, 0, 0);
    db_download(t, y, &loss), db_download(t, db_grad(t, a), grad),
        db_download(t, db_grad(t, b), grad + NA);
    value = contrast(v, v + NA, p);
    for (k = 0; k < N; k++) {
        double high, h = 1e-5;
        v[k] += h, high = contrast(v, v + NA, p);
        v[k] -= 2 * h, ref[k] = (float)((high - contrast(v, v + NA, p)) / (2 * h));
        v[k] += h;
    }
    value = fabs((double)loss - value) + test_error(grad, ref, N, 0, NULL);
    if (db_status(ctx) == DB_OK && value < 1e-4) test_pass("contrastive loss", "err %.1e", value);
    else test_fail("contrastive loss", "%s err %.1e", db_last_error(ctx), value);
    db_tape_destroy(t);
    db_clear_error(ctx);
}

/* ---- preprocessing ------------------------------------------------------------------------- */

static db_image picture(const db_safetensors *st, const char *kind, size_t k)
{
    char name[64];
    const db_file_tensor *f;
    db_image image;
    snprintf(name, sizeof name, "%s.%zu", kind, k);
    f = db_safetensors_find(st, name);
    image.rgb = (const uint8_t *)f->data, image.h = f->dim[0], image.w = f->dim[1];
    return image;
}

/* Every picture through a processor: equal up to the last bits of the normalisation, so that the
   bytes before it were the same. */
static void check_processor(db_ctx *ctx, const db_safetensors *st, const char *name)
{
    char path[300], label[100];
    db_image_processor p;
    size_t k, i, compared = 0;
    double worst = 0;
    snprintf(path, sizeof path, METRICS "/%s/preprocessor_config.json", name);
    snprintf(label, sizeof label, "processor %s", name);
    db_image_processor_load(ctx, path, &p);
    for (k = 0; k < 5 && db_status(ctx) == DB_OK; k++) {
        db_image image = picture(st, "picture", k);
        char want[64];
        const db_file_tensor *f;
        float *ref, *ours;
        snprintf(want, sizeof want, "%s.%zu", name, k);
        f = db_safetensors_find(st, want);
        ref = (float *)malloc(f->bytes), ours = (float *)malloc(f->bytes);
        db_file_tensor_to_f32(f, ref);
        db_preprocess(ctx, &p, &image, f->dim[0], f->dim[1], ours);
        for (i = 0; i < f->count; i++) {
            double e = fabs((double)ours[i] - (double)ref[i])
                * (p.do_normalize ? (double)p.image_std[i % 3] : 1) / (p.do_rescale
                                                                       ? p.rescale_factor : 1);
            if (!(e <= worst)) worst = e;
        }
        compared += f->count;
        free(ref), free(ours);
    }
    if (db_status(ctx) != DB_OK || !(worst < 1e-3) || compared < 1000)
        test_fail(label, "%s, off by up to %.3g of 255", db_last_error(ctx), worst);
    else test_pass(label, "%zu values of 5 pictures, none off by more than %.1e of 255", compared,
                   worst);
    db_clear_error(ctx);
}

/* ---- numbers ------------------------------------------------------------------------------- */

static void check_embedding(const db_safetensors *st, const char *name, const float *ours, size_t n)
{
    size_t count;
    float *ref = test_golden_values(st, name, &count);
    double e = count == n ? test_error(ours, ref, n, 0, NULL) : HUGE_VAL;
    if (e <= 1e-4) test_pass(name, "err %.1e", e);
    else test_fail(name, "err %.1e", e);
    free(ref);
}

static void check_score(const db_safetensors *st, const char *key, const char *name, double ours)
{
    size_t n;
    float *ref = test_golden_values(st, key, &n);
    double error = n == 1 ? fabs(ours - (double)*ref) / fabs((double)*ref) : HUGE_VAL;
    if (error <= 1e-3) test_pass(name, "%.5f, err %.1e", ours, error);
    else test_fail(name, "%.5f, not %.5f", ours, n ? (double)*ref : 0);
    free(ref);
}

static void check_scores(db_ctx *ctx, const db_safetensors *st)
{
    static const char *const prompts[] = {"a dog on the beach", "a dog on the beach", "a cat",
                                          "a dog on the beach", "a cat"};
    db_image all[13], *generated = all, *tuned = all + 5, *original = all + 9, real[3], held_out;
    db_evaluation e, part;
    db_scores s;
    float *out = (float *)calloc(300, sizeof *out);
    size_t k;
    memset(&e, 0, sizeof e);
    db_vit_load(ctx, METRICS "/dino", &e.dino);
    db_clip_load(ctx, METRICS "/clip", &e.clip);
    db_lpips_load(ctx, METRICS "/lpips", &e.lpips);
    if (db_status(ctx) == DB_OK) {
        for (k = 0; k < 13; k++) all[k] = picture(st, "variation", k);
        for (k = 0; k < 3; k++) real[k] = picture(st, "picture", k);
        held_out = picture(st, "picture", 4);
        db_vit_embed(e.dino, all, 13, out);
        check_embedding(st, "dino.variations", out, 13 * e.dino->config.hidden_size);
        db_clip_embed_images(e.clip, generated, 5, out);
        check_embedding(st, "clip.generated", out, 5 * e.clip->config.projection_dim);
        db_clip_embed_texts(e.clip, prompts, 5, out);
        check_embedding(st, "clip.texts", out, 5 * e.clip->config.projection_dim);
        db_lpips_distances(e.lpips, all, 13, out);
        check_embedding(st, "lpips.variations", out, 78);
        e.generated = generated, e.n_generated = 5, e.prompts = prompts;
        e.real = real, e.n_real = 3, e.held_out = &held_out, e.n_held_out = 1;
        e.class_images = tuned, e.original_class = original, e.n_class = e.n_original = 4;
        db_evaluate(ctx, &e, &s);
    }
    if (db_status(ctx) != DB_OK) test_fail("evaluation", "%s", db_last_error(ctx));
    else {
#define CHECK(field, name, what) check_score(st, "score." #field, name, s.field);
        DB_SCORES(CHECK)
#undef CHECK
        part = e; /* what is not there is not a number */
        part.n_real = 1, part.n_held_out = 0, part.prompts = NULL, part.lpips = NULL;
        db_evaluate(ctx, &part, &s);
        test_check(!isnan(s.dino) && isnan(s.dino_real) && isnan(s.dino_held_out) &&
                       isnan(s.clip_t) && isnan(s.div) && !isnan(s.pres)
                           && isnan(s.class_diversity),
                   "evaluation of parts", "numbers exactly where there are pictures and networks");
    }
    free(out);
    db_vit_free(e.dino), db_clip_free(e.clip), db_lpips_free(e.lpips);
    db_clear_error(ctx);
}

/* The paper's figures: PRES .493 as the floor, real images .774, Imagen .696. */
static void check_formulas(void)
{
    test_check(fabs(db_normalized_fidelity(.696, .774, .493) - .7224199) < 1e-6,
               "normalized fidelity of the paper", "0.722");
    test_check(fabs(db_drift(.664, .493, .712) - .7808219) < 1e-6, "drift of the paper", "0.781");
}

/* ---- bad files ----------------------------------------------------------------------------- */

static void check_bad_files(db_ctx *ctx, const db_safetensors *st)
{
    static const struct { const char *name, *text; db_result code; const char *says; } vit[] = {
        {"not a ViT", "{\"model_type\": \"dinov2\"}", DB_ERROR_UNSUPPORTED, "dinov2"},
        {"heads that do not divide",
         "{\"model_type\": \"vit\", \"hidden_size\": 16, \"num_attention_heads\": 3}",
         DB_ERROR_FORMAT, "3 heads"},
        {"a size of 0", "{\"model_type\": \"vit\", \"hidden_size\": 0}", DB_ERROR_FORMAT,
         "hidden_size"},
        {"an unknown activation", "{\"model_type\": \"vit\", \"hidden_act\": \"mish\"}",
         DB_ERROR_UNSUPPORTED, "mish"},
        {"grey pictures", "{\"model_type\": \"vit\", \"num_channels\": 1}", DB_ERROR_UNSUPPORTED,
         "num_channels"},
        {"patches larger than the picture", "{\"model_type\": \"vit\", \"image_size\": 8}",
         DB_ERROR_FORMAT, "patch_size"}},
      processor[] = {
        {"an unknown processor", "{\"image_processor_type\": \"SiglipImageProcessor\"}",
         DB_ERROR_UNSUPPORTED, "Siglip"},
        {"an unknown filter", "{\"image_processor_type\": \"ViTImageProcessor\", \"resample\": 1}",
         DB_ERROR_UNSUPPORTED, "resample"},
        {"two means",
         "{\"image_processor_type\": \"ViTImageProcessor\", \"image_mean\": [0.5, 0.5]}",
         DB_ERROR_FORMAT, "image_mean"},
        {"a deviation of 0",
         "{\"image_processor_type\": \"ViTImageProcessor\", \"image_std\": [0.5, 0, 0.5]}",
         DB_ERROR_FORMAT, "image_std"},
        {"a longest edge",
         "{\"image_processor_type\": \"ViTImageProcessor\", \"size\": {\"longest_edge\": 9}}",
         DB_ERROR_UNSUPPORTED, "longest_edge"}};
    db_vision_config v;
    db_clip_config cc;
    db_lpips_config lc;
    db_image_processor p;
    db_vit *m = NULL;
    db_clip *clip = NULL;
    db_lpips *l = NULL, *broken = NULL;
    db_image image = picture(st, "picture", 0), two[2];
    float out[3];
    size_t k;
    for (k = 0; k < sizeof vit / sizeof *vit; k++) {
        write_text("config.json", vit[k].text);
        db_vit_config_load(ctx, at("config.json"), &v);
        expect(ctx, vit[k].name, vit[k].code, "config.json", vit[k].says);
    }
    for (k = 0; k < sizeof processor / sizeof *processor; k++) {
        write_text("preprocessor_config.json", processor[k].text);
        db_image_processor_load(ctx, at("preprocessor_config.json"), &p);
        expect(ctx, processor[k].name, processor[k].code, "preprocessor_config.json",
               processor[k].says);
    }
    write_text("config.json", "{\"model_type\": \"clip\", \"text_config\": {}}");
    db_clip_config_load(ctx, at("config.json"), &cc);
    expect(ctx, "CLIP without vision", DB_ERROR_FORMAT, "config.json", "vision_config");
    /* transformers 4 leaves defaults out */
    write_text("config.json",
               "{\"model_type\": \"clip\", \"text_config\": {}, \"vision_config\": {}}");
    db_clip_config_load(ctx, at("config.json"), &cc);
    test_check(db_status(ctx) == DB_OK && cc.projection_dim == 512 && cc.eos_token_id == 49407 &&
                   cc.vision.hidden_size == 768 && cc.vision.num_hidden_layers == 12 &&
                   cc.vision.patch_size == 32 && cc.vision.hidden_act == DB_ACT_QUICK_GELU &&
                   cc.text.d_model == 512 && cc.text.num_heads == 8 && cc.text.d_ff == 2048 &&
                   cc.text.vocab_size == 49408,
               "CLIP's defaults", "those of ViT-B/32");
    db_clear_error(ctx);
    write_text("config.json", "{\"model_type\": \"lpips\", \"channels\": [4, 4]}");
    db_lpips_config_load(ctx, at("config.json"), &lc);
    expect(ctx, "LPIPS of two layers", DB_ERROR_FORMAT, "config.json", "channels");
    write_text("config.json",
               "{\"model_type\": \"lpips\", \"kernel_size\": [11, 5, 3, 9, 3]}");
    db_lpips_config_load(ctx, at("config.json"), &lc);
    expect(ctx, "LPIPS with nothing left", DB_ERROR_FORMAT, "config.json", "layer 3");
    memset(&v, 0, sizeof v), memset(&lc, 0, sizeof lc), cc.text.num_heads = 0;
    db_vit_create(ctx, &v, &m);
    expect(ctx, "a ViT of nothing", DB_ERROR_FORMAT, "db_vit_create", "is 0");
    db_clip_create(ctx, &cc, &clip);
    expect(ctx, "CLIP without heads", DB_ERROR_FORMAT, "db_clip_create", "is 0");
    db_lpips_create(ctx, &lc, &l);
    expect(ctx, "LPIPS of nothing", DB_ERROR_FORMAT, "db_lpips_create", "layer 0");
    db_image_processor_load(ctx, METRICS "/crop/preprocessor_config.json", &p);
    db_preprocess(ctx, &p, &image, 24, 24, out);
    expect(ctx, "a processor of another size", DB_ERROR_SHAPE, "16 x 16", "24 x 24");
    p.shortest_edge = 1 << 30; /* before it is cut to 16 x 16 */
    db_preprocess(ctx, &p, &image, 16, 16, out);
    expect(ctx, "a processor that enlarges a thousandfold", DB_ERROR_SHAPE, "is scaled to", "1e8");

    /* weights */
    write_text("config.json", "{\"model_type\": \"lpips\", \"channels\": [4, 6, 5, 4, 4]}");
    db_lpips_load(ctx, METRICS "/lpips", &l);
    db_params_fill(&l->params);
    write_params(ctx, &l->params, "model.safetensors", 0, "lin2.model.1.weight", NULL);
    db_lpips_load(ctx, scratch, &broken);
    expect(ctx, "a tensor missing", DB_ERROR_MISSING, "model.safetensors", "lin2.model.1.weight");
    write_params(ctx, &l->params, "model.safetensors", 0, NULL, "features.3.bias");
    db_lpips_load(ctx, scratch, &broken);
    expect(ctx, "a tensor of another shape", DB_ERROR_SHAPE,
           "model.safetensors: the tensor features.3.bias", "[7]");
    db_vit_load(ctx, scratch, &m);
    expect(ctx, "LPIPS where DINO should be", DB_ERROR_UNSUPPORTED, "config.json", "lpips");
    two[0] = image, two[1] = picture(st, "picture", 1);
    db_lpips_distances(l, two, 2, out);
    expect(ctx, "LPIPS of two sizes", DB_ERROR_SHAPE, "53 x 37", "71 x 90");
    two[1] = two[0] = picture(st, "picture", 2);
    db_lpips_distances(l, two, 2, out);
    expect(ctx, "LPIPS of a tiny picture", DB_ERROR_SHAPE, "max_pool", "window");
    two[0].w = two[0].h = two[1].w = two[1].h = 0;
    db_lpips_distances(l, two, 2, out);
    expect(ctx, "LPIPS of empty pictures", DB_ERROR_SHAPE, "[2, 0, 0, 3]", "empty");
    db_lpips_free(l);
    db_vit_load(ctx, METRICS "/dino", &m); /* its weights are still in the file */
    test_check(!db_ema_create(&m->params), "an average of weights not yet read", "refused");
    expect(ctx, "an average of weights not yet read, why", DB_ERROR_ARGUMENT, "db_params_fill", "");
    db_params_save(&m->params, m->params.data, at("unread.safetensors"), DB_F32);
    expect(ctx, "saving weights not yet read", DB_ERROR_ARGUMENT, "unread.safetensors",
           "db_params_fill");
    db_vit_free(m);
    {   /* a network for pictures of 24 x 24 given 16 x 16 */
        db_tape *t = NULL;
        size_t dim[4] = {1, 16, 16, 3};
        db_vit_load(ctx, METRICS "/dino", &m);
        db_tape_create(ctx, &t);
        db_vit_forward(t, m, db_input(t, DB_F32, 4, dim));
        expect(ctx, "a picture of another size", DB_ERROR_SHAPE, "[1, 16, 16, 3]", "24");
        db_tape_destroy(t);
        db_vit_free(m);
    }
    remove(at("config.json")), remove(at("preprocessor_config.json")),
        remove(at("model.safetensors"));
}

int main(int argc, char **argv)
{
    static const char *const processors[] = {"squash", "oblong", "crop", "frame", "plain"};
    db_config config = db_config_default();
    db_safetensors *st;
    db_ctx *ctx;
    size_t k;
    (void)argc;
    let_threads_sleep(argv);
    if (!make_scratch("test_metrics")) return 1;
    for (k = 0; k < 2; k++) {
        config.compute = k ? DB_BF16 : DB_F32;
        if (db_create(&ctx, &config) != DB_OK) return 1;
        if (k) printf("   in bf16\n");
        check_vit(ctx, "vit_a"), check_vit(ctx, "vit_b");
        check_clip(ctx, "clip_both_a"), check_clip(ctx, "clip_both_b");
        check_lpips(ctx, "lpips_a"), check_lpips(ctx, "lpips_b");
        if (!k) check_contrast(ctx);
        st = test_golden(ctx, METRICS "/golden.safetensors");
        check_scores(ctx, st); /* in f32, whatever the context computes in */
        db_safetensors_close(st);
        if (!k) db_destroy(ctx);
    }
    st = test_golden(ctx, METRICS "/golden.safetensors");
    for (k = 0; k < sizeof processors / sizeof *processors; k++)
        check_processor(ctx, st, processors[k]);
    check_formulas();
    check_bad_files(ctx, st);
    db_safetensors_close(st);
    db_destroy(ctx);
    remove(scratch);
    return test_summary();
}

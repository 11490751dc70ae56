/* test_lora.c - LoRA and 8-bit AdamW against peft and numpy (golden/make_lora.py); LoRA files, also
   diffusers' own, and what is no LoRA for a model. `build/test_lora FOLDER` leaves the golden LoRAs
   in FOLDER/if1_a and FOLDER/sd_a, as we write them, for check_sd.py. */
#define _POSIX_C_SOURCE 200809L
#include "dreambooth.h"

#include "test.h"
#include "networks.h"

#include <locale.h>

#define GOLDEN "tests/golden/lora/"
enum { RANK = 3, ALPHA = 5 };

/* A context's memory, of which no large piece is given. */
static void *no_large_allocate(void *user, size_t bytes)
{
    (void)user;
    return bytes > (size_t)1 << 24 ? NULL : malloc(bytes);
}
static void no_large_release(void *user, void *memory)
{
    (void)user;
    free(memory);
}

/* The golden LoRA's file, beside which networks/NAME has the inputs. */
static db_safetensors *lora_golden(db_ctx *ctx, const char *name)
{
    char path[300];
    snprintf(path, sizeof path, GOLDEN "%s.safetensors", name);
    return test_golden(ctx, path);
}

/* Runs the tape and compares the output and, unless the LoRA is merged, the factors' gradients. */
static void check(db_ctx *ctx, const char *name, db_tape *t, db_tensor out, const db_param_table *p,
                  db_safetensors *st)
{
    size_t n = db_count(out), dim[4], k;
    float *ref = golden(st, "out", dim), *a = (float *)malloc(n * sizeof(float)),
          *b = (float *)malloc(n * sizeof(float));
    db_run(t, 0, 0);
    db_download(t, out, a);
    if (out.n_dims == 4) to_nhwc(ref, dim, b);
    else
        for (k = 0; k < n; k++) b[k] = ref[k];
    check_output(ctx, name, a, b, n, 1e-5);
    if (db_status(ctx) == DB_OK && p->lora) check_gradients(name, &p->lora->params, "", st, 1e-3);
    free(ref), free(a), free(b);
}

/* A U-Net of networks/NAME with the golden LoRA, kept apart or merged. */
static void check_unet_lora(db_ctx *ctx, const char *name, int merged)
{
    db_unet_config c;
    db_unet *u = NULL;
    db_safetensors *in = test_golden(ctx, network_path(name, "golden.safetensors")),
                   *st = lora_golden(ctx, name);
    db_tape *t = NULL;
    unet_case r;
    char label[100];
    snprintf(label, sizeof label, "%s with a LoRA%s", name, merged ? " merged" : "");
    db_unet_config_load(ctx, network_path(name, "config.json"), &c);
    db_unet_create(ctx, &c, &u);
    if (db_status(ctx) != DB_OK || db_unet_add_lora(u, RANK, ALPHA, 0) != DB_OK) {
        test_fail(label, "%s", db_last_error(ctx));
        exit(test_summary());
    }
    fill_params(&u->params), fill_params(&u->params.lora->params);
    if (merged) db_lora_merge(&u->params);
    else db_params_require_grad(&u->params.lora->params);
    db_tape_create(ctx, &t);
    record_unet(t, u, in, &r);
    if (!merged) db_backward(t, r.loss);
    upload_unet(t, &r);
    check(ctx, label, t, r.out, &u->params, st);
    if (!merged && u->params.grad) test_fail(label, "the frozen weights have gradients");
    free_unet(&r);
    db_tape_destroy(t);
    db_safetensors_close(st), db_safetensors_close(in);
    db_unet_free(u);
}

static void check_text_lora(db_ctx *ctx, const char *name)
{
    db_text_config c;
    db_text_encoder *e = NULL;
    db_safetensors *in = test_golden(ctx, network_path(name, "golden.safetensors")),
                   *st = lora_golden(ctx, name);
    db_tape *t = NULL;
    db_tensor ids, mask, out, target, l;
    size_t d[4], dm[4], dg[4], k;
    float *words = golden(in, "in.input_ids", d), *valid = golden(in, "in.attention_mask", dm),
          *goal = golden(in, "target", dg);
    int32_t *numbers = (int32_t *)malloc(d[0] * d[1] * sizeof *numbers);
    for (k = 0; k < d[0] * d[1]; k++) numbers[k] = (int32_t)words[k];
    for (k = 0; valid && k < d[0] * d[1]; k++) valid[k] = valid[k] > 0 ? 0.0f : -1e9f;
    db_text_config_load(ctx, network_path(name, "config.json"), &c);
    db_text_encoder_create(ctx, &c, &e);
    if (db_status(ctx) != DB_OK || db_text_encoder_add_lora(e, RANK, ALPHA, 0) != DB_OK) {
        test_fail(name, "%s", db_last_error(ctx));
        exit(test_summary());
    }
    fill_params(&e->params), fill_params(&e->params.lora->params);
    db_params_require_grad(&e->params.lora->params);
    db_tape_create(ctx, &t);
    ids = db_input(t, DB_I32, 2, d), mask = valid ? db_input(t, DB_F32, 2, d) : db_none;
    out = db_text_forward(t, e, ids, mask);
    target = db_input(t, DB_F32, 3, out.dim);
    db_keep(t, out);
    l = db_mse(t, out, target, db_none, db_none, NULL);
    db_backward(t, l);
    db_upload(t, ids, numbers), db_upload(t, target, goal);
    if (valid) db_upload(t, mask, valid);
    check(ctx, name, t, out, &e->params, st);
    free(words), free(valid), free(goal), free(numbers);
    db_tape_destroy(t);
    db_safetensors_close(st), db_safetensors_close(in);
    db_text_encoder_free(e);
}

/* Ten updates of a large and a small parameter against numpy: weights, codes, scales. */
static void check_8bit(db_ctx *ctx)
{
    enum { LARGE = 5000, SMALL = 100, BLOCKS = 20, PADDED = 5008, ROOM = DB_GRAD_ROOM };
    db_safetensors *st = lora_golden(ctx, "adam8");
    db_param item[2];
    db_param_table table;
    db_optimizer o;
    db_optimizer_config c = db_optimizer_config_default();
    float *data = (float *)calloc(2 * (PADDED + SMALL) + ROOM, sizeof *data), start[LARGE], *ref;
    char name[2][8] = {"large", "small"}, stream[20];
    size_t n, k, i, dim[4], off = 0, far = 0;
    double scales = 0;
    memset(item, 0, sizeof item), memset(&table, 0, sizeof table);
    item[0].name = name[0], item[1].name = name[1];
    item[0].count = item[0].dim[0] = LARGE, item[1].count = item[1].dim[0] = SMALL,
    item[0].n_dims = item[1].n_dims = 1;
    item[0].data = data, item[1].data = data + PADDED;
    item[0].grad = table.grad = data + PADDED + SMALL,
    item[1].grad = table.grad + PADDED; /* room of ours, not the library's */
    table.ctx = ctx, table.item = item, table.n = 2, table.count = PADDED + SMALL,
    table.data = data;
    c.use_8bit_adam = 1, c.max_grad_norm = 0;
    for (k = 0; k < 2; k++) hashed(name[k], item[k].count, 1, item[k].data);
    db_optimizer_init(&o, &table, &c);
    for (n = 1; n <= 10 && db_status(ctx) == DB_OK; n++) {
        for (k = 0; k < 2; k++) {
            snprintf(stream, sizeof stream, "%s.%d", name[k], (int)n);
            hashed(stream, item[k].count, 1, item[k].grad);
            for (i = 0; i < item[k].count; i++) item[k].grad[i] = powf(item[k].grad[i], 5);
        }
        db_optimizer_step(&o, 1e-2f, 1, NULL);
    }
    for (k = 0; k < 2; k++) { /* the change against the change */
        double worst = 0, largest = 0;
        char label[60];
        ref = golden(st, name[k], dim);
        hashed(name[k], item[k].count, 1, start);
        for (i = 0; i < item[k].count; i++) {
            double d = fabs((double)(item[k].data[i] - ref[i])),
                   s = fabs((double)(ref[i] - start[i]));
            worst = d > worst || d != d ? d : worst, largest = s > largest ? s : largest;
        }
        snprintf(label, sizeof label, "ten updates with 8-bit moments, %s", name[k]);
        if (db_status(ctx) == DB_OK && worst <= 1e-4 * largest)
            test_pass(label, "worst %.1e of the largest change", worst / largest);
        else
            test_fail(label, "worst %.1e of the largest change; %s", worst / largest,
                      db_last_error(ctx));
        free(ref);
    }
    for (k = 0; k < 2; k++) {
        float *code = golden(st, k ? "v8" : "m8", dim), *scale = golden(st, k ? "v" : "m", dim);
        for (i = 0; i < LARGE; i++) {
            double d = fabs((double)(k ? o.v8 : o.m8)[i] - (double)code[i]);
            off += d > 0, far += d > 1;
        }
        for (i = 0; i < BLOCKS; i++)
            scales = test_worse(scales, fabs((double)((k ? o.v : o.m)[i] / scale[i]) - 1));
        free(code), free(scale);
    }
    if (off <= 10 && !far && scales <= 1e-4)
        test_pass("codes and scales of 8-bit moments",
                  "%zu of %d codes one off, scales within %.1e", off, 2 * LARGE, scales);
    else
        test_fail("codes and scales of 8-bit moments",
                  "%zu of %d codes off, %zu by more than one; scales within %.1e", off, 2 * LARGE,
                  far, scales);
    test_check(o.at[1] == BLOCKS && o.at[2] == BLOCKS + SMALL && o.at8[2] == LARGE,
               "8-bit moments' memory",
               "a byte for each number of a large parameter, four for each block");
    db_optimizer_free(&o);
    free(data);
    db_safetensors_close(st);
}

/* A pipeline of networks/sd_a and clip_a, weights hashed. */
static void pipeline(db_ctx *ctx, db_pipeline *p)
{
    db_unet_config u;
    db_text_config e;
    memset(p, 0, sizeof *p);
    p->ctx = ctx;
    db_unet_config_load(ctx, network_path("sd_a", "config.json"), &u),
        db_unet_create(ctx, &u, &p->unet);
    db_text_config_load(ctx, network_path("clip_a", "config.json"), &e),
        db_text_encoder_create(ctx, &e, &p->text_encoder);
    if (db_status(ctx) != DB_OK) {
        test_fail("pipeline", "%s", db_last_error(ctx));
        exit(test_summary());
    }
    fill_params(&p->unet->params), fill_params(&p->text_encoder->params);
}

static void pipeline_free(db_pipeline *p)
{
    db_unet_free(p->unet), db_text_encoder_free(p->text_encoder);
}

/* The largest difference of a LoRA's factors from the hash; 1e9 where there is none of that rank
   and alpha. */
static double difference(const db_lora *lora)
{
    double worst = 0;
    size_t k, i;
    if (!lora || lora->rank != RANK || lora->alpha != ALPHA) return 1e9;
    for (k = 0; k < lora->params.n; k++) {
        const db_param *item = &lora->params.item[k];
        float *ref = (float *)malloc(item->count * sizeof *ref);
        hashed(item->name, item->count, sqrtf(3.0f / (float)item->dim[1]), ref);
        for (i = 0; i < item->count; i++)
            worst = test_worse(worst, fabs((double)(item->data[i] - ref[i])));
        free(ref);
    }
    return worst;
}

static void check_files(db_ctx *ctx)
{
    db_pipeline p, q;
    db_safetensors *st = NULL;
    db_safetensors_writer *w;
    char path[400];
    double e;
    size_t dim[2] = {RANK, 4}, k;
    db_text_config t5;
    db_text_encoder *text = NULL;
    db_pipeline *lone = NULL;
    float zeros[64] = {0};

    pipeline(ctx, &p);
    db_pipeline_load_lora(&p, GOLDEN "diffusers.safetensors");
    e = test_worse(difference(p.unet->params.lora), difference(p.text_encoder->params.lora));
    if (db_status(ctx) == DB_OK && e <= 1e-3)
        test_pass("diffusers' LoRA file",
                  "factors as f16, within %.1e; rank and alpha from its metadata", e);
    else test_fail("diffusers' LoRA file", "factors within %.1e; %s", e, db_last_error(ctx));
    db_pipeline_load_lora(&p, GOLDEN "diffusers.safetensors");
    test_check(p.unet->params.lora != NULL, "a second LoRA leaves the first", "there");
    expect(ctx, "a second LoRA", DB_ERROR_ARGUMENT, "already", "");

    fill_params(&p.unet->params.lora->params), fill_params(&p.text_encoder->params.lora->params);
    db_pipeline_save_lora(&p, at("lora"), DB_F32);
    pipeline(ctx, &q);
    db_pipeline_load_lora(&q, at("lora"));
    e = test_worse(difference(q.unet->params.lora), difference(q.text_encoder->params.lora));
    if (db_status(ctx) == DB_OK && e == 0)
        test_pass("a LoRA there and back", "the same bits, rank and alpha");
    else test_fail("a LoRA there and back", "factors within %.1e; %s", e, db_last_error(ctx));
    pipeline_free(&q);

    db_pipeline_load(ctx, at("lora"), &lone);
    expect(ctx, "a LoRA's folder as a model", DB_ERROR_UNSUPPORTED, "LoRA", "model it belongs to");
    snprintf(path, sizeof path, "%s/pytorch_lora_weights.safetensors", at("lora"));
    db_pipeline_load(ctx, path, &lone);
    expect(ctx, "a LoRA's file as a model", DB_ERROR_UNSUPPORTED, "LoRA", "model it belongs to");

    /* the same tensors under diffusers' names as a set: what we write is what diffusers writes */
    db_safetensors_open(ctx, path, &st);
    {
        db_safetensors *theirs = lora_golden(ctx, "diffusers");
        size_t found = 0;
        for (k = 0; k < db_safetensors_count(theirs); k++) {
            const char *name = db_safetensors_at(theirs, k)->name;
            char other[400];
            snprintf(other, sizeof other, "%s", name);
            if (!db_safetensors_find(st, name) &&
                !strncmp(name, "text_encoder.", 13)) /* transformers 5 */
                snprintf(other, sizeof other, "text_encoder.text_model.%s", name + 13);
            found += db_safetensors_find(st, other) != NULL;
        }
        test_check(found == db_safetensors_count(theirs) && found == db_safetensors_count(st),
                   "a LoRA file's tensor names", "diffusers' own");
        db_safetensors_close(theirs);
    }
    db_safetensors_close(st);
    pipeline_free(&p);

    pipeline(ctx, &p);
    w = db_safetensors_create(ctx, at("kohya.safetensors"));
    db_safetensors_declare(w, "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
                           DB_F32, 2, dim);
    db_safetensors_write_f32(w, "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
                             zeros);
    db_safetensors_finish(w);
    db_pipeline_load_lora(&p, at("kohya.safetensors"));
    expect(ctx, "a LoRA with kohya's names", DB_ERROR_UNSUPPORTED, "kohya.safetensors",
           "save_lora_weights");
    w = db_safetensors_create(ctx, at("part.safetensors"));
    db_safetensors_declare(
        w, "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight",
        DB_F32, 2, dim);
    db_safetensors_write_f32(
        w, "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight",
        zeros);
    db_safetensors_finish(w);
    db_pipeline_load_lora(&p, at("part.safetensors"));
    test_check(!p.unet->params.lora, "a LoRA that failed to load", "leaves nothing behind");
    expect(ctx, "a LoRA with factors missing", DB_ERROR_MISSING, "part.safetensors", "is missing");
    w = db_safetensors_create(ctx, at("alphas.safetensors"));
    db_safetensors_add_metadata(w, "lora_adapter_metadata",
                                "{\"unet.r\": 3, \"unet.alpha_pattern\": {\"to_q\": 1}}");
    db_safetensors_declare(
        w, "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight",
        DB_F32, 2, dim);
    db_safetensors_write_f32(
        w, "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight",
        zeros);
    db_safetensors_finish(w);
    db_pipeline_load_lora(&p, at("alphas.safetensors"));
    expect(ctx, "a LoRA with layers' own alphas", DB_ERROR_UNSUPPORTED, "alphas.safetensors",
           "alpha_pattern");
    db_pipeline_load_lora(&p, at("nowhere"));
    expect(ctx, "a LoRA that is not there", DB_ERROR_FILE, "nowhere", "");
    db_pipeline_save_lora(&p, at("none"), DB_F32);
    expect(ctx, "saving no LoRA", DB_ERROR_ARGUMENT, "no LoRA", "");
    db_unet_add_lora(p.unet, 0, 1, 0);
    expect(ctx, "a LoRA of rank 0", DB_ERROR_ARGUMENT, "rank 0", "");
    pipeline_free(&p);
    db_text_config_load(ctx, network_path("t5_a", "config.json"), &t5),
        db_text_encoder_create(ctx, &t5, &text);
    db_text_encoder_add_lora(text, 4, 4, 0);
    expect(ctx, "a LoRA for T5", DB_ERROR_UNSUPPORTED, "T5", "");
    db_text_encoder_free(text);
}

/* The golden LoRAs as files, each in a folder of its network's name. */
static void leave(db_ctx *ctx, const char *folder)
{
    db_pipeline p;
    db_unet_config c;
    char path[400];
    pipeline(ctx, &p);
    db_unet_add_lora(p.unet, RANK, ALPHA, 0),
        db_text_encoder_add_lora(p.text_encoder, RANK, ALPHA, 0);
    fill_params(&p.unet->params.lora->params), fill_params(&p.text_encoder->params.lora->params);
    snprintf(path, sizeof path, "%s/sd_a", folder), db_pipeline_save_lora(&p, path, DB_F32);
    pipeline_free(&p);
    memset(&p, 0, sizeof p), p.ctx = ctx;
    db_unet_config_load(ctx, network_path("if1_a", "config.json"), &c),
        db_unet_create(ctx, &c, &p.unet);
    db_unet_add_lora(p.unet, RANK, ALPHA, 0);
    fill_params(&p.unet->params.lora->params);
    snprintf(path, sizeof path, "%s/if1_a", folder), db_pipeline_save_lora(&p, path, DB_F32);
    db_unet_free(p.unet);
    if (db_status(ctx) != DB_OK) test_fail(folder, "%s", db_last_error(ctx));
}

/* A rank is the file's claim: no room is made for it before the tensors are there in its shapes. */
static void check_claimed_rank(void)
{
    const char *name =
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight";
    size_t dim[2] = {1 << 16, 0};
    db_config config = db_config_default();
    db_ctx *ctx;
    db_safetensors_writer *w;
    db_pipeline p;
    float nothing = 0;
    config.allocate = no_large_allocate, config.release = no_large_release;
    if (db_create(&ctx, &config) != DB_OK) {
        test_fail("a claimed rank", "no context");
        return;
    }
    pipeline(ctx, &p);
    w = db_safetensors_create(ctx, at("claim.safetensors"));
    db_safetensors_declare(w, name, DB_F32, 2, dim);
    db_safetensors_write_f32(w, name, &nothing);
    db_safetensors_finish(w);
    db_pipeline_load_lora(&p, at("claim.safetensors"));
    expect(ctx, "a LoRA whose file claims a rank of 65536", DB_ERROR_SHAPE, "claim.safetensors", "");
    pipeline_free(&p);
    db_destroy(ctx);
}

/* The factor is a number of JSON in any locale. */
static void check_alpha(db_ctx *ctx)
{
    db_pipeline p, q;
    const char *locale;
    pipeline(ctx, &p), pipeline(ctx, &q);
    db_unet_add_lora(p.unet, RANK, 0.5f, 1);
    locale = setlocale(LC_NUMERIC, "de_DE.UTF-8");
    db_pipeline_save_lora(&p, at("half"), DB_F32);
    setlocale(LC_NUMERIC, "C");
    db_pipeline_load_lora(&q, at("half"));
    if (db_status(ctx) == DB_OK && q.unet->params.lora->alpha == 0.5f)
        test_pass("a LoRA's alpha of 0.5", "there and back in %s",
                  locale ? "a locale that writes 0,5" : "C: de_DE is not installed");
    else test_fail("a LoRA's alpha of 0.5", "%s", db_last_error(ctx));
    pipeline_free(&p), pipeline_free(&q);
}

/* A drawn as diffusers' "gaussian", B zero. */
static void check_start(db_ctx *ctx)
{
    db_pipeline p;
    double sum = 0, square = 0, b = 0;
    size_t k, i, n = 0;
    pipeline(ctx, &p);
    db_unet_add_lora(p.unet, 8, 8, 1);
    for (k = 0; db_status(ctx) == DB_OK && k < p.unet->params.lora->params.n; k++) {
        const db_param *item = &p.unet->params.lora->params.item[k];
        for (i = 0; i < item->count; i++) {
            double v = (double)item->data[i];
            if (k % 2) b = test_worse(b, fabs(v));
            else sum += v, square += v * v, n++;
        }
    }
    sum /= (double)n, square = sqrt(square / (double)n);
    db_lora_remove(&p.unet->params), db_lora_remove(&p.unet->params);
    test_check(!p.unet->params.lora, "a LoRA removed", "twice: it is gone");
    if (b == 0 && fabs(sum) < 0.02 && fabs(square * 8 - 1) < 0.1)
        test_pass("a new LoRA", "A has deviation %.3f = 1 / %.2f, B is zero", square, 1 / square);
    else
        test_fail("a new LoRA", "A has mean %.3f, deviation %.3f, B up to %.1e; %s", sum, square, b,
                  db_last_error(ctx));
    pipeline_free(&p);
}

int main(int argc, char **argv)
{
    static const char *const unets[] = {"if1_a", "if2_c", "sd_a", "sd_b"};
    db_config config = db_config_default();
    char command[400];
    db_ctx *ctx;
    size_t k;
    let_threads_sleep(argv);
    if (db_create(&ctx, &config) != DB_OK || !make_scratch("lora")) return 1;
    for (k = 0; k < sizeof unets / sizeof *unets; k++)
        check_unet_lora(ctx, unets[k], 0), check_unet_lora(ctx, unets[k], 1);
    check_text_lora(ctx, "clip_a");
    check_start(ctx);
    check_8bit(ctx);
    check_files(ctx);
    check_claimed_rank();
    check_alpha(ctx);
    if (argc > 1) leave(ctx, argv[1]);
    db_destroy(ctx);
    snprintf(command, sizeof command, "rm -rf '%s'", scratch);
    if (system(command)) printf("   %s is left\n", scratch);
    return test_summary();
}

/* Stable Diffusion's networks, schedulers and pipelines against diffusers and transformers: outputs
   and the gradient of every parameter, for what golden/make_sd.py computed; and what bad input
   gets.

   build/test_sd FOLDER leaves the files that it writes in FOLDER, for tool_sd.sh and check_sd.py;
   build/test_sd FOLDER PICTURES compares pictures that the tool drew from FOLDER/sd with
   diffusers'. */
#define _POSIX_C_SOURCE 200809L
#include <sys/stat.h>
#include "dreambooth.h"
#include "test.h"
#include "counting.h"
#include "networks.h"
#define IMAGES_IMPLEMENTATION
#include "images.h"

/* ---- the autoencoder ------------------------------------------------------------------------- */

static int same_table(db_param_table *a, db_param_table *b)
{
    return db_params_fill(a) == DB_OK && db_params_fill(b) == DB_OK &&
        !memcmp(a->data, b->data, a->count * sizeof(float));
}

/* Opens networks/NAME: its network with the hashed weights, its golden file, its input as
   [B,H,W,C]. */
static db_vae *open_vae(db_ctx *ctx, const char *name, db_safetensors **st, float **image,
                        size_t d[4])
{
    db_vae_config c;
    db_vae *v = NULL;
    float *x;
    size_t file[4];
    *image = NULL;
    if (db_vae_config_load(ctx, network_path(name, "config.json"), &c) == DB_OK)
        db_vae_create(ctx, &c, &v);
    if (db_safetensors_open(ctx, network_path(name, "golden.safetensors"), st) != DB_OK) return v;
    fill_params(&v->params);
    x = golden(*st, "in.sample", file);
    d[0] = file[0], d[1] = file[2], d[2] = file[3], d[3] = file[1];
    *image = (float *)malloc(d[0] * d[1] * d[2] * d[3] * sizeof(float));
    to_nhwc(x, file, *image);
    free(x);
    return v;
}

static void check_vae(db_ctx *ctx, const char *base, int decoder)
{
    char name[100];
    size_t d[4], file[4];
    db_safetensors *st = NULL;
    db_tape *t = NULL;
    float *image, *ref, *goal, *a;
    db_vae *v;
    db_tensor x, y, target, loss;
    snprintf(name, sizeof name, "%s_%s", base, decoder ? "decoder" : "encoder");
    v = open_vae(ctx, name, &st, &image, d);
    if (db_status(ctx) != DB_OK || db_params_require_grad(&v->params) != DB_OK ||
        db_tape_create(ctx, &t) != DB_OK) {
        test_fail(name, "%s", db_last_error(ctx));
        db_clear_error(ctx);
        return;
    }
    x = db_input(t, DB_F32, 4, d);
    y = decoder ? db_vae_decode_forward(t, v, x) : db_vae_encode_forward(t, v, x);
    db_keep(t, y);
    target = db_input(t, DB_F32, 4, y.dim);
    loss = db_mse(t, y, target, db_none, db_none, NULL);
    db_backward(t, loss);
    a = golden(st, "target", file);
    goal = (float *)malloc(db_count(y) * sizeof(float));
    to_nhwc(a, file, goal);
    db_upload(t, x, image), db_upload(t, target, goal);
    free(a), free(goal);
    db_run(t, 0, 0);
    a = (float *)malloc(db_count(y) * sizeof(float));
    db_download(t, y, a);
    goal = golden(st, "out", file);
    ref = (float *)malloc(db_count(y) * sizeof(float));
    to_nhwc(goal, file, ref);
    check_output(ctx, name, a, ref, db_count(y), 1e-4);
    if (db_status(ctx) == DB_OK)
        check_gradients(name, &v->params,
                        decoder ? "decoder.|post_quant_conv." : "encoder.|quant_conv.", st, 1e-3);
    free(image), free(ref), free(goal), free(a);
    db_tape_destroy(t);
    db_safetensors_close(st);
    db_vae_free(v);
    db_clear_error(ctx);
}

static void check_vae_tiled(db_ctx *ctx)
{
    size_t d[4], file[4], f, n;
    db_safetensors *st = NULL;
    float *image, *out, *ref, *goal;
    db_vae *v = open_vae(ctx, "vae_tiled", &st, &image, d);
    f = db_vae_factor(v);
    goal = golden(st, "out", file);
    n = file[0] * file[1] * file[2] * file[3];
    ref = (float *)malloc(n * sizeof(float)), out = (float *)calloc(n, sizeof(float));
    to_nhwc(goal, file, ref);
    if (file[2] != d[1] * f || file[3] != d[2] * f)
        test_fail("vae_tiled", "the golden file has another size");
    db_vae_decode(v, image, d[0], d[1], d[2], v->config.sample_size / f, out);
    check_output(ctx, "vae_tiled", out, ref, n, 1e-4);
    free(image), free(out), free(ref), free(goal);
    db_safetensors_close(st);
    db_vae_free(v);
}

/* ---- files ----------------------------------------------------------------------------------- */

/* Writes a table as two shards with their index. */
static void write_shards(db_ctx *ctx, const db_param_table *p, const char *folder)
{
    char name[100], *index = (char *)malloc(1 << 20);
    size_t shard, half = p->n / 2, k, n = 0;
    n += (size_t)sprintf(index + n, "{\"metadata\": {}, \"weight_map\": {");
    for (shard = 0; shard < 2; shard++) {
        db_param_table part = *p;
        part.item += shard * half, part.n = shard ? p->n - half : half;
        snprintf(name, sizeof name, "%s/diffusion_pytorch_model-0000%zu-of-00002.safetensors",
                 folder, shard + 1);
        write_params(ctx, &part, name, 0, NULL, NULL);
        for (k = 0; k < part.n; k++)
            n += (size_t)sprintf(index + n, "%s\"%s\": \"%s\"", n > 40 ? ", " : "",
                                 part.item[k].name, strrchr(name, '/') + 1);
    }
    sprintf(index + n, "}}");
    snprintf(name, sizeof name, "%s/diffusion_pytorch_model.safetensors.index.json", folder);
    write_text(name, index);
    free(index);
}

static void check_text_files(db_ctx *ctx)
{
    static const char config[] =
        "{\"model_type\": \"clip_text_model\", \"vocab_size\": 40, \"hidden_size\": 16, "
        "\"intermediate_size\": 24, "
        "\"num_hidden_layers\": 1, \"num_attention_heads\": 2, \"hidden_act\": \"quick_gelu\"}";
    static const char bias[] = "text_model.encoder.layers.0.mlp.fc1.bias";
    db_text_encoder *e = NULL, *f = NULL;
    db_text_config c;
    write_text("config.json", config);
    db_text_config_load(ctx, at("config.json"), &c);
    if (db_text_encoder_create(ctx, &c, &e) != DB_OK) {
        test_fail("clip files", "%s", db_last_error(ctx));
        db_clear_error(ctx);
        return;
    }
    fill_params(&e->params);
    write_params(ctx, &e->params, "model.safetensors", strlen("text_model."), NULL, NULL);
    db_text_encoder_load(ctx, scratch, &f);
    test_check(f && !f->params.data, "a loaded network", "its weights still in the file");
    test_check(f && same_table(&e->params, &f->params),
               "clip without the prefix text_model.", "the same weights");
    db_text_encoder_free(f);
    db_clear_error(ctx);
    write_params(ctx, &e->params, "model.safetensors", 0, bias, NULL);
    db_text_encoder_load(ctx, scratch, &f);
    expect(ctx, "clip, a tensor missing", DB_ERROR_MISSING, "model.safetensors", bias);
    write_params(ctx, &e->params, "model.safetensors", 0, NULL, bias);
    db_text_encoder_load(ctx, scratch, &f);
    expect(ctx, "clip, a tensor misshaped", DB_ERROR_SHAPE, "has shape [25]", "asks for [24]");
    remove(at("model.safetensors"));
    write_text(
        "model.safetensors.index.json",
        "{\"metadata\": {}, \"weight_map\": {\"text_model.final_layer_norm.bias\": \"model-0000");
    db_text_encoder_load(ctx, scratch, &f);
    expect(ctx, "clip, a truncated shard index", DB_ERROR_FORMAT, "model.safetensors.index.json",
           "");
    write_text("config.json", "{\"model_type\": \"siglip_text_model\"}");
    db_text_encoder_load(ctx, scratch, &f);
    expect(ctx, "a text encoder of another kind", DB_ERROR_UNSUPPORTED, "config.json",
           "siglip_text_model");
    write_text("config.json",
               "{\"model_type\": \"clip_text_model\", \"vocab_size\": 40, \"hidden_size\": 15, "
               "\"intermediate_size\": 24, "
               "\"num_hidden_layers\": 1, \"num_attention_heads\": 2}");
    db_text_encoder_load(ctx, scratch, &f);
    expect(ctx, "clip, heads that do not fit", DB_ERROR_FORMAT, "config.json", "hidden_size");
    remove(at("model.safetensors.index.json"));
    remove(at("config.json"));
    db_text_encoder_free(e);
}

/* networks/NAME/config.json with `to` in place of `from` must be refused with a sentence that holds
   `word`. */
static void refuse_config(db_ctx *ctx, const char *name, const char *from, const char *to,
                          const char *word)
{
    char path[300], text[8192], changed[8192], label[200];
    FILE *f;
    size_t n;
    const char *where;
    db_unet_config c;
    db_vae_config v;
    snprintf(path, sizeof path, "tests/golden/networks/%s/config.json", name);
    f = fopen(path, "rb");
    n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f) fclose(f);
    text[n] = 0;
    where = strstr(text, from);
    snprintf(label, sizeof label, "%s with %s", name, to);
    if (!where) {
        test_fail(label, "%s does not hold %s", path, from);
        return;
    }
    snprintf(changed, sizeof changed, "%.*s%s%s", (int)(where - text), text, to,
             where + strlen(from));
    write_text("config.json", changed);
    if (strncmp(name, "vae", 3)) db_unet_config_load(ctx, at("config.json"), &c);
    else db_vae_config_load(ctx, at("config.json"), &v);
    expect(ctx, label,
           strstr(word, "level") ? DB_ERROR_FORMAT : DB_ERROR_UNSUPPORTED, "config.json", word);
    remove(at("config.json"));
}

static void check_configs(db_ctx *ctx)
{
    refuse_config(ctx, "sd_a", "\"CrossAttnDownBlock2D\"", "\"AttnDownBlock2D\"",
                  "AttnDownBlock2D");
    refuse_config(ctx, "sd_a", "\"UNetMidBlock2DCrossAttn\"", "\"UNetMidBlock3D\"",
                  "UNetMidBlock3D");
    refuse_config(ctx, "sd_a", "\"UNetMidBlock2DCrossAttn\"", "null", "null");
    refuse_config(ctx, "if3_a", "{", "{\"resnet_skip_time_act\": true,", "in the middle");
    refuse_config(ctx, "sd_a", "\"attention_head_dim\": 2", "\"attention_head_dim\": 3",
                  "attention_head_dim");
    refuse_config(ctx, "sd_a", "\"layers_per_block\": 1", "\"layers_per_block\": [1]", "2 levels");
    refuse_config(ctx, "sd_a", "\"layers_per_block\": 1", "\"layers_per_block\": [1, 1, 1]",
                  "3 entries for 2 levels");
    refuse_config(ctx, "sd_a", "\"norm_num_groups\": 2", "\"norm_num_groups\": 3", "level 0");
    refuse_config(ctx, "sd_a", "\"norm_num_groups\": 2",
                  "\"norm_num_groups\": 2, \"addition_embed_type\": \"text_time\"", "text_time");
    refuse_config(ctx, "sd_a", "\"norm_num_groups\": 2",
                  "\"norm_num_groups\": 2, \"conv_in_kernel\": 1", "conv_in_kernel");
    refuse_config(ctx, "sd_a", "\"norm_num_groups\": 2",
                  "\"norm_num_groups\": 2, \"center_input_sample\": true", "center_input_sample");
    refuse_config(ctx, "sd_a", "\"norm_num_groups\": 2",
                  "\"norm_num_groups\": 2, \"num_class_embeds\": 10", "num_class_embeds");
    refuse_config(ctx, "sd_a", "\"norm_num_groups\": 2",
                  "\"norm_num_groups\": 2, \"resnet_time_scale_shift\": \"spatial\"", "spatial");
    refuse_config(ctx, "sd_a", "\"norm_num_groups\": 2",
                  "\"norm_num_groups\": 2, \"resnet_skip_time_act\": true", "resnet_skip_time_act");
    refuse_config(ctx, "vae_a_encoder", "\"DownEncoderBlock2D\"", "\"AttnDownEncoderBlock2D\"",
                  "AttnDownEncoderBlock2D");
    refuse_config(ctx, "vae_a_encoder", "\"latent_channels\": 4",
                  "\"latent_channels\": 4, \"shift_factor\": 0.1", "shift_factor");
    refuse_config(ctx, "vae_a_encoder", "\"norm_num_groups\": 2", "\"norm_num_groups\": 3",
                  "level 0");
    refuse_config(ctx, "if1_a", "\"text_proj\"", "\"image_proj\"", "image_proj");
}

/* ---- schedulers ------------------------------------------------------------------------------ */

/* One of diffusers' trajectories, with the linear network of make_sd.py: every step, and the
   timesteps. */
static void check_trajectory(db_ctx *ctx, db_safetensors *st, const char *name)
{
    enum { B = 2, C = 3, P = 4, N = B * C * P };
    static const size_t dims[4] = {B, C, 2, 2};
    char label[200], key[200];
    const db_json *run;
    const char *sampler;
    float x[N], field[N], noise[N], row[N], pred[2 * N], want[N], *ref;
    int32_t *times;
    double worst = 0;
    size_t k, i, steps, dim[4], CP, wrong = 0;
    db_schedule s;
    db_trajectory tr;
    snprintf(label, sizeof label, "scheduler %s", name);
    snprintf(key, sizeof key, "%s.run", name);
    run = db_json_parse(ctx, key, db_safetensors_metadata(st, key),
                        strlen(db_safetensors_metadata(st, key)));
    write_text("scheduler_config.json", db_safetensors_metadata(st, name));
    db_schedule_load(ctx, at("scheduler_config.json"), &s);
    remove(at("scheduler_config.json"));
    steps = (size_t)db_json_int(run, "steps", 0), sampler = db_json_string(run, "sampler", "");
    if (db_trajectory_init(&s,
                           !strncmp(sampler, "DDPM", 4)       ? DB_SAMPLER_DDPM
                               : !strncmp(sampler, "DDIM", 4) ? DB_SAMPLER_DDIM
                                                              : DB_SAMPLER_DPMSOLVER,
                           steps, N, &tr) != DB_OK) {
        test_fail(label, "%s", db_last_error(ctx));
        db_clear_error(ctx);
        return;
    }
    tr.eta = (float)db_json_number(run, "eta", 0),
    tr.use_clipped_model_output = (int)db_json_int(run, "clipped", 0);
    CP = db_json_int(run, "learned", 0) && tr.sampler != DB_SAMPLER_DDIM ? 2 * C : C;
    hashed("trajectory.x", N, 1.7f, row), to_nhwc(row, dims, x);
    hashed("trajectory.field", N, 0.5f, row), to_nhwc(row, dims, field);
    snprintf(key, sizeof key, "%s.t", name);
    times = (int32_t *)malloc(steps * sizeof *times);
    steps = db_safetensors_find(st, key)->count;
    memcpy(times, db_safetensors_find(st, key)->data, steps * sizeof *times);
    for (k = 0; k < tr.n && k < steps; k++) wrong += (size_t)times[k] != tr.timestep[k];
    snprintf(key, sizeof key, "%s.x", name);
    ref = golden(st, key, dim);
    for (k = 0; k < tr.n && k < steps && !wrong; k++) {
        double e;
        snprintf(key, sizeof key, "trajectory.noise.%zu", k);
        hashed(key, N, 1.7f, row), to_nhwc(row, dims, noise);
        for (i = 0; i < N; i++) {
            pred[i / C * CP + i % C] =
                (float)db_json_number(run, "network", 1) * 0.4f * x[i] + field[i];
            if (CP > C)
                pred[i / C * CP + C + i % C] =
                    s.variance_type == DB_VARIANCE_LEARNED ? fabsf(field[i] * 0.2f) : field[i];
        }
        db_trajectory_step(&tr, k, B, P, C, CP, pred, noise, x);
        to_nhwc(ref + k * N, dims, want);
        e = test_error(x, want, N, 1e-6, NULL);
        worst = e > worst ? e : worst;
    }
    if (wrong || tr.n != steps)
        test_fail(label, "%zu of %zu timesteps differ, there should be %zu", wrong, tr.n, steps);
    else if (!(worst <= 1e-5)) test_fail(label, "error %.1e over %zu steps", worst, tr.n);
    else test_pass(label, "error %.1e over %zu steps", worst, tr.n);
    free(times), free(ref);
    db_trajectory_free(&tr);
    db_schedule_free(&s);
    db_json_free(run);
    db_clear_error(ctx);
}

/* Predictions that are no numbers are noticed, whatever clips them. As many steps of DPM-Solver++ as
   there are timesteps, of which two are then the same, stay finite. */
static void check_not_numbers(db_ctx *ctx)
{
    static const db_sampler sampler[] = {DB_SAMPLER_DDPM, DB_SAMPLER_DDIM, DB_SAMPLER_DPMSOLVER};
    enum { N = 12 };
    float pred[N], x[N], noise[N] = {0};
    size_t k, i, noticed = 0;
    db_schedule s;
    db_trajectory tr;
    if (db_schedule_init(ctx, "scaled_linear", 1e-4, .02, 1000, &s) != DB_OK) {
        test_fail("not a number", "%s", db_last_error(ctx));
        return;
    }
    for (k = 0; k < 6; k++) {
        for (i = 0; i < N; i++) pred[i] = NAN, x[i] = 1;
        s.thresholding = k >= 3, s.clip_sample = 1;
        db_trajectory_init(&s, sampler[k % 3], 5, N, &tr);
        tr.use_clipped_model_output = 1;
        db_trajectory_step(&tr, 0, 1, 4, 3, 3, pred, noise, x);
        noticed += db_status(ctx) == DB_ERROR_NUMERIC;
        db_clear_error(ctx);
        db_trajectory_free(&tr);
    }
    test_check(noticed == 6, "predictions that are no numbers", "are noticed");
    s.thresholding = s.clip_sample = 0;
    for (k = 0; k < 2; k++) {
        s.solver_type = k ? DB_SOLVER_HEUN : DB_SOLVER_MIDPOINT;
        db_trajectory_init(&s, DB_SAMPLER_DPMSOLVER, 1000, N, &tr);
        for (i = 0; i < N; i++) x[i] = (float)i - 5;
        for (i = 0; i < tr.n; i++) {
            size_t j;
            for (j = 0; j < N; j++) pred[j] = x[j] * .9f;
            db_trajectory_step(&tr, i, 1, 4, 3, 3, pred, noise, x);
        }
        test_check(db_status(ctx) == DB_OK && x[0] - x[0] == 0 && x[0] < 0 && x[N - 1] > 0,
                   k ? "1000 steps, heun" : "1000 steps, midpoint", "finite");
        db_clear_error(ctx);
        db_trajectory_free(&tr);
    }
    db_schedule_free(&s);
}

static void check_schedulers(db_ctx *ctx)
{
    static const char *const bad[][2] = {
        {"\"beta_schedule\": \"sigmoid\"", "sigmoid"},
        {"\"prediction_type\": \"flow_prediction\"", "flow_prediction"},
        {"\"timestep_spacing\": \"karras\"", "karras"},
        {"\"variance_type\": \"huge\"", "huge"},
        {"\"solver_type\": \"bh3\"", "bh3"},
        {"\"trained_betas\": [0.1]", "trained_betas"},
        {"\"final_sigmas_type\": \"half\"", "half"}};
    static const char *const undrawn[][2] = {
        {"\"solver_order\": 3", "solver_order"},
        {"\"use_karras_sigmas\": true", "use_karras_sigmas"},
        {"\"algorithm_type\": \"sde-dpmsolver++\"", "sde-dpmsolver++"}};
    db_safetensors *st = test_golden(ctx, "tests/golden/schedulers.safetensors");
    const char *cases = db_safetensors_metadata(st, "cases");
    const db_json *list = db_json_parse(ctx, "cases", cases, strlen(cases)), *item;
    db_schedule s;
    size_t k;
    for (item = list->first; item; item = item->next) check_trajectory(ctx, st, item->string);
    for (k = 0; k < sizeof bad / sizeof *bad; k++) {
        char text[200];
        snprintf(text, sizeof text, "{\"_class_name\": \"DPMSolverMultistepScheduler\", %s}",
                 bad[k][0]);
        write_text("scheduler_config.json", text);
        db_schedule_load(ctx, at("scheduler_config.json"), &s);
        snprintf(text, sizeof text, "scheduler with %s", bad[k][0]);
        expect(ctx, text, DB_ERROR_UNSUPPORTED, "scheduler_config.json", bad[k][1]);
    }
    for (k = 0; k < sizeof undrawn / sizeof *undrawn; k++) {
        char text[200];
        db_trajectory tr;
        snprintf(text, sizeof text, "{\"_class_name\": \"DPMSolverMultistepScheduler\", %s}",
                 undrawn[k][0]);
        write_text("scheduler_config.json", text);
        db_schedule_load(ctx, at("scheduler_config.json"), &s);
        db_trajectory_init(&s, DB_SAMPLER_DDPM, 5, 1, &tr), db_trajectory_free(&tr);
        test_check(db_status(ctx) == DB_OK, undrawn[k][1], "its schedule trains, DDPM draws");
        db_trajectory_init(&s, DB_SAMPLER_DPMSOLVER, 5, 1, &tr), db_trajectory_free(&tr);
        snprintf(text, sizeof text, "drawing with %s", undrawn[k][0]);
        expect(ctx, text, DB_ERROR_UNSUPPORTED, undrawn[k][1], "another scheduler");
        db_schedule_free(&s);
    }
    write_text("scheduler_config.json",
               "{\"_class_name\": \"UniPCMultistepScheduler\", \"solver_type\": \"bh2\", "
               "\"solver_order\": 3, \"use_karras_sigmas\": true}");
    db_schedule_load(ctx, at("scheduler_config.json"), &s);
    test_check(db_status(ctx) == DB_OK && s.sampler == DB_SAMPLER_DPMSOLVER && s.solver_order == 2 &&
                   !s.unsupported[0],
               "another class's solver", "is not DPM-Solver++'s");
    db_schedule_free(&s), db_clear_error(ctx);
    write_text("scheduler_config.json", "{\"beta_end\": 1.5}");
    db_schedule_load(ctx, at("scheduler_config.json"), &s);
    expect(ctx, "scheduler with a beta above 1", DB_ERROR_FORMAT, "scheduler_config.json",
           "beta_end");
    write_text("scheduler_config.json", "[]");
    db_schedule_load(ctx, at("scheduler_config.json"), &s);
    expect(ctx, "a scheduler that is a list", DB_ERROR_FORMAT, "scheduler_config.json", "");
    remove(at("scheduler_config.json"));
    db_json_free(list);
    db_safetensors_close(st);
}

/* Timesteps that fall on a half, which the order of roundings decides: numpy's, as in diffusers. */
static void check_ties(db_ctx *ctx)
{
    db_schedule s;
    db_trajectory linspace, trailing;
    db_schedule_init(ctx, "scaled_linear", 1e-4, .02, 1000, &s);
    db_trajectory_init(&s, DB_SAMPLER_DPMSOLVER, 30, 1, &linspace);
    s.timestep_spacing = DB_SPACING_TRAILING;
    db_trajectory_init(&s, DB_SAMPLER_DDIM, 48, 1, &trailing);
    test_check(db_status(ctx) == DB_OK && linspace.timestep[0] == 999 &&
                   linspace.timestep[15] == 499 && trailing.timestep[3] == 936,
               "timesteps on a half", "diffusers'");
    db_trajectory_free(&linspace), db_trajectory_free(&trailing);
    db_schedule_free(&s);
}

/* The attention's weights under their names of before 2023, as 1x1 convolutions too. */
static void check_vae_files(db_ctx *ctx)
{
    static const char *const old[4][2] = {{".to_q.", ".query."},
                                          {".to_k.", ".key."},
                                          {".to_v.", ".value."},
                                          {".to_out.0.", ".proj_attn."}};
    db_vae *v = NULL, *u = NULL;
    db_vae_config c;
    db_safetensors_writer *w;
    float *row = (float *)calloc(1 << 20, sizeof *row);
    size_t k, j, pass, renamed = 0;
    db_vae_config_load(ctx, "tests/golden/networks/vae_a_encoder/config.json", &c);
    if (db_vae_create(ctx, &c, &v) != DB_OK) {
        test_fail("old names", "%s", db_last_error(ctx));
        return;
    }
    fill_params(&v->params);
    w = db_safetensors_create(ctx, at("diffusion_pytorch_model.safetensors"));
    for (pass = 0; pass < 2; pass++)
        for (k = 0; k < v->params.n; k++) {
            const db_param *p = &v->params.item[k];
            const char *found = NULL;
            char name[256];
            size_t dim[4] = {1, 1, 1, 1};
            int rank = p->n_dims;
            memcpy(dim, p->dim, (size_t)rank * sizeof *dim);
            snprintf(name, sizeof name, "%s", p->name);
            for (j = 0; j < 4; j++) {
                found = strstr(p->name, old[j][0]);
                if (!found) continue;
                snprintf(name, sizeof name, "%.*s%s%s", (int)(found - p->name), p->name, old[j][1],
                         found + strlen(old[j][0]));
                if (rank == 2) rank = 4;
                renamed++;
            }
            db_param_get(p, p->data, row);
            if (!pass) db_safetensors_declare(w, name, DB_F32, rank, dim);
            else db_safetensors_write_f32(w, name, row);
        }
    db_safetensors_finish(w);
    free(row);
    {
        FILE *in = fopen("tests/golden/networks/vae_a_encoder/config.json", "rb");
        char text[4096];
        size_t n = in ? fread(text, 1, sizeof text - 1, in) : 0;
        text[n] = 0;
        if (in) fclose(in);
        write_text("config.json", text);
    }
    db_vae_load(ctx, scratch, &u);
    test_check(u && renamed == 32 && same_table(&u->params, &v->params),
               "vae, attention under its old names", "the same weights");
    db_clear_error(ctx);
    remove(at("config.json"));
    remove(at("diffusion_pytorch_model.safetensors"));
    db_vae_free(u);
    db_vae_free(v);
}

/* ---- pipelines ------------------------------------------------------------------------------- */

static void copy_file(const char *from, const char *name)
{
    FILE *in = fopen(from, "rb"), *out = fopen(at(name), "wb");
    char buffer[65536];
    size_t n;
    while (in && out && (n = fread(buffer, 1, sizeof buffer, in)) > 0) fwrite(buffer, 1, n, out);
    if (in) fclose(in);
    if (out) fclose(out);
}

/* Makes the pipeline of golden/pipelines/sd in scratch/sd, with the hashed weights in shards and
   variants. */
static db_pipeline *make_pipeline(db_ctx *ctx)
{
    static const char *const files[] = {"model_index.json", "scheduler/scheduler_config.json",
                                        "text_encoder/config.json", "unet/config.json",
                                        "vae/config.json"};
    static const char *const folders[] = {"sd",           "sd/scheduler", "sd/text_encoder",
                                          "sd/tokenizer", "sd/unet",      "sd/vae"};
    db_text_config tc;
    db_unet_config uc;
    db_vae_config vc;
    db_text_encoder *e = NULL;
    db_unet *u = NULL;
    db_vae *v = NULL;
    db_pipeline *p = NULL;
    char from[300], name[100];
    size_t k;
    for (k = 0; k < sizeof folders / sizeof *folders; k++) mkdir(at(folders[k]), 0777);
    for (k = 0; k < sizeof files / sizeof *files; k++) {
        snprintf(from, sizeof from, "tests/golden/pipelines/sd/%s", files[k]);
        snprintf(name, sizeof name, "sd/%s", files[k]);
        copy_file(from, name);
    }
    copy_file("tests/golden/tokenizers/clip/vocab.json", "sd/tokenizer/vocab.json");
    copy_file("tests/golden/tokenizers/clip/merges.txt", "sd/tokenizer/merges.txt");
    if (db_text_config_load(ctx, at("sd/text_encoder/config.json"), &tc) == DB_OK &&
        db_text_encoder_create(ctx, &tc, &e) == DB_OK &&
        db_unet_config_load(ctx, at("sd/unet/config.json"), &uc) == DB_OK &&
        db_unet_create(ctx, &uc, &u) == DB_OK &&
        db_vae_config_load(ctx, at("sd/vae/config.json"), &vc) == DB_OK &&
        db_vae_create(ctx, &vc, &v) == DB_OK) {
        fill_params(&e->params), fill_params(&u->params), fill_params(&v->params);
        write_params(ctx, &e->params, "sd/text_encoder/model.safetensors", strlen("text_model."),
                     NULL, NULL);
        write_params(ctx, &v->params, "sd/vae/diffusion_pytorch_model.fp16.safetensors", 0, NULL,
                     NULL);
        write_shards(ctx, &u->params, "sd/unet");
        db_pipeline_load(ctx, at("sd"), &p);
    }
    db_text_encoder_free(e), db_unet_free(u), db_vae_free(v);
    return p;
}

static int same_weights(const db_pipeline *a, const db_pipeline *b)
{
    return a && b && same_table(&a->unet->params, &b->unet->params) &&
        same_table(&a->vae->params, &b->vae->params) &&
        same_table(&a->text_encoder->params, &b->text_encoder->params);
}

static const struct {
    const char *name;
    db_sampler sampler;
    size_t steps;
    float guidance;
} runs[] = {{"ddim", DB_SAMPLER_DDIM, 7, 3},
            {"dpm", DB_SAMPLER_DPMSOLVER, 8, 5},
            {"unguided", DB_SAMPLER_DDIM, 4, 1}};

/* Pictures FOLDER/NAME/0000K.png, that the tool drew, against diffusers': 2 of 255 apart. */
static void check_drawn(db_ctx *ctx, const char *folder)
{
    db_safetensors *st = test_golden(ctx, "tests/golden/pipelines/sd/golden.safetensors");
    size_t k, b, i, n;
    for (k = 0; k < sizeof runs / sizeof *runs; k++) {
        float *ref = test_golden_values(st, runs[k].name, &n);
        char path[400], label[100], err[IMG_ERROR_SIZE];
        double worst = 0;
        for (b = 0; b < 2; b++) {
            img_image image;
            snprintf(path, sizeof path, "%s/%s/%05zu.png", folder, runs[k].name, b);
            if (img_load(path, &image, err, sizeof err) != IMG_OK || image.w * image.h * 6 != n) {
                worst = HUGE_VAL;
                continue;
            }
            for (i = 0; i < n / 2; i++)
                worst = test_worse(worst, fabs((double)image.rgb[i] -
                                               255 * (double)ref[b * (n / 2) + i]));
            img_free(&image);
        }
        snprintf(label, sizeof label, "drawn by the tool, %s", runs[k].name);
        if (worst <= 2) test_pass(label, "at most %.2f of 255 from diffusers' pictures", worst);
        else test_fail(label, "%.2f of 255 from diffusers' pictures", worst);
        free(ref);
    }
    db_safetensors_close(st);
}

/* diffusers' pictures from the same latents, and the same through files there and back. */
static void check_pipeline(db_ctx *ctx)
{
    static const char *const prompts[] = {"a photo of a dog", "Zwei Katzen, 3 cups"};
    enum { H = 16, W = 24, N = 2 * H * W * 3 };
    db_safetensors *st = test_golden(ctx, "tests/golden/pipelines/sd/golden.safetensors");
    db_pipeline *p = make_pipeline(ctx), *q = NULL, *r = NULL;
    float latents[2 * 4 * 8 * 12], *out = (float *)calloc(N, sizeof *out),
                                   *again = (float *)calloc(N, sizeof *again);
    size_t k, i;
    FILE *stale;
    if (!p) {
        test_fail("pipeline", "%s", db_last_error(ctx));
        db_clear_error(ctx);
        return;
    }
    hashed("pipeline.latents", sizeof latents / sizeof *latents, 1.7f, latents);
    {
        static const size_t dim[] = {2, 4, 8, 12};
        db_safetensors_writer *w = db_safetensors_create(ctx, at("latents.safetensors"));
        db_safetensors_declare(w, "latents", DB_F32, 4, dim);
        db_safetensors_write_f32(w, "latents", latents);
        db_safetensors_finish(w);
    }
    test_check(p->scheduler.sampler == DB_SAMPLER_DPMSOLVER, "pipeline with PNDM",
               "DPM-Solver++ stands in for it");
    for (k = 0; k < sizeof runs / sizeof *runs; k++) {
        db_sample_config c = db_sample_config_default();
        char label[100];
        size_t n;
        float *ref = test_golden_values(st, runs[k].name, &n);
        double e;
        c.sampler = runs[k].sampler, c.num_inference_steps = runs[k].steps,
        c.guidance_scale = runs[k].guidance, c.latents = latents;
        snprintf(label, sizeof label, "pipeline %s", runs[k].name);
        db_generate(p, prompts, 2, "blurry", &c, H, W, out);
        for (i = 0; i < N; i++) again[i] = (out[i] + 1) / 2;
        e = test_error(again, ref, N, 0, &i);
        if (db_status(ctx) != DB_OK || n != N || !(e <= 1e-3))
            test_fail(label, "error %.1e at %zu: %s", e, i, db_last_error(ctx));
        else test_pass(label, "error %.1e", e);
        free(ref);
        db_clear_error(ctx);
    }
    { /* guidance in the first steps alone: of four, with the share just below and at a step's end */
        static const float stop[] = {0, .24f, .25f, .99f, 1};
        float *drawn = (float *)malloc(5 * N * sizeof *drawn);
        double same, first, third;
        db_sample_config c = db_sample_config_default();
        c.sampler = DB_SAMPLER_DDIM, c.num_inference_steps = 4, c.latents = latents;
        c.guidance_scale = 1;
        db_generate(p, prompts, 2, NULL, &c, H, W, out);
        c.guidance_scale = 3;
        for (k = 0; k < 5; k++) {
            c.guidance_stop = stop[k];
            db_generate(p, prompts, 2, NULL, &c, H, W, drawn + k * N);
        }
        same = test_error(drawn, out, N, 0, NULL) + test_error(drawn + N, out, N, 0, NULL);
        first = test_error(drawn + 2 * N, out, N, 0, NULL);
        third = test_error(drawn + 3 * N, drawn + 4 * N, N, 0, NULL);
        test_check(same == 0 && first > 1e-4 && third > 1e-4, "pipeline, guidance stops",
                   "as without it, one of four steps, three of four");
        free(drawn);
    }
    { /* one picture alone is the same; latents drawn depend on the seed */
        db_sample_config c = db_sample_config_default();
        c.sampler = DB_SAMPLER_DDIM, c.num_inference_steps = 3, c.seed = 5;
        db_generate(p, prompts, 2, NULL, &c, H, W, out);
        c.seed = 6;
        db_generate(p, prompts + 1, 1, NULL, &c, H, W, again);
        test_check(test_error(again, out + N / 2, N / 2, 0, NULL) < 1e-5,
                   "pipeline, one picture of two", "the same picture");
        c.vae_tile = 8;
        db_generate(p, prompts + 1, 1, NULL, &c, H, W, again);
        test_check(test_error(again, out + N / 2, N / 2, 0, NULL) > 1e-5,
                   "pipeline, decoded in tiles", "another picture");
        db_generate(p, prompts, 1, NULL, &c, H + 1, W, again);
        expect(ctx, "pipeline, an odd height", DB_ERROR_ARGUMENT, "height 17", "multiples of 2");
    }
    db_pipeline_save(p, at("saved"), DB_F32);
    write_text("saved/unet/diffusion_pytorch_model.safetensors.index.json", "{}");
    db_pipeline_save(p, at("saved"), DB_F32);
    stale = fopen(at("saved/unet/diffusion_pytorch_model.safetensors.index.json"), "rb");
    test_check(!stale, "pipeline saved over shards", "their index is gone");
    if (stale) fclose(stale);
    db_pipeline_load(ctx, at("saved"), &q);
    test_check(same_weights(p, q), "pipeline saved as a directory", "the same weights");
    { /* its text encoder was there before, and the index says that there is none */
        db_pipeline *textless = NULL;
        db_pipeline_save(p, at("textless"), DB_F32);
        db_pipeline_load(ctx, at("textless"), &textless);
        if (textless) {
            db_text_encoder_free(textless->text_encoder), textless->text_encoder = NULL;
            db_pipeline_save(textless, at("textless"), DB_F32);
        }
        db_pipeline_free(textless);
        db_pipeline_load(ctx, at("textless"), &textless);
        test_check(textless && !textless->text_encoder, "pipeline saved without its text encoder",
                   "loaded without it");
        db_pipeline_free(textless);
    }
    { /* what else model_index.json says comes along, in JSON's writing */
        char text[4096];
        db_pipeline *named = NULL;
        const db_json *j;
        FILE *f = fopen(at("saved/model_index.json"), "rb");
        text[f ? fread(text, 1, sizeof text - 1, f) : 0] = 0;
        if (f) fclose(f);
        if ((f = fopen(at("saved/model_index.json"), "wb")) != NULL) {
            fprintf(f, "{\"_name_or_path\": \"C:\\\\models\\t\\\"a\\\"\",%s", text + 1);
            fclose(f);
        }
        db_pipeline_load(ctx, at("saved"), &named);
        if (named) db_pipeline_save(named, at("named"), DB_F32);
        j = db_json_load(ctx, at("named/model_index.json"));
        test_check(!strcmp(db_json_string(j, "_name_or_path", ""), "C:\\models\t\"a\""),
                   "a path in model_index.json", "saved as it was loaded");
        db_json_free(j);
        db_pipeline_free(named);
    }
    db_pipeline_release(q, 1, 1);
    db_pipeline_save(q, at("released"), DB_F32);
    db_pipeline_load(ctx, at("released"), &r);
    test_check(q && !q->vae && !q->text_encoder && same_weights(p, r),
               "pipeline saved after a release", "the same weights");
    if (q) {
        db_sample_config c = db_sample_config_default();
        db_generate(q, prompts, 1, NULL, &c, H, W, again);
        expect(ctx, "drawing after a release", DB_ERROR_MISSING, "text encoder", "released");
        db_pipeline_save_ldm(q, at("released.safetensors"), DB_F32);
        expect(ctx, "one file after a release", DB_ERROR_MISSING, "text encoder", "released");
    }
    db_pipeline_free(r), r = NULL;
    db_pipeline_free(q);
    db_pipeline_save_ldm(p, at("ldm.safetensors"), DB_F32);
    db_pipeline_load(ctx, at("ldm.safetensors"), &q);
    test_check(same_weights(p, q) && !q->tokenizer && q->scheduler.steps_offset == 1,
               "pipeline saved as one file", "the same weights");
    mkdir(at("tokenizer"), 0777);
    copy_file("tests/golden/tokenizers/clip/vocab.json", "tokenizer/vocab.json");
    copy_file("tests/golden/tokenizers/clip/merges.txt", "tokenizer/merges.txt");
    db_pipeline_free(q);
    db_pipeline_load(ctx, at("ldm.safetensors"), &q);
    if (q) db_pipeline_save(q, at("back"), DB_F32);
    db_pipeline_load(ctx, at("back"), &r);
    test_check(same_weights(p, r) && r->tokenizer, "one file as a directory again",
               "the same weights and a tokenizer");
    db_pipeline_free(r), r = NULL;
    if (q) db_pipeline_save(q, at("old"), DB_F32);
    write_text("old/scheduler/scheduler_config.json", "{\"_class_name\": \"PNDMScheduler\"}");
    db_pipeline_load(ctx, at("old"), &r);
    test_check(r && !r->scheduler.clip_sample && r->scheduler.steps_offset == 1,
               "an old scheduler of latents", "does not clip, steps from 1");
    if (r) db_pipeline_save_ldm(r, at("old.safetensors"), DB_F32);
    db_pipeline_free(r), r = NULL;
    db_pipeline_load(ctx, at("old.safetensors"), &r);
    test_check(r && !r->scheduler.clip_sample && r->scheduler.steps_offset == 1,
               "an old scheduler in one file", "does not clip, steps from 1");
    if (db_status(ctx) != DB_OK) test_fail("pipeline files", "%s", db_last_error(ctx));
    db_clear_error(ctx);
    db_pipeline_free(p), db_pipeline_free(q), db_pipeline_free(r);
    db_safetensors_close(st);
    free(out), free(again);
}

/* A Stable Diffusion 1.x file without our metadata: the configuration comes from the tensors'
   shapes. */
static void check_ldm_inference(db_ctx *ctx)
{
    static const char *const configs[][2] = {
        {"unet",
         "{\"in_channels\": 4, \"out_channels\": 4, \"sample_size\": 64, \"block_out_channels\": "
         "[32, 64, 64, 64], \"layers_per_block\": 2, \"attention_head_dim\": 8, "
         "\"cross_attention_dim\": 64, \"down_block_types\": [\"CrossAttnDownBlock2D\", "
         "\"CrossAttnDownBlock2D\", \"CrossAttnDownBlock2D\", "
         "\"DownBlock2D\"], \"up_block_types\": [\"UpBlock2D\", \"CrossAttnUpBlock2D\", "
         "\"CrossAttnUpBlock2D\", \"CrossAttnUpBlock2D\"]}"},
        {"vae",
         "{\"block_out_channels\": [32, 64], \"layers_per_block\": 2, \"latent_channels\": 4, "
         "\"sample_size\": 512, \"down_block_types\": [\"DownEncoderBlock2D\", "
         "\"DownEncoderBlock2D\"], \"up_block_types\": [\"UpDecoderBlock2D\", "
         "\"UpDecoderBlock2D\"]}"},
        {"text",
         "{\"model_type\": \"clip_text_model\", \"vocab_size\": 40, \"hidden_size\": 64, "
         "\"intermediate_size\": 24, \"num_hidden_layers\": 3, "
         "\"num_attention_heads\": 1}"}};
    static const char *const original[] = {
        "model.diffusion_model.time_embed.2.bias",
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.out.2.weight",
        "model.diffusion_model.input_blocks.1.0.in_layers.0.weight",
        "model.diffusion_model.input_blocks.3.0.op.weight",
        "model.diffusion_model.input_blocks.4.0.skip_connection.weight",
        "model.diffusion_model.input_blocks.11.0.emb_layers.1.weight",
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "model.diffusion_model.middle_block.2.out_layers.3.weight",
        "model.diffusion_model.output_blocks.2.1.conv.weight",
        "model.diffusion_model.output_blocks.5.2.conv.weight",
        "model.diffusion_model.output_blocks.8.2.conv.bias",
        "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.attn2.to_k.weight",
        "first_stage_model.encoder.down.0.downsample.conv.weight",
        "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight",
        "first_stage_model.encoder.mid.block_1.conv1.weight",
        "first_stage_model.encoder.mid.attn_1.norm.weight",
        "first_stage_model.decoder.mid.attn_1.proj_out.bias",
        "first_stage_model.decoder.up.1.upsample.conv.weight",
        "first_stage_model.decoder.up.0.block.2.conv2.weight",
        "first_stage_model.decoder.norm_out.weight",
        "first_stage_model.quant_conv.weight",
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.2.self_attn.q_proj.weight"};
    db_safetensors *st = NULL;
    const db_file_tensor *f = NULL;
    size_t k;
    db_pipeline p, *q = NULL, *none = NULL;
    FILE *made;
    db_unet_config uc, wrong;
    db_vae_config vc;
    db_text_config tc;
    memset(&p, 0, sizeof p);
    p.ctx = ctx, p.directory = (char *)"";
    write_text("unet.json", configs[0][1]), write_text("vae.json", configs[1][1]),
        write_text("text.json", configs[2][1]);
    db_unet_config_load(ctx, at("unet.json"), &uc), db_vae_config_load(ctx, at("vae.json"), &vc),
        db_text_config_load(ctx, at("text.json"), &tc);
    db_unet_create(ctx, &uc, &p.unet), db_vae_create(ctx, &vc, &p.vae),
        db_text_encoder_create(ctx, &tc, &p.text_encoder);
    if (db_status(ctx) == DB_OK) {
        fill_params(&p.unet->params), fill_params(&p.vae->params),
            fill_params(&p.text_encoder->params);
        db_pipeline_save_ldm(&p, at("bare.safetensors"), DB_F32);
        db_pipeline_load(ctx, at("bare.safetensors"), &q);
    }
    if (!q) test_fail("a file without metadata", "%s", db_last_error(ctx));
    else {
        test_check(same_weights(&p, q), "a file without metadata", "the same weights");
        test_check(!memcmp(&q->unet->config, &uc, sizeof uc) &&
                       !memcmp(&q->vae->config, &vc, sizeof vc) &&
                       !memcmp(&q->text_encoder->config, &tc, sizeof tc),
                   "its configuration", "the one it was made with");
    }
    if (db_safetensors_open(ctx, at("bare.safetensors"), &st) == DB_OK) {
        for (k = 0; k < sizeof original / sizeof *original && db_safetensors_find(st, original[k]);
             k++) {}
        test_check(k == sizeof original / sizeof *original, "the original layout's names",
                   k < sizeof original / sizeof *original ? original[k] : "");
        f = db_safetensors_find(st, "first_stage_model.decoder.mid.attn_1.q.weight");
        test_check(f && f->n_dims == 4 && f->dim[0] == 64 && f->dim[3] == 1,
                   "the original autoencoder's attention", "1x1 convolutions");
    }
    db_safetensors_close(st);
    db_clear_error(ctx);
    db_pipeline_load(ctx, at("nowhere"), &none);
    db_pipeline_save(q, at("after"), DB_F16);
    expect(ctx, "saving after an error", DB_ERROR_MISSING, "nowhere", "");
    if ((made = fopen(at("after/model_index.json"), "rb"))) fclose(made);
    test_check(!made, "saving after an error", "nothing is written");
    db_pipeline_free(q), q = NULL;

    db_vae_free(p.vae), vc.out_channels = 4; /* would be drawn past the picture */
    db_vae_create(ctx, &vc, &p.vae);
    db_pipeline_save_ldm(&p, at("four.safetensors"), DB_F32);
    db_pipeline_load(ctx, at("four.safetensors"), &q);
    expect(ctx, "an autoencoder of four channels", DB_ERROR_UNSUPPORTED, "four.safetensors", "of 4");
    db_unet_free(p.unet), db_vae_free(p.vae), db_text_encoder_free(p.text_encoder);
    wrong = uc, wrong.time_embedding_dim = 0;
    db_unet_create(ctx, &wrong, &p.unet);
    expect(ctx, "a U-Net without a time embedding", DB_ERROR_FORMAT, "db_unet_create", "0 channels");
    wrong = uc, wrong.cross_attention_norm = 1, wrong.cross_attention_dim = 40;
    wrong.mid_block_type = DB_BLOCK_SIMPLE_CROSS_ATTN;
    db_unet_create(ctx, &wrong, &p.unet);
    expect(ctx, "a U-Net's text without 32 groups", DB_ERROR_FORMAT, "db_unet_create", "32 groups");
    uc.transformer_layers_per_block[0] = 300;
    db_unet_create(ctx, &uc, &p.unet);
    expect(ctx, "a U-Net of 1500 transformers", DB_ERROR_FORMAT, "db_unet_create", "more than 1024");
    uc.attention_head_dim[1] = 0;
    db_unet_create(ctx, &uc, &p.unet);
    expect(ctx, "a U-Net without heads", DB_ERROR_FORMAT, "db_unet_create", "level 1");
    uc.n_levels = 0;
    db_unet_create(ctx, &uc, &p.unet);
    expect(ctx, "a U-Net without levels", DB_ERROR_FORMAT, "db_unet_create", "not 0");
    vc.n_levels = 9;
    db_vae_create(ctx, &vc, &p.vae);
    expect(ctx, "an autoencoder of 9 levels", DB_ERROR_FORMAT, "db_vae_create", "9 levels");
    tc.num_heads = 0;
    db_text_encoder_create(ctx, &tc, &p.text_encoder);
    expect(ctx, "a text encoder without heads", DB_ERROR_FORMAT, "db_text_encoder_create", "is 0");
    memset(&tc, 0, sizeof tc);
    tc.vocab_size = tc.d_ff = 1, tc.d_model = tc.d_kv = tc.num_heads = 1 << 20, tc.num_layers = 4;
    tc.relative_attention_num_buckets = 32, tc.relative_attention_max_distance = 128;
    db_text_encoder_create(ctx, &tc, &p.text_encoder);
    expect(ctx, "a text encoder whose sizes overflow", DB_ERROR_MEMORY, "out of memory", "");
    tc.d_model = tc.d_kv = tc.num_heads = 1, tc.num_layers = 1 << 20;
    db_text_encoder_create(ctx, &tc, &p.text_encoder);
    expect(ctx, "a text encoder of a million layers", DB_ERROR_FORMAT, "more than 1024", "");
}

/* Every 41st allocation of loading, drawing and saving fails once; the files are those of
   check_pipeline. */
static void check_memory(void)
{
    static const char *const prompt[] = {"a dog"};
    db_ctx *ctx = counting_context();
    long i, before = counting_live, failures = 0;
    db_result r = DB_ERROR_MEMORY;
    float *out = (float *)malloc(16 * 24 * 3 * sizeof *out);
    for (i = 0; r == DB_ERROR_MEMORY; i += 41) {
        db_pipeline *p = NULL, *q = NULL;
        db_sample_config c = db_sample_config_default();
        c.sampler = DB_SAMPLER_DPMSOLVER, c.num_inference_steps = 2, c.vae_tile = 8;
        counting_fail_at = counting_calls + i;
        if (db_pipeline_load(ctx, at("sd"), &p) == DB_OK &&
            db_generate(p, prompt, 1, NULL, &c, 16, 24, out) == DB_OK &&
            db_pipeline_save(p, at("again"), DB_F16) == DB_OK &&
            db_pipeline_save_ldm(p, at("again.safetensors"), DB_BF16) == DB_OK)
            db_pipeline_load(ctx, at("again.safetensors"), &q);
        counting_fail_at = -1;
        db_pipeline_free(p), db_pipeline_free(q);
        r = db_status(ctx);
        failures += r == DB_ERROR_MEMORY;
        if (r != DB_ERROR_MEMORY && r != DB_OK)
            test_fail("failing allocations", "allocation %ld: %s", i, db_last_error(ctx));
        if (counting_live != before)
            test_fail("failing allocations", "allocation %ld leaves %ld blocks", i,
                      counting_live - before),
                before = counting_live;
        db_clear_error(ctx);
    }
    test_check(failures > 20, "failing allocations", "more than 20 were noticed");
    free(out);
    db_destroy(ctx);
}

/* Checkpoints of other kinds, by one tensor that is typical of each. */
static void check_refusals(db_ctx *ctx)
{
    static const char *const files[][2] = {
        {"conditioner.embedders.1.model.positional_embedding", "XL"},
        {"cond_stage_model.model.token_embedding.weight", "OpenCLIP"},
        {"lora_unet_down_blocks_0.lora_down.weight", "LoRA"},
        {"unet.down_blocks.0.attentions.0.to_q.lora_A.weight", "LoRA"},
        {"double_blocks.0.img_attn.qkv.weight", "FLUX"},
        {"model.diffusion_model.joint_blocks.0.x", "Stable Diffusion 3"},
        {"control_model.time_embed.0.weight", "ControlNet"},
        {"emb_params", "Textual Inversion"},
        {"down_blocks.0.resnets.0.conv1.weight", "model_index.json"},
        {"text_model.encoder.layers.0.mlp.fc1.bias", "model_index.json"},
        {"something", "lacks"}};
    static const char *const classes[] = {"StableDiffusionXLPipeline", "StableDiffusion3Pipeline",
                                          "FluxPipeline", "StableDiffusionInpaintPipeline",
                                          "KandinskyPipeline"};
    db_pipeline *p = NULL;
    size_t k, one = 1;
    char text[200];
    for (k = 0; k < sizeof files / sizeof *files; k++) {
        float zero = 0;
        db_safetensors_writer *w = db_safetensors_create(ctx, at("other.safetensors"));
        db_safetensors_declare(w, files[k][0], DB_F32, 1, &one);
        db_safetensors_write_f32(w, files[k][0], &zero);
        db_safetensors_finish(w);
        snprintf(text, sizeof text, "a file with %s", files[k][0]);
        db_pipeline_load(ctx, at("other.safetensors"), &p);
        expect(ctx, text, DB_ERROR_UNSUPPORTED, "other.safetensors", files[k][1]);
    }
    write_text("cut.safetensors", "cut off here");
    db_pipeline_load(ctx, at("cut.safetensors"), &p);
    expect(ctx, "a file cut off", DB_ERROR_FORMAT, "cut.safetensors", "");
    write_text("model.ckpt", "PK\3\4archive");
    db_pipeline_load(ctx, at("model.ckpt"), &p);
    expect(ctx, "a pickle", DB_ERROR_UNSUPPORTED, "pickle", "save_file");
    write_text("model.gguf", "GGUF");
    db_pipeline_load(ctx, at("model.gguf"), &p);
    expect(ctx, "a GGUF file", DB_ERROR_UNSUPPORTED, "GGUF", "safetensors");
    for (k = 0; k < sizeof classes / sizeof *classes; k++) {
        snprintf(text, sizeof text, "{\"_class_name\": \"%s\"}", classes[k]);
        write_text("model_index.json", text);
        db_pipeline_load(ctx, scratch, &p);
        expect(ctx, classes[k], DB_ERROR_UNSUPPORTED, "model_index.json", classes[k]);
    }
    remove(at("model_index.json"));
    write_text("adapter_config.json", "{}");
    db_pipeline_load(ctx, scratch, &p);
    expect(ctx, "a folder with a LoRA", DB_ERROR_UNSUPPORTED, "LoRA", scratch);
    remove(at("adapter_config.json"));
    db_pipeline_load(ctx, at("nowhere"), &p);
    expect(ctx, "a folder without a pipeline", DB_ERROR_MISSING, "nowhere", "model_index.json");
}

int main(int argc, char **argv)
{
    static const char *const clips[] = {"clip_a", "clip_b", "clip_c"},
                             *const unets[] = {"sd_a", "sd_b", "sd_c"},
                             *const vaes[] = {"vae_a", "vae_b", "vae_c"};
    size_t k;
    db_ctx *ctx;
    let_threads_sleep(argv);
    if (argc > 1) snprintf(scratch, sizeof scratch, "%s", argv[1]);
    else if (!make_scratch("test_sd")) return 1;
    if (db_create(&ctx, NULL) != DB_OK) return 1;
    if (argc > 2) {
        check_drawn(ctx, argv[2]);
        db_destroy(ctx);
        return test_summary();
    }
    for (k = 0; k < sizeof clips / sizeof *clips; k++) check_text_encoder(ctx, clips[k]);
    check_text_files(ctx);
    for (k = 0; k < sizeof unets / sizeof *unets; k++) check_unet(ctx, unets[k], 1e-4, 1e-3);
    check_configs(ctx);
    for (k = 0; k < 2 * (sizeof vaes / sizeof *vaes); k++) check_vae(ctx, vaes[k / 2], k % 2);
    check_vae_tiled(ctx);
    check_vae_files(ctx);
    check_schedulers(ctx);
    check_not_numbers(ctx);
    check_ties(ctx);
    check_pipeline(ctx);
    check_memory();
    check_ldm_inference(ctx);
    check_refusals(ctx);
    db_destroy(ctx);
    if (argc < 2) {
        char command[400];
        snprintf(command, sizeof command, "rm -rf '%s'", scratch);
        if (system(command)) return 1;
    }
    return test_summary();
}

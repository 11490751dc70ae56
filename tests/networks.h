/* networks.h - what the tests of whole networks share: weights from a hash, golden files,
   gradients.

   Include after test.h. The golden files are written by golden/make_networks.py's `save`. */
#ifndef NETWORKS_H
#define NETWORKS_H

/* The weights that make_networks.py drew: uniform in [-scale, scale) from the name's CRC-32 and the
   index. */
static inline uint32_t crc32_of(const char *s)
{
    uint32_t c = 0xFFFFFFFFu;
    int k;
    for (; *s; s++)
        for (c ^= (uint8_t)*s, k = 0; k < 8; k++) c = c & 1 ? c >> 1 ^ 0xEDB88320u : c >> 1;
    return ~c;
}

static inline void hashed(const char *name, size_t n, float scale, float *out)
{
    uint32_t key = crc32_of(name);
    size_t i;
    for (i = 0; i < n; i++) {
        uint32_t x = (uint32_t)(i * 2654435761u) + key;
        x = (x ^ x >> 16) * 0x7FEB352Du;
        x = (x ^ x >> 15) * 0x846CA68Bu;
        x ^= x >> 16;
        out[i] = ((float)(x >> 8) / 8388608.0f - 1) * scale;
    }
}

static inline void fill_params(db_param_table *p)
{
    size_t k, i;
    float *row = (float *)malloc(sizeof(float) << 20);
    for (k = 0; k < p->n; k++) {
        db_param *item = &p->item[k];
        size_t fan = item->n_dims > 1 ? item->count / item->dim[0] : 4, length = strlen(item->name);
        hashed(item->name, item->count, sqrtf(3.0f / (float)fan), row);
        if (item->n_dims == 1 && length > 6 && !strcmp(item->name + length - 6, "weight"))
            for (i = 0; i < item->count; i++) row[i] += 1;
        db_param_set(item, item->data, row);
    }
    free(row);
}

/* [B,C,H,W] of the files <-> [B,H,W,C] */
static inline void to_nhwc(const float *in, const size_t *d, float *out)
{
    size_t b, c, p, P = d[2] * d[3];
    for (b = 0; b < d[0]; b++)
        for (c = 0; c < d[1]; c++)
            for (p = 0; p < P; p++) out[(b * P + p) * d[1] + c] = in[(b * d[1] + c) * P + p];
}

static inline float *golden(db_safetensors *st, const char *name, size_t dim[4])
{
    const db_file_tensor *f = db_safetensors_find(st, name);
    float *x;
    if (!f) return NULL;
    x = (float *)malloc((f->count + 1) * sizeof(float));
    db_file_tensor_to_f32(f, x);
    memset(dim, 0, 4 * sizeof *dim);
    memcpy(dim, f->dim, (size_t)(f->n_dims < 4 ? f->n_dims : 4) * sizeof *dim);
    return x;
}

/* Whether a name begins with one of the prefixes, a list with bars between them. */
static inline int begins_with(const char *name, const char *prefixes)
{
    const char *bar;
    for (; (bar = strchr(prefixes, '|')) != NULL; prefixes = bar + 1)
        if (!strncmp(name, prefixes, (size_t)(bar - prefixes))) return 1;
    return !strncmp(name, prefixes, strlen(prefixes));
}

/* Compares the gradient of every parameter (or of those whose names begin with `prefixes`) with the
   file; prints how many there were. Some gradients are zero in theory (a key's bias drops out of
   the softmax; a bias that feeds only a normalisation of single channels): where the reference is
   below 1e-7, ours is held to an absolute bound and the name printed. */
static inline void check_gradients(const char *name, const db_param_table *p, const char *prefixes,
                                   db_safetensors *st, double limit)
{
    size_t k, i, n = 0, in_file = 0, wanted = 0, dim[4];
    double worst = 0;
    char text[300], where[300] = "";
    for (k = 0; k < db_safetensors_count(st); k++)
        in_file += !strncmp(db_safetensors_at(st, k)->name, "grad.", 5);
    for (k = 0; k < p->n; k++) {
        float *ref, *ours;
        double e, size = 0;
        if (!begins_with(p->item[k].name, prefixes)) continue;
        wanted++;
        snprintf(text, sizeof text, "grad.%s", p->item[k].name);
        ref = golden(st, text, dim);
        if (!ref) continue;
        ours = (float *)malloc(p->item[k].count * sizeof(float));
        db_param_get(&p->item[k], p->item[k].grad, ours);
        for (i = 0; i < p->item[k].count; i++)
            size = fabs((double)ref[i]) > size ? fabs((double)ref[i]) : size;
        e = test_error(ours, ref, p->item[k].count, size < 1e-7 ? 1e-1 : 1e-7, NULL);
        if (size < 1e-7)
            printf("   zero in theory: %s, ours within %.1e\n", p->item[k].name, e * 0.1);
        if (e > worst || e != e) worst = e, snprintf(where, sizeof where, "%s", p->item[k].name);
        n++;
        free(ref);
        free(ours);
    }
    snprintf(text, sizeof text, "%s gradients", name);
    if (worst <= limit && n == wanted && n == in_file)
        test_pass(text, "%zu of %zu parameters compared, worst %.1e at %s", n, in_file, worst,
                  where);
    else
        test_fail(text, "%zu of %zu parameters compared, of %zu in the file; worst %.1e at %s", n,
                  wanted, in_file, worst, where);
}

/* One line for a network's output. */
static inline void check_output(db_ctx *ctx, const char *name, const float *ours, const float *ref,
                                size_t n, double limit)
{
    char label[200];
    double e = test_error(ours, ref, n, 1e-6, NULL);
    snprintf(label, sizeof label, "%s output (%s)", name, db_isa(ctx));
    if (db_status(ctx) != DB_OK) test_fail(label, "%s", db_last_error(ctx));
    else if (!(e <= limit)) test_fail(label, "error %.1e", e);
    else test_pass(label, "error %.1e", e);
}

/* Where a file of networks/NAME lies; until the next call. */
static inline const char *network_path(const char *name, const char *file)
{
    static char path[300];
    snprintf(path, sizeof path, "tests/golden/networks/%s/%s", name, file);
    return path;
}

/* Opens the golden file of a network and gives its parameters gradients and the hashed weights. 0
   after a failure, this one or an earlier one, which it reports: `params` is then not looked at. */
static inline int open_network(db_ctx *ctx, const char *name, db_param_table *params,
                               db_safetensors **st)
{
    if (db_status(ctx) == DB_OK)
        db_safetensors_open(ctx, network_path(name, "golden.safetensors"), st);
    if (db_status(ctx) != DB_OK) {
        test_fail(name, "%s", db_last_error(ctx));
        db_clear_error(ctx);
        return 0;
    }
    db_params_require_grad(params);
    fill_params(params);
    return 1;
}

/* A U-Net on a tape with its loss, as golden files have it. */
typedef struct unet_case {
    db_tensor x, time, words, labels, target, out, loss;
    float *sample, *timestep, *text, *classes, *goal; /* of the file */
    size_t d_sample[4], d_goal[4];
} unet_case;

/* Records network and loss on the inputs of a golden file; *r is to be freed with free_unet. */
static inline void record_unet(db_tape *t, db_unet *u, db_safetensors *st, unet_case *r)
{
    size_t d_text[4], one[4], d[4];
    r->sample = golden(st, "in.sample", r->d_sample);
    r->timestep = golden(st, "in.timestep", one);
    r->text = golden(st, "in.encoder_hidden_states", d_text);
    r->classes = golden(st, "in.class_labels", one);
    r->goal = golden(st, "target", r->d_goal);
    d[0] = r->d_sample[0], d[1] = r->d_sample[2], d[2] = r->d_sample[3], d[3] = r->d_sample[1];
    r->x = db_input(t, DB_F32, 4, d), r->time = db_input(t, DB_F32, 1, d);
    r->words = db_input(t, DB_F32, 3, d_text);
    r->labels = r->classes ? db_input(t, DB_F32, 1, d) : db_none;
    r->out = db_unet_forward(t, u, r->x, r->time, r->words, r->labels, NULL);
    d[3] = u->config.out_channels;
    r->target = db_input(t, DB_F32, 4, d);
    db_keep(t, r->out);
    r->loss = db_mse(t, r->out, r->target, db_none, db_none, NULL);
}

static inline void upload_unet(db_tape *t, const unet_case *r)
{
    const size_t *d = r->d_sample, *g = r->d_goal;
    float *image = (float *)malloc((d[0] * d[1] + g[0] * g[1]) * d[2] * d[3] * sizeof(float));
    to_nhwc(r->sample, d, image), db_upload(t, r->x, image);
    to_nhwc(r->goal, g, image), db_upload(t, r->target, image);
    db_upload(t, r->time, r->timestep), db_upload(t, r->words, r->text);
    if (r->classes) db_upload(t, r->labels, r->classes);
    free(image);
}

static inline void free_unet(unet_case *r)
{
    free(r->sample), free(r->timestep), free(r->text), free(r->classes), free(r->goal);
}

/* Fails where the loss is further than `limit` from the golden file's, relatively. */
static inline void check_loss(const char *name, db_safetensors *st, float loss, double limit)
{
    size_t dim[4];
    float *ref = golden(st, "loss", dim);
    if (!ref || !(fabs((double)loss - (double)*ref) <= limit * (double)*ref))
        test_fail(name, "loss %.6f, not %.6f", (double)loss, ref ? (double)*ref : NAN);
    free(ref);
}

static inline void check_unet(db_ctx *ctx, const char *name, double limit, double grad_limit)
{
    db_unet_config c;
    db_unet *u = NULL;
    db_safetensors *st = NULL;
    db_tape *t = NULL;
    unet_case r;
    size_t n, dim[4];
    float *ref, *a, *b, loss = 0;
    db_unet_config_load(ctx, network_path(name, "config.json"), &c);
    db_unet_create(ctx, &c, &u);
    if (!open_network(ctx, name, u ? &u->params : NULL, &st)) return;
    db_tape_create(ctx, &t);
    record_unet(t, u, st, &r);
    db_backward(t, r.loss);
    upload_unet(t, &r);
    db_zero_grad(&u->params);
    db_run(t, 0, 0);
    n = db_count(r.out);
    a = (float *)malloc(n * sizeof(float)), b = (float *)malloc(n * sizeof(float));
    db_download(t, r.out, a), db_download(t, r.loss, &loss);
    ref = golden(st, "out", dim);
    to_nhwc(ref, r.d_goal, b); /* of the target's shape */
    check_output(ctx, name, a, b, n, limit);
    check_loss(name, st, loss, limit);
    if (db_status(ctx) == DB_OK) check_gradients(name, &u->params, "", st, grad_limit);
    free(ref), free(a), free(b);
    free_unet(&r);
    db_tape_destroy(t);
    db_safetensors_close(st);
    db_unet_free(u);
    db_clear_error(ctx);
}

static inline void check_text_encoder(db_ctx *ctx, const char *name)
{
    db_text_config c;
    db_text_encoder *e = NULL;
    db_safetensors *st = NULL;
    db_tape *t = NULL;
    db_tensor ids, mask, out, target;
    size_t d[4], dm[4], k, n;
    float *words, *valid;
    int32_t *numbers;
    db_text_config_load(ctx, network_path(name, "config.json"), &c);
    db_text_encoder_create(ctx, &c, &e);
    if (!open_network(ctx, name, e ? &e->params : NULL, &st)) return;
    words = golden(st, "in.input_ids", d), valid = golden(st, "in.attention_mask", dm);
    n = d[0] * d[1];
    numbers = (int32_t *)malloc(n * sizeof *numbers);
    for (k = 0; k < n; k++) numbers[k] = (int32_t)words[k];
    for (k = 0; valid && k < n; k++) valid[k] = valid[k] > 0 ? 0.0f : -1e9f;
    db_tape_create(ctx, &t);
    ids = db_input(t, DB_I32, 2, d), mask = valid ? db_input(t, DB_F32, 2, d) : db_none;
    out = db_text_forward(t, e, ids, mask);
    target = db_input(t, DB_F32, 3, out.dim);
    {
        db_tensor l;
        size_t dim[4], m = db_count(out);
        float *ref = golden(st, "out", dim), *goal = golden(st, "target", dim),
              *a = (float *)malloc(m * sizeof(float)), loss = 0;
        db_keep(t, out);
        l = db_mse(t, out, target, db_none, db_none, NULL);
        db_backward(t, l);
        db_upload(t, ids, numbers), db_upload(t, target, goal);
        if (valid) db_upload(t, mask, valid);
        db_run(t, 0, 0);
        db_download(t, out, a), db_download(t, l, &loss);
        check_output(ctx, name, a, ref, m, 1e-4);
        check_loss(name, st, loss, 1e-4);
        if (db_status(ctx) == DB_OK) check_gradients(name, &e->params, "", st, 1e-3);
        free(ref), free(goal), free(a);
    }
    free(words), free(valid), free(numbers);
    db_tape_destroy(t);
    db_safetensors_close(st);
    db_text_encoder_free(e);
    db_clear_error(ctx);
}

/* ---- files that are wrong -------------------------------------------------------------------- */

/* A folder for this run; `at` gives paths in it. */
static char scratch[300];

static inline int make_scratch(const char *test)
{
    const char *folder = getenv("TMPDIR");
    snprintf(scratch, sizeof scratch, "%s/%s_XXXXXX", folder ? folder : "/tmp", test);
    return mkdtemp(scratch) != NULL;
}

static inline const char *at(const char *name)
{
    static char path[4][400];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/%s", scratch, name);
    return path[turn];
}

static inline void write_text(const char *name, const char *text)
{
    FILE *f = fopen(at(name), "wb");
    if (f) fputs(text, f), fclose(f);
}

/* Writes a table without the first `skip` characters of its names; `leave` is left out, `bend` gets
   a further row. */
static inline void write_params(db_ctx *ctx, const db_param_table *p, const char *name, size_t skip,
                                const char *leave, const char *bend)
{
    db_safetensors_writer *w = db_safetensors_create(ctx, at(name));
    float *row = (float *)calloc(1 << 20, sizeof *row);
    size_t k, pass;
    for (pass = 0; pass < 2; pass++)
        for (k = 0; k < p->n; k++) {
            size_t dim[4];
            if (leave && !strcmp(p->item[k].name, leave)) continue;
            memcpy(dim, p->item[k].dim, sizeof dim);
            dim[0] += bend && !strcmp(p->item[k].name, bend);
            db_param_get(&p->item[k], p->item[k].data, row);
            if (pass) db_safetensors_write_f32(w, p->item[k].name + skip, row);
            else db_safetensors_declare(w, p->item[k].name + skip, DB_F32, p->item[k].n_dims, dim);
        }
    free(row);
    db_safetensors_finish(w);
}

/* The context must have failed, with a sentence that holds both words. */
static inline void expect(db_ctx *ctx, const char *name, db_result code, const char *a,
                          const char *b)
{
    const char *error = db_last_error(ctx);
    if (db_status(ctx) == code && strstr(error, a) && strstr(error, b))
        test_pass(name, "%s", error);
    else test_fail(name, "%s, \"%s\"; expected %s with \"%s\" and \"%s\"",
                   db_result_name(db_status(ctx)), error, db_result_name(code), a, b);
    db_clear_error(ctx);
}

#endif

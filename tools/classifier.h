/* classifier.h - tells what a picture of the world shows: class, place, colour, view, accessory,
   style.

   For tools and experiments only: it was trained on renders and is held to renders. Include after
   dreambooth.h and world.h.                                                                      */
#ifndef CLASSIFIER_H
#define CLASSIFIER_H

/* X(name, number of values, the scene's value or -1: not to be asked) */
#define CLASSIFIER_ATTRIBUTES(X)                                                                   \
    X(class, WORLD_CLASSES, scene->head < 0 ? scene->object : -1)                                  \
    X(place, WORLD_PLACES, scene->place)                                                           \
    X(color, WORLD_COLORS, scene->color)                                                           \
    X(view, WORLD_VIEWS, scene->view)                                                              \
    X(accessory, WORLD_ACCESSORIES, scene->accessory)                                              \
    X(style, WORLD_STYLES, scene->style)

enum {
#define CLASSIFIER_ENUM(name, values, truth) CLASSIFIER_##name,
    CLASSIFIER_ATTRIBUTES(CLASSIFIER_ENUM)
#undef CLASSIFIER_ENUM
    CLASSIFIER_N
};

static const struct { const char *name; size_t values; } classifier_attributes[] = {
#define CLASSIFIER_ROW(name, values, truth) {#name, values},
    CLASSIFIER_ATTRIBUTES(CLASSIFIER_ROW)
#undef CLASSIFIER_ROW
};

/* The right answers for a scene. */
static inline void classifier_truth(const world_scene *scene, int32_t truth[CLASSIFIER_N])
{
#define CLASSIFIER_TRUTH(name, values, truth_) truth[CLASSIFIER_##name] = (int32_t)(truth_);
    CLASSIFIER_ATTRIBUTES(CLASSIFIER_TRUTH)
#undef CLASSIFIER_TRUTH
}

/* A residual network: convolutions see the shapes that classes differ in after a tenth of the
   pictures that a vision transformer of the same size needs. */
enum { CLASSIFIER_LEVELS = 3 };

typedef struct classifier_config {
    size_t image_size, channels[CLASSIFIER_LEVELS]; /* of the pictures at 1/2, 1/4, 1/8 */
} classifier_config;

typedef struct classifier {
    db_param_table params;
    classifier_config config;
    db_image_processor processor;
} classifier;

/* Pictures x [B,S,S,3] -> the logits of each attribute [B,values] */
static inline void classifier_record(db__net *n, const classifier_config *c, db_tensor x,
                                     db_tensor logits[CLASSIFIER_N])
{
    const db__resnets resnets = {8, 1e-5f, DB_ACT_SILU, 0};
    char name[40];
    size_t dim[3], here, k;
    x = db_cast(n->tape, x, n->tape->compute);
    x = db__conv_layer(n, "conv_in", x, c->channels[0], 3, db_none); /* [B,S,S,C] */
    for (k = 0; k < 2 * CLASSIFIER_LEVELS; k++) {                    /* halves, then not */
        snprintf(name, sizeof name, "blocks.%d", (int)k);
        x = db__resnet(n, &resnets, name, x, db_none, c->channels[k / 2], 1, k % 2 ? 0 : -1);
    }
    x = db__group_norm_layer(n, "norm_out", x, db_none, 8, 1e-5f, DB_ACT_SILU); /* [B,S/8,S/8,C] */
    dim[0] = x.dim[0], dim[1] = x.dim[1] * x.dim[2], dim[2] = x.dim[3];
    x = db_mean_tokens(n->tape, db_reshape(n->tape, x, 3, dim));                /* [B,1,C] */
    dim[1] = dim[2];
    x = db_reshape(n->tape, x, 2, dim);                                         /* [B,C] */
    here = db__enter(n, "heads");
    for (k = 0; k < CLASSIFIER_N; k++)
        logits[k] = db__linear_layer(n, classifier_attributes[k].name, x,
                                     classifier_attributes[k].values, 1, db_none);
    db__leave(n, here);
}

static inline db_result classifier_parse(db_ctx *ctx, const db_json *j, const char *path,
                                         void *config)
{
    classifier_config *c = (classifier_config *)config;
    c->image_size = 64;
    if (!db_json_get(j, "channels"))
        return db__fail(ctx, DB_ERROR_MISSING, "%s: no list of channels", path);
    db__per_level(ctx, j, "channels", path, CLASSIFIER_LEVELS, 0, c->channels);
    return db_status(ctx);
}

static inline db_result classifier_check(db_ctx *ctx, const void *config, const char *what)
{
    const classifier_config *c = (const classifier_config *)config;
    int k;
    for (k = 0; k < CLASSIFIER_LEVELS; k++)
        if (!c->channels[k] || c->channels[k] % 8)
            return db__fail(ctx, DB_ERROR_FORMAT, "%s: %zu channels are no multiple of 8", what,
                            c->channels[k]);
    return db_status(ctx);
}

static inline void classifier_declare(db__net *n, const void *config)
{
    db_tensor logits[CLASSIFIER_N];
    classifier_record(n, (const classifier_config *)config, db__declared_image(n, 64), logits);
}

static const db__network classifier_network = {
    sizeof(classifier), offsetof(classifier, config), sizeof(classifier_config), "model",
    classifier_parse, classifier_check, classifier_declare, NULL};

static inline void classifier_free(classifier *m) { db__network_free(m); }

/* From DIRECTORY/config.json and preprocessor_config.json, weights zero; with `weights` those of
   DIRECTORY/model.safetensors. NULL after an error; free with classifier_free. */
static inline classifier *classifier_open(db_ctx *ctx, const char *directory, int weights)
{
    char path[4096];
    classifier_config c;
    classifier *m = NULL;
    if (weights) {
        m = (classifier *)db__network_load(ctx, &classifier_network, directory);
    } else {
        snprintf(path, sizeof path, "%s/config.json", directory);
        if (db__config_load(ctx, &classifier_network, path, &c) == DB_OK)
            m = (classifier *)db__network_create(ctx, &classifier_network, &c, path);
    }
    snprintf(path, sizeof path, "%s/preprocessor_config.json", directory);
    if (m && db_image_processor_load(ctx, path, &m->processor) == DB_OK) return m;
    if (m) classifier_free(m);
    return NULL;
}

/* Records the whole network on a tape: x f32 [B,S,S,3] -> logits. */
static inline void classifier_forward(db_tape *t, classifier *m, db_tensor x,
                                      db_tensor logits[CLASSIFIER_N])
{
    db__net n = db__net_of(t, &m->params);
    classifier_record(&n, &m->config, x, logits);
}

/* The most likely value of every attribute of n pictures: out [n][CLASSIFIER_N]. */
static inline db_result classifier_run(classifier *m, const db_image *images, size_t n,
                                       int32_t *out)
{
    db_ctx *ctx = m->params.ctx;
    size_t S = m->config.image_size, width = 0, b, k, j;
    float *all;
    db_tensor x, logits[CLASSIFIER_N];
    db_tape *t = db__metric_tape(ctx, DB__MIN(n, (size_t)DB__AT_ONCE), S, S, &x);
    if (!t) return db_status(ctx);
    for (k = 0; k < CLASSIFIER_N; k++) width += classifier_attributes[k].values;
    classifier_forward(t, m, x, logits);
    all = (float *)db__alloc(ctx, n, width * sizeof *all);
    db__embed(t, &m->processor, x, logits, CLASSIFIER_N, images, n, all);
    for (b = 0; b < n && db_status(ctx) == DB_OK; b++) {
        const float *z = all + b * width;
        for (k = 0; k < CLASSIFIER_N; z += classifier_attributes[k++].values) {
            size_t best = 0;
            for (j = 1; j < classifier_attributes[k].values; j++) best = z[j] > z[best] ? j : best;
            out[b * CLASSIFIER_N + k] = (int32_t)best;
        }
    }
    db__free(ctx, all);
    return db_status(ctx);
}

#endif

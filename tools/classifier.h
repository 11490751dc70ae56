/* classifier.h - tells what a picture of the world shows: class, place, colour, view, accessory,
   style.

   A vision transformer of transformers' ViTModel layout with one linear layer per attribute
   (heads.NAME.weight, heads.NAME.bias) behind its class token. For tools and experiments only: it
   was trained on renders and is held to renders. Include after dreambooth.h and world.h.         */
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

/* features [B,D] -> the logits of each attribute [B,values] */
static inline void classifier_heads(db_net *n, db_tensor features, db_tensor logits[CLASSIFIER_N])
{
    size_t here = db__enter(n, "heads"), k;
    for (k = 0; k < CLASSIFIER_N; k++)
        logits[k] = db__linear_layer(n, classifier_attributes[k].name, features,
                                     classifier_attributes[k].values, 1, db_none);
    db__leave(n, here);
}

/* Records the whole network on a tape: x f32 [B,S,S,3] -> logits. */
static inline void classifier_forward(db_tape *t, db_vit *m, db_tensor x,
                                      db_tensor logits[CLASSIFIER_N])
{
    db_net n = db__net_of(t, &m->params);
    classifier_heads(&n, db_vit_forward(t, m, x), logits);
}

/* A ViT from DIRECTORY/config.json and preprocessor_config.json, weights zero, with the parameters
   that `more` declares when it records what comes behind the features [1,D]. *own (or NULL): how
   many parameters are the ViT's. NULL after an error; free with db_vit_free. */
static inline db_vit *vit_with_more(db_ctx *ctx, const char *directory,
                                    void (*more)(db_net *, db_tensor), size_t *own)
{
    char path[4096];
    db_vision_config c;
    db_vit *m = NULL;
    db_tape *t = NULL;
    size_t dim[2];
    db_net n;
    snprintf(path, sizeof path, "%s/config.json", directory);
    if (db_vit_config_load(ctx, path, &c) != DB_OK || db_vit_create(ctx, &c, &m) != DB_OK)
        return NULL;
    if (own) *own = m->params.n;
    snprintf(path, sizeof path, "%s/preprocessor_config.json", directory);
    if (db_image_processor_load(ctx, path, &m->processor) == DB_OK &&
        db_tape_create(ctx, &t) == DB_OK) {
        n = db__net_of(t, &m->params);
        n.declaring = 1;
        dim[0] = 1, dim[1] = c.hidden_size;
        more(&n, db_input(t, t->compute, 2, dim));
        db_tape_destroy(t);
        ctx->backend->release(ctx, m->params.data); /* make room for what came */
        m->params.data = NULL;
        db__params_allocate(&m->params);
    }
    if (db_status(ctx) == DB_OK) return m;
    db_vit_free(m);
    return NULL;
}

static inline void classifier_declare(db_net *n, db_tensor features)
{
    db_tensor logits[CLASSIFIER_N];
    classifier_heads(n, features, logits);
}

/* From DIRECTORY, weights zero; NULL after an error. Free with db_vit_free. */
static inline db_vit *classifier_create(db_ctx *ctx, const char *directory)
{
    return vit_with_more(ctx, directory, classifier_declare, NULL);
}

/* The same with DIRECTORY/model.safetensors. */
static inline db_vit *classifier_load(db_ctx *ctx, const char *directory)
{
    db_vit *m = classifier_create(ctx, directory);
    db_safetensors *st = NULL;
    if (m && db_weights_open(ctx, directory, "model", &st) == DB_OK)
        db_params_load(&m->params, st, directory);
    db_safetensors_close(st);
    if (db_status(ctx) == DB_OK) return m;
    db_vit_free(m);
    return NULL;
}

/* The most likely value of every attribute of n pictures: out [n][CLASSIFIER_N]. */
static inline db_result classifier_run(db_vit *m, const db_image *images, size_t n, int32_t *out)
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

/* pictures.h - a set of square pictures: rendered, drawn by a model, compared with each other.

   Include after dreambooth.h, world.h and cli.h.                                                */
#ifndef PICTURES_H
#define PICTURES_H

typedef struct pictures { /* square, owned */
    uint8_t *rgb;
    db_image *view;
    size_t n, side;
} pictures;

static inline pictures pictures_make(size_t n, size_t side)
{
    pictures p;
    size_t k;
    p.n = n, p.side = side;
    p.rgb = (uint8_t *)calloc(n + 1, side * side * 3);
    p.view = (db_image *)calloc(n + 1, sizeof *p.view);
    for (k = 0; k < n; k++)
        p.view[k].rgb = p.rgb + k * side * side * 3, p.view[k].w = p.view[k].h = side;
    return p;
}

static inline void pictures_free(pictures *p)
{
    free(p->rgb), free(p->view);
    memset(p, 0, sizeof *p);
}

static inline uint8_t *picture_at(const pictures *p, size_t k)
{
    return p->rgb + k * p->side * p->side * 3;
}

static inline void to_floats(const uint8_t *x, size_t n, float *out)
{
    size_t k;
    for (k = 0; k < n; k++) out[k] = (float)x[k] / 127.5f - 1;
}

static inline void render(const world_scene *scene, const pictures *to, size_t k)
{
    int side = (int)to->side;
    world_render(scene, side, 0, 0, side, side, 3, picture_at(to, k), NULL);
}

/* Draws prompts[k] from seed + k into to[first + k]. */
static inline int draw_into(db_pipeline *p, db_sampler sampler, size_t steps, double guidance,
                            const char *const *prompts, size_t n, uint64_t seed, pictures *to,
                            size_t first)
{
    db_sample_config c = db_sample_config_default();
    size_t P = to->side * to->side * 3;
    float *x = (float *)malloc((n + 1) * P * sizeof *x);
    int bad;
    c.sampler = sampler, c.num_inference_steps = steps;
    c.guidance_scale = (float)guidance, c.seed = seed;
    c.guidance_stop = (float)usual_guidance_stop(p);
    bad = n && db_generate(p, prompts, n, NULL, &c, to->side, to->side, x) != DB_OK;
    if (!bad) db_to_rgb(x, n * P, picture_at(to, first));
    free(x);
    return bad;
}

/* Mean LPIPS of all pairs of n pictures; not a number without a network or a pair. */
static inline double mean_lpips(db_lpips *net, const db_image *images, size_t n)
{
    size_t pairs = n * (n - 1) / 2, k;
    float *d = (float *)malloc((pairs + 1) * sizeof *d);
    double sum = 0;
    if (n > 1 && net && db_lpips_distances(net, images, n, d) == DB_OK)
        for (k = 0; k < pairs; k++) sum += (double)d[k] / (double)pairs;
    else sum = (double)NAN;
    free(d);
    return sum;
}

#endif
